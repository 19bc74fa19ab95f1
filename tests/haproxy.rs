//! What the README has for haproxy, taken from there and run: the way through it, and a rolling
//! restart behind it.
#![cfg(target_os = "linux")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::iter::zip;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::signal::Signal;
use common::tools::Haproxy;
use common::{
    PATIENCE, Server, connect_from, echo_server, exchange, fill, noise, read_until_fin,
    readme_block, reserve_port, send_and_read_all, wait_until,
};
use socket2::Socket;

/// Three servers, and haproxy before them as the README has it.
struct Cluster {
    servers: [Server; 3],
    /// Those that have been restarted, in their last state.
    stopped: Vec<Server>,
    haproxy: Haproxy,
    /// They keep the servers' ports while no server listens there.
    #[allow(dead_code, reason = "held until the end")]
    reserved: [Socket; 3],
}

/// Their names in the README's block.
const NAMES: [&str; 3] = ["one", "two", "three"];

impl Cluster {
    fn start() -> Option<Self> {
        let reserved = [reserve_port(), reserve_port(), reserve_port()];
        let servers = reserved
            .each_ref()
            .map(|(_, address)| start_server(*address));
        let mut config = readme_block("## Growing past one machine", "haproxy").to_owned();
        replace(
            &mut config,
            "bind :54000",
            &format!("bind {}", Haproxy::BIND),
        );
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
            stopped: Vec::new(),
            haproxy,
            reserved,
        })
    }

    /// Which server has served the client, by the servers' logs. The client has had an answer, so
    /// the line is there or on its way.
    fn server_of(&self, client: &TcpStream) -> usize {
        let address = local_address(client);
        let arrival = format!(" {address} connected via ");
        let arrived = |server: &Server| server.log().iter().any(|line| line.contains(&arrival));
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(index) = self.servers.iter().position(arrived) {
                return index;
            }
            assert!(Instant::now() < end, "no server knows {address}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// A client that `server` serves.
    fn client_of(&self, server: usize) -> TcpStream {
        // Those who got to the others stay until then, so that it is this one's turn soon.
        let mut clients = Vec::new();
        loop {
            let client = connect(self.haproxy.address);
            exchange(&client, b"who serves me?");
            if self.server_of(&client) == server {
                return client;
            }
            clients.push(client);
            assert!(clients.len() < 100, "no way to server {}", NAMES[server]);
        }
    }

    /// A client that comes, has something echoed and goes; which server it got to.
    fn visit(&self) -> usize {
        let client = connect(self.haproxy.address);
        let data = noise(1000, 1);
        assert!(
            send_and_read_all(&client, &[&data]) == data,
            "a new client was not served"
        );
        self.server_of(&client)
    }

    /// Stops a server with SIGTERM, looks at what its clients and new ones meet meanwhile, and
    /// starts the next one on its port.
    fn restart(&mut self, index: usize, clients: &[Client]) {
        let quiet = self.client_of(index);
        let late = self.client_of(index);
        let owed = fill(&late);
        for client in clients {
            let mut progress = client.progress();
            progress.owed = progress.sent;
        }
        let server = &self.servers[index];
        server.signal(Signal::TERM);
        assert_eq!(
            read_until_fin(&quiet),
            b"",
            "a quiet client was owed nothing"
        );

        // It is still there, for the late one, and has closed its port.
        wait_until("it refuses", || {
            TcpStream::connect(server.address)
                .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
        for _ in 0..10 {
            assert_ne!(
                self.visit(),
                index,
                "a new client got to a server that has closed"
            );
        }
        self.haproxy
            .wait_for_log(&format!("Server echo/{} is DOWN", NAMES[index]));
        assert!(
            read_until_fin(&late) == owed,
            "a late client did not get what it was owed"
        );
        drop((quiet, late));

        let server = &mut self.servers[index];
        assert_stopped_well(server);
        let next = start_server(server.address);
        self.stopped.push(std::mem::replace(server, next));
        self.haproxy
            .wait_for_log(&format!("Server echo/{} is UP", NAMES[index]));
        drop(self.client_of(index));
    }
}

fn start_server(address: SocketAddr) -> Server {
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = echo_server();
    command.args(["--proxy-protocol", "--host", &host, "--port", &port]);
    Server::spawn(command.args(["--shutdown-timeout", "1h"]))
}

fn assert_stopped_well(server: &mut Server) {
    assert_eq!(server.wait().code(), Some(0));
    let log = server.rest_of_log();
    let last = log.last().expect("the log has lines");
    assert!(
        last.contains("shut down: ") && last.contains(" 0 forcibly closed"),
        "{last}"
    );
}

fn replace(config: &mut String, from: &str, to: &str) {
    assert_eq!(config.matches(from).count(), 1, "{from} in {config}");
    *config = config.replace(from, to);
}

/// Connects from an address that no other client has had: ports come again, and the logs are to
/// tell who is who.
fn connect(front: SocketAddr) -> TcpStream {
    static CLIENTS: AtomicU16 = AtomicU16::new(1);
    let [high, low] = CLIENTS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    connect_from([127, 1, high, low], front)
}

fn local_address(client: &TcpStream) -> SocketAddr {
    common::local_address(client)
}

/// A client that behaves: it reads all the time, and after FIN it connects again and goes on where
/// the echo has ended. What it sends after a stop has begun may cross the server's FIN on the way;
/// what it had sent before may not.
#[derive(Default)]
struct Client {
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// Bytes, on the connection of the moment.
    sent: usize,
    echoed: usize,
    /// What had been sent on it when a server was stopped last.
    owed: usize,
    /// How often all that the client had to send has come back.
    rounds: usize,
    /// Its side of the connections that the server has closed first.
    left: Vec<SocketAddr>,
}

impl Client {
    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().expect("no client panics")
    }

    fn connect(&self, front: SocketAddr) -> TcpStream {
        let stream = connect(front);
        let mut progress = self.progress();
        (progress.sent, progress.echoed, progress.owed) = (0, 0, 0);
        stream
    }

    /// Has `data` echoed, with both directions at work at once; the last of it goes out with FIN.
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
                // Whoever has been left need not send on.
                let _ = stream.shutdown(Shutdown::Both);
                echo
            });
            assert!(rest.starts_with(&echo), "the echo differs");
            self.progress().echoed = echo.len();
            echoed += echo.len();
            if echoed < data.len() {
                self.is_left(&stream);
            }
        }
        self.progress().rounds += 1;
    }

    /// Has `data` echoed on a connection that stays open, unless the server leaves it.
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
                    self.is_left(&stream);
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

    /// Sends nothing for as long as a server that stops takes to leave a quiet client, and more.
    fn pause(&self, connection: &mut Option<TcpStream>) {
        let Some(mut stream) = connection.take() else {
            return;
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(1)))
            .expect("the timeout can be set");
        match stream.read(&mut [0]) {
            Ok(0) => self.is_left(&stream),
            Ok(_) => panic!("there is more than what was sent"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                stream
                    .set_read_timeout(Some(PATIENCE))
                    .expect("the timeout can be set");
                *connection = Some(stream);
            }
        }
    }

    fn send(&self, mut stream: &TcpStream, data: &[u8]) -> bool {
        let sent = stream.write_all(data).is_ok();
        self.progress().sent += if sent { data.len() } else { 0 };
        sent
    }

    /// The server has left a client that was not done.
    fn is_left(&self, stream: &TcpStream) {
        let mut progress = self.progress();
        let Progress { echoed, owed, .. } = *progress;
        assert!(
            echoed >= owed,
            "of {owed} bytes sent before the stop {echoed} came back"
        );
        progress.left.push(local_address(stream));
    }
}

#[test]
fn no_client_that_behaves_loses_a_byte_in_a_rolling_restart() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let front = cluster.haproxy.address;
    let done = AtomicBool::new(false);
    let clients: [Client; 9] = Default::default();
    let (holders, others) = clients.split_at(5);
    let (streamers, newcomers) = others.split_at(3);
    thread::scope(|scope| {
        let _end = End(&done);
        let go_on = || !done.load(Ordering::Relaxed);
        for (number, holder) in zip(0.., holders) {
            scope.spawn(move || {
                let (data, mut connection) = (noise(1000, number), None);
                while go_on() {
                    for _ in 0..20 {
                        holder.exchange(front, &mut connection, &data);
                    }
                    holder.pause(&mut connection);
                }
            });
        }
        for (number, streamer) in zip(0.., streamers) {
            scope.spawn(move || {
                let data = noise(4_000_000, number);
                while go_on() {
                    streamer.stream(front, &data);
                    thread::sleep(Duration::from_millis(100));
                }
            });
        }
        for newcomer in newcomers {
            scope.spawn(move || {
                while go_on() {
                    newcomer.stream(front, b"hello");
                    thread::sleep(Duration::from_millis(30));
                }
            });
        }
        for index in 0..3 {
            cluster.restart(index, &clients);
            // All have noticed, and go on.
            let rounds = clients.each_ref().map(|client| client.progress().rounds);
            wait_until("all clients go on", || {
                zip(&clients, rounds).all(|(client, before)| client.progress().rounds > before + 1)
            });
        }
    });
    assert_eq!(cluster.stopped.len(), 3);
    for server in &mut cluster.servers {
        server.signal(Signal::TERM);
        assert_stopped_well(server);
    }
    // Nobody was turned away by haproxy, or left by a server that was not told to stop.
    for address in clients
        .iter()
        .flat_map(|client| client.progress().left.clone())
    {
        let departure = format!(" {address} disconnected: server shutting down, ");
        let mut log = cluster.stopped.iter().flat_map(Server::log);
        assert!(
            log.any(|line| line.contains(&departure)),
            "{address} was left without need"
        );
    }
}

/// Ends the clients, also where the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(feature = "client")]
mod conformance {
    use super::{Cluster, Haproxy, Server, readme_block, replace};
    use crate::common::conformance::{failures, run_suite};

    fn assert_passes_through(haproxy: &Haproxy, servers: &[Server]) {
        let (report, code) = run_suite(haproxy.address, "20s");
        // What the servers have to say, beside the good ends, where something is wrong.
        let log = || -> Vec<String> {
            let lines = servers.iter().flat_map(Server::log);
            lines
                .filter(|line| !line.contains("closed by client, "))
                .collect()
        };
        assert_eq!(failures(&report), Vec::<[String; 3]>::new(), "{:#?}", log());
        assert_eq!(code, Some(0));
    }

    #[test]
    fn three_servers_pass_behind_haproxy() {
        let Some(cluster) = Cluster::start() else {
            return;
        };
        assert_passes_through(&cluster.haproxy, &cluster.servers);
    }

    /// In the README's first example, for those who test the way through a balancer.
    #[test]
    fn one_server_passes_behind_haproxy() {
        let server = Server::start(&[]);
        let mut config = readme_block("### Does it echo? `echo-client test`", "haproxy").to_owned();
        replace(
            &mut config,
            "bind 127.0.0.1:54001",
            &format!("bind {}", Haproxy::BIND),
        );
        replace(&mut config, "127.0.0.1:54000", &server.address.to_string());
        let Some(haproxy) = Haproxy::start(&config) else {
            return;
        };
        assert_passes_through(&haproxy, &[server]);
    }
}
