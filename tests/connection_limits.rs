//! The connection limit (`--max-connections`): clients over it wait in the listen backlog.

use std::net::TcpStream;

use crate::common::{Server, exchange, local_address, local_server, receive_echo, wait_until};

#[test]
fn clients_over_the_limit_wait_and_are_served_in_order() {
    let server = Server::start(&["--max-connections", "2"]);
    let (first, second) = (server.connect(), server.connect());
    exchange(&first, b"hello");
    exchange(&second, b"hello");
    server.wait_for_log("connection limit reached (2): new clients wait in the listen backlog");
    let third = server.connect_and_send(b"third");
    let fourth = server.connect_and_send(b"fourth");
    let is_admitted = |client: &TcpStream| {
        server.count_in_log(&format!("{} connected", local_address(client))) > 0
    };

    assert!(!is_admitted(&third) && !is_admitted(&fourth));
    drop(first);
    receive_echo(&third, b"third");
    assert!(!is_admitted(&fourth));
    exchange(&second, b"admitted clients are served all the time");
    drop(second);
    receive_echo(&fourth, b"fourth");
    drop((third, fourth));

    server.wait_for_log("accepting new clients again");
    server.assert_log_count(1, "connection limit reached");
    server.assert_log_count(1, "accepting new clients again");
}

/// A client at a time, each within a tenth of a second of the last: the accept loop always has work.
#[test]
fn recovery_is_logged_although_clients_keep_coming() {
    let server = Server::start(&["--max-connections", "3"]);
    let admitted = server.connect_many(3);
    server.wait_for_log("connection limit reached (3)");
    drop(admitted);
    wait_until("the limit is over", || {
        exchange(&server.connect(), b"hello");
        server.count_in_log("accepting new clients again") == 1
    });
}

#[test]
fn connection_limit_can_come_from_the_environment() {
    let server = Server::spawn(local_server().env("ECHO_SERVER_MAX_CONNECTIONS", "1"));
    exchange(&server.connect(), b"hello");
    server.wait_for_log("connection limit reached (1)");
}

/// Linux lists the threads of a process.
#[test]
#[cfg(target_os = "linux")]
fn linux_clients_that_are_being_closed_hold_their_permit() {
    let server = Server::start(&["--max-connections", "1", "--fault", "limit=0"]);
    // They stay open, so that each lingering close takes its full time.
    let clients = server.connect_many(20);
    server.wait_for_log("disconnected: fault limit");
    assert!(server.threads() < 10, "{} threads", server.threads());
    drop(clients);
}
