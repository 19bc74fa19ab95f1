//! The conformance suite: does a server echo, exactly and always (RFC 862)? It judges the path
//! too: pointed at a proxy or a tunnel with an echo server behind it, it shows what they change.
//!
//! Each check makes its own connections and states one property, so a server that fails one can
//! still pass the others. A server may be slow: it has the timeout for each message, and for each
//! 64 KiB of a longer one. So every check ends.

mod checks;
mod peer;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use console::style;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{Error, Target, explain_stdout_error};
use crate::cli::TestOptions;
use crate::platform;
use checks::{CHECKS, Check};
use peer::{Fault, Subject};

/// Runs the checks and prints a line for each; one that fails or hangs does not stop the others.
///
/// # Errors
/// There is no such check, the server cannot be reached, or stdout fails. [`Error::AlreadyReported`]: a
/// check has failed, and its line says why.
pub fn run(target: &Target, options: &TestOptions) -> Result<(), Error> {
    let checks: Vec<&Check> = CHECKS
        .iter()
        .filter(|check| check.name.contains(&options.name))
        .collect();
    if checks.is_empty() {
        let names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        let names = names.join("; ");
        return Err(format!(
            "no check has {:?} in its name; they are: {names}",
            options.name
        )
        .into());
    }
    // Each connection takes a file. If the limit stays too low, the report counts the failures.
    let _ = platform::raise_file_limit();
    let (_, address) = target.connect()?;
    let subject = Subject {
        address,
        timeout: target.timeout,
        progress: ProgressBar::new_spinner(),
    };
    let passed = if options.json {
        as_json(&checks, &subject)
    } else {
        as_text(&checks, &subject)
    };
    subject.progress.finish_and_clear();
    match passed {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::AlreadyReported),
        Err(error) => Err(explain_stdout_error(&error)),
    }
}

/// A line for each check as it ends, and one for the whole; whether all passed.
fn as_text(checks: &[&Check], subject: &Subject) -> io::Result<bool> {
    let mut stdout = io::stdout();
    let started = Instant::now();
    writeln!(stdout, "Testing {}", subject.address)?;
    let mut failed = 0;
    for check in checks {
        let Verdict {
            name,
            outcome,
            took,
        } = judge(check, subject);
        subject.progress.suspend(|| match &outcome {
            Ok(()) => writeln!(stdout, "{} {name} ({took:.1?})", style("✓").green()),
            Err(Fault { expected, got }) => {
                failed += 1;
                let mark = style("✗").red();
                writeln!(
                    stdout,
                    "{mark} {name} ({took:.1?}): expected {expected}; got {got}"
                )
            }
        })?;
    }
    let passed = checks.len() - failed;
    subject.progress.finish_and_clear();
    writeln!(
        stdout,
        "{passed} passed, {failed} failed in {:.1?}",
        started.elapsed()
    )?;
    Ok(failed == 0)
}

/// One object at the end; whether all passed.
fn as_json(checks: &[&Check], subject: &Subject) -> io::Result<bool> {
    let started = Instant::now();
    let verdicts: Vec<Verdict> = checks.iter().map(|check| judge(check, subject)).collect();
    let failed = verdicts
        .iter()
        .filter(|verdict| verdict.outcome.is_err())
        .count();
    let report = json!({
        "address": subject.address.to_string(),
        "passed": verdicts.len() - failed,
        "failed": failed,
        "seconds": started.elapsed().as_secs_f64(),
        "checks": verdicts.iter().map(Verdict::to_json).collect::<Vec<_>>(),
    });
    subject.progress.finish_and_clear();
    writeln!(io::stdout(), "{report:#}")?;
    Ok(failed == 0)
}

/// What came of a check.
struct Verdict {
    name: &'static str,
    outcome: Result<(), Fault>,
    took: Duration,
}

impl Verdict {
    fn to_json(&self) -> Value {
        let Self {
            name,
            outcome,
            took,
        } = self;
        let seconds = took.as_secs_f64();
        match outcome {
            Ok(()) => json!({ "name": name, "passed": true, "seconds": seconds }),
            Err(Fault { expected, got }) => json!({
                "name": name,
                "passed": false,
                "seconds": seconds,
                "expected": expected,
                "got": got,
            }),
        }
    }
}

fn judge(check: &Check, subject: &Subject) -> Verdict {
    subject.progress.set_style(ProgressStyle::default_spinner());
    subject.progress.set_message(check.name);
    let started = Instant::now();
    let outcome = (check.run)(subject);
    Verdict {
        name: check.name,
        outcome,
        took: started.elapsed(),
    }
}
