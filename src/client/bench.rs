//! The load generator: how many echoes a second a server gives, and how long each takes.
//!
//! It is a closed loop: each connection has a thread, which sends its next message once it has the
//! echo of the last. All connect first and start together; what happens before the warm-up is over
//! is not measured, but must be right too. A connection that fails is counted by its reason, and
//! the others go on. Here is the run as a whole; one connection's part is in `load.rs`, what it
//! counts in `tally.rs`, what all that amounts to in `report.rs`.

mod load;
mod report;
mod tally;

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use self::load::{Load, Window};
use self::report::Report;
use self::tally::{Live, Reason, Tally};
use super::{Error, Target, explain_stdout_error};
use crate::cli::{BenchMode as Mode, BenchOptions};
use crate::platform;

/// How often the run looks for Ctrl+C and moves the progress bar.
const TICK: Duration = Duration::from_millis(100);

/// In bytes. Enough for a debug build; the buffers are on the heap. The default of 2 MiB is more address
/// space than some systems give to thousands of threads.
const STACK_SIZE: usize = 131_072;

impl Mode {
    /// As on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Rtt => "rtt",
            Self::Bulk => "bulk",
            Self::Connect => "connect",
        }
    }
}

/// Loads the server, then prints what that has shown. `stop` ends the run early; what was measured
/// until then is printed all the same. At the end of the run `stop` is set.
///
/// # Errors
/// The server cannot be reached, or stdout fails. Where a connection failed later, or an echo was wrong, the report
/// says so, and [`Error::AlreadyReported`] is left; so it is where nobody reads the report.
pub fn run(target: &Target, options: &BenchOptions, stop: &AtomicBool) -> Result<(), Error> {
    // Each connection takes a file. If the limit stays too low, the report counts the failures.
    let _ = platform::raise_file_limit();
    let (first, address) = target.connect()?;
    let load = Load::new(address, target.timeout, options.mode, options.size());
    let (tally, elapsed) = conduct(&load, options, first, stop);
    // The next Ctrl+C ends the program, even if no process reads the report.
    stop.store(true, Ordering::Relaxed);
    let report = Report {
        address,
        options,
        elapsed,
        tally: &tally,
    };
    let text = if options.json {
        format!("{}\n", report.json())
    } else {
        report.to_string()
    };
    let mut stdout = io::stdout();
    let said = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    said.map_err(|error| explain_stdout_error(&error))?;
    if tally.failures.is_empty() {
        Ok(())
    } else {
        Err(Error::AlreadyReported)
    }
}

/// Runs the load on all connections, of which `first` has been made; what they counted, and in how
/// much time.
fn conduct(
    load: &Load,
    options: &BenchOptions,
    first: TcpStream,
    stop: &AtomicBool,
) -> (Tally, Duration) {
    let mut total = Tally::default();
    let (results, tallies) = mpsc::channel();
    let (ready, all_ready) = mpsc::channel();
    let lives: Vec<Live> = (0..options.connections).map(|_| Live::default()).collect();
    let elapsed = thread::scope(|scope| {
        let mut first = Some(first);
        for (number, live) in (0..).zip(&lives) {
            let (results, ready, first) = (results.clone(), ready.clone(), first.take());
            let worker = thread::Builder::new().stack_size(STACK_SIZE);
            let worker = worker.spawn_scoped(scope, move || {
                // The receiver outlives the scope.
                let _ = results.send(load.work(number, first, live, ready));
            });
            if let Err(error) = worker {
                total.lose(Reason::NoThread(error.to_string()));
            }
        }
        drop((results, ready));
        wait_until_ready(&all_ready, stop);
        let window = load.start(options.warm_up, options.duration);
        watch(
            load,
            &tallies,
            stop,
            &mut Progress::new(load, &lives, window),
            &mut total,
        )
        .min(window.end)
        .saturating_duration_since(window.start)
    });
    (total, elapsed)
}

/// Blocks until each worker is ready or has failed: it then has dropped its sender.
fn wait_until_ready(all_ready: &Receiver<Infallible>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed)
        && all_ready.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout)
    {}
}

/// Adds up what the workers counted, until all have ended; when the measuring was over.
fn watch(
    load: &Load,
    tallies: &Receiver<Tally>,
    stop: &AtomicBool,
    progress: &mut Progress,
    total: &mut Tally,
) -> Instant {
    let mut over = None;
    loop {
        match tallies.recv_timeout(TICK) {
            Ok(tally) => total.add(tally),
            Err(RecvTimeoutError::Timeout) => progress.show(),
            Err(RecvTimeoutError::Disconnected) => return over.unwrap_or_else(Instant::now),
        }
        if over.is_none() && stop.load(Ordering::Relaxed) {
            load.stop();
            over = Some(Instant::now());
        }
    }
}

/// The bar on stderr, where that is a terminal: how far the run is, and how fast the load.
struct Progress<'a> {
    bar: ProgressBar,
    mode: Mode,
    lives: &'a [Live],
    began: Instant,
    shown: (Instant, u64),
}

impl<'a> Progress<'a> {
    fn new(load: &Load, lives: &'a [Live], window: Window) -> Self {
        let began = Instant::now();
        let bar = ProgressBar::new(millis(window.end.saturating_duration_since(began)));
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}") {
            bar.set_style(style);
        }
        Self {
            bar,
            mode: load.mode,
            lives,
            began,
            shown: (began, 0),
        }
    }

    /// Shows the rate since the last time.
    fn show(&mut self) {
        let now = Instant::now();
        let done = self.lives.iter().map(Live::read).sum();
        let (before, had) = self.shown;
        let rate = report::rate(done - had, now.saturating_duration_since(before));
        self.shown = (now, done);
        self.bar
            .set_position(millis(now.saturating_duration_since(self.began)));
        self.bar.set_message(match self.mode {
            Mode::Rtt => format!("{} messages a second", HumanCount(rate)),
            Mode::Bulk => format!("{} a second", HumanBytes(rate)),
            Mode::Connect => format!("{} connections a second", HumanCount(rate)),
        });
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
