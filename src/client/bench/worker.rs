//! The thread of one connection: connects, waits for the start, runs the workload of its mode until
//! the run is over, and returns what it counted.

use std::net::TcpStream;
use std::sync::OnceLock;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use super::STACK_SIZE;
use super::failure::{End, no_thread};
use super::load::{Load, MAX_IN_FLIGHT};
use super::payload::Cursor;
use super::progress::Counter;
use super::session::Session;
use super::tally::Tally;
use crate::cli::BenchMode;
use crate::client::connection::Connection;
use crate::client::is_timeout;

/// The pause after a failed connection in connect mode. A refusal takes no time, and a server needs
/// some to restart.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

pub(super) struct Worker<'a> {
    pub(super) load: &'a Load,
    /// The position in the payload at which the next connection starts.
    pub(super) cursor: Cursor<'a>,
    pub(super) counter: &'a Counter,
    pub(super) tally: Tally,
}

impl Worker<'_> {
    /// Runs the workload and returns what was counted. Drops `ready` once the worker is connected or
    /// has failed.
    pub(super) fn run(mut self, stream: Option<TcpStream>, ready: Sender<()>) -> Tally {
        if let Err(End::Failed(reason)) = self.try_run(stream, ready) {
            self.tally.record_failure(reason);
        }
        self.tally
    }

    fn try_run(&mut self, stream: Option<TcpStream>, ready: Sender<()>) -> Result<(), End> {
        if self.load.mode == BenchMode::Connect {
            drop((stream, ready));
            self.load.wait_for_start();
            return self.run_connect();
        }
        let connection = self.load.open(stream)?;
        drop(ready);
        self.load.wait_for_start();
        if self.load.mode == BenchMode::Bulk {
            self.run_bulk(&connection)
        } else {
            self.run_rtt(&connection)
        }
    }

    /// Exchanges one message after the other.
    fn run_rtt(&mut self, connection: &Connection) -> Result<(), End> {
        let mut session = Session::new(self.load, connection, self.cursor);
        let mut started = Instant::now();
        loop {
            session.exchange()?;
            // One reading of the clock ends this message and starts the next.
            let now = Instant::now();
            self.record_message(started, now);
            if self.load.is_over(now) {
                return Ok(());
            }
            started = now;
        }
    }

    /// Connects, exchanges one message and closes, repeatedly.
    ///
    /// Closes with FIN, as ordinary clients do, even though the port then stays in `TIME_WAIT`. RST
    /// would be cheaper, but is not what servers have to handle.
    fn run_connect(&mut self) -> Result<(), End> {
        loop {
            let started = Instant::now();
            let result = self.connect_once();
            let now = Instant::now();
            match result {
                Ok(()) => self.record_message(started, now),
                Err(End::Failed(reason)) => {
                    self.tally.record_failure(reason);
                    thread::sleep(FAILURE_PAUSE);
                }
                Err(End::Stopped) => return Ok(()),
            }
            if self.load.is_over(now) {
                return Ok(());
            }
            self.cursor.advance(self.load.size);
        }
    }

    fn connect_once(&self) -> Result<(), End> {
        let connection = self.load.open(None)?;
        Session::new(self.load, &connection, self.cursor).exchange()
    }

    /// Records a message that was sent at `started` and came back at `now`.
    ///
    /// Counts it if it came back within the window. Records the latency even if it came back later,
    /// because the slowest messages would be missing otherwise.
    fn record_message(&mut self, started: Instant, now: Instant) {
        let window = self.load.window();
        self.counter.add(1);
        if now >= window.start {
            self.tally.record_latency(now - started);
        }
        if (window.start..window.end).contains(&now) {
            self.tally.messages += 1;
            self.tally.bytes += self.load.size as u64;
        }
    }

    /// Sends without pause in a second thread, and receives all echoes in this one.
    fn run_bulk(&mut self, connection: &Connection) -> Result<(), End> {
        let (load, cursor) = (self.load, self.cursor);
        let total = OnceLock::new();
        thread::scope(|scope| {
            thread::Builder::new()
                .stack_size(STACK_SIZE)
                .spawn_scoped(scope, || send_all(load, connection, cursor, &total))
                .map_err(|error| End::Failed(no_thread(&error)))?;
            let result = self.receive_all(Session::new(load, connection, cursor), &total);
            // Wakes the sender if it is blocked in a write.
            connection.close();
            result
        })
    }

    /// Receives until the `total` bytes that were sent have come back. A server that is slow to
    /// return the last of them is no failure: the run ends without them.
    fn receive_all(&mut self, mut session: Session, total: &OnceLock<u64>) -> Result<(), End> {
        let window = self.load.window();
        let mut received = 0;
        while total.get().is_none_or(|total| received < *total) {
            let bytes = session.receive(MAX_IN_FLIGHT)? as u64;
            let now = Instant::now();
            received += bytes;
            self.counter.add(bytes);
            if (window.start..window.end).contains(&now) {
                self.tally.bytes += bytes;
            }
            if self.load.is_stopped() || self.load.is_overdue(now) {
                break;
            }
        }
        Ok(())
    }
}

/// Sends until the run is over, then sets `total` to the number of bytes sent. If the connection
/// ends first, the receiver reports how.
fn send_all(load: &Load, connection: &Connection, mut cursor: Cursor, total: &OnceLock<u64>) {
    let mut sent = 0;
    while !load.is_over(Instant::now()) {
        match cursor.send(connection, load.size) {
            Ok(bytes) => sent += bytes as u64,
            // Only the receiver knows whether the server still makes progress.
            Err(error) if is_timeout(&error) => {}
            Err(_) => return,
        }
    }
    total.get_or_init(|| sent);
}
