//! `--fault`: what the server does wrong on purpose, and what its log and the conformance suite report.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    Server, assert_contains, command, echo_server, end, exchange, for_each_at_once, half_close,
    local_address, manual_block, noise, read_until_fin, receive_echo, set_read_timeout, start_tool,
    stderr_of,
};

/// Sends `bytes` to a server with this fault and returns its echo up to the server's FIN.
fn echo_until_fin(server: &Server, bytes: &[u8]) -> (TcpStream, Vec<u8>) {
    let client = server.connect_and_send(bytes);
    let echo = read_until_fin(&client);
    (client, echo)
}

#[test]
fn latency_delays_connections_side_by_side() {
    const LATENCY: Duration = Duration::from_millis(250);
    let server = Server::start(&["--fault", "latency=250ms"]);
    let clients = server.connect_many(40);
    let started = Instant::now();
    for_each_at_once(&clients, |client| {
        exchange(client, b"hello");
        assert!(started.elapsed() >= LATENCY);
    });
    let elapsed = started.elapsed();
    assert!(elapsed < LATENCY * 40, "one after the other: {elapsed:?}");
}

#[test]
fn slice_limits_the_size_of_each_write() {
    let server = Server::start(&["--fault", "slice=3", "-v"]);
    let client = server.connect_and_exchange(b"ten bytes.");
    let peer = local_address(&client);
    drop(client);
    server.wait_for_disconnect(peer);
    server.assert_log_count(3, "was sent 3 bytes");
    server.assert_log_count(1, "was sent 1 byte");
}

#[test]
fn limit_ends_the_echo_with_fin() {
    // The buffer leaves bytes unread: a close without lingering would send RST.
    let server = Server::start(&["--fault", "limit=1KiB", "--buffer-size", "1KiB"]);
    let bytes = noise(5000, 1);
    let (client, echo) = echo_until_fin(&server, &bytes);
    assert!(echo == bytes[..1024], "{} bytes", echo.len());
    let line = server.wait_for_disconnect(local_address(&client));
    assert_contains(&line, "disconnected: fault limit, 1024 bytes echoed in ");
    // A client that sends less is served as usual.
    let client = server.connect_and_exchange(&bytes[..1023]);
    half_close(&client);
    assert!(read_until_fin(&client).is_empty());
}

#[test]
fn reset_ends_the_echo_with_rst() {
    let server = Server::start(&["--fault", "reset=1KiB"]);
    let bytes = noise(5000, 2);
    let mut client = server.connect_and_send(&bytes);
    let mut echo = Vec::new();
    let error = client
        .read_to_end(&mut echo)
        .expect_err("the server resets");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(echo == bytes[..1024], "{} bytes", echo.len());
    let line = server.wait_for_log("disconnected: fault reset, ");
    assert_contains(&line, "fault reset, 1024 bytes echoed in ");
}

/// Elsewhere the system does not report acknowledgements.
#[cfg(target_os = "linux")]
#[test]
fn linux_reset_waits_until_a_slow_client_has_all_echoes() {
    let server = Server::start(&["--fault", "reset=1MiB"]);
    let bytes = noise(1_048_576, 3);
    let mut client = server.connect();
    let sender = client.try_clone().expect("the socket can be shared");
    thread::scope(|scope| {
        scope.spawn(|| crate::common::send(&sender, &bytes));
        let mut echo = Vec::new();
        let mut piece = vec![0; 65_536];
        let error = loop {
            // Slower than the server, so that the last echoes are still on their way at its end.
            thread::sleep(Duration::from_millis(5));
            match client.read(&mut piece) {
                Ok(received) => echo.extend_from_slice(&piece[..received]),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(echo == bytes, "{} bytes", echo.len());
    });
}

#[test]
fn stall_keeps_the_connection_open_without_an_echo() {
    let mut server = Server::start(&["--fault", "stall=1KiB"]);
    let bytes = noise(1_000_000, 4);
    let mut client = server.connect_and_send(&bytes);
    receive_echo(&client, &bytes[..1024]);
    set_read_timeout(&client, Duration::from_millis(200));
    let error = client.read(&mut [0]).expect_err("nothing more is sent");
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    let peer = local_address(&client);
    drop(client);
    let line = server.wait_for_disconnect(peer);
    assert_contains(
        &line,
        ": fault stall, closed by client, 1024 bytes echoed in ",
    );
    server.assert_running();
}

#[test]
fn stall_ends_with_the_idle_timeout() {
    let server = Server::start(&["--fault", "stall=0", "--idle-timeout", "100ms"]);
    assert!(read_until_fin(&server.connect()).is_empty());
    server.wait_for_log(": fault stall, idle timeout, 0 bytes echoed in ");
}

#[test]
fn stall_ends_with_shutdown() {
    let Some(mut server) = Server::start_to_signal(&["--fault", "stall=0"]) else {
        return;
    };
    let client = server.connect();
    server.wait_for_log(" connected");
    thread::scope(|scope| {
        let end = scope.spawn(|| read_until_fin(&client));
        assert_eq!(server.shut_down().code(), Some(0));
        assert!(end.join().expect("the client reads").is_empty());
    });
    server.wait_for_log(": fault stall, server shutting down, 0 bytes echoed in ");
}

#[test]
fn corrupt_flips_one_bit_of_one_byte() {
    // Buffers of 1000 bytes: the byte is in the second one.
    let server = Server::start(&["--fault", "corrupt=1024", "--buffer-size", "1000"]);
    let bytes = noise(5000, 5);
    let echo = crate::common::send_and_read_all(&server.connect(), &[&bytes]);
    assert_eq!(echo.len(), bytes.len());
    let differences: Vec<_> = (0..bytes.len()).filter(|i| bytes[*i] != echo[*i]).collect();
    assert_eq!(differences, [1024]);
    assert_eq!((bytes[1024] ^ echo[1024]).count_ones(), 1);
}

#[test]
fn faults_with_zero_bytes_need_no_data() {
    let server = Server::start(&["--fault", "limit=0"]);
    assert!(read_until_fin(&server.connect()).is_empty());
    let server = Server::start(&["--fault", "reset=0"]);
    // The reset may come before `connect` returns.
    let reset = TcpStream::connect(server.address).and_then(|mut client| client.read(&mut [0]));
    let error = reset.expect_err("the server resets");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn faults_combine_and_the_earliest_end_applies() {
    let server = Server::start(&[
        "--fault",
        "stall=20,limit=10",
        "--fault=reset=10",
        "--fault=corrupt=2,slice=4",
        "-v",
    ]);
    server.wait_for_log("WARN ] faults are on: slice=4,limit=10,reset=10,stall=20,corrupt=2");
    let (_, echo) = echo_until_fin(&server, b"a longer message");
    assert_eq!(echo, b"a monger m");
    server.wait_for_log("disconnected: fault limit, 10 bytes echoed in ");
    server.assert_log_count(2, "was sent 4 bytes");
}

#[test]
fn faults_apply_to_what_follows_a_proxy_header() {
    let server = Server::start(&["--proxy-protocol", "--fault", "limit=5,corrupt=0"]);
    let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 2000\r\nhello and more";
    let (_, echo) = echo_until_fin(&server, header);
    assert_eq!(echo, b"iello");
}

#[test]
fn the_variable_has_faults_too() {
    let mut command = crate::common::local_server();
    let server = Server::spawn(command.env("ECHO_SERVER_FAULT", "limit=3,corrupt=0"));
    let (_, echo) = echo_until_fin(&server, b"hello");
    assert_eq!(echo, b"iel");
}

#[test]
fn invalid_faults_exit_with_2_and_the_right_form() {
    for (value, form) in [
        ("", "KIND=VALUE is needed: latency=100ms"),
        ("limit", "KIND=VALUE is needed: latency=100ms"),
        ("limit=1KiB,", "KIND=VALUE is needed: latency=100ms"),
        (
            "delay=1s",
            "there is no such fault; the kinds are latency=100ms",
        ),
        ("latency=100", "did you mean 100ms?"),
        ("slice=0", "slice needs at least 1 byte, such as slice=3"),
        ("limit=-1", "such as limit=1KiB"),
        ("limit=1,stall=2,limit=1", "give each kind once"),
    ] {
        for variable in [false, true] {
            let mut server = echo_server();
            server.args(["--host", "127.0.0.1", "--port", "0"]);
            if variable {
                server.env("ECHO_SERVER_FAULT", value);
            } else {
                server.args(["--fault", value]);
            }
            assert_contains(&stderr_of(&mut server, 2), form);
        }
    }
}

#[test]
fn python_example_of_the_manual_prints_what_it_says() {
    let server = Server::start(&["--fault", "slice=3"]);
    let port = server.address.port().to_string();
    let script = manual_block("faults", "## Python", "python").replace("54000", &port);
    let mut python = command("python3");
    python.args(["-c", &script]).stdout(Stdio::piped());
    let Some(python) = start_tool(&mut python) else {
        return;
    };
    let output = String::from_utf8(end(python).stdout).expect("it prints text");
    // On a slow machine the wrong client may receive more than the first slice.
    assert!(output.starts_with("wrong: b'ten"), "{output}");
    assert!(output.ends_with("\nright: b'ten bytes.'\n"), "{output}");
}

/// Takes six seconds: in some checks the suite waits for bytes that must not arrive, or for the
/// kernel's buffers to fill.
///
/// Not on Windows: its timers are coarse, so that `latency=1ms` and `slice` take minutes.
#[cfg(all(feature = "client", not(windows)))]
#[test]
fn conformance_suite_detects_the_faults_that_lose_bytes() {
    use crate::common::conformance::failed_checks;

    const LOSSES: [&str; 3] = [
        "sizes around the edges of buffers",
        "64 MiB both ways at once",
        "half-close with megabytes pending",
    ];
    let faults: [(&str, &[&str]); 6] = [
        ("latency=1ms", &[]),
        ("slice=64KiB", &[]),
        ("limit=1KiB", &LOSSES),
        ("reset=1KiB", &LOSSES),
        ("stall=1KiB", &LOSSES),
        ("corrupt=1KiB", &LOSSES),
    ];
    for_each_at_once(faults, |(fault, expected)| {
        let server = Server::start(&["-q", "--fault", fault]);
        // Only after `stall` does a check wait until its timeout.
        let timeout = if fault == "stall=1KiB" { "3s" } else { "20s" };
        let failures = failed_checks("", server.address, timeout);
        let mut failed: Vec<&str> = failures.iter().map(|[name, ..]| &**name).collect();
        // This client sends megabytes. It fails if it still sends when the server closes.
        failed.retain(|name| *name != "a client that never reads" || expected.is_empty());
        assert_eq!(failed, expected, "{fault}: {failures:#?}");
    });
}
