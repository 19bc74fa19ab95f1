//! `echo-client` as a pipe: it sends stdin to the server and writes the echo to stdout, byte for byte.
//! The exit code shows whether all bytes were echoed.
#![cfg(feature = "client")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    Server, assert_contains, assert_silent_exit, echo_client, end, error_line, for_each_at_once,
    listen, noise, read_until_fin, reset, reset_can_be_read, retry, run, run_at_once, send, start,
};

/// Starts a client as a pipe to `address`.
fn pipe(address: SocketAddr, arguments: &[&str]) -> Child {
    let mut client = echo_client(address);
    start(client.args(arguments).stdin(Stdio::piped()))
}

/// Starts a client as a pipe whose stdin stays open until the test drops it.
fn open_pipe(address: SocketAddr, arguments: &[&str]) -> (Child, ChildStdin) {
    let mut client = pipe(address, arguments);
    let stdin = client.stdin.take().expect("stdin is piped");
    (client, stdin)
}

/// Writes `input` to the client's stdin, closes it, and returns the output.
fn send_input(mut client: Child, input: &[u8]) -> Output {
    let mut stdin = client.stdin.take().expect("stdin is piped");
    thread::scope(|scope| {
        // The write may fail: a client that exits does not read everything.
        scope.spawn(move || stdin.write_all(input));
        end(client)
    })
}

/// Starts a server that calls `serve` for its only client.
fn server(serve: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    let (listener, address) = listen();
    thread::spawn(move || serve(listener.accept().expect("the client connects").0));
    address
}

#[test]
fn input_of_any_size_is_echoed() {
    let server = Server::start(&[]);
    for size in [0, 1, 65_536, 30_000_000] {
        let input = noise(size, 3);
        let output = send_input(pipe(server.address, &[]), &input);
        assert!(
            output.stdout == input,
            "{} of {size} bytes were echoed",
            output.stdout.len()
        );
        assert_silent_exit(&output, 0);
    }
}

#[test]
fn echo_is_written_at_once_and_stdin_may_pause() {
    let server = Server::start(&[]);
    let echoes = || {
        let (mut client, mut stdin) = open_pipe(server.address, &["--timeout", "300ms"]);
        let mut stdout = client.stdout.take().expect("stdout is piped");
        let all_arrived = [b"no newline", b"more bytes"].iter().all(|message| {
            let mut echo = [0; 10];
            let sent = stdin.write_all(*message);
            let received = sent.and_then(|()| stdout.read_exact(&mut echo));
            // Longer than the timeout.
            thread::sleep(Duration::from_millis(500));
            received.is_ok() && echo == **message
        });
        drop(stdin);
        let output = end(client);
        let message = String::from_utf8_lossy(&output.stderr);
        // On a busy machine the server may be that late, so the test tries again.
        if message.contains(" bytes, then nothing for 300ms") {
            return false;
        }
        assert_eq!((output.status.code(), &*message), (Some(0), ""));
        assert!(all_arrived, "an echo differs from its message");
        true
    };
    retry(echoes, "the server is late");
}

/// Linux has a file that shows how much memory a program has used at most.
#[test]
#[cfg(target_os = "linux")]
fn linux_long_stream_takes_little_memory() {
    let server = Server::start(&[]);
    let (mut client, mut stdin) = open_pipe(server.address, &[]);
    let mut stdout = client.stdout.take().expect("stdout is piped");
    let (chunk, count) = (vec![7; 1_000_000], 300);
    let stdin = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            (0..count).for_each(|_| stdin.write_all(&chunk).expect("the client reads"));
            stdin
        });
        let mut all = (&mut stdout).take(count * chunk.len() as u64);
        std::io::copy(&mut all, &mut std::io::sink()).expect("all bytes are echoed");
        sender.join().expect("the sender does not panic")
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", client.id()));
    let status = status.expect("the client still runs");
    let peak_kib = crate::common::number_after("VmHWM:", &status).expect("Linux shows it");
    assert!(peak_kib < 30_000, "{peak_kib} KiB");
    drop(stdin);
    assert_eq!(end(client).status.code(), Some(0));
}

#[test]
fn server_that_closes_too_early_is_an_error() {
    let address = server(|mut stream| {
        let mut bytes = [0; 3];
        stream.read_exact(&mut bytes).expect("the client sends");
        send(&stream, &bytes);
    });
    let (client, mut stdin) = open_pipe(address, &[]);
    stdin.write_all(b"abc").expect("the client reads");
    let output = end(client);
    assert_eq!(output.stdout, b"abc");
    let message = error_line(&output);
    let expected = format!("{address} closed the connection after returning 3 of 3 bytes");
    assert_contains(&message, &expected);
    assert_contains(
        &message,
        "before stdin was sent completely; its log may say why",
    );
}

#[test]
fn server_that_loses_bytes_is_an_error() {
    let address = server(|stream| {
        read_until_fin(&stream);
        send(&stream, b"ab");
    });
    let output = send_input(pipe(address, &[]), b"abc");
    assert_eq!(output.stdout, b"ab");
    let expected = format!("{address} closed the connection after returning 2 of 3 bytes");
    assert_contains(&error_line(&output), &expected);
}

#[test]
fn server_that_adds_bytes_is_an_error() {
    let address = server(|stream| {
        read_until_fin(&stream);
        send(&stream, b"abc!");
    });
    let output = send_input(pipe(address, &[]), b"abc");
    assert_eq!(output.stdout, b"abc");
    let message = error_line(&output);
    let expected =
        format!("{address} is not an echo server: it returned 4 bytes after receiving 3");
    assert_contains(&message, &expected);
}

#[test]
fn server_that_adds_a_byte_after_the_echo_is_an_error() {
    let address = server(|mut stream| {
        stream.read_exact(&mut [0; 3]).expect("the client sends");
        send(&stream, b"abc");
        read_until_fin(&stream);
        send(&stream, b"!");
    });
    let (mut client, mut stdin) = open_pipe(address, &[]);
    let mut stdout = client.stdout.take().expect("stdout is piped");
    stdin.write_all(b"abc").expect("the client reads");
    let mut echo = [0; 3];
    stdout.read_exact(&mut echo).expect("the echo comes back");
    drop(stdin);
    let message = error_line(&end(client));
    let expected =
        format!("{address} is not an echo server: it returned 4 bytes after receiving 3");
    assert_contains(&message, &expected);
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).expect("stdout ends");
    assert_eq!((echo, rest), (*b"abc", Vec::new()));
}

#[test]
fn server_that_floods_is_an_error_before_stdin_ends() {
    let address = server(|mut stream| while stream.write_all(b"chargen").is_ok() {});
    let (mut client, mut stdin) = open_pipe(address, &[]);
    // Fails if the client has already exited.
    let _ = stdin.write_all(b"abc");
    let mut received = Vec::new();
    let stdout = client.stdout.take().expect("stdout is piped");
    stdout
        .take(100)
        .read_to_end(&mut received)
        .expect("stdout ends");
    assert!(received.len() <= 3, "{} bytes", received.len());
    let message = error_line(&end(client));
    assert_contains(&message, &format!("{address} is not an echo server: "));
    drop(stdin);
}

#[test]
fn server_that_resets_is_an_error() {
    if !reset_can_be_read() {
        return;
    }
    let address = server(|mut stream| {
        stream.read_exact(&mut [0; 3]).expect("the client sends");
        reset(stream);
    });
    let (client, mut stdin) = open_pipe(address, &[]);
    stdin.write_all(b"abc").expect("the client reads");
    let message = error_line(&end(client));
    assert_contains(&message, &format!("{address} reset the connection"));
}

/// The client may be connecting, sending or receiving when the reset arrives, so one run would prove
/// little.
#[test]
fn reset_after_accept_is_reported_as_a_reset() {
    if !reset_can_be_read() {
        return;
    }
    let (listener, address) = listen();
    thread::spawn(move || listener.incoming().flatten().for_each(reset));
    for_each_at_once(0..20, |_| {
        let message = error_line(&send_input(pipe(address, &[]), b"hello"));
        assert_contains(&message, "reset the connection; its log may say why");
    });
}

/// Both threads of the client may get the error first, so one run would prove little.
#[test]
fn reset_during_a_write_is_reported_as_a_reset() {
    if !reset_can_be_read() {
        return;
    }
    for _ in 0..10 {
        let address = server(|mut stream| {
            stream
                .read_exact(&mut vec![0; 1_000_000])
                .expect("the client sends");
            reset(stream);
        });
        let message = error_line(&send_input(pipe(address, &[]), &vec![0; 10_000_000]));
        assert_contains(&message, &format!("{address} reset the connection"));
    }
}

/// Takes three seconds: what arrives before the timeout must do so on a busy machine too.
#[test]
fn timeout_ends_a_run_with_an_error_unless_the_echo_is_complete() {
    run_at_once(&[
        server_that_stops_echoing_is_an_error_after_the_timeout,
        server_that_never_reads_is_an_error_after_the_timeout,
        server_that_never_echoes_is_an_error_while_stdin_goes_on,
        complete_echo_succeeds_if_the_server_never_closes,
    ]);
}

fn server_that_stops_echoing_is_an_error_after_the_timeout() {
    let address = server(|stream| {
        read_until_fin(&stream);
        send(&stream, b"he");
        thread::park();
    });
    let started = Instant::now();
    let message = error_line(&send_input(pipe(address, &["--timeout", "3s"]), b"hello"));
    assert!(started.elapsed() >= Duration::from_secs(3));
    let expected = format!("{address} returned 2 of 5 bytes, then nothing for 3s");
    assert_contains(&message, &expected);
}

fn server_that_never_reads_is_an_error_after_the_timeout() {
    let address = server(|stream| {
        thread::park();
        drop(stream);
    });
    let message = error_line(&send_input(
        pipe(address, &["--timeout", "500ms"]),
        &noise(30_000_000, 1),
    ));
    assert_contains(&message, " bytes, then nothing for 500ms");
}

fn server_that_never_echoes_is_an_error_while_stdin_goes_on() {
    let address = server(|stream| drop(read_until_fin(&stream)));
    let (client, mut stdin) = open_pipe(address, &["--timeout", "500ms"]);
    thread::scope(|scope| {
        scope.spawn(move || {
            // Until the client has exited.
            while stdin.write_all(b"line\n").is_ok() {
                thread::sleep(Duration::from_millis(50));
            }
        });
        let message = error_line(&end(client));
        assert_contains(&message, &format!("{address} returned 0 of "));
        assert_contains(&message, " bytes, then nothing for 500ms");
    });
}

fn complete_echo_succeeds_if_the_server_never_closes() {
    let address = server(|stream| {
        send(&stream, &read_until_fin(&stream));
        thread::park();
    });
    let output = send_input(pipe(address, &["--timeout", "3s"]), b"hello");
    assert_eq!(output.stdout, b"hello");
    assert_silent_exit(&output, 0);
}

#[test]
fn closed_stdout_ends_the_client_without_a_message() {
    let server = Server::start(&[]);
    let mut client = pipe(server.address, &[]);
    drop(client.stdout.take());
    let output = send_input(client, &noise(1_000_000, 2));
    assert_silent_exit(&output, 1);
}

/// Linux has a file that behaves like a full disk.
#[test]
#[cfg(target_os = "linux")]
fn linux_full_disk_is_an_error() {
    let server = Server::start(&[]);
    let mut client = echo_client(server.address);
    client.stdin(Stdio::piped()).stderr(Stdio::piped());
    let client = client.stdout(crate::common::full_disk()).spawn();
    let output = send_input(client.expect("the client can be spawned"), b"hello");
    assert_contains(
        &error_line(&output),
        "cannot write to stdout: No space left",
    );
}

#[test]
fn stdin_that_cannot_be_read_is_an_error() {
    let server = Server::start(&[]);
    // On Unix, a directory can be opened but not read. On Windows, a file can be opened only to write.
    #[cfg(unix)]
    let stdin = std::fs::File::open("/").expect("the root exists");
    #[cfg(windows)]
    let stdin = std::fs::OpenOptions::new()
        .write(true)
        .open("NUL")
        .expect("Windows has this file");
    let output = run(echo_client(server.address).stdin(stdin));
    let message = error_line(&output);
    let reason = if cfg!(unix) {
        "Is a directory"
    } else {
        "(os error 5)"
    };
    assert_contains(&message, "cannot read stdin: ");
    assert_contains(&message, reason);
}

/// On Linux, a call on a socket with a timeout returns EINTR when its process resumes.
#[test]
#[cfg(unix)]
fn pause_by_job_control_loses_no_byte() {
    use crate::common::signal::{self, Signal, pause};

    let server = Server::start(&[]);
    let (mut client, mut stdin) = open_pipe(server.address, &[]);
    let mut stdout = client.stdout.take().expect("stdout is piped");
    let mut echo = [0; 5];
    for _ in 0..10 {
        stdin.write_all(b"hello").expect("the client reads");
        stdout.read_exact(&mut echo).expect("the echo arrives");
        assert_eq!(&echo, b"hello");
        pause(&client);
        signal::send(&client, Signal::CONT);
    }
    drop(stdin);
    assert_eq!(end(client).status.code(), Some(0));
}
