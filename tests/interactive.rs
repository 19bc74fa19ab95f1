//! The prompt of `echo-client` in a pseudo-terminal. Not on Windows, whose pseudo-terminals `rustix` does not support.
#![cfg(all(unix, feature = "client"))]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;
#[cfg(not(target_os = "linux"))]
use std::time::Instant;

use crate::common::signal::Signal;
use crate::common::terminal::{Terminal, open_terminal, read_until, resize};
use crate::common::{
    Server, accept, assert_contains, listen, local_address, reset, run_at_once, signal,
};
use socket2::SockRef;

/// The server's end of a session, which the test serves itself.
struct Peer(BufReader<TcpStream>);

impl Peer {
    /// Accepts the next client.
    fn accept(listener: &TcpListener) -> Self {
        let stream = accept(listener);
        stream.set_nodelay(true).expect("the mode can be set");
        Self(BufReader::new(stream))
    }

    fn address(&self) -> SocketAddr {
        local_address(self.0.get_ref())
    }

    fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line arrives");
        line
    }

    fn send(&self, bytes: &[u8]) {
        let mut stream = self.0.get_ref();
        stream.write_all(bytes).expect("the bytes are sent");
    }
}

/// Starts a client with these arguments and waits for its prompt. Returns its terminal and the server's
/// end of its connection.
fn open_session(arguments: &[&str]) -> (Terminal, Peer) {
    let (listener, address) = listen();
    let terminal = Terminal::open(address, arguments);
    (terminal, Peer::accept(&listener))
}

/// Does the same without waiting for the prompt; `change` may modify the command.
fn start_session(change: impl FnOnce(&mut Command)) -> (Terminal, Peer) {
    let (listener, address) = listen();
    let terminal = Terminal::spawn(address, change);
    (terminal, Peer::accept(&listener))
}

#[test]
fn a_line_is_echoed() {
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
fn every_way_to_disconnect_is_graceful() {
    let server = Server::start(&[]);
    for keys in ["quit\r", "exit\r", "\x04", "\x03", "half a line\x03"] {
        let mut terminal = Terminal::open(server.address, &[]);
        terminal.press(keys);
        let shown = terminal.end_with(0);
        let last = format!("Disconnected from {}\r\n", server.address);
        assert!(
            shown.ends_with(&last) && !shown.contains("Server:"),
            "{shown:?}"
        );
    }
    for line in server.wait_for_logs(5, "disconnected: ") {
        assert_contains(&line, "closed by client, 0 bytes");
    }
}

#[test]
fn lines_typed_ahead_and_their_replies_are_not_lost() {
    let server = Server::start(&[]);
    for _ in 0..5 {
        let mut ahead = Terminal::spawn_client("hello\nquit\n", |client| {
            client.args(["--port", &server.address.port().to_string()]);
        });
        let mut pasted = Terminal::open(server.address, &[]);
        pasted.press("hello\nquit\n");
        for terminal in [&mut ahead, &mut pasted] {
            terminal.wait_for("Server: hello\r\n");
            terminal.wait_for("Disconnected from ");
            let shown = terminal.end_with(0);
            assert_eq!(shown.matches("Server: ").count(), 1, "{shown}");
        }
    }
}

/// Within a second in a release build; a debug build is slower. On Linux the client's CPU time counts,
/// which does not grow if other programs use the CPUs.
#[test]
fn a_pasted_line_of_100_kb_is_shown_and_sent_fast() {
    let (mut terminal, mut server) = open_session(&[]);
    let line = "0123456789".repeat(10_000);
    #[cfg(not(target_os = "linux"))]
    let begin = Instant::now();
    terminal.press(&line);
    terminal.wait_for(&format!("> {}\x1b[80G", &line[..77]));
    terminal.press("\r");
    assert_eq!(server.read_line(), line.clone() + "\n");
    #[cfg(target_os = "linux")]
    let took = crate::common::cpu_time(&terminal.client);
    #[cfg(not(target_os = "linux"))]
    let took = begin.elapsed();
    let limit = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });
    assert!(took < limit, "{took:?}");
    terminal.wait_for(&format!("> {line}\r\n"));
}

#[test]
fn empty_lines_and_tabs_are_sent() {
    let (mut terminal, mut server) = open_session(&[]);
    terminal.press("\r\ta\tb\r");
    assert_eq!(server.read_line(), "\n");
    assert_eq!(server.read_line(), "\ta\tb\n");
}

#[test]
fn replies_appear_above_the_line_being_typed() {
    let (mut terminal, mut server) = open_session(&[]);
    terminal.press("half");
    terminal.wait_for("> half");
    server.send(b"one\n\ntwo\nthr");
    terminal.wait_for("\x1b[1G\x1b[JServer: one\r\nServer: \r\nServer: two\r\n");
    terminal.wait_for("> half");
    terminal.wait_for("Server: thr\r\n");
    terminal.wait_for("> half\x1b[7G");
    terminal.press(" done\r");
    assert_eq!(server.read_line(), "half done\n");
}

#[test]
fn lines_can_be_edited_and_recalled() {
    let (mut terminal, mut server) = open_session(&[]);
    for (keys, line) in [
        ("first\r", "first\n"),
        ("sxecond\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D\x7f\r", "second\n"),
        ("\x1b[A\r", "second\n"),
        ("\x1b[A\x1b[A\x1b[A\r", "first\n"),
        ("new\x1b[A\x1b[A\x1b[B\x1b[B!\r", "new!\n"),
        ("one two\x17\x01>\r", ">one \n"),
        ("cut\x15kept\x02\x02\x0b\x05!\r", "ke!\n"),
        ("世界\x02\x7f人\r", "人界\n"),
    ] {
        terminal.press(keys);
        assert_eq!(server.read_line(), line, "{keys:?}");
    }
}

#[test]
fn ctrl_l_clears_the_screen_and_keeps_the_line() {
    let (mut terminal, mut server) = open_session(&[]);
    terminal.press("half\x0c");
    terminal.wait_for("\x1b[2J\x1b[1;1H");
    terminal.wait_for("> half\x1b[7G");
    terminal.press(" done\r");
    assert_eq!(server.read_line(), "half done\n");
}

#[test]
fn ctrl_z_suspends_and_fg_redraws_the_prompt() {
    let (mut terminal, mut server) = start_session(|client| {
        // As a shell does: Ctrl+Z suspends the whole job.
        client.process_group(0);
    });
    terminal.wait_for("> \x1b[3G");
    terminal.press("half\x1a");
    signal::wait_until_suspended(&terminal.client);
    assert!(terminal.is_restored());
    // The terminal echoes now, below the row of the prompt.
    terminal.wait_for("> half\x1b[7G\r\n");

    server.send(b"while suspended\n");
    signal::send(&terminal.client, Signal::CONT);
    terminal.wait_for("Server: while suspended\r\n");
    terminal.wait_for("> half\x1b[7G");
    assert!(!terminal.is_restored());
    terminal.press(" done\rquit\r");
    assert_eq!(server.read_line(), "half done\n");
    assert_eq!(server.read_line(), "", "FIN follows quit");
    server.send(b"half done\n");
    drop(server);
    terminal.wait_for("Disconnected from ");
    terminal.end_with(0);
}

/// The handler of the signal and the prompt, which continues, may run at the same time. One run would
/// prove little.
#[test]
fn a_signal_while_suspended_restores_the_terminal() {
    for _ in 0..10 {
        let (mut terminal, _server) = start_session(|client| {
            client.process_group(0);
        });
        terminal.wait_for("> \x1b[3G");
        terminal.press("\x1a");
        signal::wait_until_suspended(&terminal.client);
        for signal in [Signal::TERM, Signal::CONT] {
            signal::send(&terminal.client, signal);
        }
        assert_eq!(terminal.wait(), 130);
        assert!(terminal.is_restored());
    }
}

#[test]
fn a_long_line_is_shown_around_the_cursor() {
    let (mut terminal, _server) = open_session(&[]);
    let line = "0123456789".repeat(5);
    resize(&terminal.line, 40);
    terminal.press(&line);
    terminal.wait_for(&format!("> {}\x1b[40G", &line[13..]));
    // A terminal that reports a width of 0 is treated as 80 columns wide.
    resize(&terminal.line, 0);
    terminal.press("!");
    terminal.wait_for(&format!("> {line}!\x1b[54G"));
}

#[test]
fn a_hostile_server_cannot_control_the_terminal() {
    let (mut terminal, server) = open_session(&[]);
    server.send("\x1b[2J\x1b]0;title\x07\rHa\u{9b}31m\u{202e}\n".as_bytes());
    terminal.wait_for("Server: \\x1b[2J\\x1b]0;title\\x07\\rHa\\u{9b}31m\\u{202e}\r\n");
    let shown = terminal.text();
    for evil in ["\x1b[2J", "\x1b]", "\x07", "\u{9b}", "\u{202e}"] {
        assert!(!shown.contains(evil), "{evil:?} in {shown:?}");
    }
}

#[test]
fn a_character_split_across_packets_is_shown_whole() {
    let (mut terminal, server) = open_session(&[]);
    server.send(b"5 \xe2\x82");
    terminal.wait_for("Server: 5 \r\n");
    server.send(b"\xac\n\xff\xe2");
    terminal.wait_for("Server: €\r\n");
    terminal.wait_for("Server: \\xff\r\n");
    drop(server);
    terminal.wait_for("Server: \\xe2\r\n");
}

#[test]
fn a_late_newline_does_not_add_an_empty_line() {
    let (mut terminal, server) = open_session(&[]);
    server.send(b"late");
    terminal.wait_for("Server: late\r\n");
    server.send(b"\nnext\n");
    terminal.wait_for("Server: next\r\n");
    assert!(
        !terminal.text().contains("Server: \r\n"),
        "{}",
        terminal.text()
    );
}

#[test]
fn a_closed_connection_is_reported_at_once() {
    let (mut terminal, server) = open_session(&["--timeout=1h"]);
    let message = format!("echo-client: {} closed the connection; ", server.address());
    terminal.press("half");
    terminal.wait_for("> half");
    server.send(b"bye");
    drop(server);
    terminal.wait_for("Server: bye\r\n");
    let shown = terminal.end_with(1);
    assert_contains(shown.lines().last().expect("lines"), &message);
    // The message has a line of its own.
    assert_contains(&shown, "> half\x1b[7G\r\n");
}

#[test]
fn a_reset_is_reported_at_once() {
    let (mut terminal, server) = open_session(&["--timeout=1h"]);
    let address = server.address();
    reset(server.0.into_inner());
    terminal.wait_for(&format!("echo-client: {address} reset the connection"));
    terminal.end_with(1);
}

/// Either thread of the client may get the error, so the test runs several times.
#[test]
fn a_reset_during_a_write_is_reported_as_a_reset() {
    for _ in 0..10 {
        let (mut terminal, mut server) = start_session(|client| {
            client.env("TERM", "dumb");
        });
        let address = server.address();
        terminal.disable_echo();
        terminal.press_endlessly();
        let received = server.0.read_exact(&mut vec![0; 100_000]);
        received.expect("the client sends");
        reset(server.0.into_inner());
        terminal.wait_for(&format!("echo-client: {address} reset the connection"));
        assert_eq!(terminal.wait(), 1);
    }
}

#[test]
fn replies_after_quit_are_shown() {
    let (mut terminal, mut server) = open_session(&[]);
    terminal.press("one\rtwo\rquit\r");
    let mut sent = Vec::new();
    let received = server.0.read_to_end(&mut sent);
    received.expect("the client half-closes");
    server.send(&sent);
    terminal.wait_for("Server: one\nServer: two\n".replace('\n', "\r\n").as_str());
    drop(server);
    terminal.wait_for("Disconnected from ");
    terminal.end_with(0);
}

/// Takes seven seconds: in one case the server sends for longer than the timeout, which must be longer
/// than a busy machine may delay a program, and then the timeout elapses.
#[test]
fn the_timeout_ends_only_a_session_without_progress() {
    run_at_once(&[
        echoes_that_arrive_while_suspended_are_not_missing,
        missing_bytes_are_reported_after_the_timeout,
        each_reply_restarts_the_timeout,
        a_server_that_does_not_read_does_not_hang_the_client,
        a_server_that_sends_but_does_not_read_is_kept,
    ]);
}

fn echoes_that_arrive_while_suspended_are_not_missing() {
    let (mut terminal, mut server) = open_session(&["--timeout=3s"]);
    terminal.press("hello\rquit\r");
    assert_eq!(server.read_line(), "hello\n");
    terminal.wait_for("> quit\r\n");
    signal::pause(&terminal.client);
    server.send(b"hello\n");
    drop(server);
    // Longer than the client's timeout, whenever it began.
    thread::sleep(Duration::from_millis(3500));
    signal::send(&terminal.client, Signal::CONT);
    terminal.wait_for("Server: hello\r\n");
    terminal.wait_for("Disconnected from ");
    terminal.end_with(0);
}

fn missing_bytes_are_reported_after_the_timeout() {
    let (mut terminal, mut server) = open_session(&["--timeout=3s"]);
    terminal.press("hello\rquit\r");
    assert_eq!(server.read_line(), "hello\n");
    server.send(b"he");
    terminal.wait_for("Server: he\r\n");
    let address = server.address();
    terminal.wait_for(&format!(
        "echo-client: {address} did not return 4 bytes within 3s"
    ));
    terminal.end_with(1);
}

/// The replies take longer than the timeout.
fn each_reply_restarts_the_timeout() {
    let (mut terminal, mut server) = open_session(&["--timeout=2500ms"]);
    terminal.press("0123456789\rquit\r");
    for byte in server.read_line().bytes() {
        server.send(&[byte]);
        thread::sleep(Duration::from_millis(300));
    }
    drop(server);
    terminal.wait_for("Disconnected from ");
    terminal.end_with(0);
}

#[test]
fn missing_bytes_are_reported_if_the_server_closes() {
    let (mut terminal, mut server) = open_session(&[]);
    terminal.press("hello\rquit\r");
    assert_eq!(server.read_line(), "hello\n");
    assert_eq!(server.read_line(), "");
    drop(server);
    terminal.wait_for("closed the connection without returning 6 bytes");
    terminal.end_with(1);
}

#[test]
fn a_missing_fin_is_no_error() {
    let (mut terminal, _server) = open_session(&["--timeout=100ms"]);
    terminal.press("quit\r");
    terminal.end_with(0);
}

fn a_server_that_does_not_read_does_not_hang_the_client() {
    let (mut terminal, _server) = start_session(|client| {
        client.env("TERM", "dumb").arg("--timeout=500ms");
    });
    terminal.disable_echo();
    terminal.wait_for("Connected to ");
    terminal.press_endlessly();
    terminal.wait_for(" bytes within 500ms");
    assert_eq!(terminal.wait(), 1);
}

/// The server sends for longer than the timeout.
fn a_server_that_sends_but_does_not_read_is_kept() {
    let (listener, address) = listen();
    // A small receive buffer makes the client's writes block soon.
    let buffer = SockRef::from(&listener).set_recv_buffer_size(4096);
    buffer.expect("the size can be set");
    let mut terminal = Terminal::spawn(address, |client| {
        client.env("TERM", "dumb").arg("--timeout=3s");
    });
    terminal.disable_echo();
    let server = Peer::accept(&listener);
    terminal.press_endlessly();
    for number in 0..13 {
        server.send(format!("still here: {number}\n").as_bytes());
        terminal.wait_for(&format!("Server: still here: {number}\r\n"));
        thread::sleep(Duration::from_millis(300));
    }
    terminal.wait_for(" bytes within 3s");
    assert_eq!(terminal.wait(), 1);
}

#[test]
fn ctrl_d_works_while_the_server_floods_the_terminal() {
    let (mut terminal, server) = open_session(&["--timeout=500ms"]);
    let mut server = server.0.into_inner();
    thread::spawn(move || while server.write_all(b"a flood\n").is_ok() {});
    terminal.wait_for("Server: a flood\r\n");
    terminal.press("\x04");
    assert_eq!(terminal.wait(), 0);
}

#[test]
fn a_signal_restores_the_terminal() {
    let server = Server::start(&[]);
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut terminal = Terminal::open(server.address, &[]);
        signal::send(&terminal.client, signal);
        terminal.end_with(130);
    }
}

/// As after the network of a remote terminal has failed.
#[test]
fn a_signal_works_while_the_terminal_is_blocked() {
    let (mut screen, line) = open_terminal();
    let (mut terminal, server) = start_session(|client| {
        client.stdout(line);
    });
    let mut server = server.0.into_inner();
    read_until(&mut screen, b"> \x1b[3G");
    server
        .set_write_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout can be set");
    while server.write_all(b"a flood\n").is_ok() {}
    signal::send(&terminal.client, Signal::TERM);
    assert_eq!(terminal.wait(), 130);
    assert!(terminal.is_restored());
}

/// Without SIGHUP, which only a controlling terminal sends.
#[test]
#[cfg(target_os = "linux")]
fn linux_a_closed_terminal_ends_the_client_silently() {
    use std::process::Stdio;

    let (_listener, address) = listen();
    let (mut keyboard, line) = open_terminal();
    let duplicate = || line.try_clone().expect("the terminal can be duplicated");
    let mut client = crate::common::echo_client(address);
    client
        .env("TERM", "xterm")
        .stdin(duplicate())
        .stdout(duplicate())
        .stderr(Stdio::piped());
    let child = client.spawn().expect("the client starts");
    drop((client, line));
    // The prompt appears before the client reads keys.
    keyboard.write_all(b"x").expect("the keys can be typed");
    read_until(&mut keyboard, b"> x\x1b[4G");
    drop(keyboard);
    crate::common::assert_silent_exit(&crate::common::end(child), 1);
}

#[test]
fn losing_stdout_restores_the_terminal() {
    let (mut screen, line) = open_terminal();
    let (mut terminal, server) = start_session(|client| {
        client.stdout(line);
    });
    read_until(&mut screen, b"> \x1b[3G");
    assert!(!terminal.is_restored());
    drop(screen);
    // A client that another test is starting may hold `screen` open a little longer.
    for _ in 0..2_000 {
        if server.0.get_ref().write_all(b"hello\n").is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    terminal.wait_for("echo-client: the terminal failed: ");
    assert_eq!(terminal.wait(), 1);
    assert!(terminal.is_restored());
}

#[test]
fn a_dumb_terminal_gets_plain_lines() {
    let server = Server::start(&[]);
    let mut terminal = Terminal::spawn(server.address, |client| {
        client.env("TERM", "dumb");
    });
    terminal.wait_for("Connected to ");
    terminal.press("hello\n");
    terminal.wait_for("Server: hello\r\n");
    terminal.press("\x04");
    terminal.wait_for("Disconnected from ");
    let shown = terminal.end_with(0);
    assert!(!shown.contains('\x1b'), "{shown:?}");
}

#[test]
fn a_file_as_stdout_gets_plain_lines() {
    let server = Server::start(&[]);
    let path = std::env::temp_dir().join(format!("echo-client-{}", server.address.port()));
    let mut terminal = Terminal::spawn(server.address, |client| {
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

/// Linux's `/dev/full` acts as a full disk.
#[test]
#[cfg(target_os = "linux")]
fn linux_a_full_disk_is_reported_for_stdout() {
    let server = Server::start(&[]);
    let mut terminal = Terminal::spawn(server.address, |client| {
        client.stdout(crate::common::full_disk());
    });
    terminal.wait_for("echo-client: cannot write to stdout: No space left");
    terminal.end_with(1);
}
