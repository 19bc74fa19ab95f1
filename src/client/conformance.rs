//! `echo-client test`: checks whether a server echoes exactly and reliably (RFC 862), and reports
//! the results. Pointed at a proxy or tunnel, the suite shows what that changes on the way.
//!
//! Each check uses its own connections and states one guarantee, so a failure does not affect the
//! next check. Every wait is bounded: a server has the timeout for each message, and for each 64 KiB
//! of a longer one.

mod checks;
mod expect;
mod report;

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Instant;

use indicatif::ProgressBar;

use self::checks::{CHECKS, Check};
use self::expect::Mismatch;
use self::report::{CheckResult, Report};
use super::connection::Connection;
use super::{Error, Target, print};
use crate::cli::TestOptions;
use crate::platform;

/// Runs the selected checks, one after the other, and prints the results.
///
/// # Errors
/// Returns an error if no check has that name, the server cannot be reached, or stdout or the `JUnit`
/// report cannot be written. Returns [`Error::AlreadyReported`] if a check fails.
pub fn run(target: &Target, options: &TestOptions) -> Result<(), Error> {
    let checks = select_checks(&options.name)?;
    if let Some(path) = &options.junit {
        check_can_be_written(path).map_err(|error| junit_error(path, error))?;
    }
    // Each connection takes a file descriptor. If the limit stays too low, a check reports it.
    let _ = platform::raise_file_limit();
    let address = target.connect()?.address;
    if !options.json {
        print(format_args!("Testing {address}\n"))?;
    }
    let run_started = Instant::now();
    let progress = ProgressBar::new_spinner();
    let mut results = Vec::new();
    for (name, check) in checks {
        progress.set_message(*name);
        let started = Instant::now();
        let result = CheckResult {
            name,
            outcome: Connection::open(address, target.timeout)
                .map_err(Mismatch::from)
                .and_then(|connection| check(&connection)),
            elapsed: started.elapsed(),
        };
        if !options.json {
            progress.suspend(|| print(&result))?;
        }
        results.push(result);
    }
    progress.finish_and_clear();
    let report = Report {
        address,
        elapsed: run_started.elapsed(),
        results,
    };
    if let Some(path) = &options.junit {
        let text = report
            .to_junit()
            .map_err(|error| junit_error(path, error))?;
        fs::write(path, text).map_err(|error| junit_error(path, error))?;
    }
    if options.json {
        print(format_args!("{:#}\n", report.to_json()))?;
    } else {
        print(report.summary())?;
    }
    match report.totals() {
        (_, 0) => Ok(()),
        _ => Err(Error::AlreadyReported),
    }
}

/// Opens the file before the checks run, so that a bad path is reported at once. An older report stays
/// until there is a new one, and a run that cannot reach the server leaves no empty file.
fn check_can_be_written(path: &Path) -> io::Result<()> {
    if let Ok(metadata) = path.metadata()
        && !metadata.is_file()
        && !metadata.is_dir()
    {
        // The reader of a named pipe would take the close for the end of the report.
        return Ok(());
    }
    let is_new = path.symlink_metadata().is_err();
    OpenOptions::new().append(true).create(true).open(path)?;
    if is_new {
        // Some directories do not allow that. The file then stays until the report replaces it.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

fn junit_error(path: &Path, error: impl Display) -> String {
    // An error is one line, whatever the path contains.
    let path = path.display().to_string().replace(char::is_control, "?");
    format!("cannot write the JUnit report {path}: {error}")
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
