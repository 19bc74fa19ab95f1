//! The only writer to stdout. It prints replies above the prompt.
//!
//! If stdout is not a terminal, or `TERM` is `dumb`, there is no prompt: the terminal edits the line.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crossterm::cursor::{MoveTo, MoveToColumn};
use crossterm::event::Event;
use crossterm::queue;
use crossterm::style::Print;
use crossterm::terminal::{self, Clear, ClearType};

use super::prompt::{Input, Prompt};
use super::text::escape;
use crate::platform::terminal::suspend;

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

    /// Prints whole lines in place of the prompt, which the next [`draw`](Self::draw) shows below them.
    pub(super) fn print(&mut self, lines: &str) -> io::Result<()> {
        if self.prompt.is_none() {
            return write(lines.as_bytes());
        }
        self.stale = true;
        let mut out = Vec::new();
        queue!(out, MoveToColumn(0), Clear(ClearType::FromCursorDown))?;
        // In raw mode the terminal does not add the carriage return.
        queue!(out, Print(lines.replace('\n', "\r\n")))?;
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
            self.print(&format!("> {}\n", escape(line)))?;
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

    /// Clears the screen. The next [`draw`](Self::draw) shows the prompt in the first row.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.stale = true;
        let mut out = Vec::new();
        queue!(out, Clear(ClearType::All), MoveTo(0, 0))?;
        write(&out)
    }

    /// Restores the terminal for the shell until the shell continues this process.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        self.leave_raw_mode()?;
        suspend();
        self.stale = true;
        terminal::enable_raw_mode()
    }

    /// Removes the prompt and leaves raw mode.
    pub(super) fn close(&mut self) -> io::Result<()> {
        let result = self.leave_raw_mode();
        self.prompt = None;
        result
    }

    /// Leaves raw mode. An unfinished line stays visible.
    fn leave_raw_mode(&mut self) -> io::Result<()> {
        let Some(prompt) = &self.prompt else {
            return Ok(());
        };
        let drawn = if prompt.is_empty() {
            self.print("")
        } else {
            self.draw().and_then(|()| write(b"\r\n"))
        };
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
