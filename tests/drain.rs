//! What a stop promises: what a client had sent before it comes back, then FIN, never RST.

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use common::signal::{self, Signal};
use common::{Server, exchange, fill, local_address, local_server, read_until_fin};

/// Unix alone can pause a program.
#[test]
#[cfg(unix)]
fn clients_in_the_kernels_queue_are_served_then_get_fin() {
    use common::noise;
    let mut server = Server::start(&[]);
    signal::pause(&server.child);
    let clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for (number, mut client) in clients.iter().enumerate() {
        client
            .write_all(&noise(1000, number as u64))
            .expect("the bytes are sent");
    }
    server.signal(Signal::TERM);
    server.signal(Signal::CONT);
    for (number, client) in clients.iter().enumerate() {
        assert!(
            read_until_fin(client) == noise(1000, number as u64),
            "client {number}"
        );
    }
    drop(clients);
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_log("shut down: 50 clients served, 0 forcibly closed, 50000 bytes echoed");
}

#[test]
fn a_client_that_reads_late_gets_all_that_it_had_sent_then_fin() {
    let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "1h"]) else {
        return;
    };
    let client = server.connect();
    let sent = fill(&client);
    server.signal(Signal::TERM);
    server.wait_for_log("shutting down: ");
    assert!(read_until_fin(&client) == sent);
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_log("disconnected: server shutting down, ");
}

#[test]
fn bytes_that_come_shortly_after_the_stop_come_back_too() {
    // Should this thread not get to run for so long that the client counts as quiet: once more.
    for _ in 0..20 {
        let flags = ["--shutdown-timeout", "1h"];
        let Some(mut server) = Server::start_to_signal(&flags) else {
            return;
        };
        let mut client = server.connect();
        exchange(&client, b"before");
        let begin = Instant::now();
        server.signal(Signal::TERM);
        server.wait_for_log("shutting down: ");
        let sent = client.write_all(b"on their way");
        let was_late = begin.elapsed() > Duration::from_millis(80);
        let echo = sent.map(|()| read_until_fin(&client));
        if was_late && !echo.as_ref().is_ok_and(|echo| echo == b"on their way") {
            continue;
        }
        assert_eq!(echo.expect("the bytes are sent"), b"on their way");
        drop(client);
        assert_eq!(server.wait().code(), Some(0));
        return;
    }
    panic!("this machine is too busy to tell");
}

#[test]
fn a_client_that_sends_after_the_servers_fin_gets_no_rst_while_the_server_lingers() {
    // The server waits 0.1 s for quiet and lingers for 0.3 s. Should this thread not get to run in that
    // time, it has seen nothing: once more.
    for _ in 0..20 {
        let Some(server) = Server::start_to_signal(&[]) else {
            return;
        };
        let mut client = server.connect();
        exchange(&client, b"before");
        let begin = Instant::now();
        server.signal(Signal::TERM);
        assert_eq!(read_until_fin(&client), b"");
        // The first would be answered with RST, and then the second would fail.
        let sent = client
            .write_all(b"too")
            .and_then(|()| client.write_all(b"late"));
        let closed = sent.and_then(|()| client.shutdown(Shutdown::Write));
        if closed.is_err() && begin.elapsed() > Duration::from_millis(400) {
            continue;
        }
        closed.expect("no RST has come");
        server.wait_for_log("disconnected: server shutting down, 6 bytes echoed");
        assert_eq!(client.read(&mut [0]).expect("no RST has come"), 0);
        return;
    }
    panic!("the server does not linger");
}

/// Elsewhere the system does not tell what it has yet to send.
#[test]
#[cfg(target_os = "linux")]
fn linux_the_server_stays_as_long_as_the_system_has_yet_to_send_what_a_client_is_owed() {
    let mut server = Server::start(&["--shutdown-timeout", "1h"]);
    let mut client = common::connect_with_buffer(server.address, 4096);
    // Small enough for the server to have written it all: it is the system that still has it.
    let sent = common::noise(60_000, 9);
    client.write_all(&sent).expect("the bytes are sent");
    server.signal(Signal::TERM);
    server.wait_for_log("shutting down: ");
    // Longer than a server takes to leave a client that it owes nothing.
    thread::sleep(Duration::from_secs(1));
    assert!(
        server.child.try_wait().expect("it can be asked").is_none(),
        "the server has left"
    );
    assert!(read_until_fin(&client) == sent);
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
}

/// As above, but the client never takes it.
#[test]
#[cfg(target_os = "linux")]
fn linux_what_the_system_cannot_send_holds_a_stop_up_until_the_shutdown_timeout() {
    let mut server = Server::start(&["--shutdown-timeout", "1s"]);
    let mut client = common::connect_with_buffer(server.address, 4096);
    client
        .write_all(&common::noise(60_000, 9))
        .expect("the bytes are sent");
    assert_eq!(server.shut_down().code(), Some(0));
    server.wait_for_log("disconnected: forcibly closed, 60000 bytes echoed");
    server.wait_for_log("shut down: 1 client served, 1 forcibly closed, ");
}

#[test]
fn who_never_reads_or_never_pauses_is_cut_off_at_the_shutdown_timeout_and_counted() {
    let Some(mut server) = Server::start_to_signal(&["--shutdown-timeout", "1s"]) else {
        return;
    };
    let never_reads = server.connect();
    fill(&never_reads);
    let never_pauses = server.connect();
    exchange(&never_pauses, b"hello");
    let polite = server.connect();
    exchange(&polite, b"hello");
    let begin = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut writer, mut reader) = (&never_pauses, &never_pauses);
            while writer.write_all(b"and on").is_ok()
                && reader.read(&mut [0; 64]).is_ok_and(|n| n > 0)
            {}
        });
        server.signal(Signal::TERM);
        assert_eq!(read_until_fin(&polite), b"");
        drop(polite);
        assert_eq!(server.wait().code(), Some(0));
    });
    assert!(
        begin.elapsed() >= Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    server.wait_for_logs(2, "disconnected: forcibly closed, ");
    server.wait_for_log("shut down: 3 clients served, 2 forcibly closed, ");
}

#[test]
fn who_reads_without_end_is_cut_off_in_the_middle_of_a_buffer() {
    let flags = ["--buffer-size", "16MiB", "--shutdown-timeout", "500ms"];
    let Some(mut server) = Server::start_to_signal(&flags) else {
        return;
    };
    let client = server.connect();
    fill(&client);
    server.signal(Signal::TERM);
    thread::scope(|scope| {
        // Slow enough to be owed a part of the buffer all the time, too fast to block the server.
        scope.spawn(|| {
            let mut piece = vec![0; 100_000];
            while (&client).read_exact(&mut piece).is_ok() {
                thread::sleep(Duration::from_millis(50));
            }
        });
        assert_eq!(server.wait().code(), Some(0));
    });
    server.wait_for_log("disconnected: forcibly closed, ");
    server.wait_for_log("shut down: 1 client served, 1 forcibly closed, ");
}

#[test]
fn a_shutdown_timeout_of_zero_cuts_everybody_off_at_once() {
    if !signal::can_be_sent() {
        return;
    }
    let mut server = Server::spawn(local_server().env("ECHO_SERVER_SHUTDOWN_TIMEOUT", "0s"));
    let client = server.connect();
    exchange(&client, b"hello");
    assert_eq!(server.shut_down().code(), Some(0));
    server.wait_for_log("shut down: 1 client served, 1 forcibly closed, 5 bytes echoed");
}

#[test]
fn who_waits_for_a_place_until_the_shutdown_timeout_is_cut_off_and_counted() {
    let flags = ["--max-connections", "1", "--shutdown-timeout", "1s"];
    let Some(mut server) = Server::start_to_signal(&flags) else {
        return;
    };
    let inside = server.connect();
    fill(&inside);
    let waiting = server.connect();
    assert_eq!(server.shut_down().code(), Some(0));
    let address = local_address(&waiting);
    server.wait_for_log(&format!("{address} forcibly closed in the listen backlog"));
    server.wait_for_log("shut down: 1 client served, 2 forcibly closed, ");
}

#[test]
fn a_client_that_resets_during_the_stop_does_not_hold_it_up() {
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

#[test]
fn the_idle_timeout_holds_during_the_stop_too() {
    let flags = ["--shutdown-timeout", "1h", "--idle-timeout", "1s"];
    let Some(mut server) = Server::start_to_signal(&flags) else {
        return;
    };
    let client = server.connect();
    fill(&client);
    assert_eq!(server.shut_down().code(), Some(0));
    server.wait_for_log("disconnected: idle timeout, ");
}

#[test]
fn full_server_drains_its_backlog_within_the_timeout() {
    // The default timeout of 5 s leaves 25 ms for each client.
    let Some(mut server) = Server::start_to_signal(&["--max-connections", "1"]) else {
        return;
    };
    let admitted = server.connect();
    exchange(&admitted, b"admitted");
    let waiting: Vec<_> = (0..200).map(|_| server.connect()).collect();
    for (number, mut client) in waiting.iter().enumerate() {
        client
            .write_all(&common::noise(100, number as u64))
            .expect("the bytes are sent");
    }
    server.signal(Signal::TERM);
    assert_eq!(read_until_fin(&admitted), b"");
    drop(admitted);
    for (number, client) in waiting.into_iter().enumerate() {
        assert!(
            read_until_fin(&client) == common::noise(100, number as u64),
            "client {number}"
        );
    }
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_log(": 201 clients served, 0 ");
}
