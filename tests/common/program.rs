//! Runs programs, ours and others, and checks their exit code and output.

#[cfg(target_os = "linux")]
use std::fs::File;
use std::io::{PipeWriter, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{PATIENCE, signal, skip};

/// Returns the command `echo-server`.
pub fn echo_server() -> Command {
    command(env!("CARGO_BIN_EXE_echo-server"))
}

/// Returns the command `echo-client` for the server at `address`.
#[cfg(feature = "client")]
pub fn echo_client(address: SocketAddr) -> Command {
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = default_client();
    command.args(["--host", &host, "--port", &port]);
    command
}

/// Returns the command `echo-client` for its default server.
#[cfg(feature = "client")]
pub fn default_client() -> Command {
    command(env!("CARGO_BIN_EXE_echo-client"))
}

/// Returns a command for `program`, without the environment variables that would change what our
/// binaries do.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ECHO_SERVER_") {
            command.env_remove(name);
        }
    }
    for name in [
        "RUST_LOG",
        "COLUMNS",
        "CLICOLOR_FORCE",
        "NO_COLOR",
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
    ] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    signal::prepare(&mut command);
    command
}

/// Spawns a program of another project. Skips the test and returns `None` if it is not installed.
pub fn start_tool(command: &mut Command) -> Option<Child> {
    match command.spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            let program = command.get_program().display();
            skip(format_args!("{program} cannot be run: {error}"));
            None
        }
    }
}

/// Waits until `child` exits. Returns `None` if it does not.
pub fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = child.try_wait().expect("the status can be read");
        if status.is_some() || Instant::now() > deadline {
            return status;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Closes the stdin of `child`, waits until it exits, and returns its output.
pub fn end(mut child: Child) -> Output {
    drop(child.stdin.take());
    let stdout = child.stdout.take().map(read_all);
    let stderr = child.stderr.take().map(read_all);
    let status = wait(&mut child);
    if status.is_none() {
        let _ = child.kill().and_then(|()| child.wait());
    }
    let join = |reader: JoinHandle<_>| reader.join().expect("the reader does not panic");
    let [stdout, stderr] = [stdout, stderr].map(|reader| reader.map(join).unwrap_or_default());
    let status = status.unwrap_or_else(|| {
        let [out, err] = [&stdout, &stderr].map(|text| text.escape_ascii());
        panic!("the program did not exit; stdout: {out}, stderr: {err}")
    });
    Output {
        status,
        stdout,
        stderr,
    }
}

/// Returns the CPU time that `child` has used, with all its threads.
#[cfg(target_os = "linux")]
pub fn cpu_time(child: &Child) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()));
    let stat = stat.expect("the program runs");
    let (_, columns) = stat.rsplit_once(") ").expect("the name is in parentheses");
    let ticks = columns
        .split(' ')
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().expect("a number of ticks"));
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// Returns the number after `key` in the text of a file in /proc.
#[cfg(target_os = "linux")]
pub fn number_after(key: &str, text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn read_all(mut source: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = source.read_to_end(&mut bytes);
        bytes
    })
}

/// Returns the write end of a pipe that has no reader.
pub fn pipe_without_reader() -> PipeWriter {
    let (_, writer) = std::io::pipe().expect("a pipe can be created");
    writer
}

/// Opens a file that behaves like one on a full disk.
#[cfg(target_os = "linux")]
pub fn full_disk() -> File {
    let file = File::options().write(true).open("/dev/full");
    file.expect("Linux has this file")
}

/// Spawns `command` with pipes as stdout and stderr.
pub fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program can be spawned")
}

/// Runs `command` until it exits, and returns its output.
pub fn run(command: &mut Command) -> Output {
    end(start(command))
}

/// Runs a command that must exit with this code and write nothing to stderr. Returns its stdout.
#[track_caller]
pub fn stdout_of(command: &mut Command, code: i32) -> String {
    stdout_text(run(command), code)
}

/// Checks that a program exited with this code and wrote nothing to stderr. Returns its stdout.
#[track_caller]
pub fn stdout_text(output: Output, code: i32) -> String {
    assert_silent_exit(&output, code);
    String::from_utf8(output.stdout).expect("stdout is text")
}

/// Runs a command that must exit with this code and write nothing to stdout. Returns its stderr.
#[track_caller]
pub fn stderr_of(command: &mut Command, code: i32) -> String {
    let output = run(command);
    let stderr = String::from_utf8(output.stderr).expect("stderr is text");
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{stderr}");
    stderr
}

/// Runs a command that must exit with code 1 and write only one line, to stderr. Returns the line.
#[track_caller]
pub fn error_of(command: &mut Command) -> String {
    let output = run(command);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    error_line(&output)
}

/// Checks that a program exited with code 1 and wrote one line to stderr. Returns the line.
#[track_caller]
pub fn error_line(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).expect("stderr is text");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

/// Checks that a program exited with this code and wrote nothing to stderr.
#[track_caller]
pub fn assert_silent_exit(output: &Output, code: i32) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{stdout}");
    assert_eq!(output.status.code(), Some(code), "{stdout}");
}
