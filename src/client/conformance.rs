//! `echo-client test`: checks whether a server echoes exactly and reliably (RFC 862), and reports
//! the results. Pointed at a proxy or tunnel, the suite shows what that changes on the way.
//!
//! Each check uses its own connections and states one guarantee, so a failure does not affect the
//! next check. Every wait is bounded: a server has the timeout for each message, and for each 64 KiB
//! of a longer one.

mod checks;
mod mismatch;
mod test_client;

use std::fmt;
use std::time::{Duration, Instant};

use console::style;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use self::checks::{CHECKS, Check};
use self::mismatch::Mismatch;
use self::test_client::TestTarget;
use super::{Error, Target, print};
use crate::cli::TestOptions;
use crate::platform;

/// Runs the selected checks, one after the other, and prints the results.
///
/// # Errors
/// Returns an error if no check has that name, the server cannot be reached, or stdout fails.
/// Returns [`Error::AlreadyReported`] if a check fails.
pub fn run(target: &Target, options: &TestOptions) -> Result<(), Error> {
    let checks = select_checks(&options.name)?;
    // Each connection takes a file descriptor. If the limit stays too low, a check reports it.
    let _ = platform::raise_file_limit();
    let (_, address) = target.connect()?;
    let target = TestTarget {
        address,
        timeout: target.timeout,
    };
    if !options.json {
        print(format_args!("Testing {address}\n"))?;
    }
    let started = Instant::now();
    let progress = ProgressBar::new_spinner();
    let mut results = Vec::new();
    for check in checks {
        progress.set_message(check.0);
        let result = run_check(check, &target);
        if !options.json {
            progress.suspend(|| print(&result))?;
        }
        results.push(result);
    }
    progress.finish_and_clear();
    let failed = results.iter().filter(|r| r.outcome.is_err()).count();
    let passed = results.len() - failed;
    if options.json {
        let report = json!({
            "address": address.to_string(),
            "passed": passed,
            "failed": failed,
            "seconds": started.elapsed().as_secs_f64(),
            "checks": results.iter().map(CheckResult::to_json).collect::<Vec<_>>(),
        });
        print(format_args!("{report:#}\n"))?;
    } else {
        let elapsed = started.elapsed();
        print(format_args!(
            "{passed} passed, {failed} failed in {elapsed:.1?}\n"
        ))?;
    }
    if failed > 0 {
        return Err(Error::AlreadyReported);
    }
    Ok(())
}

/// Returns the checks whose names contain `name`.
fn select_checks(name: &str) -> Result<Vec<&'static Check>, Error> {
    let selected: Vec<_> = CHECKS.iter().filter(|c| c.0.contains(name)).collect();
    if selected.is_empty() {
        let names: Vec<_> = CHECKS.iter().map(|check| check.0).collect();
        let names = names.join("; ");
        return Err(format!("no check has {name:?} in its name; the checks are: {names}").into());
    }
    Ok(selected)
}

fn run_check((name, check): &Check, target: &TestTarget) -> CheckResult {
    let started = Instant::now();
    let outcome = check(target);
    CheckResult {
        name,
        outcome,
        elapsed: started.elapsed(),
    }
}

struct CheckResult {
    name: &'static str,
    outcome: Result<(), Mismatch>,
    elapsed: Duration,
}

impl CheckResult {
    fn to_json(&self) -> Value {
        let mut object = json!({
            "name": self.name,
            "passed": self.outcome.is_ok(),
            "seconds": self.elapsed.as_secs_f64(),
        });
        if let Err(Mismatch { expected, got }) = &self.outcome {
            object["expected"] = json!(expected);
            object["got"] = json!(got);
        }
        object
    }
}

impl fmt::Display for CheckResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, elapsed) = (self.name, self.elapsed);
        match &self.outcome {
            Ok(()) => writeln!(f, "{} {name} ({elapsed:.1?})", style("✓").green()),
            Err(Mismatch { expected, got }) => writeln!(
                f,
                "{} {name} ({elapsed:.1?}): expected {expected}; got {got}",
                style("✗").red()
            ),
        }
    }
}
