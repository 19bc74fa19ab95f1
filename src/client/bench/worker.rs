//! The thread of one connection: connects, waits for the start, sends messages and verifies their
//! echoes until the run is over, and returns what it counted.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::STACK_SIZE;
use super::tally::Tally;
use super::workload::{Counter, MAX_IN_FLIGHT, Workload};
use crate::cli::BenchMode;
use crate::client::connection::Connection;
use crate::client::{is_reset, is_timeout};

/// How long a read may block before the thread checks whether the run is over.
const MAX_READ_TIMEOUT: Duration = Duration::from_millis(50);

/// The pause after a failed connection in connect mode. A refusal takes no time, and a server needs
/// some to restart.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

pub(super) struct Worker<'a> {
    workload: &'a Workload<'a>,
    counter: &'a Counter,
    /// Of the connection, from 0.
    number: usize,
    /// Bytes of all messages so far.
    sent: usize,
    received: usize,
    buffer: Vec<u8>,
    /// The time since bytes last arrived: a sum of read timeouts, so that no clock is read.
    idle: Duration,
    tally: Tally,
}

impl<'a> Worker<'a> {
    pub(super) fn new(workload: &'a Workload, number: usize) -> Self {
        let buffer_size = match workload.options.mode {
            BenchMode::Bulk => MAX_IN_FLIGHT,
            BenchMode::Rtt | BenchMode::Connect => workload.options.size.min(MAX_IN_FLIGHT),
        };
        Self {
            workload,
            counter: &workload.counters[number],
            number,
            sent: 0,
            received: 0,
            buffer: vec![0; buffer_size],
            idle: Duration::ZERO,
            tally: Tally::default(),
        }
    }

    /// Runs the workload, on `connection` or on a new one, and returns what was counted. Drops
    /// `ready` once the worker is connected or has failed.
    pub(super) fn run(mut self, connection: Option<Connection>, ready: Sender<()>) -> Tally {
        if let Err(error) = self.try_run(connection, ready) {
            self.tally.record_failure(&reason(&error));
        }
        self.tally
    }

    fn try_run(&mut self, connection: Option<Connection>, ready: Sender<()>) -> io::Result<()> {
        if self.workload.options.mode == BenchMode::Connect {
            drop((connection, ready));
            self.run_connect();
            return Ok(());
        }
        let connection = self.open(connection)?;
        drop(ready);
        if self.workload.options.mode == BenchMode::Bulk {
            self.run_bulk(&connection)
        } else {
            self.run_rtt(&connection)
        }
    }

    /// Prepares `connection`, or a new one, so that reads return often enough to notice the end of the
    /// run.
    fn open(&self, connection: Option<Connection>) -> io::Result<Connection> {
        let connection = match connection {
            Some(connection) => connection,
            None => Connection::open(self.workload.address, self.workload.timeout)?,
        };
        connection
            .stream
            .set_read_timeout(Some(self.read_timeout()))?;
        Ok(connection)
    }

    fn read_timeout(&self) -> Duration {
        MAX_READ_TIMEOUT.min(self.workload.timeout)
    }

    /// Exchanges one message after the other.
    fn run_rtt(&mut self, connection: &Connection) -> io::Result<()> {
        self.workload.window();
        let mut started = Instant::now();
        while self.exchange(connection)? {
            // One reading of the clock ends this message and starts the next.
            let now = Instant::now();
            self.record_message(started, now);
            if self.workload.sending_is_over(now) {
                break;
            }
            started = now;
        }
        Ok(())
    }

    /// Connects, exchanges one message and closes, repeatedly.
    ///
    /// Closes with FIN, as ordinary clients do, even though the port then stays in `TIME_WAIT`. RST
    /// would be cheaper, but is not what servers have to handle.
    fn run_connect(&mut self) {
        self.workload.window();
        loop {
            let started = Instant::now();
            let result = self.open(None).and_then(|connection| {
                self.idle = Duration::ZERO;
                self.exchange(&connection)
            });
            let now = Instant::now();
            match result {
                Ok(true) => self.record_message(started, now),
                Ok(false) => return,
                Err(error) => {
                    self.tally.record_failure(&reason(&error));
                    // The next connection does not get the echoes of this one.
                    self.received = self.sent;
                    thread::sleep(FAILURE_PAUSE);
                }
            }
            if self.workload.sending_is_over(now) {
                return;
            }
        }
    }

    /// Sends one message and receives its echo. A message longer than [`MAX_IN_FLIGHT`] is received
    /// while it is sent. Returns false if the run was stopped before the echo was complete.
    fn exchange(&mut self, mut connection: &Connection) -> io::Result<bool> {
        let end = self.sent + self.workload.options.size;
        while self.received < end {
            let limit = end.min(self.received + MAX_IN_FLIGHT);
            while self.sent < limit {
                let bytes = self
                    .workload
                    .bytes(self.number, self.sent, limit - self.sent);
                match connection.write(bytes) {
                    Ok(n) => self.sent += n,
                    Err(error) if is_timeout(&error) => return Err(error),
                    // The next read returns how the connection ended.
                    Err(_) => break,
                }
            }
            self.receive(connection, end - self.received)?;
            if self.received < end && self.workload.is_stopped() {
                return Ok(false);
            }
            if self.received < end && self.workload.deadline_has_passed(Instant::now()) {
                return Err(ErrorKind::TimedOut.into());
            }
        }
        Ok(true)
    }

    /// Receives up to `max_len` bytes and verifies them. Returns 0 after a read timeout, so that the
    /// caller can check whether the run is over.
    fn receive(&mut self, mut connection: &Connection, max_len: usize) -> io::Result<usize> {
        let len = max_len.min(self.buffer.len());
        match connection.read(&mut self.buffer[..len]) {
            Ok(0) => Err(io::Error::other("closed: the server closed the connection")),
            Ok(n) if self.buffer[..n] == *self.workload.bytes(self.number, self.received, n) => {
                self.idle = Duration::ZERO;
                self.received += n;
                Ok(n)
            }
            Ok(_) => Err(io::Error::other(
                "wrong bytes: the echo differs from what was sent",
            )),
            Err(error) if is_timeout(&error) => {
                self.idle += self.read_timeout();
                if self.idle < self.workload.timeout {
                    Ok(0)
                } else {
                    Err(error)
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Records a message that was sent at `started` and came back at `now`.
    ///
    /// Counts it if it came back within the window. Records the latency even if it came back later,
    /// because the slowest messages would be missing otherwise.
    fn record_message(&mut self, started: Instant, now: Instant) {
        let window = self.workload.window();
        self.counter.0.fetch_add(1, Relaxed);
        if now >= window.start {
            self.tally.record_latency(now - started);
        }
        if window.contains(&now) {
            self.tally.messages += 1;
            self.tally.bytes += self.workload.options.size as u64;
        }
    }

    /// Sends without pause in a second thread, and receives all echoes in this one.
    fn run_bulk(&mut self, connection: &Connection) -> io::Result<()> {
        let (workload, number) = (self.workload, self.number);
        let total = OnceLock::new();
        thread::scope(|scope| {
            thread::Builder::new()
                .stack_size(STACK_SIZE)
                .spawn_scoped(scope, || {
                    send_until_over(workload, connection, number, &total);
                })
                .map_err(|error| io::Error::other(no_thread(&error)))?;
            let result = self.receive_all(connection, &total);
            // Wakes the sender if it is blocked in a write.
            connection.close();
            result
        })
    }

    /// Receives until the `total` bytes that were sent have come back. A server that is slow to
    /// return the last of them is no failure: the run ends without them.
    fn receive_all(&mut self, connection: &Connection, total: &OnceLock<usize>) -> io::Result<()> {
        let window = self.workload.window();
        while total.get().is_none_or(|total| self.received < *total) {
            let bytes = self.receive(connection, MAX_IN_FLIGHT)? as u64;
            let now = Instant::now();
            self.counter.0.fetch_add(bytes, Relaxed);
            if window.contains(&now) {
                self.tally.bytes += bytes;
            }
            if self.workload.is_stopped() || self.workload.deadline_has_passed(now) {
                break;
            }
        }
        Ok(())
    }
}

/// Sends until the run is over, then sets `total` to the number of bytes sent. If the connection
/// ends first, the receiver reports how.
fn send_until_over(
    workload: &Workload,
    mut connection: &Connection,
    number: usize,
    total: &OnceLock<usize>,
) {
    let mut sent = 0;
    while !workload.sending_is_over(Instant::now()) {
        match connection.write(workload.bytes(number, sent, workload.options.size)) {
            Ok(bytes) => sent += bytes,
            // Only the receiver knows whether the server still makes progress.
            Err(error) if is_timeout(&error) => {}
            Err(_) => return,
        }
    }
    let _ = total.set(sent);
}

/// Returns why a connection failed, in the words of the report.
fn reason(error: &io::Error) -> String {
    let reason = match error.kind() {
        ErrorKind::ConnectionRefused => "refused: no server accepts connections there",
        ErrorKind::AddrNotAvailable => {
            "no free port: a closed connection keeps its port for about a minute (TIME_WAIT); use \
             fewer connections, or allow more ports (on Linux net.ipv4.ip_local_port_range)"
        }
        _ if is_reset(error) => "reset: the server reset the connection; its log may say why",
        _ if is_timeout(error) => "timeout: no echo in time; --timeout waits longer",
        _ if Errno::from_io_error(error) == Some(Errno::MFILE) => {
            "no free file: each connection takes one; raise the limit (ulimit -n), or lower \
             --connections"
        }
        // One of ours, which says what failed.
        _ if error.get_ref().is_some() => return error.to_string(),
        _ => return format!("failed: {error}"),
    };
    reason.to_owned()
}

/// Returns the reason of a connection for which no thread could be spawned.
pub(super) fn no_thread(error: &io::Error) -> String {
    format!("no thread: the system refused one ({error}); lower --connections")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_reason() {
        for (kind, expected) in [
            (ErrorKind::ConnectionRefused, "refused: "),
            (ErrorKind::AddrNotAvailable, "no free port: "),
            (ErrorKind::ConnectionReset, "reset: "),
            (ErrorKind::ConnectionAborted, "reset: "),
            (ErrorKind::TimedOut, "timeout: "),
            (ErrorKind::WouldBlock, "timeout: "),
            (ErrorKind::NetworkDown, "failed: network down"),
        ] {
            assert!(reason(&kind.into()).starts_with(expected), "{kind}");
        }
        assert!(reason(&Errno::MFILE.into()).starts_with("no free file: "));
        assert_eq!(reason(&io::Error::other("closed: why")), "closed: why");
    }
}
