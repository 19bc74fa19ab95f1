//! Runs `echo-client bench` and reads its report, and the servers that it measures.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;

use serde_json::Value;
use socket2::SockRef;

use super::signal::{self, Signal};
use super::{PATIENCE, default_client, echo_client, end, listen, start, stdout_of, stdout_text};

/// Returns the command `echo-client bench` for a run of 0.2 s without a warm-up, unless the arguments
/// say otherwise.
pub fn bench(server: SocketAddr, arguments: &str) -> Command {
    bench_command(echo_client(server), "200ms", arguments)
}

/// Returns the command `echo-client bench` for these addresses, with rounds of 50 ms, unless the
/// arguments have a duration.
pub fn bench_addresses(addresses: &[String], arguments: &str) -> Command {
    let mut command = bench_command(default_client(), "50ms", arguments);
    command.args(addresses);
    command
}

/// Adds the command `bench` and these arguments to a command for the client. Without other arguments,
/// a run has no warm-up and a long timeout.
pub fn bench_command(mut command: Command, duration: &str, arguments: &str) -> Command {
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
    command.args(arguments.split_whitespace());
    command
}

/// Runs the command and returns its stdout. Nothing may be on stderr.
pub fn run_text(mut command: Command, code: i32) -> String {
    stdout_of(&mut command, code)
}

/// Does the same for a report as JSON.
pub fn run_json(command: Command, code: i32) -> Value {
    parse_json(&run_text(command, code))
}

fn parse_json(report: &str) -> Value {
    serde_json::from_str(report).unwrap_or_else(|error| panic!("{error}: {report}"))
}

/// Returns the number at `key` of a JSON report.
pub fn number(report: &Value, key: &str) -> f64 {
    report[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no number {key}: {report}"))
}

/// Checks that these numbers of a JSON report are positive.
#[track_caller]
pub fn assert_positive(report: &Value, keys: &[&str]) {
    for key in keys {
        assert!(number(report, key) > 0.0, "{key}: {report}");
    }
}

/// Returns the failures in a JSON report: the name of each reason and its count.
pub fn failures(report: &Value) -> Vec<(&str, u64)> {
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
pub fn server(serve: impl Fn(usize, TcpStream) + Clone + Send + 'static) -> SocketAddr {
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
pub fn echo(stream: &mut TcpStream, mut change: impl FnMut(usize, &mut [u8; 64]) -> bool) {
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
pub fn notifying_server(count: usize, echoes: bool) -> (SocketAddr, mpsc::Receiver<()>) {
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
pub fn interrupt_at(event: &mpsc::Receiver<()>, mut command: Command, code: i32) -> String {
    let client = start(&mut command);
    event.recv_timeout(PATIENCE).expect("the event occurs");
    signal::send(&client, Signal::INT);
    stdout_text(end(client), code)
}

/// Does the same and returns the report as JSON.
pub fn interrupted_report(event: &mpsc::Receiver<()>, command: Command, code: i32) -> Value {
    parse_json(&interrupt_at(event, command, code))
}
