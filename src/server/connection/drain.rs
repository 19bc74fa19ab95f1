//! How the server ends a connection. During graceful shutdown it keeps echoing until the client is
//! quiet. Then, as after an idle timeout, it lingers until the client has received everything.

use std::io::ErrorKind;
use std::net;
use std::ops::ControlFlow::{self, Break, Continue};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::{CloseReason, Connection};
use crate::platform::socket::receive;
use crate::platform::tcp_info::TcpInfo;
use crate::platform::wait::{PollFlags, wait_for_socket};
use crate::server::shutdown::Shutdown;

/// The shortest round trip that the drain assumes. Data in flight at the shutdown request has one
/// round trip to arrive.
const MIN_ROUND_TRIP: Duration = Duration::from_millis(100);

/// The shortest retransmission timeout (RTO) on Linux. All fast links have it.
const MIN_RTO: Duration = Duration::from_millis(200);

/// A client is active if its last data arrived at most this long before the shutdown request.
const ACTIVE_PERIOD: Duration = Duration::from_secs(1);

/// For this long after the shutdown request, data from any client keeps all active clients from
/// counting as quiet, because they may share a link. If the RTO is 0.5 s, three retransmissions take
/// 3.5 s (RFC 6298). Limited to a quarter of the shutdown timeout.
const SHARED_LINK_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a lingering close waits for the client's FIN after the acknowledgement.
pub(super) const FIN_TIMEOUT: Duration = Duration::from_millis(300);

/// How often a thread checks for acknowledgements: no event reports them.
pub(super) const ACK_POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Connection {
    /// Blocks until the client has sent more data, or FIN. Ends the connection once the client is quiet,
    /// or at the shutdown timeout. Called when everything that was received has been echoed.
    pub(super) fn wait_for_data_or_quiet(&self) -> ControlFlow<CloseReason> {
        let shutdown = &self.shared.shutdown;
        let waiting_since = Instant::now();
        // Whether the client may have been blocked because the server's receive buffer was full. The
        // kernel offers only a part of it at first. A client that has sent less than a quarter of its
        // size has never filled it.
        let receive_buffer = SockRef::from(&self.stream).recv_buffer_size();
        let may_have_blocked =
            receive_buffer.is_ok_and(|size| self.bytes_echoed >= size as u64 / 4);
        while !shutdown.is_overdue() {
            // Computed again in each round, because data of other clients may have moved it.
            let info = TcpInfo::of(&self.stream);
            let quiet_at = compute_quiet_at(shutdown, info, waiting_since, may_have_blocked);
            // From before the wait: the client is quiet only if a poll that began after `quiet_at` finds
            // nothing.
            let now = Instant::now();
            let deadline = quiet_at.min(now + shutdown.time_left());
            match wait_for_socket(&self.stream, PollFlags::IN, Some(deadline), None) {
                Ok(true) => return Continue(()),
                Ok(false) if now >= quiet_at => return Break(CloseReason::ServerShuttingDown),
                Ok(false) => {}
                Err(error) => return Break(error.into()),
            }
        }
        Break(CloseReason::ForciblyClosed)
    }

    /// Half-closes, then reads and discards until the client has acknowledged everything and has sent
    /// FIN. Waits for up to `timeout` in all, and for the FIN at most [`FIN_TIMEOUT`]. Returns false only
    /// if the system reports that data is not acknowledged; after a reset nothing is left to wait for.
    ///
    /// Closing a socket with unread data sends RST, which destroys data in flight (RFC 1122,
    /// section 4.2.2.13). After shutdown the host may be gone before the kernel can retransmit.
    pub(super) fn lingering_close(&mut self, timeout: Duration) -> bool {
        if self.stream.shutdown(net::Shutdown::Write).is_err() {
            return true; // The client has reset the connection.
        }
        let shutdown = &self.shared.shutdown;
        let close_deadline = Instant::now() + timeout;
        let mut fin_deadline = Instant::now() + FIN_TIMEOUT;
        let mut client_closed = false;
        loop {
            let now = Instant::now();
            let acknowledged = TcpInfo::of(&self.stream).is_none_or(|info| info.fin_acknowledged);
            if !acknowledged {
                fin_deadline = now + FIN_TIMEOUT;
            }
            let is_done = acknowledged && (client_closed || now >= fin_deadline);
            if is_done || now >= close_deadline || shutdown.is_overdue() {
                return acknowledged;
            }
            if client_closed {
                thread::sleep(ACK_POLL_INTERVAL);
                continue;
            }
            let next_check = Some(now + ACK_POLL_INTERVAL);
            if let Ok(false) = wait_for_socket(&self.stream, PollFlags::IN, next_check, None) {
                continue;
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

/// Returns the time at which a client counts as quiet, if nothing more arrives from it.
///
/// What the client sent before the shutdown request may still be in flight. On a slow link it arrives
/// with pauses as long as the connection's round trips and retransmissions. `info` reports these
/// times. If the system does not know them, fixed times apply from `waiting_since`, when the thread
/// began to wait for this client.
///
/// A client that `may_have_blocked`, because the receive buffer was full, sends the rest only after an
/// echo has made room. So it gets a round trip after the last echo.
fn compute_quiet_at(
    shutdown: &Shutdown,
    info: Option<TcpInfo>,
    waiting_since: Instant,
    may_have_blocked: bool,
) -> Instant {
    let now = Instant::now();
    let requested_at = shutdown.requested_at().unwrap_or(now);
    let instant_before = |age| now.checked_sub(age).unwrap_or(requested_at);
    let (rtt, rto, mut last_arrival, last_sent) = match info {
        Some(info) => (
            info.rtt,
            info.rto,
            instant_before(info.last_received),
            instant_before(info.last_sent),
        ),
        None => (Duration::ZERO, MIN_RTO, waiting_since, waiting_since),
    };
    // However slow a link seems to be, an idle client must not be kept until it is forcibly closed.
    let max_quiet_period = shutdown.timeout / 2;
    let round_trip = rtt.max(MIN_ROUND_TRIP.min(max_quiet_period));
    if last_arrival + ACTIVE_PERIOD > requested_at
        && let Some(last_activity) = shutdown.last_activity()
    {
        // Other clients may fill a link that they share, so that all data of this one is lost for a
        // while (figures: manual, performance).
        let shared_until = requested_at + SHARED_LINK_TIMEOUT.min(shutdown.timeout / 4);
        last_arrival = last_arrival.max(last_activity.min(shared_until));
    }
    let mut quiet_at = requested_at + round_trip.min(max_quiet_period);
    quiet_at = quiet_at.max(last_arrival + quiet_period(rto).min(max_quiet_period));
    if may_have_blocked {
        // Without the limit above: the rest of the data needs the whole round trip.
        quiet_at = quiet_at.max(last_sent + round_trip);
    }
    quiet_at
}

/// Returns for how long a client must have sent nothing to count as quiet: 6 × RTO − 0.8 s, and at
/// least 0.4 s.
///
/// A segment that is lost twice arrives three RTO late, because RFC 6298 doubles the timeout each time.
/// On a slow link the period is up to twice that, because only the server's own RTO is known. On a fast
/// link loss is rare, so two RTO suffice: the 0.8 s make this twice the minimum RTO of 0.2 s.
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
        let requested_at = shutdown.requested_at().expect("it is requested");
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
            let quiet_at = compute_quiet_at(&shutdown, Some(idle), requested_at, false);
            assert_eq!(quiet_at, requested_at + quiet_after);
        }
    }

    #[test]
    fn without_tcp_info_every_client_counts_as_active() {
        let (shutdown, requested_at) = requested();
        for waiting_since in [requested_at, requested_at + SECOND] {
            let quiet_at = compute_quiet_at(&shutdown, None, waiting_since, false);
            assert_eq!(quiet_at, waiting_since + 2 * MIN_RTO);
        }
    }

    #[test]
    fn quiet_period_is_at_most_half_the_shutdown_timeout() {
        let (shutdown, requested_at) = requested();
        let slow_and_idle = info(10 * SECOND, 10 * SECOND, 11 * SECOND);
        let slow_and_active = info(SECOND / 10, 10 * SECOND, Duration::ZERO);
        for info in [slow_and_idle, slow_and_active] {
            let quiet_after =
                compute_quiet_at(&shutdown, Some(info), requested_at, false) - requested_at;
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
            let quiet_after =
                compute_quiet_at(&shutdown, Some(blocked), requested_at, true) - requested_at;
            assert!(quiet_after >= rtt, "{quiet_after:?}");
            assert!(quiet_after < rtt + SECOND, "{quiet_after:?}");
        }
    }
}
