//! `--max-connections` and `--idle-timeout`.

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use common::{Server, exchange, fill, local_address, local_server, read_until_fin};

/// Connects, and sends a byte that will be echoed once the server has a place.
fn knock(server: &Server) -> TcpStream {
    let mut client = server.connect();
    client.write_all(b"k").expect("the byte is sent");
    client
}

/// Takes the echo of the byte that `knock` sent.
fn is_let_in(client: &TcpStream) {
    let mut echo = [0];
    std::io::Read::read_exact(&mut &*client, &mut echo).expect("the echo comes back");
    assert_eq!(&echo, b"k");
}

fn address(client: &TcpStream) -> String {
    local_address(client).to_string()
}

#[test]
fn clients_over_the_limit_wait_and_are_served_in_order_as_places_come_free() {
    let server = Server::start(&["--max-connections", "2"]);
    let (first, second) = (knock(&server), knock(&server));
    is_let_in(&first);
    is_let_in(&second);
    server.wait_for_log("connection limit reached (2): new clients wait in the listen backlog");
    let (third, fourth) = (knock(&server), knock(&server));
    let inside = |client: &TcpStream| {
        let line = format!("{} connected", address(client));
        server.log().iter().any(|logged| logged.ends_with(&line))
    };

    assert!(!inside(&third) && !inside(&fourth));
    let third_address = address(&third);
    drop(first);
    is_let_in(&third);
    assert!(!inside(&fourth));
    exchange(&second, b"those inside are served all the while");
    drop(second);
    is_let_in(&fourth);
    drop((third, fourth));

    server.wait_for_log("accepting new clients again");
    let log = server.log();
    let line = |text: &str| log.iter().position(|line| line.contains(text));
    assert!(
        line(" disconnected: ") < line(&format!("{third_address} connected")),
        "{log:#?}"
    );
    let told = |text: &str| {
        server
            .log()
            .iter()
            .filter(|line| line.contains(text))
            .count()
    };
    assert_eq!(
        (
            told("connection limit reached"),
            told("accepting new clients again")
        ),
        (1, 1),
        "{:#?}",
        server.log()
    );
}

#[test]
fn the_limit_comes_from_its_variable_too() {
    let server = Server::spawn(local_server().env("ECHO_SERVER_MAX_CONNECTIONS", "1"));
    is_let_in(&knock(&server));
    server.wait_for_log("connection limit reached (1)");
}

#[test]
fn a_stop_at_the_limit_works_at_once_and_serves_those_who_wait() {
    let flags = ["--max-connections", "1", "--shutdown-timeout", "1h"];
    let Some(mut server) = Server::start_to_signal(&flags) else {
        return;
    };
    let inside = knock(&server);
    is_let_in(&inside);
    let waiting: Vec<TcpStream> = (0..3).map(|_| knock(&server)).collect();
    server.signal(common::signal::Signal::TERM);
    for client in waiting {
        is_let_in(&client);
        assert_eq!(read_until_fin(&client), b"");
    }
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for_log("shut down: 4 clients served, 0 forcibly closed, 4 bytes echoed");
}

#[test]
fn a_client_that_never_speaks_and_one_that_spoke_are_closed_with_fin_once_idle() {
    let server = Server::start(&["--idle-timeout", "2s"]);
    let silent = server.connect();
    let spoke = server.connect();
    let begin = Instant::now();
    exchange(&spoke, b"hello");
    for client in [&silent, &spoke] {
        assert_eq!(read_until_fin(client), b"");
    }
    assert!(
        begin.elapsed() >= Duration::from_millis(1900),
        "closed after {:?}",
        begin.elapsed()
    );
    let addresses = [address(&silent), address(&spoke)];
    drop((silent, spoke));
    for address in addresses {
        server.wait_for_log(&format!("{address} disconnected: idle timeout, "));
    }
}

#[test]
fn a_client_that_sends_and_never_reads_is_idle_too_and_harms_nobody() {
    let server = Server::spawn(local_server().env("ECHO_SERVER_IDLE_TIMEOUT", "2s"));
    let stuck = server.connect();
    let address = address(&stuck);
    fill(&stuck);
    exchange(&server.connect(), b"others are served");
    server.wait_for_log(&format!("{address} disconnected: idle timeout, "));
}

#[test]
fn a_client_that_speaks_more_often_than_the_idle_timeout_is_never_closed() {
    let server = Server::start(&["--idle-timeout", "2s"]);
    let client = server.connect();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        exchange(&client, b"still here");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(common::send_and_read_all(&client, &[b"bye"]), b"bye");
    server.wait_for_log("disconnected: closed by client, ");
}

#[test]
fn a_client_that_reads_in_gulps_is_not_idle_in_between() {
    let server = Server::start(&["--idle-timeout", "2s"]);
    let client = server.connect();
    let sent = fill(&client);
    let mut echo = vec![0; sent.len()];
    // Ten in five seconds; the server is blocked for a good part of it.
    for gulp in echo.chunks_mut(sent.len().div_ceil(10)) {
        thread::sleep(Duration::from_millis(500));
        std::io::Read::read_exact(&mut &client, gulp).expect("the server still echoes");
    }
    assert!(echo == sent);
}

/// Elsewhere a socket has room again only when a good part of its buffer has been sent.
#[test]
#[cfg(target_os = "linux")]
fn linux_a_client_that_reads_slowly_is_not_idle_as_long_as_bytes_move() {
    let server = Server::start(&["--idle-timeout", "2s"]);
    // A small buffer: in a large one the client's system would have room for all that it reads.
    let client = common::connect_with_buffer(server.address, 20_000);
    fill(&client);
    // Sixty pieces in six seconds, a small part of what the server has yet to write. The kernel
    // accepts more from the server after each 64 KiB at the latest.
    let mut piece = vec![0; 5_000];
    for _ in 0..60 {
        thread::sleep(Duration::from_millis(100));
        std::io::Read::read_exact(&mut &client, &mut piece).expect("the server still echoes");
    }
    let departure = format!("{} disconnected", address(&client));
    assert!(
        !server.log().iter().any(|line| line.contains(&departure)),
        "{:#?}",
        server.log()
    );
}

/// Takes a second, because it waits for the timeout nine times.
#[test]
fn idle_timeout_is_on_time_after_an_echo() {
    let server = Server::start(&["--idle-timeout", "100ms"]);
    let mut times = [(); 9].map(|()| {
        let client = server.connect();
        exchange(&client, b"hello");
        let begin = Instant::now();
        assert_eq!(read_until_fin(&client), b"");
        begin.elapsed()
    });
    times.sort();
    // A busy machine may delay some of them. The server has sent the echo before this thread reads it.
    assert!(times[0] > Duration::from_millis(80), "{times:?}");
    assert!(times[4] < Duration::from_millis(200), "{times:?}");
}
