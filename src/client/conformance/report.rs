//! The results of the checks: a line for each, JSON, and `JUnit` XML.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use console::style;
use quick_junit::{NonSuccessKind, SerializeError, TestCase, TestCaseStatus, TestSuite};
use serde_json::{Value, json};

use super::expect::Mismatch;

/// The results of a run.
pub(super) struct Report {
    pub(super) address: SocketAddr,
    pub(super) elapsed: Duration,
    pub(super) results: Vec<CheckResult>,
}

pub(super) struct CheckResult {
    pub(super) name: &'static str,
    pub(super) outcome: Result<(), Mismatch>,
    pub(super) elapsed: Duration,
}

impl Report {
    /// Returns how many checks have passed, and how many have failed.
    pub(super) fn totals(&self) -> (usize, usize) {
        let failed = self.results.iter().filter(|r| r.outcome.is_err()).count();
        (self.results.len() - failed, failed)
    }

    pub(super) fn summary(&self) -> String {
        let (passed, failed) = self.totals();
        format!("{passed} passed, {failed} failed in {:.1?}\n", self.elapsed)
    }

    pub(super) fn to_json(&self) -> Value {
        let (passed, failed) = self.totals();
        json!({
            "address": self.address.to_string(),
            "passed": passed,
            "failed": failed,
            "seconds": self.elapsed.as_secs_f64(),
            "checks": self.results.iter().map(CheckResult::to_json).collect::<Vec<_>>(),
        })
    }

    /// Returns the results as `JUnit` XML, which CI systems show.
    pub(super) fn to_junit(&self) -> Result<String, SerializeError> {
        let name = format!("echo-client test {}", self.address);
        let mut suite = TestSuite::new(name.as_str());
        suite.set_time(self.elapsed);
        for result in &self.results {
            let mut status = TestCaseStatus::success();
            if let Err(mismatch) = &result.outcome {
                status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(mismatch.to_string());
            }
            let mut case = TestCase::new(result.name, status);
            case.set_classname("echo-client test")
                .set_time(result.elapsed);
            suite.add_test_case(case);
        }
        let mut report = quick_junit::Report::new(name);
        report.set_time(self.elapsed).add_test_suite(suite);
        report.to_string()
    }
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
            Err(mismatch) => {
                let mark = style("✗").red();
                writeln!(f, "{mark} {name} ({elapsed:.1?}): {mismatch}")
            }
        }
    }
}
