//! Repeats tests that fail if the machine delays them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// The longest time between two steps of a test.
#[derive(Default)]
pub struct Pace {
    last_step: Option<Instant>,
    longest: Duration,
}

impl Pace {
    /// Records a step. Called before the step whose delay can make the test fail.
    pub fn step(&mut self) {
        let now = Instant::now();
        if let Some(last_step) = self.last_step.replace(now) {
            self.longest = self.longest.max(now - last_step);
        }
    }
}

/// Runs `test`, and runs it again if it fails after `limit` or more between two of its steps. A test
/// that fails in time has failed.
pub fn retry_if_late(limit: Duration, test: impl Fn(&mut Pace)) {
    for attempt in 1.. {
        let mut pace = Pace::default();
        match catch_unwind(AssertUnwindSafe(|| test(&mut pace))) {
            Ok(()) => return,
            Err(failure) if pace.longest < limit || attempt == 20 => resume_unwind(failure),
            Err(_) => {}
        }
    }
}
