//! The report of a run: text for people, or one JSON object for scripts.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use super::histogram;
use super::tally::Tally;
use crate::cli::{BenchMode, BenchOptions};

/// The reported quantiles: the name in the text, the name in JSON, and the fraction.
const QUANTILES: [(&str, &str, f64); 5] = [
    ("p50", "p50_us", 0.5),
    ("p90", "p90_us", 0.9),
    ("p99", "p99_us", 0.99),
    ("p99.9", "p99_9_us", 0.999),
    ("max", "max_us", 1.0),
];

pub(super) struct Report<'a> {
    pub(super) address: SocketAddr,
    pub(super) options: &'a BenchOptions,
    /// How long the measurement took: less than requested if the run ended early.
    pub(super) elapsed: Duration,
    pub(super) tally: &'a Tally,
}

impl Report<'_> {
    /// Returns the report as JSON. The names contain the units; what a mode does not measure is
    /// null.
    pub(super) fn to_json(&self) -> Value {
        let Self { options, tally, .. } = self;
        let has_messages = options.mode != BenchMode::Bulk;
        let mut object = json!({
            "server": self.address.to_string(),
            "mode": options.mode.name(),
            "connections": options.connections,
            "size_bytes": options.size(),
            "warm_up_s": options.warm_up.as_secs_f64(),
            "measured_s": self.elapsed.as_secs_f64(),
            "messages": has_messages.then_some(tally.messages),
            "messages_per_s": has_messages.then(|| rate(tally.messages, self.elapsed)),
            "bytes": tally.bytes,
            "bytes_per_s": rate(tally.bytes, self.elapsed),
        });
        for (_, key, quantile) in QUANTILES {
            object[key] = json!(latency(&tally.latencies, quantile).map(micros));
        }
        object["failures"] = tally
            .failures
            .iter()
            .map(|(reason, count)| json!({"reason": reason, "count": count}))
            .collect();
        object
    }

    fn write_throughput(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { options, tally, .. } = self;
        let connections = HumanCount(options.connections.into()).to_string();
        writeln!(f, "connections  {connections:<14} at once")?;
        let label = match options.mode {
            BenchMode::Rtt => Some("messages"),
            // Each connection has one message.
            BenchMode::Connect => Some("connected"),
            BenchMode::Bulk => None,
        };
        if let Some(label) = label {
            let messages = HumanCount(tally.messages).to_string();
            let rate = HumanCount(rate(tally.messages, self.elapsed));
            writeln!(f, "{label:12} {messages:<14} {rate}/s")?;
        }
        let bytes = HumanBytes(tally.bytes).to_string();
        let rate = HumanBytes(rate(tally.bytes, self.elapsed));
        writeln!(f, "echoed       {bytes:<14} {rate}/s")
    }

    fn write_latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latencies = &self.tally.latencies;
        let not_measured = if self.options.mode == BenchMode::Bulk {
            Some("in bulk mode: a stream has no messages")
        } else if !latencies.is_empty() {
            None
        } else if self.elapsed.is_zero() {
            Some("because the run ended during the warm-up")
        } else {
            Some("because no message came back in time")
        };
        if let Some(reason) = not_measured {
            return writeln!(f, "\nlatency      not measured {reason}");
        }
        writeln!(f)?;
        let mut label = "latency";
        for (name, _, quantile) in QUANTILES {
            let latency = latency(latencies, quantile).unwrap_or_default();
            writeln!(f, "{label:12} {name:6} {latency:.1?}")?;
            label = "";
        }
        writeln!(f)?;
        histogram::write_bars(f, &histogram::buckets(latencies))
    }

    fn write_failures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.tally.failures.is_empty() {
            writeln!(f, "\nfailures")?;
        }
        for (reason, count) in &self.tally.failures {
            writeln!(f, "{:>12} {reason}", HumanCount(*count).to_string())?;
        }
        Ok(())
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, elapsed) = (self.address, self.elapsed);
        let (mode, size) = (self.options.mode.name(), self.options.size());
        writeln!(
            f,
            "{mode} on {address}: {size} bytes at a time, {elapsed:.1?} measured\n"
        )?;
        self.write_throughput(f)?;
        self.write_latencies(f)?;
        self.write_failures(f)
    }
}

/// Returns the count per second, or 0 if no time has passed.
pub(super) fn rate(count: u64, elapsed: Duration) -> u64 {
    let per_second = u128::from(count) * 1_000_000_000;
    let rate = per_second.checked_div(elapsed.as_nanos()).unwrap_or(0);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// Returns the latency that a fraction of the messages did not exceed.
fn latency(latencies: &Histogram<u64>, quantile: f64) -> Option<Duration> {
    let nanos = latencies.value_at_quantile(quantile);
    (!latencies.is_empty()).then(|| Duration::from_nanos(nanos))
}

/// Returns the duration in microseconds, rounded to a tenth.
fn micros(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e7).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::bench::tally::histogram_of;

    #[test]
    fn a_rate_is_per_second() {
        assert_eq!(rate(500, Duration::from_millis(250)), 2000);
        assert_eq!(rate(1, Duration::from_secs(3)), 0);
        assert_eq!(rate(u64::MAX, Duration::from_nanos(1)), u64::MAX);
        assert_eq!(rate(7, Duration::ZERO), 0);
    }

    #[test]
    fn microseconds_have_one_decimal() {
        assert_eq!(micros(Duration::from_nanos(55_260)).to_string(), "55.3");
        assert_eq!(micros(Duration::from_secs(2)).to_string(), "2000000");
    }

    #[test]
    fn latencies_are_within_one_percent() {
        let latencies = histogram_of(1..=10_000);
        for (quantile, expected) in [(0.5, 5_000.0), (0.99, 9_900.0), (1.0, 10_000.0)] {
            let shown = latency(&latencies, quantile)
                .map(micros)
                .expect("some were recorded");
            assert!(
                (expected..expected * 1.01).contains(&shown),
                "{quantile}: {shown}"
            );
        }
        assert_eq!(latency(&histogram_of([]), 0.5), None);
    }
}
