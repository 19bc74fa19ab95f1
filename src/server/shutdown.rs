//! Graceful shutdown: one `AtomicBool` that every loop checks, a waker for threads that block, and
//! the times that the drain allows.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::platform::tcp_info::TcpInfo;
use crate::platform::wait::Waker;

/// The shortest round trip that the drain assumes. Data in flight at the shutdown request has one
/// round trip to arrive.
const MIN_ROUND_TRIP: Duration = Duration::from_millis(100);

/// The shortest retransmission timeout on Linux. It applies to all fast links.
const MIN_RTO: Duration = Duration::from_millis(200);

/// A client whose last data is at most this much older than the shutdown request is active: data of
/// other clients extends its drain.
const ACTIVE_PERIOD: Duration = Duration::from_secs(1);

/// How long after the shutdown request data of other clients extends the drain of an active client:
/// enough for three retransmissions (RFC 6298).
const SHARED_LINK_TIMEOUT: Duration = Duration::from_secs(4);

/// Shuts a running [`Server`](super::Server) down, from a signal handler or any other thread.
#[derive(Clone, Debug)]
pub struct ShutdownHandle(pub(crate) Arc<Shutdown>);

impl ShutdownHandle {
    /// Requests graceful shutdown and returns at once. [`Server::run`](super::Server::run) returns
    /// when the shutdown is complete. Further calls have no effect.
    pub fn shutdown(&self) {
        self.0.request();
    }

    /// Returns whether shutdown has been requested.
    #[must_use]
    pub fn is_shutdown(&self) -> bool {
        self.0.is_requested()
    }
}

/// The state of graceful shutdown, which the accept loop and all connections share.
#[derive(Debug)]
pub(crate) struct Shutdown {
    requested: AtomicBool,
    /// When shutdown was requested. Set before the flag.
    requested_at: OnceLock<Instant>,
    /// How long the drain may take.
    timeout: Duration,
    /// When data of any client last arrived during the drain.
    last_arrival_of_any: Mutex<Option<Instant>>,
    waker: Waker,
}

impl Shutdown {
    pub(crate) fn new(timeout: Duration) -> io::Result<Self> {
        Ok(Self {
            requested: AtomicBool::new(false),
            requested_at: OnceLock::new(),
            timeout,
            last_arrival_of_any: Mutex::new(None),
            waker: Waker::new()?,
        })
    }

    fn request(&self) {
        self.requested_at.get_or_init(Instant::now);
        self.requested.store(true, Ordering::Release);
        self.waker.wake_all();
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Returns what wakes a blocked thread when shutdown is requested.
    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Returns when remaining connections are forcibly closed: `None` before shutdown, or if that
    /// is too far in the future for an `Instant`.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.requested_at.get()?.checked_add(self.timeout)
    }

    /// Returns the time until the deadline, or a year if there is none.
    pub(crate) fn time_left(&self) -> Duration {
        const YEAR: Duration = Duration::from_secs(31_536_000);
        match self.deadline() {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => YEAR,
        }
    }

    /// Returns whether the deadline has passed.
    pub(crate) fn is_overdue(&self) -> bool {
        self.time_left().is_zero()
    }

    /// Records that data of a client has arrived. Before shutdown this has no effect.
    pub(crate) fn record_arrival(&self) {
        if self.is_requested() {
            *self.lock_last_arrival() = Some(Instant::now());
        }
    }

    /// Returns when a client counts as quiet, if nothing more arrives from it.
    ///
    /// What the client sent before the shutdown request may still be in flight. On a slow link it
    /// arrives with pauses as long as the connection's round trips and retransmissions. `info`
    /// reports these times. If the system does not know them, fixed times apply from `waiting_since`,
    /// when the thread began to wait for this client.
    ///
    /// A client that `may_have_waited` for room in the receive buffer gets a round trip from the last
    /// echo on, because that made room.
    pub(crate) fn quiet_at(
        &self,
        info: Option<TcpInfo>,
        waiting_since: Instant,
        may_have_waited: bool,
    ) -> Instant {
        let now = Instant::now();
        let requested_at = self.requested_at.get().copied().unwrap_or(now);
        let time_before_now = |time| now.checked_sub(time).unwrap_or(requested_at);
        let (rtt, rto, mut last_arrival, last_echo) = match info {
            Some(info) => (
                info.rtt,
                info.rto,
                time_before_now(info.last_received),
                time_before_now(info.last_sent),
            ),
            None => (Duration::ZERO, MIN_RTO, waiting_since, waiting_since),
        };
        // A quiet client must not be kept until it is forcibly closed. Slow links and delays that vary
        // much would keep it that long.
        let max_quiet_period = self.timeout / 2;
        let round_trip = rtt.max(MIN_ROUND_TRIP.min(max_quiet_period));
        if last_arrival + ACTIVE_PERIOD > requested_at
            && let Some(arrival_of_any) = *self.lock_last_arrival()
        {
            // Other clients may fill the link so that all data of this one is lost for a while.
            let limit = requested_at + SHARED_LINK_TIMEOUT.min(self.timeout / 4);
            last_arrival = last_arrival.max(arrival_of_any.min(limit));
        }
        let mut quiet_at = requested_at + round_trip.min(max_quiet_period);
        quiet_at = quiet_at.max(last_arrival + quiet_period(rto).min(max_quiet_period));
        if may_have_waited {
            // Not limited: what the client could not send before needs the whole round trip.
            quiet_at = quiet_at.max(last_echo + round_trip);
        }
        quiet_at
    }

    fn lock_last_arrival(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last_arrival_of_any
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns for how long a client must have sent nothing to count as quiet.
///
/// It is 6 × RTO − 0.8 s. On slow links that is up to six retransmission timeouts: time to lose a
/// segment and its first retransmissions, since RFC 6298 doubles the timeout. On fast links the
/// timeout is the system's minimum of 0.2 s and loss is rare, so two timeouts suffice.
fn quiet_period(rto: Duration) -> Duration {
    (rto * 6).saturating_sub(MIN_RTO * 4).max(MIN_RTO * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns the state after a request, with a timeout of 4 s.
    fn requested() -> (Shutdown, Instant) {
        let shutdown = Shutdown::new(4 * SECOND).expect("the system has a pipe");
        shutdown.request();
        let requested_at = *shutdown.requested_at.get().expect("it is requested");
        (shutdown, requested_at)
    }

    fn info(rtt: Duration, rto: Duration, last_received: Duration) -> TcpInfo {
        TcpInfo {
            rtt,
            rto,
            last_received,
            last_sent: last_received,
            fin_acknowledged: false,
            bytes_acknowledged: 0,
            closed: false,
        }
    }

    #[test]
    fn idle_client_is_quiet_after_a_round_trip() {
        let (shutdown, requested_at) = requested();
        for (rtt, quiet_after) in [(SECOND / 1000, MIN_ROUND_TRIP), (SECOND / 3, SECOND / 3)] {
            let idle = info(rtt, MIN_RTO, 3 * SECOND);
            let quiet_at = shutdown.quiet_at(Some(idle), requested_at, false);
            assert_eq!(quiet_at, requested_at + quiet_after);
        }
    }

    #[test]
    fn without_tcp_info_every_client_counts_as_active() {
        let (shutdown, requested_at) = requested();
        for waiting_since in [requested_at, requested_at + SECOND] {
            let quiet_at = shutdown.quiet_at(None, waiting_since, false);
            assert_eq!(quiet_at, waiting_since + 2 * MIN_RTO);
        }
    }

    #[test]
    fn quiet_period_is_at_most_half_the_shutdown_timeout() {
        let (shutdown, requested_at) = requested();
        let slow_and_idle = info(10 * SECOND, 10 * SECOND, 11 * SECOND);
        let slow_and_active = info(SECOND / 10, 10 * SECOND, Duration::ZERO);
        for info in [slow_and_idle, slow_and_active] {
            let quiet_after = shutdown.quiet_at(Some(info), requested_at, false) - requested_at;
            assert!(quiet_after >= 2 * SECOND, "{quiet_after:?}");
            assert!(quiet_after < 3 * SECOND, "{quiet_after:?}");
        }
    }

    #[test]
    fn client_that_waited_gets_a_round_trip_after_an_echo() {
        let (shutdown, requested_at) = requested();
        for rtt in [SECOND / 3, 3 * SECOND] {
            let mut blocked = info(rtt, MIN_RTO, 3 * SECOND);
            blocked.last_sent = Duration::ZERO;
            let quiet_after = shutdown.quiet_at(Some(blocked), requested_at, true) - requested_at;
            assert!(quiet_after >= rtt, "{quiet_after:?}");
            assert!(quiet_after < rtt + SECOND, "{quiet_after:?}");
        }
    }
}
