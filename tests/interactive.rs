//! `echo-client` as a person meets it: in a pseudo-terminal, key by key. Windows has an interface of
//! its own for those, which `rustix` does not know.
#![cfg(all(unix, feature = "client"))]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{PATIENCE, Server, accept, command, listen, reset};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use socket2::SockRef;

/// A terminal of 80 columns: the side of the person, and that of the program.
fn open_terminal() -> (File, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    // At once, where the system can: a client of another test may be starting.
    #[cfg(target_os = "linux")]
    let flags = flags | OpenptFlags::CLOEXEC;
    let keyboard = openpt(flags).expect("a terminal");
    fcntl_setfd(&keyboard, FdFlags::CLOEXEC).expect("it can be kept from other tests' clients");
    grantpt(&keyboard)
        .and_then(|()| unlockpt(&keyboard))
        .expect("it can be used");
    let path = ptsname(&keyboard, Vec::new()).expect("it has a name");
    let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
    let no_tty = OpenptFlags::NOCTTY.bits().cast_signed();
    let line = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(no_tty)
        .open(path);
    let line = line.expect("it can be opened");
    resize(&line, 80);
    (keyboard.into(), line)
}

fn resize(line: &File, columns: u16) {
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(line, size).expect("it has a size");
}

/// Its modes, in words that can be compared.
fn modes(line: &File) -> String {
    let mut modes = tcgetattr(line).expect("it has modes");
    // macOS: keys have come that the terminal is to look at again.
    modes.local_modes.remove(LocalModes::PENDIN);
    format!("{modes:?}")
}

/// Reads what is shown, up to what it is to end with.
fn read_until(screen: &mut File, end: &[u8]) {
    let mut shown = Vec::new();
    while !shown.ends_with(end) {
        let patience = Timespec::try_from(PATIENCE).expect("it is short");
        let more = poll(&mut [PollFd::new(screen, PollFlags::IN)], Some(&patience));
        assert_eq!(more, Ok(1), "the end comes after {}", shown.escape_ascii());
        let mut buffer = [0; 4096];
        let n = screen.read(&mut buffer).expect("the client shows more");
        assert_ne!(n, 0, "the end comes after {}", shown.escape_ascii());
        shown.extend_from_slice(&buffer[..n]);
    }
}

/// An `echo-client` in a terminal of its own; killed when dropped.
struct Terminal {
    keyboard: File,
    /// The side that the client has; kept open so that its modes can be looked at.
    line: File,
    /// Those that it was found with.
    modes: String,
    client: Child,
    shown: Arc<(Mutex<Vec<u8>>, Condvar)>,
    /// How much of what is shown has been waited for.
    seen: usize,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// A client for `address`, with what is typed before it has even started.
    fn start(address: SocketAddr, arguments: &[&str], ahead: &str) -> Self {
        Self::spawn(address, ahead, |client| {
            client.args(arguments);
        })
    }

    /// A client for `address` that has shown its prompt.
    fn open(address: SocketAddr, arguments: &[&str]) -> Self {
        let mut terminal = Self::start(address, arguments, "");
        terminal.wait_for(&format!("Connected to {address}\r\n"));
        terminal.wait_for("quit, exit or Ctrl+D");
        terminal.wait_for("> ");
        terminal
    }

    /// The same, with whatever `change` changes.
    fn spawn(address: SocketAddr, ahead: &str, change: impl FnOnce(&mut Command)) -> Self {
        let (mut keyboard, line) = open_terminal();
        let modes = modes(&line);
        keyboard.write_all(ahead.as_bytes()).expect("it has keys");
        let mut client = command(env!("CARGO_BIN_EXE_echo-client"));
        client
            .env("TERM", "xterm")
            .args(["--port", &address.port().to_string()]);
        let duplicate = || line.try_clone().expect("it can be duplicated");
        client
            .stdin(duplicate())
            .stdout(duplicate())
            .stderr(duplicate());
        change(&mut client);
        let child = client.spawn().expect("the client starts");
        // It has the client's side of the terminal, too.
        drop(client);
        let shown: Arc<(Mutex<Vec<u8>>, Condvar)> = Arc::default();
        let reader = {
            let (mut screen, shown) = (keyboard.try_clone().expect("a duplicate"), shown.clone());
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = screen.read(&mut buffer) {
                    shown
                        .0
                        .lock()
                        .expect("no panics")
                        .extend_from_slice(&buffer[..n]);
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

    fn press(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("it has keys");
    }

    /// What is typed is not shown any more, lest it stand in the middle of what the client shows.
    fn show_no_keys(&self) {
        let mut modes = tcgetattr(&self.line).expect("it has modes");
        modes.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&self.line, OptionalActions::Now, &modes).expect("they can be changed");
    }

    /// Presses keys that make lines as long as every system takes them. It blocks once nobody reads
    /// them any more; then it ends with the tests.
    fn press_without_end(&self) {
        let mut keyboard = self.keyboard.try_clone().expect("a duplicate");
        let line = "0123456789".repeat(90) + "\n";
        thread::spawn(move || while keyboard.write_all(line.as_bytes()).is_ok() {});
    }

    /// Waits until `text` is shown after all that was waited for before.
    fn wait_for(&mut self, text: &str) {
        let (shown, more) = &*self.shown;
        let find = |shown: &[u8]| {
            shown[self.seen..]
                .windows(text.len())
                .position(|window| window == text.as_bytes())
        };
        let shown = shown.lock().expect("no panics");
        let (shown, _) = more
            .wait_timeout_while(shown, PATIENCE, |shown| find(shown).is_none())
            .expect("no panics");
        let place = find(&shown).unwrap_or_else(|| {
            let (seen, rest) = shown.split_at(self.seen);
            panic!(
                "no {text:?} in {}, before: {}",
                rest.escape_ascii(),
                seen.escape_ascii()
            )
        });
        self.seen += place + text.len();
    }

    /// Waits for the client's end by itself; its exit code.
    fn wait(&mut self) -> i32 {
        let status = common::wait(&mut self.client);
        let status = status.unwrap_or_else(|| panic!("the client still runs: {}", self.text()));
        status.code().expect("it was not killed")
    }

    /// Waits for the client's end by itself; its exit code, and all that it has shown. The terminal
    /// must be as it was found.
    fn end(&mut self) -> (i32, String) {
        let code = self.wait();
        assert_eq!(modes(&self.line), self.modes);
        // The reader has read all once it has read what is written now.
        self.line.write_all(b"the end").expect("it is open");
        self.wait_for("the end");
        let mut shown = self.text();
        shown.truncate(shown.len() - "the end".len());
        assert!(shown.ends_with('\n'), "the cursor is in a line: {shown:?}");
        assert!(
            !shown.contains("\x1b[?2004"),
            "a mode was changed: {shown:?}"
        );
        (code, shown)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.0.lock().expect("no panics")).into_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
        // The reader ends once nobody has the other side.
        if let Ok(null) = File::open("/dev/null") {
            self.line = null;
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A server that the test itself plays.
struct Stranger {
    listener: TcpListener,
    address: SocketAddr,
}

impl Stranger {
    fn new() -> Self {
        let (listener, address) = listen();
        Self { listener, address }
    }

    /// The next client.
    fn accept(&self) -> BufReader<TcpStream> {
        let stream = accept(&self.listener);
        stream.set_nodelay(true).expect("the mode can be set");
        BufReader::new(stream)
    }
}

fn read_line(stream: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).expect("a line comes");
    line
}

fn send(stream: &BufReader<TcpStream>, bytes: &[u8]) {
    stream.get_ref().write_all(bytes).expect("it goes out");
}

#[test]
fn a_line_comes_back() {
    let server = Server::start(&[]);
    let mut terminal = Terminal::open(server.address, &[]);
    terminal.press("hello\r");
    terminal.wait_for("> hello\r\n");
    terminal.wait_for("Server: hello\r\n");
    terminal.wait_for("> ");
    terminal.press("Grüße, мир, 世界, שלום 🦀\r");
    terminal.wait_for("Server: Grüße, мир, 世界, שלום 🦀\r\n");
}

#[test]
fn every_way_out_is_polite() {
    let server = Server::start(&[]);
    for keys in ["quit\r", "exit\r", "\x04", "\x03", "half a line\x03"] {
        let mut terminal = Terminal::open(server.address, &[]);
        terminal.press(keys);
        let (code, shown) = terminal.end();
        assert_eq!(code, 0, "{shown}");
        let last = format!("Disconnected from {}\r\n", server.address);
        assert!(
            shown.ends_with(&last) && !shown.contains("Server:"),
            "{shown:?}"
        );
    }
    for departure in server.wait_for_logs(5, "disconnected: ") {
        assert!(
            departure.contains("closed by client, 0 bytes"),
            "{departure}"
        );
    }
}

#[test]
fn what_is_typed_ahead_is_not_lost_nor_is_what_it_brings_back() {
    let server = Server::start(&[]);
    for _ in 0..5 {
        let mut ahead = Terminal::start(server.address, &[], "hello\nquit\n");
        let mut pasted = Terminal::open(server.address, &[]);
        pasted.press("hello\nquit\n");
        for terminal in [&mut ahead, &mut pasted] {
            terminal.wait_for("Server: hello\r\n");
            terminal.wait_for("Disconnected from ");
            let (code, shown) = terminal.end();
            assert_eq!((code, shown.matches("Server: ").count()), (0, 1), "{shown}");
        }
    }
}

#[test]
fn a_long_paste_arrives_whole() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &[]);
    let mut server = stranger.accept();
    let long = "0123456789".repeat(380);
    terminal.press(&long);
    terminal.press("\r");
    assert_eq!(read_line(&mut server), long + "\n");
}

#[test]
fn empty_lines_and_tabs_are_sent() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &[]);
    let mut server = stranger.accept();
    terminal.press("\r\ta\tb\r");
    assert_eq!(read_line(&mut server), "\n");
    assert_eq!(read_line(&mut server), "\ta\tb\n");
}

#[test]
fn what_comes_does_not_tear_the_line_being_typed() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &[]);
    let mut server = stranger.accept();
    terminal.press("half");
    terminal.wait_for("> half");
    send(&server, b"one\n\ntwo\nthr");
    terminal.wait_for("\x1b[1G\x1b[JServer: one\r\nServer: \r\nServer: two\r\n");
    terminal.wait_for("> half");
    terminal.wait_for("Server: thr\r\n");
    terminal.wait_for("> half\x1b[7G");
    terminal.press(" done\r");
    assert_eq!(read_line(&mut server), "half done\n");
}

#[test]
fn lines_are_edited_and_remembered() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &[]);
    let mut server = stranger.accept();
    for (keys, line) in [
        ("first\r", "first\n"),
        ("sxecond\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D\x7f\r", "second\n"),
        ("\x1b[A\r", "second\n"),
        ("\x1b[A\x1b[A\x1b[A\r", "first\n"),
        ("new\x1b[A\x1b[A\x1b[B\x1b[B!\r", "new!\n"),
        ("\x12fir\r", "first\n"),
        ("\x12e\x12\x01>\r", ">second\n"),
        ("mine\x12se\x07\r", "mine\n"),
        ("世界\x02\x7f人\r", "人界\n"),
    ] {
        terminal.press(keys);
        assert_eq!(read_line(&mut server), line, "{keys:?}");
    }
}

#[test]
fn a_line_longer_than_the_window_is_shown_where_the_cursor_is() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &[]);
    let line = "0123456789".repeat(5);
    resize(&terminal.line, 40);
    terminal.press(&line);
    terminal.wait_for(&format!("> {}\x1b[40G", &line[13..]));
    // A window that does not know its width; most have 80 columns.
    resize(&terminal.line, 0);
    terminal.press("!");
    terminal.wait_for(&format!("> {line}!\x1b[54G"));
}

#[test]
fn a_hostile_server_cannot_drive_the_terminal() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &[]);
    let server = stranger.accept();
    send(
        &server,
        "\x1b[2J\x1b]0;title\x07\rHa\u{9b}31m\u{202e}\n".as_bytes(),
    );
    terminal.wait_for("Server: \\x1b[2J\\x1b]0;title\\x07\\rHa\\u{9b}31m\\u{202e}\r\n");
    let shown = terminal.text();
    for evil in ["\x1b[2J", "\x1b]", "\x07", "\u{9b}", "\u{202e}"] {
        assert!(!shown.contains(evil), "{evil:?} in {shown:?}");
    }
}

#[test]
fn a_character_that_is_cut_by_the_network_is_shown_whole() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &[]);
    let server = stranger.accept();
    send(&server, b"5 \xe2\x82");
    terminal.wait_for("Server: 5 \r\n");
    send(&server, b"\xac\n\xff\xe2");
    terminal.wait_for("Server: €\r\n");
    terminal.wait_for("Server: \\xff\r\n");
    drop(server);
    terminal.wait_for("Server: \\xe2\r\n");
}

#[test]
fn the_end_of_a_line_that_comes_late_is_no_line_of_its_own() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &[]);
    let server = stranger.accept();
    send(&server, b"late");
    terminal.wait_for("Server: late\r\n");
    send(&server, b"\nnext\n");
    terminal.wait_for("Server: next\r\n");
    assert!(
        !terminal.text().contains("Server: \r\n"),
        "{}",
        terminal.text()
    );
}

#[test]
fn a_server_that_leaves_is_told_of_at_once() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &["--timeout=1h"]);
    let server = stranger.accept();
    terminal.press("half");
    terminal.wait_for("> half");
    send(&server, b"bye");
    drop(server);
    terminal.wait_for("Server: bye\r\n");
    let (code, shown) = terminal.end();
    let message = format!("echo-client: {} closed the connection; ", stranger.address);
    let last = shown.lines().last().expect("lines");
    assert!(code == 1 && last.contains(&message), "{code}: {shown:?}");
    assert!(
        shown.contains("> half\x1b[7G\r\n"),
        "the message has a line of its own: {shown:?}"
    );
}

#[test]
fn a_server_that_resets_is_told_of_at_once() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &["--timeout=1h"]);
    reset(stranger.accept().into_inner());
    terminal.wait_for(&format!(
        "echo-client: {} reset the connection",
        stranger.address
    ));
    assert_eq!(terminal.end().0, 1);
}

/// The client's two threads compete for the error, so one run proves little.
#[test]
fn a_reset_during_a_write_is_reported_as_a_reset() {
    for _ in 0..10 {
        let stranger = Stranger::new();
        let mut terminal = Terminal::spawn(stranger.address, "", |client| {
            client.env("TERM", "dumb");
        });
        terminal.show_no_keys();
        let mut server = stranger.accept().into_inner();
        terminal.press_without_end();
        server
            .read_exact(&mut vec![0; 100_000])
            .expect("the client sends");
        reset(server);
        terminal.wait_for(&format!(
            "echo-client: {} reset the connection",
            stranger.address
        ));
        assert_eq!(terminal.wait(), 1);
    }
}

#[test]
fn what_comes_after_the_person_has_left_is_shown() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &[]);
    let mut server = stranger.accept();
    terminal.press("one\rtwo\rquit\r");
    let mut sent = Vec::new();
    server
        .read_to_end(&mut sent)
        .expect("the client half-closes");
    send(&server, &sent);
    terminal.wait_for("Server: one\nServer: two\n".replace('\n', "\r\n").as_str());
    drop(server);
    terminal.wait_for("Disconnected from ");
    assert_eq!(terminal.end().0, 0);
}

#[test]
fn bytes_that_stay_owed_are_counted() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &["--timeout=1s"]);
    let mut server = stranger.accept();
    terminal.press("hello\rquit\r");
    assert_eq!(read_line(&mut server), "hello\n");
    send(&server, b"he");
    terminal.wait_for("Server: he\r\n");
    let owes = format!(
        "echo-client: {} owes 4 bytes, and none has come for",
        stranger.address
    );
    terminal.wait_for(&owes);
    assert_eq!(terminal.end().0, 1);
}

#[test]
fn a_server_has_the_timeout_for_each_piece_of_what_it_owes() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &["--timeout=1s"]);
    let mut server = stranger.accept();
    terminal.press("0123456789\rquit\r");
    for byte in read_line(&mut server).bytes() {
        send(&server, &[byte]);
        thread::sleep(Duration::from_millis(150));
    }
    terminal.wait_for("Disconnected from ");
    assert_eq!(terminal.end().0, 0);
}

#[test]
fn a_server_that_closes_early_is_told_what_it_owes() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &[]);
    let mut server = stranger.accept();
    terminal.press("hello\rquit\r");
    assert_eq!(read_line(&mut server), "hello\n");
    assert_eq!(read_line(&mut server), "");
    drop(server);
    terminal.wait_for("closed the connection with 6 bytes still owed");
    assert_eq!(terminal.end().0, 1);
}

#[test]
fn a_server_that_owes_nothing_may_keep_its_fin() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &["--timeout=100ms"]);
    let _server = stranger.accept();
    terminal.press("quit\r");
    assert_eq!(terminal.end().0, 0);
}

#[test]
fn a_server_that_does_not_read_does_not_hang_the_client() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::spawn(stranger.address, "", |client| {
        client.env("TERM", "dumb").arg("--timeout=500ms");
    });
    terminal.wait_for("Connected to ");
    let _server = stranger.accept();
    terminal.press_without_end();
    terminal.wait_for(" bytes within 500ms");
    assert_eq!(terminal.wait(), 1);
}

#[test]
fn a_server_that_does_not_read_but_sends_is_not_given_up() {
    let stranger = Stranger::new();
    // Little fits on the way: the client's writes find no room soon.
    let buffer = SockRef::from(&stranger.listener).set_recv_buffer_size(4096);
    buffer.expect("the size can be set");
    let mut terminal = Terminal::spawn(stranger.address, "", |client| {
        client.env("TERM", "dumb").arg("--timeout=1s");
    });
    terminal.show_no_keys();
    let server = stranger.accept();
    terminal.press_without_end();
    for number in 0..20 {
        send(&server, format!("still here: {number}\n").as_bytes());
        terminal.wait_for(&format!("Server: still here: {number}\r\n"));
        thread::sleep(Duration::from_millis(200));
    }
    terminal.wait_for(" bytes within 1s");
    assert_eq!(terminal.wait(), 1);
}

#[test]
fn a_server_that_floods_the_terminal_can_be_left() {
    let stranger = Stranger::new();
    let mut terminal = Terminal::open(stranger.address, &["--timeout=500ms"]);
    let mut server = stranger.accept().into_inner();
    thread::spawn(move || while server.write_all(b"a flood\n").is_ok() {});
    terminal.wait_for("Server: a flood\r\n");
    terminal.press("\x04");
    assert_eq!(terminal.wait(), 0);
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was_found() {
    let server = Server::start(&[]);
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut terminal = Terminal::open(server.address, &[]);
        kill_process(Pid::from_child(&terminal.client), signal).expect("it can be signalled");
        assert_eq!(terminal.end().0, 130);
    }
}

/// Such as one whose window is on the other side of a network that hangs.
#[test]
fn a_signal_is_obeyed_though_the_terminal_takes_no_more() {
    let stranger = Stranger::new();
    let (mut screen, line) = open_terminal();
    let mut terminal = Terminal::spawn(stranger.address, "", |client| {
        client.stdout(line);
    });
    let mut server = stranger.accept().into_inner();
    read_until(&mut screen, b"> \x1b[3G");
    server
        .set_write_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout can be set");
    while server.write_all(b"a flood\n").is_ok() {}
    kill_process(Pid::from_child(&terminal.client), Signal::TERM).expect("it can be signalled");
    assert_eq!(terminal.wait(), 130);
    assert_eq!(modes(&terminal.line), terminal.modes);
}

/// Without SIGHUP, which only a controlling terminal brings.
#[test]
#[cfg(target_os = "linux")]
fn linux_a_terminal_that_goes_away_ends_it_without_a_word() {
    use std::process::{Output, Stdio};

    let stranger = Stranger::new();
    let (mut keyboard, line) = open_terminal();
    let duplicate = || line.try_clone().expect("it can be duplicated");
    let mut client = common::echo_client(stranger.address);
    client
        .env("TERM", "xterm")
        .stdin(duplicate())
        .stdout(duplicate())
        .stderr(Stdio::piped());
    let child = client.spawn().expect("the client starts");
    drop((client, line));
    // The prompt is there before the keys are read.
    keyboard.write_all(b"x").expect("it has keys");
    read_until(&mut keyboard, b"> x\x1b[4G");
    drop(keyboard);
    let Output { status, stderr, .. } = common::end(child);
    assert_eq!(
        (status.code(), String::from_utf8_lossy(&stderr)),
        (Some(1), "".into())
    );
}

#[test]
fn a_screen_that_goes_away_leaves_the_keyboard_as_it_was_found() {
    let stranger = Stranger::new();
    let (mut screen, line) = open_terminal();
    let mut terminal = Terminal::spawn(stranger.address, "", |client| {
        client.stdout(line);
    });
    let server = stranger.accept();
    read_until(&mut screen, b"> \x1b[3G");
    assert_ne!(modes(&terminal.line), terminal.modes);
    drop(screen);
    // Another test's client that is just starting may hold the screen for a moment longer.
    for _ in 0..2_000 {
        if server.get_ref().write_all(b"hello\n").is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    terminal.wait_for("echo-client: the terminal failed: ");
    assert_eq!(terminal.wait(), 1);
    assert_eq!(modes(&terminal.line), terminal.modes);
}

#[test]
fn a_dumb_terminal_is_served_plainly() {
    let server = Server::start(&[]);
    let mut terminal = Terminal::spawn(server.address, "", |client| {
        client.env("TERM", "dumb");
    });
    terminal.wait_for("Connected to ");
    terminal.press("hello\n");
    terminal.wait_for("Server: hello\r\n");
    terminal.press("\x04");
    terminal.wait_for("Disconnected from ");
    let (code, shown) = terminal.end();
    assert!(code == 0 && !shown.contains('\x1b'), "{code}: {shown:?}");
}

#[test]
fn a_stdout_that_is_no_terminal_gets_plain_lines() {
    let server = Server::start(&[]);
    let path = std::env::temp_dir().join(format!("echo-client-{}", server.address.port()));
    let mut terminal = Terminal::spawn(server.address, "", |client| {
        client.stdout(File::create(&path).expect("a file"));
    });
    terminal.press("hello\nquit\n");
    assert_eq!(terminal.wait(), 0);
    let shown = std::fs::read_to_string(&path).expect("the file is text");
    std::fs::remove_file(&path).expect("the file can be removed");
    let (first, rest) = shown.split_once('\n').expect("lines");
    assert_eq!(first, format!("Connected to {}", server.address));
    assert!(rest.ends_with(&format!(
        "Server: hello\nDisconnected from {}\n",
        server.address
    )));
    assert!(!shown.contains(['\x1b', '\r', '>']), "{shown:?}");
}

/// Linux has a file that stands for a full disk.
#[test]
#[cfg(target_os = "linux")]
fn linux_a_full_stdout_is_not_reported_as_the_terminal() {
    let server = Server::start(&[]);
    let mut terminal = Terminal::spawn(server.address, "", |client| {
        client.stdout(
            OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .expect("Linux has it"),
        );
    });
    terminal.wait_for("echo-client: cannot write to stdout: No space left");
    assert_eq!(terminal.end().0, 1);
}

#[test]
fn the_result_of_the_suite_does_not_share_a_row_with_its_progress() {
    let server = Server::start(&[]);
    for (arguments, result) in [
        (&["test", "NUL"][..], "1 passed, 0 failed"),
        (&["test", "NUL", "--json"], "{"),
    ] {
        let mut terminal = Terminal::start(server.address, arguments, "");
        let (code, shown) = terminal.end();
        // The progress is removed by "clear the row".
        let mut rows = shown.lines().filter_map(|row| row.rsplit("\x1b[2K").next());
        assert!(rows.any(|row| row.starts_with(result)), "{shown:?}");
        assert_eq!(code, 0);
    }
}

#[test]
fn the_load_generator_shows_how_far_it_is_and_how_fast_until_it_has_results() {
    let server = Server::start(&[]);
    let arguments = ["bench", "--warm-up", "0s", "--duration", "1s"];
    let mut terminal = Terminal::start(server.address, &arguments, "");
    terminal.wait_for(" messages/s");
    terminal.wait_for("rtt on ");
    let (code, shown) = terminal.end();
    assert_eq!(code, 0);
    let parts = shown
        .split(" %")
        .filter_map(|part| part.rsplit(' ').next()?.parse().ok());
    let mut percents = parts.filter(|percent: &u32| (10..100).contains(percent));
    assert!(percents.next().is_some(), "{shown}");
    let parts = shown
        .split(" messages/s")
        .filter_map(|part| part.rsplit(' ').next());
    assert!(
        parts.filter(|rate| !rate.starts_with('0')).count() >= 2,
        "{shown}"
    );
}
