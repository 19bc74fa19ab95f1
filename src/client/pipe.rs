//! A pipe through the server: stdin goes out, what comes back goes to stdout, both at once.
//!
//! A thread for each direction: a client that sends all before it reads is stuck as soon as its
//! echoes fill every buffer on the way, since a server that cannot write does not read.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use super::connection::Connection;
use super::{Error, Target, explain_lost_connection, explain_stdout_error, is_timeout};

/// The buffer of each direction, in bytes: all that a stream of any length takes here.
const BUFFER_SIZE: usize = 65_536;

/// Sends stdin, half-closes at its end, writes what comes back to stdout. A stdin that pauses may
/// do so for ever; the timeout runs while the server owes bytes and none moves, in or out.
///
/// # Errors
/// The server cannot be reached, has left, or has sent back more or fewer bytes than it got; or
/// stdin or stdout failed. A stdout that nobody reads any more is [`Error::AlreadyReported`].
pub fn run(target: &Target) -> Result<(), Error> {
    let (stream, address) = target.connect()?;
    let broke = |error| explain_lost_connection(address, &error);
    stream
        .set_read_timeout(Some(target.timeout))
        .map_err(broke)?;
    let connection = Arc::new(Connection::new(stream));
    let sending = Sending::start(Arc::clone(&connection))?;
    Pipe {
        connection,
        address,
        timeout: target.timeout,
        sending,
        received: 0,
    }
    .receive()
}

/// The direction from stdin to the server, which has a thread of its own.
#[derive(Default)]
struct Sending {
    /// Bytes, including those of the write in progress.
    sent: AtomicU64,
    /// How stdin ended, once it has and the connection has not.
    outcome: OnceLock<Result<(), Error>>,
}

impl Sending {
    fn start(connection: Arc<Connection>) -> Result<Arc<Self>, Error> {
        let sending = Arc::new(Self::default());
        let this = Arc::clone(&sending);
        let thread = thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || {
                if let Some(outcome) = this.send(&connection) {
                    // Before the half-close, so that it is known when the server answers that with FIN.
                    this.outcome.get_or_init(|| outcome);
                    connection.half_close();
                }
            });
        thread.map_err(|error| format!("the system gives no thread to read stdin: {error}"))?;
        Ok(sending)
    }

    /// Sends stdin and returns how it ended, or `None` if the connection ended before.
    fn send(&self, mut connection: &Connection) -> Option<Result<(), Error>> {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; BUFFER_SIZE];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return Some(Ok(())),
                Ok(n) => {
                    // Before the write: bytes must be counted before they can come back.
                    self.sent.fetch_add(n as u64, Relaxed);
                    // The thread that reads the connection reports how it ended.
                    connection.write_all(&buffer[..n]).ok()?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(format!("cannot read stdin: {error}").into())),
            }
        }
    }
}

/// The whole, seen from the direction that decides when it ends: from the server to stdout.
struct Pipe {
    connection: Arc<Connection>,
    address: SocketAddr,
    timeout: Duration,
    sending: Arc<Sending>,
    /// Bytes.
    received: u64,
}

impl Pipe {
    fn receive(mut self) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        let mut buffer = vec![0; BUFFER_SIZE];
        loop {
            let sent_before = self.sending.sent.load(Relaxed);
            match self.connection.as_ref().read(&mut buffer) {
                Ok(0) => return self.judge_end(),
                Ok(n) => {
                    let sent = self.sending.sent.load(Relaxed);
                    // More bytes than were sent cannot be an echo.
                    let echoed = usize::try_from(sent - self.received).map_or(n, |max| max.min(n));
                    let written = stdout.write_all(&buffer[..echoed]);
                    let written = written.and_then(|()| stdout.flush());
                    written.map_err(|error| explain_stdout_error(&error))?;
                    self.received += n as u64;
                    if echoed < n {
                        return Err(self.explain_excess(sent));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => {
                    let moved = self.sending.sent.load(Relaxed) > sent_before;
                    if !moved && sent_before > self.received {
                        return Err(self.explain_debt(sent_before));
                    }
                    // All came back, but FIN did not: that is for `echo-client test` to mind.
                    if !moved && self.sending.outcome.get().is_some() {
                        return self.judge_end();
                    }
                }
                Err(error) => return Err(explain_lost_connection(self.address, &error).into()),
            }
        }
    }

    /// Nothing more will come, or need come: was that all?
    fn judge_end(&self) -> Result<(), Error> {
        let Self {
            address,
            received,
            sending,
            ..
        } = self;
        let sent = sending.sent.load(Relaxed);
        match sending.outcome.get() {
            Some(Err(failure)) => Err(failure.clone()),
            Some(Ok(())) if sent == *received => Ok(()),
            Some(Ok(())) => Err(format!(
                "{address} got {sent} bytes and sent {received} back; echo-client test shows where \
                 it fails"
            )
            .into()),
            None => Err(format!(
                "{address} closed the connection before the end of stdin, when it had sent back \
                 {received} of {sent} bytes"
            )
            .into()),
        }
    }

    fn explain_excess(&self, sent: u64) -> Error {
        let Self {
            address, received, ..
        } = self;
        format!(
            "{address} is not an echo server: it sent {received} bytes when it had been sent \
             {sent}; check --host and --port"
        )
        .into()
    }

    fn explain_debt(&self, sent: u64) -> Error {
        let Self {
            address,
            timeout,
            received,
            ..
        } = self;
        let owed = sent - received;
        format!(
            "{address} owes {owed} of {sent} bytes, and none has come for {timeout:?}; --timeout waits \
             longer"
        )
        .into()
    }
}
