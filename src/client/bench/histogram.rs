//! The histogram of latencies that the report draws: one row per bucket, each with a bar.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::HumanCount;

/// The maximum number of rows.
const ROWS: u32 = 10;

/// The minimum ratio between the latencies of two rows. Smaller ratios would show how the histogram
/// rounds.
const MIN_RATIO: f64 = 1.1;

/// The length of the longest bar, in characters.
const BAR_LENGTH: u64 = 40;

/// The messages whose latency is at least `from`, and less than that of the next bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    from: Duration,
    count: u64,
}

/// Divides the latencies into buckets. The ratio of each to the next is the same.
pub(super) fn buckets(latencies: &Histogram<u64>) -> Vec<Bucket> {
    let min = Duration::from_nanos(latencies.min().max(1));
    let max = Duration::from_nanos(latencies.max().max(1));
    let ratio = max
        .div_duration_f64(min)
        .powf(1.0 / f64::from(ROWS))
        .max(MIN_RATIO);
    let mut buckets = Vec::new();
    let mut from = min;
    for _ in 0..ROWS {
        if from <= max {
            buckets.push(Bucket { from, count: 0 });
        }
        from = from.mul_f64(ratio);
    }
    for value in latencies.iter_recorded() {
        let latency = Duration::from_nanos(value.value_iterated_to());
        let next = buckets.partition_point(|bucket| bucket.from <= latency);
        buckets[next.saturating_sub(1)].count += value.count_at_value();
    }
    buckets
}

/// Draws the buckets. Each one that is not empty has a bar.
pub(super) fn write_bars(f: &mut impl fmt::Write, buckets: &[Bucket]) -> fmt::Result {
    let max = buckets.iter().map(|bucket| bucket.count).max();
    let max = u128::from(max.unwrap_or(0).max(1));
    for Bucket { from, count } in buckets {
        let length = u128::from(*count) * u128::from(BAR_LENGTH) / max;
        let bar = match usize::try_from(length).unwrap_or(0) {
            0 if *count > 0 => "▏".to_owned(),
            length => "█".repeat(length),
        };
        let from = format!("{from:.1?}");
        writeln!(f, "{from:>12} {bar} {}", HumanCount(*count))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::bench::tally::histogram_of;

    #[test]
    fn buckets_have_the_same_ratio_and_hold_each_message() {
        let buckets = buckets(&histogram_of(1..=1024));
        assert_eq!(buckets.len(), ROWS as usize);
        assert_eq!(buckets.iter().map(|b| b.count).sum::<u64>(), 1024);
        assert!(buckets.is_sorted_by_key(|b| b.count), "{buckets:?}");
        for pair in buckets.windows(2) {
            let ratio = pair[1].from.div_duration_f64(pair[0].from);
            assert!((1.9..2.1).contains(&ratio), "{buckets:?}");
        }
    }

    #[test]
    fn similar_latencies_have_few_rows() {
        assert_eq!(buckets(&histogram_of([50, 50, 50])).len(), 1);
        assert!(buckets(&histogram_of([100, 120])).len() <= 2);
    }

    #[test]
    fn bars_are_proportional_and_each_message_shows() {
        let buckets = [(10, 1), (20, 10_000), (40, 5_000), (80, 0)].map(|(micros, count)| Bucket {
            from: Duration::from_micros(micros),
            count,
        });
        let mut drawn = String::new();
        write_bars(&mut drawn, &buckets).expect("a string can be written to");
        let lines: Vec<&str> = drawn.lines().map(str::trim).collect();
        assert_eq!(lines[0], "10.0µs ▏ 1");
        assert_eq!(lines[1], format!("20.0µs {} 10,000", "█".repeat(40)));
        assert_eq!(lines[2], format!("40.0µs {} 5,000", "█".repeat(20)));
        assert_eq!(lines[3], "80.0µs  0");
    }
}
