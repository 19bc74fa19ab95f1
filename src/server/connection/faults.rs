//! Faults on request: what the server does wrong on purpose, so that a client's handling of it can
//! be tested. The names are those of [toxiproxy](https://github.com/Shopify/toxiproxy) where it has
//! them.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::ControlFlow::{self, Break, Continue};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::{ACK_POLL_INTERVAL, CloseReason, Connection};
use crate::platform::tcp_info::TcpInfo;
use crate::platform::wait::POLL_INTERVAL;

/// The pause after each write with the fault `slice`.
const SLICE_INTERVAL: Duration = Duration::from_millis(1);

/// How long the last echoes have to arrive before an RST, if the system does not report
/// acknowledgements.
const DELIVERY_TIME: Duration = Duration::from_millis(100);

/// What the server does wrong on each connection. The default is nothing.
///
/// Faults combine. Of `limit`, `reset` and `stall`, the one with the fewest bytes applies; of equal
/// ones the first in this order. With 0 bytes they apply as soon as the client connects.
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
    /// Echoes each piece this much later. While a piece is delayed, the server does not read from
    /// that client.
    pub latency: Option<Duration>,
    /// Writes at most this many bytes at a time, 1 ms apart, so that each write is a segment of its
    /// own.
    pub slice: Option<NonZeroUsize>,
    /// Closes the connection after this many echoed bytes. The client receives FIN.
    pub limit: Option<u64>,
    /// Resets the connection after this many echoed bytes. The client receives RST.
    pub reset: Option<u64>,
    /// Discards what the client sends after this many echoed bytes. The connection stays open until
    /// the client closes it, the idle timeout or shutdown.
    pub stall: Option<u64>,
    /// Flips the lowest bit of the byte at this offset. The first byte has offset 0.
    pub corrupt: Option<u64>,
}

/// The fault that ends the echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Limit,
    Reset,
    Stall,
}

impl Faults {
    /// Returns the fault that ends the echo, and after how many bytes.
    fn end(&self) -> Option<(u64, End)> {
        let mut first = None;
        for (bytes, end) in [
            (self.limit, End::Limit),
            (self.reset, End::Reset),
            (self.stall, End::Stall),
        ] {
            if let Some(bytes) = bytes
                && first.is_none_or(|(fewest, _)| bytes < fewest)
            {
                first = Some((bytes, end));
            }
        }
        first
    }
}

impl fmt::Display for Faults {
    /// Writes the faults as the command line has them, such as `latency=100ms,limit=1024`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency = self.latency.map(|latency| format!("latency={latency:?}"));
        let slice = self.slice.map(|bytes| format!("slice={bytes}"));
        let limit = self.limit.map(|bytes| format!("limit={bytes}"));
        let reset = self.reset.map(|bytes| format!("reset={bytes}"));
        let stall = self.stall.map(|bytes| format!("stall={bytes}"));
        let corrupt = self.corrupt.map(|bytes| format!("corrupt={bytes}"));
        let faults = [latency, slice, limit, reset, stall, corrupt];
        f.write_str(&faults.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

impl Connection {
    /// Sends what the buffer holds, with faults. Ends the connection if one of them does.
    pub(super) fn send_with_faults(&mut self) -> ControlFlow<CloseReason> {
        let faults = self.shared.config.faults;
        self.corrupt_buffer(faults.corrupt);
        if let Some(latency) = faults.latency
            && self.sent < self.buffer.len()
        {
            self.delay(latency)?;
        }
        let mut end = self.buffer.len();
        if let Some((limit, _)) = faults.end() {
            let left = limit.saturating_sub(self.bytes_echoed);
            end = end.min(
                self.sent
                    .saturating_add(usize::try_from(left).unwrap_or(usize::MAX)),
            );
        }
        match faults.slice {
            None => self.send_until(end)?,
            Some(bytes) => {
                while self.sent < end {
                    self.send_until(end.min(self.sent.saturating_add(bytes.get())))?;
                    thread::sleep(SLICE_INTERVAL);
                }
            }
        }
        match faults.end() {
            Some((limit, fault)) if self.bytes_echoed >= limit => match fault {
                End::Limit => Break(CloseReason::FaultLimit),
                End::Reset => self.reset(),
                End::Stall => self.stall(),
            },
            _ => Continue(()),
        }
    }

    /// Flips a bit of the byte that will be the `offset`th of the echo, if it is in the buffer.
    fn corrupt_buffer(&mut self, offset: Option<u64>) {
        let Some(distance) = offset.and_then(|offset| offset.checked_sub(self.bytes_echoed)) else {
            return;
        };
        let unsent = &mut self.buffer[self.sent..];
        if let Ok(index) = usize::try_from(distance)
            && let Some(byte) = unsent.get_mut(index)
        {
            *byte ^= 1;
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

    /// Makes the close send RST instead of FIN. An RST destroys what is in flight, so the client must
    /// have acknowledged all echoes before.
    fn reset(&self) -> ControlFlow<CloseReason> {
        while !self.shared.shutdown.is_overdue() {
            match TcpInfo::of(&self.stream) {
                Some(info) if info.closed || info.bytes_acknowledged >= self.bytes_echoed => break,
                Some(_) => thread::sleep(ACK_POLL_INTERVAL),
                None => {
                    thread::sleep(DELIVERY_TIME);
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
