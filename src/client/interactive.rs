//! The interactive client: sends each line and shows the replies above the prompt.
//!
//! Separate threads read the keys, read the socket and write the socket. Each sends events to the main
//! thread, which alone writes to the screen. So a reply never lands inside the line being typed, and a
//! connection that closes is reported at once.

mod prompt;
mod screen;
mod text;

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use crossterm::event;

use self::prompt::Input;
use self::screen::Screen;
use self::text::{complete_len, escape};
use super::connection::Connection;
use super::{Error, Target, explain_lost_connection, explain_stdout_error, is_timeout};
use crate::platform::terminal::{BEFORE_NEWLINE, wait_until_gone};

pub use self::screen::restore_terminal;

/// How long a line without a newline is held back before it is shown.
const PARTIAL_LINE_DELAY: Duration = Duration::from_millis(20);

/// How many events may wait for the main thread. If the terminal is slow, the server has to wait too.
const EVENT_CAPACITY: usize = 16;

/// Bytes per read from the socket. A small value keeps the keys responsive on a slow terminal.
const READ_CHUNK: usize = 4096;

/// Keys per event. The prompt is drawn once per event, which makes a long paste fast.
const KEYS_PER_EVENT: usize = 4096;

enum Event {
    /// Keys and resizes.
    Keys(Vec<event::Event>),
    /// Without a prompt: input that the terminal has edited.
    Input(Input),
    TerminalFailed(io::Error),
    /// This many bytes have been sent.
    Sent(usize),
    /// A write has timed out.
    WriteTimedOut,
    Received(Vec<u8>),
    /// The server has sent FIN, or the connection has failed.
    Closed(io::Result<()>),
}

/// Runs an interactive session until the user or the server disconnects.
///
/// The threads that read the keys and the socket may outlive it; they end with the process.
///
/// # Errors
/// Returns an error if the server cannot be reached, disconnects or does not return every byte, or if
/// the terminal fails. If the terminal has been closed, the error is [`Error::AlreadyReported`].
pub fn run(target: &Target) -> Result<(), Error> {
    let (stream, address) = target.connect()?;
    stream
        .set_write_timeout(Some(target.timeout))
        .map_err(|error| explain_lost_connection(address, &error))?;
    let mut screen = Screen::open().map_err(explain_terminal_error)?;
    screen
        .print([
            format!("Connected to {address}"),
            "Each line is sent; quit, exit or Ctrl+D disconnects.".to_owned(),
        ])
        .map_err(explain_terminal_error)?;
    let (lines, events) = start_threads(Connection::new(stream), screen.has_prompt())
        .map_err(|error| format!("cannot spawn a thread: {error}"))?;
    let session = Session {
        address,
        timeout: target.timeout,
        screen,
        lines: Some(lines),
        events,
        unsent: 0,
        missing: 0,
        last_progress: Instant::now(),
        deadline: None,
        partial_line: Vec::new(),
        partial_line_deadline: None,
        mid_line: false,
    };
    session.run()
}

/// The state of the main thread.
struct Session {
    address: SocketAddr,
    timeout: Duration,
    screen: Screen,
    /// Sends lines to the writing thread; `None` once the user has disconnected.
    lines: Option<Sender<Vec<u8>>>,
    events: Receiver<Event>,
    /// Bytes of lines that have not been sent yet.
    unsent: usize,
    /// Bytes of lines that have not come back yet.
    missing: u64,
    /// When bytes were last sent or received.
    last_progress: Instant,
    /// After the user has disconnected: when to stop waiting for the server.
    deadline: Option<Instant>,
    /// Received bytes that are not shown yet, because their line is not complete.
    partial_line: Vec<u8>,
    /// When to show `partial_line` as it is.
    partial_line_deadline: Option<Instant>,
    /// Whether the line shown last is still without its newline.
    mid_line: bool,
}

impl Session {
    fn run(mut self) -> Result<(), Error> {
        loop {
            let Some(event) = self.next_event()? else {
                return self.time_out();
            };
            match event {
                Event::Keys(keys) => {
                    for key in keys {
                        let input = self.screen.press(&key).map_err(explain_terminal_error)?;
                        input.map_or(Ok(()), |input| self.handle_input(input))?;
                    }
                }
                Event::Input(input) => self.handle_input(input)?,
                Event::TerminalFailed(error) => return Err(explain_terminal_error(error)),
                Event::Sent(bytes) => {
                    self.unsent -= bytes;
                    self.record_progress();
                }
                // A server that sends but does not read is not given up.
                Event::WriteTimedOut if self.last_progress.elapsed() < self.timeout => {}
                Event::WriteTimedOut => return self.time_out(),
                Event::Received(bytes) => self.receive(&bytes)?,
                Event::Closed(result) => return self.finish(result),
            }
        }
    }

    /// Waits for the next event. Returns `None` at the deadline.
    fn next_event(&mut self) -> Result<Option<Event>, Error> {
        let is_over = |deadline: Instant| deadline <= Instant::now();
        loop {
            if self.partial_line_deadline.is_some_and(is_over) {
                self.show(complete_len(&self.partial_line))?;
            }
            if self.deadline.is_some_and(is_over) {
                return Ok(None);
            }
            if let Ok(event) = self.events.try_recv() {
                return Ok(Some(event));
            }
            self.screen.draw().map_err(explain_terminal_error)?;
            let deadlines = [self.partial_line_deadline, self.deadline];
            let event = match deadlines.into_iter().flatten().min() {
                Some(deadline) => {
                    let timeout = deadline.saturating_duration_since(Instant::now());
                    self.events.recv_timeout(timeout).ok()
                }
                // This cannot fail: the socket's reader sends `Closed` before it ends.
                None => self.events.recv().ok(),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    fn handle_input(&mut self, input: Input) -> Result<(), Error> {
        // Keys may still arrive after the user has disconnected.
        let Some(lines) = &self.lines else {
            return Ok(());
        };
        match input {
            Input::Line(mut line) if line != b"quit" && line != b"exit" => {
                line.push(b'\n');
                self.unsent += line.len();
                self.missing += line.len() as u64;
                // If the writing thread has ended, the reading thread reports why.
                let _ = lines.send(line);
                Ok(())
            }
            Input::Line(_) | Input::Disconnect => self.disconnect(),
        }
    }

    /// Half-closes the connection once all lines are sent. Leaves raw mode, so that Ctrl+C ends the
    /// wait for pending echoes.
    fn disconnect(&mut self) -> Result<(), Error> {
        self.lines = None;
        self.deadline = Some(Instant::now() + self.timeout);
        self.screen.close().map_err(explain_terminal_error)
    }

    /// Extends the deadline while echoes are pending. After that, only FIN is awaited: other bytes
    /// could go on forever.
    fn record_progress(&mut self) {
        self.last_progress = Instant::now();
        if self.missing > 0 {
            self.deadline = self.deadline.map(|_| Instant::now() + self.timeout);
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.record_progress();
        self.missing = self.missing.saturating_sub(bytes.len() as u64);
        self.partial_line.extend_from_slice(bytes);
        if let Some(newline) = self.partial_line.iter().rposition(|byte| *byte == b'\n') {
            self.show(newline + 1)?;
        }
        if !self.partial_line.is_empty() {
            self.partial_line_deadline
                .get_or_insert_with(|| Instant::now() + PARTIAL_LINE_DELAY);
        }
        Ok(())
    }

    /// Shows the first `len` bytes of `partial_line` and removes them.
    fn show(&mut self, len: usize) -> Result<(), Error> {
        self.partial_line_deadline = None;
        let rest = self.partial_line.split_off(len);
        let shown = mem::replace(&mut self.partial_line, rest);
        if shown.is_empty() {
            return Ok(());
        }
        // The newline of a line that has been shown already needs no row.
        let lines = shown.strip_prefix(b"\n").filter(|_| self.mid_line);
        let text = escape(lines.unwrap_or(&shown));
        self.mid_line = !shown.ends_with(b"\n");
        self.screen
            .print(text.lines().map(|line| format!("Server: {line}")))
            .map_err(explain_terminal_error)
    }

    /// Shows what is left and restores the terminal.
    fn close(&mut self) -> Result<(), Error> {
        self.show(self.partial_line.len())?;
        self.screen.close().map_err(explain_terminal_error)
    }

    /// Ends the session after the server has closed the connection.
    fn finish(mut self, result: io::Result<()>) -> Result<(), Error> {
        self.close()?;
        let address = self.address;
        match (result, self.missing) {
            (Err(error), _) => Err(explain_lost_connection(address, &error).into()),
            (Ok(()), 0) if self.lines.is_none() => self.print_disconnected(),
            (Ok(()), 0) => {
                Err(format!("{address} closed the connection; its log may say why").into())
            }
            (Ok(()), missing) => Err(format!(
                "{address} closed the connection without returning {missing} bytes; is it an echo \
                 server?"
            )
            .into()),
        }
    }

    /// Ends the session after the timeout. If every byte has come back, a missing FIN is no error.
    fn time_out(mut self) -> Result<(), Error> {
        self.close()?;
        let (address, timeout) = (self.address, self.timeout);
        if self.unsent > 0 {
            let unsent = self.unsent;
            return Err(format!(
                "{address} did not accept {unsent} bytes within {timeout:?}; --timeout waits longer"
            )
            .into());
        }
        if self.missing > 0 {
            let missing = self.missing;
            return Err(format!(
                "{address} did not return {missing} bytes within {timeout:?}; --timeout waits longer"
            )
            .into());
        }
        self.print_disconnected()
    }

    fn print_disconnected(&mut self) -> Result<(), Error> {
        let line = format!("Disconnected from {}", self.address);
        self.screen.print([line]).map_err(explain_terminal_error)
    }
}

/// Starts the threads. Returns where to send lines, and the events.
fn start_threads(
    connection: Connection,
    has_prompt: bool,
) -> io::Result<(Sender<Vec<u8>>, Receiver<Event>)> {
    type Work = fn(&SyncSender<Event>);

    let (events, received) = mpsc::sync_channel(EVENT_CAPACITY);
    let (lines, queue) = mpsc::channel();
    let connection = Arc::new(connection);

    let (shared, sender) = (Arc::clone(&connection), events.clone());
    thread::Builder::new().spawn(move || read_socket(&shared, &sender))?;
    let sender = events.clone();
    thread::Builder::new().spawn(move || write_socket(&connection, queue, &sender))?;
    let terminal: &[Work] = if has_prompt {
        &[read_keys, watch_terminal]
    } else {
        &[read_lines]
    };
    for work in terminal {
        let sender = events.clone();
        thread::Builder::new().spawn(move || work(&sender))?;
    }
    Ok((lines, received))
}

/// Reads until the connection closes or the session has ended.
fn read_socket(mut connection: &Connection, events: &SyncSender<Event>) {
    let mut buffer = vec![0; READ_CHUNK];
    let result = loop {
        match connection.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => {
                if events.send(Event::Received(buffer[..n].to_vec())).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    let _ = events.send(Event::Closed(result));
}

/// Sends the lines. Half-closes the connection after the last one.
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
        let (event, failed) = match next_keys() {
            Ok(keys) => (Event::Keys(keys), false),
            Err(error) => (Event::TerminalFailed(error), true),
        };
        if events.send(event).is_err() || failed {
            return;
        }
    }
}

/// Waits for a key. Returns it with the keys that have been pressed since.
fn next_keys() -> io::Result<Vec<event::Event>> {
    let mut keys = vec![event::read()?];
    while keys.len() < KEYS_PER_EVENT && event::poll(Duration::ZERO)? {
        keys.push(event::read()?);
    }
    Ok(keys)
}

/// Reports a terminal that has been closed. `crossterm` does not: it would retry forever.
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
                Event::Input(Input::Line(line.to_vec()))
            }
            Err(error) => Event::TerminalFailed(error),
        };
        if events.send(event).is_err() {
            return;
        }
    }
    let _ = events.send(Event::Input(Input::Disconnect));
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn explain_terminal_error(error: io::Error) -> Error {
    match error.kind() {
        // The terminal has been closed: the error cannot be reported.
        ErrorKind::BrokenPipe => Error::AlreadyReported,
        // A terminal does not report this: stdout is a file.
        ErrorKind::StorageFull => explain_stdout_error(&error),
        _ => format!("the terminal failed: {error}").into(),
    }
}
