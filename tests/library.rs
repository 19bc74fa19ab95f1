//! The server inside another program, stopped through its handle: on every platform, also where a
//! test cannot send a signal.

mod common;

use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{connect, exchange, fill, noise, read_until_fin, wait_until};
use echo_server::{Config, Server, ShutdownHandle};

/// A server that runs in a thread of the test's.
fn run(mut config: Config) -> (SocketAddr, ShutdownHandle, JoinHandle<()>) {
    config.address = ([127, 0, 0, 1], 0).into();
    let server = Server::bind(config).expect("a port is free");
    let address = server.local_addr().expect("the server has an address");
    (
        address,
        server.shutdown_handle(),
        thread::spawn(|| server.run()),
    )
}

fn ends(running: JoinHandle<()>) {
    wait_until("it has stopped", || running.is_finished());
    running.join().expect("it does not panic");
}

#[test]
fn a_stop_before_run_is_heeded() {
    let config = Config {
        address: ([127, 0, 0, 1], 0).into(),
        ..Config::default()
    };
    let server = Server::bind(config).expect("a port is free");
    let stop = server.shutdown_handle();
    assert!(!stop.is_shutdown());
    stop.shutdown();
    stop.shutdown();
    assert!(stop.is_shutdown());
    ends(thread::spawn(|| server.run()));
}

#[test]
fn idle_clients_get_fin_when_the_server_stops() {
    let (address, stop, running) = run(Config::default());
    let clients = [connect(address), connect(address)];
    exchange(&clients[0], b"hello");
    exchange(&clients[1], b"hello");
    stop.shutdown();
    for client in clients {
        assert_eq!(read_until_fin(&client), b"");
    }
    ends(running);
}

#[test]
fn a_client_that_reads_late_gets_all_that_it_had_sent_when_the_server_stops() {
    let (address, stop, running) = run(Config {
        shutdown_timeout: Duration::MAX,
        ..Config::default()
    });
    let client = connect(address);
    let sent = fill(&client);
    stop.shutdown();
    assert!(read_until_fin(&client) == sent);
    drop(client);
    ends(running);
}

#[test]
fn a_client_that_never_reads_is_cut_off_when_the_server_stops() {
    let shutdown_timeout = Duration::from_millis(500);
    let (address, stop, running) = run(Config {
        shutdown_timeout,
        ..Config::default()
    });
    let client = connect(address);
    fill(&client);
    let begin = Instant::now();
    stop.shutdown();
    ends(running);
    assert!(begin.elapsed() >= shutdown_timeout, "{:?}", begin.elapsed());
}

#[test]
fn a_client_is_closed_by_the_idle_timeout() {
    let idle_timeout = Some(Duration::from_secs(1));
    let (address, stop, running) = run(Config {
        idle_timeout,
        ..Config::default()
    });
    let client = connect(address);
    exchange(&client, &noise(100, 1));
    assert_eq!(read_until_fin(&client), b"");
    stop.shutdown();
    ends(running);
}

#[test]
fn a_configuration_with_nothing_where_there_must_be_something_is_refused() {
    let none_inside = Config {
        max_connections: 0,
        ..Config::default()
    };
    let no_buffer = Config {
        buffer_size: 0,
        ..Config::default()
    };
    let huge_buffer = Config {
        buffer_size: usize::MAX,
        ..Config::default()
    };
    for config in [none_inside, no_buffer, huge_buffer] {
        let address = ([127, 0, 0, 1], 0).into();
        let error = Server::bind(Config { address, ..config }).expect_err("it cannot serve");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
}
