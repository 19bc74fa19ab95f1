//! One client, from its first byte to its last: the echo loop, why it ended, the polite close.
//!
//! TCP carries a stream, not messages: a read gives whatever has come, be it half a line or ten,
//! and a write takes what there is room for. So the loop echoes pieces as they come, and every
//! piece to its end before it reads the next. A client that does not read its echoes is thereby
//! not read from: it costs one buffer, and waits for itself.

mod proxy;

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::mem;
use std::net::{Shutdown as Half, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, debug, info, log, trace};
use socket2::SockRef;

use super::Service;
use super::busy_poll::BusyPoll;
use super::per_ip::PerIpPermit;
use crate::platform::wait::{Interest, prepare_client, report_writable_when_all_is_sent, wait};

/// How long nothing must have come from a client before a stop takes it for quiet: bytes that were
/// on their way when the stop began still arrive.
const QUIET_PERIOD: Duration = Duration::from_millis(100);

/// How long a closing connection waits for the client's FIN after it has sent its own.
const LINGER: Duration = Duration::from_millis(300);

/// The most of one read that the log shows at level trace, in bytes.
const TRACED: usize = 64;

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum CloseReason {
    /// The client sent FIN, and has got all that it was owed.
    ClosedByClient,
    /// The client, or something on the way, sent RST.
    ResetByClient,
    /// No byte moved for the idle timeout.
    IdleTimeout,
    /// The server stopped, the client was quiet, and nothing was owed to it.
    ServerShuttingDown,
    /// The server stopped, and at its deadline the client was still not done.
    ForciblyClosed,
    /// It did not begin with the header that a balancer sends, for this reason.
    InvalidProxyHeader(&'static str),
    /// Its address had as many clients inside as it may have.
    PerIpLimit,
    /// Whatever else the system reported.
    Failed(io::Error),
}

impl From<io::Error> for CloseReason {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A write after the client's RST meets EPIPE; Windows names some resets "aborted".
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
            Self::IdleTimeout => f.write_str("idle"),
            Self::ServerShuttingDown => f.write_str("server stopping"),
            Self::ForciblyClosed => f.write_str("cut off"),
            Self::InvalidProxyHeader(why) => write!(f, "no PROXY header: {why}"),
            Self::PerIpLimit => f.write_str("turned away"),
            Self::Failed(error) => write!(f, "I/O error: {error}"),
        }
    }
}

/// What there is to tell of a connection that has ended.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) reason: CloseReason,
    /// Whether the client was let in at all.
    pub(crate) admitted: bool,
    /// Bytes.
    pub(crate) echoed: u64,
}

/// A client's connection, while it lasts.
pub(crate) struct Connection {
    /// The client's socket, and what it has sent and is still owed.
    ///
    /// The buffer's memory is never initialised and its bytes are never copied: a client that
    /// sends little touches one page of its 64 KiB.
    reader: BufReader<TcpStream>,
    /// The client: who has connected, or in whose name a balancer has.
    peer: SocketAddr,
    /// Where places are counted by address.
    per_ip_permit: Option<PerIpPermit>,
    service: Arc<Service>,
    busy_poll: BusyPoll,
    /// Whether a byte has moved, in or out, since `idle_since` was set: a busy client needs no
    /// clock.
    moved: bool,
    idle_since: Instant,
    /// Bytes.
    echoed: u64,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, peer: SocketAddr, service: Arc<Service>) -> Self {
        Self {
            reader: BufReader::with_capacity(service.config.buffer_size, stream),
            peer,
            per_ip_permit: None,
            busy_poll: BusyPoll::new(service.config.busy_poll),
            service,
            moved: false,
            idle_since: Instant::now(),
            echoed: 0,
        }
    }

    /// Serves the client until its connection is closed; logs its arrival and its end.
    pub(crate) fn serve(mut self) -> Summary {
        let arrived = self.idle_since;
        let admission = self.admit();
        let admitted = admission.is_ok();
        let reason =
            admission.and_then(|()| self.echo()).err().unwrap_or(CloseReason::ClosedByClient);
        if matches!(reason, CloseReason::IdleTimeout | CloseReason::ServerShuttingDown) {
            self.lingering_close();
        }
        let Self { peer, echoed, .. } = self;
        // Who sees the end of a connection may come again at once.
        drop(self.per_ip_permit);
        drop(self.reader);
        let level =
            if matches!(reason, CloseReason::PerIpLimit) { Level::Debug } else { Level::Info };
        log!(
            level,
            "{peer} disconnected: {reason}, {echoed} bytes echoed in {:.1?}",
            arrived.elapsed()
        );
        Summary { reason, admitted, echoed }
    }

    /// Finds out who the client is, and gives it a per_ip_permit where there is one.
    fn admit(&mut self) -> Result<(), CloseReason> {
        if !self.service.options_inherited {
            prepare_client(&SockRef::from(self.reader.get_ref()))?;
        }
        let mut balancer = None;
        if self.service.config.proxy_protocol
            && let Some(client) = self.read_proxy_header()?
        {
            balancer = Some(mem::replace(&mut self.peer, client));
        }
        if let Some(per_ip) = &self.service.per_ip {
            self.per_ip_permit = Some(per_ip.enter(self.peer.ip()).ok_or(CloseReason::PerIpLimit)?);
        }
        match balancer {
            Some(balancer) => info!("{} connected by {balancer}", self.peer),
            None => info!("{} connected", self.peer),
        }
        Ok(())
    }

    /// Echoes until the client half-closes, which is the good end, or anything else ends it.
    fn echo(&mut self) -> Result<(), CloseReason> {
        loop {
            self.check_deadline()?;
            match self.reader.fill_buf() {
                Ok([]) => return Ok(()),
                Ok(received) => {
                    self.busy_poll.came();
                    debug!("{} sent {} bytes", self.peer, received.len());
                    trace!("{} sent {}", self.peer, excerpt(received));
                    self.moved = true;
                    self.write_all()?;
                    self.look();
                }
                Err(error) => self.wait_if_blocked(error, Interest::Read, None)?,
            }
        }
    }

    /// What was sent may have its answer soon: looks for that before the next read sleeps.
    ///
    /// Else the thread goes straight back to its read. To yield here first lifted 16 and 64 busy
    /// clients by 30 to 40 %, since the next message then has come before the thread sleeps; but
    /// with a busy program on each processor 4 clients fell from 54,000 messages a second to 2,800.
    ///
    /// Nor does it ask the scheduler for anything. An event loop has 1.5 to 1.7 times the messages of
    /// 16, 64 and 1,000 busy clients, since it need not wake a thread for each. The whole server under
    /// another policy, against itself (two processors, shared with the load; four rounds in turns):
    ///
    /// | | 16 clients | p99 | 64 clients | 1,000 clients |
    /// | --- | --- | --- | --- | --- |
    /// | `SCHED_BATCH`, which never preempts | 1.35 | 1.94 | 1.48 | 1.12 |
    /// | `SCHED_FIFO` or `SCHED_RR` | 0.71 to 0.75 | 1.37, 0.97 | 0.76 | 0.73 |
    /// | nice 10 | 1.29 | 0.87 | 1.10 | 1.01 |
    /// | nice -10 | 1.14 | 0.70 | 1.10 | 0.99 |
    /// | all threads on one processor | 1.15 | 1.22 | 1.16 | 0.90 |
    /// | buffers of 4 KiB, 1 MiB | 0.96, 0.98 | 1.09, 1.08 | 1.03, 1.02 | 0.97, 0.99 |
    /// | a time slice of 0.1 ms, 30 ms | 1.01, 1.07 | 0.99, 0.73 | 1.00, 0.98 | 0.99, 1.06 |
    ///
    /// All but the first two lines are within the noise, a fifth either way, or nearly so; and who is
    /// nice starves where others are not. `SCHED_BATCH` wins by letting the load run on, at twice the
    /// p99; with a busy program on each processor it has 0.92 of the rate and 1.9 times the p99. It is a
    /// choice for whoever runs the server, who has a switch for it: `chrt --batch 0 echo-server`.
    fn look(&mut self) {
        let Service { clients, shutdown, lookers, .. } = &*self.service;
        if clients.inside() <= *lookers && !shutdown.is_requested() {
            self.busy_poll.look(self.reader.get_ref());
        }
    }

    /// Writes all that is in the buffer. It is `Write::write_all`, but hears the stop and the idle
    /// timeout while the client does not read.
    fn write_all(&mut self) -> Result<(), CloseReason> {
        while !self.reader.buffer().is_empty() {
            self.check_deadline()?;
            match self.reader.get_ref().write(self.reader.buffer()) {
                Ok(written) => {
                    debug!("{} was sent {written} bytes", self.peer);
                    self.reader.consume(written);
                    self.echoed += written as u64;
                    self.moved = true;
                }
                Err(error) => self.wait_if_blocked(error, Interest::Write, None)?,
            }
        }
        Ok(())
    }

    /// Whether the server may go on with the client, or a stop has run out of time.
    fn check_deadline(&self) -> Result<(), CloseReason> {
        if self.service.shutdown.is_overdue() { Err(CloseReason::ForciblyClosed) } else { Ok(()) }
    }

    /// After a call that found nothing to do: blocks until there may be something, or `until` has
    /// come. Any other error is the connection's end.
    fn wait_if_blocked(
        &mut self,
        error: io::Error,
        interest: Interest,
        until: Option<Instant>,
    ) -> Result<(), CloseReason> {
        match error.kind() {
            ErrorKind::Interrupted => Ok(()),
            ErrorKind::WouldBlock
                if self.service.shutdown.is_requested() && interest == Interest::Read =>
            {
                self.close_if_drained()
            }
            ErrorKind::WouldBlock => self.wait(interest, until).map(drop),
            _ => Err(error.into()),
        }
    }

    /// In a stop: nothing has come from the client for now. When nothing comes for a moment either,
    /// and all that it was owed is on its way, the server leaves it.
    fn close_if_drained(&mut self) -> Result<(), CloseReason> {
        if self.wait(Interest::Read, Instant::now().checked_add(QUIET_PERIOD))? {
            return Ok(());
        }
        report_writable_when_all_is_sent(&SockRef::from(self.reader.get_ref()))?;
        while !self.wait(Interest::Write, None)? {}
        if self.wait(Interest::Read, Some(Instant::now()))? {
            return Ok(());
        }
        Err(CloseReason::ServerShuttingDown)
    }

    /// Blocks as [`wait()`] does; the connection ends where it is idle or cut off.
    ///
    /// It is idle if its time was over before the last try to read or write, which moved nothing: a
    /// slow client may have taken too little to make its socket writable, but enough for a write.
    fn wait(&mut self, interest: Interest, until: Option<Instant>) -> Result<bool, CloseReason> {
        if mem::take(&mut self.moved) {
            self.idle_since = Instant::now();
        }
        let timeout = self.service.config.idle_timeout;
        let idle = timeout.and_then(|timeout| self.idle_since.checked_add(timeout));
        if idle.is_some_and(|idle| Instant::now() >= idle) {
            return Err(CloseReason::IdleTimeout);
        }
        let shutdown = &self.service.shutdown;
        let waker = (!shutdown.is_requested()).then(|| shutdown.waker());
        let until = [until, idle, shutdown.deadline()].into_iter().flatten().min();
        let ready = wait(self.reader.get_ref(), interest, until, waker)?;
        if !ready {
            self.check_deadline()?;
        }
        Ok(ready)
    }

    /// Sends FIN, then reads and discards until the client's FIN, for [`LINGER`] at most. To close
    /// a socket that has unread bytes sends RST, and RST destroys what is still on its way to the
    /// client (RFC 1122, section 4.2.2.13).
    fn lingering_close(&mut self) {
        if self.reader.get_ref().shutdown(Half::Write).is_err() {
            return;
        }
        let until = Instant::now() + LINGER;
        while Instant::now() < until {
            // A read by itself might block for longer.
            match wait(self.reader.get_ref(), Interest::Read, Some(until), None) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(_) => return,
            }
            match self.reader.fill_buf() {
                Ok([]) | Err(_) => return,
                Ok(unwanted) => {
                    let discarded = unwanted.len();
                    self.reader.consume(discarded);
                }
            }
        }
    }
}

/// The beginning of `bytes` for the log, escaped: no byte of a client's can end a line of it.
fn excerpt(bytes: &[u8]) -> impl fmt::Display {
    let rest = bytes.len().saturating_sub(TRACED);
    let shown = bytes[..bytes.len() - rest].escape_ascii().to_string();
    if rest == 0 { shown } else { format!("{shown}… and {rest} more") }
}
