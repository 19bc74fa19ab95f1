//! The report of one measurement: text for people, or one JSON object for scripts.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{HumanBytes, HumanCount, HumanFloatCount};
use serde_json::{Value, json};

use super::tally::Tally;
use crate::cli::{BenchMode, BenchOptions};
use crate::client::Target;

/// The reported quantiles: the name in the text, the name in JSON, and the fraction.
const QUANTILES: [(&str, &str, f64); 5] = [
    ("p50", "p50_us", 0.5),
    ("p90", "p90_us", 0.9),
    ("p99", "p99_us", 0.99),
    ("p99.9", "p99_9_us", 0.999),
    ("max", "max_us", 1.0),
];

/// The maximum number of bars.
const MAX_BARS: i32 = 10;

/// The minimum ratio between the latencies of two bars. Smaller ratios would show how the histogram
/// rounds.
const MIN_RATIO: f64 = 1.1;

/// The length of the longest bar, in characters.
const BAR_LENGTH: u64 = 40;

pub(super) struct Report<'a> {
    /// The address of the server.
    pub(super) server: String,
    pub(super) options: &'a BenchOptions,
    /// How long the measurement took: less than requested if the run ended early.
    pub(super) elapsed: Duration,
    pub(super) tally: Tally,
}

impl<'a> Report<'a> {
    /// Returns the report of a server that could not be reached.
    pub(super) fn unreachable(target: &Target, options: &'a BenchOptions, reason: &str) -> Self {
        let mut tally = Tally::default();
        tally.record_failure(reason);
        Self {
            server: target.to_string(),
            options,
            elapsed: Duration::ZERO,
            tally,
        }
    }

    /// Returns the report as JSON. The names contain the units; what a mode does not measure is
    /// null.
    pub(super) fn to_json(&self) -> Value {
        let Self { options, tally, .. } = self;
        let has_messages = options.mode != BenchMode::Bulk;
        let mut object = json!({
            "server": self.server,
            "mode": options.mode.name(),
            "connections": options.connections,
            "size_bytes": options.size,
            "warm_up_s": options.warm_up.as_secs_f64(),
            "measured_s": self.elapsed.as_secs_f64(),
            "messages": has_messages.then_some(tally.messages),
            "messages_per_s": has_messages.then(|| tenths(rate(tally.messages, self.elapsed))),
            "bytes": tally.bytes,
            "bytes_per_s": tenths(rate(tally.bytes, self.elapsed)),
        });
        for (_, key, quantile) in QUANTILES {
            object[key] = json!(tally.latency(quantile).map(micros));
        }
        object["failures"] = tally
            .failures
            .iter()
            .map(|(reason, count)| json!({"reason": reason, "count": count}))
            .collect();
        object
    }

    /// Returns what the mode measures, per second: messages, bytes or connections. Returns `None` if
    /// the server was not reached, or if the run ended during the warm-up.
    pub(super) fn throughput(&self) -> Option<f64> {
        let count = match self.options.mode {
            BenchMode::Bulk => self.tally.bytes,
            // Each connection has one message.
            BenchMode::Rtt | BenchMode::Connect => self.tally.messages,
        };
        (!self.elapsed.is_zero()).then(|| rate(count, self.elapsed))
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            server,
            options,
            elapsed,
            tally,
        } = self;
        let (mode, size) = (options.mode.name(), options.size);
        writeln!(
            f,
            "{mode} on {server}: {size} bytes at a time, {elapsed:.1?} measured\n"
        )?;
        let mut row =
            |label: &str, count: String, rate: String| writeln!(f, "{label:12} {count:<14} {rate}");
        let count = |count| HumanCount(count).to_string();
        let connections = count(options.connections.into());
        row("connections", connections, "at once".to_owned())?;
        let messages = count(tally.messages);
        let per_second = |mode, count| format!("{}/s", format_rate(mode, rate(count, *elapsed)));
        let messages_per_s = per_second(options.mode, tally.messages);
        match options.mode {
            BenchMode::Rtt => row("messages", messages, messages_per_s)?,
            BenchMode::Connect => row("connected", messages, messages_per_s)?,
            BenchMode::Bulk => {}
        }
        let bytes_per_s = per_second(BenchMode::Bulk, tally.bytes);
        row("echoed", HumanBytes(tally.bytes).to_string(), bytes_per_s)?;

        let not_measured = match options.mode {
            BenchMode::Bulk => "in bulk mode: a stream has no messages",
            _ if elapsed.is_zero() => "because the run ended during the warm-up",
            _ => "because no message came back in time",
        };
        if tally.latencies.is_empty() {
            writeln!(f, "\nlatency      not measured {not_measured}")?;
        } else {
            let mut label = "\nlatency     ";
            for (name, _, quantile) in QUANTILES {
                let latency = tally.latency(quantile).unwrap_or_default();
                writeln!(f, "{label:12} {name:6} {latency:.1?}")?;
                label = "";
            }
            writeln!(f)?;
            write_histogram(f, &tally.latencies)?;
        }

        write_failures(f, &tally.failures)
    }
}

/// Writes how many connections failed, by reason.
pub(super) fn write_failures(
    f: &mut impl fmt::Write,
    failures: &BTreeMap<String, u64>,
) -> fmt::Result {
    if !failures.is_empty() {
        writeln!(f, "\nfailures")?;
    }
    for (reason, count) in failures {
        writeln!(f, "{:>12} {reason}", HumanCount(*count).to_string())?;
    }
    Ok(())
}

/// Draws a bar for the messages of similar latency. The ratio of each latency to the next is the
/// same.
fn write_histogram(f: &mut impl fmt::Write, latencies: &Histogram<u64>) -> fmt::Result {
    let min = Duration::from_nanos(latencies.min().max(1));
    let max = Duration::from_nanos(latencies.max().max(1));
    let ratio = max
        .div_duration_f64(min)
        .powf(1.0 / f64::from(MAX_BARS))
        .max(MIN_RATIO);
    let second = u64::try_from(min.mul_f64(ratio).as_nanos()).unwrap_or(u64::MAX);
    let mut from = min;
    let mut bars = Vec::new();
    for bar in latencies.iter_log(second, ratio) {
        bars.push((from, bar.count_since_last_iteration()));
        from = Duration::from_nanos(bar.value_iterated_to() + 1);
    }
    let highest = bars.iter().map(|(_, count)| *count).max().unwrap_or(1);
    for (from, count) in bars {
        let length = u128::from(count) * u128::from(BAR_LENGTH) / u128::from(highest);
        let bar = match usize::try_from(length).unwrap_or(0) {
            0 if count > 0 => "▏".to_owned(),
            length => "█".repeat(length),
        };
        let from = format!("{from:.1?}");
        writeln!(f, "{from:>12} {bar} {}", HumanCount(count))?;
    }
    Ok(())
}

/// Returns the count per second, or 0 if no time has passed.
#[expect(clippy::cast_precision_loss, reason = "reports have fewer digits")]
pub(super) fn rate(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() {
        0.0
    } else {
        count as f64 / elapsed.as_secs_f64()
    }
}

/// Formats a rate of what the mode measures. Slow rates have a decimal.
pub(super) fn format_rate(mode: BenchMode, rate: f64) -> String {
    match mode {
        BenchMode::Bulk =>
        {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate is not negative, and its fraction is not shown"
            )]
            HumanBytes(rate as u64).to_string()
        }
        _ if rate < 100.0 => format!("{:.1}", HumanFloatCount(rate)),
        _ => format!("{:.0}", HumanFloatCount(rate)),
    }
}

/// Returns the duration in microseconds, rounded to a tenth.
fn micros(duration: Duration) -> f64 {
    tenths(duration.as_secs_f64() * 1e6)
}

fn tenths(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a tally of these latencies, in microseconds.
    fn tally_of(latencies: impl IntoIterator<Item = u64>) -> Tally {
        let mut tally = Tally::default();
        for micros in latencies {
            tally.record_latency(Duration::from_micros(micros));
        }
        tally
    }

    /// Returns the lines of the histogram of these latencies, in microseconds.
    fn histogram_of(latencies: impl IntoIterator<Item = u64>) -> Vec<String> {
        let mut drawn = String::new();
        write_histogram(&mut drawn, &tally_of(latencies).latencies)
            .expect("a string can be written to");
        drawn.lines().map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn a_rate_is_per_second() {
        let shown = |count, elapsed| format_rate(BenchMode::Rtt, rate(count, elapsed));
        assert_eq!(shown(123_456, Duration::from_millis(500)), "246,912");
        assert_eq!(shown(2, Duration::from_secs(3)), "0.7");
        assert_eq!(shown(7, Duration::ZERO), "0");
        let bytes = rate(3 << 20, Duration::from_secs(2));
        assert_eq!(format_rate(BenchMode::Bulk, bytes), "1.50 MiB");
    }

    #[test]
    fn microseconds_have_one_decimal() {
        assert_eq!(micros(Duration::from_nanos(55_260)).to_string(), "55.3");
        assert_eq!(micros(Duration::from_secs(2)).to_string(), "2000000");
    }

    #[test]
    fn latencies_are_within_one_percent() {
        let tally = tally_of(1..=10_000);
        for (quantile, expected) in [(0.5, 5_000.0), (0.99, 9_900.0), (1.0, 10_000.0)] {
            let shown = tally
                .latency(quantile)
                .map(micros)
                .expect("some were recorded");
            assert!(
                (expected..expected * 1.01).contains(&shown),
                "{quantile}: {shown}"
            );
        }
        assert_eq!(tally_of([]).latency(0.5), None);
    }

    #[test]
    fn histogram_rows_have_the_same_ratio_and_hold_each_message() {
        let rows = histogram_of(1..=1024);
        let expected = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
        assert_eq!(rows.len(), expected.len(), "{rows:?}");
        let counts = rows.iter().map(|row| {
            let (_, count) = row.rsplit_once(' ').expect("a row ends with its count");
            count.parse::<u64>().expect("a number")
        });
        let counts: Vec<u64> = counts.collect();
        assert_eq!(counts.iter().sum::<u64>(), 1024);
        for (count, expected) in counts.iter().zip(expected) {
            assert!(count.abs_diff(expected) <= 1 + expected / 50, "{rows:?}");
        }
        assert!(
            rows[0].starts_with("1.0µs ") && rows[9].starts_with("51"),
            "{rows:?}"
        );
    }

    #[test]
    fn similar_latencies_have_few_rows() {
        assert_eq!(histogram_of([50, 50, 50]).len(), 1);
        assert!(histogram_of([100, 120]).len() <= 2);
        assert!(histogram_of([0, 0, 1_000_000]).len() <= 10);
    }

    #[test]
    fn bars_are_proportional_and_each_message_shows() {
        let latencies = [(10, 1), (20, 2_000), (40, 1_000)];
        let rows = histogram_of(latencies.iter().flat_map(|(micros, n)| vec![*micros; *n]));
        let bars: Vec<&str> = rows
            .iter()
            .filter_map(|row| row.split_once(' '))
            .map(|(_, bar)| bar)
            .collect();
        for expected in [
            "▏ 1",
            &format!("{} 2,000", "█".repeat(40)),
            &format!("{} 1,000", "█".repeat(20)),
            " 0",
        ] {
            assert!(bars.contains(&expected), "{expected}: {rows:?}");
        }
    }
}
