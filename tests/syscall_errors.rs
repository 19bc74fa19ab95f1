//! Errors of system calls that a healthy machine seldom reports. `strace` injects them into the
//! server.
#![cfg(target_os = "linux")]

use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::signal::Signal;
use crate::common::tools::is_possible;
use crate::common::{self, Server, exchange, local_address, read_until_fin};

/// Starts a server whose system calls fail as `injection` says, if `strace` may trace it.
fn start_with(injection: &str) -> Option<Server> {
    // The process that is spawned becomes the server. A grandchild traces it.
    let strace = ["-D", "-f", "-qq", "-o", "/dev/null", "-e", injection];
    let mut probe = Command::new("strace");
    if !is_possible("strace of the server", probe.args(strace).arg("true")) {
        return None;
    }
    let mut command = common::command("strace");
    command
        .args(strace)
        .arg(env!("CARGO_BIN_EXE_echo-server"))
        .args(["--host", "127.0.0.1", "--port", "0"]);
    Some(Server::spawn(&mut command))
}

#[test]
fn interrupted_waits_do_not_shorten_the_drain() {
    // In each thread every second call fails, beginning with the first.
    let Some(mut server) = start_with("inject=poll,ppoll:error=EINTR:when=1+2") else {
        return;
    };
    let client = server.connect();
    let address = local_address(&client);
    exchange(&client, b"hello");
    let begin = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(read_until_fin(&client), b"");
    // What the client sent before the signal may take that long to arrive.
    assert!(begin.elapsed() >= Duration::from_millis(100));
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_log(&format!("{address} disconnected: server shutting down"));
}

/// Takes more than a second: three attempts, each after an `accept` that blocks for a quarter of a second,
/// and the half second without a failure that ends the warning.
#[test]
fn lack_of_memory_in_the_accept_loop_is_retried() {
    let Some(server) = start_with("inject=poll,ppoll:error=ENOMEM:when=1..3") else {
        return;
    };
    server
        .wait_for_log("cannot accept new clients: Cannot allocate memory (os error 12); retrying");
    exchange(&server.connect(), b"hello");
    server.wait_for_log("accepting new clients again");
    server.assert_log_count(1, "cannot accept new clients");
}
