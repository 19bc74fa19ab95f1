//! Output that cannot be written: a full disk and full pipes never stop the server.
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use common::{Server, exchange, wait_until};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// A limit on the file size stands for a full disk. It fails like one, in the middle of a line, and
/// needs no file system of its own.
#[test]
fn a_full_disk_drops_whole_log_lines_and_counts_them() {
    const SPACE: u64 = 500;
    let name = format!("full-disk-{}.log", std::process::id());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let file = File::create(&path).expect("the file can be created");
    let mut shell = common::command("sh");
    // Without the trap, the signal SIGXFSZ ends a process that reaches the limit.
    let script = r#"trap "" XFSZ; exec "$0" --host 127.0.0.1 --port 0"#;
    shell.args(["-c", script, env!("CARGO_BIN_EXE_echo-server")]);
    let mut server = Server::spawn_as_is(shell.stdout(Stdio::piped()).stderr(file));

    limit_file_size(&server, Some(SPACE));
    for _ in 0..10 {
        exchange(&server.connect(), b"hello");
    }
    wait_until("the disk is full", || fs::metadata(&path).is_ok_and(|file| file.len() == SPACE));
    for _ in 0..10 {
        exchange(&server.connect(), b"hello");
    }
    limit_file_size(&server, None);
    assert_eq!(server.stop().code(), Some(0));

    let log = fs::read_to_string(&path).expect("the log is text");
    let _ = fs::remove_file(&path);
    let (mut kept, mut dropped) = (0, 0);
    for line in log.lines() {
        if let Some((report, reason)) = line.split_once(" dropped: ") {
            let count = report.strip_suffix(" log lines").or(report.strip_suffix(" log line"));
            dropped += count.and_then(|count| count.parse::<usize>().ok()).expect("a count");
            assert_eq!(reason, "File too large (os error 27)");
        } else {
            assert!(line.starts_with("[2") && line.matches(" INFO ] ").count() == 1, "{log}");
            kept += usize::from(line.contains("connected"));
        }
    }
    assert_eq!(kept + dropped, 2 * 20, "two lines for each client: {log}");
}

fn limit_file_size(server: &Server, limit: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    let limit = Rlimit { current: limit.or(maximum), maximum };
    prlimit(Some(Pid::from_child(&server.child)), Resource::Fsize, limit).expect("it can be set");
}
