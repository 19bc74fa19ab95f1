//! One connection, from admission to close.
//!
//! TCP carries a stream of bytes, not messages: a `recv` returns whatever has arrived, and a
//! `send` accepts as much as there is room for. So the loop echoes pieces as they arrive, and
//! sends each piece completely before it receives the next. If a client does not read its echoes,
//! the server stops reading from it (backpressure), so it costs one buffer at most.

mod proxy;

use std::convert::Infallible;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::net::{Shutdown as Half, SocketAddr, TcpStream};
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{Level, debug, info, log, trace};
use socket2::SockRef;

use super::Shared;
use super::busy_poll::BusyPoll;
use super::limits::{PerIpPermit, Permit};
use crate::platform::socket::receive;
use crate::platform::tcp_info::TcpInfo;
use crate::platform::wait::{Interest, wait};
use crate::plural::plural;

/// After the shutdown request, how long data that was in flight may take to arrive at least. A
/// round trip, if that is longer.
const MIN_QUIET_PERIOD: Duration = Duration::from_millis(100);

/// The shortest retransmission timeout on Linux, which dominates on fast links.
const MIN_RTO: Duration = Duration::from_millis(200);

/// A client counts as active if its last data arrived so shortly before the shutdown request.
const ACTIVE_PERIOD: Duration = Duration::from_secs(1);

/// For how long after the shutdown request an active client is kept because data of others still
/// arrives: time for three retransmissions (RFC 6298), or a quarter of the shutdown timeout.
const SHARED_LINK_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a lingering close waits for the client's FIN once the client has acknowledged ours.
const LINGER_TIMEOUT: Duration = Duration::from_millis(300);

/// How often a lingering close checks for acknowledgements: no event reports them.
const ACK_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How many bytes of one `recv` the log shows at level trace.
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
    /// The shutdown timeout passed first.
    ForciblyClosed,
    /// The connection does not begin with a PROXY header, for this reason.
    InvalidProxyHeader(&'static str),
    /// The client's IP address is at its limit.
    PerIpLimit,
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
            Self::Failed(error) => write!(f, "I/O error: {error}"),
        }
    }
}

/// A client's connection, which one thread serves. Its methods return `Break` with the reason once
/// the connection is over.
pub(crate) struct Connection {
    stream: TcpStream,
    /// The client's address. Behind a load balancer it comes from the PROXY header.
    peer: SocketAddr,
    /// What the last `recv` returned. Its memory is never initialised beyond that, so a client
    /// that sends little touches one page.
    buffer: Vec<u8>,
    /// How many bytes of the buffer have been sent back.
    sent: usize,
    /// Released when the server sends FIN.
    permit: Option<Permit>,
    /// Released just before the server sends FIN: the client may reconnect immediately.
    per_ip_permit: Option<PerIpPermit>,
    shared: Arc<Shared>,
    busy_poll: BusyPoll,
    /// Whether a byte has moved since `idle_since` was set, so that a busy connection needs no
    /// clock.
    moved: bool,
    idle_since: Instant,
    /// When data last arrived during the drain.
    last_arrival: Option<Instant>,
    bytes_echoed: u64,
}

impl Connection {
    /// Takes over the connection of an accepted client.
    ///
    /// # Errors
    /// Returns an error if there is no memory for the buffer.
    pub(crate) fn new(
        stream: TcpStream,
        peer: SocketAddr,
        permit: Permit,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        // Not `Vec::with_capacity`, which ends the process if there is no memory.
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(shared.config.buffer_size)?;
        Ok(Self {
            stream,
            peer,
            buffer,
            sent: 0,
            permit: Some(permit),
            per_ip_permit: None,
            busy_poll: BusyPoll::new(shared.config.busy_poll),
            shared,
            moved: false,
            idle_since: Instant::now(),
            last_arrival: None,
            bytes_echoed: 0,
        })
    }

    /// Serves the client until its connection is closed, and logs that.
    pub(crate) fn serve(mut self) {
        let started = self.idle_since;
        let mut reason = match self.admit() {
            Continue(()) => {
                self.shared.totals.count_client();
                let Break(reason) = self.echo();
                reason
            }
            Break(reason) => reason,
        };
        match reason {
            CloseReason::IdleTimeout => {
                self.lingering_close(false);
            }
            CloseReason::ServerShuttingDown if !self.lingering_close(true) => {
                reason = CloseReason::ForciblyClosed;
            }
            // Before shutdown, the kernel delivers the rest after the close.
            CloseReason::ClosedByClient
                if self.shared.shutdown.is_requested() && !self.lingering_close(true) =>
            {
                reason = CloseReason::ForciblyClosed;
            }
            _ => {}
        }
        self.shared.totals.count_close(&reason, self.bytes_echoed);
        let Self {
            peer, bytes_echoed, ..
        } = self;
        // Release the per-IP permit before closing: the client may reconnect immediately. And
        // release everything before the log says that the connection is over.
        drop(self.per_ip_permit);
        drop(self.stream);
        drop(self.permit);
        let level = match reason {
            CloseReason::PerIpLimit => Level::Debug,
            _ => Level::Info,
        };
        log!(
            level,
            "{peer} disconnected: {reason}, {} echoed in {:.1?}",
            plural(bytes_echoed, "byte"),
            started.elapsed()
        );
    }

    /// Reads the client's address and applies the per-IP limit.
    fn admit(&mut self) -> ControlFlow<CloseReason> {
        if !self.shared.options_inherited {
            let socket = SockRef::from(&self.stream);
            if let Err(error) = self.shared.socket_options.apply_to_client(&socket) {
                return Break(error.into());
            }
        }
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
        Continue(())
    }

    /// Echoes until the client half-closes, the drain is complete or something else ends the
    /// connection.
    fn echo(&mut self) -> ControlFlow<CloseReason, Infallible> {
        // If the connection began with a PROXY header, the buffer holds what followed it.
        self.send_all()?;
        loop {
            let received = if self.shared.shutdown.is_requested() {
                self.receive_unless_quiet()?
            } else {
                self.receive_or_wait(None)?
            };
            match received {
                None => {} // Nothing has arrived yet.
                Some(0) => return Break(CloseReason::ClosedByClient),
                Some(_) => {
                    self.busy_poll.record_arrival();
                    self.send_all()?;
                    self.poll_before_blocking();
                }
            }
        }
    }

    /// Receives the next piece, or blocks until there may be one, `deadline` passes or shutdown is
    /// requested.
    fn receive_or_wait(
        &mut self,
        deadline: Option<Instant>,
    ) -> ControlFlow<CloseReason, Option<usize>> {
        match self.receive() {
            Ok(received) => Continue(Some(received)),
            Err(error) => {
                self.wait_if_blocked(error, Interest::Read, deadline)?;
                Continue(None)
            }
        }
    }

    /// The drain: receives the next piece, or ends the connection once the client is quiet.
    /// Everything it sent is echoed then.
    fn receive_unless_quiet(&mut self) -> ControlFlow<CloseReason, Option<usize>> {
        let quiet_at = self.quiet_at();
        let started = Instant::now();
        if self.wait(Interest::Read, Some(quiet_at), true)? {
            if started.elapsed() > Duration::from_millis(1) {
                // The data was not there before: it has just arrived.
                self.last_arrival = Some(Instant::now());
            }
            match self.receive() {
                Ok(received) => {
                    self.shared.shutdown.record_arrival();
                    Continue(Some(received))
                }
                Err(error) if is_temporary(&error) => Continue(None),
                Err(error) => Break(error.into()),
            }
        } else if started >= quiet_at {
            Break(CloseReason::ServerShuttingDown)
        } else {
            // More may have arrived in the meantime, or a signal has interrupted the wait.
            Continue(None)
        }
    }

    /// Returns when the client counts as quiet, if nothing more arrives.
    ///
    /// What the client sent before the shutdown request may still be in flight. On a slow link it
    /// arrives with pauses as long as the connection's round trips and retransmissions, so these
    /// decide. If the system does not report them, the last arrival and fixed times do.
    fn quiet_at(&self) -> Instant {
        let now = Instant::now();
        let (rtt, rto, last_arrival) = match TcpInfo::of(&self.stream) {
            Some(info) => (info.rtt, info.rto, now.checked_sub(info.last_received)),
            None => (Duration::ZERO, MIN_RTO, self.last_arrival),
        };
        let shutdown = &self.shared.shutdown;
        let requested_at = shutdown.requested_at().unwrap_or(now);
        let quiet_at = requested_at + MIN_QUIET_PERIOD.max(rtt);
        let Some(mut last_arrival) = last_arrival else {
            return quiet_at;
        };
        if last_arrival + ACTIVE_PERIOD > requested_at
            && let Some(arrival_of_any) = shutdown.last_arrival()
        {
            // Other clients may fill the link so that all data of this one is lost for a while.
            let timeout = SHARED_LINK_TIMEOUT.min(self.shared.config.shutdown_timeout / 4);
            last_arrival = last_arrival.max(arrival_of_any.min(requested_at + timeout));
        }
        quiet_at.max(last_arrival + quiet_period(rto))
    }

    /// Receives the next piece into the empty buffer. Returns its size; 0 means FIN.
    fn receive(&mut self) -> io::Result<usize> {
        self.buffer.clear();
        self.sent = 0;
        let received = receive(&self.stream, &mut self.buffer)?;
        if received > 0 {
            debug!("{} sent {}", self.peer, plural(received as u64, "byte"));
            trace!("{} sent {}", self.peer, excerpt(&self.buffer));
            self.moved = true;
        }
        Ok(received)
    }

    /// Sends everything that is in the buffer. This is `Write::write_all`, except that shutdown
    /// and the idle timeout can end it while the client does not read.
    fn send_all(&mut self) -> ControlFlow<CloseReason> {
        while self.sent < self.buffer.len() {
            if self.shared.shutdown.is_overdue() {
                return Break(CloseReason::ForciblyClosed);
            }
            match (&self.stream).write(&self.buffer[self.sent..]) {
                Ok(written) => {
                    debug!("{} was sent {}", self.peer, plural(written as u64, "byte"));
                    self.sent += written;
                    self.bytes_echoed += written as u64;
                    self.moved = true;
                }
                Err(error) => self.wait_if_blocked(error, Interest::Write, None)?,
            }
        }
        Continue(())
    }

    /// Busy-polls for the next bytes before `recv` blocks, if there are CPUs to spare.
    fn poll_before_blocking(&mut self) {
        if self.shared.limiter.active() <= self.shared.max_spinning_clients {
            self.busy_poll.spin(&self.stream);
        }
    }

    /// Handles an error of `recv` or `send`. If the call had nothing to do, blocks until it may
    /// have, or until `deadline`. Any other error ends the connection.
    fn wait_if_blocked(
        &mut self,
        error: io::Error,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> ControlFlow<CloseReason> {
        if !is_temporary(&error) {
            return Break(error.into());
        }
        if error.kind() == ErrorKind::WouldBlock {
            if mem::take(&mut self.moved) {
                // While the call blocked, nothing moved.
                let blocked_for = self.shared.socket_options.blocked_for(interest);
                let now = Instant::now();
                self.idle_since = now.checked_sub(blocked_for).unwrap_or(now);
            }
            // A `recv` returns to the caller's loop when shutdown is requested, also if that
            // happened during the call. A `send` must go on.
            let is_draining = interest == Interest::Write && self.shared.shutdown.is_requested();
            self.wait(interest, deadline, is_draining)?;
        }
        Continue(())
    }

    /// Blocks until the socket is ready or `deadline` passes, and unless `is_draining`, until
    /// shutdown is requested. Returns whether the socket is ready. The idle timeout and the
    /// shutdown timeout end the connection.
    fn wait(
        &mut self,
        interest: Interest,
        deadline: Option<Instant>,
        is_draining: bool,
    ) -> ControlFlow<CloseReason, bool> {
        if mem::take(&mut self.moved) {
            self.idle_since = Instant::now();
        }
        let idle_at = match self.shared.config.idle_timeout {
            Some(timeout) => self.idle_since.checked_add(timeout),
            None => None,
        };
        let shutdown = &self.shared.shutdown;
        if shutdown.is_overdue() {
            return Break(CloseReason::ForciblyClosed);
        }
        if idle_at.is_some_and(|idle_at| Instant::now() >= idle_at) {
            return Break(CloseReason::IdleTimeout);
        }
        let waker = if is_draining {
            None
        } else {
            Some(shutdown.waker())
        };
        let deadline = [deadline, idle_at, shutdown.deadline()]
            .into_iter()
            .flatten()
            .min();
        match wait(&self.stream, interest, deadline, waker) {
            Ok(false)
                if interest == Interest::Read
                    && idle_at.is_some_and(|idle_at| Instant::now() >= idle_at) =>
            {
                Break(CloseReason::IdleTimeout)
            }
            Ok(is_ready) => Continue(is_ready),
            Err(error) => Break(error.into()),
        }
    }

    /// Half-closes, then reads and discards until the client's FIN. With `until_acknowledged` it
    /// also waits until the client has acknowledged everything, and returns false if the shutdown
    /// timeout passes first.
    ///
    /// Closing a socket with unread data sends RST, which destroys data in flight (RFC 1122,
    /// section 4.2.2.13). And after shutdown the host may be gone before the kernel could send
    /// lost data again.
    fn lingering_close(&mut self, until_acknowledged: bool) -> bool {
        self.per_ip_permit = None;
        if self.stream.shutdown(Half::Write).is_err() {
            return true; // The client has reset the connection.
        }
        self.permit = None;
        let mut linger_until = Instant::now() + LINGER_TIMEOUT;
        let mut client_closed = false;
        loop {
            let now = Instant::now();
            let is_unacknowledged = until_acknowledged
                && TcpInfo::of(&self.stream).is_some_and(|info| !info.fin_acknowledged);
            if is_unacknowledged {
                linger_until = now + LINGER_TIMEOUT;
            } else if client_closed || now >= linger_until {
                return true;
            }
            if self.shared.shutdown.is_overdue() {
                return !is_unacknowledged;
            }
            if client_closed {
                thread::sleep(ACK_POLL_INTERVAL);
                continue;
            }
            match wait(
                &self.stream,
                Interest::Read,
                Some(now + ACK_POLL_INTERVAL),
                None,
            ) {
                Ok(true) => match self.discard() {
                    Ok(0) => client_closed = true,
                    Ok(_) => {}
                    Err(error) if is_temporary(&error) => {}
                    Err(_) => return true, // The client has reset the connection.
                },
                Ok(false) => {}
                Err(_) => return true,
            }
        }
    }

    /// Receives data that is not echoed. Returns its size; 0 means FIN.
    fn discard(&mut self) -> io::Result<usize> {
        self.buffer.clear();
        receive(&self.stream, &mut self.buffer)
    }
}

/// Returns for how long a client must have sent nothing to count as quiet.
///
/// On slow links that is up to six retransmission timeouts: time to lose a segment and its first
/// retransmissions, since RFC 6298 doubles the timeout. On fast links, where the timeout is the
/// system's minimum and loss is rare, two must do, so that shutdown is quick.
fn quiet_period(rto: Duration) -> Duration {
    (rto * 6).saturating_sub(MIN_RTO * 4).max(MIN_RTO * 2)
}

/// Returns whether the call that failed may succeed later.
fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Returns the beginning of `bytes` for the log. It is escaped, so that payload cannot forge a log
/// line.
fn excerpt(bytes: &[u8]) -> impl fmt::Display {
    let rest = bytes.len().saturating_sub(TRACE_LIMIT);
    let shown = bytes[..bytes.len() - rest].escape_ascii().to_string();
    if rest == 0 {
        shown
    } else {
        format!("{shown}… and {rest} more")
    }
}
