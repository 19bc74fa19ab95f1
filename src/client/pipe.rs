//! Pipe mode: copies stdin to the server and the echoes to stdout, both at the same time.
//!
//! Each direction has a thread. A client that sends everything before it reads would block: its
//! echoes fill the buffers on the way, and a server that cannot write stops reading.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use super::connection::Connection;
use super::{Error, Target, explain_lost_connection, explain_stdout_error, is_timeout, spawn};

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
    let pipe = Arc::new(Pipe {
        connection: target.connect()?,
        sent: AtomicU64::new(0),
        stdin_result: OnceLock::new(),
    });
    let sender = Arc::clone(&pipe);
    spawn(move || sender.send_stdin())?;
    pipe.receive_to_stdout()
}

/// What the threads of both directions share.
struct Pipe {
    connection: Connection,
    /// Bytes, including those of the write in progress.
    sent: AtomicU64,
    /// How stdin ended. Unset while it is open, and if the connection ended first.
    stdin_result: OnceLock<Result<(), String>>,
}

impl Pipe {
    /// Sends stdin until it ends, then half-closes. If the connection ends first, the thread that
    /// receives reports how.
    fn send_stdin(&self) {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; BUFFER_SIZE];
        let result = loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    // Counted before the write, because the echo may arrive before it returns.
                    self.sent.fetch_add(n as u64, Relaxed);
                    if self.connection.send_all(&buffer[..n], || {}).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(format!("cannot read stdin: {error}")),
            }
        };
        // Set before the half-close, because the server answers that with FIN.
        let _ = self.stdin_result.set(result);
        self.connection.half_close();
    }

    /// Writes what comes back to stdout, until the server closes the connection or is out of time.
    fn receive_to_stdout(&self) -> Result<(), Error> {
        let mut connection = &self.connection;
        let (address, timeout) = (connection.address, connection.timeout);
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
                        return Err(format!(
                            "{address} is not an echo server: it returned {received} bytes after \
                             receiving {sent}; check --host and --port"
                        )
                        .into());
                    }
                }
                Err(error) if is_timeout(&error) => {
                    if received < sent_before {
                        return Err(format!(
                            "{address} returned {received} of {sent_before} bytes, then nothing \
                             for {timeout:?}; --timeout waits longer"
                        )
                        .into());
                    }
                    // Everything came back. That the server keeps the connection open is no failure.
                    if self.stdin_result.get().is_some() && received == self.sent.load(Relaxed) {
                        return self.check_totals(received);
                    }
                }
                Err(error) => return Err(explain_lost_connection(address, &error).into()),
            }
        }
    }

    /// Returns the result of the run, once no more bytes are expected.
    fn check_totals(&self, received: u64) -> Result<(), Error> {
        let sent = self.sent.load(Relaxed);
        let hint = match self.stdin_result.get() {
            Some(Err(stdin_error)) => return Err(stdin_error.clone().into()),
            Some(Ok(())) if received == sent => return Ok(()),
            Some(Ok(())) => "; its log may say why, or echo-client test which guarantee it breaks",
            None => ", before stdin was sent completely; its log may say why",
        };
        let address = self.connection.address;
        Err(format!(
            "{address} closed the connection after returning {received} of {sent} bytes{hint}"
        )
        .into())
    }
}
