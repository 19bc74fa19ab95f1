//! The output of the session: replies above the prompt. Only the main thread writes it.
//!
//! If stdout is not a terminal, or `TERM` is `dumb`, there is no prompt: the terminal edits the line.

use std::env;
use std::io::{self, IsTerminal, stdout};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use crossterm::cursor::{MoveTo, MoveToColumn};
use crossterm::event::Event;
use crossterm::style::Print;
use crossterm::terminal::{self, Clear, ClearType};
use crossterm::{execute, queue};

use super::prompt::{Input, Prompt};
use super::text::escape;
use crate::platform::terminal::suspend;

/// How long [`restore_terminal`] waits for the terminal to accept a newline.
const NEWLINE_TIMEOUT: Duration = Duration::from_millis(200);

/// Set when a signal handler restores the terminal. [`enter_raw_mode`] does nothing from then on.
static IS_ENDING: Mutex<bool> = Mutex::new(false);

const CLEAR_BELOW: Clear = Clear(ClearType::FromCursorDown);

/// Restores the terminal when closed or dropped.
pub(super) struct Screen {
    prompt: Option<Prompt>,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let has_prompt = stdout().is_terminal() && !is_dumb;
        if has_prompt {
            enter_raw_mode()?;
        }
        Ok(Self {
            prompt: has_prompt.then(Prompt::default),
        })
    }

    pub(super) fn has_prompt(&self) -> bool {
        self.prompt.is_some()
    }

    /// Prints whole lines in place of the prompt, which the next [`draw`](Self::draw) shows below them.
    pub(super) fn print(&self, lines: &str) -> io::Result<()> {
        if self.prompt.is_none() {
            return execute!(stdout(), Print(lines));
        }
        // In raw mode the terminal does not add the carriage return.
        let lines = lines.replace('\n', "\r\n");
        execute!(stdout(), MoveToColumn(0), CLEAR_BELOW, Print(lines))
    }

    /// Handles a key or a resize. Returns what the key completes; a completed line stays visible.
    pub(super) fn press(&mut self, event: &Event) -> io::Result<Option<Input>> {
        let Some(prompt) = &mut self.prompt else {
            return Ok(None);
        };
        let input = event.as_key_event().and_then(|key| prompt.press(key));
        if let Some(Input::Line(line)) = &input {
            self.print(&format!("> {}\n", escape(line)))?;
        }
        Ok(input)
    }

    /// Draws the prompt.
    pub(super) fn draw(&self) -> io::Result<()> {
        let Some(prompt) = &self.prompt else {
            return Ok(());
        };
        // Some terminals report a width of 0.
        let columns = terminal::size().map_or(0, |(columns, _)| columns);
        let (row, cursor) = prompt.row(if columns == 0 { 80 } else { columns });
        queue!(stdout(), MoveToColumn(0), CLEAR_BELOW)?;
        execute!(stdout(), Print(row), MoveToColumn(cursor))
    }

    /// Clears the screen. The next [`draw`](Self::draw) shows the prompt in the first row.
    pub(super) fn clear() -> io::Result<()> {
        execute!(stdout(), Clear(ClearType::All), MoveTo(0, 0))
    }

    /// Restores the terminal for the shell until the shell continues this process.
    pub(super) fn suspend(&self) -> io::Result<()> {
        self.leave_raw_mode()?;
        suspend();
        enter_raw_mode()
    }

    /// Removes the prompt and leaves raw mode.
    pub(super) fn close(&mut self) -> io::Result<()> {
        let result = self.leave_raw_mode();
        self.prompt = None;
        result
    }

    /// Leaves raw mode. An unfinished line stays visible.
    fn leave_raw_mode(&self) -> io::Result<()> {
        let Some(prompt) = &self.prompt else {
            return Ok(());
        };
        let drawn = if prompt.is_empty() {
            self.print("")
        } else {
            self.draw().and_then(|()| execute!(stdout(), Print("\r\n")))
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

/// Enters raw mode, unless a signal handler has restored the terminal already.
fn enter_raw_mode() -> io::Result<()> {
    let is_ending = IS_ENDING.lock().unwrap_or_else(PoisonError::into_inner);
    if *is_ending {
        return Ok(());
    }
    terminal::enable_raw_mode()
}

/// Leaves raw mode for good and ends the prompt's row, from any thread.
pub fn restore_terminal() {
    *IS_ENDING.lock().unwrap_or_else(PoisonError::into_inner) = true;
    if terminal::is_raw_mode_enabled().is_ok_and(|raw| raw) {
        let _ = terminal::disable_raw_mode();
        // A terminal that is not read may block the write, and the main thread in one of its own.
        let (done, written) = mpsc::channel::<()>();
        let _ = thread::Builder::new().spawn(move || {
            let _ = execute!(stdout(), Print("\n"));
            drop(done);
        });
        let _ = written.recv_timeout(NEWLINE_TIMEOUT);
    }
}
