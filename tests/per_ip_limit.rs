//! The per-IP limit (`--max-connections-per-ip`): one address cannot use up the connection limit.

use std::io::Read;
use std::net::TcpStream;

use crate::common::{Server, exchange, exchange_all, local_server, read_until_fin};

/// Checks that the server closes the connection without an echo.
fn assert_rejected(mut client: TcpStream) {
    let end = client.read(&mut [0]);
    assert!(matches!(end, Ok(0)), "{end:?}");
}

#[test]
fn clients_over_the_limit_are_rejected_and_logged_once() {
    let server = Server::start(&["--max-connections-per-ip", "2"]);
    let admitted = [server.connect(), server.connect()];
    exchange_all(&admitted, b"hello");
    for _ in 0..3 {
        assert_rejected(server.connect());
    }
    server.wait_for_log("per-IP limit reached for 127.0.0.1 (2): rejecting its new connections");
    exchange_all(&admitted, b"admitted clients are still served");
    // Rejected clients have no lines of their own: a flood of them must not fill the log.
    server.assert_log_count(1, "per-IP limit reached for");
    server.assert_log_count(2, " connected");
    server.assert_log_count(0, " disconnected");
}

#[test]
fn released_permit_is_reused_and_the_next_rejection_logged() {
    let server = Server::start(&["--max-connections-per-ip", "1"]);
    for round in 1..=3 {
        let client = server.connect_and_exchange(b"hello");
        assert_rejected(server.connect());
        server.wait_for_logs(round, "per-IP limit reached for");
        drop(client);
        server.wait_for_logs(round, "closed by client");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn another_address_has_permits_of_its_own() {
    let server = Server::start(&["--max-connections-per-ip", "1"]);
    let _first = server.connect_and_exchange(b"hello");
    assert_rejected(server.connect());
    let other = crate::common::connect_from([127, 0, 0, 2], server.address);
    exchange(&other, b"hello");
    assert_rejected(crate::common::connect_from([127, 0, 0, 2], server.address));
    server.wait_for_logs(2, "per-IP limit reached for");
}

#[test]
fn default_is_no_per_ip_limit() {
    let server = Server::start(&[]);
    let clients = server.connect_many(50);
    exchange_all(&clients, b"hello");
}

#[test]
fn per_ip_limit_can_come_from_the_environment() {
    let server = Server::spawn(local_server().env("ECHO_SERVER_MAX_CONNECTIONS_PER_IP", "1"));
    let _client = server.connect_and_exchange(b"hello");
    assert_rejected(server.connect());
}

#[test]
#[cfg(unix)]
fn rejected_clients_do_not_count_as_served() {
    let mut server = Server::start(&["--max-connections-per-ip", "1"]);
    let client = server.connect_and_exchange(b"hello");
    assert_rejected(server.connect());
    drop(client);
    server.wait_for_log("closed by client");
    assert_eq!(server.shut_down().code(), Some(0));
    server.wait_for_log("shut down: 1 client served, 0 forcibly closed, 5 bytes echoed");
}

#[test]
fn client_that_reconnects_at_the_servers_fin_is_admitted() {
    let server = Server::start(&["--max-connections-per-ip", "1", "--fault", "limit=5"]);
    let mut client = server.connect();
    exchange(&client, b"hello");
    for _ in 0..3 {
        // The server closes a connection after 5 bytes.
        assert_eq!(read_until_fin(&client), b"");
        // The client has not closed the old connection yet.
        let next = server.connect_and_exchange(b"hello");
        client = next;
    }
}
