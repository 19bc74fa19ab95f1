//! Graceful shutdown on a slow link: every byte that a client sent before the signal is echoed,
//! followed by FIN. Each case runs in a network namespace of its own. Its loopback device has the
//! MTU, the rate and the queue of a slow link, and drops the packets that the queue cannot hold.
//!
//! The test takes seven seconds, because on a slow link the server waits for several retransmission
//! timeouts. On much faster links it would pass without that wait.
#![cfg(target_os = "linux")]

use std::env;
use std::io::{Error, Read};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::thread;

use crate::common::signal::Signal;
use crate::common::tools::is_possible;
use crate::common::{self, Server, noise, send};

/// A test that runs on a link with this rate and queue.
struct Case {
    name: &'static str,
    rate: &'static str,
    queue: &'static str,
    body: fn(),
}

const CASES: [Case; 4] = [
    Case {
        name: "drain loses no byte",
        rate: "4mbit",
        queue: "100ms",
        // A client alone fills the queue, loses packets, and pauses until their retransmission.
        body: || check_that_no_byte_is_lost(1, 400_000),
    },
    Case {
        name: "drain sends no RST when clients share the link",
        rate: "4mbit",
        queue: "100ms",
        // A lingering close that is too short ends in RST here.
        body: || check_that_no_byte_is_lost(4, 80_000),
    },
    Case {
        name: "clients whose first packets are lost are served",
        rate: "1mbit",
        queue: "120ms",
        // The queue drops most of the first packets, so the server has no byte of some clients when
        // the signal arrives.
        body: || check_that_no_byte_is_lost(8, 15_000),
    },
    Case {
        name: "idle client is closed in half a second",
        rate: "1mbit",
        queue: "250ms",
        body: crate::shutdown::check_that_idle_client_is_closed_at_once,
    },
];

/// Set in a process that runs in such a namespace, to the name of its case.
const CASE: &str = "ECHO_SERVER_TEST_CASE";

/// Runs all cases at once, because they mostly wait. Each runs in a process of its own, which executes
/// this test again.
#[test]
fn shutdown_on_a_slow_link_is_graceful_and_prompt() {
    if let Some(name) = env::var_os(CASE) {
        let case = CASES.iter().find(|case| name == case.name);
        return (case.expect("the name is that of a case").body)();
    }
    let mut probe = in_namespace("4mbit", "100ms");
    if is_possible("a namespace with a slow link", probe.arg("true")) {
        common::for_each_at_once(&CASES, run_in_namespace);
    }
}

/// Runs a case on its link and checks that it passes.
fn run_in_namespace(case: &Case) {
    let this_test = "slow_link::shutdown_on_a_slow_link_is_graceful_and_prompt";
    let mut test = in_namespace(case.rate, case.queue);
    test.arg(env::current_exe().expect("the test binary has a path"))
        .args(["--exact", this_test, "--nocapture"])
        .env(CASE, case.name);
    // No time limit is needed: every wait of the case has one.
    let output = test.output().expect("unshare can be spawned");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{}: {stdout}{stderr}",
        case.name
    );
}

/// Returns a command that executes its arguments in a new namespace. Without root's capabilities, it
/// needs a user namespace too.
fn in_namespace(rate: &str, queue: &str) -> Command {
    const SETUP: &str = r#"
        ip link set lo mtu 1500 up &&
        tc qdisc add dev lo root tbf rate "$0" burst 5kb latency "$1" &&
        shift && exec "$@""#;
    let mut unshare = common::command("unshare");
    unshare.arg("--net");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args(["sh", "-c", SETUP, rate, queue]);
    unshare
}

/// Connects `count` clients, each of which sends `size` bytes and reads all the time. Sends SIGTERM
/// once all have sent, and checks what each of them received.
fn check_that_no_byte_is_lost(count: usize, size: usize) {
    let mut server = Server::start(&["--shutdown-timeout", "1h"]);
    let clients = server.connect_many(count);
    let sent: Vec<Vec<u8>> = (0..count)
        .map(|number| noise(size, number as u64))
        .collect();
    let received: Vec<Result<Vec<u8>, Error>> = thread::scope(|scope| {
        let readers: Vec<_> = clients
            .iter()
            .map(|client| scope.spawn(|| read_and_close(client)))
            .collect();
        for (client, bytes) in clients.iter().zip(&sent) {
            // The write returns when the kernel has the bytes, long before the server has them.
            let buffer = socket2::SockRef::from(client).set_send_buffer_size(size);
            buffer.expect("the size can be set");
            send(client, bytes);
        }
        server.signal(Signal::TERM);
        readers
            .into_iter()
            .map(|reader| reader.join().expect("no reader panics"))
            .collect()
    });
    let failures: Vec<String> = received
        .iter()
        .zip(&sent)
        .enumerate()
        .filter_map(|(number, (received, sent))| match received {
            Ok(received) if received == sent => None,
            Ok(received) => Some(format!("client {number}: {} bytes, FIN", received.len())),
            Err(error) => Some(format!("client {number}: {error}")),
        })
        .collect();
    assert!(
        failures.is_empty(),
        "each sent {size} bytes; {failures:#?}; {:#?}",
        server.log()
    );
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_logs(count, &format!("server shutting down, {size} bytes echoed"));
    server.wait_for_log(" served, 0 forcibly closed, ");
}

/// Reads until FIN, then sends FIN. Returns an error if nothing arrives within
/// [`common::PATIENCE`].
fn read_and_close(mut client: &TcpStream) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes)?;
    // So that the server need not linger.
    let _ = client.shutdown(Shutdown::Write);
    Ok(bytes)
}
