//! The log and the ready line: a closed, broken or unread stdout or stderr never stops the service,
//! and neither does a full disk. The log has colours only if they are wanted.

use std::io::pipe;
use std::process::Stdio;

use crate::common::{
    Server, exchange, local_server, noise, pipe_without_reader, send_and_read_all, signal,
};

#[test]
fn stdout_without_a_reader_does_not_stop_the_service() {
    let mut command = local_server();
    command.arg("-v").stdout(pipe_without_reader());
    command.stderr(Stdio::piped());
    check_service(&mut Server::spawn_as_is(&mut command));
}

#[test]
fn stderr_without_a_reader_does_not_stop_the_service() {
    let mut command = local_server();
    command.arg("-vv").stdout(Stdio::piped());
    command.stderr(pipe_without_reader());
    check_service(&mut Server::spawn_as_is(&mut command));
}

/// Takes one to two seconds: the server waits for the reader of stderr for a second before it exits.
#[test]
fn unread_log_stops_neither_the_service_nor_the_shutdown() {
    let (_reader, stderr) = pipe().expect("a pipe can be created");
    let mut command = local_server();
    command.args(["-vv", "--buffer-size", "64"]);
    let mut server = Server::spawn_as_is(command.stdout(Stdio::piped()).stderr(stderr));
    // Each 64 bytes are three log lines: together far more than the pipe and the queue of 1 MiB hold.
    let client = server.connect();
    let bytes = noise(500_000, 10);
    assert!(send_and_read_all(&client, &[&bytes]) == bytes);
    check_service(&mut server);
}

/// Checks that the server serves clients and shuts down.
fn check_service(server: &mut Server) {
    exchange(&server.connect(), b"hello");
    exchange(&server.connect(), b"hello again");
    if signal::can_be_sent() {
        assert_eq!(server.shut_down().code(), Some(0));
    }
}

/// Only Unix has a shell that can close the streams of a program, and pipes that a test can fill.
#[cfg(unix)]
pub mod unix {
    use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write, pipe};
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::check_service;
    use crate::common::signal::Signal;
    use crate::common::{
        Server, echo_server, exchange, fill, listen, local_server, retry, run_at_once,
        server_from_shell, wait,
    };
    use rustix::io::ioctl_fionbio;

    #[test]
    fn closed_stdout_does_not_stop_the_service() {
        let mut command = server_from_shell(":", "-vv >&-");
        check_service(&mut Server::spawn_as_is(command.stderr(Stdio::piped())));
    }

    #[test]
    fn closed_stderr_does_not_stop_the_service() {
        let mut command = server_from_shell(":", "-vv 2>&-");
        check_service(&mut Server::spawn_as_is(command.stdout(Stdio::piped())));
    }

    /// Returns a pipe that accepts no byte until its reader reads. It contains only `x`.
    pub fn full_pipe() -> (PipeReader, PipeWriter) {
        let (reader, mut writer) = pipe().expect("a pipe can be created");
        ioctl_fionbio(&writer, true).expect("the mode can be set");
        while writer.write(b"x").is_ok() {}
        ioctl_fionbio(&writer, false).expect("the mode can be set");
        (reader, writer)
    }

    /// Starts a server with this stdout. Its address is taken from the log.
    fn start(stdout: impl Into<Stdio>) -> Server {
        let mut command = local_server();
        command.args(["--shutdown-timeout", "1h", "-v"]);
        Server::spawn_as_is(command.stdout(stdout).stderr(Stdio::piped()))
    }

    #[test]
    fn full_stdout_gets_the_ready_line_once_it_is_read() {
        let (reader, stdout) = full_pipe();
        let mut server = start(stdout);
        exchange(&server.connect(), b"hello");
        let (mut reader, mut line) = (BufReader::new(reader), String::new());
        reader.read_line(&mut line).expect("stdout is text");
        let ready_line = format!("Server listening on {}\n", server.address);
        assert_eq!(line.trim_start_matches('x'), ready_line);
        assert_eq!(server.shut_down().code(), Some(0));
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("stdout is text");
        assert_eq!(rest, "");
    }

    #[test]
    fn unread_stdout_and_stderr_do_not_prevent_the_exit() {
        run_at_once(&[
            unread_stdout_does_not_prevent_the_shutdown,
            second_signal_ends_a_server_with_an_unread_stdout,
            unread_stderr_does_not_prevent_exit_code_1,
        ]);
    }

    /// The server waits a second for a reader of stdout before it exits.
    fn unread_stdout_does_not_prevent_the_shutdown() {
        let (_reader, stdout) = full_pipe();
        let mut server = start(stdout);
        exchange(&server.connect(), b"hello");
        assert_eq!(server.shut_down().code(), Some(0));
    }

    fn second_signal_ends_a_server_with_an_unread_stdout() {
        let (_reader, stdout) = full_pipe();
        let mut server = start(stdout);
        let client = server.connect();
        fill(&client);
        server.signal(Signal::INT);
        server.wait_for_log("shutting down: ");
        server.signal(Signal::INT);
        assert_eq!(server.wait().code(), Some(130));
    }

    /// Returns a command for a server that cannot start. It logs a line, then prints an error line.
    fn cannot_start(port: u16) -> Command {
        let mut command = echo_server();
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.env("RUST_LOG", "echo_server=loud");
        command
    }

    /// The server waits a second for a reader of stderr before it exits.
    fn unread_stderr_does_not_prevent_exit_code_1() {
        let (_listener, address) = listen();
        let (_reader, stderr) = full_pipe();
        let mut child = cannot_start(address.port())
            .stderr(stderr)
            .spawn()
            .expect("the program can be spawned");
        let status = wait(&mut child);
        let _ = child.kill();
        assert_eq!(status.expect("the server exits").code(), Some(1));
    }

    #[test]
    fn full_stderr_gets_the_error_line_after_the_log() {
        let (_listener, address) = listen();
        // The server waits a second for a reader. A busy machine may delay a program for longer.
        let error_follows_log = || {
            let (mut reader, stderr) = full_pipe();
            let begin = Instant::now();
            let mut child = cannot_start(address.port())
                .stderr(stderr)
                .spawn()
                .expect("the program can be spawned");
            // Long enough for the server to find the pipe full.
            thread::sleep(Duration::from_millis(200));
            // One read empties the pipe.
            let mut output = vec![0; 1_000_000];
            let length = reader.read(&mut output).expect("the pipe can be read");
            output.truncate(length);
            reader
                .read_to_end(&mut output)
                .expect("the pipe can be read");
            let status = wait(&mut child).expect("the server exits");
            assert_eq!(status.code(), Some(1));
            let output = String::from_utf8(output).expect("stderr is text");
            let lines: Vec<&str> = output.trim_start_matches('x').lines().collect();
            if let [log_line, error_line] = lines[..] {
                assert!(log_line.contains(" WARN ] "), "{lines:?}");
                let error = "echo-server: cannot listen on ";
                assert!(error_line.starts_with(error), "{lines:?}");
                return true;
            }
            assert!(begin.elapsed() >= Duration::from_secs(1), "{lines:?}");
            false
        };
        retry(error_follows_log, "each attempt was delayed");
    }
}

/// A limit on the file size stands for a full disk. Writes fail like on a full disk, in the middle of
/// a line, and no separate file system is needed.
#[test]
#[cfg(target_os = "linux")]
fn full_disk_drops_whole_log_lines_and_counts_them() {
    use std::fs::{self, File};

    const SPACE: u64 = 500;
    let name = format!("full-disk-{}.log", std::process::id());
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let file = File::create(&path).expect("the file can be created");
    // Without the trap, the signal SIGXFSZ ends a process that reaches the limit.
    let mut command = crate::common::server_from_shell(r#"trap "" XFSZ"#, "");
    let mut server = Server::spawn_as_is(command.stdout(Stdio::piped()).stderr(file));

    limit_file_size(&server, Some(SPACE));
    for _ in 0..10 {
        exchange(&server.connect(), b"hello");
    }
    crate::common::wait_until("the disk is full", || {
        fs::metadata(&path).is_ok_and(|file| file.len() == SPACE)
    });
    for _ in 0..10 {
        exchange(&server.connect(), b"hello");
    }
    limit_file_size(&server, None);
    assert_eq!(server.shut_down().code(), Some(0));

    let log = fs::read_to_string(&path).expect("the log is text");
    let _ = fs::remove_file(&path);
    let (mut kept, mut dropped) = (0, 0);
    for line in log.lines() {
        if let Some((report, reason)) = line.split_once(" dropped: ") {
            let count = report
                .strip_suffix(" log lines")
                .or(report.strip_suffix(" log line"));
            dropped += count
                .and_then(|count| count.parse::<usize>().ok())
                .expect("a count");
            assert_eq!(reason, "File too large (os error 27)");
        } else {
            assert!(
                line.starts_with("[2") && line.matches(" INFO ] ").count() == 1,
                "{log}"
            );
            kept += usize::from(line.contains("connected"));
        }
    }
    assert_eq!(kept + dropped, 2 * 20, "two lines for each client: {log}");
}

/// Sets or removes the limit on the size of the files that the server writes.
#[cfg(target_os = "linux")]
fn limit_file_size(server: &Server, limit: Option<u64>) {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

    let maximum = getrlimit(Resource::Fsize).maximum;
    let limit = Rlimit {
        current: limit.or(maximum),
        maximum,
    };
    prlimit(Some(Pid::from_child(&server.child)), Resource::Fsize, limit)
        .expect("the limit can be set");
}

#[test]
fn log_has_colours_only_if_they_are_wanted() {
    let log = |environment: &[(&str, &str)]| {
        let mut command = local_server();
        let server = Server::spawn(command.envs(environment.iter().copied()));
        exchange(&server.connect(), b"hello");
        server.wait_for_log("disconnected");
        server.log().join("\n")
    };
    assert!(!log(&[]).contains('\x1b'), "stderr is not a terminal");
    assert!(log(&[("CLICOLOR_FORCE", "1")]).contains("\x1b["));
    assert!(!log(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).contains('\x1b'));
}
