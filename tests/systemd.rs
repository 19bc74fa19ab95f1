//! Socket activation and readiness notifications: what systemd passes to a service, and what it
//! expects from one. Needs the feature `systemd`.
#![cfg(all(target_os = "linux", feature = "systemd"))]

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::signal::{self, Signal};
use crate::common::tools::{Tool, wait_until_listening};
use crate::common::{
    self, PATIENCE, Server, assert_contains, command, connect, echo_server, error_of, exchange,
    half_close, listen, local_address, local_server, noise, read_until_fin, reserve_port, send,
};

const BINARY: &str = env!("CARGO_BIN_EXE_echo-server");

/// Returns a command for a server that inherits `socket` as from a service manager: as file
/// descriptor 3, with environment variables that say so. The test keeps the socket open.
fn inheriting(socket: &impl AsFd) -> Command {
    let socket = socket
        .as_fd()
        .try_clone_to_owned()
        .expect("the descriptor can be duplicated");
    let script = r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" --port 1"#;
    let mut shell = command("sh");
    shell.args(["-c", script, BINARY]).stdin(socket);
    shell
}

#[test]
fn inherited_socket_is_served_instead_of_host_and_port() {
    let (listener, address) = listen();
    let server = Server::spawn(&mut inheriting(&listener));
    assert_eq!(server.address, address);
    server.wait_for_log("using the inherited socket (LISTEN_FDS); --host and --port are ignored");
    exchange(&server.connect(), b"hello");
}

#[test]
fn restart_refuses_no_client_and_loses_no_byte() {
    let (listener, address) = listen();
    let mut waiting: Option<(TcpStream, Vec<u8>)> = None;
    for round in 0..5 {
        let mut server = Server::spawn(&mut inheriting(&listener));
        assert_eq!(server.address, address);
        if let Some((client, sent)) = waiting.take() {
            assert!(read_until_fin(&client) == sent, "round {round}");
        }
        exchange(&server.connect(), b"hello");
        assert_eq!(server.shut_down().code(), Some(0));
        // No server runs while this client connects.
        let sent = noise(50_000, round);
        let client = server.connect_and_send(&sent);
        half_close(&client);
        waiting = Some((client, sent));
    }
}

/// The first client is in the listen backlog before the server sets the socket's options, so it
/// cannot inherit them.
#[test]
fn first_client_of_an_inherited_socket_has_all_options() {
    let (listener, address) = listen();
    let first = connect(address);
    // Sent before the server runs, whose idle timeout could elapse between them.
    let socket = socket2::SockRef::from(&first);
    send(&first, b"abc");
    socket.send_out_of_band(b"U").expect("the byte is sent");
    send(&first, b"def");
    let mut command = inheriting(&listener);
    let mut server = Server::spawn(command.env("ECHO_SERVER_IDLE_TIMEOUT", "500ms"));
    assert_eq!(read_until_fin(&first), b"abcUdef");
    server.wait_for_disconnect(local_address(&first));
    server.wait_for_log("disconnected: idle timeout, 7 bytes echoed");
    assert_eq!(server.shut_down().code(), Some(0));
}

/// Takes three seconds: the admitted client is closed at the shutdown timeout, which is longer than a
/// busy machine may delay the accept loop. Until then it holds the permit.
#[test]
fn clients_over_the_limit_are_left_to_the_next_server() {
    let (listener, address) = listen();
    let limited = |listener: &TcpListener| {
        let mut command = inheriting(listener);
        command.env("ECHO_SERVER_MAX_CONNECTIONS", "1");
        command.env("ECHO_SERVER_SHUTDOWN_TIMEOUT", "2500ms");
        Server::spawn(&mut command)
    };
    let mut server = limited(&listener);
    let admitted = server.connect();
    common::fill(&admitted);
    let waiting: Vec<TcpStream> = (0..5).map(|_| connect(address)).collect();
    for client in &waiting {
        send(client, b"hello");
        half_close(client);
    }
    assert_eq!(server.shut_down().code(), Some(0));
    drop(admitted);
    let _next = limited(&listener);
    for client in waiting {
        assert_eq!(read_until_fin(&client), b"hello");
    }
}

#[test]
fn server_with_a_non_blocking_socket_serves_and_shuts_down() {
    let (listener, _) = listen();
    listener.set_nonblocking(true).expect("the mode can be set");
    let mut server = Server::spawn(&mut inheriting(&listener));
    exchange(&server.connect(), b"hello");
    assert_eq!(server.shut_down().code(), Some(0));
}

#[test]
fn error_for_an_unusable_socket_says_what_the_unit_needs() {
    let (_listener, address) = listen();
    let connected = error_of(&mut inheriting(&connect(address)));
    assert_contains(&connected, "it does not listen");
    assert_contains(&connected, "Accept= no");
    let null = File::open("/dev/null").expect("the file can be opened");
    let no_socket = error_of(&mut inheriting(&null));
    assert_contains(&no_socket, "ListenStream= must be a TCP port");

    let two =
        error_of(command("sh").args(["-c", r#"LISTEN_FDS=2 LISTEN_PID=$$ exec "$0""#, BINARY]));
    assert_contains(&two, "inherited 2 sockets");
    assert_contains(&two, "ListenStream=");
    let many = error_of(echo_server().env("LISTEN_FDS", "2000000000"));
    assert_contains(&many, "inherited 2000000000 sockets");
}

#[test]
fn socket_for_another_process_is_ignored() {
    let mut command = local_server();
    let server = Server::spawn(command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1"));
    exchange(&server.connect(), b"hello");
}

/// The notification socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(name: &str) -> Self {
        let path = format!("echo-server-test-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(path);
        // A run that was killed may have left it, and its process ID may be ours.
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).expect("a socket can be created");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("the timeout can be set");
        Self { socket, path }
    }

    /// Returns the next notification.
    fn receive(&self) -> String {
        let mut message = [0; 1000];
        let length = self.socket.recv(&mut message);
        let length = length.expect("a notification arrives");
        String::from_utf8_lossy(&message[..length]).into_owned()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
fn manager_is_notified_of_readiness_and_shutdown() {
    let manager = Manager::new("notified");
    let mut server = Server::spawn(local_server().env("NOTIFY_SOCKET", &manager.path));
    assert_eq!(manager.receive(), "READY=1");
    exchange(&server.connect(), b"hello");
    server.signal(Signal::TERM);
    assert_eq!(manager.receive(), "STOPPING=1");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn missing_manager_does_not_stop_the_service() {
    let mut server = Server::spawn(local_server().env("NOTIFY_SOCKET", "/nowhere/at/all"));
    server.wait_for_log("cannot send READY=1 to the service manager: ");
    exchange(&server.connect(), b"hello");
    assert_eq!(server.shut_down().code(), Some(0));
}

#[test]
fn manager_with_an_abstract_address_is_notified() {
    let name = format!("echo-server-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("the name is valid");
    let manager = UnixDatagram::bind_addr(&address).expect("the address is free");
    manager
        .set_read_timeout(Some(PATIENCE))
        .expect("the timeout can be set");
    let _server = Server::spawn(local_server().env("NOTIFY_SOCKET", format!("@{name}")));
    let mut message = [0; 100];
    let length = manager.recv(&mut message).expect("a notification arrives");
    assert_eq!(&message[..length], b"READY=1");
}

#[test]
fn manager_that_does_not_read_does_not_block_the_service() {
    let manager = Manager::new("full");
    // Many senders: one of them would reach its own limit before it fills the manager's queue.
    let fillers: Vec<UnixDatagram> = (0..100)
        .map(|_| {
            let filler = UnixDatagram::unbound().expect("a socket can be created");
            filler.set_nonblocking(true).expect("the mode can be set");
            while filler.send_to(b"x", &manager.path).is_ok() {}
            filler
        })
        .collect();
    let mut server = Server::spawn(local_server().env("NOTIFY_SOCKET", &manager.path));
    server.wait_for_log("cannot send READY=1 to the service manager");
    let client = server.connect();
    exchange(&client, b"hello");
    common::fill(&client);
    server.signal(Signal::TERM);
    server.wait_for_log("shutting down: ");
    // Far below the second that the manager gets at the start.
    thread::sleep(Duration::from_millis(100));
    let begin = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(130));
    assert!(
        begin.elapsed() < Duration::from_millis(500),
        "{:?}",
        begin.elapsed()
    );
    drop(fillers);
}

/// `systemd-socket-activate` is systemd's tool to try out socket activation. It listens, and starts
/// the server when the first client connects.
#[test]
fn systemd_socket_activate_can_start_the_server() {
    let (_reserved, address) = reserve_port();
    let mut command = command("systemd-socket-activate");
    command.args(["--listen", &address.to_string(), BINARY]);
    let Some(mut server) = Tool::start(command.stdout(Stdio::null()).stderr(Stdio::null())) else {
        return;
    };
    wait_until_listening(address);
    exchange(&connect(address), b"hello");
    signal::send(&server.0, Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
}
