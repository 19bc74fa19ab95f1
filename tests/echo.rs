//! Whatever a client sends comes back byte for byte and in order, in whatever pieces it was sent.

use std::net::{IpAddr, Ipv4Addr};

use crate::common::{
    Server, assert_contains, connect, echo_server, exchange, fill, for_each_at_once, half_close,
    local_address, noise, read_until_fin, reset, send_and_read_all,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

#[test]
fn streams_of_random_chunks_are_echoed() {
    let server = Server::start(&[]);
    // Short streams, and streams of many megabytes.
    for (cases, size, count) in [(32, 1..5_000_usize, 1..20), (3, 1..1_000_000, 20..30)] {
        let mut runner = TestRunner::new(ProptestConfig {
            cases,
            failure_persistence: None,
            ..Default::default()
        });
        let chunks = (prop::collection::vec(size, count), any::<u64>());
        let result = runner.run(&chunks, |(sizes, seed)| {
            let bytes = noise(sizes.iter().sum(), seed);
            let mut rest = bytes.as_slice();
            let chunks: Vec<&[u8]> = sizes
                .iter()
                .map(|size| rest.split_off(..*size).expect("the sizes add up"))
                .collect();
            prop_assert!(send_and_read_all(&server.connect(), &chunks) == bytes);
            Ok(())
        });
        result.expect("every stream is echoed");
    }
}

#[test]
fn busy_polling_of_any_length_loses_no_byte() {
    for limit in ["0s", "50us", "10ms"] {
        let server = Server::start(&["--busy-poll", limit]);
        let client = server.connect();
        for number in 0..1000 {
            exchange(&client, &noise(1 + number % 100, number as u64));
        }
        let stream = noise(3_000_000, 7);
        assert!(send_and_read_all(&client, &[&stream]) == stream, "{limit}");
    }
}

#[test]
fn messages_around_the_buffer_size_are_echoed() {
    for buffer in ["1", "7", "4096", "64KiB", "1MiB"] {
        let server = Server::start(&["--buffer-size", buffer]);
        let client = server.connect();
        for size in [1, 2, 6, 7, 8, 4095, 4096, 4097, 65535, 65536, 65537] {
            exchange(&client, &noise(size, 2));
        }
    }
}

#[test]
fn urgent_byte_is_echoed_in_order() {
    let server = Server::start(&[]);
    let client = server.connect_and_send(b"abc");
    socket2::SockRef::from(&client)
        .send_out_of_band(b"!")
        .expect("the byte is sent");
    assert_eq!(send_and_read_all(&client, &[b"def"]), b"abc!def");
}

#[test]
fn client_that_half_closes_at_once_gets_fin_and_no_byte() {
    let server = Server::start(&[]);
    let client = server.connect();
    half_close(&client);
    assert_eq!(read_until_fin(&client), b"");
}

#[test]
fn client_that_reads_late_gets_20_megabytes_then_fin() {
    let server = Server::start(&[]);
    let client = server.connect();
    // The client reads only when every buffer is full, so client and server are both blocked.
    let first = fill(&client);
    let rest = noise(20_000_000 - first.len(), 3);
    let echo = send_and_read_all(&client, &[&rest]);
    assert!(
        echo == [first, rest].concat(),
        "{} bytes arrived",
        echo.len()
    );
    let line = server.wait_for_disconnect(local_address(&client));
    assert_contains(&line, "closed by client, 20000000 bytes echoed");
}

#[test]
fn two_hundred_clients_each_have_their_own_thread() {
    let server = Server::start(&[]);
    let clients = server.connect_many(200);
    for (number, client) in clients.iter().enumerate() {
        exchange(client, &noise(1000, number as u64));
    }
    // One for each client, and one each for the main thread, signals and the log. The thread that
    // wrote the ready line ends soon.
    #[cfg(target_os = "linux")]
    crate::common::wait_until("there are 203 threads", || server.threads() == 200 + 3);
    for (number, client) in clients.iter().enumerate().rev() {
        let message = noise(1000, 1000 + number as u64);
        assert!(send_and_read_all(client, &[&message]) == message);
    }
    server.wait_for_logs(200, "disconnected: closed by client, 2000 bytes echoed");
}

#[test]
fn concurrent_clients_each_get_their_own_bytes() {
    let server = Server::start(&[]);
    for_each_at_once(0..16, |number| {
        let message = noise(1_000_000, number);
        assert!(send_and_read_all(&server.connect(), &[&message]) == message);
    });
}

#[test]
fn reset_is_logged_as_a_reset_and_harms_no_other_client() {
    let server = Server::start(&[]);
    let neighbour = server.connect();
    let client = server.connect();
    let address = local_address(&client);
    // The server is blocked in a write, so it notices the reset there. In a read, Wine would report
    // the reset as FIN.
    fill(&client);
    reset(client);
    let line = server.wait_for_disconnect(address);
    assert_contains(&line, "reset by client");
    exchange(&neighbour, b"after");
}

#[test]
fn ipv6_wildcard_serves_both_and_logs_plain_ipv4_addresses() {
    let mut command = echo_server();
    let server = Server::spawn(command.args(["--host", "::", "--port", "0"]));
    assert!(
        server.ready_line.starts_with("Server listening on [::]:"),
        "{}",
        server.ready_line
    );
    for host in ["127.0.0.1", "::1"] {
        let ip: IpAddr = host.parse().expect("an IP address");
        let client = connect((ip, server.address.port()).into());
        exchange(&client, host.as_bytes());
        server.wait_for_log(&format!("{} connected", local_address(&client)));
    }
}

#[test]
fn ipv4_address_in_ipv6_notation_serves_ipv4() {
    let mut command = echo_server();
    let server = Server::spawn(command.args(["--host", "::ffff:127.0.0.1", "--port", "0"]));
    assert_eq!(server.address.ip(), Ipv4Addr::LOCALHOST);
    exchange(&server.connect(), b"four");
}

#[test]
fn ipv6_address_leaves_the_same_ipv4_port_free() {
    // IPv4 first: other tests use ports of 127.0.0.1, but none of ::1.
    let four = Server::start(&[]);
    let port = four.address.port().to_string();
    let mut command = echo_server();
    let six = Server::spawn(command.args(["--host", "::1", "--port", &port]));
    exchange(&six.connect(), b"six");
    exchange(&four.connect(), b"four");
}
