//! The drain, the second half of graceful shutdown: everything a client sent before the signal is
//! echoed, followed by FIN, never RST. At the shutdown timeout, remaining clients are forcibly
//! closed.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::signal::{self, Signal};
use crate::common::{
    self, Pace, Server, exchange, fill, local_address, local_server, noise, read_until_fin,
    retry_if_late, run_at_once, send,
};

/// Only Unix can pause a program, so that clients stay in the listen backlog.
#[test]
#[cfg(unix)]
fn drain_serves_clients_in_the_listen_backlog() {
    let mut server = Server::start(&[]);
    signal::pause(&server.child);
    let clients = server.connect_many(50);
    for (number, client) in (0..).zip(&clients) {
        send(client, &noise(1000, number));
    }
    server.signal(Signal::TERM);
    server.signal(Signal::CONT);
    for (number, client) in (0..).zip(&clients) {
        assert!(
            read_until_fin(client) == noise(1000, number),
            "client {number}"
        );
    }
    drop(clients);
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_log("shut down: 50 clients served, 0 forcibly closed, 50000 bytes echoed");
}

/// The connection limit does not apply to the drain: one client may not delay the others until the
/// shutdown timeout.
#[test]
fn drain_serves_the_listen_backlog_of_a_full_server() {
    let Some(mut server) = Server::start_to_signal(&["--max-connections", "1"]) else {
        return;
    };
    let late_reader = server.connect();
    let sent = fill(&late_reader);
    let waiting = server.connect_many(100);
    for (number, client) in (0..).zip(&waiting) {
        send(client, &noise(100, number));
    }
    server.signal(Signal::TERM);
    for (number, client) in (0..).zip(waiting) {
        assert!(
            read_until_fin(&client) == noise(100, number),
            "client {number}"
        );
    }
    assert!(read_until_fin(&late_reader) == sent);
    drop(late_reader);
    assert_eq!(server.wait().code(), Some(0));
    let echoed = sent.len() + 10_000;
    server.wait_for_log(&format!(
        "shut down: 101 clients served, 0 forcibly closed, {echoed} bytes echoed"
    ));
}

#[test]
fn late_reader_gets_its_echoes_while_new_clients_are_refused() {
    let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "1h"]) else {
        return;
    };
    let client = server.connect();
    let (sent, address) = (fill(&client), local_address(&client));
    server.signal(Signal::TERM);
    // A client that connects before the server closes its listener is served. One whose handshake is
    // not complete then gets RST.
    common::wait_until("new clients are refused", || {
        TcpStream::connect(server.address)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    assert!(read_until_fin(&client) == sent);
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_log(&format!("{address} disconnected: server shutting down, "));
}

#[test]
fn bytes_that_arrive_shortly_after_the_signal_are_echoed() {
    // The server waits 0.1 s for a quiet client.
    retry_if_late(Duration::from_millis(80), |pace| {
        let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "1h"]) else {
            return;
        };
        let mut client = server.connect();
        exchange(&client, b"before");
        pace.step();
        server.signal(Signal::TERM);
        server.wait_for_log("shutting down: ");
        let sent = client.write_all(b"on their way");
        pace.stop();
        sent.expect("the bytes are sent");
        assert_eq!(read_until_fin(&client), b"on their way");
        drop(client);
        assert_eq!(server.wait().code(), Some(0));
    });
}

#[test]
fn client_that_sends_after_fin_gets_no_rst_during_lingering() {
    // The server waits 0.1 s for a quiet client and lingers for 0.3 s.
    retry_if_late(Duration::from_millis(400), |pace| {
        let Some(server) = Server::start_to_signal(&[]) else {
            return;
        };
        let mut client = server.connect();
        exchange(&client, b"before");
        pace.step();
        server.signal(Signal::TERM);
        assert_eq!(read_until_fin(&client), b"");
        // Without lingering, the first write is answered with RST, so the second one fails.
        let sent = client
            .write_all(b"too")
            .and_then(|()| client.write_all(b"late"));
        let closed = sent.and_then(|()| client.shutdown(Shutdown::Write));
        pace.stop();
        closed.expect("no RST has arrived");
        server.wait_for_log("disconnected: server shutting down, 6 bytes echoed");
        assert_eq!(client.read(&mut [0]).expect("no RST has arrived"), 0);
    });
}

/// Only Linux lets the server see how much the kernel has not sent yet.
#[test]
#[cfg(target_os = "linux")]
fn linux_drain_waits_until_the_kernel_has_sent_everything() {
    let mut server = Server::start(&["--shutdown-timeout", "1h"]);
    let client = common::connect_with_buffer(server.address, 4096);
    // Few enough bytes for the server to have written them all: the rest is in the kernel.
    let sent = noise(60_000, 9);
    send(&client, &sent);
    server.signal(Signal::TERM);
    server.wait_for_log("shutting down: ");
    // Longer than the server waits for a quiet client and lingers.
    thread::sleep(Duration::from_millis(600));
    server.assert_running();
    assert!(read_until_fin(&client) == sent);
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
}

/// As above, but the client never reads.
#[cfg(target_os = "linux")]
fn linux_unsent_data_delays_exit_until_the_shutdown_timeout() {
    retry_if_late(Duration::from_millis(1100), |pace| {
        let mut server = Server::start(&["--shutdown-timeout", "700ms", "-v"]);
        let client = common::connect_with_buffer(server.address, 4096);
        send(&client, &noise(60_000, 9));
        common::wait_until("the server has sent them all", || {
            let log = server.log();
            let pieces = log.iter().filter_map(|line| {
                let (_, piece) = line.split_once(" was sent ")?;
                piece.split(' ').next()?.parse::<usize>().ok()
            });
            pieces.sum::<usize>() == 60_000
        });
        pace.step();
        assert_eq!(server.shut_down().code(), Some(0));
        pace.stop();
        server.wait_for_log("disconnected: forcibly closed, 60000 bytes echoed");
        server.wait_for_log("shut down: 1 client served, 1 forcibly closed, ");
    });
}

/// Some clients are not counted if the server exits half a second after the timeout: it has not
/// waited for their threads, which the machine has delayed. The tests try again then.
#[test]
fn remaining_clients_are_forcibly_closed_at_the_timeout() {
    run_at_once(&[
        clients_are_forcibly_closed_and_counted_at_the_timeout,
        quiet_client_is_closed_while_others_are_served,
        client_that_reads_slowly_is_forcibly_closed_within_a_buffer,
        #[cfg(target_os = "linux")]
        linux_unsent_data_delays_exit_until_the_shutdown_timeout,
    ]);
}

fn clients_are_forcibly_closed_and_counted_at_the_timeout() {
    // The server counts a client as quiet after 0.4 s without a byte.
    retry_if_late(Duration::from_millis(200), |pace| {
        let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "700ms"]) else {
            return;
        };
        let never_reads = server.connect();
        fill(&never_reads);
        let never_pauses = server.connect();
        pace.step();
        exchange(&never_pauses, b"hello");
        let begin = Instant::now();
        server.signal(Signal::TERM);
        send_until_closed(&never_pauses, pace);
        assert_eq!(server.wait().code(), Some(0));
        pace.stop();
        assert!(
            begin.elapsed() >= Duration::from_millis(700),
            "{:?}",
            begin.elapsed()
        );
        server.wait_for_logs(2, "disconnected: forcibly closed, ");
        server.wait_for_log("shut down: 2 clients served, 2 forcibly closed, ");
    });
}

/// Exchanges messages until the server closes the connection.
fn send_until_closed(mut client: &TcpStream, pace: &mut Pace) {
    loop {
        pace.step();
        if client.write_all(b"more").is_err() || !client.read(&mut [0; 64]).is_ok_and(|n| n > 0) {
            return;
        }
    }
}

/// The quiet client waits up to 1.4 s for the others, which may share its link.
fn quiet_client_is_closed_while_others_are_served() {
    let Some(server) = Server::start_to_signal(&["--shutdown-timeout", "4s"]) else {
        return;
    };
    let never_reads = server.connect();
    fill(&never_reads);
    let never_pauses = server.connect();
    let quiet = server.connect_and_exchange(b"hello");
    thread::scope(|scope| {
        scope.spawn(|| send_until_closed(&never_pauses, &mut Pace::default()));
        server.signal(Signal::TERM);
        assert_eq!(read_until_fin(&quiet), b"");
        let address = local_address(&quiet);
        drop(quiet);
        server.wait_for_log(&format!("{address} disconnected: server shutting down, "));
        // Closes the connection that the thread uses.
        drop(server);
    });
}

fn client_that_reads_slowly_is_forcibly_closed_within_a_buffer() {
    retry_if_late(Duration::from_millis(900), |pace| {
        let flags = ["--buffer-size", "16MiB", "--shutdown-timeout", "500ms"];
        let Some(mut server) = Server::start_to_signal(&flags) else {
            return;
        };
        let client = server.connect();
        fill(&client);
        pace.step();
        server.signal(Signal::TERM);
        thread::scope(|scope| {
            // So slow that a part of the buffer is always pending, so fast that the server is never
            // blocked for long.
            scope.spawn(|| {
                let mut piece = vec![0; 100_000];
                while (&client).read_exact(&mut piece).is_ok() {
                    thread::sleep(Duration::from_millis(50));
                }
            });
            assert_eq!(server.wait().code(), Some(0));
        });
        pace.stop();
        server.wait_for_log("disconnected: forcibly closed, ");
        server.wait_for_log("shut down: 1 client served, 1 forcibly closed, ");
    });
}

#[test]
fn shutdown_timeout_of_zero_forcibly_closes_clients_at_once() {
    retry_if_late(Duration::from_millis(400), |pace| {
        if !signal::can_be_sent() {
            return;
        }
        let mut server = Server::spawn(local_server().env("ECHO_SERVER_SHUTDOWN_TIMEOUT", "0s"));
        let _client = server.connect_and_exchange(b"hello");
        pace.step();
        assert_eq!(server.shut_down().code(), Some(0));
        pace.stop();
        server.wait_for_log("shut down: 1 client served, 1 forcibly closed, 5 bytes echoed");
    });
}

/// Data of other clients keeps an active client, because their link may be shared. A FIN is no data.
#[test]
fn clients_that_close_do_not_delay_the_fin_of_another() {
    retry_if_late(Duration::from_millis(400), |pace| {
        let Some(mut server) = Server::start_to_signal(&[]) else {
            return;
        };
        let closing = [(); 2].map(|()| server.connect());
        let staying = server.connect();
        for client in closing.iter().chain([&staying]) {
            exchange(client, b"active");
        }
        pace.step();
        server.signal(Signal::TERM);
        for client in closing {
            thread::sleep(Duration::from_millis(300));
            drop(client);
            pace.step();
        }
        pace.stop();
        let closed_at = Instant::now();
        assert_eq!(read_until_fin(&staying), b"");
        // It was quiet for 0.4 s before the second client closed.
        let delay = closed_at.elapsed();
        assert!(delay < Duration::from_millis(200), "{delay:?}");
        drop(staying);
        assert_eq!(server.wait().code(), Some(0));
    });
}

#[test]
fn client_that_resets_during_the_drain_does_not_delay_exit() {
    let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "1h"]) else {
        return;
    };
    let client = server.connect();
    fill(&client);
    server.signal(Signal::TERM);
    server.wait_for_log("shutting down: ");
    common::reset(client);
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_log("disconnected: reset by client, ");
}
