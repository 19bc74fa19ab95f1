//! What the test files share. Whatever a program does not do within [`PATIENCE`] fails the test that
//! waits for it.
#![allow(
    dead_code,
    unused_imports,
    reason = "each test file uses its own part of this"
)]

#[cfg(feature = "client")]
pub mod bench;
#[cfg(feature = "client")]
pub mod broken_servers;
#[cfg(feature = "client")]
pub mod conformance;
mod log;
mod pace;
mod program;
mod server;
pub mod signal;
mod sockets;
#[cfg(all(unix, feature = "client"))]
pub mod terminal;
#[cfg(unix)]
pub mod tools;

pub use log::Log;
pub use pace::{Pace, retry, retry_if_late};
pub use program::*;
pub use server::*;
pub use sockets::*;

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for an event, on a slow and busy machine too, before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Reports on stderr that a test, or a part of it, is skipped. Fails the test if all tools are
/// required, as in CI.
pub fn skip(reason: std::fmt::Arguments<'_>) {
    let required = std::env::var_os("ECHO_SERVER_TEST_TOOLS");
    assert!(required.is_none_or(|v| v != "required"), "{reason}");
    // Not `eprintln!`: the test harness shows its output only if the test fails.
    let _ = writeln!(std::io::stderr(), "not tested, {reason}");
}

/// Checks that `text` contains `part`.
#[track_caller]
pub fn assert_contains(text: &str, part: &str) {
    assert!(text.contains(part), "expected {part:?} in: {text}");
}

/// Returns the first line of `text` that contains `part`.
#[track_caller]
pub fn line_with<'a>(text: &'a str, part: &str) -> &'a str {
    let line = text.lines().find(|line| line.contains(part));
    line.unwrap_or_else(|| panic!("expected a line with {part:?} in: {text}"))
}

/// Returns how many lines of `text` contain `part`.
pub fn count_lines(text: &str, part: &str) -> usize {
    text.lines().filter(|line| line.contains(part)).count()
}

/// Calls `check` for all items at once, each in a thread of its own. Fails the test if a call panics.
pub fn for_each_at_once<T: Send>(items: impl IntoIterator<Item = T>, check: impl Fn(T) + Sync) {
    let check = &check;
    thread::scope(|scope| {
        for item in items {
            scope.spawn(move || check(item));
        }
    });
}

/// Runs cases that mostly wait, all at once. As tests of their own they would take turns: the harness
/// runs as many tests at a time as there are CPUs.
pub fn run_at_once(cases: &[fn()]) {
    for_each_at_once(cases, |case| case());
}

/// Polls `condition` until it holds. For conditions that no event announces.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Calls `poll` until it returns a value, and returns that.
#[track_caller]
pub fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Returns the first code block in `language` below `heading` on a page of the manual. The search ends
/// at the next heading of the second level.
pub fn manual_block(page: &str, heading: &str, language: &str) -> &'static str {
    let text = match page {
        "client" => include_str!("../../src/manual/client.md"),
        "performance" => include_str!("../../src/manual/performance.md"),
        "deploy" => include_str!("../../src/manual/deploy.md"),
        "faults" => include_str!("../../src/manual/faults.md"),
        "intermediaries" => include_str!("../../src/manual/intermediaries.md"),
        _ => panic!("no test reads the page {page:?}"),
    };
    let after = |text: &'static str, mark: String| text.split_once(&mark).map(|(_, rest)| rest);
    after(text, format!("\n{heading}\n"))
        .and_then(|rest| rest.split("\n## ").next())
        .and_then(|section| after(section, format!("\n```{language}\n")))
        .and_then(|rest| rest.split_inclusive("\n```").next())
        .and_then(|block| block.strip_suffix("```"))
        .unwrap_or_else(|| panic!("{page}.md has no such block under {heading:?}"))
}
