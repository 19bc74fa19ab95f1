//! The progress bar, on stderr if that is a terminal: how far the run is, and its throughput.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use super::load::Window;
use super::report::rate;
use crate::cli::BenchMode;

/// The messages or, in bulk mode, the bytes that a connection has received so far.
///
/// Only the thread of the connection writes to it, and no other counter shares its cache line, so
/// counting costs no more than a local variable.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.store(self.get() + count, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

pub(super) struct Progress<'a> {
    bar: ProgressBar,
    mode: BenchMode,
    counters: &'a [Counter],
    /// The elapsed time and the sum of the counters at the last update.
    last: (Duration, u64),
}

impl<'a> Progress<'a> {
    pub(super) fn new(mode: BenchMode, counters: &'a [Counter], window: Window) -> Self {
        let bar = ProgressBar::new(millis(window.end.saturating_duration_since(Instant::now())));
        bar.set_style(
            ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}")
                .expect("the template is valid"),
        );
        Self {
            bar,
            mode,
            counters,
            last: (Duration::ZERO, 0),
        }
    }

    /// Shows the elapsed time and the throughput since the last update.
    pub(super) fn update(&mut self) {
        let elapsed = self.bar.elapsed();
        let count = self.counters.iter().map(Counter::get).sum();
        let (last_elapsed, last_count) = self.last;
        let rate = rate(count - last_count, elapsed.saturating_sub(last_elapsed));
        self.last = (elapsed, count);
        self.bar.set_position(millis(elapsed));
        self.bar.set_message(match self.mode {
            BenchMode::Rtt => format!("{} messages/s", HumanCount(rate)),
            BenchMode::Bulk => format!("{}/s", HumanBytes(rate)),
            BenchMode::Connect => format!("{} connections/s", HumanCount(rate)),
        });
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_adds_up() {
        let counter = Counter::default();
        counter.add(2);
        counter.add(3);
        assert_eq!(counter.get(), 5);
    }
}
