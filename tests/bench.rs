//! `echo-client bench`: what it reports about correct and broken servers, and how a run ends. No test
//! depends on the throughput, which differs from machine to machine.
#![cfg(feature = "client")]

use crate::common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::signal::{self, Signal};
use crate::common::{
    PATIENCE, Server, assert_contains, closed_port, echo_client, end, for_each_at_once, listen,
    reset, run_at_once, stdout_of, stdout_text,
};
#[cfg(target_os = "linux")]
use crate::output::unix::full_pipe;
use serde_json::Value;
use socket2::SockRef;

/// Returns the command `echo-client bench` for a run of 0.2 s without a warm-up, unless the arguments
/// say otherwise.
fn bench(server: SocketAddr, arguments: &str) -> Command {
    bench_command(echo_client(server), "200ms", arguments)
}

/// Returns the command `echo-client bench` for these addresses, with rounds of 50 ms, unless the
/// arguments have a duration.
fn bench_addresses(addresses: &[String], arguments: &str) -> Command {
    let mut command = bench_command(common::default_client(), "50ms", arguments);
    command.args(addresses);
    command
}

fn bench_command(mut command: Command, duration: &str, arguments: &str) -> Command {
    command.arg("bench");
    let defaults = [
        ("--warm-up", "0s"),
        ("--duration", duration),
        ("--timeout", "20s"),
    ];
    for (option, value) in defaults {
        if !arguments.contains(option) {
            command.args([option, value]);
        }
    }
    command
        .args(arguments.split_whitespace())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the command and returns its stdout. Nothing may be on stderr.
fn run_text(mut command: Command, code: i32) -> String {
    stdout_of(&mut command, code)
}

fn run_json(command: Command, code: i32) -> Value {
    parse_json(&run_text(command, code))
}

fn start(mut command: Command) -> Child {
    command.spawn().expect("the client starts")
}

fn parse_json(report: &str) -> Value {
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

/// Starts a server that sends a notification when it has received `count` bytes on all connections. It
/// echoes them if `echoes` is true.
fn notifying_server(count: usize, echoes: bool) -> (SocketAddr, mpsc::Receiver<()>) {
    let (sender, receiver) = mpsc::channel();
    let total = Arc::new(AtomicUsize::new(0));
    let address = server(move |_, mut stream| {
        // With a small buffer, most of what the server has sent has reached the client.
        let _ = SockRef::from(&stream).set_send_buffer_size(4096);
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut piece) {
            if echoes && stream.write_all(&piece[..n]).is_err() {
                return;
            }
            let before = total.fetch_add(n, SeqCst);
            if (before..before + n).contains(&(count - 1)) {
                sender.send(()).expect("the test waits");
            }
        }
    });
    (address, receiver)
}

/// Starts a run, presses Ctrl+C at the event, and returns the report.
///
/// A run of a fixed duration may measure nothing: a busy machine can delay a program for all of it.
fn interrupt_at(event: &mpsc::Receiver<()>, command: Command, code: i32) -> String {
    let client = start(command);
    event.recv_timeout(PATIENCE).expect("the event occurs");
    signal::send(&client, Signal::INT);
    stdout_text(end(client), code)
}

#[test]
fn round_trips_are_counted_and_timed() {
    if !signal::can_be_sent() {
        return;
    }
    let (server, received) = notifying_server(50 * 64, true);
    let begin = Instant::now();
    let options = "--json --connections 3 --duration 1h";
    let report = parse_json(&interrupt_at(&received, bench(server, options), 0));
    assert_eq!(report["server"], server.to_string());
    assert_eq!(
        (&report["mode"], &report["connections"]),
        (&"rtt".into(), &3.into())
    );
    assert_eq!(
        (&report["size_bytes"], &report["warm_up_s"]),
        (&64.into(), &0.0.into())
    );
    let measured = number(&report, "measured_s");
    assert!(
        measured > 0.0 && measured < begin.elapsed().as_secs_f64(),
        "{report}"
    );
    // The echoes of the last messages may not have arrived.
    assert!(number(&report, "messages") >= 47.0, "{report}");
    assert!(number(&report, "messages_per_s") > 0.0, "{report}");
    assert!((number(&report, "bytes") - number(&report, "messages") * 64.0).abs() < 0.5);
    let keys = ["p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"];
    let latencies = keys.map(|key| number(&report, key));
    assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{report}");
    assert_eq!(failures(&report), []);
}

/// Takes five seconds: a server that is slower than the timeout as a whole, but not in each step. The
/// timeouts are longer than a busy machine may delay a program.
#[test]
fn timeouts_and_the_warm_up_are_as_long_as_they_say() {
    run_at_once(&[
        warm_up_precedes_the_measurement_and_is_not_counted,
        connect_mode_has_a_timeout_for_each_connection,
        slow_server_that_keeps_echoing_is_no_timeout,
        run_ends_in_time_if_a_message_arrives_slowly,
        silent_server_is_a_timeout,
    ]);
}

fn warm_up_precedes_the_measurement_and_is_not_counted() {
    const WARM_UP: Duration = Duration::from_millis(600);
    const WHOLE_RUN: Duration = Duration::from_millis(900);
    // The server echoes at most 20 messages per second. It records when it received each.
    let received = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&received);
    let address = server(move |_, mut stream| {
        echo(&mut stream, |_, _| {
            times.lock().expect("no panic").push(Instant::now());
            thread::sleep(Duration::from_millis(50));
            true
        });
    });
    let begin = Instant::now();
    let options = "--json --warm-up 600ms --duration 300ms";
    let report = run_json(bench(address, options), 0);
    assert!(begin.elapsed() >= WHOLE_RUN, "{:?}", begin.elapsed());
    assert!(
        (0.299..0.301).contains(&number(&report, "measured_s")),
        "{report}"
    );
    // The client counts a message between the times when the server receives it and the next one. The
    // run begins after `begin`, and before the server receives the first message.
    let times = received.lock().expect("no panic");
    let surely_measured = times
        .windows(2)
        .filter(|pair| pair[0] >= times[0] + WARM_UP && pair[1] <= begin + WHOLE_RUN)
        .count();
    let messages = report["messages"].as_u64().expect("a number");
    assert!(
        (surely_measured as u64..=7).contains(&messages),
        "{surely_measured}: {report}"
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
        let options = &format!("--json --connections 2 --size {size}");
        // A long message may take longer than the run. It is measured all the same.
        let report = run_json(bench(server.address, options), 0);
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
    if !signal::can_be_sent() {
        return;
    }
    for size in ["7", "64KiB", "1MiB"] {
        // More than the buffers hold, so the client has received some.
        let (server, received) = notifying_server(500_000, true);
        let options = &format!("--json --mode bulk --size {size} --duration 1h");
        let report = parse_json(&interrupt_at(&received, bench(server, options), 0));
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
    if !signal::can_be_sent() {
        return;
    }
    let (server, received) = notifying_server(10 * 64, true);
    let options = "--json --mode connect --connections 2 --duration 1h";
    let report = parse_json(&interrupt_at(&received, bench(server, options), 0));
    // The echoes of the last messages may not have arrived.
    assert!(
        number(&report, "messages") >= 8.0 && number(&report, "max_us") > 0.0,
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
        run_text(bench(server.address, &format!("--mode {mode}")), 0);
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
        let report = run_text(bench(server.address, &format!("--mode {mode}")), 0);
        assert!(
            report.starts_with(&format!("{mode} on {}: ", server.address)),
            "{report}"
        );
        for row in ["connections  1 ", "echoed "].iter().chain(rows) {
            assert_contains(&report, row);
        }
        assert!(!report.contains("failures"), "{report}");
    }
}

/// Starts a server that calls `lose` for each of the first `count` connections, which are lost then. It
/// echoes on the others, and sends a notification when one of them goes on after the loss.
fn losing_server(count: usize, lose: fn(usize, TcpStream)) -> (SocketAddr, mpsc::Receiver<()>) {
    let (sender, receiver) = mpsc::channel();
    let lost_count = Arc::new(AtomicUsize::new(0));
    let address = server(move |connection, mut stream| {
        if connection < count {
            lose(connection, stream);
            lost_count.fetch_add(1, SeqCst);
            return;
        }
        let mut messages_after = 0;
        echo(&mut stream, |_, _| {
            messages_after += usize::from(lost_count.load(SeqCst) == count);
            if messages_after == 10 {
                // Another connection may have ended the run.
                let _ = sender.send(());
            }
            true
        });
    });
    (address, receiver)
}

#[test]
fn wrong_byte_is_counted_and_other_connections_go_on() {
    if !signal::can_be_sent() {
        return;
    }
    let (server, others_go_on) = losing_server(1, |_, mut stream| {
        echo(&mut stream, |number, message| {
            message[63] ^= u8::from(number == 3);
            true
        });
    });
    let options = "--json --connections 3 --duration 1h";
    let report = parse_json(&interrupt_at(&others_go_on, bench(server, options), 1));
    assert_eq!(failures(&report), [("wrong bytes", 1)]);
    assert!(number(&report, "messages") >= 3.0 + 9.0, "{report}");
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
        // A run of one hour ends earlier, when all connections are lost.
        for options in [
            "--mode rtt --duration 1h",
            "--mode bulk --duration 1h",
            "--mode connect",
        ] {
            let options = &format!("--json {options}");
            let report = run_json(bench(server, options), 1);
            assert_eq!(failures(&report)[0].0, "wrong bytes", "{report}");
        }
    }
}

#[test]
fn lost_connections_are_counted_and_others_go_on() {
    if !signal::can_be_sent() {
        return;
    }
    let (server, others_go_on) = losing_server(3, |connection, mut stream| {
        echo(&mut stream, |number, _| number < 5);
        if connection == 0 {
            reset(stream);
        }
        // All bytes have been read, so the system sends FIN instead of RST on the others.
    });
    let options = "--connections 5 --duration 1h";
    let report = interrupt_at(&others_go_on, bench(server, options), 1);
    let failures = report
        .split_once("\nfailures\n")
        .expect("the report has the failures")
        .1;
    assert_contains(failures, "   2 closed: ");
    assert_contains(failures, "   1 reset: ");
    assert_contains(&report, "p50 ");
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
    // The run ends earlier, when all connections are lost.
    let options = "--json --mode bulk --connections 20 --duration 1h";
    let report = run_json(bench(server, options), 1);
    assert_eq!(failures(&report), [("reset", 20)]);
}

#[test]
fn run_ends_when_all_connections_are_lost() {
    let server = server(|_, _| {});
    for mode in ["rtt", "bulk"] {
        let options = &format!("--json --connections 4 --duration 1h --mode {mode}");
        let report = run_json(bench(server, options), 1);
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
    if !signal::can_be_sent() {
        return;
    }
    let (sender, tried_again) = mpsc::channel();
    let server = server(move |connection, mut stream| {
        if connection == 4 {
            sender.send(()).expect("the test waits");
        }
        echo(&mut stream, |_, _| connection % 2 == 0);
    });
    let options = "--json --mode connect --duration 1h";
    let report = parse_json(&interrupt_at(&tried_again, bench(server, options), 1));
    assert!(number(&report, "messages") > 0.0, "{report}");
    assert_eq!(failures(&report)[0].0, "closed", "{report}");
}

fn connect_mode_has_a_timeout_for_each_connection() {
    if !signal::can_be_sent() {
        return;
    }
    let (sender, tried_again) = mpsc::channel();
    let server = server(move |connection, mut stream| {
        match connection {
            // The client makes connection 0 only to check that a server listens.
            1 => {
                let _ = stream.read_to_end(&mut Vec::new());
                return;
            }
            4 => sender.send(()).expect("the test waits"),
            _ => {}
        }
        echo(&mut stream, |_, _| {
            thread::sleep(Duration::from_millis(100));
            true
        });
    });
    let options = "--json --mode connect --timeout 2500ms --duration 1h";
    let report = parse_json(&interrupt_at(&tried_again, bench(server, options), 1));
    assert_eq!(failures(&report), [("timeout", 1)]);
    assert!(number(&report, "messages") >= 2.0, "{report}");
}

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
    let options = "--json --mode bulk --timeout 2500ms --duration 2500ms";
    let report = run_json(bench(server, options), 0);
    assert!(number(&report, "bytes") > 0.0, "{report}");
}

fn silent_server_is_a_timeout() {
    let server = server(|_, mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    // A run of one hour ends earlier, when all connections are lost.
    let options = [
        "--mode rtt --duration 1h",
        "--mode bulk --duration 1h",
        "--mode connect",
    ];
    for_each_at_once(options, |options| {
        let options = &format!("--json --timeout 2500ms {options}");
        let report = run_json(bench(server, options), 1);
        assert_eq!(failures(&report)[0].0, "timeout", "{report}");
    });
}

/// Returns the reports of the servers in a JSON report.
fn servers(report: &Value) -> &[Value] {
    report["servers"].as_array().expect("a list of servers")
}

/// Returns the reports of the rounds of a server.
fn measurements(server: &Value) -> &[Value] {
    server["measurements"]
        .as_array()
        .expect("a list of measurements")
}

#[test]
fn each_round_measures_every_server_in_the_same_order() {
    let (connected, connections) = mpsc::channel();
    let addresses = ["first", "second", "third"].map(|name| {
        let connected = connected.clone();
        let address = server(move |_, mut stream| {
            connected.send(name).expect("the test waits");
            echo(&mut stream, |_, _| true);
        });
        address.to_string()
    });
    run_text(bench_addresses(&addresses, "--rounds 2"), 0);
    drop(connected);
    let order: Vec<&str> = connections.try_iter().collect();
    assert_eq!(
        order,
        ["first", "second", "third", "first", "second", "third"]
    );
}

#[test]
fn json_has_the_ratio_and_the_figures_of_each_round() {
    let both = [Server::start(&["-q"]), Server::start(&["-q"])];
    let addresses = both.each_ref().map(|server| server.address.to_string());
    for (mode, throughput) in [
        ("rtt", "messages_per_s"),
        ("bulk", "bytes_per_s"),
        ("connect", "messages_per_s"),
    ] {
        let options = &format!("--json --rounds 3 --mode {mode}");
        let report = run_json(bench_addresses(&addresses, options), 0);
        assert_eq!(report["rounds"], 3);
        let medians: Vec<f64> = servers(&report)
            .iter()
            .map(|server| {
                let mut rounds: Vec<f64> = measurements(server)
                    .iter()
                    .map(|round| number(round, throughput))
                    .collect();
                assert_eq!(rounds.len(), 3, "{server}");
                rounds.sort_by(f64::total_cmp);
                rounds[1]
            })
            .collect();
        for (server, (address, median)) in
            servers(&report).iter().zip(addresses.iter().zip(&medians))
        {
            assert_eq!(server["address"], *address);
            if medians[0] > 0.0 {
                let error = number(server, "ratio") - median / medians[0];
                assert!(error.abs() < 1e-9, "{medians:?}: {report}");
            } else {
                // A busy machine has delayed the server in two of the rounds.
                assert!(server["ratio"].is_null(), "{report}");
            }
            for round in measurements(server) {
                assert_eq!(
                    (&round["server"], &round["mode"]),
                    (&server["address"], &mode.into())
                );
            }
        }
    }
}

#[test]
fn a_round_has_the_fields_of_the_report_of_one_server() {
    let server = Server::start(&["-q"]);
    let address = [server.address.to_string()];
    let alone = run_json(bench_addresses(&address, "--json"), 0);
    let options = "--json --rounds 1";
    let in_turns = run_json(bench_addresses(&address, options), 0);
    let keys = |report: &Value| -> Vec<String> {
        let fields = report.as_object().expect("an object");
        fields.keys().cloned().collect()
    };
    assert!(keys(&alone).len() > 10, "{alone}");
    assert_eq!(keys(&measurements(&servers(&in_turns)[0])[0]), keys(&alone));
}

#[test]
fn text_report_has_a_row_for_each_server() {
    let both = [Server::start(&["-q"]), Server::start(&["-q"])];
    let addresses = both.each_ref().map(|server| server.address.to_string());
    for (mode, unit) in [
        ("rtt", "messages/s"),
        ("bulk", "bytes/s"),
        ("connect", "connections/s"),
    ] {
        let options = &format!("--mode {mode} --rounds 3");
        let report = run_text(bench_addresses(&addresses, options), 0);
        let lines: Vec<&str> = report.lines().collect();
        assert!(
            lines[0].starts_with(&format!("{mode} in turns, 50ms each: ")),
            "{report}"
        );
        assert!(lines[0].ends_with(unit), "{report}");
        let words = |line: &str| -> Vec<String> {
            // "12.5 MiB" is one figure.
            let line = line
                .replace(" B", "B")
                .replace(" KiB", "KiB")
                .replace(" MiB", "MiB")
                .replace(" GiB", "GiB");
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(
            words(lines[2]),
            [
                "server", "rounds", "ratio", "median", "lowest", "highest", "p50", "p99"
            ]
        );
        for (line, address) in lines[3..].iter().zip(&addresses) {
            let row = words(line);
            assert_eq!(
                (row.len(), &row[0], &*row[1]),
                (8, address, "3"),
                "{report}"
            );
            assert_eq!(row[7] == "-", mode == "bulk", "{report}");
        }
        // A busy machine may have delayed the server in two of the rounds.
        let first = words(lines[3]);
        let has_median = !["0", "0B"].contains(&&*first[3]);
        assert_eq!(first[2], if has_median { "1.00" } else { "-" }, "{report}");
        assert!(!report.contains("failures"), "{report}");
    }
}

#[test]
fn other_servers_are_measured_if_one_fails() {
    let good = [Server::start(&["-q"]), Server::start(&["-q"])];
    let (_socket, refusing) = closed_port();
    let closes_at_once = Server::start(&["-q", "--fault", "limit=0"]);
    let closing = closes_at_once.address;
    let [first, last] = good.each_ref().map(|server| server.address.to_string());
    let addresses = [
        first.clone(),
        refusing.to_string(),
        closing.to_string(),
        last,
    ];

    let options = "--json --rounds 3";
    let object = run_json(bench_addresses(&addresses, options), 1);
    let reasons = servers(&object).iter().map(|server| {
        assert_eq!(measurements(server).len(), 3, "{object}");
        failures(&measurements(server)[1])
    });
    let expected = [
        vec![],
        vec![(format!("cannot connect to {refusing}"), 1)],
        vec![("closed".to_owned(), 1)],
        vec![],
    ];
    for (reasons, expected) in reasons.zip(expected) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, count)| (&**name, *count))
            .collect();
        assert_eq!(reasons, expected, "{object}");
    }
    assert!(servers(&object)[1]["ratio"].is_null(), "{object}");
    for round in measurements(&servers(&object)[3]) {
        assert!(number(round, "max_us") > 0.0, "{object}");
    }

    let text = run_text(bench_addresses(&addresses, "--rounds 3"), 1);
    let row = text
        .lines()
        .find(|line| line.starts_with(&refusing.to_string()));
    assert!(
        row.is_some_and(|row| row.ends_with(" 0  not measured")),
        "{text}"
    );
    let (_, failures) = text.split_once("\nfailures\n").expect("failures");
    for expected in [
        format!("   3 {refusing}: cannot connect to {refusing}: connection refused"),
        format!("   3 {closing}: closed: "),
    ] {
        assert_contains(failures, &expected);
    }
    assert_eq!(failures.lines().count(), 2, "{text}");
}

#[test]
fn ratio_is_null_if_the_first_server_fails() {
    let good = Server::start(&["-q"]);
    let (_socket, refusing) = closed_port();
    let addresses = [refusing.to_string(), good.address.to_string()];
    let options = "--json --rounds 1";
    let report = run_json(bench_addresses(&addresses, options), 1);
    for server in servers(&report) {
        assert!(server["ratio"].is_null(), "{report}");
    }
    assert!(number(&measurements(&servers(&report)[1])[0], "max_us") > 0.0);
}

#[test]
fn one_address_replaces_host_and_port() {
    let server = Server::start(&["-q"]);
    let address = [format!("localhost:{}", server.address.port())];
    let report = run_text(bench_addresses(&address, ""), 0);
    assert!(
        report.starts_with(&format!("rtt on {}: ", server.address)),
        "{report}"
    );
}

#[test]
fn ctrl_c_ends_all_rounds_with_a_report() {
    if !signal::can_be_sent() {
        return;
    }
    let fast = Server::start(&["-q"]);
    let (slow, received) = notifying_server(50 * 64, true);
    let unused = server(|_, _| panic!("this server is measured last"));
    let addresses = [slow, fast.address, unused].map(|address| address.to_string());
    let command = bench_addresses(&addresses, "--json --duration 1h");
    let report = parse_json(&interrupt_at(&received, command, 0));
    assert_eq!(report["rounds"], 5);
    let [first, others @ ..] = servers(&report) else {
        panic!("there are three servers: {report}");
    };
    assert_eq!(
        (&first["ratio"], measurements(first).len()),
        (&1.0.into(), 1)
    );
    assert!(
        number(&measurements(first)[0], "messages") >= 49.0,
        "{report}"
    );
    for server in others {
        assert_eq!(
            (&server["ratio"], measurements(server).len()),
            (&Value::Null, 0)
        );
    }
}

#[test]
fn closed_stdout_ends_the_run_without_a_message() {
    let server = Server::start(&["-q"]);
    for format in ["--json", "--mode=rtt"] {
        let mut client = start(bench(server.address, format));
        drop(client.stdout.take());
        assert_eq!(stdout_text(end(client), 1), "");
    }
}

#[test]
fn ctrl_c_does_not_wait_for_a_missing_echo() {
    if !signal::can_be_sent() {
        return;
    }
    for mode in ["rtt", "bulk", "connect"] {
        let (server, received) = notifying_server(1, false);
        let options = &format!("--duration 1h --timeout 1h --mode {mode}");
        let report = interrupt_at(&received, bench(server, options), 0);
        assert_contains(&report, "not measured");
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
        let options = &format!("--size 64KiB --duration 1h --mode {mode}");
        let report = interrupt_at(&first_byte, bench(server, options), 0);
        assert_contains(&report, "not measured");
    }
}

fn run_ends_in_time_if_a_message_arrives_slowly() {
    let (server, _first_byte) = byte_by_byte_server();
    for_each_at_once(["rtt", "connect"], |mode| {
        let options = &format!("--json --size 64KiB --timeout 2500ms --mode {mode}");
        let report = run_json(bench(server, options), 1);
        assert_eq!(failures(&report), [("timeout", 1)]);
    });
}

/// Only Linux shows what a program waits for.
#[test]
#[cfg(target_os = "linux")]
fn first_ctrl_c_after_the_run_ends_the_client() {
    let (closed, wait_for_close) = mpsc::channel();
    let server = server(move |_, mut stream| {
        echo(&mut stream, |_, _| true);
        let _ = closed.send(());
    });
    let (_reader, stdout) = full_pipe();
    let mut command = bench(server, "");
    command.stdout(stdout);
    let client = start(command);
    wait_for_close.recv_timeout(PATIENCE).expect("the run ends");
    let process = format!("/proc/{}", client.id());
    common::wait_until("the client writes its report", || {
        // The thread of the connection has ended, after it woke the main thread for the last time. The
        // other thread handles signals.
        let threads = std::fs::read_dir(format!("{process}/task")).expect("the client runs");
        let stat = std::fs::read_to_string(format!("{process}/stat")).expect("the client runs");
        threads.count() == 2 && stat.contains(") S ")
    });
    signal::send(&client, Signal::INT);
    assert_eq!(stdout_text(end(client), 130), "");
}

/// Clients that connect to a full listen backlog delay the end of the run: the kernel drops their
/// packets, and they retry.
#[test]
#[cfg(target_os = "linux")]
fn second_ctrl_c_ends_the_run_at_once() {
    let (socket, address) = closed_port();
    socket.listen(0).expect("the socket can listen");
    let listener = std::net::TcpListener::from(socket);
    let options = "--connections 8 --timeout 1h";
    let mut client = start(bench(address, options));
    let _first = common::accept(&listener);
    let deadline = Instant::now() + PATIENCE;
    // The client may see two signals in quick succession as one.
    while client.try_wait().expect("the status can be read").is_none() && Instant::now() < deadline
    {
        signal::send(&client, Signal::INT);
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(stdout_text(end(client), 130), "");
}

/// Only Unix lets a test limit the open files of a program.
#[test]
#[cfg(unix)]
fn connections_without_a_file_are_counted_and_others_go_on() {
    let server = Server::start(&["-q"]);
    let mut shell = common::command("sh");
    let client = env!("CARGO_BIN_EXE_echo-client");
    let script = format!("ulimit -n 30 && exec {client} \"$@\"");
    shell.args([
        "-c",
        &script,
        "sh",
        "--port",
        &server.address.port().to_string(),
    ]);
    let client = bench_command(shell, "200ms", "--json --connections 60");
    let report = run_json(client, 1);
    // A busy machine may delay all echoes until after the run.
    assert!(number(&report, "max_us") > 0.0, "{report}");
    assert!(
        matches!(failures(&report)[..], [("no free file", 30..60)]),
        "{report}"
    );
}
