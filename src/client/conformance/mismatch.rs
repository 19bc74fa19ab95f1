//! How a failed check describes what it expected and what it got instead. Short messages are quoted
//! whole; of a longer one, only the first difference is shown.

use std::fmt::Display;
use std::io;

/// The maximum length of a quotation, in bytes.
pub(super) const MAX_QUOTED: usize = 32;

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

impl From<io::Error> for Mismatch {
    fn from(error: io::Error) -> Self {
        Self::new("a connection", error)
    }
}

/// A part of the bytes that a check expects.
pub(super) struct Part<'a> {
    pub(super) bytes: &'a [u8],
    /// The position of the part within the whole, in bytes.
    pub(super) offset: usize,
    /// The length of the whole, in bytes.
    pub(super) whole_len: usize,
}

impl Part<'_> {
    /// Describes received bytes that differ from the beginning of the part.
    pub(super) fn wrong_bytes(&self, received: &[u8]) -> Mismatch {
        if self.whole_len <= MAX_QUOTED {
            return Mismatch::new(quote(self.bytes), quote(received));
        }
        let pairs = received.iter().zip(self.bytes);
        let same = pairs.take_while(|(got, expected)| got == expected).count();
        let offset = self.offset + same;
        Mismatch::new(
            format!("0x{:02x} at offset {offset}", self.bytes[same]),
            format!("0x{:02x}", received[same]),
        )
    }

    /// Describes that only `received` has come, and then `end`.
    pub(super) fn missing_bytes(&self, received: &[u8], end: &str) -> Mismatch {
        let received_len = self.offset + received.len();
        if self.whole_len > MAX_QUOTED {
            Mismatch::new(
                format!("{} bytes", self.whole_len),
                format!("{received_len} bytes, then {end}"),
            )
        } else if received.is_empty() {
            Mismatch::new(quote(self.bytes), end)
        } else {
            let got = format!("{}, then {end}", quote(received));
            Mismatch::new(quote(self.bytes), got)
        }
    }
}

/// Quotes `bytes` with escapes, and truncates them to [`MAX_QUOTED`].
pub(super) fn quote(bytes: &[u8]) -> String {
    let shown = bytes[..bytes.len().min(MAX_QUOTED)].escape_ascii();
    let ellipsis = if bytes.len() > MAX_QUOTED { "…" } else { "" };
    format!("\"{shown}\"{ellipsis}")
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
