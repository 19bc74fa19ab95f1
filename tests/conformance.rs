//! `echo-client test`, the conformance suite: a correct server passes, and for each broken server the
//! right check fails and reports why.
#![cfg(feature = "client")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::conformance::{checks, failures, run_checks, run_suite};
use crate::common::{
    Server, assert_contains, assert_silent_exit, closed_port, echo_client, end, error_of,
    for_each_at_once, listen, reset_can_be_read, reset_on_close, retry, run, run_at_once,
    stderr_of, stdout_of, wait_until,
};
use quick_junit::{NonSuccessKind, Report, TestCaseStatus};
use serde_json::Value;

/// Takes five seconds: in some checks, the suite waits for bytes that must not arrive.
#[test]
fn our_server_passes_and_each_check_has_a_broken_server() {
    let server = Server::start(&[]);
    let (report, code) = run_suite(server.address, "20s");
    assert_eq!(failures(&report), Vec::<[&str; 3]>::new());
    assert_eq!((code, &report["failed"]), (Some(0), &Value::from(0)));
    let silent_servers = SILENT_SERVERS.iter().map(|(_, check, ..)| check);
    let faults = FAULTS.iter().map(|(_, check, ..)| check);
    let failing: Vec<&&str> = FAILING_CHECKS
        .iter()
        .chain([&SILENCE])
        .chain(silent_servers)
        .chain(faults)
        .collect();
    for check in checks(&report) {
        assert!(
            failing.iter().any(|name| check["name"] == ***name),
            "no server below fails {check}"
        );
    }
}

#[test]
fn report_has_a_line_for_each_check_and_a_summary() {
    let address = serve(servers::says_goodbye);
    let report = stdout_of(echo_client(address).args(["test", "closed"]), 1);
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(lines[0], format!("Testing {address}"));
    let line = |mark: &str| {
        lines
            .iter()
            .find(|line| line.starts_with(mark))
            .expect("the report has such a line")
    };
    assert!(line("✓ 100 connections closed at once (").ends_with("s)"));
    let failed = line("✗ nothing sent, half-closed: FIN (");
    assert!(failed.ends_with("): expected FIN; got \"bye\""), "{failed}");
    let count = |mark: char| lines.iter().filter(|line| line.starts_with(mark)).count();
    let (passed, failed) = (count('✓'), count('✗'));
    assert_eq!(passed + failed, lines.len() - 2);
    let last = format!("{passed} passed, {failed} failed in ");
    assert!(lines[lines.len() - 1].starts_with(&last), "{report}");
}

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
    let names: Vec<&str> = suite
        .test_cases
        .iter()
        .map(|case| case.name.as_str())
        .collect();
    let expected = [
        "a message without a newline",
        "two messages in one segment",
        "a message cut by a pause",
    ];
    assert_eq!(names, expected);
    // This check contains a pause of 200 ms.
    let time = suite.test_cases[2].time.expect("each check has its time");
    assert!((200..20_000).contains(&time.as_millis()), "{time:?}");
    assert!(suite.time.expect("the suite has its time") >= time);
}

#[test]
fn junit_report_has_the_failures_beside_json() {
    let address = serve(servers::drops_every_nul);
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
    let created = Command::new("mkfifo").arg(&path).status();
    assert!(created.is_ok_and(|status| status.success()));
    let pipe = path.clone();
    let reader = thread::spawn(|| std::fs::read_to_string(pipe));
    let output = run(echo_client(server.address)
        .args(["test", "NUL", "--junit"])
        .arg(&path));
    assert_eq!(output.status.code(), Some(0));
    let xml = reader.join().expect("it does not panic");
    std::fs::remove_file(&path).expect("the pipe can be removed");
    let report = Report::deserialize_from_str(&xml.expect("the report is text"));
    assert_eq!(report.expect("it is a report").tests, 1);
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

#[test]
fn checks_can_be_chosen_by_a_part_of_their_name() {
    let server = Server::start(&[]);
    let report = stdout_of(echo_client(server.address).args(["test", "half-close"]), 0);
    let marked: Vec<&str> = report
        .lines()
        .filter(|line| line.starts_with('✓'))
        .collect();
    assert_eq!(marked.len(), 2, "{report}");
    assert!(
        marked.iter().all(|line| line.contains("half-close")),
        "{report}"
    );

    let message = stderr_of(echo_client(server.address).args(["test", "no such"]), 1);
    assert_contains(&message, "\"no such\"");
    assert_contains(&message, "one byte; ");
}

#[test]
fn closed_stdout_ends_the_run_without_a_message() {
    let server = Server::start(&[]);
    let mut client = echo_client(server.address);
    client
        .arg("test")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut client = client.spawn().expect("the client can be spawned");
    drop(client.stdout.take());
    assert_silent_exit(&end(client), 1);
}

/// Both threads of the client may get the error first, so one run would prove little.
#[test]
fn reset_during_a_write_is_reported_as_a_reset() {
    let address = serve(|mut stream, _| {
        // The first connection of each run sends nothing.
        if stream.read_exact(&mut vec![0; 1_000_000]).is_ok() {
            reset_on_close(stream);
        }
    });
    // Each run makes 64 MiB of random bytes, slowly in a debug build, so only a few.
    for_each_at_once(0..4, |_| {
        let report = stdout_of(echo_client(address).args(["test", "both ways"]), 1);
        assert_contains(&report, "got 0 bytes, then a reset");
    });
}

/// A timeout that no delay of the machine exceeds. Wrong bytes, FIN or a reset fail a check at once.
const LONG: &str = "20s";

/// Runs the check `name`, which must fail. Returns the failure.
fn failure(address: SocketAddr, name: &str, timeout: &str) -> [String; 3] {
    let (report, code) = run_checks(name, address, timeout);
    assert_eq!(code, Some(1), "{report}");
    let failure = failures(&report)
        .into_iter()
        .find(|[failed, ..]| failed == name);
    failure.unwrap_or_else(|| panic!("{name:?} has not failed: {report:#}"))
}

fn sends_without_reading() {
    static BYTES_OF_THE_CHECK: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut bytes = vec![0; 67_108_864];
        fastrand::Rng::with_seed(862).fill(&mut bytes);
        bytes
    });
    let address = serve(|mut stream, _| {
        let _ = stream.write_all(&BYTES_OF_THE_CHECK);
        thread::park();
    });
    let [_, expected, got] = failure(address, "64 MiB both ways at once", LONG);
    assert_eq!(
        [expected, got],
        ["bytes after they were sent", "all of them before"]
    );
}

fn echoes_byte_by_byte() {
    let address = serve(|mut stream, _| {
        echo(stream, |piece| {
            for byte in piece.drain(..) {
                thread::sleep(Duration::from_millis(40));
                let _ = stream.write_all(&[byte]);
            }
        });
    });
    let [_, expected, got] = failure(address, "sizes around the edges of buffers", "3s");
    assert_eq!(expected, "127 bytes");
    assert!(got.ends_with(" bytes, then not enough within 3s"), "{got}");
}

/// What the connections of a broken server share.
struct State {
    /// Connections that hold a permit.
    active: AtomicUsize,
    /// Whether a connection has been reset.
    was_reset: AtomicBool,
    buffer: Mutex<Vec<u8>>,
    /// Waits for as many clients as the suite connects at once.
    barrier: Barrier,
}

/// Serves a connection.
type Serve = fn(&TcpStream, &State);

/// Starts a server that calls `serve` for each connection, in a thread of its own.
fn serve(serve: Serve) -> SocketAddr {
    let (listener, address) = listen();
    let state = Arc::new(State {
        active: AtomicUsize::new(0),
        was_reset: AtomicBool::new(false),
        buffer: Mutex::default(),
        barrier: Barrier::new(64),
    });
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, state) = (stream.expect("a client is accepted"), Arc::clone(&state));
            state.active.fetch_add(1, SeqCst);
            thread::spawn(move || serve(&stream, &state));
        }
    });
    address
}

/// Echoes what it reads until the client's FIN, after `change` has changed each piece.
fn echo(mut stream: &TcpStream, mut change: impl FnMut(&mut Vec<u8>)) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        let mut piece = buffer[..n].to_vec();
        change(&mut piece);
        if stream.write_all(&piece).is_err() {
            return;
        }
    }
}

/// Checks that the check `name` fails for this server, and why.
fn check_failure(server: SocketAddr, name: &str, timeout: &str, expects: &str, gets: &str) {
    if gets == "a reset" && !reset_can_be_read() {
        return;
    }
    let [_, expected, got] = failure(server, name, timeout);
    assert!(expected.contains(expects), "{name:?} expected {expected}");
    assert!(got.contains(gets), "{name:?} got {got}");
}

/// Makes a test for each broken server. A line has the server, the check that must fail, what the
/// check expects, and what it gets.
macro_rules! broken_servers {
    ($($serve:ident: $check:literal, $expected:literal, $got:literal;)*) => {
        $(
            #[test]
            fn $serve() {
                check_failure(serve(servers::$serve), $check, LONG, $expected, $got);
            }
        )*

        const FAILING_CHECKS: &[&str] = &[$($check),*];
    };
}

broken_servers! {
    converts_to_upper_case: "one byte", r#""a""#, r#""A""#;
    drops_every_nul: "NUL", r#""\x00before\x00\x00after\x00""#, r#""beforeafter""#;
    clamps_bytes_to_seven_bits: "every byte value", "0x80 at offset 128", "0x7f";
    turns_cr_lf_into_lf: "CR LF, LF and CR", r#""a\r\nb"#, r#""a\nb"#;
    replaces_invalid_utf_8: "bytes that are not UTF-8", r#""\xff\xff\xfe"#, r#""\xef\xbf\xbd"#;
    replaces_non_ascii: "text in several scripts", "0xce at offset 9", "0x3f";
    prefixes_its_echoes: "a message without a newline", r#""no newline""#, r#""You said: "#;
    pads_to_its_buffer_size: "nothing beyond what was sent", "nothing", r#""\x00\x00"#;
    repeats_the_last_byte: "nothing beyond what was sent", "nothing", r#""!""#;
    resets_at_the_end: "nothing sent, half-closed: FIN", "FIN", "a reset";
    trims_whitespace: "a message cut by a pause", r#""cut in the middle\n""#, r#""cut in"#;
    obeys_quit: "words that other servers obey", r#""quit\r\n""#, "FIN";
    loses_pending_bytes_at_half_close: "half-close with megabytes pending", "8388608 bytes", " bytes, then FIN";
    relays_without_half_close: "half-close with megabytes pending", "8388608 bytes", " bytes, then ";
    mixes_up_its_clients: "64 clients at once", "message 1 of client ", "message 1 of client ";
    stops_serving_after_a_reset: "a client that resets", "one that was there", "FIN";
    resets_a_client_that_never_reads: "a client that never reads", "room to send", "a reset";
    leaks_the_permits_of_silent_clients: "100 connections closed at once", "the next one", "FIN";
}

const SILENCE: &str = "silence until the client speaks";

/// The check lasts 0.2 s. On a busy machine the server may be later, so the check is tried again.
fn check_silence_fails(serve: Serve, got: &str) {
    let address = self::serve(serve);
    let is_detected = || {
        let (report, _) = run_checks(SILENCE, address, LONG);
        failures(&report) == [[SILENCE, "nothing", got]]
    };
    retry(is_detected, "the check passes");
}

#[test]
fn sends_a_greeting() {
    check_silence_fails(servers::sends_a_greeting, r#""Welcome!\n""#);
}

#[test]
fn resets_silent_clients() {
    if reset_can_be_read() {
        check_silence_fails(servers::resets_silent_clients, "a reset");
    }
}

/// Our server with a fault, in columns as above.
const FAULTS: [(&str, &str, &str, &str); 2] = [
    (
        "limit=6",
        "a connection that stays open",
        r#""second""#,
        "FIN",
    ),
    (
        "corrupt=9500000",
        "64 MiB both ways at once",
        "at offset 9500000",
        "0x",
    ),
];

/// Takes one to two seconds: each check sends megabytes, in a debug build.
#[test]
fn faults_on_request_fail_the_right_check() {
    for (fault, check, expected, got) in FAULTS {
        let server = Server::start(&["-q", "--fault", fault]);
        check_failure(server.address, check, LONG, expected, got);
    }
}

/// Broken servers from which the client waits in vain, in columns as above, with its timeout. Before
/// that, most have to answer in time. The last one need not, and its check takes longer.
#[rustfmt::skip]
const SILENT_SERVERS: [(Serve, &str, &str, &str, &str); 7] = [
    (servers::never_closes, "nothing sent, half-closed: FIN", "3s", "FIN", "nothing for 3s"),
    (servers::waits_for_newlines, "a message without a newline", "3s", r#""no newline""#, "nothing for 3s"),
    (servers::ignores_single_bytes, "bytes sent one by one", "3s", r#""a""#, "nothing for 3s"),
    (servers::echoes_one_line_per_read, "two messages in one segment", "3s", r#""first\nsecond\n""#, r#""first\n", then nothing for 3s"#),
    (servers::truncates_long_messages, "sizes around the edges of buffers", "3s", "1025 bytes", "1024 bytes, then nothing for 3s"),
    (servers::serves_one_client_at_a_time, "64 clients at once", "3s", "message 1 of client ", "nothing for 3s"),
    (servers::blocks_on_a_client_that_never_reads, "a client that never reads", "1s", "one that was there", "nothing for 1s"),
];

/// Takes four seconds: the timeout, or as long for a client that never reads.
#[test]
fn silent_and_slow_servers_fail_in_time() {
    run_at_once(&[silent_servers, sends_without_reading, echoes_byte_by_byte]);
}

fn silent_servers() {
    for_each_at_once(SILENT_SERVERS, |(serve, check, timeout, expected, got)| {
        check_failure(self::serve(serve), check, timeout, expected, got);
    });
}

/// The broken servers, each with a mistake that programs make.
mod servers {
    use super::*;

    pub fn converts_to_upper_case(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.make_ascii_uppercase());
    }

    pub fn drops_every_nul(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.retain(|&byte| byte != 0));
    }

    pub fn clamps_bytes_to_seven_bits(stream: &TcpStream, _: &State) {
        echo(stream, |piece| {
            for byte in piece {
                *byte = (*byte).min(0x7f);
            }
        });
    }

    pub fn turns_cr_lf_into_lf(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.retain(|&byte| byte != b'\r'));
    }

    pub fn replaces_invalid_utf_8(stream: &TcpStream, _: &State) {
        echo(stream, |piece| {
            *piece = String::from_utf8_lossy(piece).into_owned().into_bytes();
        });
    }

    pub fn replaces_non_ascii(stream: &TcpStream, _: &State) {
        let ascii = |byte: &mut u8| *byte = if byte.is_ascii() { *byte } else { b'?' };
        echo(stream, |piece| piece.iter_mut().for_each(ascii));
    }

    pub fn prefixes_its_echoes(stream: &TcpStream, _: &State) {
        echo(stream, |piece| drop(piece.splice(0..0, *b"You said: ")));
    }

    /// The mistake in C: `send(client, buffer, sizeof(buffer), 0)`.
    pub fn pads_to_its_buffer_size(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.resize(4096, 0));
    }

    pub fn repeats_the_last_byte(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.extend(piece.last().copied()));
    }

    pub fn sends_a_greeting(mut stream: &TcpStream, _: &State) {
        if stream.write_all(b"Welcome!\n").is_ok() {
            echo(stream, |_| {});
        }
    }

    pub fn resets_silent_clients(stream: &TcpStream, _: &State) {
        let timeout = Some(Duration::from_millis(20));
        stream.set_read_timeout(timeout).expect("it is not zero");
        if stream.peek(&mut [0]).is_err() {
            reset_on_close(stream);
        } else {
            echo(stream, |_| {});
        }
    }

    pub fn says_goodbye(mut stream: &TcpStream, _: &State) {
        echo(stream, |_| {});
        // Fails if the client does not wait for FIN.
        let _ = stream.write_all(b"bye");
    }

    pub fn resets_at_the_end(stream: &TcpStream, _: &State) {
        echo(stream, |_| {});
        reset_on_close(stream);
    }

    pub fn never_closes(stream: &TcpStream, _: &State) {
        echo(stream, |_| {});
        thread::park();
    }

    pub fn waits_for_newlines(mut stream: &TcpStream, _: &State) {
        let mut line = Vec::new();
        let mut reader = BufReader::new(stream);
        while let Ok(1..) = reader.read_until(b'\n', &mut line) {
            if stream.write_all(&line).is_err() {
                return;
            }
            line.clear();
        }
    }

    pub fn ignores_single_bytes(stream: &TcpStream, _: &State) {
        echo(stream, |piece| {
            piece.truncate(if piece.len() > 1 { piece.len() } else { 0 });
        });
    }

    pub fn echoes_one_line_per_read(stream: &TcpStream, _: &State) {
        echo(stream, |piece| {
            let line = piece.iter().position(|&byte| byte == b'\n');
            piece.truncate(line.map_or(piece.len(), |newline| newline + 1));
        });
    }

    /// If it is late, it reads both parts of a message at once and trims only the end.
    pub fn trims_whitespace(stream: &TcpStream, _: &State) {
        echo(stream, |piece| *piece = piece.trim_ascii_end().to_vec());
    }

    pub fn obeys_quit(stream: &TcpStream, _: &State) {
        echo(stream, |piece| {
            if piece.starts_with(b"quit") {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }

    pub fn truncates_long_messages(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.truncate(1024));
    }

    /// After a megabyte it echoes each piece only with the next one, and drops the last piece at the
    /// client's FIN.
    pub fn loses_pending_bytes_at_half_close(mut stream: &TcpStream, _: &State) {
        let (mut buffer, mut kept, mut received) = (vec![0; 65536], Vec::new(), 0);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            received += n;
            kept.extend_from_slice(&buffer[..n]);
            let out = if received < 1_000_000 {
                kept.len()
            } else {
                kept.len() - n
            };
            if stream.write_all(&kept[..out]).is_err() {
                return;
            }
            kept.drain(..out);
        }
    }

    /// A proxy in front of a correct server. It closes both connections at the client's FIN.
    pub fn relays_without_half_close(mut client: &TcpStream, _: &State) {
        let server = TcpStream::connect(self::serve(|stream, _| echo(stream, |_| {})));
        let mut server = server.expect("the server accepts");
        let (mut from_server, mut to_client) = (
            server.try_clone().expect("a socket"),
            client.try_clone().expect("a socket"),
        );
        thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
        let _ = std::io::copy(&mut client, &mut server);
        let _ = client.shutdown(Shutdown::Both);
    }

    /// All connections share a buffer.
    pub fn mixes_up_its_clients(mut stream: &TcpStream, state: &State) {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            *state.buffer.lock().expect("the lock is not poisoned") = buffer[..n].to_vec();
            if buffer.starts_with(b"message") {
                state.barrier.wait();
            }
            let echo = state
                .buffer
                .lock()
                .expect("the lock is not poisoned")
                .clone();
            if stream.write_all(&echo).is_err() {
                return;
            }
        }
    }

    pub fn serves_one_client_at_a_time(stream: &TcpStream, state: &State) {
        let _turn = state.buffer.lock().expect("the lock is not poisoned");
        echo(stream, |_| {});
        let _ = stream.shutdown(Shutdown::Both);
    }

    /// One lock protects all writes, as in an event loop whose writes block.
    pub fn blocks_on_a_client_that_never_reads(mut stream: &TcpStream, state: &State) {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            let _turn = state.buffer.lock().expect("the lock is not poisoned");
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    }

    pub fn resets_a_client_that_never_reads(stream: &TcpStream, _: &State) {
        let timeout = Some(Duration::from_millis(100));
        stream.set_write_timeout(timeout).expect("it is not zero");
        echo(stream, |_| {});
        reset_on_close(stream);
    }

    pub fn stops_serving_after_a_reset(mut stream: &TcpStream, state: &State) {
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer);
            // The client has reset another connection, but its thread may not have run since.
            if buffer.starts_with(b"one that") {
                wait_until("the reset is seen", || state.was_reset.load(SeqCst));
            }
            match read {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    state.was_reset.store(true, SeqCst);
                }
                Ok(n @ 1..) if !state.was_reset.load(SeqCst) => {
                    if stream.write_all(&buffer[..n]).is_ok() {
                        continue;
                    }
                    state.was_reset.store(true, SeqCst);
                }
                _ => {}
            }
            return;
        }
    }

    pub fn leaks_the_permits_of_silent_clients(mut stream: &TcpStream, state: &State) {
        let is_full = state.active.load(SeqCst) > 99;
        let mut first = [0; 4096];
        if let Ok(n @ 1..) = stream.read(&mut first) {
            state.active.fetch_sub(1, SeqCst);
            if !is_full && stream.write_all(&first[..n]).is_ok() {
                echo(stream, |_| {});
            }
        }
    }
}
