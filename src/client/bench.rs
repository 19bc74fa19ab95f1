//! `echo-client bench`: a closed-loop load generator that measures throughput and latency, and
//! verifies every byte.
//!
//! Each connection has a thread, which sends its next message after the echo of the last. All
//! connections are established before the workload starts. Messages during the warm-up are verified but
//! not measured. A connection that fails is counted, and the others continue.
//!
//! Several servers are measured in turns, so that a busy moment of the machine affects all alike.

mod comparison;
mod progress;
mod report;
mod tally;
mod worker;
mod workload;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use self::comparison::{Comparison, Server};
use self::progress::Progress;
use self::report::Report;
use self::tally::Tally;
use self::worker::Worker;
use self::workload::Workload;
use super::{Error, Target, print};
use crate::cli::BenchOptions;
use crate::platform;

/// How often the main thread updates the progress bar and checks whether the run was stopped.
const TICK: Duration = Duration::from_millis(100);

/// The stack of each thread, in bytes. Some systems lack the address space for thousands of stacks
/// of the default size.
const STACK_SIZE: usize = 131_072;

/// How often each of several servers is measured by default.
const DEFAULT_ROUNDS: u16 = 5;

/// Measures the servers and prints the report. Setting `stop` ends the run early, with a report of
/// what was measured. The run sets `stop` itself when it ends.
///
/// # Errors
/// Returns an error if the only server cannot be reached or stdout fails. Returns
/// [`Error::AlreadyReported`] if one of several cannot be reached, if a connection failed later, or
/// if the reader of stdout has gone.
pub fn run(targets: &[Target], options: &BenchOptions, stop: &AtomicBool) -> Result<(), Error> {
    // Each connection takes a file descriptor. If the limit stays too low, the report counts those
    // that fail.
    let _ = platform::raise_file_limit();
    let (text, json, failures) = if let ([target], None) = (targets, options.rounds) {
        let report = measure(target, options, "", stop)?;
        (report.to_string(), report.to_json(), report.tally.failures)
    } else {
        let comparison = measure_in_turns(targets, options, stop)?;
        let failures = comparison.failures();
        (comparison.to_string(), comparison.to_json(), failures)
    };
    // The next Ctrl+C ends the process, even if printing the report blocks.
    stop.store(true, Relaxed);
    if options.json {
        print(format_args!("{json}\n"))?;
    } else {
        print(text)?;
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::AlreadyReported)
    }
}

/// Measures each server once in each round. One that cannot be reached does not affect the others.
fn measure_in_turns<'a>(
    targets: &[Target],
    options: &'a BenchOptions,
    stop: &AtomicBool,
) -> Result<Comparison<'a>, Error> {
    let servers = targets.iter().map(|target| Server {
        address: target.to_string(),
        measurements: Vec::new(),
    });
    let mut comparison = Comparison {
        options,
        rounds: options.rounds.unwrap_or(DEFAULT_ROUNDS),
        servers: servers.collect(),
    };
    for round in 1..=comparison.rounds {
        for (target, server) in targets.iter().zip(&mut comparison.servers) {
            if stop.load(Relaxed) {
                return Ok(comparison);
            }
            let label = format!("round {round}/{}, {target}  ", comparison.rounds);
            let report = match measure(target, options, &label, stop) {
                Ok(report) => report,
                Err(Error::Message(reason)) => Report::unreachable(target, options, &reason),
                Err(error) => return Err(error),
            };
            server.measurements.push(report);
        }
    }
    Ok(comparison)
}

/// Runs the workload on all connections to a server.
fn measure<'a>(
    target: &Target,
    options: &'a BenchOptions,
    progress_label: &str,
    stop: &AtomicBool,
) -> Result<Report<'a>, Error> {
    let first = target.connect()?;
    let address = first.address;
    let workload = Workload::new(address, target.timeout, options, stop);
    let mut first_connection = Some(first);
    let mut total = Tally::default();
    let mut stopped_at = None;
    let (results, tallies) = mpsc::channel();
    let (ready, all_ready) = mpsc::channel();
    thread::scope(|scope| {
        for number in 0..workload.counters.len() {
            let worker = Worker::new(&workload, number);
            let (connection, ready, results) =
                (first_connection.take(), ready.clone(), results.clone());
            let run_worker = move || {
                // The receiver lives until all workers have ended.
                let _ = results.send(worker.run(connection, ready));
            };
            let thread = thread::Builder::new().stack_size(STACK_SIZE);
            if let Err(error) = thread.spawn_scoped(scope, run_worker) {
                total.record_failure(&worker::no_thread(&error));
            }
        }
        drop((ready, results));
        // Each worker drops its sender when it is connected or has failed.
        let _ = all_ready.recv();
        workload.start();
        let mut progress = Progress::new(&workload, progress_label);
        loop {
            match tallies.recv_timeout(TICK) {
                Ok(tally) => total.add(tally),
                Err(RecvTimeoutError::Timeout) => progress.update(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if workload.is_stopped() {
                stopped_at.get_or_insert_with(Instant::now);
            }
        }
    });
    let window = workload.window();
    let ended_at = stopped_at.unwrap_or_else(Instant::now).min(window.end);
    Ok(Report {
        server: address.to_string(),
        options,
        elapsed: ended_at.saturating_duration_since(window.start),
        tally: total,
    })
}
