//! What the checks do with a connection: send bytes, expect bytes, and describe what else came back.

use std::fmt::{self, Display};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::checks::CHUNK;
use crate::client::connection::Connection;
use crate::client::{is_reset, is_timeout};

/// The maximum length of a quotation, in bytes.
const MAX_QUOTED: usize = 32;

/// A guarantee that does not hold.
#[derive(Debug)]
pub(super) struct Mismatch {
    pub(super) expected: String,
    pub(super) got: String,
}

impl Mismatch {
    pub(super) fn new(expected: impl Display, got: impl Display) -> Self {
        Self {
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}; got {}", self.expected, self.got)
    }
}

impl From<io::Error> for Mismatch {
    fn from(error: io::Error) -> Self {
        if is_reset(&error) {
            Self::new("a connection", "a reset")
        } else {
            Self::new("a connection", error)
        }
    }
}

/// Describes that `received` differs from the bytes of `message` at `start`.
fn wrong_bytes(message: &[u8], start: usize, received: &[u8]) -> Mismatch {
    if message.len() <= MAX_QUOTED {
        return Mismatch::new(quote(message), quote(received));
    }
    let pairs = received.iter().zip(&message[start..]);
    let same = pairs.take_while(|(got, expected)| got == expected).count();
    let offset = start + same;
    let expected = format!("0x{:02x} at offset {offset}", message[offset]);
    Mismatch::new(expected, format!("0x{:02x}", received[same]))
}

/// Describes that of `message`, at `start`, only `received` has come, and then `end`.
fn missing_bytes(message: &[u8], start: usize, received: &[u8], end: &str) -> Mismatch {
    if message.len() > MAX_QUOTED {
        let received_len = start + received.len();
        let got = format!("{received_len} bytes, then {end}");
        Mismatch::new(format!("{} bytes", message.len()), got)
    } else if received.is_empty() {
        Mismatch::new(quote(message), end)
    } else {
        let got = format!("{}, then {end}", quote(received));
        Mismatch::new(quote(message), got)
    }
}

/// Quotes `bytes` with escapes, and truncates them to [`MAX_QUOTED`].
fn quote(bytes: &[u8]) -> String {
    let shown = bytes[..bytes.len().min(MAX_QUOTED)].escape_ascii();
    let ellipsis = if bytes.len() > MAX_QUOTED { "…" } else { "" };
    format!("\"{shown}\"{ellipsis}")
}

impl Connection {
    /// Opens another connection to the same server.
    pub(super) fn another(&self) -> io::Result<Self> {
        Self::open(self.address, self.timeout)
    }

    /// Sends `message` and expects its echo.
    pub(super) fn exchange(&self, message: &[u8]) -> Result<(), Mismatch> {
        self.send(message)?;
        self.expect(message)
    }

    /// Sends `bytes`. If the connection ends first, the next read returns how.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), Mismatch> {
        let mut connection = self;
        match connection.write_all(bytes) {
            Err(error) if is_timeout(&error) => Err(Mismatch::new(
                "the server to receive",
                format!("no progress for {:?}", self.timeout),
            )),
            _ => Ok(()),
        }
    }

    /// Sends `len` bytes without receiving, or fewer if a write blocks for `write_timeout`.
    pub(super) fn fill(&self, len: usize, write_timeout: Duration) -> Result<(), Mismatch> {
        self.stream.set_write_timeout(Some(write_timeout))?;
        let mut connection = self;
        match connection.write_all(&vec![b'x'; len]) {
            Err(error) if !is_timeout(&error) => {
                // Reads past the echoes to learn how the connection ended. 0 stands for FIN.
                let end = io::copy(&mut connection, &mut io::sink()).map(|_| 0);
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
        let mut connection = self;
        let deadline = Instant::now() + self.timeout;
        let start = chunk.start;
        let mut buffer = vec![0; chunk.len()];
        let mut len = 0;
        while len < buffer.len() {
            let received = match connection.read(&mut buffer[len..]) {
                Ok(received @ 1..) => received,
                end => {
                    let end = self.describe(&[], end);
                    return Err(missing_bytes(message, start, &buffer[..len], &end));
                }
            };
            if Instant::now() >= deadline {
                let end = format!("not enough within {:?}", self.timeout);
                return Err(missing_bytes(message, start, &buffer[..len], &end));
            }
            len += received;
            if buffer[..len] != message[start..start + len] {
                return Err(wrong_bytes(message, start, &buffer[..len]));
            }
        }
        Ok(())
    }

    /// Expects that neither bytes nor the end of the connection arrive for `duration`.
    pub(super) fn expect_silence(&self, duration: Duration) -> Result<(), Mismatch> {
        self.stream.set_read_timeout(Some(duration))?;
        let mut buffer = [0; MAX_QUOTED + 1];
        let mut connection = self;
        match connection.read(&mut buffer) {
            Err(error) if is_timeout(&error) => {}
            result => return Err(Mismatch::new("nothing", self.describe(&buffer, result))),
        }
        self.stream.set_read_timeout(Some(self.timeout))?;
        Ok(())
    }

    /// Expects FIN, and no byte before it.
    pub(super) fn expect_fin(&self) -> Result<(), Mismatch> {
        let mut buffer = [0; MAX_QUOTED + 1];
        let mut connection = self;
        match connection.read(&mut buffer) {
            Ok(0) => Ok(()),
            result => Err(Mismatch::new("FIN", self.describe(&buffer, result))),
        }
    }

    /// Closes the connection with RST.
    pub(super) fn reset(self) -> Result<(), Mismatch> {
        // Closing with a linger time of zero sends RST (RFC 1122, 4.2.2.13; socket(7)).
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?;
        Ok(())
    }

    /// Describes the result of a read into `buffer`.
    fn describe(&self, buffer: &[u8], result: io::Result<usize>) -> String {
        match result {
            Ok(0) => "FIN".to_owned(),
            Ok(n) => quote(&buffer[..n]),
            Err(error) if is_timeout(&error) => {
                format!("nothing for {:?}", self.timeout)
            }
            Err(error) if is_reset(&error) => "a reset".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_quotations_are_truncated() {
        let longest = "x".repeat(MAX_QUOTED);
        let too_long = "x".repeat(MAX_QUOTED + 1);
        assert_eq!(quote(b"a\r\n"), "\"a\\r\\n\"");
        assert_eq!(quote(longest.as_bytes()), format!("\"{longest}\""));
        assert_eq!(quote(too_long.as_bytes()), format!("\"{longest}\"…"));
    }
}
