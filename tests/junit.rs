//! `echo-client test --junit`: the report file that CI systems read.
#![cfg(feature = "client")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Output;

use crate::common::broken_servers::{drops_every_nul, serve};
use crate::common::{
    Server, assert_contains, assert_silent_exit, closed_port, echo_client, error_of, run,
};
use quick_junit::{NonSuccessKind, Report, TestCaseStatus};
use serde_json::Value;

/// A path in the temporary directory, for a file of this test run.
fn temporary_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("echo-client-{}-{name}", std::process::id()))
}

/// Runs the suite with `--junit` and more arguments. Returns the output and the report.
fn run_with_junit(address: SocketAddr, name: &str, arguments: &[&str]) -> (Output, Report) {
    let path = temporary_path(name);
    let mut client = echo_client(address);
    let client = client.arg("test").arg("--junit").arg(&path).args(arguments);
    let output = run(client);
    let xml = std::fs::read_to_string(&path).expect("the report is text");
    std::fs::remove_file(&path).expect("the report can be removed");
    let report = Report::deserialize_from_str(&xml);
    (output, report.unwrap_or_else(|e| panic!("{e}: {xml}")))
}

#[test]
fn junit_report_has_each_check_with_its_time() {
    let server = Server::start(&[]);
    let (output, report) = run_with_junit(server.address, "passed.xml", &["message"]);
    assert_silent_exit(&output, 0);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(stdout.lines().count(), 2 + 3, "{stdout}");
    assert_eq!(report.test_suites.len(), 1);
    let suite = &report.test_suites[0];
    assert_eq!(suite.name, format!("echo-client test {}", server.address));
    assert_eq!((suite.tests, suite.failures, suite.errors), (3, 0, 0));
    let names = suite.test_cases.iter().map(|case| case.name.as_str());
    let expected = [
        "a message without a newline",
        "two messages in one segment",
        "a message cut by a pause",
    ];
    assert!(names.eq(expected), "{suite:#?}");
    // This check contains a pause of 200 ms.
    let time = suite.test_cases[2].time.expect("each check has its time");
    assert!((200..20_000).contains(&time.as_millis()), "{time:?}");
    assert!(suite.time.expect("the suite has its time") >= time);
}

#[test]
fn junit_report_has_the_failures_beside_json() {
    let address = serve(drops_every_nul);
    let (output, report) = run_with_junit(address, "failed.xml", &["N", "--json", "--timeout=20s"]);
    assert_silent_exit(&output, 1);
    let json: Value = serde_json::from_slice(&output.stdout).expect("stdout is JSON");
    let suite = &report.test_suites[0];
    assert_eq!(json["failed"], suite.failures);
    assert_eq!(json["passed"], suite.tests - suite.failures);
    let case = suite
        .test_cases
        .iter()
        .find(|case| case.name.as_str() == "NUL");
    match &case.expect("the check is in the report").status {
        TestCaseStatus::NonSuccess {
            kind: NonSuccessKind::Failure,
            message,
            ..
        } => assert_eq!(
            message.as_ref().expect("a failure has a message").as_str(),
            r#"expected "\x00before\x00\x00after\x00"; got "beforeafter""#
        ),
        status => panic!("{status:?}"),
    }
}

#[test]
fn junit_file_that_cannot_be_created_is_an_error() {
    let server = Server::start(&[]);
    let path = temporary_path("missing").join("line\nbreak.xml");
    let mut client = echo_client(server.address);
    // The output is only the error: no check has run.
    let message = error_of(client.args(["test", "--junit"]).arg(&path));
    let shown = path.display().to_string().replace('\n', "?");
    let expected = format!("cannot write the JUnit report {shown}: ");
    assert_contains(&message, &expected);
}

#[test]
fn server_that_cannot_be_reached_leaves_no_junit_file() {
    let path = temporary_path("unreachable.xml");
    let (_reserved, address) = closed_port();
    error_of(echo_client(address).args(["test", "--junit"]).arg(&path));
    assert!(!path.exists());
}

#[test]
#[cfg(unix)]
fn named_pipe_receives_the_whole_junit_report() {
    let server = Server::start(&[]);
    let path = temporary_path("pipe");
    let created = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(created.is_ok_and(|status| status.success()));
    let pipe = path.clone();
    let reader = std::thread::spawn(|| std::fs::read_to_string(pipe));
    let output = run(echo_client(server.address)
        .args(["test", "NUL", "--junit"])
        .arg(&path));
    assert_eq!(output.status.code(), Some(0));
    let xml = reader.join().expect("it does not panic");
    std::fs::remove_file(&path).expect("the pipe can be removed");
    let report = Report::deserialize_from_str(&xml.expect("the report is text"));
    assert_eq!(report.expect("the file is a JUnit report").tests, 1);
}

/// Linux's `/dev/full` acts as a full disk.
#[test]
#[cfg(target_os = "linux")]
fn linux_full_disk_is_an_error_for_the_junit_file() {
    let server = Server::start(&[]);
    let output = run(echo_client(server.address).args(["test", "NUL", "--junit=/dev/full"]));
    assert_contains(
        &crate::common::error_line(&output),
        "cannot write the JUnit report /dev/full: No space left on device",
    );
}
