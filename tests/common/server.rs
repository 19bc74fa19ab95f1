//! Starts the binary `echo-server` and controls it.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use super::log::Log;
use super::signal::{self, Signal};
use super::{PATIENCE, command, connect, echo_server, exchange, send, wait};

/// A running server. Dropping it kills the process.
pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    pub ready_line: String,
    stdout: Option<BufReader<ChildStdout>>,
    log: Log,
}

impl Server {
    /// Starts a server on an ephemeral port of 127.0.0.1, with these arguments too.
    pub fn start(arguments: &[&str]) -> Self {
        Self::spawn(local_server().args(arguments))
    }

    /// Does the same for a test that sends signals. Returns `None` if this machine [cannot send
    /// them](signal::can_be_sent).
    pub fn start_to_signal(arguments: &[&str]) -> Option<Self> {
        signal::can_be_sent().then(|| Self::start(arguments))
    }

    /// Spawns `command` and waits for its ready line.
    pub fn spawn(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::spawn_as_is(command)
    }

    /// Spawns `command` with the stdout and stderr that it has. If stdout is not piped, the address
    /// is taken from the log, which must be at level debug.
    pub fn spawn_as_is(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the server starts");
        let log = child.stderr.take().map(Log::read).unwrap_or_default();
        let stdout = child.stdout.take().map(BufReader::new);
        let mut server = Self {
            child,
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            ready_line: String::new(),
            stdout,
            log,
        };
        let address = if let Some(stdout) = server.stdout.take() {
            (server.ready_line, server.stdout) = first_line(stdout);
            server
                .ready_line
                .strip_prefix("Server listening on ")
                .map(str::to_owned)
        } else {
            let line = server.wait_for_log("listening on ");
            line.split("listening on ").last().map(str::to_owned)
        };
        server.address = address
            .and_then(|address| address.trim_end().parse().ok())
            .unwrap_or_else(|| {
                panic!(
                    "no ready line but {:?}, log: {:#?}",
                    server.ready_line,
                    server.log()
                )
            });
        server
    }

    pub fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    pub fn connect_many(&self, count: usize) -> Vec<TcpStream> {
        (0..count).map(|_| self.connect()).collect()
    }

    /// Connects and exchanges a message, so the server has admitted the client.
    pub fn connect_and_exchange(&self, message: &[u8]) -> TcpStream {
        let client = self.connect();
        exchange(&client, message);
        client
    }

    /// Connects and sends `bytes`.
    pub fn connect_and_send(&self, bytes: &[u8]) -> TcpStream {
        let client = self.connect();
        send(&client, bytes);
        client
    }

    /// Returns the log lines read so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Returns how many of the log lines read so far contain `text`.
    pub fn count_in_log(&self, text: &str) -> usize {
        let log = self.log();
        log.iter().filter(|line| line.contains(text)).count()
    }

    /// Checks that `count` of the log lines read so far contain `text`.
    #[track_caller]
    pub fn assert_log_count(&self, count: usize, text: &str) {
        let log = self.log();
        assert_eq!(self.count_in_log(text), count, "{text:?} in {log:#?}");
    }

    /// Waits until the server closes stderr, then returns the whole log.
    pub fn rest_of_log(&mut self) -> Vec<String> {
        self.log.read_to_end()
    }

    /// Waits for a log line that contains `text`.
    pub fn wait_for_log(&self, text: &str) -> String {
        self.log.wait_for(1, text).remove(0)
    }

    /// Waits for `count` log lines that contain `text`.
    pub fn wait_for_logs(&self, count: usize, text: &str) -> Vec<String> {
        self.log.wait_for(count, text)
    }

    /// Waits for the log line about the end of the connection of `client`.
    pub fn wait_for_disconnect(&self, client: SocketAddr) -> String {
        self.wait_for_log(&format!("{client} disconnected: "))
    }

    /// Waits until the server exits.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
            .unwrap_or_else(|| panic!("the server still runs, log: {:#?}", self.log()))
    }

    /// Checks that the server has not exited.
    #[track_caller]
    pub fn assert_running(&mut self) {
        let status = self.child.try_wait().expect("the status can be read");
        assert_eq!(status, None, "log: {:#?}", self.log());
    }

    /// Returns what stdout contains after the ready line. The server must have exited.
    pub fn rest_of_stdout(&mut self) -> String {
        let mut rest = String::new();
        let mut stdout = self.stdout.take().expect("stdout is read once");
        stdout.read_to_string(&mut rest).expect("stdout is text");
        rest
    }

    pub fn signal(&self, signal: Signal) {
        signal::send(&self.child, signal);
    }

    /// Sends SIGTERM and waits until the server exits.
    pub fn shut_down(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Returns the number of the server's threads, which only Linux shows in a file.
    #[cfg(target_os = "linux")]
    pub fn threads(&self) -> usize {
        self.numbers("task").len()
    }

    /// Returns the server's open file descriptors.
    #[cfg(target_os = "linux")]
    pub fn files(&self) -> Vec<u64> {
        self.numbers("fd")
    }

    #[cfg(target_os = "linux")]
    fn numbers(&self, directory: &str) -> Vec<u64> {
        let entries = std::fs::read_dir(format!("/proc/{}/{directory}", self.child.id()));
        entries
            .expect("the server runs")
            .map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .map(|number| number.expect("a number"))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the command `echo-server` with an ephemeral port of 127.0.0.1.
pub fn local_server() -> Command {
    let mut command = echo_server();
    command.args(["--host", "127.0.0.1", "--port", "0"]);
    command
}

/// Returns a command for a shell that runs `setup` and then becomes `echo-server` with an ephemeral port
/// of 127.0.0.1 and these arguments, which may redirect its streams.
#[cfg(unix)]
pub fn server_from_shell(setup: &str, arguments: &str) -> Command {
    let script = format!(r#"{setup} && exec "$0" --host 127.0.0.1 --port 0 {arguments}"#);
    let mut shell = command("sh");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_echo-server")]);
    shell
}

/// Returns the first line of `stdout` and the rest of it, or nothing if no line arrives in time.
fn first_line(mut stdout: BufReader<ChildStdout>) -> (String, Option<BufReader<ChildStdout>>) {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let read = stdout.read_line(&mut line);
        sender.send(read.map(|_| (line, Some(stdout))))
    });
    receiver
        .recv_timeout(PATIENCE)
        .ok()
        .and_then(Result::ok)
        .unwrap_or_default()
}
