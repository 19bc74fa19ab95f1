//! A client that the checks use: it sends bytes, and returns a mismatch if something else comes back
//! than the check expects.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::checks::CHUNK;
use super::mismatch::{MAX_QUOTED, Mismatch, missing_bytes, quote, wrong_bytes};
use crate::client::connection::Connection;
use crate::client::{is_reset, is_timeout};

/// The server under test.
pub(super) struct TestTarget {
    pub(super) address: SocketAddr,
    /// How long a connection may be idle while bytes are expected, and how long the server has for
    /// a message or for a part of a longer one.
    pub(super) timeout: Duration,
}

impl TestTarget {
    pub(super) fn connect(&self) -> Result<TestClient, Mismatch> {
        let connection = Connection::open(self.address, self.timeout)?;
        Ok(TestClient { connection })
    }

    /// Sends `message` on a new connection and expects its echo.
    pub(super) fn exchange(&self, message: &[u8]) -> Result<(), Mismatch> {
        self.connect()?.exchange(message)
    }
}

/// A connection to the server under test.
pub(super) struct TestClient {
    pub(super) connection: Connection,
}

impl TestClient {
    /// Sends `message` and expects its echo.
    pub(super) fn exchange(&self, message: &[u8]) -> Result<(), Mismatch> {
        self.send(message)?;
        self.expect(message)
    }

    /// Sends `bytes`. If the connection ends first, the next read returns how.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), Mismatch> {
        match (&self.connection).write_all(bytes) {
            Err(error) if is_timeout(&error) => Err(Mismatch::new(
                "the server to receive",
                format!("no progress for {:?}", self.connection.timeout),
            )),
            _ => Ok(()),
        }
    }

    /// Sends `len` bytes without receiving, or fewer if a write blocks for `write_timeout`.
    pub(super) fn fill(&self, len: usize, write_timeout: Duration) -> Result<(), Mismatch> {
        self.connection
            .stream
            .set_write_timeout(Some(write_timeout))?;
        match (&self.connection).write_all(&vec![b'x'; len]) {
            Err(error) if !is_timeout(&error) => {
                // How the connection ended comes after the echoes. 0 stands for FIN, as in a read.
                let end = io::copy(&mut &self.connection, &mut io::sink()).map(|_| 0);
                Err(Mismatch::new("room to send", self.describe(&[], end)))
            }
            _ => Ok(()),
        }
    }

    /// Expects `message` to arrive. What follows it is left for the next call.
    pub(super) fn expect(&self, message: &[u8]) -> Result<(), Mismatch> {
        self.expect_part(message, 0..message.len())
    }

    /// Expects a part of `message`. Each chunk of it must arrive within the timeout.
    pub(super) fn expect_part(&self, message: &[u8], part: Range<usize>) -> Result<(), Mismatch> {
        for start in part.clone().step_by(CHUNK) {
            self.expect_chunk(message, start..part.end.min(start + CHUNK))?;
        }
        Ok(())
    }

    fn expect_chunk(&self, message: &[u8], chunk: Range<usize>) -> Result<(), Mismatch> {
        let deadline = Instant::now() + self.connection.timeout;
        let start = chunk.start;
        let mut buffer = vec![0; chunk.len()];
        let mut len = 0;
        while len < buffer.len() {
            if len > 0 && Instant::now() >= deadline {
                let end = format!("not enough within {:?}", self.connection.timeout);
                return Err(missing_bytes(message, start, &buffer[..len], &end));
            }
            match (&self.connection).read(&mut buffer[len..]) {
                Ok(n @ 1..) => len += n,
                end => {
                    let end = self.describe(&[], end);
                    return Err(missing_bytes(message, start, &buffer[..len], &end));
                }
            }
            if buffer[..len] != message[start..start + len] {
                return Err(wrong_bytes(message, start, &buffer[..len]));
            }
        }
        Ok(())
    }

    /// Expects that neither bytes nor the end of the connection arrive for `duration`.
    pub(super) fn expect_silence(&self, duration: Duration) -> Result<(), Mismatch> {
        let stream = &self.connection.stream;
        stream.set_read_timeout(Some(duration))?;
        let mut buffer = [0; MAX_QUOTED + 1];
        match (&self.connection).read(&mut buffer) {
            Err(error) if is_timeout(&error) => {}
            result => return Err(Mismatch::new("nothing", self.describe(&buffer, result))),
        }
        stream.set_read_timeout(Some(self.connection.timeout))?;
        Ok(())
    }

    /// Expects FIN, and no byte before it.
    pub(super) fn expect_fin(&self) -> Result<(), Mismatch> {
        let mut buffer = [0; MAX_QUOTED + 1];
        match (&self.connection).read(&mut buffer) {
            Ok(0) => Ok(()),
            result => Err(Mismatch::new("FIN", self.describe(&buffer, result))),
        }
    }

    /// Closes the connection with RST.
    pub(super) fn reset(self) -> Result<(), Mismatch> {
        // Closing with a linger time of zero sends RST (RFC 1122, 4.2.2.13; socket(7)).
        SockRef::from(&self.connection.stream).set_linger(Some(Duration::ZERO))?;
        Ok(())
    }

    /// Describes the result of a read into `buffer`.
    fn describe(&self, buffer: &[u8], result: io::Result<usize>) -> String {
        match result {
            Ok(0) => "FIN".to_owned(),
            Ok(n) => quote(&buffer[..n]),
            Err(error) if is_timeout(&error) => {
                format!("nothing for {:?}", self.connection.timeout)
            }
            Err(error) if is_reset(&error) => "a reset".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}
