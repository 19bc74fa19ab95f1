//! A panic in a connection's thread ends only that connection, and releases its permit. No input is
//! known to cause a panic, so a logger that panics does. The server runs inside this test, because
//! the logger must too.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use common::connect;
use echo_server::{Config, Server};
use log::{LevelFilter, Log, Metadata, Record};

/// A logger that panics at the log line about a message of 13 bytes.
struct PanickingLogger;

impl Log for PanickingLogger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        assert!(
            !record.args().to_string().ends_with("sent 13 bytes"),
            "this panic is part of the test"
        );
    }

    fn flush(&self) {}
}

/// Returns whether the server echoes `message`.
fn is_echoed(mut stream: &TcpStream, message: &[u8]) -> bool {
    stream.write_all(message).expect("the message is sent");
    let mut echo = vec![0; message.len()];
    stream.read_exact(&mut echo).is_ok_and(|()| echo == message)
}

#[test]
fn panic_ends_only_its_connection_and_releases_the_permit() {
    log::set_logger(&PanickingLogger).expect("no other logger is set");
    log::set_max_level(LevelFilter::Debug);
    let server = Server::bind(Config {
        address: ([127, 0, 0, 1], 0).into(),
        max_connections: 2,
        ..Config::default()
    });
    let server = server.expect("a port is free");
    let address = server.local_addr().expect("the server has an address");
    let handle = server.shutdown_handle();
    let running = thread::spawn(|| server.run());

    let neighbour = connect(address);
    assert!(is_echoed(&neighbour, b"before"));
    for _ in 0..5 {
        // One permit is left, so each panic must release it for the next client.
        assert!(!is_echoed(&connect(address), b"unlucky bytes"));
    }
    assert!(is_echoed(&neighbour, b"after"));
    drop(neighbour);
    assert!(is_echoed(&connect(address), b"and the next"));

    handle.shutdown();
    running.join().expect("the accept loop does not panic");
}
