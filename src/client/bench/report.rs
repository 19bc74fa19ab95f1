//! What a run has shown: a page for a person, or one JSON object for a script.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use super::tally::Tally;
use super::{BenchOptions, Mode};

/// The share of the messages that took no longer, as a fraction, under the names in the page and
/// in JSON.
const QUANTILES: [(&str, &str, f64); 5] = [
    ("p50", "p50_us", 0.5),
    ("p90", "p90_us", 0.9),
    ("p99", "p99_us", 0.99),
    ("p99.9", "p99_9_us", 0.999),
    ("max", "max_us", 1.0),
];

/// The most rows of the drawn histogram.
const ROWS: u32 = 10;

/// The least ratio of two rows' latencies: finer ones would show how latencies are stored.
const FINEST: f64 = 1.1;

/// The length of the longest bar, in characters.
const BAR: u64 = 40;

/// What is reported.
pub(super) struct Report<'a> {
    pub(super) address: SocketAddr,
    pub(super) options: &'a BenchOptions,
    /// For how long it was measured; less than was asked for where the run ended early.
    pub(super) elapsed: Duration,
    pub(super) tally: &'a Tally,
}

impl Report<'_> {
    /// Figures that the mode does not measure are null. Units are in the names; `s` and `us` are
    /// seconds and microseconds.
    pub(super) fn json(&self) -> Value {
        let Self { options, tally, .. } = self;
        let timed = options.mode != Mode::Bulk;
        let mut object = json!({
            "server": self.address.to_string(),
            "mode": options.mode.name(),
            "connections": options.connections,
            "size_bytes": options.size(),
            "warm_up_s": options.warm_up.as_secs_f64(),
            "measured_s": self.elapsed.as_secs_f64(),
            "messages": timed.then_some(tally.messages),
            "messages_per_s": timed.then(|| rate(tally.messages, self.elapsed)),
            "bytes": tally.bytes,
            "bytes_per_s": rate(tally.bytes, self.elapsed),
        });
        for (_, key, quantile) in QUANTILES {
            object[key] = json!(latency(&tally.latencies, quantile).map(micros));
        }
        let failures = tally.failures.iter();
        let failures = failures.map(|(why, n)| json!({"reason": why.to_string(), "count": n}));
        object["failures"] = failures.collect();
        object
    }

    fn write_rates(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            options,
            elapsed,
            tally,
            ..
        } = self;
        row(
            f,
            "connections",
            &HumanCount(options.connections.into()),
            "at once",
        )?;
        // In this mode they are one and the same.
        let messages = if options.mode == Mode::Connect {
            "connected"
        } else {
            "messages"
        };
        if options.mode != Mode::Bulk {
            let a_second = format!("{} a second", HumanCount(rate(tally.messages, *elapsed)));
            row(f, messages, &HumanCount(tally.messages), &a_second)?;
        }
        let a_second = format!("{} a second", HumanBytes(rate(tally.bytes, *elapsed)));
        row(f, "echoed", &HumanBytes(tally.bytes), &a_second)
    }

    fn write_latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latencies = &self.tally.latencies;
        if self.options.mode == Mode::Bulk {
            return writeln!(
                f,
                "\nlatency      not measured in bulk: a stream has no messages"
            );
        }
        if latencies.is_empty() {
            let why = if self.elapsed.is_zero() {
                "the run ended during the warm-up"
            } else {
                "no message came back in time"
            };
            return writeln!(f, "\nlatency      not measured: {why}");
        }
        writeln!(f)?;
        let labels = ["latency"].into_iter().chain([""; QUANTILES.len() - 1]);
        for (label, (name, _, quantile)) in labels.zip(QUANTILES) {
            let latency = latency(latencies, quantile).unwrap_or_default();
            writeln!(f, "{label:12} {name:6} {latency:.1?}")?;
        }
        writeln!(f)?;
        write_bars(f, &buckets(latencies))
    }

    fn write_failures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tally.failures.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nfailures")?;
        for (reason, count) in &self.tally.failures {
            writeln!(f, "{:>12} {reason}", HumanCount(*count).to_string())?;
        }
        Ok(())
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            options,
            elapsed,
            ..
        } = self;
        let (mode, size) = (options.mode.name(), options.size());
        writeln!(
            f,
            "{mode} on {address}: {size} bytes at a time, {elapsed:.1?} measured\n"
        )?;
        self.write_rates(f)?;
        self.write_latencies(f)?;
        self.write_failures(f)
    }
}

fn row(
    f: &mut fmt::Formatter<'_>,
    label: &str,
    total: &dyn fmt::Display,
    more: &str,
) -> fmt::Result {
    writeln!(f, "{label:12} {:<14} {more}", total.to_string())
}

/// How many there are a second; none where no time has passed.
pub(super) fn rate(count: u64, elapsed: Duration) -> u64 {
    let a_second = u128::from(count) * 1_000_000_000;
    let rate = a_second.checked_div(elapsed.as_nanos()).unwrap_or(0);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

fn latency(latencies: &Histogram<u64>, quantile: f64) -> Option<Duration> {
    let nanos = latencies.value_at_quantile(quantile);
    (!latencies.is_empty()).then(|| Duration::from_nanos(nanos))
}

/// To a tenth.
fn micros(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e7).round() / 10.0
}

/// Rows of the same ratio from the shortest latency to the longest: where each begins, and how many
/// messages are in it.
fn buckets(latencies: &Histogram<u64>) -> Vec<(Duration, u64)> {
    let least = Duration::from_nanos(latencies.min().max(1));
    let most = Duration::from_nanos(latencies.max().max(1));
    let ratio = most.as_secs_f64() / least.as_secs_f64();
    let step = ratio.powf(1.0 / f64::from(ROWS)).max(FINEST);
    let mut buckets: Vec<_> = (0..ROWS).map(|_| (least, 0)).collect();
    for row in 1..buckets.len() {
        buckets[row].0 = buckets[row - 1].0.mul_f64(step);
    }
    buckets.retain(|(from, _)| *from <= most);
    for value in latencies.iter_recorded() {
        let latency = Duration::from_nanos(value.value_iterated_to());
        let above = buckets.partition_point(|(from, _)| *from <= latency);
        if let Some((_, count)) = buckets.get_mut(above.saturating_sub(1)) {
            *count += value.count_at_value();
        }
    }
    buckets
}

/// The longest bar is that of the most messages; a row that has any has a bar.
fn write_bars(f: &mut fmt::Formatter<'_>, buckets: &[(Duration, u64)]) -> fmt::Result {
    let most = buckets
        .iter()
        .map(|(_, count)| *count)
        .max()
        .unwrap_or(0)
        .max(1);
    for (from, count) in buckets {
        let length = u128::from(*count) * u128::from(BAR) / u128::from(most);
        let bar = match usize::try_from(length).unwrap_or(0) {
            0 if *count > 0 => "▏".to_owned(),
            length => "█".repeat(length),
        };
        let from = format!("{from:.1?}");
        let line = format!("{from:>12} {bar} {}", HumanCount(*count));
        writeln!(f, "{line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A histogram of these latencies, in microseconds.
    fn histogram(latencies: impl IntoIterator<Item = u64>) -> Histogram<u64> {
        let mut tally = Tally::default();
        latencies
            .into_iter()
            .for_each(|micros| tally.time(Duration::from_micros(micros)));
        tally.latencies
    }

    struct Bars(Vec<(Duration, u64)>);

    impl fmt::Display for Bars {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_bars(f, &self.0)
        }
    }

    #[test]
    fn a_rate_is_a_second_whatever_was_measured() {
        assert_eq!(rate(500, Duration::from_millis(250)), 2000);
        assert_eq!(rate(1, Duration::from_secs(3)), 0);
        assert_eq!(rate(u64::MAX, Duration::from_nanos(1)), u64::MAX);
        assert_eq!(rate(7, Duration::ZERO), 0);
    }

    #[test]
    fn buckets_hold_each_message_once_in_rows_of_the_same_ratio() {
        let buckets = buckets(&histogram(1..=1024));
        assert_eq!(buckets.len(), ROWS as usize);
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), 1024);
        assert!(buckets.is_sorted_by_key(|(_, count)| *count), "{buckets:?}");
        for pair in buckets.windows(2) {
            let ratio = pair[1].0.as_secs_f64() / pair[0].0.as_secs_f64();
            assert!((1.9..2.1).contains(&ratio), "{buckets:?}");
        }
    }

    #[test]
    fn latencies_that_hardly_differ_have_few_rows() {
        assert_eq!(buckets(&histogram([50, 50, 50])).len(), 1);
        assert!(buckets(&histogram([100, 120])).len() <= 2);
    }

    #[test]
    fn bars_are_in_proportion_and_no_message_is_invisible() {
        let [a, b, c, d] = [10, 20, 40, 80].map(Duration::from_micros);
        let drawn = Bars(vec![(a, 1), (b, 10_000), (c, 5_000), (d, 0)]).to_string();
        let lines: Vec<&str> = drawn.lines().map(str::trim).collect();
        assert_eq!(lines[0], "10.0µs ▏ 1");
        assert_eq!(lines[1], format!("20.0µs {} 10,000", "█".repeat(40)));
        assert_eq!(lines[2], format!("40.0µs {} 5,000", "█".repeat(20)));
        assert_eq!(lines[3], "80.0µs  0");
    }

    #[test]
    fn microseconds_have_one_decimal() {
        assert_eq!(micros(Duration::from_nanos(55_260)).to_string(), "55.3");
        assert_eq!(micros(Duration::from_secs(2)).to_string(), "2000000");
    }

    #[test]
    fn latencies_are_within_one_percent() {
        let latencies = histogram(1..=10_000);
        for (quantile, expected) in [(0.5, 5_000.0), (0.99, 9_900.0), (1.0, 10_000.0)] {
            let shown = latency(&latencies, quantile)
                .map(micros)
                .expect("some were recorded");
            assert!(
                (expected..expected * 1.01).contains(&shown),
                "{quantile}: {shown}"
            );
        }
        assert_eq!(latency(&histogram([]), 0.5), None);
    }
}
