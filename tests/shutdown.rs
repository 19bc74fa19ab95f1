//! Graceful shutdown on a signal: the exit code, the log, the listener, and clients with nothing
//! pending. `drain.rs` covers clients with pending echoes.

use std::thread;
use std::time::{Duration, Instant};

use crate::common::signal::{SHUTDOWN_SIGNALS, Signal};
use crate::common::{Server, echo_server, exchange, fill, read_until_fin, retry};

#[test]
fn each_signal_shuts_an_idle_server_down_with_exit_code_0() {
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
fn idle_clients_get_fin_and_the_log_has_the_reason() {
    let Some(mut server) = Server::start_to_signal(&[]) else {
        return;
    };
    let active_before = server.connect_and_exchange(b"hello");
    let silent = server.connect();
    server.wait_for_logs(2, " connected");
    server.signal(Signal::TERM);
    assert_eq!(read_until_fin(&active_before), b"");
    assert_eq!(read_until_fin(&silent), b"");
    drop((active_before, silent));
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_logs(2, "disconnected: server shutting down");
    server.wait_for_log("shut down: 2 clients served, 0 forcibly closed, 5 bytes echoed");
}

#[test]
fn idle_client_that_does_not_close_delays_exit_by_the_lingering() {
    let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "1h"]) else {
        return;
    };
    let _client = server.connect_and_exchange(b"hello");
    let begin = Instant::now();
    assert_eq!(server.shut_down().code(), Some(0));
    // The server waits 0.1 s for a quiet client and lingers for 0.3 s. The timeout is far away.
    let (shortest, longest) = (Duration::from_millis(400), Duration::from_secs(10));
    assert!(
        (shortest..longest).contains(&begin.elapsed()),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn idle_client_that_closes_is_disconnected_in_half_a_second() {
    check_that_idle_client_is_closed_at_once();
}

/// Checks that a server disconnects an idle client and exits within half a second of the signal, and
/// a little later elsewhere than on Linux. A busy machine may delay that, so the check tries again.
pub fn check_that_idle_client_is_closed_at_once() {
    let closes_at_once = || {
        let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "1h"]) else {
            return true;
        };
        let client = server.connect_and_exchange(b"hello");
        // Long enough for the connection's thread to have blocked and to wait for the shutdown too.
        thread::sleep(Duration::from_millis(500));
        let begin = Instant::now();
        server.signal(Signal::TERM);
        assert_eq!(read_until_fin(&client), b"");
        drop(client);
        assert_eq!(server.wait().code(), Some(0));
        // Without `TCP_INFO` the server cannot know that the client is idle.
        let limit = if cfg!(target_os = "linux") { 500 } else { 900 };
        begin.elapsed() < Duration::from_millis(limit)
    };
    retry(closes_at_once, "the server exits late");
}

#[test]
fn client_that_was_busy_polled_gets_fin() {
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
fn second_signal_ends_the_server_at_once_with_exit_code_130() {
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
fn next_server_can_bind_the_port_despite_time_wait() {
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
    // A process that another test is spawning may hold a copy of the client's socket for a moment.
    // Until then the client sends no FIN.
    #[cfg(target_os = "linux")]
    crate::common::wait_until("a connection is in TIME_WAIT", || in_time_wait(port));
    let mut command = echo_server();
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    let second = Server::spawn(&mut command);
    exchange(&second.connect(), b"hello again");
}

#[cfg(target_os = "linux")]
fn in_time_wait(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux lists its connections");
    table.lines().skip(1).any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let local = columns.next().unwrap_or_default();
        let state = columns.nth(1).unwrap_or_default();
        local.ends_with(&format!(":{port:04X}")) && state == "06"
    })
}
