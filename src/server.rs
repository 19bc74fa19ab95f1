//! The server. The thread that calls [`Server::run`] accepts clients in a loop and spawns a thread
//! for each. Graceful shutdown closes the listener, waits for the remaining connections, and returns.

mod busy_poll;
mod config;
mod connection;
mod limits;
mod listener;
mod shutdown;

use std::cell::Cell;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::platform::capacity::{Capacity, MemoryCheck, STACK_SIZE, capacity};
use crate::platform::wait::POLL_INTERVAL;
use crate::plural::plural;
use busy_poll::max_spinning_clients;
pub use config::{Config, MAX_BUFFER_SIZE, MAX_BUSY_POLL};
use connection::Connection;
pub use connection::Faults;
use limits::{PerIpLimiter, PermitCounter};
use listener::{BACKLOG, Listener};
use shutdown::Shutdown;
pub use shutdown::ShutdownHandle;

/// The accept back-off: how long the accept loop pauses after it could not accept or serve a client. The
/// pause is shorter if a connection ends.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The log says that new clients are accepted again after this long without one that had to wait.
const RECOVERY_PERIOD: Duration = Duration::from_millis(500);

/// How much longer than the shutdown timeout `run` waits, so that threads can log and exit.
const THREAD_EXIT_GRACE: Duration = Duration::from_millis(500);

thread_local! {
    /// The permit of this thread. Thread-local variables are dropped after std has freed the thread's
    /// alternate signal stack. So if a permit is free, the memory of that stack is free too.
    static THREAD_PERMIT: Cell<Option<limits::Permit>> = const { Cell::new(None) };
}

/// An echo server that listens, and serves clients while it [runs](Self::run).
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    shared: Arc<Shared>,
}

impl Server {
    /// Binds and listens. Clients can connect from now on; [`run`](Self::run) serves them.
    ///
    /// If the system cannot hold `max_connections`, the limit is lowered to what it can hold, and
    /// a warning is logged.
    ///
    /// # Errors
    /// Returns an error if the address is in use, does not belong to this host or needs more
    /// privileges, or if a number in `config` is out of bounds.
    pub fn bind(config: Config) -> io::Result<Self> {
        config.validate()?;
        let listener = Listener::bind(config.address, config.idle_timeout)?;
        Self::new(listener, config)
    }

    /// Serves from an inherited socket that listens already, such as one that a service manager
    /// keeps open during a restart. The configuration's address is ignored. Graceful shutdown
    /// leaves clients over the connection limit in the listen backlog for the next server.
    ///
    /// The server sets socket options, which apply to all copies of the socket. On Linux the socket
    /// becomes blocking, and non-blocking at shutdown. Elsewhere it becomes non-blocking at once.
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
        config.validate()?;
        let listener = Listener::inherit(listener, config.idle_timeout)?;
        Self::new(listener, config)
    }

    fn new(listener: Listener, mut config: Config) -> io::Result<Self> {
        let Capacity {
            connections,
            reason,
        } = capacity(config.buffer_size);
        if connections < config.max_connections {
            warn!(
                "connection limit lowered from {} to {connections}: {reason}",
                config.max_connections
            );
            config.max_connections = connections;
        }
        if config.faults != Faults::default() {
            warn!("faults are on: {}", config.faults);
        }
        let per_ip_limiter = config.max_connections_per_ip.map(PerIpLimiter::new);
        let shared = Shared {
            permits: Arc::default(),
            capacity: connections,
            memory_check: MemoryCheck::new(config.buffer_size),
            per_ip_limiter: per_ip_limiter.map(Arc::new),
            max_spinning_clients: max_spinning_clients(config.busy_poll),
            shutdown: Arc::new(Shutdown::new(config.shutdown_timeout)?),
            clients_served: AtomicU64::new(0),
            forcibly_closed: AtomicU64::new(0),
            bytes_echoed: AtomicU64::new(0),
            config,
        };
        Ok(Self {
            listener,
            shared: Arc::new(shared),
        })
    }

    /// Returns the address that the server listens on, with its real port.
    ///
    /// # Errors
    /// Returns an error if the system does not report it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.socket.local_addr()
    }

    /// Returns a handle that shuts the server down from another thread.
    #[must_use]
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        ShutdownHandle(Arc::clone(&self.shared.shutdown))
    }

    /// Serves until shutdown is requested, and returns when the shutdown is complete: everything that
    /// clients sent before the request has been echoed, or the shutdown timeout has passed.
    pub fn run(self) {
        let Self { listener, shared } = self;
        let started = Instant::now();
        shared.accept_until_shutdown(&listener);
        info!(
            "shutting down: waiting up to {:?} for {}",
            shared.config.shutdown_timeout,
            plural(shared.permits.active() as u64, "client")
        );
        shared.drain(listener);
        info!(
            "shut down: {} served, {} forcibly closed, {} echoed in {:.1?}",
            plural(shared.clients_served.load(Relaxed), "client"),
            shared.forcibly_closed.load(Relaxed),
            plural(shared.bytes_echoed.load(Relaxed), "byte"),
            started.elapsed()
        );
    }
}

/// What the accept loop and the connections share.
#[derive(Debug)]
struct Shared {
    config: Config,
    /// One permit for each client.
    permits: Arc<PermitCounter>,
    /// How many clients the system can hold. Graceful shutdown serves the listen backlog up to this
    /// number, beyond the connection limit, so that all clients in it are served in time.
    capacity: usize,
    memory_check: MemoryCheck,
    per_ip_limiter: Option<Arc<PerIpLimiter>>,
    /// Threads busy-poll only while at most this many clients are connected.
    max_spinning_clients: usize,
    shutdown: Arc<Shutdown>,
    /// How many clients have been admitted.
    clients_served: AtomicU64,
    /// How many clients have been forcibly closed, in the listen backlog too.
    forcibly_closed: AtomicU64,
    bytes_echoed: AtomicU64,
}

impl Shared {
    /// Accepts clients and spawns a thread for each.
    fn accept_until_shutdown(self: &Arc<Self>, listener: &Listener) {
        let mut warnings = AcceptWarnings::default();
        while !self.shutdown.is_requested() {
            let limit = self.config.max_connections;
            if self.permits.active() >= limit {
                warnings.log_limit(limit);
                self.permits.wait_until_below(limit, POLL_INTERVAL);
                continue;
            }
            // Also wakes at `recover_at`, so that the recovery is logged even if no client comes.
            let accepted = self
                .memory_check
                .check(self.permits.active())
                .and_then(|()| listener.accept_or_wait(&self.shutdown.waker, warnings.recover_at));
            let result = match accepted {
                Ok(Some((stream, peer))) => self.spawn(stream, peer),
                Ok(None) => Ok(()),
                Err(error) => {
                    warnings.log_failure(&error);
                    Err(error)
                }
            };
            match result {
                Ok(()) => warnings.log_recovery(),
                // The end of a connection may free what was lacking.
                Err(_) => self.permits.wait_for_release(ACCEPT_BACKOFF),
            }
        }
    }

    /// Spawns the thread that serves a client.
    ///
    /// # Errors
    /// Returns an error if there is no memory for the buffer or no thread can be spawned. The error is
    /// logged, the socket is closed, and the permit is released.
    fn spawn(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let permit = self.permits.acquire();
        let connection = Connection::new(stream, peer, Arc::clone(self))
            .inspect_err(|error| warn!("{peer} rejected: cannot allocate its buffer ({error})"))?;
        let (start_signal, thread_started) = mpsc::channel::<()>();
        thread::Builder::new()
            .name(peer.to_string())
            .stack_size(STACK_SIZE)
            .spawn(move || {
                THREAD_PERMIT.set(Some(permit));
                drop(start_signal);
                connection.serve();
            })
            .inspect_err(|error| warn!("{peer} rejected: cannot spawn a thread ({error})"))?;
        if self.memory_check.is_needed {
            // The next check must see what this thread takes, so wait until it has started: it drops
            // the sender then.
            let _ = thread_started.recv();
        }
        Ok(())
    }

    /// Serves the clients in the listen backlog, closes the listener, and waits until all connections
    /// have ended.
    fn drain(self: &Arc<Self>, listener: Listener) {
        self.serve_listen_backlog(&listener);
        drop(listener);
        let timeout = self.shutdown.time_left() + THREAD_EXIT_GRACE;
        // Below one: until no permit exists.
        self.permits.wait_until_below(1, timeout);
    }

    /// Spawns a thread for each client in the listen backlog. While the system cannot hold one more,
    /// waits until a connection ends. At the shutdown timeout, or if no connection is left, forcibly
    /// closes the clients that are still in the backlog.
    fn serve_listen_backlog(self: &Arc<Self>, listener: &Listener) {
        // Makes `accept` return at once if the listen backlog is empty, on Linux too. If this fails,
        // `accept` only returns a little later.
        let _ = listener.socket.set_nonblocking(true);
        // Clients that keep connecting must not keep the listener open. Linux queues one connection more
        // than the backlog.
        let mut accepts_left = BACKLOG + 1;
        while accepts_left > 0 {
            let active = self.permits.active();
            let is_full = active >= self.capacity || self.memory_check.check(active).is_err();
            // If no client is connected, no memory becomes free.
            let give_up = self.shutdown.is_overdue() || (is_full && active == 0);
            if listener.inherited && (give_up || active >= self.config.max_connections) {
                return; // The next server can serve the others.
            }
            if is_full && !give_up {
                self.permits.wait_for_release(ACCEPT_BACKOFF);
                continue;
            }
            match listener.accept() {
                Ok(None) => return,
                Ok(Some((_, peer))) if give_up => {
                    warn!("{peer} forcibly closed in the listen backlog");
                    self.forcibly_closed.fetch_add(1, Relaxed);
                }
                Ok(Some((stream, peer))) => {
                    // A client that is rejected does not affect the others.
                    let _ = self.spawn(stream, peer);
                }
                Err(error) if give_up => {
                    warn!("cannot accept the clients in the listen backlog: {error}");
                    return;
                }
                // No file descriptor is left to accept with until a connection ends.
                Err(_) => {
                    self.permits.wait_for_release(ACCEPT_BACKOFF);
                    continue;
                }
            }
            accepts_left -= 1;
        }
    }
}

/// Logs why new clients wait, once for each cause, and when they are accepted again.
#[derive(Default)]
struct AcceptWarnings {
    limit_logged: bool,
    failure_logged: bool,
    /// When the recovery is logged, unless new clients have to wait again before.
    recover_at: Option<Instant>,
}

impl AcceptWarnings {
    fn log_limit(&mut self, limit: usize) {
        if !mem::replace(&mut self.limit_logged, true) {
            warn!("connection limit reached ({limit}): new clients wait in the listen backlog");
        }
        self.recover_at = Some(Instant::now() + RECOVERY_PERIOD);
    }

    fn log_failure(&mut self, error: &io::Error) {
        if !mem::replace(&mut self.failure_logged, true) {
            warn!("cannot accept new clients: {error}; retrying");
        }
        self.recover_at = Some(Instant::now() + RECOVERY_PERIOD);
    }

    /// Called after each `accept` that has not failed, even if no client came.
    fn log_recovery(&mut self) {
        if self.recover_at.is_some_and(|time| Instant::now() >= time) {
            info!("accepting new clients again");
            *self = Self::default();
        }
    }
}
