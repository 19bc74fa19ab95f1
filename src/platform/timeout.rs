//! Calls on a socket of the client's that give up after its timeout, and can be made again.

use std::io;
#[cfg(not(windows))]
use std::io::{Read, Write};
use std::net::TcpStream;

/// Reads what there is, or waits for it for as long as the socket's read timeout.
#[cfg(not(windows))]
pub(crate) fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    stream.read(buffer)
}

/// Writes what there is room for, or waits for room for as long as the socket's write timeout.
#[cfg(not(windows))]
pub(crate) fn write(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    stream.write(bytes)
}

#[cfg(windows)]
pub(crate) use ready_first::{read, write};

/// A call that Windows ends after the timeout may have moved bytes all the same, of which nobody is
/// told (Microsoft on `SO_RCVTIMEO`). So none is made before it has something to do.
#[cfg(windows)]
mod ready_first {
    use std::io::{self, ErrorKind, Read, Write};
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    use crate::platform::wait::{Interest, wait};

    pub(crate) fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        wait_until_ready(stream, Interest::Read, stream.read_timeout()?)?;
        stream.read(buffer)
    }

    pub(crate) fn write(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        wait_until_ready(stream, Interest::Write, stream.write_timeout()?)?;
        stream.write(bytes)
    }

    fn wait_until_ready(
        stream: &TcpStream,
        interest: Interest,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        while !wait(stream, interest, until, None)? {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }
}
