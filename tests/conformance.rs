//! `echo-client test`: it passes every correct server, and for each way to be wrong the right check
//! fails and says why.
#![cfg(feature = "client")]

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use common::conformance::{failures, run_suite};
use common::{Server, echo_client, listen, reset_on_close, run};
use serde_json::Value;

/// Asserts that the server passes.
fn passes(address: SocketAddr) {
    let (report, code) = run_suite(address, "20s");
    assert_eq!(failures(&report), Vec::<[&str; 3]>::new());
    assert_eq!((code, &report["failed"]), (Some(0), &Value::from(0)));
}

#[test]
fn our_server_passes() {
    passes(Server::start(&[]).address);
}

#[test]
fn our_server_passes_with_a_small_buffer() {
    passes(Server::start(&["--buffer-size", "129"]).address);
}

#[test]
fn the_report_for_people_is_a_line_a_check_and_a_summary() {
    let address = serve(servers::resets_at_the_end);
    let output = echo_client(address)
        .arg("test")
        .output()
        .expect("the client can be spawned");
    let report = String::from_utf8(output.stdout).expect("the report is text");
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(lines[0], format!("Testing {address}"));
    let line = |mark: &str| {
        lines
            .iter()
            .find(|line| line.starts_with(mark))
            .expect("such a line")
    };
    assert!(line("✓ 100 connections closed at once (").ends_with("s)"));
    let failed = line("✗ nothing sent, half-closed: FIN (");
    assert!(failed.ends_with("): expected FIN; got a reset"), "{failed}");
    let count = |mark: char| lines.iter().filter(|line| line.starts_with(mark)).count();
    let (passed, failed) = (count('✓'), count('✗'));
    assert_eq!(passed + failed, lines.len() - 2);
    let last = format!("{passed} passed, {failed} failed in ");
    assert!(lines[lines.len() - 1].starts_with(&last), "{report}");
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(1), b"".as_slice())
    );
}

#[test]
fn checks_can_be_chosen_by_a_part_of_their_names() {
    let server = Server::start(&[]);
    let output = echo_client(server.address)
        .args(["test", "half-close"])
        .output();
    let report = String::from_utf8(output.expect("it runs").stdout).expect("the report is text");
    let marked: Vec<&str> = report
        .lines()
        .filter(|line| line.starts_with('✓'))
        .collect();
    assert_eq!(marked.len(), 2, "{report}");
    assert!(
        marked.iter().all(|line| line.contains("half-close")),
        "{report}"
    );

    let output = echo_client(server.address)
        .args(["test", "no such"])
        .output()
        .expect("it runs");
    let message = String::from_utf8(output.stderr).expect("the message is text");
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(1), b"".as_slice())
    );
    assert!(
        message.contains("\"no such\"") && message.contains("one byte; "),
        "{message}"
    );
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let server = Server::start(&[]);
    let mut client = echo_client(server.address);
    client
        .arg("test")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut client = client.spawn().expect("the client can be spawned");
    drop(client.stdout.take());
    let output = client.wait_with_output().expect("the client ends");
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(1), b"".as_slice())
    );
}

/// The client's two threads compete for the error, so one run proves little.
#[test]
fn a_reset_during_a_write_is_reported_as_a_reset() {
    let address = serve(|mut stream, _| {
        // The first connection of each run sends nothing.
        if stream.read_exact(&mut vec![0; 1_000_000]).is_ok() {
            reset_on_close(stream);
        }
    });
    for _ in 0..10 {
        let output = echo_client(address)
            .args(["test", "both ways"])
            .output()
            .expect("it runs");
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(report.contains("got 0 bytes, then a reset"), "{report}");
    }
}

/// Runs the checks whose names contain `name`, each of which must end; their one failure.
fn failure(address: SocketAddr, name: &str) -> [String; 3] {
    let mut client = echo_client(address);
    client.args(["test", name, "--json", "--timeout", "1s"]);
    let report = serde_json::from_slice(&run(&mut client).stdout).expect("the report is JSON");
    let [failure] = failures(&report).try_into().expect("one check fails");
    failure
}

/// Over a second: a write is given up after the timeout, and a shorter one is not safe on a busy
/// machine.
#[test]
fn a_server_that_sends_the_bytes_unread_fails_within_the_timeout() {
    let address = serve(|mut stream, _| {
        let mut stream_of_the_check = vec![0; 67_108_864];
        fastrand::Rng::with_seed(862).fill(&mut stream_of_the_check);
        let _ = stream.write_all(&stream_of_the_check);
        thread::park();
    });
    let [_, expected, got] = failure(address, "64 MiB both ways");
    assert_eq!(
        [expected, got],
        ["bytes after they were sent", "all of them before"]
    );
}

/// Over a second: the timeout, as above.
#[test]
fn a_server_that_echoes_byte_by_byte_fails_within_the_timeout() {
    let address = serve(|mut stream, _| {
        echo(stream, |piece| {
            for byte in piece.drain(..) {
                thread::sleep(Duration::from_millis(20));
                let _ = stream.write_all(&[byte]);
            }
        });
    });
    let [_, expected, got] = failure(address, "edges of buffers");
    assert_eq!(expected, "127 bytes");
    assert!(got.ends_with(" bytes, then not enough within 1s"), "{got}");
}

/// What the clients of a broken server share.
struct State {
    /// How many were accepted, and have not given their place back.
    places: AtomicUsize,
    broken_down: AtomicBool,
    memory: Mutex<Vec<u8>>,
    /// As many as the suite has at once.
    crowd: Barrier,
}

/// Serves each client with `serve` in a thread of its own.
fn serve(serve: fn(&TcpStream, &State)) -> SocketAddr {
    let (listener, address) = listen();
    let state = Arc::new(State {
        places: AtomicUsize::new(0),
        broken_down: AtomicBool::new(false),
        memory: Mutex::default(),
        crowd: Barrier::new(64),
    });
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, state) = (
                stream.expect("a client can be accepted"),
                Arc::clone(&state),
            );
            state.places.fetch_add(1, SeqCst);
            thread::spawn(move || serve(&stream, &state));
        }
    });
    address
}

/// Sends back what `change` makes of each piece that comes, until the client's FIN.
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

/// For each broken server a test: the check that must fail, what it expected, and what it got.
macro_rules! broken_servers {
    ($($serve:ident: $check:literal, $expected:literal, $got:literal;)*) => {
        $(
            #[test]
            fn $serve() {
                let (report, code) = run_suite(serve(servers::$serve), "1s");
                assert_eq!(code, Some(1));
                let failures = failures(&report);
                let [_, expected, got] = failures
                    .iter()
                    .find(|[name, ..]| *name == $check)
                    .unwrap_or_else(|| panic!("{:?} has not failed: {failures:#?}", $check));
                assert!(expected.contains($expected), "expected {expected}");
                assert!(got.contains($got), "got {got}");
            }
        )*

        #[test]
        fn each_check_has_a_server_that_fails_it() {
            let (report, _) = run_suite(Server::start(&[]).address, "20s");
            let checks = report["checks"].as_array().expect("there is a list of checks");
            for check in checks {
                assert!([$($check),*].iter().any(|name| check["name"] == **name), "{check}");
            }
        }
    };
}

broken_servers! {
    upper_cases: "one byte", r#""a""#, r#""A""#;
    drops_every_nul: "NUL", r#""\x00before\x00\x00after\x00""#, r#""beforeafter""#;
    counts_bytes_as_signed: "every byte value", "0x80 at offset 128", "0x7f";
    turns_cr_lf_into_lf: "CR LF, LF and CR", r#""a\r\nb"#, r#""a\nb"#;
    repairs_utf_8: "bytes that are not UTF-8", r#""\xff\xff\xfe"#, r#""\xef\xbf\xbd"#;
    knows_ascii_only: "text in several scripts", "0xce at offset 9", "0x3f";
    greets: "silence until the client speaks", "nothing", r#""Welcome!\n""#;
    prefixes_its_answers: "a message without a newline", r#""no newline""#, r#""You said: "#;
    pads_to_its_buffer: "nothing beyond what was sent", "nothing", r#""\x00\x00"#;
    repeats_a_byte: "nothing beyond what was sent", "nothing", r#""!""#;
    resets_at_the_end: "nothing sent, half-closed: FIN", "FIN", "a reset";
    never_closes: "nothing sent, half-closed: FIN", "FIN", "nothing for 1s";
    waits_for_newlines: "a message without a newline", r#""no newline""#, "nothing for 1s";
    stops_after_the_first_message: "a connection that stays open", r#""second""#, "FIN";
    takes_a_single_byte_for_noise: "bytes sent one by one", r#""a""#, "nothing for 1s";
    answers_one_line_a_read: "two messages in one segment", r#""first\nsecond\n""#, r#""first\n", then nothing for 1s"#;
    trims_what_it_reads: "a message cut by a pause", r#""cut in the middle\n""#, r#""cut inthe"#;
    obeys_quit: "words that other servers obey", r#""quit\r\n""#, "FIN";
    cuts_long_messages: "sizes around the edges of buffers", "1025 bytes", "1024 bytes, then nothing for 1s";
    flips_a_bit_in_the_tenth_megabyte: "64 MiB both ways at once", "at offset 9500000", "0x";
    loses_what_it_owes_at_half_close: "half-close with megabytes pending", "8388608 bytes", " bytes, then FIN";
    breaks_half_close_as_a_relay: "half-close with megabytes pending", "8388608 bytes", " bytes, then ";
    mixes_its_clients: "64 clients at once", "message 1 of client ", "message 1 of client ";
    serves_one_at_a_time: "64 clients at once", "message 1 of client ", "nothing for 1s";
    waits_for_the_one_that_never_reads: "a client that never reads", "one that was there", "nothing for 1s";
    breaks_down_at_a_reset: "a client that resets", "one that was there", "FIN";
    keeps_the_places_of_who_said_nothing: "100 connections closed at once", "the next one", "FIN";
}

/// The broken servers, each as a program might get it wrong.
mod servers {
    use super::*;

    pub fn upper_cases(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.make_ascii_uppercase());
    }

    pub fn drops_every_nul(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.retain(|&byte| byte != 0));
    }

    pub fn counts_bytes_as_signed(stream: &TcpStream, _: &State) {
        echo(stream, |piece| {
            for byte in piece {
                *byte = (*byte).min(0x7f);
            }
        });
    }

    pub fn turns_cr_lf_into_lf(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.retain(|&byte| byte != b'\r'));
    }

    pub fn repairs_utf_8(stream: &TcpStream, _: &State) {
        echo(stream, |piece| {
            *piece = String::from_utf8_lossy(piece).into_owned().into_bytes();
        });
    }

    pub fn knows_ascii_only(stream: &TcpStream, _: &State) {
        let ascii = |byte: &mut u8| *byte = if byte.is_ascii() { *byte } else { b'?' };
        echo(stream, |piece| piece.iter_mut().for_each(ascii));
    }

    pub fn greets(mut stream: &TcpStream, _: &State) {
        if stream.write_all(b"Welcome!\n").is_ok() {
            echo(stream, |_| {});
        }
    }

    pub fn prefixes_its_answers(stream: &TcpStream, _: &State) {
        echo(stream, |piece| drop(piece.splice(0..0, *b"You said: ")));
    }

    /// In C: `send(client, buffer, sizeof(buffer), 0)`.
    pub fn pads_to_its_buffer(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.resize(4096, 0));
    }

    pub fn repeats_a_byte(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.extend(piece.last().copied()));
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

    pub fn stops_after_the_first_message(mut stream: &TcpStream, _: &State) {
        let mut buffer = [0; 4096];
        if let Ok(n) = stream.read(&mut buffer) {
            let _ = stream.write_all(&buffer[..n]);
            let _ = stream.shutdown(Shutdown::Write);
            // To close with bytes unread would reset.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    }

    pub fn takes_a_single_byte_for_noise(stream: &TcpStream, _: &State) {
        echo(stream, |piece| {
            piece.truncate(if piece.len() > 1 { piece.len() } else { 0 });
        });
    }

    pub fn answers_one_line_a_read(stream: &TcpStream, _: &State) {
        echo(stream, |piece| {
            let line = piece.iter().position(|&byte| byte == b'\n');
            piece.truncate(line.map_or(piece.len(), |newline| newline + 1));
        });
    }

    pub fn trims_what_it_reads(stream: &TcpStream, _: &State) {
        echo(stream, |piece| *piece = piece.trim_ascii_end().to_vec());
    }

    pub fn obeys_quit(stream: &TcpStream, _: &State) {
        echo(stream, |piece| {
            if piece.starts_with(b"quit") {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }

    pub fn cuts_long_messages(stream: &TcpStream, _: &State) {
        echo(stream, |piece| piece.truncate(1024));
    }

    pub fn flips_a_bit_in_the_tenth_megabyte(stream: &TcpStream, _: &State) {
        let mut next = 9_500_000;
        echo(stream, |piece| {
            if let Some(byte) = piece.get_mut(next) {
                *byte ^= 1;
            }
            next = next.checked_sub(piece.len()).unwrap_or(usize::MAX);
        });
    }

    /// In a stream it keeps its answers back for a moment, and at the client's FIN it leaves with
    /// what it has kept.
    pub fn loses_what_it_owes_at_half_close(mut stream: &TcpStream, _: &State) {
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

    /// A relay before a correct server that takes the client's FIN for the end of all.
    pub fn breaks_half_close_as_a_relay(mut client: &TcpStream, _: &State) {
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

    /// A buffer that is shared where each client should have its own.
    pub fn mixes_its_clients(mut stream: &TcpStream, state: &State) {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            *state.memory.lock().expect("nobody panics") = buffer[..n].to_vec();
            if buffer.starts_with(b"message") {
                state.crowd.wait();
            }
            let echo = state.memory.lock().expect("nobody panics").clone();
            if stream.write_all(&echo).is_err() {
                return;
            }
        }
    }

    pub fn serves_one_at_a_time(stream: &TcpStream, state: &State) {
        let _turn = state.memory.lock().expect("nobody panics");
        echo(stream, |_| {});
        let _ = stream.shutdown(Shutdown::Both);
    }

    /// One lock around all writes, as an event loop whose writes block.
    pub fn waits_for_the_one_that_never_reads(mut stream: &TcpStream, state: &State) {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            let _turn = state.memory.lock().expect("nobody panics");
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    }

    pub fn breaks_down_at_a_reset(mut stream: &TcpStream, state: &State) {
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    state.broken_down.store(true, SeqCst);
                }
                Ok(n @ 1..) if !state.broken_down.load(SeqCst) => {
                    if stream.write_all(&buffer[..n]).is_ok() {
                        continue;
                    }
                    state.broken_down.store(true, SeqCst);
                }
                _ => {}
            }
            return;
        }
    }

    pub fn keeps_the_places_of_who_said_nothing(mut stream: &TcpStream, state: &State) {
        let is_full = state.places.load(SeqCst) > 99;
        let mut first = [0; 4096];
        if let Ok(n @ 1..) = stream.read(&mut first) {
            state.places.fetch_sub(1, SeqCst);
            if !is_full && stream.write_all(&first[..n]).is_ok() {
                echo(stream, |_| {});
            }
        }
    }
}
