//! `echo-client bench`: what it reports about correct and broken servers, and how a run ends. No test
//! depends on the throughput, which differs from machine to machine.
#![cfg(feature = "client")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::bench::{
    assert_positive, bench, echo, failures, interrupt_at, interrupted_report, notifying_server,
    number, run_json, run_text, server,
};
use crate::common::{
    Server, assert_contains, end, for_each_at_once, reset, run_at_once, signal, start, stdout_text,
};
#[cfg(target_os = "linux")]
use crate::output::unix::full_pipe;

#[test]
fn round_trips_are_counted_and_timed() {
    if !signal::can_be_sent() {
        return;
    }
    let (server, received) = notifying_server(50 * 64, true);
    let begin = Instant::now();
    let options = "--json --connections 3 --duration 1h";
    let report = interrupted_report(&received, bench(server, options), 0);
    assert_eq!(report["server"], server.to_string());
    assert_eq!(report["mode"], "rtt");
    assert_eq!(report["connections"], 3);
    assert_eq!(report["size_bytes"], 64);
    assert_eq!(report["warm_up_s"], 0.0);
    let measured = number(&report, "measured_s");
    assert!(
        measured > 0.0 && measured < begin.elapsed().as_secs_f64(),
        "{report}"
    );
    // The echoes of the last messages may not have arrived.
    assert!(number(&report, "messages") >= 47.0, "{report}");
    assert_positive(&report, &["messages_per_s"]);
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
        assert_positive(&report, &["max_us"]);
        assert_eq!(failures(&report), []);
        for line in server.wait_for_logs(2, " disconnected: closed by client, ") {
            let (_, end) = line
                .split_once("by client, ")
                .expect("the reason is in the line");
            let echoed = end.split(' ').next().and_then(|n| n.parse::<usize>().ok());
            let echoed = echoed.expect("a number of bytes");
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
        let report = interrupted_report(&received, bench(server, options), 0);
        assert_positive(&report, &["bytes", "bytes_per_s"]);
        for key in ["messages", "p50_us"] {
            assert!(report[key].is_null(), "{report}");
        }
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
    let report = interrupted_report(&received, bench(server, options), 0);
    // The echoes of the last messages may not have arrived.
    assert!(number(&report, "messages") >= 8.0, "{report}");
    assert_positive(&report, &["max_us"]);
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
        ("rtt", "messages |/s|p50 |p90 |p99 |p99.9 |max |█"),
        ("bulk", "/s|not measured in bulk"),
        ("connect", "connected |/s|p50 |max |█"),
    ] {
        let report = run_text(bench(server.address, &format!("--mode {mode}")), 0);
        assert!(
            report.starts_with(&format!("{mode} on {}: ", server.address)),
            "{report}"
        );
        for row in rows.split('|').chain(["connections  1 ", "echoed "]) {
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
    let report = interrupted_report(&others_go_on, bench(server, options), 1);
    assert_eq!(failures(&report), [("wrong bytes", 1)]);
    assert!(number(&report, "messages") >= 3.0 + 9.0, "{report}");
}

/// A run in each mode for a server that loses every connection. With the first two modes it then
/// ends, long before its time.
const RUNS_OF_LOST_CONNECTIONS: [&str; 3] = [
    "--mode rtt --duration 1h",
    "--mode bulk --duration 1h",
    "--mode connect",
];

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
        for run in RUNS_OF_LOST_CONNECTIONS {
            let options = &format!("--json {run}");
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
    let (_, failures) = report.split_once("\nfailures\n").expect("failures");
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
        let lost: u64 = failures(&report).iter().map(|(_, count)| count).sum();
        assert_eq!(lost, 4, "{report}");
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
    let report = interrupted_report(&tried_again, bench(server, options), 1);
    assert_positive(&report, &["messages"]);
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
    let report = interrupted_report(&tried_again, bench(server, options), 1);
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
    assert_positive(&report, &["bytes"]);
}

fn silent_server_is_a_timeout() {
    let server = server(|_, mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    for_each_at_once(RUNS_OF_LOST_CONNECTIONS, |run| {
        let options = &format!("--json --timeout 2500ms {run}");
        let report = run_json(bench(server, options), 1);
        assert_eq!(failures(&report)[0].0, "timeout", "{report}");
    });
}

#[test]
fn closed_stdout_ends_the_run_without_a_message() {
    let server = Server::start(&["-q"]);
    for format in ["--json", "--mode=rtt"] {
        let mut client = start(&mut bench(server.address, format));
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
    command.stdout(stdout).stderr(std::process::Stdio::piped());
    let client = command.spawn().expect("the client can be spawned");
    wait_for_close
        .recv_timeout(crate::common::PATIENCE)
        .expect("the run ends");
    let process = format!("/proc/{}", client.id());
    crate::common::wait_until("the client writes its report", || {
        // The thread of the connection has ended, after it woke the main thread for the last time. The
        // other thread handles signals.
        let threads = std::fs::read_dir(format!("{process}/task")).expect("the client runs");
        let stat = std::fs::read_to_string(format!("{process}/stat")).expect("the client runs");
        threads.count() == 2 && stat.contains(") S ")
    });
    signal::send(&client, signal::Signal::INT);
    assert_eq!(stdout_text(end(client), 130), "");
}

/// Clients that connect to a full listen backlog delay the end of the run: the kernel drops their
/// packets, and they retry.
#[test]
#[cfg(target_os = "linux")]
fn second_ctrl_c_ends_the_run_at_once() {
    let (socket, address) = crate::common::closed_port();
    socket.listen(0).expect("the socket can listen");
    let listener = std::net::TcpListener::from(socket);
    let options = "--connections 8 --timeout 1h";
    let mut client = start(&mut bench(address, options));
    let _first = crate::common::accept(&listener);
    crate::common::wait_until("the client exits", || {
        let status = client.try_wait().expect("the status can be read");
        if status.is_none() {
            // The client may see two signals in quick succession as one.
            signal::send(&client, signal::Signal::INT);
            thread::sleep(Duration::from_millis(20));
        }
        status.is_some()
    });
    assert_eq!(stdout_text(end(client), 130), "");
}

/// Only Unix lets a test limit the open files of a program.
#[test]
#[cfg(unix)]
fn connections_without_a_file_are_counted_and_others_go_on() {
    let server = Server::start(&["-q"]);
    let mut shell = crate::common::command("sh");
    let client = env!("CARGO_BIN_EXE_echo-client");
    let script = format!("ulimit -n 30 && exec {client} \"$@\"");
    let port = server.address.port().to_string();
    shell.args(["-c", &script, "sh", "--port", &port]);
    let client = crate::common::bench::bench_command(shell, "200ms", "--json --connections 60");
    let report = run_json(client, 1);
    // A busy machine may delay all echoes until after the run.
    assert_positive(&report, &["max_us"]);
    assert!(
        matches!(failures(&report)[..], [("no free file", 30..60)]),
        "{report}"
    );
}
