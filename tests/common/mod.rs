//! The programs, spawned, and clients for the server. Whatever the server does not do within
//! [`PATIENCE`] fails the test that waits for it.
#![allow(dead_code, reason = "each test file uses its own part of this")]

pub mod signal;
#[cfg(unix)]
pub mod tools;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use signal::Signal;
use socket2::{Domain, Socket, Type};

/// How long an event may take on a slow and busy machine before it counts as never coming.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The command `echo-server`, untouched by the variables of whoever runs the tests.
pub fn echo_server() -> Command {
    command(env!("CARGO_BIN_EXE_echo-server"))
}

/// The command `echo-client` for the server at `address`.
#[cfg(feature = "client")]
pub fn echo_client(address: SocketAddr) -> Command {
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = command(env!("CARGO_BIN_EXE_echo-client"));
    command.args(["--host", &host, "--port", &port]);
    command
}

/// What `echo-client test --json` says of the server at `address`, and its exit code.
#[cfg(feature = "client")]
pub fn judge(address: SocketAddr, timeout: &str) -> (serde_json::Value, Option<i32>) {
    let mut client = echo_client(address);
    client.args(["test", "--json", "--timeout", timeout]);
    let output = client.output().expect("the client can be spawned");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "no JSON ({error}): {}",
            String::from_utf8_lossy(&output.stderr)
        )
    });
    (report, output.status.code())
}

/// Of each check that has failed its name, what was expected and what came.
#[cfg(feature = "client")]
pub fn failures(report: &serde_json::Value) -> Vec<[String; 3]> {
    let checks = report["checks"]
        .as_array()
        .expect("there is a list of checks");
    let failed = checks.iter().filter(|check| check["passed"] == false);
    let text = |value: &serde_json::Value| value.as_str().expect("it is a text").to_owned();
    failed
        .map(|check| ["name", "expected", "got"].map(|key| text(&check[key])))
        .collect()
}

/// Starts a program that is not ours. Where there is none, CI fails and others are told.
pub fn start_tool(command: &mut Command) -> Option<Child> {
    match command.spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            let program = command.get_program().display();
            leave_out(format_args!("{program} cannot be run: {error}"));
            None
        }
    }
}

/// Leaves a test out, or a part of it. In CI, which is to have all that the tests need, it fails.
pub fn leave_out(why: std::fmt::Arguments<'_>) {
    let required = std::env::var_os("ECHO_SERVER_TEST_TOOLS");
    assert!(required.is_none_or(|v| v != "required"), "{why}");
    // Past the test harness, which shows no output of a test that passes.
    let _ = writeln!(std::io::stderr(), "not tested, {why}");
}

/// Any program, without those variables.
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

/// A running server; killed when dropped.
pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    pub ready_line: String,
    stdout: Option<BufReader<ChildStdout>>,
    log: Log,
}

impl Server {
    /// On 127.0.0.1 and a port of the system's choice, with these arguments too.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = echo_server();
        command.args(["--host", "127.0.0.1", "--port", "0"]);
        Self::spawn(command.args(arguments))
    }

    /// The same for a test that signals it; `None` where that [cannot be](signal::can_be_sent).
    pub fn start_to_signal(arguments: &[&str]) -> Option<Self> {
        signal::can_be_sent().then(|| Self::start(arguments))
    }

    /// Spawns `command` and waits for its ready line.
    pub fn spawn(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::spawn_as_is(command)
    }

    /// Spawns `command` with the stdout and stderr that it has. Where stdout is not piped, the
    /// address is read from the log, at level debug.
    pub fn spawn_as_is(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the server starts");
        let log = child.stderr.take().map(Log::read).unwrap_or_default();
        let stdout = child.stdout.take().map(BufReader::new);
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = Self {
            child,
            address: nowhere,
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
            let line = server.log.wait_for(1, "listening on ").remove(0);
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

    /// The lines that have been read so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// All lines, to the end of stderr; only once the server has ended.
    pub fn rest_of_log(&mut self) -> Vec<String> {
        let reader = self
            .log
            .reader
            .take()
            .expect("the log is read to its end once");
        reader.join().expect("the reader does not panic");
        self.log.lines()
    }

    /// Waits for a line of the log that contains `text`.
    pub fn wait_for_log(&self, text: &str) -> String {
        self.log.wait_for(1, text).remove(0)
    }

    /// Waits for `count` lines of the log that contain `text`.
    pub fn wait_for_logs(&self, count: usize, text: &str) -> Vec<String> {
        self.log.wait_for(count, text)
    }

    /// Waits for the log's line on how the connection of `client` ended.
    pub fn wait_for_departure(&self, client: SocketAddr) -> String {
        self.wait_for_log(&format!("{client} disconnected: "))
    }

    /// Waits for the server's end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
            .unwrap_or_else(|| panic!("the server still runs, log: {:#?}", self.log()))
    }

    /// What was on stdout after the ready line; only once the server has ended.
    pub fn rest_of_stdout(&mut self) -> String {
        let mut rest = String::new();
        let mut stdout = self.stdout.take().expect("stdout is read once");
        stdout.read_to_string(&mut rest).expect("stdout is text");
        rest
    }

    pub fn signal(&self, signal: Signal) {
        signal::send(&self.child, signal);
    }

    /// Stops the server with SIGTERM and waits for its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// How many threads the server has. Other systems do not tell in a file.
    #[cfg(target_os = "linux")]
    pub fn threads(&self) -> usize {
        self.numbers("task").len()
    }

    /// The numbers of the files that the server has open.
    #[cfg(target_os = "linux")]
    pub fn files(&self) -> Vec<u64> {
        self.numbers("fd")
    }

    #[cfg(target_os = "linux")]
    fn numbers(&self, what: &str) -> Vec<u64> {
        let folder = std::fs::read_dir(format!("/proc/{}/{what}", self.child.id()));
        let names = folder
            .expect("the server runs")
            .map(|entry| entry.ok()?.file_name().into_string().ok());
        names
            .map(|name| name?.parse().ok())
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

/// The first line of `stdout`, and its rest; nothing where it does not come.
fn first_line(mut stdout: BufReader<ChildStdout>) -> (String, Option<BufReader<ChildStdout>>) {
    let (told, line) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let read = stdout.read_line(&mut line);
        told.send(read.map(|_| (line, Some(stdout))))
    });
    line.recv_timeout(PATIENCE)
        .ok()
        .and_then(Result::ok)
        .unwrap_or_default()
}

/// Waits until `condition` holds, where nothing tells that it does.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "it never comes that {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for the end of `child` by itself; how it ended, if it did.
pub fn wait(child: &mut Child) -> Option<ExitStatus> {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = child.try_wait().expect("it can be waited for");
        if status.is_some() || Instant::now() > end {
            return status;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for the end of `child`, which has nothing more to read; what it wrote.
pub fn end(mut child: Child) -> Output {
    drop(child.stdin.take());
    let stdout = child.stdout.take().map(read_all);
    let stderr = child.stderr.take().map(read_all);
    let status = wait(&mut child);
    if status.is_none() {
        let _ = child.kill().and_then(|()| child.wait());
    }
    let [stdout, stderr] = [stdout, stderr].map(|reader| {
        reader.map_or_else(Vec::new, |reader| {
            reader.join().expect("the reader does not panic")
        })
    });
    let status = status.unwrap_or_else(|| {
        let (out, err) = (
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr),
        );
        panic!("it did not end; stdout: {out}, stderr: {err}")
    });
    Output {
        status,
        stdout,
        stderr,
    }
}

fn read_all(mut source: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = source.read_to_end(&mut bytes);
        bytes
    })
}

/// Runs `command` to its end; what it wrote.
pub fn run(command: &mut Command) -> Output {
    end(command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be spawned"))
}

/// The lines of a log, collected as they come.
#[derive(Default)]
pub struct Log {
    lines: Arc<(Mutex<Vec<String>>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

impl Log {
    pub fn read(source: impl Read + Send + 'static) -> Self {
        let lines: Arc<(Mutex<Vec<String>>, Condvar)> = Arc::default();
        let shared = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                shared.0.lock().expect("no reader panics").push(text);
                shared.1.notify_all();
                line.clear();
            }
        });
        Self {
            lines,
            reader: Some(reader),
        }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.0.lock().expect("no reader panics").clone()
    }

    pub fn wait_for(&self, count: usize, text: &str) -> Vec<String> {
        let (lines, more) = &*self.lines;
        let found = |lines: &[String]| -> Vec<String> {
            lines
                .iter()
                .filter(|line| line.contains(text))
                .cloned()
                .collect()
        };
        let lines = lines.lock().expect("no reader panics");
        let (lines, _) = more
            .wait_timeout_while(lines, PATIENCE, |lines| found(lines).len() < count)
            .expect("no reader panics");
        let found = found(&lines);
        assert!(
            found.len() >= count,
            "not {count} lines with {text:?} in the log: {lines:#?}"
        );
        found
    }
}

/// A connection whose reads and writes fail the test, rather than hang it.
pub fn connect(address: SocketAddr) -> TcpStream {
    patient(TcpStream::connect_timeout(&address, PATIENCE).expect("the server accepts"))
}

/// The same from the other side: the next client of `listener`.
pub fn accept(listener: &TcpListener) -> TcpStream {
    let end = Instant::now() + PATIENCE;
    listener.set_nonblocking(true).expect("the mode can be set");
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                // Some systems hand the mode on.
                stream.set_nonblocking(false).expect("the mode can be set");
                return patient(stream);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                assert!(Instant::now() < end, "no client comes");
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

fn patient(stream: TcpStream) -> TcpStream {
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    stream
        .set_write_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    stream
}

/// The same with a receive buffer of about `size` bytes.
pub fn connect_with_buffer(address: SocketAddr, size: usize) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None);
    let socket = socket.expect("a socket can be had");
    socket
        .set_recv_buffer_size(size)
        .expect("the size can be set");
    socket.connect(&address.into()).expect("the server accepts");
    patient(TcpStream::from(socket))
}

/// Connects from an address of the test's choice in 127.0.0.0/8, which Linux has all of.
#[cfg(target_os = "linux")]
pub fn connect_from(ip: [u8; 4], server: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be had");
    socket
        .bind(&SocketAddr::from((ip, 0)).into())
        .expect("it is this machine's");
    socket.connect(&server.into()).expect("the server accepts");
    patient(TcpStream::from(socket))
}

/// A socket that has an address, but does not listen there: nobody else can, either.
pub fn nobody() -> (Socket, SocketAddr) {
    bound(false)
}

/// A socket that keeps a port: the system gives it to nobody who takes any port, but a server can
/// listen there, and the next one after it, since they set `SO_REUSEADDR` too.
#[cfg(unix)]
pub fn reserve() -> (Socket, SocketAddr) {
    bound(true)
}

fn bound(reuse_address: bool) -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be had");
    socket
        .set_reuse_address(reuse_address)
        .expect("the option can be set");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("a port can be had");
    let address = socket
        .local_addr()
        .ok()
        .and_then(|address| address.as_socket());
    (socket, address.expect("it has an address"))
}

/// Sends `message` and takes its echo.
pub fn exchange(mut stream: &TcpStream, message: &[u8]) {
    stream.write_all(message).expect("the message goes out");
    let mut echo = vec![0; message.len()];
    stream.read_exact(&mut echo).expect("the echo comes back");
    assert!(echo == message, "the echo differs from the message");
}

/// Sends the chunks and then FIN, takes what comes back until FIN, both at the same time.
pub fn send_and_read_all(stream: &TcpStream, chunks: &[&[u8]]) -> Vec<u8> {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = stream;
            for chunk in chunks {
                writer.write_all(chunk).expect("the chunk goes out");
            }
            stream.shutdown(Shutdown::Write).expect("FIN goes out");
        });
        read_until_fin(stream)
    })
}

/// Reads until FIN; anything else that ends the stream, such as RST, fails the test.
pub fn read_until_fin(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .expect("the stream ends with FIN");
    bytes
}

/// Sends without reading until every buffer on the way to the server and back is full; what went
/// out. The server's thread is then blocked in its write.
pub fn fill(mut stream: &TcpStream) -> Vec<u8> {
    // A prime number of bytes, again and again: no shift by a power of two goes unnoticed.
    let noise = noise(1_000_003, 5);
    let (mut sent, mut moved) = (0, Instant::now());
    stream.set_nonblocking(true).expect("the mode can be set");
    while moved.elapsed() < Duration::from_millis(500) {
        // With a balancer on the way there are eight buffers, each of up to 32 MiB.
        assert!(
            sent < 300_000_000,
            "the server takes all and is never blocked"
        );
        match stream.write(&noise[sent % noise.len()..]) {
            Ok(written) => (sent, moved) = (sent + written, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).expect("the mode can be set");
    // At once: whoever calls this may have an idle timeout to keep.
    let mut all = noise.repeat(sent.div_ceil(noise.len()));
    all.truncate(sent);
    all
}

/// Closes the connection with RST.
pub fn reset(stream: TcpStream) {
    reset_on_close(&stream);
    drop(stream);
}

/// Lets the connection be closed with RST once it is dropped.
pub fn reset_on_close(stream: &TcpStream) {
    let set = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    set.expect("SO_LINGER can be set");
}

/// The first block of `language` under the README's heading `heading`.
pub fn readme_block(heading: &str, language: &str) -> &'static str {
    let readme = include_str!("../../README.md");
    let after = |text: &'static str, mark: String| text.split_once(&mark).map(|(_, rest)| rest);
    after(readme, format!("\n{heading}\n"))
        .and_then(|rest| rest.split("\n## ").next())
        .and_then(|section| after(section, format!("\n```{language}\n")))
        .and_then(|rest| rest.split_inclusive("\n```").next())
        .and_then(|block| block.strip_suffix("```"))
        .unwrap_or_else(|| panic!("README.md has no such block under {heading:?}"))
}

/// A listener on 127.0.0.1 and a port of the system's choice, with its address.
pub fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
    let address = listener.local_addr().expect("it has an address");
    (listener, address)
}

/// `len` bytes in which no part looks like another: what xorshift gives from `seed`.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}
