//! One connection, from admission to close.
//!
//! TCP carries a stream of bytes, not messages: a `recv` returns whatever has arrived, and a
//! `send` accepts as much as there is room for. So the loop echoes pieces as they arrive, and
//! sends each piece completely before it receives the next. If a client does not read its echoes,
//! the server stops reading from it (backpressure), so it costs one buffer at most.

mod faults;

use std::convert::Infallible;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::net::{self, SocketAddr, TcpStream};
use std::ops::ControlFlow::{self, Break, Continue};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use log::{Level, debug, info, log, trace};
use socket2::SockRef;

use super::Shared;
use super::busy_poll::BusyPoll;
use super::limits::{PerIpPermit, Permit};
use super::proxy_protocol::{self, MAX_LENGTH, Parsed};
use crate::platform::socket::{SocketOptions, receive};
use crate::platform::tcp_info::TcpInfo;
use crate::platform::wait::{Interest, wait_for_socket};
use crate::plural::plural;
use faults::ACK_TIMEOUT;
pub use faults::Faults;

/// How long a PROXY header may take. It comes with the connection's first bytes, and the
/// specification asks for at least 3 s, so that a lost packet can be sent again.
const PROXY_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a lingering close waits for the client's FIN after the acknowledgement.
const LINGER_TIMEOUT: Duration = Duration::from_millis(300);

/// If a wait returns within this time, the data had arrived before it began.
const MAX_IMMEDIATE_WAIT: Duration = Duration::from_millis(1);

/// How often a thread checks for acknowledgements: no event reports them.
const ACK_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The number of bytes of one `recv` that the log shows at level trace.
const TRACE_LIMIT: usize = 64;

/// What ended a connection.
#[derive(Debug)]
pub(crate) enum CloseReason {
    /// The client sent FIN, and everything is echoed, except by the fault `stall`.
    ClosedByClient,
    /// The client, or an intermediary, sent RST.
    ResetByClient,
    /// No byte moved for the idle timeout.
    IdleTimeout,
    /// Graceful shutdown: the client was quiet, and everything is echoed, except by the fault
    /// `stall`.
    ServerShuttingDown,
    /// The shutdown timeout passed before everything was echoed and acknowledged.
    ForciblyClosed,
    /// The connection does not begin with a PROXY header, for this reason.
    InvalidProxyHeader(&'static str),
    /// The client's IP address is at its limit.
    PerIpLimit,
    /// The fault `limit`.
    FaultLimit,
    /// The fault `reset`.
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
    /// What the last `recv` returned. Its memory is never initialised beyond that, so a client
    /// that sends little touches one page.
    buffer: Vec<u8>,
    /// Released when the connection is closed, or during graceful shutdown at the server's FIN.
    permit: Option<Permit>,
    /// Released just before the server's FIN: the client may reconnect immediately.
    per_ip_permit: Option<PerIpPermit>,
    shared: Arc<Shared>,
    busy_poll: BusyPoll,
    /// When the idle timeout passes, if no byte moves before.
    idle_at: Option<Instant>,
    /// When data last arrived during the drain, as far as this thread has noticed.
    last_arrival: Option<Instant>,
    /// When the server last emptied a receive buffer that may have been full. The client needs a round
    /// trip from then on to send more.
    window_opened_at: Option<Instant>,
    /// How many bytes had been echoed when the drain last waited for this client to send.
    echoed_before_wait: u64,
    bytes_echoed: u64,
    /// Whether the fault `stall` has ended the echo.
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
            permit: Some(permit),
            per_ip_permit: None,
            busy_poll: BusyPoll::new(shared.config.busy_poll),
            shared,
            idle_at: None,
            last_arrival: None,
            window_opened_at: None,
            echoed_before_wait: 0,
            bytes_echoed: 0,
            stalled: false,
        })
    }

    /// Serves the client until the connection is over, closes it and logs that.
    pub(crate) fn serve(mut self) {
        let started = Instant::now();
        self.restart_idle_timeout();
        let mut reason = match self.admit() {
            Continue(()) => {
                self.shared.clients_served.fetch_add(1, Relaxed);
                let Break(reason) = self.echo();
                reason
            }
            Break(reason) => reason,
        };
        let shared = Arc::clone(&self.shared);
        let shutdown = &shared.shutdown;
        let linger_timeout = match reason {
            CloseReason::IdleTimeout => Some(LINGER_TIMEOUT),
            CloseReason::FaultLimit => Some(ACK_TIMEOUT),
            CloseReason::ServerShuttingDown => Some(shutdown.time_left()),
            // Before shutdown, the kernel delivers the last echoes after the close. After it, the
            // host may be gone.
            CloseReason::ClosedByClient if shutdown.is_requested() => Some(shutdown.time_left()),
            _ => None,
        };
        if let Some(timeout) = linger_timeout
            && !self.lingering_close(timeout)
            && shutdown.is_overdue()
        {
            reason = CloseReason::ForciblyClosed;
        }
        shared.bytes_echoed.fetch_add(self.bytes_echoed, Relaxed);
        if let CloseReason::ForciblyClosed = reason {
            shared.forcibly_closed.fetch_add(1, Relaxed);
        }
        // Release the per-IP permit before closing: the client may reconnect immediately. Release
        // both permits before the close is logged.
        drop(self.per_ip_permit);
        drop(self.stream);
        drop(self.permit);
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

    /// Reads the client's address and applies the per-IP limit.
    fn admit(&mut self) -> ControlFlow<CloseReason> {
        if !self.shared.options_inherited {
            let options = SocketOptions::new(self.shared.config.idle_timeout);
            if let Err(error) = options.apply_to_client(&SockRef::from(&self.stream)) {
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

    /// Removes the PROXY header from the stream. Returns the client's address if the header has
    /// one.
    fn read_proxy_header(&mut self) -> ControlFlow<CloseReason, Option<SocketAddr>> {
        let deadline = Instant::now() + PROXY_HEADER_TIMEOUT;
        let mut header = Vec::new();
        if let Err(error) = header.try_reserve_exact(MAX_LENGTH) {
            return Break(io::Error::from(error).into());
        }
        while Instant::now() < deadline {
            if self.shared.shutdown.is_requested() {
                self.wait_or_close()?;
            }
            match self.receive_or_wait(Some(deadline))? {
                None => continue,
                Some(0) => {
                    return Break(CloseReason::InvalidProxyHeader(
                        "the client closed the connection before its end",
                    ));
                }
                Some(_) => {}
            }
            let length_before = header.len();
            let piece = &self.buffer[..self.buffer.len().min(MAX_LENGTH - header.len())];
            header.extend_from_slice(piece);
            match proxy_protocol::parse(&header) {
                Parsed::Incomplete => {}
                Parsed::Complete { length, client } => {
                    // What follows the header is echoed.
                    self.buffer.drain(..length - length_before);
                    return Continue(client);
                }
                Parsed::Invalid => {
                    return Break(CloseReason::InvalidProxyHeader(
                        "the connection begins with other bytes",
                    ));
                }
            }
        }
        Break(CloseReason::InvalidProxyHeader("none arrived within 5s"))
    }

    /// Echoes until the connection is over.
    fn echo(&mut self) -> ControlFlow<CloseReason, Infallible> {
        // If the connection began with a PROXY header, the buffer holds what followed it.
        self.send_all()?;
        loop {
            if self.shared.shutdown.is_requested() {
                self.wait_or_close()?;
            }
            match self.receive_or_wait(None)? {
                None => {} // Nothing has arrived yet.
                Some(0) => return Break(CloseReason::ClosedByClient),
                Some(_) => {
                    self.busy_poll.record_arrival();
                    self.send_all()?;
                    // Busy-poll only if there are CPUs to spare.
                    if self.shared.client_limiter.active() <= self.shared.max_spinning_clients {
                        self.busy_poll.spin(&self.stream);
                    }
                }
            }
        }
    }

    /// The drain: blocks until the client has sent more, or ends the connection once the client is
    /// quiet. Everything it sent has been echoed then.
    fn wait_or_close(&mut self) -> ControlFlow<CloseReason> {
        let shutdown = &self.shared.shutdown;
        // If much has been echoed since the last pause, the client may have waited for room in the
        // receive buffer. It needs a round trip to send more.
        let receive_buffer = SockRef::from(&self.stream).recv_buffer_size();
        let echoed = self.bytes_echoed - self.echoed_before_wait;
        if receive_buffer.is_ok_and(|size| echoed >= size as u64 / 4) {
            self.window_opened_at = Some(Instant::now());
        }
        loop {
            if shutdown.is_overdue() {
                return Break(CloseReason::ForciblyClosed);
            }
            let started = Instant::now();
            let quiet_at = shutdown.quiet_at(
                TcpInfo::of(&self.stream),
                self.last_arrival,
                self.window_opened_at,
            );
            let deadline = [Some(quiet_at), shutdown.deadline()]
                .into_iter()
                .flatten()
                .min();
            match wait_for_socket(&self.stream, Interest::Read, deadline, None) {
                Ok(true) => {
                    if started.elapsed() > MAX_IMMEDIATE_WAIT {
                        // The data was not there before: it has just arrived.
                        self.last_arrival = Some(Instant::now());
                        self.echoed_before_wait = self.bytes_echoed;
                    }
                    shutdown.record_drain_arrival();
                    return Continue(());
                }
                Ok(false) if started >= quiet_at => {
                    return Break(CloseReason::ServerShuttingDown);
                }
                // `quiet_at` may be later by now, so compute it again.
                Ok(false) => {}
                Err(error) => return Break(error.into()),
            }
        }
    }

    /// Receives the next piece into the empty buffer and returns its size; 0 means FIN. If no data
    /// has arrived, waits for data, the idle timeout, `deadline` or shutdown, and returns `None`.
    fn receive_or_wait(
        &mut self,
        deadline: Option<Instant>,
    ) -> ControlFlow<CloseReason, Option<usize>> {
        self.buffer.clear();
        match receive(&self.stream, &mut self.buffer) {
            Ok(received) => {
                if received > 0 {
                    debug!("{} sent {}", self.peer, plural(received as u64, "byte"));
                    trace!("{} sent {}", self.peer, excerpt(&self.buffer));
                    self.restart_idle_timeout();
                }
                Continue(Some(received))
            }
            Err(error) => {
                self.wait_if_blocked(error, Interest::Read, deadline)?;
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
                Err(error) => self.wait_if_blocked(error, Interest::Write, None)?,
            }
        }
        Continue(())
    }

    /// Handles an error of `recv` or `send`. After `WouldBlock`, blocks until the socket is ready,
    /// `deadline` passes or shutdown is requested. May return early. The idle timeout and any other
    /// error end the connection.
    ///
    /// On Linux the call blocks for a short time before it fails. If the next message arrives in
    /// that time, no `poll` is needed.
    fn wait_if_blocked(
        &self,
        error: io::Error,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> ControlFlow<CloseReason> {
        match error.kind() {
            ErrorKind::WouldBlock => {}
            ErrorKind::Interrupted => return Continue(()),
            _ => return Break(error.into()),
        }
        let is_idle = || {
            self.idle_at
                .is_some_and(|idle_at| Instant::now() >= idle_at)
        };
        if is_idle() {
            return Break(CloseReason::IdleTimeout);
        }
        // A `recv` returns to the loop of its caller when shutdown is requested, also if that
        // happened during the call. A `send` must go on.
        let shutdown = &self.shared.shutdown;
        let waker = match interest {
            Interest::Write if shutdown.is_requested() => None,
            _ => Some(shutdown.waker()),
        };
        let deadline = [deadline, self.idle_at, shutdown.deadline()]
            .into_iter()
            .flatten()
            .min();
        match wait_for_socket(&self.stream, interest, deadline, waker) {
            Ok(false) if interest == Interest::Read && is_idle() => Break(CloseReason::IdleTimeout),
            Ok(_) => Continue(()),
            Err(error) => Break(error.into()),
        }
    }

    /// Restarts the idle timeout, because a byte has moved.
    fn restart_idle_timeout(&mut self) {
        if let Some(timeout) = self.shared.config.idle_timeout {
            self.idle_at = Instant::now().checked_add(timeout);
        }
    }

    /// Half-closes, then reads and discards until the client has acknowledged everything and has sent
    /// FIN, for up to `timeout`. The FIN may come up to 0.3 s after the acknowledgement. Returns
    /// whether everything was acknowledged, as far as the system reports it.
    ///
    /// Closing a socket with unread data sends RST, which destroys data in flight (RFC 1122,
    /// section 4.2.2.13). And after shutdown the host may be gone before the kernel could send
    /// lost data again.
    fn lingering_close(&mut self, timeout: Duration) -> bool {
        self.per_ip_permit = None;
        if self.stream.shutdown(net::Shutdown::Write).is_err() {
            return true; // The client has reset the connection.
        }
        let shutdown = &self.shared.shutdown;
        if shutdown.is_requested() {
            // Clients in the listen backlog must be served before the shutdown timeout.
            self.permit = None;
        }
        let acknowledge_by = Instant::now() + timeout;
        let mut linger_until = Instant::now() + LINGER_TIMEOUT;
        let mut client_closed = false;
        loop {
            let now = Instant::now();
            let acknowledged = TcpInfo::of(&self.stream).is_none_or(|info| info.fin_acknowledged);
            if !acknowledged {
                linger_until = now + LINGER_TIMEOUT;
            }
            let is_done = acknowledged && (client_closed || now >= linger_until);
            if is_done || now >= acknowledge_by || shutdown.is_overdue() {
                return acknowledged;
            }
            if client_closed {
                thread::sleep(ACK_POLL_INTERVAL);
                continue;
            }
            let next_check = Some(now + ACK_POLL_INTERVAL);
            match wait_for_socket(&self.stream, Interest::Read, next_check, None) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_) => return true,
            }
            self.buffer.clear();
            match receive(&self.stream, &mut self.buffer) {
                Ok(received) => client_closed = received == 0,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return true, // The client has reset the connection.
            }
        }
    }
}

/// Returns the beginning of `bytes` for the log. It is escaped, so that payload cannot forge a log
/// line.
fn excerpt(bytes: &[u8]) -> String {
    let rest = bytes.len().saturating_sub(TRACE_LIMIT);
    let shown = bytes[..bytes.len() - rest].escape_ascii().to_string();
    if rest == 0 {
        shown
    } else {
        format!("{shown}… and {rest} more")
    }
}
