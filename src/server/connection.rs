//! One connection, from admission to close.
//!
//! TCP carries a stream of bytes, not messages: a `recv` returns whatever has arrived, and a
//! `send` accepts as much as there is room for. So the loop echoes pieces as they arrive, and
//! sends each piece completely before it receives the next. If a client does not read its echoes,
//! the server stops reading from it (backpressure), so it costs one buffer of memory at most.

mod drain;
mod faults;
mod proxy_protocol;

use std::convert::Infallible;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::net::{SocketAddr, TcpStream};
use std::ops::ControlFlow::{self, Break, Continue};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::{Level, debug, info, log, trace};

use super::Shared;
use super::busy_poll::BusyPoll;
use super::limits::PerIpPermit;
use crate::platform::socket::receive;
use crate::platform::wait::{PollFlags, wait_for_socket};
use crate::plural::plural;
use drain::FIN_TIMEOUT;
use faults::ACK_TIMEOUT;
pub use faults::Faults;

/// The number of bytes of one `recv` that the log shows at level trace.
const TRACE_LIMIT: usize = 64;

/// What ended a connection.
#[derive(Debug)]
pub(crate) enum CloseReason {
    /// The client sent FIN, and everything is echoed.
    ClosedByClient,
    /// The client, or an intermediary, sent RST.
    ResetByClient,
    /// No byte moved for the idle timeout.
    IdleTimeout,
    /// Graceful shutdown: the client was quiet, and everything is echoed.
    ServerShuttingDown,
    /// The shutdown timeout passed before everything was echoed and acknowledged.
    ForciblyClosed,
    /// The connection does not begin with a valid PROXY header, for this reason.
    InvalidProxyHeader(&'static str),
    /// The client's IP address is at its limit.
    PerIpLimit,
    /// `--fault limit` has ended it.
    FaultLimit,
    /// `--fault reset` has ended it.
    FaultReset,
    /// Any other error that the system reports.
    Failed(io::Error),
}

impl From<io::Error> for CloseReason {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A send after the client's RST fails with EPIPE. Windows calls some resets "aborted".
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                Self::ResetByClient
            }
            _ => Self::Failed(error),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClosedByClient => f.write_str("closed by client"),
            Self::ResetByClient => f.write_str("reset by client"),
            Self::IdleTimeout => f.write_str("idle timeout"),
            Self::ServerShuttingDown => f.write_str("server shutting down"),
            Self::ForciblyClosed => f.write_str("forcibly closed"),
            Self::InvalidProxyHeader(why) => write!(f, "invalid PROXY header ({why})"),
            Self::PerIpLimit => f.write_str("per-IP limit reached"),
            Self::FaultLimit => f.write_str("fault limit"),
            Self::FaultReset => f.write_str("fault reset"),
            Self::Failed(error) => write!(f, "I/O error: {error}"),
        }
    }
}

/// A client's connection, which one thread serves. Its methods return `Break` with the close reason
/// once the connection is over.
pub(crate) struct Connection {
    stream: TcpStream,
    /// The client's address. Behind a load balancer it comes from the PROXY header.
    peer: SocketAddr,
    /// What the last `recv` returned. Memory beyond the largest piece is never touched, so a client that
    /// sends little takes one page.
    buffer: Vec<u8>,
    /// The client's per-IP permit, if there is a per-IP limit.
    per_ip_permit: Option<PerIpPermit>,
    shared: Arc<Shared>,
    busy_poll: BusyPoll,
    /// When the idle timeout ends the connection, unless a byte moves before.
    idle_deadline: Option<Instant>,
    bytes_echoed: u64,
    /// Whether the fault `stall` has stopped the echo.
    stalled: bool,
}

impl Connection {
    /// Takes over the connection of an accepted client.
    ///
    /// # Errors
    /// Returns an error if there is no memory for the buffer.
    pub(crate) fn new(
        stream: TcpStream,
        peer: SocketAddr,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        // Not `Vec::with_capacity`, which ends the process if there is no memory.
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(shared.config.buffer_size)?;
        Ok(Self {
            stream,
            peer,
            buffer,
            per_ip_permit: None,
            busy_poll: BusyPoll::new(shared.config.busy_poll),
            shared,
            idle_deadline: None,
            bytes_echoed: 0,
            stalled: false,
        })
    }

    /// Serves the client until the connection is over, then closes and logs it.
    pub(crate) fn serve(mut self) {
        let started = Instant::now();
        self.restart_idle_timeout();
        let Break(mut reason) = self.echo();
        // Release the per-IP permit before the FIN or the close: the client may reconnect immediately.
        self.per_ip_permit = None;
        if let Some(timeout) = self.max_linger_time(&reason)
            && !self.lingering_close(timeout)
            && self.shared.shutdown.is_overdue()
        {
            reason = CloseReason::ForciblyClosed;
        }
        self.shared
            .bytes_echoed
            .fetch_add(self.bytes_echoed, Relaxed);
        if let CloseReason::ForciblyClosed = reason {
            self.shared.forcibly_closed.fetch_add(1, Relaxed);
        }
        drop(self.stream);
        let level = match reason {
            CloseReason::PerIpLimit => Level::Debug,
            _ => Level::Info,
        };
        let stalled = if self.stalled { "fault stall, " } else { "" };
        log!(
            level,
            "{} disconnected: {stalled}{reason}, {} echoed in {:.1?}",
            self.peer,
            plural(self.bytes_echoed, "byte"),
            started.elapsed()
        );
    }

    /// Returns how long the connection may linger. `None` if it is closed at once.
    fn max_linger_time(&self, reason: &CloseReason) -> Option<Duration> {
        let shutdown = &self.shared.shutdown;
        match reason {
            CloseReason::IdleTimeout => Some(FIN_TIMEOUT),
            CloseReason::FaultLimit => Some(ACK_TIMEOUT),
            CloseReason::ServerShuttingDown => Some(shutdown.time_left()),
            // The kernel delivers the last echoes even after the close, unless the host goes down. After
            // shutdown it may, so wait until they are acknowledged.
            CloseReason::ClosedByClient if shutdown.is_requested() => Some(shutdown.time_left()),
            _ => None,
        }
    }

    /// Reads the client's address and applies the per-IP limit.
    fn admit(&mut self) -> ControlFlow<CloseReason> {
        let mut load_balancer = None;
        if self.shared.config.proxy_protocol
            && let Some(client) = self.read_proxy_header()?
        {
            load_balancer = Some(mem::replace(&mut self.peer, client));
        }
        if let Some(limiter) = &self.shared.per_ip_limiter {
            match limiter.try_acquire(self.peer.ip()) {
                Some(permit) => self.per_ip_permit = Some(permit),
                None => return Break(CloseReason::PerIpLimit),
            }
        }
        match load_balancer {
            Some(load_balancer) => info!("{} connected via {load_balancer}", self.peer),
            None => info!("{} connected", self.peer),
        }
        self.shared.clients_served.fetch_add(1, Relaxed);
        Continue(())
    }

    /// Admits the client, then echoes until the connection is over.
    fn echo(&mut self) -> ControlFlow<CloseReason, Infallible> {
        self.admit()?;
        // If the connection began with a PROXY header, the buffer holds what followed it. Otherwise
        // it is empty, and this only applies faults such as `limit=0`.
        self.send_all()?;
        loop {
            if self.shared.shutdown.is_requested() {
                self.wait_for_data_or_quiet()?;
            }
            match self.receive_or_wait(None)? {
                None => {} // Nothing has arrived yet.
                Some(0) => return Break(CloseReason::ClosedByClient),
                Some(_) => {
                    self.busy_poll.record_arrival();
                    self.send_all()?;
                    // Busy-poll only while there are fewer clients than CPUs.
                    if self.shared.permits.active() <= self.shared.max_spinning_clients {
                        self.busy_poll.spin_if_it_pays(&self.stream);
                    }
                }
            }
        }
    }

    /// Receives the next piece into the empty buffer and returns its size; 0 means FIN. If no data
    /// has arrived, waits for data, the idle timeout, `deadline` or shutdown, and returns `None`.
    ///
    /// On Linux `recv` itself blocks for a short time before it fails with `WouldBlock`. If the next
    /// message arrives in that time, no `poll` is needed.
    fn receive_or_wait(
        &mut self,
        deadline: Option<Instant>,
    ) -> ControlFlow<CloseReason, Option<usize>> {
        self.buffer.clear();
        match receive(&self.stream, &mut self.buffer) {
            Ok(received) => {
                if received > 0 {
                    self.shared.shutdown.record_activity();
                    debug!("{} sent {}", self.peer, plural(received as u64, "byte"));
                    trace!("{} sent {}", self.peer, excerpt(&self.buffer));
                    self.restart_idle_timeout();
                }
                Continue(Some(received))
            }
            Err(error) => {
                self.handle_io_error(error, PollFlags::IN, deadline)?;
                Continue(None)
            }
        }
    }

    /// Sends everything that is in the buffer.
    fn send_all(&mut self) -> ControlFlow<CloseReason> {
        if self.shared.config.faults == Faults::default() {
            self.send(0..self.buffer.len())
        } else {
            self.send_with_faults()
        }
    }

    /// Sends a part of the buffer. This is `Write::write_all`, except that shutdown and the idle
    /// timeout can end it while the client does not read.
    fn send(&mut self, mut part: Range<usize>) -> ControlFlow<CloseReason> {
        while !part.is_empty() {
            if self.shared.shutdown.is_overdue() {
                return Break(CloseReason::ForciblyClosed);
            }
            match (&self.stream).write(&self.buffer[part.clone()]) {
                Ok(written) => {
                    debug!("{} was sent {}", self.peer, plural(written as u64, "byte"));
                    part.start += written;
                    self.bytes_echoed += written as u64;
                    self.restart_idle_timeout();
                }
                Err(error) => self.handle_io_error(error, PollFlags::OUT, None)?,
            }
        }
        Continue(())
    }

    /// Handles an error of `recv` or `send`. After `WouldBlock`, blocks until the socket is ready,
    /// `deadline` passes or shutdown is requested. May return early. The idle timeout and any other
    /// error end the connection.
    fn handle_io_error(
        &self,
        error: io::Error,
        event: PollFlags,
        deadline: Option<Instant>,
    ) -> ControlFlow<CloseReason> {
        match error.kind() {
            ErrorKind::WouldBlock => {}
            ErrorKind::Interrupted => return Continue(()),
            _ => return Break(error.into()),
        }
        let is_idle = || {
            self.idle_deadline
                .is_some_and(|deadline| Instant::now() >= deadline)
        };
        if is_idle() {
            return Break(CloseReason::IdleTimeout);
        }
        // Once shutdown is requested, the waker ends each wait at once. A receiving thread then goes on
        // to drain. A sending thread must send the rest first, so it waits without the waker.
        let shutdown = &self.shared.shutdown;
        let waker = match event {
            PollFlags::OUT if shutdown.is_requested() => None,
            _ => Some(&shutdown.waker),
        };
        let deadline = [deadline, self.idle_deadline, shutdown.deadline()]
            .into_iter()
            .flatten()
            .min();
        match wait_for_socket(&self.stream, event, deadline, waker) {
            // For a `recv` only: a `send` is tried once more, because it may succeed although `poll`
            // reports no room.
            Ok(false) if event == PollFlags::IN && is_idle() => Break(CloseReason::IdleTimeout),
            Ok(_) => Continue(()),
            Err(error) => Break(error.into()),
        }
    }

    /// Restarts the idle timeout, because a byte has moved.
    fn restart_idle_timeout(&mut self) {
        if let Some(timeout) = self.shared.config.idle_timeout {
            self.idle_deadline = Instant::now().checked_add(timeout);
        }
    }
}

/// Returns the beginning of `bytes` for the log. It is escaped, so that payload cannot forge a log
/// line.
fn excerpt(bytes: &[u8]) -> String {
    let shown = bytes[..bytes.len().min(TRACE_LIMIT)].escape_ascii();
    match bytes.len().saturating_sub(TRACE_LIMIT) {
        0 => shown.to_string(),
        rest => format!("{shown}… and {rest} more"),
    }
}
