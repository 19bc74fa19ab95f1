//! `echo-client bench`: what it reports about correct and broken servers, and how a run ends. No test
//! depends on the throughput, which differs from machine to machine.
#![cfg(feature = "client")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::signal::{self, Signal};
use common::{PATIENCE, Server, closed_port, echo_client, end, listen, reset};
use serde_json::Value;

/// Returns the command `echo-client bench` for a run of 0.2 s, unless the arguments have a duration.
fn bench(server: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = echo_client(server);
    command.args(["bench", "--warm-up", "0s"]);
    if !arguments.contains(&"--duration") {
        command.args(["--duration", "200ms"]);
    }
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the command and returns its stdout. Nothing may be on stderr.
fn report(command: &mut Command, code: i32) -> String {
    output_report(end(command.spawn().expect("the client starts")), code)
}

fn output_report(output: Output, code: i32) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    let (stdout, stderr) = (
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr),
    );
    assert_eq!((status.code(), &*stderr), (Some(code), ""), "{stdout}");
    stdout.into_owned()
}

fn json(report: &str) -> Value {
    serde_json::from_str(report).unwrap_or_else(|error| panic!("{error}: {report}"))
}

fn number(report: &Value, key: &str) -> f64 {
    report[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no number {key}: {report}"))
}

/// Returns the failures in a JSON report: the name of each reason and its count.
fn failures(report: &Value) -> Vec<(&str, u64)> {
    let failures = report["failures"]
        .as_array()
        .expect("the failures are a list");
    let parts = failures.iter().map(|failure| {
        let (name, _) = failure["reason"].as_str()?.split_once(": ")?;
        Some((name, failure["count"].as_u64()?))
    });
    parts
        .collect::<Option<_>>()
        .unwrap_or_else(|| panic!("a failure has no reason or no count: {report}"))
}

/// Starts a server that calls `serve` for each connection, with the number of connections before it.
fn server(serve: impl Fn(usize, TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let (listener, address) = listen();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let (serve, stream) = (serve.clone(), stream.expect("a client can be accepted"));
            thread::spawn(move || serve(number, stream));
        }
    });
    address
}

/// Echoes messages of 64 bytes until the client disconnects. Before each echo it calls `change` with
/// the number of messages before it, and the message. If that returns false, it stops.
fn echo(stream: &mut TcpStream, mut change: impl FnMut(usize, &mut [u8; 64]) -> bool) {
    let mut message = [0; 64];
    for number in 0.. {
        if stream.read_exact(&mut message).is_err() || !change(number, &mut message) {
            return;
        }
        if stream.write_all(&message).is_err() {
            return;
        }
    }
}

#[test]
fn round_trips_are_counted_and_timed() {
    let server = Server::start(&["-q"]);
    let options = ["--json", "--connections", "3", "--timeout", "20s"];
    let report = json(&report(&mut bench(server.address, &options), 0));
    assert_eq!(report["server"], server.address.to_string());
    assert_eq!(
        (&report["mode"], &report["connections"]),
        (&"rtt".into(), &3.into())
    );
    assert_eq!(
        (&report["size_bytes"], &report["warm_up_s"]),
        (&64.into(), &0.0.into())
    );
    assert!(
        (0.199..0.201).contains(&number(&report, "measured_s")),
        "{report}"
    );
    assert!(number(&report, "messages") > 0.0 && number(&report, "messages_per_s") > 0.0);
    assert!((number(&report, "bytes") - number(&report, "messages") * 64.0).abs() < 0.5);
    let keys = ["p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"];
    let latencies = keys.map(|key| number(&report, key));
    assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{report}");
    assert_eq!(failures(&report), []);
}

#[test]
fn warm_up_precedes_the_measurement_and_is_not_counted() {
    // The server echoes at most 20 messages per second.
    let address = server(|_, mut stream| {
        echo(&mut stream, |_, _| {
            thread::sleep(Duration::from_millis(50));
            true
        });
    });
    let mut command = echo_client(address);
    command.args(["bench", "--json", "--warm-up", "600ms"]);
    command.args(["--duration", "300ms"]);
    let begin = Instant::now();
    let report = json(&report(
        command.stdout(Stdio::piped()).stderr(Stdio::piped()),
        0,
    ));
    assert!(
        begin.elapsed() >= Duration::from_millis(900),
        "{:?}",
        begin.elapsed()
    );
    assert!(
        (1.0..=7.0).contains(&number(&report, "messages")),
        "{report}"
    );
}

#[test]
fn messages_may_have_any_size() {
    for (size, bytes) in [
        ("1", 1),
        ("1000", 1000),
        ("64KiB", 65_536),
        ("5MiB", 5_242_880),
    ] {
        let server = Server::start(&[]);
        let options = [
            "--json",
            "--connections",
            "2",
            "--size",
            size,
            "--timeout",
            "20s",
        ];
        // A long message may take longer than the run. It is measured all the same.
        let report = json(&report(&mut bench(server.address, &options), 0));
        assert!(number(&report, "max_us") > 0.0, "{report}");
        assert_eq!(failures(&report), []);
        for line in server.wait_for_logs(2, " disconnected: closed by client, ") {
            let echoed = line
                .split(", ")
                .nth(1)
                .and_then(|part| part.split(' ').next());
            let echoed: usize = echoed
                .and_then(|n| n.parse().ok())
                .expect("a number of bytes");
            assert_eq!(echoed % bytes, 0, "{line}");
        }
    }
}

#[test]
fn bulk_has_throughput_and_no_latency() {
    let server = Server::start(&["-q"]);
    for size in ["7", "64KiB", "1MiB"] {
        let options = [
            "--json",
            "--mode",
            "bulk",
            "--connections",
            "2",
            "--size",
            size,
        ];
        let options = [&options[..], &["--timeout", "20s"]].concat();
        let report = json(&report(&mut bench(server.address, &options), 0));
        assert!(number(&report, "bytes") > 0.0 && number(&report, "bytes_per_s") > 0.0);
        assert!(
            report["p50_us"].is_null() && report["messages"].is_null(),
            "{report}"
        );
        assert_eq!(failures(&report), []);
    }
}

#[test]
fn connections_are_counted_and_timed() {
    let server = Server::start(&["-q"]);
    let options = [
        "--json",
        "--mode",
        "connect",
        "--connections",
        "2",
        "--timeout",
        "20s",
    ];
    let report = json(&report(&mut bench(server.address, &options), 0));
    assert!(
        number(&report, "messages") > 0.0 && number(&report, "max_us") > 0.0,
        "{report}"
    );
    assert_eq!(failures(&report), []);
}

#[test]
fn no_connection_is_closed_with_rst() {
    for mode in ["rtt", "bulk", "connect"] {
        let Some(mut server) = Server::start_to_signal(&[]) else {
            return;
        };
        report(
            &mut bench(server.address, &["--mode", mode, "--timeout", "20s"]),
            0,
        );
        assert_eq!(server.shut_down().code(), Some(0));
        let log = server.rest_of_log().join("\n");
        assert!(
            log.contains("closed by client") && !log.contains("reset"),
            "{mode}: {log}"
        );
    }
}

#[test]
fn report_has_its_rows() {
    let server = Server::start(&["-q"]);
    for (mode, rows) in [
        (
            "rtt",
            &[
                "messages ",
                "/s",
                "p50 ",
                "p90 ",
                "p99 ",
                "p99.9 ",
                "max ",
                "█",
            ][..],
        ),
        ("bulk", &["/s", "not measured in bulk"]),
        ("connect", &["connected ", "/s", "p50 ", "max ", "█"]),
    ] {
        let report = report(
            &mut bench(server.address, &["--mode", mode, "--timeout", "20s"]),
            0,
        );
        assert!(
            report.starts_with(&format!("{mode} on {}: ", server.address)),
            "{report}"
        );
        assert!(
            report.contains("connections  1 ") && report.contains("echoed "),
            "{report}"
        );
        for row in rows {
            assert!(report.contains(row), "{row}: {report}");
        }
        assert!(!report.contains("failures"), "{report}");
    }
}

#[test]
fn wrong_byte_is_counted_and_other_connections_go_on() {
    let flip = server(|connection, mut stream| {
        echo(&mut stream, |number, message| {
            message[63] ^= u8::from(connection == 0 && number == 3);
            true
        });
    });
    let options = [
        "--json",
        "--connections",
        "3",
        "--timeout",
        "20s",
        "--duration",
        "600ms",
    ];
    let report = json(&report(&mut bench(flip, &options), 1));
    assert_eq!(failures(&report), [("wrong bytes", 1)]);
    assert!(number(&report, "messages") > 3.0, "{report}");
}

#[test]
fn stale_or_shifted_echo_is_wrong_in_every_mode() {
    let stale = server(|_, mut stream| {
        let mut last = [0; 64];
        echo(&mut stream, |_, message| {
            std::mem::swap(&mut last, message);
            true
        });
    });
    let shifted = server(|_, mut stream| {
        echo(&mut stream, |_, message| {
            message.rotate_left(1);
            true
        });
    });
    for server in [stale, shifted] {
        for mode in ["rtt", "bulk", "connect"] {
            let options = ["--json", "--mode", mode, "--timeout", "20s"];
            let report = json(&report(&mut bench(server, &options), 1));
            assert_eq!(failures(&report)[0].0, "wrong bytes", "{report}");
        }
    }
}

#[test]
fn lost_connections_are_counted_and_others_go_on() {
    let server = server(|connection, mut stream| {
        echo(&mut stream, |number, _| connection >= 3 || number < 5);
        match connection {
            0 => reset(stream),
            // All bytes have been read, so the system sends FIN instead of RST.
            1 | 2 => drop(stream),
            _ => {}
        }
    });
    let options = [
        "--connections",
        "5",
        "--timeout",
        "20s",
        "--duration",
        "600ms",
    ];
    let report = report(&mut bench(server, &options), 1);
    let failures = report
        .split_once("\nfailures\n")
        .expect("the report has the failures")
        .1;
    assert!(failures.contains("   2 closed: "), "{report}");
    assert!(failures.contains("   1 reset: "), "{report}");
    assert!(report.contains("p50 "), "{report}");
}

/// Both threads of a connection may get the error first, so one connection would prove little.
#[test]
fn reset_in_bulk_mode_is_reported_as_a_reset() {
    let server = server(|_, mut stream| {
        stream
            .read_exact(&mut vec![0; 1_000_000])
            .expect("the client sends");
        reset(stream);
    });
    let options = [
        "--json",
        "--mode",
        "bulk",
        "--connections",
        "20",
        "--timeout",
        "20s",
    ];
    let report = json(&report(&mut bench(server, &options), 1));
    assert_eq!(failures(&report), [("reset", 20)]);
}

#[test]
fn run_ends_when_all_connections_are_lost() {
    let server = server(|_, _| {});
    let options = ["--json", "--connections", "4", "--duration", "1h"];
    for mode in ["rtt", "bulk"] {
        let options = [&options[..], &["--mode", mode]].concat();
        let report = json(&report(&mut bench(server, &options), 1));
        assert_eq!(
            failures(&report)
                .iter()
                .map(|(_, count)| count)
                .sum::<u64>(),
            4,
            "{report}"
        );
    }
}

#[test]
fn connect_mode_counts_a_failure_and_tries_again() {
    let server = server(|connection, mut stream| {
        echo(&mut stream, |_, _| connection % 2 == 0);
    });
    let options = [
        "--json",
        "--mode",
        "connect",
        "--timeout",
        "20s",
        "--duration",
        "600ms",
    ];
    let report = json(&report(&mut bench(server, &options), 1));
    assert!(number(&report, "messages") > 0.0, "{report}");
    assert_eq!(failures(&report)[0].0, "closed", "{report}");
}

#[test]
fn connect_mode_has_a_timeout_for_each_connection() {
    let server = server(|connection, mut stream| {
        // The client makes connection 0 only to check that a server listens.
        if connection == 1 {
            let _ = stream.read_to_end(&mut Vec::new());
        } else {
            echo(&mut stream, |_, _| {
                thread::sleep(Duration::from_millis(100));
                true
            });
        }
    });
    let options = [
        "--json",
        "--mode",
        "connect",
        "--timeout",
        "500ms",
        "--duration",
        "1200ms",
    ];
    let report = json(&report(&mut bench(server, &options), 1));
    assert_eq!(failures(&report), [("timeout", 1)]);
    assert!(number(&report, "messages") > 0.0, "{report}");
}

#[test]
fn slow_server_that_keeps_echoing_is_no_timeout() {
    let server = server(|_, mut stream| {
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut piece) {
            thread::sleep(Duration::from_millis(20));
            if stream.write_all(&piece[..n]).is_err() {
                return;
            }
        }
    });
    let options = [
        "--json",
        "--mode",
        "bulk",
        "--timeout",
        "500ms",
        "--duration",
        "1500ms",
    ];
    let report = json(&report(&mut bench(server, &options), 0));
    assert!(number(&report, "bytes") > 0.0, "{report}");
}

#[test]
fn silent_server_is_a_timeout() {
    let server = server(|_, mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    for mode in ["rtt", "bulk", "connect"] {
        let options = ["--json", "--mode", mode, "--timeout", "100ms"];
        let report = json(&report(&mut bench(server, &options), 1));
        assert_eq!(failures(&report)[0].0, "timeout", "{report}");
    }
}

#[test]
fn refused_connection_is_one_error_line() {
    let (_socket, address) = closed_port();
    let output = end(bench(address, &[]).spawn().expect("the client starts"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), output.stdout.len()),
        (Some(1), 0),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.contains(&format!("cannot connect to {address}")),
        "{stderr}"
    );
}

#[test]
fn bad_arguments_are_errors_that_name_the_option() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    for (flag, value, advice) in [
        ("--connections", "0", "not in 1..=65535"),
        ("--connections", "many", "invalid digit"),
        ("--size", "0", "from 1 byte to 16MiB"),
        ("--size", "17MiB", "from 1 byte to 16MiB"),
        ("--duration", "0s", "from 1ms to 24h"),
        ("--duration", "5", "such as 500ms"),
        ("--mode", "udp", "rtt"),
    ] {
        let output = end(bench(nowhere, &[flag, value])
            .spawn()
            .expect("the client starts"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), output.stdout.len()),
            (Some(2), 0),
            "{stderr}"
        );
        assert!(
            stderr.contains(flag) && stderr.contains(advice),
            "{flag} {value}: {stderr}"
        );
    }
}

#[test]
fn closed_stdout_ends_the_run_without_a_message() {
    let server = Server::start(&["-q"]);
    for format in ["--json", "--mode=rtt"] {
        let mut client = bench(server.address, &[format])
            .spawn()
            .expect("the client starts");
        drop(client.stdout.take());
        assert_eq!(output_report(end(client), 1), "");
    }
}

/// Starts a server that sends a notification when it has received `count` messages on one
/// connection. It echoes them if `echoes` is true.
fn notifying_server(count: usize, echoes: bool) -> (SocketAddr, mpsc::Receiver<()>) {
    let (sender, receiver) = mpsc::channel();
    let address = server(move |_, mut stream| {
        echo(&mut stream, |number, _| {
            if number + 1 == count {
                sender.send(()).expect("the test waits");
            }
            echoes
        });
        let _ = stream.read_to_end(&mut Vec::new());
    });
    (address, receiver)
}

#[test]
fn ctrl_c_ends_the_run_early_with_a_report() {
    if !signal::can_be_sent() {
        return;
    }
    let (server, received) = notifying_server(50, true);
    let client = bench(server, &["--json", "--duration", "1h"])
        .spawn()
        .expect("the client starts");
    received
        .recv_timeout(PATIENCE)
        .expect("the messages arrive");
    signal::send(&client, Signal::INT);
    let report = json(&output_report(end(client), 0));
    assert!(number(&report, "messages") >= 49.0, "{report}");
    assert!(
        number(&report, "measured_s") < PATIENCE.as_secs_f64(),
        "{report}"
    );
    assert_eq!(failures(&report), []);
}

#[test]
fn ctrl_c_does_not_wait_for_a_missing_echo() {
    if !signal::can_be_sent() {
        return;
    }
    for mode in ["rtt", "bulk", "connect"] {
        let (server, received) = notifying_server(1, false);
        let options = ["--duration", "1h", "--timeout", "1h", "--mode", mode];
        let client = bench(server, &options).spawn().expect("the client starts");
        received.recv_timeout(PATIENCE).expect("a message arrives");
        signal::send(&client, Signal::INT);
        let report = output_report(end(client), 0);
        assert!(report.contains("not measured"), "{report}");
    }
}

/// Starts a server that echoes one byte every 30 ms, so that no single read times out. It sends a
/// notification after each byte.
fn byte_by_byte_server() -> (SocketAddr, mpsc::Receiver<()>) {
    let (byte_sent, first_byte) = mpsc::channel();
    let address = server(move |_, mut stream| {
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {
            let _ = byte_sent.send(());
            thread::sleep(Duration::from_millis(30));
        }
    });
    (address, first_byte)
}

#[test]
fn ctrl_c_does_not_wait_for_a_message_that_arrives_slowly() {
    if !signal::can_be_sent() {
        return;
    }
    for mode in ["rtt", "connect"] {
        let (server, first_byte) = byte_by_byte_server();
        let options = ["--size", "64KiB", "--duration", "1h", "--mode", mode];
        let client = bench(server, &options).spawn().expect("the client starts");
        first_byte.recv_timeout(PATIENCE).expect("a byte is echoed");
        signal::send(&client, Signal::INT);
        let report = output_report(end(client), 0);
        assert!(report.contains("not measured"), "{report}");
    }
}

/// Takes over a second: a timeout for each mode. A shorter one would be too short on a busy machine.
#[test]
fn run_ends_in_time_if_a_message_arrives_slowly() {
    let (server, _first_byte) = byte_by_byte_server();
    for mode in ["rtt", "connect"] {
        let options = [
            "--json",
            "--size",
            "64KiB",
            "--timeout",
            "500ms",
            "--mode",
            mode,
        ];
        let report = json(&report(&mut bench(server, &options), 1));
        assert_eq!(failures(&report), [("timeout", 1)]);
    }
}

/// Only Unix lets a test give a program a pipe that is full.
#[test]
#[cfg(unix)]
fn first_ctrl_c_after_the_run_ends_the_client() {
    let (closed, wait_for_close) = mpsc::channel();
    let server = server(move |_, mut stream| {
        echo(&mut stream, |_, _| true);
        let _ = closed.send(());
    });
    let (_reader, mut stdout) = std::io::pipe().expect("a pipe can be created");
    let mut command = bench(server, &[]);
    command.stdout(stdout.try_clone().expect("the pipe can be duplicated"));
    thread::spawn(move || while stdout.write_all(&[0; 4096]).is_ok() {});
    let client = command.spawn().expect("the client starts");
    wait_for_close.recv_timeout(PATIENCE).expect("the run ends");
    // No event shows that the client has started to write its report.
    thread::sleep(Duration::from_millis(200));
    signal::send(&client, Signal::INT);
    assert_eq!(output_report(end(client), 130), "");
}

/// Clients that connect to a full listen backlog delay the end of the run: the kernel drops their
/// packets, and they retry.
#[test]
#[cfg(target_os = "linux")]
fn second_ctrl_c_ends_the_run_at_once() {
    let (socket, address) = closed_port();
    socket.listen(0).expect("the socket can listen");
    let listener = std::net::TcpListener::from(socket);
    let options = ["--connections", "8", "--timeout", "1h"];
    let mut client = bench(address, &options).spawn().expect("the client starts");
    let _first = common::accept(&listener);
    let deadline = Instant::now() + PATIENCE;
    // The client may see two signals in quick succession as one.
    while client.try_wait().expect("the status can be read").is_none() && Instant::now() < deadline
    {
        signal::send(&client, Signal::INT);
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(output_report(end(client), 130), "");
}

/// Only Unix lets a test limit the open files of a program.
#[test]
#[cfg(unix)]
fn connections_without_a_file_are_counted_and_others_go_on() {
    let server = Server::start(&["-q"]);
    let port = server.address.port().to_string();
    let mut client = common::command("sh");
    client.args([
        "-c",
        "ulimit -n 30 && exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_echo-client"),
    ]);
    client.args([
        "bench",
        "--json",
        "--port",
        &port,
        "--connections",
        "60",
        "--timeout",
        "20s",
    ]);
    client.args(["--duration", "200ms", "--warm-up", "0s"]);
    client.stdout(Stdio::piped()).stderr(Stdio::piped());
    let report = json(&report(&mut client, 1));
    assert!(number(&report, "messages") > 0.0, "{report}");
    assert!(
        matches!(failures(&report)[..], [("no free file", 30..60)]),
        "{report}"
    );
}
