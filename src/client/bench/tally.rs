//! What is counted while the load runs: what came back, how long it took, what failed and why.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::io::Errno;

use crate::client::{is_reset, is_timeout};

/// The longest latency that is told from longer ones, in nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// Latencies are within 1 %. A third digit would take ten times the memory, of which every
/// connection has its own, and more of the processor's cache than the rest of the loop.
const DIGITS: u8 = 2;

/// What a connection has done so far, for the progress bar. Only its own thread writes to it, and
/// no other thread's is in the same cache line: to count costs as much as in a local variable.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Live(AtomicU64);

impl Live {
    pub(super) fn add(&self, more: u64) {
        self.0.store(self.read() + more, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What was counted, on one connection or on all.
pub(super) struct Tally {
    /// Messages that came back within the window; in bulk there are none.
    pub(super) messages: u64,
    /// Bytes that came back within the window.
    pub(super) bytes: u64,
    /// Nanoseconds.
    pub(super) latencies: Histogram<u64>,
    /// How many connections failed, by reason.
    pub(super) failures: BTreeMap<Reason, u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let latencies = Histogram::new_with_max(LONGEST, DIGITS).expect("the bounds are in order");
        Self {
            messages: 0,
            bytes: 0,
            latencies,
            failures: BTreeMap::new(),
        }
    }
}

impl Tally {
    /// Records how long a message took.
    pub(super) fn time(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(LONGEST);
        self.latencies.saturating_record(nanos);
    }

    /// Counts a connection that failed.
    pub(super) fn lose(&mut self, reason: Reason) {
        *self.failures.entry(reason).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.latencies
            .add(other.latencies)
            .expect("all have the same bounds");
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
    }
}

/// Why a connection failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// What came back is not what was sent.
    Wrong,
    /// The server sent FIN.
    Closed,
    /// The server, or something on the way, sent RST.
    Reset,
    Refused,
    /// Nothing happened for the timeout.
    Late,
    /// The system has no local port left for a connection.
    NoPort,
    /// The system lets the program have no more files.
    NoFile,
    /// The system gives the program no more threads; it says why.
    NoThread(String),
    /// Whatever else the system reported.
    Failed(String),
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::AddrNotAvailable => Self::NoPort,
            _ if is_reset(&error) => Self::Reset,
            _ if is_timeout(&error) => Self::Late,
            _ if Errno::from_io_error(&error) == Some(Errno::MFILE) => Self::NoFile,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong => f.write_str("wrong bytes: the echo is not what was sent"),
            Self::Closed => f.write_str("closed: the server closed the connection"),
            Self::Reset => f.write_str("reset: the server reset the connection; see its log"),
            Self::Refused => f.write_str("refused: no server accepts connections there"),
            Self::Late => f.write_str("timeout: no answer in time; --timeout waits longer"),
            Self::NoPort => f.write_str(
                "no free port: a closed connection keeps its own for a minute or so (TIME_WAIT); \
                 make fewer, or give the system more (on Linux net.ipv4.ip_local_port_range)",
            ),
            Self::NoFile => f.write_str(
                "no free file: each connection takes one; raise the limit (ulimit -n), or lower \
                 --connections",
            ),
            Self::NoThread(error) => {
                write!(
                    f,
                    "no thread: the system gives no more ({error}); lower --connections"
                )
            }
            Self::Failed(error) => write!(f, "failed: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_has_done_so_far_adds_up() {
        let live = Live::default();
        live.add(2);
        live.add(3);
        assert_eq!(live.read(), 5);
    }

    #[test]
    fn errors_are_told_by_what_they_mean() {
        for (kind, reason) in [
            (ErrorKind::ConnectionRefused, Reason::Refused),
            (ErrorKind::AddrNotAvailable, Reason::NoPort),
            (ErrorKind::ConnectionReset, Reason::Reset),
            (ErrorKind::ConnectionAborted, Reason::Reset),
            (ErrorKind::TimedOut, Reason::Late),
            (ErrorKind::WouldBlock, Reason::Late),
        ] {
            assert_eq!(Reason::from(io::Error::from(kind)), reason, "{kind}");
        }
        assert_eq!(Reason::from(io::Error::from(Errno::MFILE)), Reason::NoFile);
        let other = Reason::from(io::Error::other("of another kind"));
        assert_eq!(other, Reason::Failed("of another kind".to_owned()));
    }
}
