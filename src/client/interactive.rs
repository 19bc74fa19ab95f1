//! The interactive client: sends each line and shows the replies above the prompt.
//!
//! Separate threads read the keys, read the socket and write the socket. Each sends events to the main
//! thread, which alone writes to the screen. So a reply never lands inside the line being typed, and a
//! connection that closes is reported at once.

mod prompt;
mod screen;
mod text;

use std::io::{self, BufRead, ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::time::{Duration, Instant};

use crossterm::event;

use self::prompt::Input;
use self::screen::Screen;
use self::text::{complete_len, escape};
use super::connection::Connection;
use super::{Error, Target, explain_lost_connection, explain_stdout_error, print, spawn};
use crate::platform::terminal::{BEFORE_NEWLINE, wait_until_gone};
use crate::platform::wait::{PollFlags, wait_for_socket};

pub use self::screen::restore_terminal;

/// How long to wait for the rest of a line before its beginning is shown.
const PARTIAL_LINE_DELAY: Duration = Duration::from_millis(20);

/// How much longer than the timeout the main thread waits. Bytes may have arrived that the reading thread
/// has not delivered yet, such as after the process was suspended.
const DELIVERY_GRACE: Duration = Duration::from_secs(1);

/// How many events may wait for the main thread. If the terminal is slow, backpressure reaches the
/// server.
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
    /// The server has read nothing for the timeout.
    WriteTimedOut,
    Received(Vec<u8>),
    /// The server has sent FIN, or the connection has failed.
    Closed(io::Result<()>),
}

/// How a session has ended.
enum End {
    Closed(io::Result<()>),
    WriteTimedOut,
    /// After the user has disconnected, the server has neither closed nor returned the next bytes.
    TimedOut,
}

/// Runs an interactive session until the user or the server disconnects.
///
/// The threads that read the keys and the socket may outlive it; they end with the process.
///
/// # Errors
/// Returns an error if the server cannot be reached, disconnects or does not return every byte, or if
/// the terminal fails. If the terminal has been closed, the error is [`Error::AlreadyReported`].
pub fn run(target: &Target) -> Result<(), Error> {
    let connection = target.connect()?;
    let address = connection.address;
    // The user may pause for any time.
    connection
        .stream
        .set_read_timeout(None)
        .map_err(|error| explain_lost_connection(address, &error))?;
    let screen = Screen::open().map_err(explain_terminal_error)?;
    let (lines, events) = start_threads(connection, screen.has_prompt())?;
    let session = Session {
        address,
        timeout: target.timeout,
        screen,
        lines: Some(lines),
        events,
        missing: 0,
        last_progress: Instant::now(),
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
    /// Bytes of lines that have not come back yet.
    missing: usize,
    /// When bytes were last received, or when the user has disconnected.
    last_progress: Instant,
    /// Whether the line shown last is still without its newline.
    mid_line: bool,
}

impl Session {
    fn run(mut self) -> Result<(), Error> {
        let end = self.handle_events().map_err(explain_terminal_error)?;
        self.screen.close().map_err(explain_terminal_error)?;
        let (address, timeout, missing) = (self.address, self.timeout, self.missing);
        let message = match end {
            End::Closed(Err(error)) => explain_lost_connection(address, &error),
            End::Closed(Ok(())) if missing > 0 => format!(
                "{address} closed the connection without returning {missing} bytes; is it an echo \
                 server?"
            ),
            End::Closed(Ok(())) if self.lines.is_some() => {
                format!("{address} closed the connection; its log may say why")
            }
            End::WriteTimedOut => format!(
                "{address} did not accept more bytes within {timeout:?}; --timeout waits longer"
            ),
            End::TimedOut if missing > 0 => format!(
                "{address} did not return {missing} bytes within {timeout:?}; --timeout waits longer"
            ),
            // Every byte has come back. A missing FIN is no error.
            End::Closed(Ok(())) | End::TimedOut => {
                return print(format_args!("Disconnected from {address}\n"));
            }
        };
        Err(message.into())
    }

    /// Handles events until the session ends. Only the terminal can fail.
    fn handle_events(&mut self) -> io::Result<End> {
        self.screen.print(&format!(
            "Connected to {}\nEach line is sent; quit, exit or Ctrl+D disconnects.\n",
            self.address
        ))?;
        while let Some(event) = self.next_event()? {
            match event {
                Event::Keys(keys) => {
                    for key in keys {
                        if let Some(input) = self.screen.press(&key)? {
                            self.handle_input(input)?;
                        }
                    }
                }
                Event::Input(input) => self.handle_input(input)?,
                Event::TerminalFailed(error) => return Err(error),
                // A server that sends but does not read is not given up.
                Event::WriteTimedOut if self.last_progress.elapsed() < self.timeout => {}
                Event::WriteTimedOut => return Ok(End::WriteTimedOut),
                Event::Received(bytes) => self.receive(&bytes)?,
                Event::Closed(result) => return Ok(End::Closed(result)),
            }
        }
        Ok(End::TimedOut)
    }

    /// Waits for the next event. Returns `None` if the user has disconnected and the time is over.
    fn next_event(&mut self) -> io::Result<Option<Event>> {
        let time_left = match self.lines {
            Some(_) => Duration::MAX,
            None => self.timeout.saturating_sub(self.last_progress.elapsed()),
        };
        if time_left.is_zero() && self.missing == 0 {
            return Ok(None);
        }
        if let Ok(event) = self.events.try_recv() {
            return Ok(Some(event));
        }
        self.screen.draw()?;
        match self.events.recv_timeout(time_left) {
            Ok(event) => Ok(Some(event)),
            Err(_) if self.missing == 0 => Ok(None),
            Err(_) => Ok(self.next_late_event()),
        }
    }

    /// Waits a moment longer for an event of the connection. Keys have no effect any more.
    fn next_late_event(&self) -> Option<Event> {
        let deadline = Instant::now() + DELIVERY_GRACE;
        loop {
            let time_left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(time_left).ok()? {
                Event::Keys(_) | Event::Input(_) => {}
                event => return Some(event),
            }
        }
    }

    fn handle_input(&mut self, input: Input) -> io::Result<()> {
        // Input may still arrive after the user has disconnected.
        let Some(lines) = &self.lines else {
            return Ok(());
        };
        match input {
            Input::Line(mut line) if line != b"quit" && line != b"exit" => {
                line.push(b'\n');
                self.missing += line.len();
                // If the writing thread has ended, the reading thread reports why.
                let _ = lines.send(line);
                Ok(())
            }
            Input::Line(_) | Input::Disconnect => {
                self.lines = None;
                self.last_progress = Instant::now();
                // Leaves raw mode, so that Ctrl+C ends the wait for pending echoes.
                self.screen.close()
            }
            Input::ClearScreen => Screen::clear(),
            Input::Suspend => self.screen.suspend(),
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> io::Result<()> {
        // After the user has disconnected, only pending echoes extend the wait: other bytes could go
        // on forever.
        if self.lines.is_some() || self.missing > 0 {
            self.last_progress = Instant::now();
        }
        self.missing = self.missing.saturating_sub(bytes.len());
        // The newline of a line that has been shown already needs no row.
        let rest = bytes.strip_prefix(b"\n").filter(|_| self.mid_line);
        self.mid_line = !bytes.ends_with(b"\n");
        let text = escape(rest.unwrap_or(bytes));
        let rows: Vec<_> = text.lines().map(|row| format!("Server: {row}\n")).collect();
        self.screen.print(&rows.concat())
    }
}

/// Starts the threads. Returns where to send lines, and the events.
fn start_threads(
    connection: Connection,
    has_prompt: bool,
) -> Result<(Sender<Vec<u8>>, Receiver<Event>), Error> {
    let (events, received) = mpsc::sync_channel(EVENT_CAPACITY);
    let (lines, queue) = mpsc::channel();
    let connection = Arc::new(connection);
    let start = |work: fn(&Connection, &SyncSender<Event>)| {
        let (connection, events) = (Arc::clone(&connection), events.clone());
        spawn(move || work(&connection, &events))
    };
    start(read_socket)?;
    if has_prompt {
        start(|_, events| read_keys(events))?;
        start(|_, events| watch_terminal(events))?;
    } else {
        start(|_, events| read_lines(events))?;
    }
    spawn(move || write_socket(&connection, queue, &events))?;
    Ok((lines, received))
}

/// Reads until the connection closes. Reports whole lines, and the beginning of a line if the rest
/// does not follow soon.
fn read_socket(mut connection: &Connection, events: &SyncSender<Event>) {
    let mut buffer = vec![0; READ_CHUNK];
    let mut pending = Vec::new();
    let report = |pending: &mut Vec<u8>, len| {
        let bytes: Vec<u8> = pending.drain(..len).collect();
        if !bytes.is_empty() {
            let _ = events.send(Event::Received(bytes));
        }
    };
    let result = loop {
        match connection.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => pending.extend_from_slice(&buffer[..n]),
            Err(error) => break Err(error),
        }
        let newline = pending.iter().rposition(|byte| *byte == b'\n');
        report(&mut pending, newline.map_or(0, |index| index + 1));
        if pending.len() >= READ_CHUNK || !is_readable_soon(connection) {
            let len = complete_len(&pending);
            report(&mut pending, len);
        }
    };
    let len = pending.len();
    report(&mut pending, len);
    let _ = events.send(Event::Closed(result));
}

fn is_readable_soon(connection: &Connection) -> bool {
    let deadline = Instant::now() + PARTIAL_LINE_DELAY;
    wait_for_socket(&connection.stream, PollFlags::IN, Some(deadline), None).unwrap_or(false)
}

/// Sends the lines. Half-closes the connection after the last one.
fn write_socket(connection: &Connection, lines: Receiver<Vec<u8>>, events: &SyncSender<Event>) {
    let on_timeout = || {
        let _ = events.send(Event::WriteTimedOut);
    };
    for line in lines {
        // The thread that reads the connection reports how it ended.
        if connection.send_all(&line, on_timeout).is_err() {
            return;
        }
    }
    connection.half_close();
}

fn read_keys(events: &SyncSender<Event>) {
    loop {
        let event = next_keys().unwrap_or_else(Event::TerminalFailed);
        if events.send(event).is_err() {
            return;
        }
    }
}

/// Waits for a key. Returns it with the keys that have been pressed since.
fn next_keys() -> io::Result<Event> {
    let mut keys = vec![event::read()?];
    while keys.len() < KEYS_PER_EVENT && event::poll(Duration::ZERO)? {
        keys.push(event::read()?);
    }
    Ok(Event::Keys(keys))
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
