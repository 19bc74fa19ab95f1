//! `echo-client bench`: what it reports, on a good server and on bad ones, and how it ends. How fast
//! it is depends on the machine, and is nobody's promise.
#![cfg(feature = "client")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::signal::{self, Signal};
use common::{PATIENCE, Server, closed_port, echo_client, end, listen};
use serde_json::Value;

/// The command `echo-client bench` for a run as short as can be, unless the arguments say more.
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

/// Runs the command to its end; what was on stdout. There must be nothing on stderr.
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

/// The failures in a JSON report: the name of each reason, and how often.
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
        .unwrap_or_else(|| panic!("a failure lacks a part: {report}"))
}

/// A server that does with each connection what `serve` does; it is told how many came before.
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

/// Echoes messages of 64 bytes until the client leaves; `change` sees each before it goes back, and
/// gets how many came before on the same connection. Where it returns false, it was the last.
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
fn the_warm_up_comes_before_what_is_measured_and_is_not_counted() {
    // The server's pace bounds how much can come back in any time.
    let address = server(|_, mut stream| {
        echo(&mut stream, |_, _| {
            thread::sleep(Duration::from_millis(50));
            true
        });
    });
    let mut command = echo_client(address);
    command.args(["bench", "--json", "--warm-up", "2s", "--duration", "1s"]);
    let begin = Instant::now();
    let report = json(&report(
        command.stdout(Stdio::piped()).stderr(Stdio::piped()),
        0,
    ));
    assert!(
        begin.elapsed() >= Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
    assert!(
        (1.0..=21.0).contains(&number(&report, "messages")),
        "{report}"
    );
}

#[test]
fn a_message_may_have_any_size() {
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
        // The first of the longest may take longer than the run; it is timed all the same.
        let report = json(&report(&mut bench(server.address, &options), 0));
        assert!(number(&report, "max_us") > 0.0, "{report}");
        assert_eq!(failures(&report), []);
        for departure in server.wait_for_logs(2, " disconnected: closed by client, ") {
            let echoed = departure
                .split(", ")
                .nth(1)
                .and_then(|part| part.split(' ').next());
            let echoed: usize = echoed
                .and_then(|n| n.parse().ok())
                .expect("a number of bytes");
            assert_eq!(echoed % bytes, 0, "{departure}");
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
        let patient = ["--timeout", "20s", "--duration", "1s"];
        let options = [&options[..], &patient].concat();
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
fn connections_a_second_are_counted_and_timed() {
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
        server.shut_down();
        let log = server.rest_of_log().join("\n");
        assert!(
            log.contains("closed by client") && !log.contains("reset"),
            "{mode}: {log}"
        );
    }
}

#[test]
fn the_page_has_its_rows() {
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
        let page = report(
            &mut bench(server.address, &["--mode", mode, "--timeout", "20s"]),
            0,
        );
        assert!(
            page.starts_with(&format!("{mode} on {}: ", server.address)),
            "{page}"
        );
        assert!(
            page.contains("connections  1 ") && page.contains("echoed "),
            "{page}"
        );
        for row in rows {
            assert!(page.contains(row), "{row}: {page}");
        }
        assert!(!page.contains("failures"), "{page}");
    }
}

#[test]
fn a_wrong_byte_is_noticed_and_the_other_connections_go_on() {
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
        "2s",
    ];
    let report = json(&report(&mut bench(flip, &options), 1));
    assert_eq!(failures(&report), [("wrong bytes", 1)]);
    assert!(number(&report, "messages") > 3.0, "{report}");
}

#[test]
fn a_stale_or_shifted_echo_is_a_wrong_one_in_every_mode() {
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
fn lost_connections_are_counted_by_reason_and_the_others_go_on() {
    let server = server(|connection, mut stream| {
        echo(&mut stream, |number, _| connection >= 3 || number < 5);
        match connection {
            0 => common::reset(stream),
            // Without unread bytes: else it would be a reset too.
            1 | 2 => drop(stream),
            _ => {}
        }
    });
    let options = ["--connections", "5", "--timeout", "20s", "--duration", "2s"];
    let page = report(&mut bench(server, &options), 1);
    let failures = page
        .split_once("\nfailures\n")
        .expect("the page has the failures")
        .1;
    assert!(failures.contains("   2 closed: "), "{page}");
    assert!(failures.contains("   1 reset: "), "{page}");
    assert!(page.contains("p50 "), "{page}");
}

/// The two threads of a connection compete for the error, so one connection proves little.
#[test]
fn a_reset_in_bulk_is_reported_as_a_reset() {
    let server = server(|_, mut stream| {
        stream
            .read_exact(&mut vec![0; 1_000_000])
            .expect("the client sends");
        common::reset(stream);
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
fn when_all_connections_are_lost_the_run_is_over() {
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
fn in_connect_mode_each_failure_is_counted_and_the_next_connection_is_tried() {
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
        "2s",
    ];
    let report = json(&report(&mut bench(server, &options), 1));
    assert!(number(&report, "messages") > 0.0, "{report}");
    assert_eq!(failures(&report)[0].0, "closed", "{report}");
}

#[test]
fn in_connect_mode_a_timeout_leaves_the_next_connection_its_own() {
    let server = server(|connection, mut stream| {
        // The first is only to see whether there is a server.
        if connection == 1 {
            let _ = stream.read_to_end(&mut Vec::new());
        } else {
            echo(&mut stream, |_, _| {
                thread::sleep(Duration::from_millis(150));
                true
            });
        }
    });
    let options = [
        "--json",
        "--mode",
        "connect",
        "--timeout",
        "1s",
        "--duration",
        "3s",
    ];
    let report = json(&report(&mut bench(server, &options), 1));
    assert_eq!(failures(&report), [("timeout", 1)]);
    assert!(number(&report, "messages") > 0.0, "{report}");
}

#[test]
fn a_server_that_is_slow_to_take_bytes_is_no_timeout_while_it_gives_some_back() {
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
        "1s",
        "--duration",
        "3s",
    ];
    let report = json(&report(&mut bench(server, &options), 0));
    assert!(number(&report, "bytes") > 0.0, "{report}");
}

#[test]
fn a_silent_server_is_a_timeout() {
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
fn without_a_server_it_is_one_sentence() {
    let (_nobody, address) = closed_port();
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
fn bad_arguments_are_told_with_the_flag_and_what_to_do() {
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
fn a_closed_stdout_ends_it_quietly() {
    let server = Server::start(&["-q"]);
    for format in ["--json", "--mode=rtt"] {
        let mut client = bench(server.address, &[format])
            .spawn()
            .expect("the client starts");
        drop(client.stdout.take());
        assert_eq!(output_report(end(client), 1), "");
    }
}

/// A server that tells when it has got `count` messages on one connection, of which it echoes all
/// where `echoes` is set.
fn telling_server(count: usize, echoes: bool) -> (SocketAddr, mpsc::Receiver<()>) {
    let (tell, told) = mpsc::channel();
    let address = server(move |_, mut stream| {
        echo(&mut stream, |number, _| {
            if number + 1 == count {
                tell.send(()).expect("the test waits");
            }
            echoes
        });
        let _ = stream.read_to_end(&mut Vec::new());
    });
    (address, told)
}

#[test]
fn ctrl_c_ends_the_run_early_with_what_was_measured() {
    if !signal::can_be_sent() {
        return;
    }
    let (server, told) = telling_server(50, true);
    let client = bench(server, &["--json", "--duration", "1h"])
        .spawn()
        .expect("it starts");
    told.recv_timeout(PATIENCE).expect("the messages come");
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
fn ctrl_c_does_not_wait_for_an_echo_that_does_not_come() {
    if !signal::can_be_sent() {
        return;
    }
    for mode in ["rtt", "bulk", "connect"] {
        let (server, told) = telling_server(1, false);
        let options = ["--duration", "1h", "--timeout", "1h", "--mode", mode];
        let client = bench(server, &options).spawn().expect("it starts");
        told.recv_timeout(PATIENCE).expect("a message comes");
        signal::send(&client, Signal::INT);
        let page = output_report(end(client), 0);
        assert!(page.contains("not measured"), "{page}");
    }
}

/// A server that sends back one byte every 30 ms, more often than a wait for it would time out.
fn dripping_server() -> (SocketAddr, mpsc::Receiver<()>) {
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
fn ctrl_c_does_not_wait_for_a_message_that_comes_in_drips() {
    if !signal::can_be_sent() {
        return;
    }
    for mode in ["rtt", "connect"] {
        let (server, first_byte) = dripping_server();
        let options = ["--size", "64KiB", "--duration", "1h", "--mode", mode];
        let client = bench(server, &options).spawn().expect("it starts");
        first_byte
            .recv_timeout(PATIENCE)
            .expect("a byte comes back");
        signal::send(&client, Signal::INT);
        let page = output_report(end(client), 0);
        assert!(page.contains("not measured"), "{page}");
    }
}

/// Over a second: the timeout of each run, and a shorter one is not safe on a busy machine.
#[test]
fn a_run_ends_in_time_though_a_message_comes_in_drips() {
    let (server, _first_byte) = dripping_server();
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

/// Unix alone lets a test give a program a pipe that is full.
#[test]
#[cfg(unix)]
fn after_the_run_the_first_ctrl_c_ends_it() {
    let (closed, wait_for_close) = mpsc::channel();
    let server = server(move |_, mut stream| {
        echo(&mut stream, |_, _| true);
        let _ = closed.send(());
    });
    let (_reader, mut stdout) = std::io::pipe().expect("a pipe");
    let mut command = bench(server, &[]);
    command.stdout(stdout.try_clone().expect("a duplicate"));
    thread::spawn(move || while stdout.write_all(&[0; 4096]).is_ok() {});
    let client = command.spawn().expect("it starts");
    wait_for_close.recv_timeout(PATIENCE).expect("the run ends");
    // No event shows that the client writes its report.
    thread::sleep(Duration::from_millis(200));
    signal::send(&client, Signal::INT);
    assert_eq!(output_report(end(client), 130), "");
}

/// Connections that nobody accepts hold the end up: the kernel drops what does not fit into the
/// queue, and the client goes on trying.
#[test]
#[cfg(target_os = "linux")]
fn a_second_ctrl_c_ends_it_at_once() {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be created");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket
        .bind(&any.into())
        .and_then(|()| socket.listen(0))
        .expect("a port is free");
    let listener = std::net::TcpListener::from(socket);
    let address = listener.local_addr().expect("the socket has an address");
    let options = ["--connections", "8", "--timeout", "1h"];
    let mut client = bench(address, &options).spawn().expect("it starts");
    let _first = common::accept(&listener);
    let until = Instant::now() + PATIENCE;
    // Two signals that come at once may be seen as one.
    while client.try_wait().expect("it can be waited for").is_none() && Instant::now() < until {
        signal::send(&client, Signal::INT);
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(output_report(end(client), 130), "");
}

/// Unix alone lets a test set how many files a program may have.
#[test]
#[cfg(unix)]
fn where_files_run_out_the_others_go_on() {
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
