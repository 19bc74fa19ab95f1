//! The server. The main thread accepts clients in a loop and gives each one a thread of its own.
//! Graceful shutdown closes the listener, waits for the remaining connections, and returns.

mod accept_backoff;
mod busy_poll;
mod connection;
mod limits;
mod listener;
mod overload_log;
mod shutdown;
mod totals;

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::platform::capacity::{ConnectionSize, MemoryLimit, capacity};
use crate::platform::socket::SocketOptions;
use crate::platform::wait::POLL_INTERVAL;
use crate::plural::plural;
use accept_backoff::AcceptBackoff;
use busy_poll::max_spinning_clients;
use connection::Connection;
use limits::{ConnectionLimiter, PerIpLimiter, Permit};
use listener::Listener;
use overload_log::OverloadLog;
use shutdown::Shutdown;
pub use shutdown::ShutdownHandle;
use totals::Totals;

/// The stack of a connection's thread, in bytes: enough to write a log line in a debug build.
const STACK_SIZE: usize = 131_072;

/// How long connections may take to end after the shutdown timeout has passed.
const THREAD_EXIT_GRACE: Duration = Duration::from_millis(500);

thread_local! {
    /// The permit of this thread. A thread-local variable is dropped after the memory of the
    /// thread's signal stack is released, so that the limiter never counts too few threads.
    static THREAD_PERMIT: Cell<Option<Permit>> = const { Cell::new(None) };
}

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
    shared: Arc<Shared>,
}

impl Server {
    /// Binds and listens. Clients can connect from now on, and wait for [`run`](Self::run).
    ///
    /// If the system cannot hold `max_connections`, the limit is lowered to what it can hold, and
    /// a warning is logged.
    ///
    /// # Errors
    /// Returns an error if the address is in use, does not belong to this host or needs more
    /// privileges, or if a number in `config` is out of bounds.
    pub fn bind(config: Config) -> io::Result<Self> {
        let options = SocketOptions::new(config.idle_timeout);
        Self::new(Listener::bind(config.address, options)?, config, options)
    }

    /// Serves from a socket that listens already, such as one that a service manager holds and
    /// keeps open during a restart. The configuration's address is ignored. Graceful shutdown
    /// leaves clients without a permit in the listen backlog for the next server.
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
    /// Returns an error if a socket option cannot be set, or if a number in `config` is out of
    /// bounds.
    pub fn from_listener(listener: TcpListener, config: Config) -> io::Result<Self> {
        let options = SocketOptions::new(config.idle_timeout);
        Self::new(Listener::adopt(listener, options)?, config, options)
    }

    fn new(listener: Listener, config: Config, socket_options: SocketOptions) -> io::Result<Self> {
        if config.max_connections == 0
            || !(1..=MAX_BUFFER_SIZE).contains(&config.buffer_size)
            || config.busy_poll > MAX_BUSY_POLL
        {
            let message = "max_connections must be at least 1, buffer_size from 1 byte to 16 MiB, \
                           busy_poll at most 10 ms";
            return Err(io::Error::new(ErrorKind::InvalidInput, message));
        }
        let connection_size = ConnectionSize {
            stack: STACK_SIZE,
            buffer: config.buffer_size,
        };
        let mut max_connections = config.max_connections;
        let mut max_threads = usize::MAX;
        if let Some(capacity) = capacity(connection_size) {
            max_threads = capacity.connections.max(1);
            if max_threads < max_connections {
                warn!(
                    "connection limit lowered from {max_connections} to {max_threads}: {}",
                    capacity.reason
                );
                max_connections = max_threads;
            }
        }
        Ok(Self {
            shared: Arc::new(Shared {
                memory_limit: MemoryLimit::find(connection_size),
                max_connections,
                max_spinning_clients: max_spinning_clients(config.busy_poll),
                limiter: Arc::new(ConnectionLimiter::new(max_connections)),
                threads: Arc::new(ConnectionLimiter::new(max_threads)),
                per_ip_limiter: config
                    .max_connections_per_ip
                    .map(|limit| Arc::new(PerIpLimiter::new(limit))),
                shutdown: Arc::new(Shutdown::new(config.shutdown_timeout)?),
                socket_options,
                options_inherited: listener.options_inherited(),
                totals: Totals::default(),
                config,
            }),
            listener,
        })
    }

    /// Returns the address that the server listens on, with its real port.
    ///
    /// # Errors
    /// Returns an error if the system does not report it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Returns a handle that shuts the server down from another thread.
    #[must_use]
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        ShutdownHandle(Arc::clone(&self.shared.shutdown))
    }

    /// Serves until shutdown is requested, and returns when it is complete: everything that
    /// clients sent before the request has been echoed, or the shutdown timeout has passed.
    pub fn run(self) {
        let Self { listener, shared } = self;
        let started = Instant::now();
        shared.accept_until_shutdown(&listener);
        info!(
            "shutting down: waiting up to {:?} for {}",
            shared.config.shutdown_timeout,
            plural(shared.limiter.active() as u64, "client")
        );
        shared.drain(listener);
        info!("shut down: {} in {:.1?}", shared.totals, started.elapsed());
    }
}

/// What the accept loop and the connections share.
#[derive(Debug)]
struct Shared {
    config: Config,
    /// The configured limit, or what the system can hold.
    max_connections: usize,
    /// Checked before each new connection, if there is one.
    memory_limit: Option<MemoryLimit>,
    /// Maximum number of connected clients at which threads may busy-poll.
    max_spinning_clients: usize,
    /// One permit for each client that is served.
    limiter: Arc<ConnectionLimiter>,
    /// One permit for each thread. Threads in a lingering close serve no client any more.
    threads: Arc<ConnectionLimiter>,
    per_ip_limiter: Option<Arc<PerIpLimiter>>,
    shutdown: Arc<Shutdown>,
    socket_options: SocketOptions,
    /// Whether a client's socket inherits the listener's options.
    options_inherited: bool,
    totals: Totals,
}

impl Shared {
    /// Accepts clients and spawns a thread for each.
    fn accept_until_shutdown(self: &Arc<Self>, listener: &Listener) {
        let mut backoff = AcceptBackoff::default();
        let mut overload = OverloadLog::default();
        while !self.shutdown.is_requested() {
            if !self.wait_for_permit(Duration::ZERO) {
                overload.begin(format_args!(
                    "connection limit reached ({}): new clients wait in the listen backlog",
                    self.max_connections
                ));
                self.wait_for_permit(POLL_INTERVAL);
                continue;
            }
            match self.accept(listener, &mut overload) {
                Ok(Some((stream, peer))) => {
                    backoff.reset();
                    self.spawn(stream, peer);
                }
                Ok(None) => {}
                Err(error) => match error.kind() {
                    // The client gave up while it was in the listen backlog.
                    ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset => {}
                    _ => {
                        overload
                            .begin(format_args!("cannot accept new clients: {error}; retrying"));
                        self.pause(backoff.record_failure());
                    }
                },
            }
        }
    }

    /// Accepts a client, or returns `None` after it has waited for one.
    fn accept(
        &self,
        listener: &Listener,
        overload: &mut OverloadLog,
    ) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        self.check_memory()?;
        match listener.accept() {
            Ok(client) => Ok(Some(client)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // A wait that a signal interrupts is repeated: `accept` might block while the
                // handler of that signal requests shutdown.
                while !self.shutdown.is_requested()
                    && !listener.wait(overload.backlog_is_empty(), self.shutdown.waker())?
                {
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn check_memory(&self) -> io::Result<()> {
        match &self.memory_limit {
            Some(limit) => limit.check(self.threads.active()),
            None => Ok(()),
        }
    }

    /// Blocks until the connection limit allows one more client or `timeout` passes. Returns
    /// whether it does.
    fn wait_for_permit(&self, timeout: Duration) -> bool {
        self.threads.wait_until_available(timeout) && self.limiter.wait_until_available(timeout)
    }

    /// Blocks for `delay`, or until a connection ends, which may free what `accept` lacked.
    fn pause(&self, delay: Duration) {
        let until = Instant::now() + delay;
        while !self.shutdown.is_requested() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.threads.wait_for_release(left.min(POLL_INTERVAL)) {
                return;
            }
        }
    }

    /// Spawns the thread that serves a client.
    ///
    /// If that fails, the socket is closed and the permits are released. Other clients are
    /// unaffected.
    fn spawn(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let permit = self.limiter.acquire();
        let thread_permit = self.threads.acquire();
        let connection = match Connection::new(stream, peer, permit, Arc::clone(self)) {
            Ok(connection) => connection,
            Err(error) => {
                warn!("{peer} rejected: cannot allocate its buffer ({error})");
                return;
            }
        };
        let (started, has_started) = self
            .memory_limit
            .as_ref()
            .map(|_| mpsc::channel::<()>())
            .unzip();
        let thread = thread::Builder::new()
            .name(peer.to_string())
            .stack_size(STACK_SIZE);
        let spawned = thread.spawn(move || {
            THREAD_PERMIT.set(Some(thread_permit));
            drop(started);
            connection.serve();
        });
        if let Err(error) = spawned {
            warn!("{peer} rejected: cannot spawn a thread ({error})");
        }
        // A check for memory is of use only once this thread has taken what it needs. The thread
        // drops its end of the channel then.
        if let Some(has_started) = has_started {
            let _ = has_started.recv();
        }
    }

    /// Refuses new clients, serves those in the listen backlog, and waits for all connections.
    fn drain(self: &Arc<Self>, listener: Listener) {
        let mut pending = listener.close(self.limiter.available());
        while !pending.is_empty() {
            match pending.next() {
                Some((stream, peer)) if self.permit_before_deadline() => self.spawn(stream, peer),
                Some((_, peer)) => {
                    warn!("{peer} forcibly closed in the listen backlog");
                    self.totals.count_unserved();
                }
                None if self.shutdown.is_overdue() => break,
                // There is no file descriptor to accept with until a connection ends.
                None => {
                    self.threads.wait_for_release(POLL_INTERVAL);
                }
            }
        }
        self.threads
            .wait_until_idle(self.shutdown.time_left() + THREAD_EXIT_GRACE);
    }

    /// Blocks until the connection limit and the memory allow one more client. Returns false if
    /// the shutdown timeout passes first. A permit released because the timeout passed does not
    /// count.
    fn permit_before_deadline(&self) -> bool {
        while self.wait_for_permit(self.shutdown.time_left()) && !self.shutdown.is_overdue() {
            if self.check_memory().is_ok() {
                return true;
            }
            self.threads.wait_for_release(POLL_INTERVAL);
        }
        false
    }
}
