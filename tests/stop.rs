//! A stop by signal: who is idle gets FIN, the exit code is 0, the port is free at once.

mod common;

use std::io::{ErrorKind, pipe};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::signal::{self, SHUTDOWN_SIGNALS, Signal};
use common::{Server, echo_server, exchange, fill, read_until_fin};

#[test]
fn each_signal_stops_an_idle_server_by_itself_with_exit_code_0() {
    for &signal in SHUTDOWN_SIGNALS {
        let flags = ["--shutdown-timeout", "1h"];
        let Some(mut server) = Server::start_to_signal(&flags) else {
            return;
        };
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0), "{signal:?}");
        server.wait_for_log("shut down: 0 clients served, 0 forcibly closed, 0 bytes echoed");
    }
}

#[test]
fn idle_clients_get_fin_and_the_log_says_why() {
    let Some(mut server) = Server::start_to_signal(&[]) else {
        return;
    };
    let spoke = server.connect();
    exchange(&spoke, b"hello");
    let silent = server.connect();
    server.wait_for_logs(2, " connected");
    server.signal(Signal::TERM);
    assert_eq!(read_until_fin(&spoke), b"");
    assert_eq!(read_until_fin(&silent), b"");
    drop((spoke, silent));
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_logs(2, "disconnected: server shutting down");
    server.wait_for_log("shut down: 2 clients served, 0 forcibly closed, 5 bytes echoed");
}

#[test]
fn an_idle_client_that_never_closes_holds_up_the_stop_for_as_long_as_the_server_lingers() {
    let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "1h"]) else {
        return;
    };
    let client = server.connect();
    exchange(&client, b"hello");
    let begin = Instant::now();
    assert_eq!(server.shut_down().code(), Some(0));
    // Quiet for 0.1 s, lingering for 0.3 s; and far from the timeout.
    let (shortest, longest) = (Duration::from_millis(400), Duration::from_secs(10));
    assert!(
        (shortest..longest).contains(&begin.elapsed()),
        "{:?}",
        begin.elapsed()
    );
}

/// Takes a second and a half, because the client is idle for one of them before the signal.
#[test]
fn idle_client_that_closes_leaves_within_half_a_second() {
    let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "1h"]) else {
        return;
    };
    let client = server.connect();
    exchange(&client, b"hello");
    thread::sleep(Duration::from_secs(1));
    let begin = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(read_until_fin(&client), b"");
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
    assert!(
        begin.elapsed() < Duration::from_millis(500),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn a_client_that_was_looked_for_gets_fin_by_itself_like_any_other() {
    let flags = ["--busy-poll", "10ms", "--shutdown-timeout", "1h"];
    let Some(mut server) = Server::start_to_signal(&flags) else {
        return;
    };
    let client = server.connect();
    for _ in 0..2000 {
        exchange(&client, b"hello");
    }
    server.signal(Signal::TERM);
    assert_eq!(read_until_fin(&client), b"");
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn new_clients_are_refused_while_the_stop_waits_for_those_inside() {
    let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "1h"]) else {
        return;
    };
    let client = server.connect();
    let refused = AtomicBool::new(false);
    let end = Instant::now() + common::PATIENCE;
    thread::scope(|scope| {
        // It keeps the server waiting by never pausing for as long as the drain takes for quiet. A
        // refusal alone takes Windows longer than that.
        let inside = scope.spawn(|| {
            while !refused.load(Relaxed) && Instant::now() < end {
                exchange(&client, b"still here");
            }
            exchange(&client, b"and still served");
        });
        server.signal(Signal::TERM);
        let error = loop {
            match TcpStream::connect(server.address) {
                // It came before the listener was closed, and is served like any other.
                Ok(early) => drop(early),
                // The listener closed in the middle of its handshake.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => break error,
            }
            assert!(
                Instant::now() < end && !inside.is_finished(),
                "the listener stays open"
            );
        };
        refused.store(true, Relaxed);
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_server_at_once_with_exit_code_130() {
    let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "1h"]) else {
        return;
    };
    let client = server.connect();
    fill(&client);
    server.signal(Signal::INT);
    server.wait_for_log("shutting down: ");
    server.signal(Signal::INT);
    assert_eq!(server.wait().code(), Some(130));
}

#[test]
fn the_next_server_gets_the_port_at_once_though_connections_are_in_time_wait() {
    let Some(mut first) = Server::start_to_signal(&[]) else {
        return;
    };
    let client = first.connect();
    exchange(&client, b"hello");
    first.signal(Signal::TERM);
    // The server closes first, so TIME_WAIT is on its side.
    assert_eq!(read_until_fin(&client), b"");
    drop(client);
    assert_eq!(first.wait().code(), Some(0));
    let port = first.address.port();
    // Another test's child that is just starting may hold the client's socket, and so its FIN, for a
    // moment longer.
    #[cfg(target_os = "linux")]
    common::wait_until("a connection is in TIME_WAIT", || in_time_wait(port));
    let mut command = echo_server();
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    let second = Server::spawn(&mut command);
    exchange(&second.connect(), b"hello again");
}

#[cfg(target_os = "linux")]
fn in_time_wait(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux tells its connections");
    table.lines().skip(1).any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let local = columns.next().unwrap_or_default();
        let state = columns.nth(1).unwrap_or_default();
        local.ends_with(&format!(":{port:04X}")) && state == "06"
    })
}

#[test]
fn a_stdout_whose_reader_is_gone_does_not_stop_the_service() {
    let (reader, writer) = pipe().expect("a pipe can be created");
    drop(reader);
    let mut command = echo_server();
    command.args(["--host", "127.0.0.1", "--port", "0", "-v"]);
    serves(&mut Server::spawn_as_is(
        command.stdout(writer).stderr(Stdio::piped()),
    ));
}

#[test]
fn a_stderr_whose_reader_is_gone_does_not_stop_the_service() {
    let (reader, writer) = pipe().expect("a pipe can be created");
    drop(reader);
    let mut command = echo_server();
    command.args(["--host", "127.0.0.1", "--port", "0", "-vv"]);
    serves(&mut Server::spawn_as_is(
        command.stdout(Stdio::piped()).stderr(writer),
    ));
}

#[test]
#[cfg(unix)]
fn a_stdout_that_is_closed_does_not_stop_the_service() {
    let mut command = without(">&-");
    serves(&mut Server::spawn_as_is(command.stderr(Stdio::piped())));
}

#[test]
#[cfg(unix)]
fn a_stderr_that_is_closed_does_not_stop_the_service() {
    let mut command = without("2>&-");
    serves(&mut Server::spawn_as_is(command.stdout(Stdio::piped())));
}

/// A server that a shell starts with one of its streams closed. Windows has no such shell.
#[cfg(unix)]
fn without(redirection: &str) -> std::process::Command {
    let script = format!(r#"exec "$0" --host 127.0.0.1 --port 0 -vv {redirection}"#);
    let mut shell = common::command("sh");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_echo-server")]);
    shell
}

fn serves(server: &mut Server) {
    exchange(&server.connect(), b"hello");
    exchange(&server.connect(), b"hello again");
    if signal::can_be_sent() {
        assert_eq!(server.shut_down().code(), Some(0));
    }
}
