//! Line by line at a terminal.
//!
//! Three threads report what happens: one reads the keys, one reads the socket, one writes to it. The
//! main one hears it all in its order, and alone owns the screen: so nothing tears the line being
//! typed, nothing that came back is lost, nobody waits for anybody, and a server that leaves is told
//! of while the person is still typing.

mod prompt;
mod screen;
mod text;

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use crossterm::event;

use self::prompt::Typed;
use self::screen::Screen;
use self::text::Decoder;
use super::connection::Connection;
use super::{Error, Target, explain_lost_connection, explain_stdout_error, is_timeout};
use crate::platform::terminal::{BEFORE_NEWLINE, wait_until_gone};

/// How long the beginning of a line waits for its rest before it is shown.
const BLINK: Duration = Duration::from_millis(20);

/// How many events may wait to be shown; a server that sends more than the terminal takes then has
/// to wait, too.
const QUEUED: usize = 16;

/// The most that is read at once, in bytes. What is queued is shown before the next key is looked
/// at, on terminals that take little.
const PIECE: usize = 4096;

/// What the threads tell.
enum Event {
    /// A key, or a change of the window's size.
    Key(event::Event),
    /// What a key has ended; without a prompt, what the terminal itself has edited.
    Typed(Typed),
    /// The terminal cannot be read any more.
    TerminalFailed(io::Error),
    /// A line of so many bytes has gone out.
    Sent(usize),
    /// The server has taken nothing for the timeout; it may have sent something.
    WriteTimedOut,
    Received(Vec<u8>),
    /// The server has sent its last: FIN, or an error.
    End(io::Result<()>),
}

/// Talks to the server until the person leaves or the server does. A thread that still waits for a
/// key then ends only with the process.
///
/// # Errors
/// The server cannot be reached, has left, or does not send what it owes; or the terminal failed. A
/// terminal that is gone is [`Error::AlreadyReported`].
pub fn run(target: &Target) -> Result<(), Error> {
    let (stream, address) = target.connect()?;
    stream
        .set_write_timeout(Some(target.timeout))
        .map_err(|error| explain_lost_connection(address, &error))?;
    let mut screen = Screen::open().map_err(explain_terminal_error)?;
    screen
        .print([
            format!("Connected to {address}"),
            "Each line is sent; quit, exit or Ctrl+D leaves.".to_owned(),
        ])
        .map_err(explain_terminal_error)?;
    let (lines, events) = start_threads(Arc::new(Connection::new(stream)), screen.has_prompt())
        .map_err(|error| format!("the system gives no thread: {error}"))?;
    let talk = Talk {
        address,
        timeout: target.timeout,
        screen,
        lines: Some(lines),
        events,
        unsent: 0,
        owed: 0,
        last_moved: Instant::now(),
        deadline: None,
        decoder: Decoder::default(),
        held: String::new(),
        held_until: None,
        mid_line: false,
    };
    talk.run()
}

/// Leaves the terminal as it was found, from whatever thread: for programs that a signal ends while
/// [`run`] has a prompt.
pub fn give_terminal_back() {
    screen::give_back();
}

/// The conversation, as the main thread sees it.
struct Talk {
    address: SocketAddr,
    timeout: Duration,
    screen: Screen,
    /// Where lines go out; `None` once the person has left.
    lines: Option<Sender<Vec<u8>>>,
    events: Receiver<Event>,
    /// Bytes that have not gone out yet.
    unsent: usize,
    /// Bytes that have not come back yet.
    owed: u64,
    last_moved: Instant,
    /// Once the person has left: when the server must have sent something more.
    deadline: Option<Instant>,
    decoder: Decoder,
    /// The beginning of a line that came without its end.
    held: String,
    held_until: Option<Instant>,
    /// Whether the line that was shown last came without its end.
    mid_line: bool,
}

impl Talk {
    fn run(mut self) -> Result<(), Error> {
        loop {
            let Some(event) = self.next_event()? else {
                return self.give_up();
            };
            match event {
                Event::Key(key) => {
                    let typed = self.screen.press(&key).map_err(explain_terminal_error)?;
                    typed.into_iter().try_for_each(|typed| self.obey(typed))?;
                }
                Event::Typed(typed) => self.obey(typed)?,
                Event::TerminalFailed(error) => return Err(explain_terminal_error(error)),
                Event::Sent(bytes) => {
                    self.unsent -= bytes;
                    self.bytes_moved();
                }
                Event::WriteTimedOut if self.last_moved.elapsed() < self.timeout => {}
                Event::WriteTimedOut => return self.give_up(),
                Event::Received(bytes) => self.receive(&bytes)?,
                Event::End(end) => return self.end(end),
            }
        }
    }

    /// Waits for what happens next; nothing does where the server is out of time.
    fn next_event(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if self.held_until.is_some_and(is_over) {
                self.show_held()?;
            }
            if self.deadline.is_some_and(is_over) {
                return Ok(None);
            }
            if let Ok(event) = self.events.try_recv() {
                return Ok(Some(event));
            }
            self.screen.draw().map_err(explain_terminal_error)?;
            let until = [self.held_until, self.deadline].into_iter().flatten().min();
            let event = match until {
                Some(until) => self
                    .events
                    .recv_timeout(until.saturating_duration_since(Instant::now()))
                    .ok(),
                // The reader of the socket ends with an event, and that ends the conversation.
                None => self.events.recv().ok(),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    fn obey(&mut self, typed: Typed) -> Result<(), Error> {
        // Whoever has left may still be typing.
        let Some(lines) = &self.lines else {
            return Ok(());
        };
        match typed {
            Typed::Line(line) if line != b"quit" && line != b"exit" => {
                let line = [line, b"\n".to_vec()].concat();
                self.unsent += line.len();
                self.owed += line.len() as u64;
                // A sender that has ended has met an error, and the reader meets it too.
                let _ = lines.send(line);
                Ok(())
            }
            Typed::Line(_) | Typed::Leave => self.leave(),
        }
    }

    /// Half-closes once all lines have gone out. The terminal is given back, so that Ctrl+C can end
    /// the wait for what is still owed.
    fn leave(&mut self) -> Result<(), Error> {
        self.lines = None;
        self.deadline = Some(Instant::now() + self.timeout);
        self.screen.close().map_err(explain_terminal_error)
    }

    /// One who is owed nothing waits for the server's FIN alone, not for whatever else it might send
    /// for ever.
    fn bytes_moved(&mut self) {
        self.last_moved = Instant::now();
        if self.owed > 0 {
            self.deadline = self.deadline.map(|_| Instant::now() + self.timeout);
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.bytes_moved();
        self.owed = self.owed.saturating_sub(bytes.len() as u64);
        self.held += &self.decoder.decode(bytes);
        if let Some(end) = self.held.rfind('\n') {
            let rest = self.held.split_off(end + 1);
            self.show_held()?;
            self.held = rest;
        }
        if !self.held.is_empty() {
            self.held_until
                .get_or_insert_with(|| Instant::now() + BLINK);
        }
        Ok(())
    }

    fn show_held(&mut self) -> Result<(), Error> {
        // What ends a line whose beginning has been shown has a row already.
        let rest = self
            .held
            .strip_prefix('\n')
            .filter(|_| self.mid_line)
            .unwrap_or(&self.held);
        let lines = rest.lines().map(|line| format!("Server: {line}"));
        self.screen.print(lines).map_err(explain_terminal_error)?;
        self.mid_line = !self.held.is_empty() && !self.held.ends_with('\n');
        self.held.clear();
        self.held_until = None;
        Ok(())
    }

    /// Shows what is left, and gives the terminal back.
    fn close(&mut self) -> Result<(), Error> {
        self.held += &self.decoder.finish();
        self.show_held()?;
        self.screen.close().map_err(explain_terminal_error)
    }

    /// The server has sent its last.
    fn end(mut self, end: io::Result<()>) -> Result<(), Error> {
        self.close()?;
        let Self { address, owed, .. } = self;
        match end {
            Ok(()) if self.lines.is_none() && owed == 0 => self.say_goodbye(),
            Ok(()) if owed == 0 => {
                Err(format!("{address} closed the connection; its log may say why").into())
            }
            Ok(()) => Err(format!(
                "{address} closed the connection with {owed} bytes still owed; is it an echo \
                 server?"
            )
            .into()),
            Err(error) => Err(explain_lost_connection(address, &error).into()),
        }
    }

    /// The server is out of time. One that owes nothing may keep its FIN.
    fn give_up(mut self) -> Result<(), Error> {
        self.close()?;
        let Self {
            address,
            timeout,
            owed,
            unsent,
            ..
        } = self;
        if unsent > 0 {
            return Err(format!(
                "{address} has not taken {unsent} bytes within {timeout:?}; --timeout waits longer"
            )
            .into());
        }
        if owed == 0 {
            return self.say_goodbye();
        }
        Err(format!(
            "{address} owes {owed} bytes, and none has come for {timeout:?}; --timeout waits longer"
        )
        .into())
    }

    fn say_goodbye(&mut self) -> Result<(), Error> {
        let line = format!("Disconnected from {}", self.address);
        self.screen.print([line]).map_err(explain_terminal_error)
    }
}

/// Starts what reads the keys, what reads the socket, and what writes to it the lines that it gets.
fn start_threads(
    connection: Arc<Connection>,
    has_prompt: bool,
) -> io::Result<(Sender<Vec<u8>>, Receiver<Event>)> {
    let (events, received) = mpsc::sync_channel(QUEUED);
    let (lines, queue) = mpsc::channel();
    let (reader, writer, keys) = (events.clone(), events.clone(), events);
    let shared = Arc::clone(&connection);
    let start = |work: Box<dyn FnOnce() + Send>| thread::Builder::new().spawn(work).map(drop);
    start(Box::new(move || read_socket(&shared, &reader)))?;
    start(Box::new(move || write_socket(&connection, queue, &writer)))?;
    if has_prompt {
        let watcher = keys.clone();
        start(Box::new(move || watch_terminal(&watcher)))?;
    }
    start(Box::new(move || {
        if has_prompt {
            read_keys(&keys);
        } else {
            read_lines(&keys);
        }
    }))?;
    Ok((lines, received))
}

/// Reads to the server's end. The main thread, once it has ended, wants no more.
fn read_socket(mut connection: &Connection, events: &SyncSender<Event>) {
    let mut buffer = vec![0; PIECE];
    loop {
        let event = match connection.read(&mut buffer) {
            Ok(0) => Event::End(Ok(())),
            Ok(n) => Event::Received(buffer[..n].to_vec()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Event::End(Err(error)),
        };
        let is_end = matches!(event, Event::End(_));
        if events.send(event).is_err() || is_end {
            return;
        }
    }
}

/// Writes lines until there are no more, then half-closes.
fn write_socket(mut connection: &Connection, lines: Receiver<Vec<u8>>, events: &SyncSender<Event>) {
    for line in lines {
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            let event = match connection.write(rest) {
                Ok(written) => {
                    rest = &rest[written..];
                    Event::Sent(written)
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if is_timeout(&error) => Event::WriteTimedOut,
                // The thread that reads the connection reports how it ended.
                Err(_) => return,
            };
            if events.send(event).is_err() {
                return;
            }
        }
    }
    connection.half_close();
}

fn read_keys(events: &SyncSender<Event>) {
    loop {
        let (event, is_end) = match event::read() {
            Ok(event) => (Event::Key(event), false),
            Err(error) => (Event::TerminalFailed(error), true),
        };
        if events.send(event).is_err() || is_end {
            return;
        }
    }
}

/// A terminal that has gone has no keys; but `crossterm` looks for them again and again, without a
/// pause. Where the system does not tell, it is left to that.
fn watch_terminal(events: &SyncSender<Event>) {
    if wait_until_gone() {
        let _ = events.send(Event::TerminalFailed(ErrorKind::BrokenPipe.into()));
    }
}

fn read_lines(events: &SyncSender<Event>) {
    for line in io::stdin().lock().split(b'\n') {
        let event = match line {
            Ok(line) => {
                let line = line.strip_suffix(BEFORE_NEWLINE).unwrap_or(&line);
                Event::Typed(Typed::Line(line.to_vec()))
            }
            Err(error) => Event::TerminalFailed(error),
        };
        if events.send(event).is_err() {
            return;
        }
    }
    let _ = events.send(Event::Typed(Typed::Leave));
}

fn is_over(time: Instant) -> bool {
    Instant::now() >= time
}

/// A terminal that is gone has nobody before it to hear why.
#[expect(clippy::needless_pass_by_value, reason = "it is for map_err")]
fn explain_terminal_error(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe => Error::AlreadyReported,
        // No terminal reports this: stdout is a file.
        ErrorKind::StorageFull => explain_stdout_error(&error),
        _ => format!("the terminal failed: {error}").into(),
    }
}
