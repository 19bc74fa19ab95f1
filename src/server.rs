//! The server: the thread that runs it accepts in a loop and gives each client a thread of its own;
//! a stop closes the listener, waits for those inside, and returns.

mod accept_backoff;
mod busy_poll;
mod connection;
mod limits;

mod listener;
mod per_ip;
mod shutdown;

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::platform::wait::POLL_INTERVAL;
use accept_backoff::AcceptBackoff;
use busy_poll::most_clients;
use connection::Connection;
use limits::ConnectionLimiter;
use listener::Listener;
use per_ip::PerIpLimiter;
use shutdown::Shutdown;
pub use shutdown::ShutdownHandle;

/// What a client's thread has for its calls, in bytes: enough to write a line of the log in a debug build.
/// The C library keeps the stacks of threads that have ended for the next ones, 40 MiB of them in
/// glibc: that is 20 of std's 2 MiB, and 320 of these.
///
/// The size is not what a new thread costs: on Linux std also gives each an alternate stack, to
/// report an overflow of this one, and that is the distance to a thread in C (2,000 connects at
/// once: 1.2 to 1.4 times its time, and no more than its time without that stack). Nothing else
/// that was tried changed it: stacks of 32 KiB to 2 MiB, yielding after the spawn, `SCHED_BATCH`,
/// one malloc arena, a thread without a name, a silent log.
const STACK_SIZE: usize = 131_072;

/// After a deadline, how long the threads may take to notice it and to write their last line.
const THREAD_EXIT_GRACE: Duration = Duration::from_millis(500);

/// The largest buffer that a client may have, in bytes, 16 MiB: what the network holds for one client is
/// less than that, and the buffers of thousands must fit into memory.
pub const MAX_BUFFER_SIZE: usize = 16_777_216;

/// The longest that a client's thread may look for bytes before it sleeps: a stop waits for it.
pub const MAX_BUSY_POLL: Duration = Duration::from_millis(10);

/// How a server is set up.
///
/// ```
/// use std::num::NonZeroUsize;
/// use std::time::Duration;
///
/// use echo_server::Config;
///
/// // For strangers: no more than 16 from one address, and none that does nothing for 5 minutes.
/// let config = Config {
///     max_connections_per_ip: NonZeroUsize::new(16),
///     idle_timeout: Some(Duration::from_secs(300)),
///     ..Config::default()
/// };
/// assert_eq!(config.address.to_string(), "0.0.0.0:54000");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen. Port 0 lets the system choose; `::` serves IPv6 and IPv4 both.
    pub address: SocketAddr,
    /// Each connection begins with a PROXY header, which tells the client's address. Anyone can
    /// forge it: it is for servers that only a balancer can reach.
    pub proxy_protocol: bool,
    /// How many clients are served at once; the next ones wait in the kernel's queue.
    pub max_connections: usize,
    /// How many clients of one IP address are served at once; the next ones are closed.
    pub max_connections_per_ip: Option<NonZeroUsize>,
    /// Closes a client when no byte has moved, in or out, for that long.
    pub idle_timeout: Option<Duration>,
    /// How long a stop waits for clients that are still owed bytes.
    pub shutdown_timeout: Duration,
    /// The size of each client's buffer, in bytes, from 1 to [`MAX_BUFFER_SIZE`].
    pub buffer_size: usize,
    /// How long a client's thread looks for the next bytes before it sleeps, up to
    /// [`MAX_BUSY_POLL`]; only while that has been paying and clients are fewer than processors.
    /// Zero: never.
    pub busy_poll: Duration,
}

impl Default for Config {
    /// `0.0.0.0:54000`, no PROXY header, 10,000 clients from wherever, no idle timeout, 5 s for a
    /// stop, buffers of 64 KiB, 50 µs of looking.
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::UNSPECIFIED, 54000).into(),
            proxy_protocol: false,
            max_connections: 10_000,
            max_connections_per_ip: None,
            idle_timeout: None,
            shutdown_timeout: Duration::from_secs(5),
            buffer_size: 65_536,
            busy_poll: Duration::from_micros(50),
        }
    }
}

/// An echo server that listens, and serves once it [runs](Self::run).
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    service: Arc<Service>,
}

impl Server {
    /// Binds and listens: from now on clients can connect, and wait for [`run`](Self::run).
    ///
    /// # Errors
    /// The address is in use, is not this machine's or may not be bound by this user; or the
    /// configuration has a number that is out of its bounds.
    pub fn bind(config: Config) -> io::Result<Self> {
        Self::new(Listener::bind(config.address)?, config)
    }

    /// Serves from a socket that listens already, such as one that a service manager holds for the
    /// server and keeps open while it restarts. The configuration's address means nothing then, and
    /// a stop leaves those in its queue for whom there is no place to whoever else holds the socket.
    ///
    /// ```
    /// use std::net::TcpListener;
    ///
    /// use echo_server::{Config, Server};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let server = Server::from_listener(listener.try_clone()?, Config::default())?;
    /// assert_eq!(server.local_addr()?, listener.local_addr()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The socket cannot be given the options that the server needs; or the configuration has a
    /// number that is out of its bounds.
    pub fn from_listener(listener: TcpListener, config: Config) -> io::Result<Self> {
        Self::new(Listener::adopt(listener)?, config)
    }

    fn new(listener: Listener, config: Config) -> io::Result<Self> {
        if config.max_connections == 0
            || !(1..=MAX_BUFFER_SIZE).contains(&config.buffer_size)
            || config.busy_poll > MAX_BUSY_POLL
        {
            let message = "max_connections must be at least 1, buffer_size from 1 byte to 16 MiB, \
                           busy_poll at most 10 ms";
            return Err(io::Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(Self {
            service: Arc::new(Service {
                lookers: most_clients(config.busy_poll),
                clients: Arc::new(ConnectionLimiter::new(config.max_connections)),
                per_ip: config
                    .max_connections_per_ip
                    .map(|limit| Arc::new(PerIpLimiter::new(limit))),
                shutdown: Arc::new(Shutdown::new(config.shutdown_timeout)?),
                options_inherited: listener.options_inherited(),
                config,
            }),
            listener,
        })
    }

    /// The address that the server listens on, with its real port.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// A handle that stops the server from another thread.
    #[must_use]
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        ShutdownHandle(Arc::clone(&self.service.shutdown))
    }

    /// Serves until a stop is asked for, and returns when it is done. What clients had sent before
    /// the stop comes back to them first, unless that takes longer than the shutdown timeout.
    ///
    /// # Errors
    /// The system has not the memory to wait for clients.
    pub fn run(self) -> io::Result<()> {
        let Self { listener, service } = self;
        let started = Instant::now();
        service.accept_until_stop(&listener)?;
        info!(
            "stopping: clients have {:?} to take what they are owed",
            service.config.shutdown_timeout
        );
        service.drain(listener);
        info!("stopped: {} in {:.1?}", service.clients.totals(), started.elapsed());
        Ok(())
    }
}

/// What the accept loop shares with the clients' threads.
#[derive(Debug)]
struct Service {
    config: Config,
    /// With how many clients inside their threads may look before they sleep.
    lookers: usize,
    clients: Arc<ConnectionLimiter>,
    per_ip: Option<Arc<PerIpLimiter>>,
    /// Whether a client's socket has its options from the listener.
    options_inherited: bool,
    shutdown: Arc<Shutdown>,
}

impl Service {
    /// Takes client after client from the kernel's queue, and has each one served.
    fn accept_until_stop(self: &Arc<Self>, listener: &Listener) -> io::Result<()> {
        let mut backoff = AcceptBackoff::default();
        while !self.shutdown.is_requested() {
            if !self.clients.acquire_timeout(Duration::ZERO) {
                backoff.begin(format_args!("all {} places are taken", self.config.max_connections));
                self.clients.acquire_timeout(POLL_INTERVAL);
                continue;
            }
            match listener.accept() {
                Ok((stream, peer)) => self.spawn(stream, peer),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => {
                        backoff.end_if_over();
                        listener.wait(backoff.over_at(), self.shutdown.waker())?;
                    }
                    // That client gave up while it was in the queue.
                    ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset => {}
                    _ => {
                        backoff.begin(format_args!("the system accepts none ({error})"));
                        self.pause(backoff.pause());
                    }
                },
            }
        }
        Ok(())
    }

    /// Lets time pass until a client leaves, which may give back what `accept` lacked.
    fn pause(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while !self.shutdown.is_requested() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.clients.wait_for_release(left.min(POLL_INTERVAL)) {
                return;
            }
        }
    }

    /// Gives the client a thread of its own. Where there is none to be had, it is that client's
    /// loss alone: its socket and its place go with the closure that was to serve it.
    fn spawn(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let place = self.clients.enter();
        let connection = Connection::new(stream, peer, Arc::clone(self));
        let thread = thread::Builder::new().name(peer.to_string()).stack_size(STACK_SIZE);
        let spawned = thread.spawn(move || place.leave(&connection.serve()));
        if let Err(error) = spawned {
            warn!("{peer} turned away: the system gives no thread for it ({error})");
        }
    }

    /// Refuses who comes from now on, serves who was in the queue already, and waits for all.
    fn drain(self: &Arc<Self>, listener: Listener) {
        let mut queue = listener.close(self.clients.available());
        while !queue.is_empty() {
            match queue.next() {
                Some((stream, peer)) if self.permit_before_deadline() => self.spawn(stream, peer),
                Some((_, peer)) => {
                    warn!("{peer} cut off before it was served");
                    self.clients.count_forcibly_closed();
                }
                None if self.shutdown.is_overdue() => break,
                // The system is out of files: a client that leaves gives one back.
                None => {
                    self.clients.wait_for_release(POLL_INTERVAL);
                }
            }
        }
        self.clients.wait_until_idle(self.shutdown.time_left() + THREAD_EXIT_GRACE);
    }

    /// In a stop: blocks until there is a place. One that comes free by the deadline's own doing is
    /// of no use.
    fn permit_before_deadline(&self) -> bool {
        self.clients.acquire_timeout(self.shutdown.time_left()) && !self.shutdown.is_overdue()
    }
}
