//! The progress bar, on stderr if that is a terminal: how far the run is, and its throughput.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::report::{format_rate, rate};
use super::workload::Workload;
use crate::cli::BenchMode;

pub(super) struct Progress<'a> {
    bar: ProgressBar,
    workload: &'a Workload<'a>,
    /// The elapsed time and the sum of the counters at the last update.
    last: (Duration, u64),
}

impl<'a> Progress<'a> {
    pub(super) fn new(workload: &'a Workload, label: &str) -> Self {
        let bar = ProgressBar::new(millis(workload.options.warm_up + workload.options.duration));
        bar.set_style(
            ProgressStyle::with_template("{prefix}{bar:20} {percent:>3} %  {msg}")
                .expect("the template is valid"),
        );
        bar.set_prefix(label.to_owned());
        let last = (Duration::ZERO, 0);
        Self {
            bar,
            workload,
            last,
        }
    }

    /// Shows the elapsed time and the throughput since the last update.
    pub(super) fn update(&mut self) {
        let elapsed = self.bar.elapsed();
        let count = self
            .workload
            .counters
            .iter()
            .map(|c| c.0.load(Relaxed))
            .sum();
        let (last_elapsed, last_count) = self.last;
        let rate = rate(count - last_count, elapsed.saturating_sub(last_elapsed));
        self.last = (elapsed, count);
        self.bar.set_position(millis(elapsed));
        let mode = self.workload.options.mode;
        let rate = format_rate(mode, rate);
        self.bar.set_message(match mode {
            BenchMode::Rtt => format!("{rate} messages/s"),
            BenchMode::Bulk => format!("{rate}/s"),
            BenchMode::Connect => format!("{rate} connections/s"),
        });
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
