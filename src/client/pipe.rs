//! Pipe mode: copies stdin to the server and the echoes to stdout, both at the same time.
//!
//! Each direction has a thread. A client that sends everything before it reads would block: its
//! echoes fill the buffers on the way, and a server that cannot write stops reading.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use super::connection::Connection;
use super::{Error, Target, explain_lost_connection, explain_stdout_error, is_timeout};

/// The size of each direction's buffer, in bytes.
const BUFFER_SIZE: usize = 65_536;

/// Sends stdin to the server, half-closes at its end, and writes what comes back to stdout. The
/// timeout runs only while echoes are pending, so stdin may pause for any time.
///
/// # Errors
/// Returns an error if the server cannot be reached, closes early, or returns more or fewer bytes
/// than it received; or if stdin or stdout fails. If the reader of stdout has gone, that is
/// [`Error::AlreadyReported`].
pub fn run(target: &Target) -> Result<(), Error> {
    let (stream, address) = target.connect()?;
    stream
        .set_read_timeout(Some(target.timeout))
        .map_err(|error| explain_lost_connection(address, &error))?;
    let pipe = Arc::new(Pipe {
        address,
        timeout: target.timeout,
        connection: Connection::new(stream),
        sent: AtomicU64::new(0),
        stdin_result: OnceLock::new(),
    });
    let sender = Arc::clone(&pipe);
    // A read of stdin cannot be interrupted, so this thread may end only with the process.
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || sender.send_stdin())
        .map_err(|error| format!("cannot spawn a thread to read stdin: {error}"))?;
    pipe.receive_to_stdout()
}

/// What the threads of both directions share.
struct Pipe {
    address: SocketAddr,
    timeout: Duration,
    connection: Connection,
    /// Bytes, including those of the write in progress.
    sent: AtomicU64,
    /// How stdin ended. Unset while it is open, and if the connection ended first.
    stdin_result: OnceLock<Result<(), Error>>,
}

impl Pipe {
    /// Sends stdin until it ends, then half-closes. If the connection ends first, the thread that
    /// receives reports how.
    fn send_stdin(&self) {
        let mut connection = &self.connection;
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; BUFFER_SIZE];
        let result = loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    // Counted before the write, because the echo may arrive before it returns.
                    self.sent.fetch_add(n as u64, Relaxed);
                    if connection.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(format!("cannot read stdin: {error}").into()),
            }
        };
        // Set before the half-close, because the server answers that with FIN.
        self.stdin_result.get_or_init(|| result);
        connection.half_close();
    }

    /// Writes what comes back to stdout, until the server closes the connection or is out of time.
    fn receive_to_stdout(&self) -> Result<(), Error> {
        let mut connection = &self.connection;
        let mut stdout = io::stdout().lock();
        let mut buffer = vec![0; BUFFER_SIZE];
        let mut received = 0;
        loop {
            let sent_before = self.sent.load(Relaxed);
            match connection.read(&mut buffer) {
                Ok(0) => return self.check_totals(received),
                Ok(n) => {
                    let sent = self.sent.load(Relaxed);
                    let pending = usize::try_from(sent - received).unwrap_or(usize::MAX);
                    stdout
                        .write_all(&buffer[..n.min(pending)])
                        .and_then(|()| stdout.flush())
                        .map_err(|error| explain_stdout_error(&error))?;
                    received += n as u64;
                    if n > pending {
                        return Err(self.excess_bytes_error(sent, received));
                    }
                }
                Err(error) if is_timeout(&error) => {
                    let is_sending = self.sent.load(Relaxed) > sent_before;
                    if !is_sending && received < sent_before {
                        return Err(self.missing_bytes_error(sent_before, received));
                    }
                    // Everything came back. That the server keeps the connection open is no failure.
                    if !is_sending && self.stdin_result.get().is_some() {
                        return self.check_totals(received);
                    }
                }
                Err(error) => return Err(explain_lost_connection(self.address, &error).into()),
            }
        }
    }

    /// Returns whether stdin was sent and echoed completely, once no more bytes are expected.
    fn check_totals(&self, received: u64) -> Result<(), Error> {
        let sent = self.sent.load(Relaxed);
        let hint = match self.stdin_result.get() {
            Some(Err(stdin_error)) => return Err(stdin_error.clone()),
            Some(Ok(())) if received == sent => return Ok(()),
            Some(Ok(())) => "echo-client test shows which guarantee it breaks",
            None => "stdin had not ended",
        };
        Err(format!(
            "{} closed the connection after returning {received} of {sent} bytes; {hint}",
            self.address
        )
        .into())
    }

    fn missing_bytes_error(&self, sent: u64, received: u64) -> Error {
        format!(
            "{} returned {received} of {sent} bytes, then nothing for {:?}; --timeout waits longer",
            self.address, self.timeout
        )
        .into()
    }

    fn excess_bytes_error(&self, sent: u64, received: u64) -> Error {
        format!(
            "{} is not an echo server: it returned {received} bytes after receiving {sent}; check \
             --host and --port",
            self.address
        )
        .into()
    }
}
