//! `--proxy-protocol`: the PROXY protocol header, with which a load balancer sends the client's
//! address.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    Server, exchange, half_close, local_address, local_server, read_until_fin, retry_if_late,
    run_at_once, send, set_read_timeout,
};
use proxy_header::{ProxiedAddress, ProxyHeader};

const V1: &[u8] = b"PROXY TCP4 198.51.100.7 192.0.2.1 4321 54000\r\n";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

fn start(arguments: &[&str]) -> Server {
    Server::start(&[&["--proxy-protocol"], arguments].concat())
}

/// Returns a header of version 2 for a client at `source`.
fn v2(source: &str) -> Vec<u8> {
    let source = source.parse().expect("a socket address");
    let mut header = Vec::new();
    let address = ProxiedAddress::stream(source, source);
    ProxyHeader::with_address(address)
        .encode_v2(&mut header)
        .expect("the header can be encoded");
    header
}

/// Sends `header` and "hello" at once, and returns the echo.
fn echo_after(server: &Server, header: &[u8]) -> Vec<u8> {
    let client = server.connect_and_send(&[header, b"hello"].concat());
    half_close(&client);
    read_until_fin(&client)
}

#[test]
fn log_has_the_clients_address_and_the_header_is_not_echoed() {
    let v6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 4321 54000\r\n";
    let with_tlv = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10"[..],
        &[203, 0, 113, 9, 192, 0, 2, 1],
    ];
    let with_tlv = [
        &with_tlv.concat()[..],
        &[0x10, 0xE1, 0xD2, 0xF0, 0xEE, 0, 1, b'x'],
    ]
    .concat();
    for (header, client) in [
        (V1, "198.51.100.7:4321"),
        (v6, "[2001:db8::7]:4321"),
        (&v2("198.51.100.7:4321"), "198.51.100.7:4321"),
        (&v2("[2001:db8::7]:4321"), "[2001:db8::7]:4321"),
        (&v2("[::ffff:198.51.100.7]:4321"), "198.51.100.7:4321"),
        (&with_tlv, "203.0.113.9:4321"),
    ] {
        // A server of its own: some clients have the same address.
        let server = start(&[]);
        assert_eq!(echo_after(&server, header), b"hello", "{client}");
        server.wait_for_log(&format!("{client} connected via 127.0.0.1:"));
        server.wait_for_log(&format!(
            "{client} disconnected: closed by client, 5 bytes echoed"
        ));
    }
}

#[test]
fn connection_of_the_load_balancer_keeps_its_own_address() {
    let server = start(&[]);
    for header in [
        LOCAL,
        // The addresses in such a header are ignored, valid or not.
        b"\r\n\r\n\0\r\nQUIT\n\x20\x11\x00\x00",
        b"\r\n\r\n\0\r\nQUIT\n\x20\x31\x00\x03abc",
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
    ] {
        let client = server.connect_and_send(header);
        exchange(&client, b"hello");
        let address = local_address(&client);
        let line = server.wait_for_log(&format!("{address} connected"));
        assert!(line.ends_with(" connected"), "{line}");
    }
}

#[test]
fn header_may_arrive_in_pieces_with_any_buffer_size() {
    for buffer_size in ["1", "7", "64KiB"] {
        let server = start(&["--buffer-size", buffer_size]);
        for header in [V1, &v2("198.51.100.7:4321")] {
            let client = server.connect();
            for byte in [header, b"hello"].concat() {
                send(&client, &[byte]);
            }
            half_close(&client);
            assert_eq!(read_until_fin(&client), b"hello");
        }
        server.wait_for_logs(2, "198.51.100.7:4321 connected via ");
    }
}

#[test]
fn connection_without_a_header_is_closed_and_logged() {
    let server = start(&[]);
    // Version 1 has at most 107 bytes, and of version 2 at most 4096 are accepted.
    let long_v1 = [&b"PROXY UNKNOWN "[..], &[b'x'; 107]].concat();
    let long_v2 = [&b"\r\n\r\n\0\r\nQUIT\n\x20\0\x10\0"[..], &[b'x'; 4096]].concat();
    for (number, bytes) in [
        b"GET / HTTP/1.1\r\n\r\n",
        &b"hello"[..],
        b"PROXY TCP4 198.51.100.7 192.0.2.1 4321 65536\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 4321 54000\r\n",
        b"PROXY UDP4 198.51.100.7 192.0.2.1 4321 54000\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0C............",
        &long_v1,
        &long_v2,
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = server.connect_and_send(bytes);
        let mut echo = Vec::new();
        // FIN, or RST if the server has not read everything.
        let _ = client.read_to_end(&mut echo);
        assert!(echo.is_empty(), "{} was echoed", echo.escape_ascii());
        server.wait_for_logs(
            number + 1,
            "disconnected: invalid PROXY header (missing, malformed or too long), 0 bytes",
        );
    }
}

#[test]
fn connection_that_ends_within_the_header_is_logged_as_such() {
    let server = start(&[]);
    for (number, bytes) in [&b""[..], &V1[..20], &LOCAL[..13]].into_iter().enumerate() {
        let client = server.connect_and_send(bytes);
        half_close(&client);
        assert_eq!(read_until_fin(&client), b"");
        server.wait_for_logs(
            number + 1,
            "invalid PROXY header (closed by client before it was complete)",
        );
    }
}

/// Takes five seconds, because the server has no option for the timeout of the header.
#[test]
fn header_has_a_timeout_and_its_bytes_restart_the_idle_timeout() {
    run_at_once(&[
        connection_is_closed_if_no_header_arrives_in_five_seconds,
        bytes_of_a_header_restart_the_idle_timeout,
    ]);
}

fn connection_is_closed_if_no_header_arrives_in_five_seconds() {
    let server = start(&[]);
    let begin = Instant::now();
    let silent = server.connect();
    let slow = server.connect();
    thread::scope(|scope| {
        // Each byte arrives in time, but the header as a whole does not.
        scope.spawn(|| send_slowly(&slow, V1));
        assert_eq!(read_until_fin(&silent), b"");
    });
    server.wait_for_logs(2, "invalid PROXY header (incomplete after 5s)");
    assert!(
        begin.elapsed() >= Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}

/// Sends a byte every 400 ms until the server closes the connection.
fn send_slowly(mut client: &TcpStream, bytes: &[u8]) {
    set_read_timeout(client, Duration::from_millis(400));
    for byte in bytes {
        let closed = client.write_all(&[*byte]).is_err() || client.read(&mut [0]).is_ok();
        if closed {
            return;
        }
    }
    panic!("the server does not close the connection");
}

/// The header takes longer than the idle timeout.
fn bytes_of_a_header_restart_the_idle_timeout() {
    // Steps that are all shorter than this limit send the whole header within its own timeout of 5 s.
    retry_if_late(Duration::from_millis(250), |pace| {
        let server = start(&["--idle-timeout", "1s"]);
        pace.step();
        let client = server.connect();
        for piece in V1.chunks(3) {
            pace.step();
            thread::sleep(Duration::from_millis(100));
            send(&client, piece);
        }
        pace.step();
        exchange(&client, b"hello");
    });
}

#[test]
fn without_the_option_a_header_is_echoed() {
    let server = Server::start(&[]);
    assert_eq!(echo_after(&server, V1), [V1, b"hello"].concat());
    server.wait_for_log("closed by client");
    server.assert_log_count(0, "198.51.100.7");
}

#[test]
fn per_ip_limit_applies_to_the_address_in_the_header() {
    let server = start(&["--max-connections-per-ip", "1"]);
    let connect_as = |source: &str| server.connect_and_send(&v2(source));
    let first = connect_as("198.51.100.7:1");
    exchange(&first, b"hello");
    assert_eq!(read_until_fin(&connect_as("198.51.100.7:2")), b"");
    server.wait_for_log("per-IP limit reached for 198.51.100.7 (1): rejecting its new connections");
    exchange(&connect_as("198.51.100.8:1"), b"hello");
}

#[test]
fn proxy_protocol_can_be_set_in_the_environment() {
    for (value, echo) in [("true", &b"hello"[..]), ("0", &[V1, b"hello"].concat())] {
        let server = Server::spawn(local_server().env("ECHO_SERVER_PROXY_PROTOCOL", value));
        assert_eq!(echo_after(&server, V1), echo, "{value}");
    }
}

#[test]
#[cfg(unix)]
fn shutdown_does_not_wait_for_a_header() {
    let mut server = start(&["--shutdown-timeout", "1h"]);
    let client = server.connect_and_send(&V1[..10]);
    let silent = server.connect();
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(read_until_fin(&client), b"");
    assert_eq!(read_until_fin(&silent), b"");
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_log("shut down: 0 clients served, 0 forcibly closed, 0 bytes echoed");
}
