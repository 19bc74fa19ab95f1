//! A connection to the server under test, and how a check says what it expected of it and what
//! came instead.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Acquire};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use socket2::SockRef;

use crate::client::connection::Connection;
use crate::client::{connect, is_reset, is_timeout};

/// The most that a fault shows of what was expected or came, in bytes.
const QUOTED: usize = 32;

/// The server under test.
pub(super) struct Subject {
    pub(super) address: SocketAddr,
    /// How long the server may let nothing move, and how long it has for a message or for a part
    /// of a longer one.
    pub(super) timeout: Duration,
    /// For the person who waits while a check takes long.
    pub(super) progress: ProgressBar,
}

impl Subject {
    pub(super) fn connect(&self) -> Result<Peer, Fault> {
        let connected = connect(self.address, self.timeout).and_then(|stream| {
            stream.set_read_timeout(Some(self.timeout))?;
            stream.set_write_timeout(Some(self.timeout))?;
            Ok(Peer {
                connection: Connection::new(stream),
                timeout: self.timeout,
            })
        });
        connected.map_err(|error| Fault::new("a connection", error))
    }
}

/// A property that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) expected: String,
    pub(super) got: String,
}

impl Fault {
    pub(super) fn new(expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self {
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }
}

/// What came instead of bytes.
#[derive(Debug)]
enum End {
    Fin,
    Reset,
    Silence(Duration),
    /// Some bytes came, but not all of a part.
    TooSlow(Duration),
    Failed(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        if is_reset(&error) {
            Self::Reset
        } else {
            Self::Failed(error)
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fin => f.write_str("FIN"),
            Self::Reset => f.write_str("a reset"),
            Self::Silence(duration) => write!(f, "nothing for {duration:?}"),
            Self::TooSlow(duration) => write!(f, "not enough within {duration:?}"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// A connection to the server.
pub(super) struct Peer {
    connection: Connection,
    timeout: Duration,
}

impl Peer {
    /// Sends `bytes` and expects them back.
    pub(super) fn exchange(&self, bytes: &[u8]) -> Result<(), Fault> {
        self.send(bytes)?;
        self.expect(bytes)
    }

    /// Sends `bytes`. If the connection ends before, the next read returns how.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), Fault> {
        match (&self.connection).write_all(bytes) {
            Err(error) if is_timeout(&error) => {
                Err(Fault::new("bytes to be taken", self.end(error)))
            }
            _ => Ok(()),
        }
    }

    /// Sends `bytes` beside a thread that reads, and returns whether they were taken before
    /// `all_received`: an echo of all bytes comes after the last of them.
    ///
    /// Until then the reader decides how long nothing may move: a slow server may send for long
    /// before it takes more.
    pub(super) fn send_beside_reader(&self, mut bytes: &[u8], all_received: &AtomicBool) -> bool {
        while !bytes.is_empty() && !all_received.load(Acquire) {
            match (&self.connection).write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        bytes.is_empty()
    }

    /// Expects `bytes` to come. What comes behind them is left for the next call.
    pub(super) fn expect(&self, bytes: &[u8]) -> Result<(), Fault> {
        self.expect_part(&Part {
            bytes,
            offset: 0,
            whole: bytes.len(),
        })
    }

    /// The same for a part of something longer. The whole part must come within the timeout.
    pub(super) fn expect_part(&self, expected: &Part) -> Result<(), Fault> {
        let mut came = vec![0; expected.bytes.len()];
        let mut got = 0;
        let deadline = Instant::now() + self.timeout;
        while got < came.len() {
            if got > 0 && Instant::now() >= deadline {
                return Err(expected.cut_short(&came[..got], &End::TooSlow(self.timeout)));
            }
            match self.read(&mut came[got..]) {
                Ok(n) => got += n,
                Err(end) => return Err(expected.cut_short(&came[..got], &end)),
            }
            if came[..got] != expected.bytes[..got] {
                return Err(expected.different(&came[..got]));
            }
        }
        Ok(())
    }

    /// Expects that nothing comes for `duration`, be it bytes or an end.
    pub(super) fn expect_silence(&self, duration: Duration) -> Result<(), Fault> {
        let failed = |error| Fault::new("silence", End::from(error));
        self.connection
            .stream()
            .set_read_timeout(Some(duration))
            .map_err(failed)?;
        let mut came = [0; QUOTED + 1];
        match self.read(&mut came) {
            Err(End::Silence(_)) => {}
            Err(end) => return Err(Fault::new("nothing", end)),
            Ok(n) => return Err(Fault::new("nothing", quote(&came[..n]))),
        }
        self.connection
            .stream()
            .set_read_timeout(Some(self.timeout))
            .map_err(failed)
    }

    /// Expects the end of the stream, and no byte before it.
    pub(super) fn expect_fin(&self) -> Result<(), Fault> {
        let mut came = [0; QUOTED + 1];
        match self.read(&mut came) {
            Err(End::Fin) => Ok(()),
            Err(end) => Err(Fault::new("FIN", end)),
            Ok(n) => Err(Fault::new("FIN", quote(&came[..n]))),
        }
    }

    pub(super) fn half_close(&self) {
        self.connection.half_close();
    }

    /// Closes both directions, which also wakes a thread that is blocked in one of them.
    pub(super) fn abandon(&self) {
        self.connection.close();
    }

    /// Closes the connection with RST.
    pub(super) fn reset(self) -> Result<(), Fault> {
        // To close with a linger time of zero is to reset (RFC 1122, 4.2.2.13; socket(7)).
        let set = SockRef::from(self.connection.stream()).set_linger(Some(Duration::ZERO));
        set.map_err(|error| Fault::new("a connection to reset", error))
    }

    /// Sends without reading until every buffer on the way there and back is full, or `most` bytes
    /// are out.
    pub(super) fn fill(&self, most: usize, patience: Duration) -> Result<(), Fault> {
        let mut chunk = [b'x'; 16_384];
        let failed = |error| Fault::new("room to send", End::from(error));
        self.connection
            .stream()
            .set_write_timeout(Some(patience))
            .map_err(failed)?;
        let mut sent = 0;
        while sent < most {
            match (&self.connection).write(&chunk) {
                Ok(written) => sent += written,
                Err(error) if is_timeout(&error) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Reading to the end returns how the connection ended.
                Err(_) => loop {
                    if let Err(end) = self.read(&mut chunk) {
                        return Err(Fault::new("room to send", end));
                    }
                },
            }
        }
        Ok(())
    }

    /// Reads what there is, as soon as there is something.
    fn read(&self, buffer: &mut [u8]) -> Result<usize, End> {
        loop {
            match (&self.connection).read(buffer) {
                Ok(0) => return Err(End::Fin),
                Ok(n) => return Ok(n),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.end(error)),
            }
        }
    }

    fn end(&self, error: io::Error) -> End {
        if is_timeout(&error) {
            End::Silence(self.timeout)
        } else {
            error.into()
        }
    }
}

/// A part of what is expected to come.
pub(super) struct Part<'a> {
    pub(super) bytes: &'a [u8],
    /// Where in the whole it begins, in bytes.
    pub(super) offset: usize,
    /// The length of the whole, in bytes.
    pub(super) whole: usize,
}

impl Part<'_> {
    fn different(&self, came: &[u8]) -> Fault {
        if self.whole <= QUOTED {
            return Fault::new(quote(self.bytes), quote(came));
        }
        let same = came
            .iter()
            .zip(self.bytes)
            .take_while(|(came, sent)| came == sent)
            .count();
        let (expected, got) = (self.bytes[same], came[same]);
        Fault::new(
            format!("0x{expected:02x} at offset {}", self.offset + same),
            format!("0x{got:02x}"),
        )
    }

    fn cut_short(&self, came: &[u8], end: &End) -> Fault {
        let before = self.offset + came.len();
        if self.whole <= QUOTED {
            let came = if before == 0 {
                String::new()
            } else {
                format!("{}, then ", quote(came))
            };
            return Fault::new(quote(self.bytes), format!("{came}{end}"));
        }
        Fault::new(
            format!("{} bytes", self.whole),
            format!("{before} bytes, then {end}"),
        )
    }
}

/// Bytes for a person to read; what is long is cut.
fn quote(bytes: &[u8]) -> String {
    let shown = bytes[..bytes.len().min(QUOTED)].escape_ascii();
    let more = if bytes.len() > QUOTED { "…" } else { "" };
    format!("\"{shown}\"{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut_and_what_is_not_is_quoted_whole() {
        assert_eq!(quote(b"a\r\n"), "\"a\\r\\n\"");
        assert_eq!(
            quote(&[b'x'; QUOTED]),
            format!("\"{}\"", "x".repeat(QUOTED))
        );
        assert_eq!(
            quote(&[b'x'; QUOTED + 1]),
            format!("\"{}\"…", "x".repeat(QUOTED))
        );
    }
}
