//! When clients must wait in the kernel's queue: how the log hears of it, and how long the accept
//! loop pauses.

use std::fmt;
use std::mem;
use std::time::{Duration, Instant};

use log::{info, warn};

/// How long nobody must have waited until a backoff counts as over.
const RECOVERY_PERIOD: Duration = Duration::from_secs(1);

/// After an `accept` that failed for want of something, such as files: the first pause and the
/// longest, as in Go's `net/http`. A client that leaves ends a pause early.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Why clients are kept waiting: told once when it begins and once when nobody has waited for a
/// while, however often it comes and goes in between.
#[derive(Debug, Default)]
pub(crate) struct AcceptBackoff {
    told: bool,
    over_at: Option<Instant>,
    pause: Duration,
}

impl AcceptBackoff {
    pub(crate) fn begin(&mut self, reason: fmt::Arguments<'_>) {
        self.over_at = None;
        if !mem::replace(&mut self.told, true) {
            warn!("new clients must wait: {reason}");
        }
    }

    /// When it will be over, should nobody come until then; `None` where there is no backoff.
    pub(crate) fn over_at(&mut self) -> Option<Instant> {
        if self.told && self.over_at.is_none() {
            self.over_at = Some(Instant::now() + RECOVERY_PERIOD);
        }
        self.over_at
    }

    /// Nobody is in the queue: has that been so for long enough?
    pub(crate) fn end_if_over(&mut self) {
        if self.over_at.is_some_and(|over_at| Instant::now() >= over_at) {
            info!("new clients no longer wait");
            *self = Self::default();
        }
    }

    /// The pause after an `accept` that failed: twice the one before.
    pub(crate) fn pause(&mut self) -> Duration {
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_the_shortest_to_the_longest() {
        let mut backoff = AcceptBackoff::default();
        let pauses: Vec<_> = (0..10).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }

    #[test]
    fn a_holdup_is_over_when_nobody_has_come_for_a_lull_and_not_before() {
        let mut backoff = AcceptBackoff::default();
        assert_eq!(backoff.over_at(), None);
        backoff.begin(format_args!("a test"));
        backoff.pause();
        backoff.pause();
        let begin = Instant::now();
        let over_at = backoff.over_at().expect("there is a backoff");
        assert!(over_at >= begin + RECOVERY_PERIOD);
        backoff.end_if_over();
        assert_eq!(backoff.over_at(), Some(over_at), "it goes on, and the time does not move");
        backoff.begin(format_args!("somebody came"));
        assert!(backoff.over_at() > Some(over_at), "the lull begins anew");
        backoff.over_at = Some(begin);
        backoff.end_if_over();
        assert_eq!(backoff.over_at(), None);
        assert_eq!(backoff.pause(), SHORTEST_PAUSE);
    }
}
