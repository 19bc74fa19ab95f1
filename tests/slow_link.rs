//! Graceful shutdown on a slow link: every byte that a client sent before the signal is echoed,
//! followed by FIN. Each test runs in a network namespace of its own. Its loopback device has the
//! MTU, the rate and the queue of a slow link, and drops the packets that the queue cannot hold.
//!
//! The tests of lost packets take three to seven seconds, because on a slow link the server waits for
//! several retransmission timeouts. On much faster links they would pass without that wait.
#![cfg(target_os = "linux")]

mod common;

use std::env;
use std::io::{Error, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::thread;

use common::signal::Signal;
use common::{Server, noise};

/// Set in a process that runs in such a namespace.
const NAMESPACE: &str = "ECHO_SERVER_TEST_NAMESPACE";

/// Runs `body`, the body of the test `name`, on a link with this rate and queue. For that, it starts
/// a new process of this test binary that runs only this test.
fn on_link(name: &str, rate: &str, queue: &str, body: fn()) {
    if env::var_os(NAMESPACE).is_some() {
        return body();
    }
    let probe = in_namespace(rate, queue).arg("true").output();
    let error = match probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(
            String::from_utf8_lossy(&output.stderr)
                .trim_end()
                .to_owned(),
        ),
        Err(error) => Some(error.to_string()),
    };
    if let Some(error) = error {
        common::skip(format_args!(
            "no namespace with a slow link can be made: {error}"
        ));
        return;
    }
    let binary = env::current_exe().expect("the test binary has a path");
    let mut test = in_namespace(rate, queue);
    test.arg(binary)
        .args(["--exact", name, "--nocapture"])
        .env(NAMESPACE, "1");
    // No time limit is needed: every wait of the test has one.
    let output = test.output().expect("unshare can be spawned");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{stdout}{stderr}"
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
    let clients: Vec<TcpStream> = (0..count).map(|_| server.connect()).collect();
    let sent: Vec<Vec<u8>> = (0..count)
        .map(|number| noise(size, number as u64))
        .collect();
    let received: Vec<Result<Vec<u8>, Error>> = thread::scope(|scope| {
        let readers: Vec<_> = clients
            .iter()
            .map(|client| scope.spawn(|| read_and_close(client)))
            .collect();
        for (mut client, bytes) in clients.iter().zip(&sent) {
            // The write returns when the kernel has the bytes, long before the server has them.
            let buffer = socket2::SockRef::from(client).set_send_buffer_size(size);
            buffer.expect("the size can be set");
            client.write_all(bytes).expect("the bytes are sent");
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

/// A client alone fills the queue, loses packets, and pauses until their retransmission.
#[test]
fn drain_loses_no_byte_on_a_slow_link() {
    let name = "drain_loses_no_byte_on_a_slow_link";
    on_link(name, "4mbit", "100ms", || {
        check_that_no_byte_is_lost(1, 400_000);
    });
}

/// A lingering close that is too short ends in RST here.
#[test]
fn drain_sends_no_rst_when_clients_share_a_slow_link() {
    let name = "drain_sends_no_rst_when_clients_share_a_slow_link";
    on_link(name, "4mbit", "100ms", || {
        check_that_no_byte_is_lost(4, 80_000);
    });
}

/// The queue drops most of the first packets, so the server has no byte of some clients when the
/// signal arrives.
#[test]
fn clients_whose_first_packets_are_lost_are_served() {
    let name = "clients_whose_first_packets_are_lost_are_served";
    on_link(name, "1mbit", "120ms", || {
        check_that_no_byte_is_lost(8, 15_000);
    });
}

#[test]
fn idle_client_on_a_slow_link_is_closed_in_half_a_second() {
    let name = "idle_client_on_a_slow_link_is_closed_in_half_a_second";
    on_link(name, "1mbit", "250ms", || {
        let mut server = Server::start(&["--shutdown-timeout", "1h"]);
        common::check_that_idle_client_is_closed_at_once(&mut server);
    });
}
