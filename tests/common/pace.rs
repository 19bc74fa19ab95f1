//! Repeats tests that fail if the machine delays them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// The longest time between two steps of a test.
#[derive(Default)]
pub struct Pace {
    last_step: Option<Instant>,
    longest: Duration,
}

impl Pace {
    /// Begins a step, which must not take long, and ends the one before.
    pub fn step(&mut self) {
        self.stop();
        self.last_step = Some(Instant::now());
    }

    /// Ends the last step. What follows may take any time.
    pub fn stop(&mut self) {
        if let Some(last_step) = self.last_step.take() {
            self.longest = self.longest.max(last_step.elapsed());
        }
    }
}

/// Runs `attempt`, up to 20 times, until it returns true. For what a busy machine may delay.
#[track_caller]
pub fn retry(attempt: impl Fn() -> bool, failure: &str) {
    assert!((0..20).any(|_| attempt()), "{failure}");
}

/// Runs `test`, and runs it again if it fails and one of its steps has taken `limit` or longer. A test
/// that fails without a long step has failed.
pub fn retry_if_late(limit: Duration, test: impl Fn(&mut Pace)) {
    let begin = Instant::now();
    loop {
        let mut pace = Pace::default();
        let Err(failure) = catch_unwind(AssertUnwindSafe(|| test(&mut pace))) else {
            return;
        };
        pace.stop();
        if pace.longest < limit || begin.elapsed() > PATIENCE {
            resume_unwind(failure);
        }
    }
}
