//! The server inside another program, shut down through its handle. These tests run on every
//! platform, even if a test cannot send a signal there.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::common::{connect, exchange, fill, read_until_fin, wait_until};
use echo_server::{Config, Server, ShutdownHandle};

/// Returns the default configuration, for an ephemeral port of 127.0.0.1.
fn local_config() -> Config {
    Config {
        address: ([127, 0, 0, 1], 0).into(),
        ..Config::default()
    }
}

/// Runs a server in a thread of the test.
fn run(config: Config) -> (SocketAddr, ShutdownHandle, JoinHandle<()>) {
    let server = Server::bind(config).expect("a port is free");
    let address = server.local_addr().expect("the server has an address");
    (
        address,
        server.shutdown_handle(),
        thread::spawn(|| server.run()),
    )
}

fn wait_for(server: JoinHandle<()>) {
    wait_until("the server has shut down", || server.is_finished());
    server.join().expect("the server does not panic");
}

#[test]
fn shutdown_before_run_takes_effect() {
    let server = Server::bind(local_config()).expect("a port is free");
    let handle = server.shutdown_handle();
    assert!(!handle.is_shutdown());
    handle.shutdown();
    handle.shutdown();
    assert!(handle.is_shutdown());
    wait_for(thread::spawn(|| server.run()));
}

#[test]
fn idle_clients_get_fin_at_shutdown() {
    let (address, handle, server) = run(local_config());
    let clients = [connect(address), connect(address)];
    exchange(&clients[0], b"hello");
    exchange(&clients[1], b"hello");
    handle.shutdown();
    for client in clients {
        assert_eq!(read_until_fin(&client), b"");
    }
    wait_for(server);
}

#[test]
fn client_that_reads_late_gets_everything_it_sent() {
    let (address, handle, server) = run(Config {
        shutdown_timeout: Duration::MAX,
        ..local_config()
    });
    let client = connect(address);
    let sent = fill(&client);
    handle.shutdown();
    assert!(read_until_fin(&client) == sent);
    drop(client);
    wait_for(server);
}

#[test]
fn client_that_never_reads_is_forcibly_closed() {
    let shutdown_timeout = Duration::from_millis(500);
    let (address, handle, server) = run(Config {
        shutdown_timeout,
        ..local_config()
    });
    let client = connect(address);
    fill(&client);
    let begin = Instant::now();
    handle.shutdown();
    wait_for(server);
    assert!(begin.elapsed() >= shutdown_timeout, "{:?}", begin.elapsed());
}

#[test]
fn configuration_out_of_range_is_an_error() {
    let mut configs = [(); 3].map(|()| local_config());
    configs[0].max_connections = 0;
    configs[1].buffer_size = 0;
    configs[2].buffer_size = usize::MAX;
    for config in configs {
        let error = Server::bind(config).expect_err("the value is invalid");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
