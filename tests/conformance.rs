//! `echo-client test`, the conformance suite: a correct server passes, and for each broken server the
//! right check fails and reports why.
#![cfg(feature = "client")]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use crate::common::broken_servers::{self, Serve, echo, serve};
use crate::common::conformance::{checks, failed_checks, run_checks};
use crate::common::{
    Server, assert_contains, assert_silent_exit, count_lines, echo_client, end, for_each_at_once,
    line_with, reset_can_be_read, reset_on_close, retry, run_at_once, start, stderr_of, stdout_of,
};

/// Takes five seconds: in some checks, the suite waits for bytes that must not arrive.
#[test]
fn our_server_passes_and_each_check_has_a_broken_server() {
    let server = Server::start(&[]);
    let report = run_checks("", server.address, "20s");
    assert_eq!(report["failed"], 0, "{report:#}");
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
    let address = serve(broken_servers::says_goodbye);
    let report = stdout_of(echo_client(address).args(["test", "closed"]), 1);
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(lines[0], format!("Testing {address}"));
    let passed = line_with(&report, "✓ 100 connections closed at once (");
    assert!(passed.ends_with("s)"), "{passed}");
    let failed = line_with(&report, "✗ nothing sent, half-closed: FIN (");
    assert!(failed.ends_with("): expected FIN; got \"bye\""), "{failed}");
    let (passed, failed) = (count_lines(&report, "✓"), count_lines(&report, "✗"));
    assert_eq!(passed + failed, lines.len() - 2);
    let last = format!("{passed} passed, {failed} failed in ");
    assert!(lines[lines.len() - 1].starts_with(&last), "{report}");
}

#[test]
fn checks_can_be_chosen_by_a_part_of_their_name() {
    let server = Server::start(&[]);
    let report = stdout_of(echo_client(server.address).args(["test", "half-close"]), 0);
    assert_eq!(count_lines(&report, "✓"), 2, "{report}");
    for line in report.lines().filter(|line| line.starts_with('✓')) {
        assert_contains(line, "half-close");
    }

    let message = stderr_of(echo_client(server.address).args(["test", "no such"]), 1);
    assert_contains(&message, "\"no such\"");
    assert_contains(&message, "one byte; ");
}

#[test]
fn closed_stdout_ends_the_run_without_a_message() {
    let server = Server::start(&[]);
    let mut client = start(echo_client(server.address).arg("test"));
    drop(client.stdout.take());
    assert_silent_exit(&end(client), 1);
}

/// Both threads of the client may get the error first, so one run would prove little.
#[test]
fn reset_during_a_write_is_reported_as_a_reset() {
    if !reset_can_be_read() {
        return;
    }
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
    let failures = failed_checks(name, address, timeout);
    let failure = failures.iter().find(|[failed, ..]| failed == name);
    failure
        .unwrap_or_else(|| panic!("{name:?} has not failed: {failures:#?}"))
        .clone()
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

/// No pause is as long as the timeout, but the echo is complete only after it.
fn completes_an_echo_too_late() {
    let address = serve(|mut stream, _| {
        echo(stream, |piece| {
            for part in [1, piece.len() - 1] {
                thread::sleep(Duration::from_millis(1800));
                let _ = stream.write_all(&piece.drain(..part).collect::<Vec<u8>>());
            }
        });
    });
    let check = "a message without a newline";
    check_failure(
        address,
        check,
        "3s",
        "no newline",
        "\"n\", then not enough within 3s",
    );
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
                check_failure(serve(broken_servers::$serve), $check, LONG, $expected, $got);
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
    let address = broken_servers::serve(serve);
    let is_detected = || failed_checks(SILENCE, address, LONG) == [[SILENCE, "nothing", got]];
    retry(is_detected, "the check passes");
}

#[test]
fn sends_a_greeting() {
    check_silence_fails(broken_servers::sends_a_greeting, r#""Welcome!\n""#);
}

#[test]
fn resets_silent_clients() {
    if reset_can_be_read() {
        check_silence_fails(broken_servers::resets_silent_clients, "a reset");
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
    (broken_servers::never_closes, "nothing sent, half-closed: FIN", "3s", "FIN", "nothing for 3s"),
    (broken_servers::waits_for_newlines, "a message without a newline", "3s", r#""no newline""#, "nothing for 3s"),
    (broken_servers::ignores_single_bytes, "bytes sent one by one", "3s", r#""a""#, "nothing for 3s"),
    (broken_servers::echoes_one_line_per_read, "two messages in one segment", "3s", r#""first\nsecond\n""#, r#""first\n", then nothing for 3s"#),
    (broken_servers::truncates_long_messages, "sizes around the edges of buffers", "3s", "1025 bytes", "1024 bytes, then nothing for 3s"),
    (broken_servers::serves_one_client_at_a_time, "64 clients at once", "3s", "message 1 of client ", "nothing for 3s"),
    (broken_servers::blocks_on_a_client_that_never_reads, "a client that never reads", "1s", "one that was there", "nothing for 1s"),
];

/// Takes four seconds: the timeout, or as long for a client that never reads.
#[test]
fn silent_and_slow_servers_fail_in_time() {
    run_at_once(&[
        silent_servers,
        sends_without_reading,
        echoes_byte_by_byte,
        completes_an_echo_too_late,
    ]);
}

fn silent_servers() {
    for_each_at_once(SILENT_SERVERS, |(serve, check, timeout, expected, got)| {
        check_failure(broken_servers::serve(serve), check, timeout, expected, got);
    });
}
