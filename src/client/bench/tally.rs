//! What is counted during the measurement, on one connection or on all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency that is recorded exactly, in nanoseconds: an hour.
const MAX_LATENCY: u64 = 3_600_000_000_000;

/// Two digits keep latencies within 1 %. Three would take ten times the memory on each connection.
const SIGNIFICANT_DIGITS: u8 = 2;

pub(super) struct Tally {
    /// Messages that came back within the window; 0 in bulk mode.
    pub(super) messages: u64,
    /// Bytes that came back within the window.
    pub(super) bytes: u64,
    /// In nanoseconds.
    pub(super) latencies: Histogram<u64>,
    /// How many connections failed, by reason.
    pub(super) failures: BTreeMap<String, u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            messages: 0,
            bytes: 0,
            latencies: Histogram::new_with_max(MAX_LATENCY, SIGNIFICANT_DIGITS)
                .expect("the bounds are valid"),
            failures: BTreeMap::new(),
        }
    }
}

impl Tally {
    pub(super) fn record_latency(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(MAX_LATENCY);
        self.latencies.saturating_record(nanos);
    }

    pub(super) fn record_failure(&mut self, reason: &str) {
        *self.failures.entry(reason.to_owned()).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.latencies
            .add(other.latencies)
            .expect("all histograms have the same bounds");
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
    }

    /// Returns the latency that a fraction of the messages did not exceed.
    pub(super) fn latency(&self, quantile: f64) -> Option<Duration> {
        let nanos = self.latencies.value_at_quantile(quantile);
        (!self.latencies.is_empty()).then(|| Duration::from_nanos(nanos))
    }
}
