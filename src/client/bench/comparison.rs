//! The report of servers that were measured in turns: text for people, or one JSON object for
//! scripts.

use std::collections::BTreeMap;
use std::fmt;

use indicatif::HumanCount;
use serde_json::{Value, json};

use super::report::{Report, format_rate, write_failures};
use crate::cli::{BenchMode, BenchOptions};

pub(super) struct Comparison<'a> {
    pub(super) options: &'a BenchOptions,
    pub(super) rounds: u16,
    pub(super) servers: Vec<Server<'a>>,
}

pub(super) struct Server<'a> {
    pub(super) address: String,
    /// One for each round, unless the run ended early.
    pub(super) measurements: Vec<Report<'a>>,
}

impl Server<'_> {
    fn throughput(&self) -> Vec<f64> {
        sorted(self.measurements.iter().filter_map(Report::throughput))
    }
}

impl Comparison<'_> {
    pub(super) fn to_json(&self) -> Value {
        let first = self.first_throughput();
        let servers = self.servers.iter().map(|server| {
            let measurements = server.measurements.iter().map(Report::to_json);
            json!({
                "address": server.address,
                "ratio": ratio(&server.throughput(), &first),
                "measurements": measurements.collect::<Value>(),
            })
        });
        json!({"rounds": self.rounds, "servers": servers.collect::<Value>()})
    }

    pub(super) fn failures(&self) -> BTreeMap<String, u64> {
        let mut failures = BTreeMap::new();
        for server in &self.servers {
            for (reason, count) in server.measurements.iter().flat_map(|m| &m.tally.failures) {
                let failure = format!("{}: {reason}", server.address);
                *failures.entry(failure).or_default() += count;
            }
        }
        failures
    }

    fn first_throughput(&self) -> Vec<f64> {
        let first = self.servers.first();
        first.map(Server::throughput).unwrap_or_default()
    }
}

impl fmt::Display for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = self.options;
        let unit = match options.mode {
            BenchMode::Rtt => "messages/s",
            BenchMode::Bulk => "bytes/s",
            BenchMode::Connect => "connections/s",
        };
        let (mode, duration) = (options.mode.name(), options.duration);
        let (size, connections) = (options.size, HumanCount(options.connections.into()));
        writeln!(
            f,
            "{mode} in turns, {duration:?} each: {size} bytes at a time, connections: {connections}, \
             throughput in {unit}\n"
        )?;
        let addresses = self.servers.iter().map(|server| server.address.len());
        let width = addresses.max().unwrap_or(0).max("server".len());
        writeln!(
            f,
            "{:width$} rounds  ratio      median      lowest     highest       p50       p99",
            "server"
        )?;
        let first = self.first_throughput();
        for server in &self.servers {
            let (address, throughput) = (&server.address, server.throughput());
            let Some(median_throughput) = median(&throughput) else {
                writeln!(f, "{address:width$}      0  not measured")?;
                continue;
            };
            let ratio = ratio(&throughput, &first).map(|ratio| format!("{ratio:.2}"));
            let [p50, p99] = [0.5, 0.99].map(|quantile| {
                let rounds = server.measurements.iter();
                let latencies = sorted(rounds.filter_map(|report| report.tally.latency(quantile)));
                median(&latencies).map(|latency| format!("{latency:.1?}"))
            });
            let or_dash = |figure: Option<String>| figure.unwrap_or_else(|| "-".to_owned());
            writeln!(
                f,
                "{address:width$} {:>6} {:>6} {:>11} {:>11} {:>11} {:>9} {:>9}",
                throughput.len(),
                or_dash(ratio),
                format_rate(options.mode, median_throughput),
                format_rate(options.mode, throughput[0]),
                format_rate(options.mode, throughput[throughput.len() - 1]),
                or_dash(p50),
                or_dash(p99),
            )?;
        }
        for server in self.servers.iter().skip(1) {
            if is_within_spread(&server.throughput(), &first) {
                writeln!(
                    f,
                    "\nwarning: the ratio of {} may be chance: the rounds differ more than the \
                     medians;\nuse an idle machine, more --rounds or a longer --duration",
                    server.address
                )?;
            }
        }
        write_failures(f, &self.failures())
    }
}

/// Returns a figure of each round, sorted.
fn sorted<T: PartialOrd>(figures: impl Iterator<Item = T>) -> Vec<T> {
    let mut figures: Vec<T> = figures.collect();
    figures.sort_by(|a, b| a.partial_cmp(b).expect("no figure is NaN"));
    figures
}

/// Returns the median; of an even number, the lower of the two in the middle.
fn median<T: Copy>(sorted: &[T]) -> Option<T> {
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

/// Returns the ratio of the medians, unless the first server was not measured or echoed nothing.
fn ratio(throughput: &[f64], first: &[f64]) -> Option<f64> {
    let (median, first) = (median(throughput)?, median(first)?);
    (first > 0.0).then(|| median / first)
}

/// Returns whether the median of one server is among the rounds of the other, so that the ratio may
/// be chance.
fn is_within_spread(a: &[f64], b: &[f64]) -> bool {
    let is_in_range = |value, rounds: &[f64]| {
        rounds.first().is_some_and(|lowest| *lowest <= value)
            && rounds.last().is_some_and(|highest| value <= *highest)
    };
    median(a).is_some_and(|a| is_in_range(a, b)) || median(b).is_some_and(|b| is_in_range(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[1, 5, 9]), Some(5));
        assert_eq!(median(&[1, 4, 5, 9]), Some(4));
        assert_eq!(median::<u64>(&[]), None);
    }

    #[test]
    fn a_ratio_is_of_the_medians() {
        assert_eq!(ratio(&[10.0, 30.0, 90.0], &[1.0, 20.0, 100.0]), Some(1.5));
        assert_eq!(ratio(&[0.0], &[20.0]), Some(0.0));
        assert_eq!(ratio(&[10.0], &[0.0]), None);
        assert_eq!((ratio(&[10.0], &[]), ratio(&[], &[10.0])), (None, None));
    }

    #[test]
    fn a_ratio_means_little_within_the_spread() {
        for (a, b, expected) in [
            (&[90.0, 100.0, 110.0][..], &[95.0, 105.0, 200.0][..], true),
            (&[90.0, 100.0, 110.0], &[10.0, 20.0, 105.0], true),
            (&[90.0, 100.0, 110.0], &[20.0, 30.0, 95.0], false),
            (&[90.0, 100.0, 110.0], &[105.0, 120.0, 130.0], false),
            (&[100.0], &[200.0], false),
            (&[100.0], &[], false),
        ] {
            assert_eq!(is_within_spread(a, b), expected, "{a:?} {b:?}");
            assert_eq!(is_within_spread(b, a), expected, "{a:?} {b:?}");
        }
    }
}
