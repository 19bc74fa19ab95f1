//! Runs `echo-client test` and reads its JSON report.

use std::net::SocketAddr;

use serde_json::Value;

use super::{echo_client, run};

/// Runs the checks whose names contain `filter` against the server at `address`. Returns the report,
/// with which the exit code must agree.
pub fn run_checks(filter: &str, address: SocketAddr, timeout: &str) -> Value {
    let mut client = echo_client(address);
    client.args(["test", filter, "--json", "--timeout", timeout]);
    let output = run(&mut client);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        panic!("no JSON ({error}): {stderr}")
    });
    let failed = failed(&report).count();
    assert_eq!(report["failed"], failed, "{report:#}");
    let code = i32::from(failed > 0);
    assert_eq!(output.status.code(), Some(code), "{report:#}");
    report
}

/// Runs the checks whose names contain `filter`. Returns for each failed check its name, what it
/// expected, and what it got.
pub fn failed_checks(filter: &str, address: SocketAddr, timeout: &str) -> Vec<[String; 3]> {
    let report = run_checks(filter, address, timeout);
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    failed(&report)
        .map(|check| ["name", "expected", "got"].map(|key| text(&check[key])))
        .collect()
}

fn failed(report: &Value) -> impl Iterator<Item = &Value> {
    let checks = checks(report).iter();
    checks.filter(|check| check["passed"] == false)
}

/// Returns the report's list of checks.
pub fn checks(report: &Value) -> &[Value] {
    report["checks"].as_array().expect("a list of checks")
}
