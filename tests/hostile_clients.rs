//! Clients that misbehave, by intent or not: resets, payload that looks like log lines, clients that
//! never read. Other clients and the log must not suffer.

use crate::common::{
    Server, exchange, fill, for_each_at_once, local_address, noise, reset, send_and_read_all,
};

/// Only Unix can pause a program, so that clients stay in the listen backlog.
#[test]
#[cfg(unix)]
fn resets_in_the_listen_backlog_do_not_keep_the_next_client_out() {
    use crate::common::signal::{self, Signal};
    let server = Server::start(&[]);
    signal::pause(&server.child);
    for _ in 0..100 {
        reset(server.connect());
    }
    let next = server.connect();
    server.signal(Signal::CONT);
    exchange(&next, b"hello");
}

#[test]
#[cfg(unix)]
fn pause_by_job_control_closes_no_connection() {
    use crate::common::signal::{self, Signal};
    let server = Server::start(&[]);
    let client = server.connect();
    for _ in 0..10 {
        // After the exchange, its thread reads again. On Linux the pause ends that with EINTR.
        exchange(&client, b"hello");
        signal::pause(&server.child);
        server.signal(Signal::CONT);
    }
    exchange(&client, b"still here");
}

#[test]
fn flood_of_connects_and_resets_logs_two_lines_per_client() {
    let Some(mut server) = Server::start_to_signal(&[]) else {
        return;
    };
    for number in 0..500 {
        let client = server.connect();
        if number % 2 == 0 {
            reset(client);
        }
    }
    let last = server.connect();
    let address = local_address(&last);
    // The listen backlog keeps the order, so all others have been accepted after this.
    exchange(&last, b"hello");
    drop(last);
    server.wait_for_disconnect(address);
    assert_eq!(server.shut_down().code(), Some(0));
    let log = server.rest_of_log();
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    // On some systems, the server never sees a client that has reset in the listen backlog.
    let clients = count(" connected");
    assert!(
        (251..=501).contains(&clients) && count(" disconnected: ") == clients,
        "{log:#?}"
    );
    assert_eq!(
        log.len(),
        2 * clients + 2,
        "two lines for each client and two for the shutdown"
    );
}

#[test]
fn payload_cannot_forge_log_lines_or_control_the_terminal() {
    let Some(mut server) = Server::start_to_signal(&["-vv"]) else {
        return;
    };
    let forged = b"x\n[2026-01-01T00:00:00Z INFO ] 192.0.2.1:1 connected\r\n\x1b[2J\x07\x9b31m\0";
    exchange(&server.connect(), forged);
    exchange(&server.connect(), &vec![b'\n'; 100_000]);
    server.wait_for_logs(2, "disconnected: closed by client");
    assert_eq!(server.shut_down().code(), Some(0));
    let log = server.rest_of_log();
    let truncated = format!("sent {}… and ", r"\n".repeat(64));
    assert!(log.iter().any(|line| line.contains(&truncated)), "{log:?}");
    for line in log {
        let printable = line.chars().all(|c| !c.is_control());
        assert!(
            line.starts_with("[2") && printable && line.len() < 1000,
            "{line:?}"
        );
        assert!(
            !line.contains("] 192.0.2.1:1 connected") || line.contains(r"\n[2026-01-01"),
            "{line:?}"
        );
    }
}

#[test]
fn clients_that_never_read_do_not_slow_down_the_next() {
    let server = Server::start(&[]);
    let blocked = server.connect_many(4);
    for_each_at_once(&blocked, |client| drop(fill(client)));
    let bytes = noise(5_000_000, 11);
    assert!(send_and_read_all(&server.connect(), &[&bytes]) == bytes);
}
