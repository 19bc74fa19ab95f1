//! The bytes that the connections send: an endless stream of random bytes, in which each connection
//! starts at a position of its own and each message continues after the last.
//!
//! No message equals the next one, so stale, mixed-up and shifted echoes are detected. Making or
//! verifying a message costs no more than a `memcmp`.

use std::io::{self, Write};

use crate::client::connection::Connection;

/// The stream repeats after this many bytes. The number is prime, so an echo that is shifted by the
/// size of a buffer, usually a power of two, is detected.
const PERIOD: usize = 65_521;

/// The distance between the starting positions of two connections, in bytes.
const SPACING: usize = 7_919;

/// Returns one period of the stream, and at least `max_len` bytes of the next: that many are sent or
/// verified at once.
pub(super) fn payload(max_len: usize) -> Vec<u8> {
    let mut bytes = vec![0; PERIOD];
    fastrand::Rng::with_seed(862).fill(&mut bytes);
    while bytes.len() < PERIOD + max_len {
        bytes.extend_from_within(..PERIOD);
    }
    bytes
}

/// A position in the stream.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    payload: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    /// Returns the starting position of a connection.
    pub(super) fn new(payload: &'a [u8], connection_number: usize) -> Self {
        let position = connection_number * SPACING % PERIOD;
        Self { payload, position }
    }

    /// Sends up to `max_len` of the next bytes and returns how many.
    pub(super) fn send(
        &mut self,
        mut connection: &Connection,
        max_len: usize,
    ) -> io::Result<usize> {
        let sent = connection.write(&self.payload[self.position..][..max_len])?;
        self.advance(sent);
        Ok(sent)
    }

    /// Returns whether `received` are the next bytes, and moves past them.
    pub(super) fn verify(&mut self, received: &[u8]) -> bool {
        let expected = &self.payload[self.position..][..received.len()];
        self.advance(received.len());
        received == expected
    }

    fn advance(&mut self, len: usize) {
        self.position = (self.position + len) % PERIOD;
    }
}
