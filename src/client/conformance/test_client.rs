//! A client that the checks use: it sends bytes, and returns a mismatch if something else comes back
//! than the check expects.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Acquire};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::mismatch::{MAX_QUOTED, Mismatch, Part, quote};
use crate::client::connection::Connection;
use crate::client::{connect, is_reset, is_timeout};

/// The server under test.
pub(super) struct TestTarget {
    pub(super) address: SocketAddr,
    /// How long a connection may be idle while bytes are expected, and how long the server has for
    /// a message or for a part of a longer one.
    pub(super) timeout: Duration,
}

impl TestTarget {
    pub(super) fn connect(&self) -> Result<TestClient, Mismatch> {
        let stream = connect(self.address, self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(TestClient {
            connection: Connection::new(stream),
            timeout: self.timeout,
        })
    }

    /// Sends `message` on a new connection and expects its echo.
    pub(super) fn exchange(&self, message: &[u8]) -> Result<(), Mismatch> {
        self.connect()?.exchange(message)
    }
}

/// A connection to the server under test.
pub(super) struct TestClient {
    pub(super) connection: Connection,
    timeout: Duration,
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
                format!("no progress for {:?}", self.timeout),
            )),
            _ => Ok(()),
        }
    }

    /// Sends `bytes` while another thread receives, and returns whether all of them were sent before
    /// `all_received` was set.
    ///
    /// A write that times out is retried, because only the receiving thread knows whether the server
    /// still makes progress.
    pub(super) fn send_while_receiving(&self, mut bytes: &[u8], all_received: &AtomicBool) -> bool {
        while !bytes.is_empty() && !all_received.load(Acquire) {
            match (&self.connection).write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) if is_timeout(&error) => {}
                Err(_) => return false,
            }
        }
        bytes.is_empty()
    }

    /// Sends without receiving until a write blocks for `patience` or `max_bytes` have been sent.
    pub(super) fn fill(&self, max_bytes: usize, patience: Duration) -> Result<(), Mismatch> {
        self.connection.stream().set_write_timeout(Some(patience))?;
        let mut sent = 0;
        while sent < max_bytes {
            match (&self.connection).write(&[b'x'; 16_384]) {
                Ok(n) => sent += n,
                Err(error) if is_timeout(&error) => break,
                Err(_) => {
                    // How the connection ended comes after the echoes.
                    let end = io::copy(&mut &self.connection, &mut io::sink()).map(|_| 0);
                    return Err(Mismatch::new("room to send", self.describe(&[], end)));
                }
            }
        }
        Ok(())
    }

    /// Expects `bytes` to arrive. What follows them is left for the next call.
    pub(super) fn expect(&self, bytes: &[u8]) -> Result<(), Mismatch> {
        self.expect_part(&Part {
            bytes,
            offset: 0,
            whole_len: bytes.len(),
        })
    }

    /// Expects a part of a longer message, which must arrive within the timeout.
    pub(super) fn expect_part(&self, part: &Part) -> Result<(), Mismatch> {
        let deadline = Instant::now() + self.timeout;
        let mut buffer = vec![0; part.bytes.len()];
        let mut len = 0;
        while len < buffer.len() {
            if len > 0 && Instant::now() >= deadline {
                let end = format!("not enough within {:?}", self.timeout);
                return Err(part.missing_bytes(&buffer[..len], &end));
            }
            match (&self.connection).read(&mut buffer[len..]) {
                Ok(n @ 1..) => len += n,
                end => {
                    let end = self.describe(&[], end);
                    return Err(part.missing_bytes(&buffer[..len], &end));
                }
            }
            if buffer[..len] != part.bytes[..len] {
                return Err(part.wrong_bytes(&buffer[..len]));
            }
        }
        Ok(())
    }

    /// Expects that neither bytes nor the end of the connection arrive for `duration`.
    pub(super) fn expect_silence(&self, duration: Duration) -> Result<(), Mismatch> {
        let stream = self.connection.stream();
        stream.set_read_timeout(Some(duration))?;
        let mut buffer = [0; MAX_QUOTED + 1];
        match (&self.connection).read(&mut buffer) {
            Err(error) if is_timeout(&error) => {}
            result => return Err(Mismatch::new("nothing", self.describe(&buffer, result))),
        }
        stream.set_read_timeout(Some(self.timeout))?;
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
        SockRef::from(self.connection.stream()).set_linger(Some(Duration::ZERO))?;
        Ok(())
    }

    /// Describes the result of a read into `buffer`.
    fn describe(&self, buffer: &[u8], result: io::Result<usize>) -> String {
        match result {
            Ok(0) => "FIN".to_owned(),
            Ok(n) => quote(&buffer[..n]),
            Err(error) if is_timeout(&error) => format!("nothing for {:?}", self.timeout),
            Err(error) if is_reset(&error) => "a reset".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}
