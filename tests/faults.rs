//! What rude clients and readers do: resets by the hundred, a log that nobody reads, payload that
//! wants to be a line of the log, clients that never read.

mod common;

use std::io::pipe;
use std::net::TcpStream;
use std::process::Stdio;

use common::signal;
use common::{Server, echo_server, exchange, fill, local_address, noise, reset};

/// Unix alone can pause a program.
#[test]
#[cfg(unix)]
fn clients_that_reset_while_they_are_in_the_queue_do_not_keep_the_next_one_out() {
    use common::signal::Signal;
    let server = Server::start(&[]);
    signal::pause(&server.child);
    for _ in 0..100 {
        reset(server.connect());
    }
    let polite = server.connect();
    server.signal(Signal::CONT);
    exchange(&polite, b"hello");
}

#[test]
#[cfg(unix)]
fn a_pause_by_job_control_costs_no_client_its_connection() {
    use common::signal::Signal;
    let server = Server::start(&[]);
    let client = server.connect();
    for _ in 0..10 {
        // Its thread has just come back to its read: Linux ends that with EINTR.
        exchange(&client, b"hello");
        signal::pause(&server.child);
        server.signal(Signal::CONT);
    }
    exchange(&client, b"still here");
}

#[test]
fn a_flood_of_connects_and_resets_is_two_lines_a_client_in_the_log() {
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
    exchange(&last, b"all those before were in the queue before it");
    drop(last);
    server.wait_for_disconnect(address);
    assert_eq!(server.shut_down().code(), Some(0));
    let log = server.rest_of_log();
    let about = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    // Not every system gives the server a client that has reset before its turn came.
    let clients = about(" connected");
    assert!(
        (251..=501).contains(&clients) && about(" disconnected: ") == clients,
        "{log:#?}"
    );
    assert_eq!(
        log.len(),
        2 * clients + 2,
        "two for each client, and the stop's"
    );
}

#[test]
fn a_log_that_nobody_reads_stops_neither_the_service_nor_the_stop() {
    let (_nobody_reads, stderr) = pipe().expect("a pipe can be created");
    let mut command = echo_server();
    command.args([
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "-vv",
        "--buffer-size",
        "64",
    ]);
    let mut server = Server::spawn_as_is(command.stdout(Stdio::piped()).stderr(stderr));
    // Each 64 bytes are three lines of the log: far more than the pipe and the queue hold.
    let client = server.connect();
    let bytes = noise(2_000_000, 10);
    assert!(common::send_and_read_all(&client, &[&bytes]) == bytes);
    exchange(&server.connect(), b"hello");
    if signal::can_be_sent() {
        assert_eq!(server.shut_down().code(), Some(0));
    }
}

#[test]
fn payload_cannot_forge_a_line_of_the_log_nor_drive_the_terminal() {
    let Some(mut server) = Server::start_to_signal(&["-vv"]) else {
        return;
    };
    let forged = b"x\n[2026-01-01T00:00:00Z INFO ] 192.0.2.1:1 connected\r\n\x1b[2J\x07\x9b31m\0";
    exchange(&server.connect(), forged);
    exchange(&server.connect(), &vec![b'\n'; 100_000]);
    server.wait_for_logs(2, "disconnected: closed by client");
    assert_eq!(server.shut_down().code(), Some(0));
    let log = server.rest_of_log();
    let cut = format!("sent {}… and ", r"\n".repeat(64));
    assert!(log.iter().any(|line| line.contains(&cut)), "{log:?}");
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
fn a_client_that_never_reads_does_not_slow_the_next_one_down_to_a_halt() {
    let server = Server::start(&[]);
    let stuck: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    for client in &stuck {
        fill(client);
    }
    let bytes = noise(5_000_000, 11);
    assert!(common::send_and_read_all(&server.connect(), &[&bytes]) == bytes);
}
