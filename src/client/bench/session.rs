//! One connection: sends messages, and receives and verifies their echoes.

use std::io::Read;
use std::time::{Duration, Instant};

use super::failure::{CLOSED, End, TIMEOUT, WRONG_BYTES};
use super::load::{Load, MAX_IN_FLIGHT};
use super::payload::Cursor;
use crate::cli::BenchMode;
use crate::client::connection::Connection;
use crate::client::is_timeout;

pub(super) struct Session<'a> {
    load: &'a Load,
    connection: &'a Connection,
    outgoing: Cursor<'a>,
    incoming: Cursor<'a>,
    buffer: Vec<u8>,
    /// How long nothing has arrived. The sum of read timeouts, which saves reading the clock.
    idle: Duration,
}

impl<'a> Session<'a> {
    /// Returns a session that sends and expects the bytes at `cursor`.
    pub(super) fn new(load: &'a Load, connection: &'a Connection, cursor: Cursor<'a>) -> Self {
        let buffer_size = match load.mode {
            BenchMode::Bulk => MAX_IN_FLIGHT,
            BenchMode::Rtt | BenchMode::Connect => load.size.min(MAX_IN_FLIGHT),
        };
        Self {
            load,
            connection,
            outgoing: cursor,
            incoming: cursor,
            buffer: vec![0; buffer_size],
            idle: Duration::ZERO,
        }
    }

    /// Sends one message and receives its echo. A message longer than [`MAX_IN_FLIGHT`] is received
    /// while it is sent.
    pub(super) fn exchange(&mut self) -> Result<(), End> {
        let size = self.load.size;
        let (mut sent, mut received) = (0, 0);
        while received < size {
            let send_until = size.min(received + MAX_IN_FLIGHT);
            while sent < send_until {
                match self.outgoing.send(self.connection, send_until - sent) {
                    Ok(n) => sent += n,
                    Err(error) if is_timeout(&error) => return Err(error.into()),
                    // The next read returns how the connection ended.
                    Err(_) => break,
                }
            }
            received += self.receive(size - received)?;
            if received < size {
                self.check_time()?;
            }
        }
        Ok(())
    }

    /// Returns an error if the run does not wait for the rest of a message.
    fn check_time(&self) -> Result<(), End> {
        if self.load.is_stopped() {
            Err(End::Stopped)
        } else if self.load.is_overdue(Instant::now()) {
            Err(End::failed(TIMEOUT))
        } else {
            Ok(())
        }
    }

    /// Receives up to `max_len` bytes and verifies them. Returns 0 after a read timeout, so that the
    /// caller can check whether the run is over.
    pub(super) fn receive(&mut self, max_len: usize) -> Result<usize, End> {
        let len = max_len.min(self.buffer.len());
        let mut connection = self.connection;
        match connection.read(&mut self.buffer[..len]) {
            Ok(0) => Err(End::failed(CLOSED)),
            Ok(n) if self.incoming.verify(&self.buffer[..n]) => {
                self.idle = Duration::ZERO;
                Ok(n)
            }
            Ok(_) => Err(End::failed(WRONG_BYTES)),
            Err(error) if is_timeout(&error) => {
                self.idle += self.load.read_timeout();
                if self.idle >= self.load.timeout {
                    return Err(End::failed(TIMEOUT));
                }
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }
}
