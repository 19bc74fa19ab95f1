//! The connection limit (`--max-connections`): clients over it wait in the listen backlog.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::common::{Server, exchange, local_address, local_server};

/// Connects and sends a byte, which is echoed once the client is admitted.
fn connect_and_send(server: &Server) -> TcpStream {
    let mut client = server.connect();
    client.write_all(b"k").expect("the byte is sent");
    client
}

/// Waits for the echo of the byte that `connect_and_send` sent.
fn wait_until_admitted(mut client: &TcpStream) {
    let mut echo = [0];
    client.read_exact(&mut echo).expect("the echo arrives");
    assert_eq!(&echo, b"k");
}

#[test]
fn clients_over_the_limit_wait_and_are_served_in_order() {
    let server = Server::start(&["--max-connections", "2"]);
    let (first, second) = (connect_and_send(&server), connect_and_send(&server));
    wait_until_admitted(&first);
    wait_until_admitted(&second);
    server.wait_for_log("connection limit reached (2): new clients wait in the listen backlog");
    let (third, fourth) = (connect_and_send(&server), connect_and_send(&server));
    let is_admitted = |client: &TcpStream| {
        server.count_in_log(&format!("{} connected", local_address(client))) > 0
    };

    assert!(!is_admitted(&third) && !is_admitted(&fourth));
    drop(first);
    wait_until_admitted(&third);
    assert!(!is_admitted(&fourth));
    exchange(&second, b"admitted clients are served all the time");
    drop(second);
    wait_until_admitted(&fourth);
    drop((third, fourth));

    server.wait_for_log("accepting new clients again");
    let log = server.log();
    for line in ["connection limit reached", "accepting new clients again"] {
        assert_eq!(server.count_in_log(line), 1, "{log:#?}");
    }
}

#[test]
fn connection_limit_can_come_from_the_environment() {
    let server = Server::spawn(local_server().env("ECHO_SERVER_MAX_CONNECTIONS", "1"));
    wait_until_admitted(&connect_and_send(&server));
    server.wait_for_log("connection limit reached (1)");
}

/// Linux lists the threads of a process.
#[test]
#[cfg(target_os = "linux")]
fn linux_clients_that_are_being_closed_hold_their_permit() {
    let server = Server::start(&["--max-connections", "1", "--fault", "limit=0"]);
    // They stay open, so that each lingering close takes its full time.
    let clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    server.wait_for_log("disconnected: fault limit");
    assert!(server.threads() < 10, "{} threads", server.threads());
    drop(clients);
}
