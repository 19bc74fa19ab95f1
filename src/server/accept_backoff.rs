//! How long the accept loop pauses after a failed `accept`, such as for lack of file descriptors.

use std::time::Duration;

/// The first pause and the longest one, as in Go's `net/http`.
const SHORTEST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(1);

/// Doubles the pause with each failure in a row.
#[derive(Debug, Default)]
pub(crate) struct AcceptBackoff {
    last_delay: Duration,
}

impl AcceptBackoff {
    /// Returns how long to pause after this failure.
    pub(crate) fn record_failure(&mut self) -> Duration {
        self.last_delay = (self.last_delay * 2).clamp(SHORTEST, LONGEST);
        self.last_delay
    }

    /// Starts again with the shortest pause.
    pub(crate) fn reset(&mut self) {
        self.last_delay = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_from_the_shortest_to_the_longest() {
        let mut backoff = AcceptBackoff::default();
        let delays: Vec<_> = (0..10)
            .map(|_| backoff.record_failure().as_millis())
            .collect();
        assert_eq!(delays, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.record_failure(), SHORTEST);
    }
}
