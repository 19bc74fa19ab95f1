//! The idle timeout (`--idle-timeout`): a connection is closed after this long without a byte in or
//! out.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    Server, assert_contains, exchange, fill, local_address, local_server, read_until_fin, retry,
    retry_if_late, run_at_once, send_and_read_all,
};

#[test]
fn idle_clients_get_fin_whether_they_sent_bytes_or_not() {
    retry_if_late(Duration::from_millis(400), |pace| {
        let server = Server::start(&["--idle-timeout", "500ms"]);
        pace.step();
        let silent = server.connect();
        let active_before = server.connect();
        let begin = Instant::now();
        pace.step();
        exchange(&active_before, b"hello");
        pace.stop();
        for client in [&silent, &active_before] {
            assert_eq!(read_until_fin(client), b"");
        }
        assert!(
            begin.elapsed() >= Duration::from_millis(450),
            "closed after {:?}",
            begin.elapsed()
        );
        let addresses = [&silent, &active_before].map(local_address);
        drop((silent, active_before));
        for address in addresses {
            let line = server.wait_for_disconnect(address);
            assert_contains(&line, "disconnected: idle timeout, ");
        }
    });
}

#[test]
fn idle_timeout_is_on_time_after_an_echo() {
    // A busy machine may delay clients.
    let most_are_closed_on_time = || {
        let server = Server::start(&["--idle-timeout", "100ms"]);
        let clients = [(); 9].map(|()| {
            let mut client = server.connect();
            let begin = Instant::now();
            client.write_all(b"hello").ok()?;
            // Fails if the timeout has elapsed before "hello" was sent.
            client.read_exact(&mut [0; 5]).ok()?;
            Some((client, begin))
        });
        let mut times: Vec<Duration> = Vec::new();
        for (client, begin) in clients.iter().flatten() {
            assert_eq!(read_until_fin(client), b"");
            times.push(begin.elapsed());
        }
        times.sort();
        if times.len() < 9 {
            return false;
        }
        assert!(times[0] >= Duration::from_millis(100), "{times:?}");
        times[4] < Duration::from_millis(200)
    };
    retry(most_are_closed_on_time, "most clients are closed late");
}

/// Takes two to three seconds: filling the buffers, and then the timeout.
#[test]
fn client_that_never_reads_is_idle() {
    run_at_once(&[
        client_that_never_reads_is_idle_and_harms_no_other,
        idle_timeout_applies_during_the_drain,
    ]);
}

/// The timeout must be longer than `fill` takes.
fn client_that_never_reads_is_idle_and_harms_no_other() {
    retry_if_late(Duration::from_millis(700), |pace| {
        let server = Server::spawn(local_server().env("ECHO_SERVER_IDLE_TIMEOUT", "1s"));
        pace.step();
        let blocked = server.connect();
        fill(&blocked);
        pace.step();
        exchange(&server.connect(), b"others are served");
        pace.stop();
        let address = local_address(&blocked);
        server.wait_for_log(&format!("{address} disconnected: idle timeout, "));
    });
}

fn idle_timeout_applies_during_the_drain() {
    retry_if_late(Duration::from_millis(700), |pace| {
        let flags = ["--shutdown-timeout", "1h", "--idle-timeout", "1s"];
        let Some(mut server) = Server::start_to_signal(&flags) else {
            return;
        };
        pace.step();
        let client = server.connect();
        fill(&client);
        pace.stop();
        assert_eq!(server.shut_down().code(), Some(0));
        server.wait_for_log("disconnected: idle timeout, ");
    });
}

/// Takes two seconds, longer than the timeout by design, so the clients are tested at once.
#[test]
fn clients_that_send_or_read_often_enough_are_not_closed() {
    run_at_once(&[
        client_that_sends_often_enough_is_not_closed,
        client_that_reads_in_bursts_is_not_closed_between_them,
        #[cfg(target_os = "linux")]
        linux_client_that_reads_slowly_is_not_closed,
    ]);
}

fn client_that_sends_often_enough_is_not_closed() {
    retry_if_late(Duration::from_millis(250), |pace| {
        let server = Server::start(&["--idle-timeout", "500ms"]);
        pace.step();
        let client = server.connect();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(1200) {
            pace.step();
            exchange(&client, b"still here");
            thread::sleep(Duration::from_millis(50));
        }
        pace.step();
        assert_eq!(send_and_read_all(&client, &[b"bye"]), b"bye");
        pace.stop();
        server.wait_for_log("disconnected: closed by client, ");
    });
}

fn client_that_reads_in_bursts_is_not_closed_between_them() {
    retry_if_late(Duration::from_millis(800), |pace| {
        let server = Server::start(&["--idle-timeout", "1s"]);
        let client = server.connect();
        pace.step();
        let sent = fill(&client);
        let mut echo = vec![0; sent.len()];
        // Six bursts in 1.8 s. Between them, the server is mostly blocked.
        for burst in echo.chunks_mut(sent.len().div_ceil(6)) {
            thread::sleep(Duration::from_millis(300));
            pace.step();
            (&client)
                .read_exact(burst)
                .expect("the server still echoes");
        }
        assert!(echo == sent);
    });
}

/// On other systems a socket becomes writable only when a large part of its buffer has been sent.
#[cfg(target_os = "linux")]
fn linux_client_that_reads_slowly_is_not_closed() {
    retry_if_late(Duration::from_millis(450), |pace| {
        let server = Server::start(&["--idle-timeout", "1s"]);
        // A small buffer: a large one would have room for all that the client reads.
        let client = crate::common::connect_with_buffer(server.address, 20_000);
        pace.step();
        fill(&client);
        // Pieces of a small part of what is pending, in 1.6 s. The client's kernel accepts more from
        // the server after each 64 KiB at the latest, so each 0.4 s.
        let mut piece = vec![0; 8_192];
        for _ in 0..4 {
            pace.step();
            for _ in 0..8 {
                thread::sleep(Duration::from_millis(50));
                (&client)
                    .read_exact(&mut piece)
                    .expect("the server still echoes");
            }
        }
        pace.stop();
        let disconnected = format!("{} disconnected", local_address(&client));
        server.assert_log_count(0, &disconnected);
    });
}
