//! Whatever a client sends comes back, byte for byte and in order, however it was cut.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use common::{
    Server, echo_server, exchange, fill, half_close, local_address, noise, read_until_fin, reset,
    send_and_read_all,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

#[test]
fn every_byte_value_comes_back() {
    let server = Server::start(&[]);
    let all: Vec<u8> = (0..=255).collect();
    exchange(&server.connect(), &all);
}

#[test]
fn random_bytes_in_random_chunks_come_back() {
    let server = Server::start(&[]);
    let chunks = prop::collection::vec(prop::collection::vec(any::<u8>(), 1..5_000), 1..20);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..Default::default()
    });
    runner
        .run(&chunks, |chunks| {
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            prop_assert!(send_and_read_all(&server.connect(), &chunks) == chunks.concat());
            Ok(())
        })
        .expect("every stream comes back");
}

#[test]
fn many_megabytes_in_random_chunks_come_back() {
    let server = Server::start(&[]);
    let sizes = prop::collection::vec(1_usize..1_000_000, 20..30);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 3,
        failure_persistence: None,
        ..Default::default()
    });
    runner
        .run(&sizes, |sizes| {
            let bytes = noise(sizes.iter().sum(), 1);
            let mut rest = bytes.as_slice();
            let chunks: Vec<&[u8]> = sizes
                .iter()
                .map(|size| rest.split_off(..*size).expect("the sizes add up"))
                .collect();
            prop_assert!(send_and_read_all(&server.connect(), &chunks) == bytes);
            Ok(())
        })
        .expect("every stream comes back");
}

#[test]
fn a_client_that_is_looked_for_gets_every_byte_back() {
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
fn sizes_around_the_buffers_edge_come_back_whatever_the_buffer() {
    for buffer in ["1", "7", "4096", "64KiB", "1MiB"] {
        let server = Server::start(&["--buffer-size", buffer]);
        let client = server.connect();
        for size in [1, 2, 6, 7, 8, 4095, 4096, 4097, 65535, 65536, 65537] {
            exchange(&client, &noise(size, 2));
        }
    }
}

#[test]
fn the_powershell_one_liner_gets_its_line_back() {
    // What the README's one-liner sends: the bytes of "hello" and CR LF; and it reads one line.
    let server = Server::start(&[]);
    let mut client = server.connect();
    client.write_all(b"hello\r\n").expect("the line is sent");
    let mut line = [0; 7];
    client.read_exact(&mut line).expect("the line comes back");
    assert_eq!(&line, b"hello\r\n");
}

#[test]
fn an_urgent_byte_comes_back_among_the_others() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    client.write_all(b"abc").expect("the bytes are sent");
    socket2::SockRef::from(&client)
        .send_out_of_band(b"!")
        .expect("the byte is sent");
    assert_eq!(send_and_read_all(&client, &[b"def"]), b"abc!def");
}

#[test]
fn a_message_without_a_newline_comes_back_at_once() {
    let server = Server::start(&[]);
    let client = server.connect();
    exchange(&client, b"no newline");
    exchange(&client, b"n");
}

#[test]
fn a_client_that_half_closes_at_once_gets_fin_and_no_byte() {
    let server = Server::start(&[]);
    let client = server.connect();
    half_close(&client);
    assert_eq!(read_until_fin(&client), b"");
}

#[test]
fn a_client_that_sends_20_mb_and_half_closes_and_reads_late_gets_every_byte_then_fin() {
    let server = Server::start(&[]);
    let client = server.connect();
    // It does not read before every buffer on the way is full: server and client are both stuck.
    let stuck = fill(&client);
    let rest = noise(20_000_000 - stuck.len(), 3);
    let echo = send_and_read_all(&client, &[&rest]);
    assert!(
        echo == [stuck, rest].concat(),
        "{} bytes came back",
        echo.len()
    );
    let departure = server.wait_for_disconnect(local_address(&client));
    assert!(
        departure.contains("closed by client, 20000000 bytes echoed"),
        "{departure}"
    );
}

#[test]
fn two_hundred_clients_at_once_are_all_served_each_by_its_own_thread() {
    let server = Server::start(&[]);
    let clients: Vec<TcpStream> = (0..200).map(|_| server.connect()).collect();
    for (number, client) in clients.iter().enumerate() {
        exchange(client, &noise(1000, number as u64));
    }
    #[cfg(target_os = "linux")]
    assert_eq!(
        server.threads(),
        200 + 3,
        "one for each client, the main thread, Ctrl+C's and the log's"
    );
    for (number, client) in clients.iter().enumerate().rev() {
        let message = noise(1000, 1000 + number as u64);
        assert!(send_and_read_all(client, &[&message]) == message);
    }
    server.wait_for_logs(200, "disconnected: closed by client, 2000 bytes echoed");
}

#[test]
fn clients_that_stream_at_once_each_get_their_own_bytes() {
    let server = Server::start(&[]);
    thread::scope(|scope| {
        for number in 0..16 {
            let server = &server;
            scope.spawn(move || {
                let message = noise(1_000_000, number);
                assert!(send_and_read_all(&server.connect(), &[&message]) == message);
            });
        }
    });
}

#[test]
fn a_reset_in_the_middle_of_a_stream_is_logged_as_one_and_harms_nobody_else() {
    let server = Server::start(&[]);
    let neighbour = server.connect();
    let rude = server.connect();
    let address = local_address(&rude);
    // The server has more to write, and cannot but meet the reset. One that came while it waits for
    // bytes would be told as their end by Wine.
    fill(&rude);
    reset(rude);
    let departure = server.wait_for_disconnect(address);
    assert!(departure.contains("reset by client"), "{departure}");
    exchange(&neighbour, b"after");
}

#[test]
fn the_ipv6_wildcard_serves_both_versions_and_tells_an_ipv4_peer_plainly() {
    let mut command = echo_server();
    let server = Server::spawn(command.args(["--host", "::", "--port", "0"]));
    assert!(
        server.ready_line.starts_with("Server listening on [::]:"),
        "{}",
        server.ready_line
    );
    let port = server.address.port();
    for host in ["127.0.0.1", "::1"] {
        let client =
            common::connect((host.parse::<std::net::IpAddr>().expect("it is one"), port).into());
        exchange(&client, host.as_bytes());
        let address = local_address(&client);
        server.wait_for_log(&format!("{address} connected"));
    }
}

#[test]
fn an_ipv6_address_other_than_the_wildcard_does_not_take_the_port_of_ipv4() {
    // In this order: on 127.0.0.1 other tests have ports, and on ::1 none has.
    let four = Server::start(&[]);
    let port = four.address.port().to_string();
    let mut command = echo_server();
    let six = Server::spawn(command.args(["--host", "::1", "--port", &port]));
    exchange(&six.connect(), b"six");
    exchange(&four.connect(), b"four");
}
