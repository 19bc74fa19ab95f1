//! `echo-client` in a pseudo-terminal, and what it shows there.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::{PATIENCE, default_client};

/// Opens a pseudo-terminal of 80 columns. Returns the user's end and the program's end.
pub fn open_terminal() -> (File, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    // Atomically if possible: another test may be starting a client.
    #[cfg(target_os = "linux")]
    let flags = flags | OpenptFlags::CLOEXEC;
    let keyboard = openpt(flags).expect("a pseudo-terminal can be opened");
    fcntl_setfd(&keyboard, FdFlags::CLOEXEC).expect("the flag can be set");
    grantpt(&keyboard)
        .and_then(|()| unlockpt(&keyboard))
        .expect("the client's end can be unlocked");
    let path = ptsname(&keyboard, Vec::new()).expect("the client's end has a name");
    let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
    let no_tty = OpenptFlags::NOCTTY.bits().cast_signed();
    let line = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(no_tty)
        .open(path);
    let line = line.expect("the client's end can be opened");
    resize(&line, 80);
    (keyboard.into(), line)
}

pub fn resize(line: &File, columns: u16) {
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(line, size).expect("the size can be set");
}

/// Returns the terminal's modes in a comparable form.
fn modes(line: &File) -> String {
    let mut modes = tcgetattr(line).expect("the modes can be read");
    // Set by macOS while typed keys are pending.
    modes.local_modes.remove(LocalModes::PENDIN);
    format!("{modes:?}")
}

/// Reads the output until it ends with `end`.
pub fn read_until(screen: &mut File, end: &[u8]) {
    let mut shown = Vec::new();
    while !shown.ends_with(end) {
        let patience = Timespec::try_from(PATIENCE).expect("the time is short");
        let more = poll(&mut [PollFd::new(screen, PollFlags::IN)], Some(&patience));
        assert_eq!(more, Ok(1), "the end comes after {}", shown.escape_ascii());
        let mut buffer = [0; 4096];
        let n = screen.read(&mut buffer).expect("the client shows more");
        assert_ne!(n, 0, "the end comes after {}", shown.escape_ascii());
        shown.extend_from_slice(&buffer[..n]);
    }
}

/// An `echo-client` in its own terminal. Killed when dropped.
pub struct Terminal {
    keyboard: File,
    /// The client's end; kept open to check its modes.
    pub line: File,
    /// The modes before the client started.
    modes: String,
    pub client: Child,
    shown: Arc<(Mutex<Vec<u8>>, Condvar)>,
    /// How much of `shown` earlier waits have consumed.
    seen: usize,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Starts a client for `address`.
    pub fn start(address: SocketAddr, arguments: &[&str]) -> Self {
        Self::spawn(address, |client| {
            client.args(arguments);
        })
    }

    /// Starts a client for `address` and waits for its prompt.
    pub fn open(address: SocketAddr, arguments: &[&str]) -> Self {
        let mut terminal = Self::start(address, arguments);
        terminal.wait_for(&format!("Connected to {address}\r\n"));
        terminal.wait_for("quit, exit or Ctrl+D");
        terminal.wait_for("> ");
        terminal
    }

    /// Starts a client for `address`; `change` may modify the command.
    pub fn spawn(address: SocketAddr, change: impl FnOnce(&mut Command)) -> Self {
        Self::spawn_client("", |client| {
            client.args(["--port", &address.port().to_string()]);
            change(client);
        })
    }

    /// Starts a client after typing `ahead`; `change` may modify the command, which has no arguments.
    pub fn spawn_client(ahead: &str, change: impl FnOnce(&mut Command)) -> Self {
        let (mut keyboard, line) = open_terminal();
        let modes = modes(&line);
        keyboard
            .write_all(ahead.as_bytes())
            .expect("the keys can be typed");
        let mut client = default_client();
        client.env("TERM", "xterm");
        let duplicate = || line.try_clone().expect("the terminal can be duplicated");
        client
            .stdin(duplicate())
            .stdout(duplicate())
            .stderr(duplicate());
        change(&mut client);
        let child = client.spawn().expect("the client starts");
        // The command holds duplicates of the client's end.
        drop(client);
        let shown: Arc<(Mutex<Vec<u8>>, Condvar)> = Arc::default();
        let reader = {
            let (mut screen, shown) = (
                keyboard
                    .try_clone()
                    .expect("the terminal can be duplicated"),
                shown.clone(),
            );
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = screen.read(&mut buffer) {
                    let mut text = shown.0.lock().expect("the lock is not poisoned");
                    text.extend_from_slice(&buffer[..n]);
                    shown.1.notify_all();
                }
            })
        };
        Self {
            keyboard,
            line,
            modes,
            client: child,
            shown,
            seen: 0,
            reader: Some(reader),
        }
    }

    pub fn press(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("the keys can be typed");
    }

    /// Turns echo off, so that typed keys do not appear in the client's output.
    pub fn disable_echo(&self) {
        let mut modes = tcgetattr(&self.line).expect("the modes can be read");
        modes.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&self.line, OptionalActions::Now, &modes).expect("the modes can be set");
    }

    /// Types lines, of a length that every system accepts, from a thread that ends with the tests.
    pub fn press_endlessly(&self) {
        let mut keyboard = self
            .keyboard
            .try_clone()
            .expect("the terminal can be duplicated");
        let line = "0123456789".repeat(90) + "\n";
        thread::spawn(move || {
            while keyboard.write_all(line.as_bytes()).is_ok() {
                // Leaves the CPUs to tests that measure time.
                thread::sleep(Duration::from_micros(200));
            }
        });
    }

    /// Waits until `text` is shown after the text of the last wait.
    pub fn wait_for(&mut self, text: &str) {
        let (shown, more) = &*self.shown;
        let mut searched = self.seen;
        let mut find = |shown: &[u8]| {
            let mut windows = shown[searched..].windows(text.len());
            if let Some(place) = windows.position(|window| window == text.as_bytes()) {
                return Some(searched + place + text.len());
            }
            // The end may be the beginning of `text`.
            searched = searched.max(shown.len().saturating_sub(text.len()));
            None
        };
        let shown = shown.lock().expect("the lock is not poisoned");
        let (shown, _) = more
            .wait_timeout_while(shown, PATIENCE, |shown| find(shown).is_none())
            .expect("the lock is not poisoned");
        self.seen = find(&shown).unwrap_or_else(|| {
            let (seen, rest) = shown.split_at(self.seen);
            panic!(
                "no {text:?} in {}, before: {}",
                rest.escape_ascii(),
                seen.escape_ascii()
            )
        });
    }

    /// Returns whether the terminal has the modes that it had before the client started.
    pub fn is_restored(&self) -> bool {
        modes(&self.line) == self.modes
    }

    /// Waits until the client exits. Returns its exit code.
    pub fn wait(&mut self) -> i32 {
        let status = super::wait(&mut self.client);
        let status = status.unwrap_or_else(|| panic!("the client still runs: {}", self.text()));
        status.code().expect("no signal has killed the client")
    }

    /// Waits until the client exits. Checks its exit code and that the terminal is restored, and
    /// returns the output.
    #[track_caller]
    pub fn end_with(&mut self, code: i32) -> String {
        assert_eq!(self.wait(), code, "{}", self.text());
        assert_eq!(modes(&self.line), self.modes);
        // The reader has read all output once it has read this.
        self.line
            .write_all(b"the end")
            .expect("the terminal is open");
        self.wait_for("the end");
        let mut shown = self.text();
        shown.truncate(shown.len() - "the end".len());
        assert!(shown.ends_with('\n'), "the cursor is in a line: {shown:?}");
        assert!(
            !shown.contains("\x1b[?2004"),
            "a mode was changed: {shown:?}"
        );
        shown
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.0.lock().expect("the lock is not poisoned"))
            .into_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
        // The reader ends once the client's end is closed.
        if let Ok(null) = File::open("/dev/null") {
            self.line = null;
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
