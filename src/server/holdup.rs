//! When clients must wait in the kernel's queue: how the log hears of it, and how long the accept
//! loop pauses.

use std::fmt;
use std::mem;
use std::time::{Duration, Instant};

use log::{info, warn};

/// How long nobody must have waited until a holdup counts as over.
const LULL: Duration = Duration::from_secs(1);

/// After an `accept` that failed for want of something, such as files: the first pause and the
/// longest, as in Go's `net/http`. A client that leaves ends a pause early.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Why clients are kept waiting: told once when it begins and once when nobody has waited for a
/// while, however often it comes and goes in between.
#[derive(Debug, Default)]
pub(crate) struct Holdup {
    told: bool,
    pause: Duration,
}

impl Holdup {
    pub(crate) fn begin(&mut self, reason: fmt::Arguments<'_>) {
        if !mem::replace(&mut self.told, true) {
            warn!("new clients must wait: {reason}");
        }
    }

    /// When it is over, should nobody come until then; `None` where there is no holdup.
    pub(crate) fn lull(&self) -> Option<Instant> {
        self.told.then(|| Instant::now() + LULL)
    }

    pub(crate) fn end(&mut self) {
        if mem::take(self).told {
            info!("new clients no longer wait");
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
        let mut holdup = Holdup::default();
        let pauses: Vec<_> = (0..10).map(|_| holdup.pause().as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }

    #[test]
    fn the_end_of_a_holdup_makes_the_next_pause_short_again() {
        let mut holdup = Holdup::default();
        holdup.begin(format_args!("a test"));
        assert!(holdup.lull().is_some_and(|lull| lull > Instant::now()));
        for _ in 0..5 {
            holdup.pause();
        }
        holdup.end();
        assert!(holdup.lull().is_none());
        assert_eq!(holdup.pause(), SHORTEST_PAUSE);
    }
}
