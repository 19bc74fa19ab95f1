//! The screen, and all that is written to it: what the server sends goes above the line being typed.
//! Where the terminal cannot do that (`TERM=dumb`, or stdout is not one) there is no prompt, and the
//! terminal itself does the editing.

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

use super::prompt::{Prompt, Typed};
use super::text::escape;

/// How long a terminal may take for the end of the row in which the prompt was.
const LAST_WORD: Duration = Duration::from_millis(200);

/// The one owner of stdout. When it is closed or dropped, the terminal is as it was found.
pub(super) struct Screen {
    /// `None` where there is none, or no longer.
    prompt: Option<Prompt>,
    /// Whether the prompt on the screen is not what it should be.
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

    /// Writes lines above the prompt, which is drawn again later.
    pub(super) fn print(&mut self, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
        let mut out = Vec::new();
        if self.prompt.is_some() {
            queue!(out, MoveToColumn(0), Clear(ClearType::FromCursorDown))?;
            self.stale = true;
        }
        for line in lines {
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(self.line_end());
        }
        write(&out)
    }

    /// Lets the key do its work. A line that it ends stays on the screen.
    pub(super) fn press(&mut self, event: &Event) -> io::Result<Option<Typed>> {
        let Some(prompt) = &mut self.prompt else {
            return Ok(None);
        };
        // Also after a change of the window's size.
        self.stale = true;
        let typed = event.as_key_event().and_then(|key| prompt.press(key));
        if let Some(Typed::Line(line)) = &typed {
            self.print([format!("> {}", escape(&String::from_utf8_lossy(line)))])?;
        }
        Ok(typed)
    }

    /// Brings the prompt up to date. After many keys at once, such as a paste, once is enough.
    pub(super) fn draw(&mut self) -> io::Result<()> {
        let Some(prompt) = self.prompt.as_ref().filter(|_| self.stale) else {
            return Ok(());
        };
        let (row, cursor) = prompt.row(columns());
        let mut out = Vec::new();
        queue!(out, MoveToColumn(0), Clear(ClearType::FromCursorDown))?;
        queue!(out, Print(row), MoveToColumn(cursor))?;
        self.stale = false;
        write(&out)
    }

    /// Ends the prompt; what comes later stands below what has been typed, if anything.
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

    /// In raw mode the terminal does not add the carriage return.
    fn line_end(&self) -> &'static [u8] {
        if self.prompt.is_some() {
            b"\r\n"
        } else {
            b"\n"
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Whatever is wrong with stdout, nobody is left to hear of it.
        let _ = self.close();
    }
}

/// Ends the prompt from another thread than the owner's.
pub(super) fn give_back() {
    if terminal::is_raw_mode_enabled().is_ok_and(|raw| raw) {
        // Nobody is left to hear of a failure.
        let _ = terminal::disable_raw_mode();
        // A terminal that takes nothing more gets no new line; the owner may be blocked in a write.
        let (done, written) = mpsc::channel::<()>();
        let _ = thread::Builder::new().spawn(move || {
            let _ = write(b"\n");
            drop(done);
        });
        let _ = written.recv_timeout(LAST_WORD);
    }
}

/// The width of the terminal. Some do not know theirs, and say 0.
fn columns() -> u16 {
    terminal::size()
        .ok()
        .map(|(columns, _)| columns)
        .filter(|columns| *columns > 0)
        .unwrap_or(80)
}

/// In one piece, so that nothing half done is ever seen.
fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}
