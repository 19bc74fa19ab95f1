//! What systemd gives and wants to hear: a listening socket handed over, readiness, the stop.
#![cfg(all(target_os = "linux", feature = "systemd"))]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::tools::{Tool, wait_until_listening};
use common::{
    PATIENCE, Server, command, connect, echo_server, exchange, half_close, listen, local_address,
    noise, read_until_fin, reserve_port, run,
};
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_echo-server");

/// A server to which `socket` is handed over as a service manager does it, by the number 3 and the
/// environment; the manager keeps it open.
fn hand_over(socket: &impl AsFd) -> Command {
    let socket = socket
        .as_fd()
        .try_clone_to_owned()
        .expect("it has one more name");
    let script = r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" --port 1"#;
    let mut shell = command("sh");
    shell.args(["-c", script, PROGRAM]).stdin(socket);
    shell
}

#[test]
fn a_socket_that_is_handed_over_is_served_and_host_and_port_mean_nothing() {
    let (listener, address) = listen();
    let server = Server::spawn(&mut hand_over(&listener));
    assert_eq!(server.address, address);
    server.wait_for_log("using the inherited socket (LISTEN_FDS); --host and --port are ignored");
    exchange(&server.connect(), b"hello");
}

#[test]
fn a_restart_refuses_nobody_and_loses_nothing() {
    let (listener, address) = listen();
    let mut waiting: Option<(TcpStream, Vec<u8>)> = None;
    for round in 0..5 {
        let mut server = Server::spawn(&mut hand_over(&listener));
        assert_eq!(server.address, address);
        if let Some((client, sent)) = waiting.take() {
            assert!(read_until_fin(&client) == sent, "round {round}");
        }
        exchange(&server.connect(), b"hello");
        assert_eq!(server.shut_down().code(), Some(0));
        // While no server runs at all.
        let mut client = server.connect();
        let sent = noise(50_000, round);
        client.write_all(&sent).expect("the bytes are sent");
        half_close(&client);
        waiting = Some((client, sent));
    }
}

/// It was in the queue before the socket had the server's options.
#[test]
fn the_first_client_is_served_as_any_other() {
    let (listener, _) = listen();
    let first = connect(listener.local_addr().expect("the socket has an address"));
    let mut command = hand_over(&listener);
    let mut server = Server::spawn(command.env("ECHO_SERVER_IDLE_TIMEOUT", "2s"));
    let socket = socket2::SockRef::from(&first);
    (&first).write_all(b"abc").expect("the bytes are sent");
    socket.send_out_of_band(b"U").expect("the byte is sent");
    (&first).write_all(b"def").expect("the bytes are sent");
    assert_eq!(read_until_fin(&first), b"abcUdef");
    server.wait_for_disconnect(local_address(&first));
    server.wait_for_log("disconnected: idle timeout, 7 bytes echoed");
    assert_eq!(server.shut_down().code(), Some(0));
}

#[test]
fn a_stop_at_the_limit_leaves_those_who_wait_to_the_next_server() {
    let (listener, address) = listen();
    let limited = |listener: &TcpListener| {
        let mut command = hand_over(listener);
        command.env("ECHO_SERVER_MAX_CONNECTIONS", "1");
        command.env("ECHO_SERVER_SHUTDOWN_TIMEOUT", "300ms");
        Server::spawn(&mut command)
    };
    let mut server = limited(&listener);
    let inside = server.connect();
    let _owed = common::fill(&inside);
    let waiting: Vec<TcpStream> = (0..5).map(|_| connect(address)).collect();
    for mut client in &waiting {
        client.write_all(b"hello").expect("the bytes are sent");
        half_close(client);
    }
    assert_eq!(server.shut_down().code(), Some(0));
    drop(inside);
    let _next = limited(&listener);
    for client in waiting {
        assert_eq!(read_until_fin(&client), b"hello");
    }
}

#[test]
fn a_stop_is_heard_though_the_socket_was_left_non_blocking() {
    let (listener, _) = listen();
    listener.set_nonblocking(true).expect("the mode can be set");
    let mut server = Server::spawn(&mut hand_over(&listener));
    exchange(&server.connect(), b"hello");
    assert_eq!(server.shut_down().code(), Some(0));
}

/// Runs `command`, which must fail with exit code 1; its one line on stderr.
fn fails(command: &mut Command) -> String {
    let output = run(command);
    let stderr = String::from_utf8(output.stderr).expect("the message is text");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty());
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

#[test]
fn what_cannot_be_served_is_told_with_what_to_write_in_the_socket_unit() {
    let (_listener, address) = listen();
    let connected = fails(&mut hand_over(&connect(address)));
    assert!(connected.contains("it does not listen") && connected.contains("Accept= no"));
    let null = File::open("/dev/null").expect("it can be opened");
    let no_socket = fails(&mut hand_over(&null));
    assert!(
        no_socket.contains("ListenStream= must be a TCP port"),
        "{no_socket}"
    );

    let two = fails(command("sh").args(["-c", r#"LISTEN_FDS=2 LISTEN_PID=$$ exec "$0""#, PROGRAM]));
    assert!(
        two.contains("inherited 2 sockets") && two.contains("ListenStream="),
        "{two}"
    );
    let many = fails(echo_server().env("LISTEN_FDS", "2000000000"));
    assert!(many.contains("inherited 2000000000 sockets"), "{many}");
}

#[test]
fn a_socket_for_another_process_is_none_of_its_business() {
    let mut command = echo_server();
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    let server = Server::spawn(command.args(["--host", "127.0.0.1", "--port", "0"]));
    exchange(&server.connect(), b"hello");
}

/// Where a service manager listens for news.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(name: &str) -> Self {
        let path = format!("echo-server-test-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(path);
        let socket = UnixDatagram::bind(&path).expect("a socket can be created");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("the timeout can be set");
        Self { socket, path }
    }

    fn news(&self) -> String {
        let mut news = [0; 1000];
        let length = self.socket.recv(&mut news).expect("news come");
        String::from_utf8_lossy(&news[..length]).into_owned()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
fn the_manager_is_told_when_the_server_is_ready_and_when_it_stops() {
    let manager = Manager::new("news");
    let mut command = echo_server();
    command
        .args(["--host", "127.0.0.1", "--port", "0"])
        .env("NOTIFY_SOCKET", &manager.path);
    let mut server = Server::spawn(&mut command);
    assert_eq!(manager.news(), "READY=1");
    exchange(&server.connect(), b"hello");
    server.signal(Signal::TERM);
    assert_eq!(manager.news(), "STOPPING=1");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_manager_that_is_gone_does_not_stop_the_service() {
    let mut command = echo_server();
    command
        .args(["--host", "127.0.0.1", "--port", "0"])
        .env("NOTIFY_SOCKET", "/nowhere/at/all");
    let mut server = Server::spawn(&mut command);
    server.wait_for_log("cannot send READY=1 to the service manager: ");
    exchange(&server.connect(), b"hello");
    assert_eq!(server.shut_down().code(), Some(0));
}

#[test]
fn a_manager_with_an_abstract_name_is_told_too() {
    let name = format!("echo-server-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("it is a name");
    let manager = UnixDatagram::bind_addr(&address).expect("it can be had");
    manager
        .set_read_timeout(Some(PATIENCE))
        .expect("the timeout can be set");
    let mut command = echo_server();
    command
        .args(["--host", "127.0.0.1", "--port", "0"])
        .env("NOTIFY_SOCKET", format!("@{name}"));
    let _server = Server::spawn(&mut command);
    let mut news = [0; 100];
    let length = manager.recv(&mut news).expect("news come");
    assert_eq!(&news[..length], b"READY=1");
}

#[test]
fn a_manager_that_does_not_read_holds_up_nothing() {
    let manager = Manager::new("full");
    // A sender has a limit of its own, and the manager's queue another.
    let fillers: Vec<UnixDatagram> = (0..100)
        .map(|_| {
            let filler = UnixDatagram::unbound().expect("a socket can be created");
            filler.set_nonblocking(true).expect("the mode can be set");
            while filler.send_to(b"x", &manager.path).is_ok() {}
            filler
        })
        .collect();
    let mut command = echo_server();
    command
        .args(["--host", "127.0.0.1", "--port", "0"])
        .env("NOTIFY_SOCKET", &manager.path);
    let mut server = Server::spawn(&mut command);
    server.wait_for_log("cannot send READY=1 to the service manager");
    exchange(&server.connect(), b"hello");
    assert_eq!(server.shut_down().code(), Some(0));
    drop(fillers);
}

/// systemd's own tool for trying out a service: it listens, and starts the server for the first
/// client.
#[test]
fn systemds_own_tool_can_start_the_server() {
    let (_reserved, address) = reserve_port();
    let mut command = command("systemd-socket-activate");
    command.args(["--listen", &address.to_string(), PROGRAM]);
    let Some(mut server) = Tool::start(command.stdout(Stdio::null()).stderr(Stdio::null())) else {
        return;
    };
    wait_until_listening(address);
    exchange(&connect(address), b"hello");
    let pid = Pid::from_child(&server.0);
    kill_process(pid, Signal::TERM).expect("it can be signalled");
    assert_eq!(server.wait().code(), Some(0));
}
