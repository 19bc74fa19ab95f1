//! Runs `echo-client test` and reads its JSON report.

use std::net::SocketAddr;

use serde_json::Value;

use super::{echo_client, run};

/// Runs the checks whose names contain `filter` against the server at `address`. Returns the report
/// and the exit code.
pub fn run_checks(filter: &str, address: SocketAddr, timeout: &str) -> (Value, Option<i32>) {
    let mut client = echo_client(address);
    client.args(["test", filter, "--json", "--timeout", timeout]);
    let output = run(&mut client);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "no JSON ({error}): {}",
            String::from_utf8_lossy(&output.stderr)
        )
    });
    (report, output.status.code())
}

/// Runs all checks. Returns the report and the exit code.
pub fn run_suite(address: SocketAddr, timeout: &str) -> (Value, Option<i32>) {
    run_checks("", address, timeout)
}

/// Returns for each failed check its name, what it expected, and what it got.
pub fn failures(report: &Value) -> Vec<[String; 3]> {
    let failed = checks(report)
        .iter()
        .filter(|check| check["passed"] == false);
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    failed
        .map(|check| ["name", "expected", "got"].map(|key| text(&check[key])))
        .collect()
}

/// Returns the report's list of checks.
pub fn checks(report: &Value) -> &[Value] {
    report["checks"].as_array().expect("a list of checks")
}
