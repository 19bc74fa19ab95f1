//! The only writer to stdout. It prints replies above the prompt.
//!
//! If stdout is not a terminal, or `TERM` is `dumb`, there is no prompt: the terminal edits the line.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crossterm::cursor::MoveToColumn;
use crossterm::event::Event;
use crossterm::queue;
use crossterm::style::Print;
use crossterm::terminal::{self, Clear, ClearType};

use super::prompt::{Input, Prompt};
use super::text::escape;

/// How long [`restore_terminal`] waits for the terminal to accept a newline.
const NEWLINE_TIMEOUT: Duration = Duration::from_millis(200);

/// Restores the terminal when closed or dropped.
pub(super) struct Screen {
    prompt: Option<Prompt>,
    /// Whether the prompt must be drawn again.
    stale: bool,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let has_prompt = io::stdout().is_terminal() && !is_dumb;
        if has_prompt {
            terminal::enable_raw_mode()?;
        }
        Ok(Self {
            prompt: has_prompt.then(Prompt::default),
            stale: true,
        })
    }

    pub(super) fn has_prompt(&self) -> bool {
        self.prompt.is_some()
    }

    /// Prints lines in place of the prompt, which the next [`draw`](Self::draw) shows below them.
    pub(super) fn print(&mut self, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
        let mut out = Vec::new();
        // In raw mode the terminal does not add the carriage return.
        let line_end: &[u8] = if self.has_prompt() { b"\r\n" } else { b"\n" };
        if self.has_prompt() {
            queue!(out, MoveToColumn(0), Clear(ClearType::FromCursorDown))?;
            self.stale = true;
        }
        for line in lines {
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(line_end);
        }
        write(&out)
    }

    /// Handles a key or a resize. Returns what the key completes; a completed line stays visible.
    pub(super) fn press(&mut self, event: &Event) -> io::Result<Option<Input>> {
        let Some(prompt) = &mut self.prompt else {
            return Ok(None);
        };
        self.stale = true;
        let input = event.as_key_event().and_then(|key| prompt.press(key));
        if let Some(Input::Line(line)) = &input {
            self.print([format!("> {}", escape(line))])?;
        }
        Ok(input)
    }

    /// Draws the prompt if it has changed.
    pub(super) fn draw(&mut self) -> io::Result<()> {
        let Some(prompt) = self.prompt.as_ref().filter(|_| self.stale) else {
            return Ok(());
        };
        // Some terminals report a width of 0.
        let columns = terminal::size().map_or(0, |(columns, _)| columns);
        let (row, cursor) = prompt.row(if columns == 0 { 80 } else { columns });
        let mut out = Vec::new();
        queue!(out, MoveToColumn(0), Clear(ClearType::FromCursorDown))?;
        queue!(out, Print(row), MoveToColumn(cursor))?;
        self.stale = false;
        write(&out)
    }

    /// Removes the prompt and leaves raw mode. An unfinished line stays visible.
    pub(super) fn close(&mut self) -> io::Result<()> {
        let Some(prompt) = &self.prompt else {
            return Ok(());
        };
        let drawn = if prompt.is_empty() {
            self.print([])
        } else {
            self.draw().and_then(|()| write(b"\r\n"))
        };
        self.prompt = None;
        terminal::disable_raw_mode()?;
        drawn
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If stdout fails, the error cannot be reported.
        let _ = self.close();
    }
}

/// Leaves raw mode and ends the prompt's row, from any thread.
pub fn restore_terminal() {
    if terminal::is_raw_mode_enabled().is_ok_and(|raw| raw) {
        let _ = terminal::disable_raw_mode();
        // A terminal that is not read may block the write, and the main thread in one of its own.
        let (done, written) = mpsc::channel::<()>();
        let _ = thread::Builder::new().spawn(move || {
            let _ = write(b"\n");
            drop(done);
        });
        let _ = written.recv_timeout(NEWLINE_TIMEOUT);
    }
}

/// Writes all bytes at once, so that the terminal does not show a half-drawn prompt.
fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}
