//! A panic in a client's thread costs that client alone, and frees its place. No input is known to
//! cause one, so a logger that panics does, within a server inside this test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use echo_server::{Config, Server};
use log::{LevelFilter, Log, Metadata, Record};

struct Panicking;

impl Log for Panicking {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        assert!(
            !record.args().to_string().ends_with("sent 13 bytes"),
            "this is the test's panic"
        );
    }

    fn flush(&self) {}
}

#[test]
fn a_panic_in_a_clients_thread_costs_that_client_alone_and_frees_its_place() {
    log::set_logger(&Panicking).expect("it is the only one");
    log::set_max_level(LevelFilter::Debug);
    let server = Server::bind(Config {
        address: ([127, 0, 0, 1], 0).into(),
        max_connections: 2,
        ..Config::default()
    });
    let server = server.expect("a port is free");
    let address = server.local_addr().expect("the server has an address");
    let stop = server.shutdown_handle();
    let running = thread::spawn(|| server.run());
    let connect = || {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("the timeout can be set");
        stream
    };
    let echoes = |mut stream: &TcpStream, message: &[u8]| {
        stream.write_all(message).expect("the message is sent");
        let mut echo = vec![0; message.len()];
        stream.read_exact(&mut echo).is_ok_and(|()| echo == message)
    };

    let neighbour = connect();
    assert!(echoes(&neighbour, b"before"));
    for _ in 0..5 {
        // There is a place for one: each panic must have freed it for the next.
        assert!(!echoes(&connect(), b"unlucky bytes"));
    }
    assert!(echoes(&neighbour, b"after"));
    drop(neighbour);
    assert!(echoes(&connect(), b"and the next"));

    stop.shutdown();
    running.join().expect("the accept loop does not panic");
}
