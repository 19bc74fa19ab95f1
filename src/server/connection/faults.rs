//! Faults on request: what the server does wrong on purpose, so that a client's handling of it can
//! be tested. The names follow those of [toxiproxy](https://github.com/Shopify/toxiproxy).

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::ControlFlow::{self, Break, Continue};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::drain::ACK_POLL_INTERVAL;
use super::{CloseReason, Connection};
use crate::platform::tcp_info::TcpInfo;
use crate::platform::wait::POLL_INTERVAL;

/// The pause after each write with the fault `slice`.
const SLICE_INTERVAL: Duration = Duration::from_millis(1);

/// How long the faults `reset` and `limit` wait until the client has acknowledged the last echoes.
pub(super) const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause before an RST if the system does not report acknowledgements.
const RESET_DELAY: Duration = Duration::from_millis(100);

/// What the server does wrong on each connection. The default is nothing.
///
/// Faults combine. Of `limit`, `reset` and `stall`, the one with the fewest bytes applies; if two are
/// equal, the first in this order. With 0 bytes, they apply as soon as the client connects.
///
/// ```
/// use echo_server::{Config, Faults, Server};
///
/// # fn main() -> std::io::Result<()> {
/// let server = Server::bind(Config {
///     address: ([127, 0, 0, 1], 0).into(),
///     faults: Faults { reset: Some(1024), ..Faults::default() },
///     ..Config::default()
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Echoes each piece this much later, one piece at a time. While a piece is delayed, the server does
    /// not read from that client, and notices neither its reset nor the idle timeout.
    pub latency: Option<Duration>,
    /// Writes at most this many bytes at a time, 1 ms apart. Usually each write is a segment of its
    /// own.
    pub slice: Option<NonZeroUsize>,
    /// Closes the connection after this many echoed bytes. The client receives FIN.
    pub limit: Option<u64>,
    /// Resets the connection after this many echoed bytes. The client receives RST.
    pub reset: Option<u64>,
    /// Discards what the client sends after this many echoed bytes. The connection stays open until
    /// the client closes it, the idle timeout or shutdown.
    pub stall: Option<u64>,
    /// Flips the lowest bit of the byte at this offset in the echo. The first byte has offset 0.
    pub corrupt: Option<u64>,
}

/// A fault that ends the echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FinalFault {
    Limit,
    Reset,
    Stall,
}

impl Faults {
    /// Returns the fault that ends the echo, and after how many bytes.
    fn final_fault(&self) -> Option<(u64, FinalFault)> {
        [
            (self.limit, FinalFault::Limit),
            (self.reset, FinalFault::Reset),
            (self.stall, FinalFault::Stall),
        ]
        .into_iter()
        .filter_map(|(bytes, fault)| Some((bytes?, fault)))
        .min_by_key(|(bytes, _)| *bytes)
    }
}

impl fmt::Display for Faults {
    /// Writes the faults as the command line has them, such as `latency=100ms,limit=1024`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = [
            self.latency.map(|latency| format!("latency={latency:?}")),
            self.slice.map(|bytes| format!("slice={bytes}")),
            self.limit.map(|bytes| format!("limit={bytes}")),
            self.reset.map(|bytes| format!("reset={bytes}")),
            self.stall.map(|bytes| format!("stall={bytes}")),
            self.corrupt.map(|offset| format!("corrupt={offset}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        f.write_str(&faults.join(","))
    }
}

impl Connection {
    /// Sends what the buffer holds, with faults. Ends the connection if one of them does.
    pub(super) fn send_with_faults(&mut self) -> ControlFlow<CloseReason> {
        let faults = self.shared.config.faults;
        if let Some(offset) = faults.corrupt
            && let Some(index) = offset.checked_sub(self.bytes_echoed)
            && let Ok(index) = usize::try_from(index)
            && let Some(byte) = self.buffer.get_mut(index)
        {
            *byte ^= 1;
        }
        if let Some(latency) = faults.latency
            && !self.buffer.is_empty()
        {
            self.delay(latency)?;
        }
        let final_fault = faults.final_fault();
        let mut end = self.buffer.len();
        if let Some((bytes, _)) = final_fault {
            let left = bytes.saturating_sub(self.bytes_echoed);
            end = end.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        match faults.slice {
            None => self.send(0..end)?,
            Some(bytes) => {
                for start in (0..end).step_by(bytes.get()) {
                    self.send(start..end.min(start.saturating_add(bytes.get())))?;
                    thread::sleep(SLICE_INTERVAL);
                }
            }
        }
        match final_fault {
            Some((bytes, fault)) if self.bytes_echoed >= bytes => match fault {
                FinalFault::Limit => Break(CloseReason::FaultLimit),
                FinalFault::Reset => self.wait_then_reset(),
                FinalFault::Stall => self.stall(),
            },
            _ => Continue(()),
        }
    }

    /// Blocks for `latency`. Ends the connection if the shutdown timeout passes first.
    fn delay(&self, latency: Duration) -> ControlFlow<CloseReason> {
        let started = Instant::now();
        loop {
            let left = latency.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Continue(());
            }
            if self.shared.shutdown.is_overdue() {
                return Break(CloseReason::ForciblyClosed);
            }
            thread::sleep(left.min(POLL_INTERVAL));
        }
    }

    /// Waits until the client has acknowledged all echoes, because an RST destroys what is in flight.
    /// Then makes the close send RST instead of FIN.
    fn wait_then_reset(&self) -> ControlFlow<CloseReason> {
        let deadline = Instant::now() + ACK_TIMEOUT;
        while Instant::now() < deadline {
            if self.shared.shutdown.is_overdue() {
                return Break(CloseReason::ForciblyClosed);
            }
            match TcpInfo::of(&self.stream) {
                Some(info) if info.closed => return Break(CloseReason::ResetByClient),
                Some(info) if info.bytes_acknowledged >= self.bytes_echoed => break,
                Some(_) => thread::sleep(ACK_POLL_INTERVAL),
                None => {
                    thread::sleep(RESET_DELAY);
                    break;
                }
            }
        }
        match SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)) {
            Ok(()) => Break(CloseReason::FaultReset),
            Err(error) => Break(error.into()),
        }
    }

    /// Discards what the client sends until the connection is over.
    fn stall(&mut self) -> ControlFlow<CloseReason> {
        self.stalled = true;
        while !self.shared.shutdown.is_requested() {
            if self.receive_or_wait(None)? == Some(0) {
                return Break(CloseReason::ClosedByClient);
            }
        }
        Break(CloseReason::ServerShuttingDown)
    }
}
