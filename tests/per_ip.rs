//! `--max-connections-per-ip`: one address cannot take all the places.

mod common;

use std::io::Read;
use std::net::TcpStream;

use common::{Server, exchange, local_server};

/// The server closes the connection of one who has sent nothing.
fn is_turned_away(mut client: TcpStream) {
    let end = client.read(&mut [0]);
    assert!(matches!(end, Ok(0)), "{end:?}");
}

fn told(server: &Server) -> usize {
    server
        .log()
        .iter()
        .filter(|line| line.contains("per-IP limit reached for"))
        .count()
}

#[test]
fn clients_over_the_limit_are_closed_at_once_and_the_log_tells_the_address_once() {
    let server = Server::start(&["--max-connections-per-ip", "2"]);
    let inside = [server.connect(), server.connect()];
    for client in &inside {
        exchange(client, b"hello");
    }
    for _ in 0..3 {
        is_turned_away(server.connect());
    }
    server.wait_for_log("per-IP limit reached for 127.0.0.1 (2): rejecting its new connections");
    for client in &inside {
        exchange(client, b"those inside are served on");
    }
    assert_eq!(told(&server), 1, "{:#?}", server.log());
    let arrivals = server
        .log()
        .iter()
        .filter(|line| line.ends_with(" connected"))
        .count();
    assert_eq!(
        arrivals,
        2,
        "those turned away are no lines of their own: {:#?}",
        server.log()
    );
}

#[test]
fn whoever_leaves_makes_room_and_an_address_is_told_again_once_all_of_it_have_left() {
    let server = Server::start(&["--max-connections-per-ip", "1"]);
    for round in 1..=3 {
        let client = server.connect();
        exchange(&client, b"hello");
        is_turned_away(server.connect());
        server.wait_for_logs(round, "per-IP limit reached for");
        drop(client);
        server.wait_for_logs(round, "closed by client");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn another_address_has_places_of_its_own() {
    let server = Server::start(&["--max-connections-per-ip", "1"]);
    let first = server.connect();
    exchange(&first, b"hello");
    is_turned_away(server.connect());
    let other = common::connect_from([127, 0, 0, 2], server.address);
    exchange(&other, b"hello");
    is_turned_away(common::connect_from([127, 0, 0, 2], server.address));
    server.wait_for_logs(2, "per-IP limit reached for");
}

#[test]
fn by_default_one_address_may_have_all_places() {
    let server = Server::start(&[]);
    let clients: Vec<TcpStream> = (0..50).map(|_| server.connect()).collect();
    for client in &clients {
        exchange(client, b"hello");
    }
    assert_eq!(told(&server), 0);
}

#[test]
fn the_limit_comes_from_its_variable_too() {
    let server = Server::spawn(local_server().env("ECHO_SERVER_MAX_CONNECTIONS_PER_IP", "1"));
    let client = server.connect();
    exchange(&client, b"hello");
    is_turned_away(server.connect());
}

#[test]
#[cfg(unix)]
fn those_turned_away_do_not_count_as_served() {
    let mut server = Server::start(&["--max-connections-per-ip", "1"]);
    let client = server.connect();
    exchange(&client, b"hello");
    is_turned_away(server.connect());
    drop(client);
    server.wait_for_log("closed by client");
    assert_eq!(server.shut_down().code(), Some(0));
    server.wait_for_log("shut down: 1 client served, 0 forcibly closed, 5 bytes echoed");
}

#[test]
fn client_that_reconnects_at_the_servers_fin_is_admitted() {
    let server = Server::start(&["--max-connections-per-ip", "1", "--idle-timeout", "200ms"]);
    let mut client = server.connect();
    for _ in 0..3 {
        exchange(&client, b"hello");
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).expect("the server sends FIN");
        assert_eq!(rest, b"");
        // Its own side of the old connection is still open.
        let next = server.connect();
        exchange(&next, b"hello again");
        client = next;
    }
}
