//! The manual's haproxy configuration of three servers: a rolling restart behind it loses no byte.
//! `other_servers.rs` runs the conformance suite through haproxy.
#![cfg(target_os = "linux")]

use std::io::{ErrorKind, Read, Write};
use std::iter::zip;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::common::signal::Signal;
use crate::common::tools::Haproxy;
use crate::common::{
    PATIENCE, Server, assert_contains, connect_from, echo_server, exchange, fill, local_address,
    manual_block, noise, read_until_fin, reserve_port, send_and_read_all, set_read_timeout,
    wait_for, wait_until,
};
use socket2::Socket;

/// Three servers behind haproxy, configured as in the manual.
pub struct Cluster {
    pub servers: [Server; 3],
    /// The servers that have shut down.
    exited: Vec<Server>,
    pub haproxy: Haproxy,
    /// Reserve the servers' ports while no server listens there.
    #[allow(dead_code, reason = "held until the end")]
    reserved: [Socket; 3],
}

/// The servers' names in the manual.
const NAMES: [&str; 3] = ["one", "two", "three"];

impl Cluster {
    pub fn start() -> Option<Self> {
        let reserved = [reserve_port(), reserve_port(), reserve_port()];
        let servers = reserved
            .each_ref()
            .map(|(_, address)| start_server(*address));
        let mut config = manual_block("deploy", "### HAProxy", "haproxy").to_owned();
        replace(
            &mut config,
            "bind :54000",
            &format!("bind {}", Haproxy::BIND),
        );
        // haproxy notices each shutdown and each start sooner.
        replace(&mut config, "inter 1s", "inter 200ms");
        for (number, server) in zip(11.., &servers) {
            replace(
                &mut config,
                &format!("192.0.2.{number}:54000"),
                &server.address.to_string(),
            );
        }
        let haproxy = Haproxy::start(&config)?;
        let reserved = reserved.map(|(socket, _)| socket);
        Some(Self {
            servers,
            exited: Vec::new(),
            haproxy,
            reserved,
        })
    }

    /// Returns the index of the server that serves the client, according to the servers' logs. The
    /// client has received an echo, so the line is there or will be soon.
    fn server_of(&self, client: &TcpStream) -> usize {
        let address = local_address(client);
        let connected = format!(" {address} connected via ");
        wait_for("a server logs the client", || {
            let mut servers = self.servers.iter();
            servers.position(|server| server.count_in_log(&connected) > 0)
        })
    }

    /// Connects a client that the server `index` serves.
    fn connect_to(&self, index: usize) -> TcpStream {
        // The clients of the other servers stay connected until then, so that haproxy soon chooses
        // this server.
        let mut clients = Vec::new();
        loop {
            let client = connect(self.haproxy.address);
            exchange(&client, b"hello");
            if self.server_of(&client) == index {
                return client;
            }
            clients.push(client);
            assert!(
                clients.len() < 100,
                "server {} gets no client",
                NAMES[index]
            );
        }
    }

    /// Connects a client, checks the echo, and disconnects. Returns the index of its server.
    fn connect_once(&self) -> usize {
        let client = connect(self.haproxy.address);
        let data = noise(1000, 1);
        assert!(
            send_and_read_all(&client, &[&data]) == data,
            "a new client was not served"
        );
        self.server_of(&client)
    }

    /// Shuts a server down, checks its clients and new clients meanwhile, and starts the next server
    /// on its port. Returns the longest time that haproxy took meanwhile for a message and its echo.
    fn restart(&mut self, index: usize, clients: &[Client]) -> Duration {
        let probe = Probe::start(self.connect_to((index + 1) % 3));
        let quiet = self.connect_to(index);
        let late = self.connect_to(index);
        let pending = fill(&late);
        for client in clients {
            let mut progress = client.progress();
            progress.guaranteed = progress.sent;
        }
        let server = &self.servers[index];
        server.signal(Signal::TERM);
        assert_eq!(
            read_until_fin(&quiet),
            b"",
            "the quiet client has nothing pending"
        );

        // The server has closed its listener. It still runs, because of the late client.
        wait_until("the server refuses connections", || {
            TcpStream::connect(server.address)
                .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
        for _ in 0..10 {
            assert_ne!(
                self.connect_once(),
                index,
                "a server that shuts down got a new client"
            );
        }
        self.haproxy
            .wait_for_log(&format!("Server echo/{} is DOWN", NAMES[index]));
        assert!(
            read_until_fin(&late) == pending,
            "the late client lost pending echoes"
        );
        drop((quiet, late));

        let server = &mut self.servers[index];
        check_exit(server);
        let delay = probe.end();
        let next = start_server(server.address);
        self.exited.push(std::mem::replace(server, next));
        self.haproxy
            .wait_for_log(&format!("Server echo/{} is UP", NAMES[index]));
        drop(self.connect_to(index));
        delay
    }
}

fn start_server(address: SocketAddr) -> Server {
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = echo_server();
    command.args(["--proxy-protocol", "--host", &host, "--port", &port]);
    // The server waits up to a quarter of it for quiet clients while others keep sending.
    Server::spawn(command.args(["--shutdown-timeout", "12s"]))
}

/// Checks that the server exits without a forcibly closed client.
fn check_exit(server: &mut Server) {
    assert_eq!(server.wait().code(), Some(0));
    let log = server.rest_of_log();
    let last = log.last().expect("the log has lines");
    assert_contains(last, "shut down: ");
    assert_contains(last, " 0 forcibly closed");
}

/// Replaces `from`, which must occur once.
fn replace(config: &mut String, from: &str, to: &str) {
    assert_eq!(config.matches(from).count(), 1, "{from} in {config}");
    *config = config.replace(from, to);
}

/// Connects from an address that no other client uses, so that each log line belongs to one client.
/// Ports alone would repeat.
fn connect(front: SocketAddr) -> TcpStream {
    static CLIENTS: AtomicU16 = AtomicU16::new(1);
    let [high, low] = CLIENTS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    connect_from([127, 1, high, low], front)
}

/// A well-behaved client: it reads all the time. After FIN it connects again and sends what has not
/// been echoed. Bytes that it sent before the signal must be echoed; later ones may cross the server's
/// FIN.
#[derive(Default)]
struct Client {
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// Bytes sent on the current connection.
    sent: usize,
    /// Bytes echoed on the current connection.
    echoed: usize,
    /// Bytes sent on the current connection before the last signal to a server.
    guaranteed: usize,
    /// How often the client has sent its data and received the whole echo.
    rounds: usize,
    /// The client's addresses of connections that the server closed first.
    closed_by_server: Vec<SocketAddr>,
    /// Connections on which guaranteed bytes were not echoed.
    incomplete: Vec<String>,
}

/// A client that measures how long haproxy is delayed. Its server keeps running.
struct Probe {
    ended: Arc<AtomicBool>,
    longest_exchange: JoinHandle<Duration>,
}

impl Probe {
    fn start(client: TcpStream) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let is_ended = Arc::clone(&ended);
        let longest_exchange = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !is_ended.load(Ordering::Relaxed) {
                let begin = Instant::now();
                exchange(&client, b"hello");
                longest = longest.max(begin.elapsed());
                thread::sleep(Duration::from_millis(2));
            }
            longest
        });
        Self {
            ended,
            longest_exchange,
        }
    }

    /// Returns how long the slowest exchange took.
    fn end(self) -> Duration {
        self.ended.store(true, Ordering::Relaxed);
        self.longest_exchange.join().expect("the probe is served")
    }
}

impl Client {
    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().expect("no client panics")
    }

    fn connect(&self, front: SocketAddr) -> TcpStream {
        let stream = connect(front);
        let mut progress = self.progress();
        (progress.sent, progress.echoed, progress.guaranteed) = (0, 0, 0);
        stream
    }

    /// Sends `data` and FIN, and receives the echo meanwhile.
    fn stream(&self, front: SocketAddr, data: &[u8]) {
        let mut echoed = 0;
        while echoed < data.len() {
            let stream = self.connect(front);
            let rest = &data[echoed..];
            let echo = thread::scope(|scope| {
                scope.spawn(|| {
                    if rest.chunks(50_000).all(|chunk| self.send(&stream, chunk)) {
                        let _ = stream.shutdown(Shutdown::Write);
                    }
                });
                let echo = read_until_fin(&stream);
                // After the server's FIN, the sender need not go on.
                let _ = stream.shutdown(Shutdown::Both);
                echo
            });
            assert!(rest.starts_with(&echo), "the echo differs");
            self.progress().echoed = echo.len();
            echoed += echo.len();
            if echoed < data.len() {
                self.record_close(&stream);
            }
        }
        self.progress().rounds += 1;
    }

    /// Sends `data` and receives the echo on a connection that stays open, unless the server closes
    /// it.
    fn exchange(&self, front: SocketAddr, connection: &mut Option<TcpStream>, data: &[u8]) {
        let mut echoed = 0;
        while echoed < data.len() {
            let mut stream = connection.take().unwrap_or_else(|| self.connect(front));
            self.send(&stream, &data[echoed..]);
            let mut buffer = [0; 1024];
            loop {
                let read = stream
                    .read(&mut buffer)
                    .expect("the connection ends with FIN");
                assert!(
                    data[echoed..].starts_with(&buffer[..read]),
                    "the echo differs"
                );
                echoed += read;
                self.progress().echoed += read;
                if read == 0 {
                    self.record_close(&stream);
                    break;
                }
                if echoed == data.len() {
                    *connection = Some(stream);
                    break;
                }
            }
        }
        self.progress().rounds += 1;
    }

    /// Sends nothing for longer than the drain waits for a quiet client.
    fn pause(&self, connection: &mut Option<TcpStream>) {
        let Some(mut stream) = connection.take() else {
            return;
        };
        set_read_timeout(&stream, Duration::from_millis(500));
        match stream.read(&mut [0]) {
            Ok(0) => self.record_close(&stream),
            Ok(_) => panic!("more bytes are echoed than were sent"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                set_read_timeout(&stream, PATIENCE);
                *connection = Some(stream);
            }
        }
    }

    fn send(&self, mut stream: &TcpStream, data: &[u8]) -> bool {
        let sent = stream.write_all(data).is_ok();
        self.progress().sent += if sent { data.len() } else { 0 };
        sent
    }

    /// Records that the server closed a connection before the client did, and whether a byte was lost.
    fn record_close(&self, stream: &TcpStream) {
        let (mut progress, address) = (self.progress(), local_address(stream));
        let Progress {
            echoed, guaranteed, ..
        } = *progress;
        if echoed < guaranteed {
            progress.incomplete.push(format!(
                "{address}: {echoed} of the {guaranteed} bytes sent before the signal were echoed"
            ));
        }
        progress.closed_by_server.push(address);
    }
}

/// Takes ten seconds, because haproxy must notice three shutdowns and three starts.
#[test]
fn rolling_restart_loses_no_byte_of_well_behaved_clients() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let front = cluster.haproxy.address;
    let done = AtomicBool::new(false);
    let clients: [Client; 9] = Default::default();
    let (long_lived, others) = clients.split_at(5);
    let (streaming, short_lived) = others.split_at(3);
    thread::scope(|scope| {
        let _guard = SetOnDrop(&done);
        let goes_on = || !done.load(Ordering::Relaxed);
        for (number, client) in zip(0.., long_lived) {
            scope.spawn(move || {
                let (data, mut connection) = (noise(1000, number), None);
                while goes_on() {
                    for _ in 0..20 {
                        client.exchange(front, &mut connection, &data);
                    }
                    client.pause(&mut connection);
                }
            });
        }
        for (number, client) in zip(0.., streaming) {
            scope.spawn(move || {
                let data = noise(4_000_000, number);
                while goes_on() {
                    client.stream(front, &data);
                    thread::sleep(Duration::from_millis(100));
                }
            });
        }
        for client in short_lived {
            scope.spawn(move || {
                while goes_on() {
                    client.stream(front, b"hello");
                    thread::sleep(Duration::from_millis(30));
                }
            });
        }
        for index in 0..3 {
            let delay = cluster.restart(index, &clients);
            // Every client must be served after the restart.
            let rounds = clients.each_ref().map(|client| client.progress().rounds);
            wait_until("all clients are served", || {
                zip(&clients, rounds).all(|(client, before)| client.progress().rounds > before + 1)
            });
            let incomplete: Vec<String> = clients
                .iter()
                .flat_map(|client| std::mem::take(&mut client.progress().incomplete))
                .collect();
            // The server waits at least 100 ms for a client. If a busy machine delays haproxy for that
            // long, bytes may arrive too late.
            let is_delayed = delay > Duration::from_millis(80);
            assert!(
                incomplete.is_empty() || is_delayed,
                "{delay:?}: {incomplete:#?}"
            );
        }
    });
    assert_eq!(cluster.exited.len(), 3);
    for server in &mut cluster.servers {
        server.signal(Signal::TERM);
        check_exit(server);
    }
    // haproxy rejected no client, and no server closed a connection without a shutdown.
    let closed = clients
        .iter()
        .flat_map(|client| client.progress().closed_by_server.clone());
    for address in closed {
        let line = format!(" {address} disconnected: server shutting down, ");
        assert!(
            cluster
                .exited
                .iter()
                .any(|server| server.count_in_log(&line) > 0),
            "{address} was closed without a shutdown"
        );
    }
}

/// Sets the flag when dropped, so that the clients end even if the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
