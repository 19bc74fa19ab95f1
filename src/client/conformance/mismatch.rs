//! How a failed check describes what it expected and what it got instead. Short messages are quoted
//! whole; of a longer one, only the first difference is shown.

use std::fmt::{self, Display};
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

impl Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}; got {}", self.expected, self.got)
    }
}

impl From<io::Error> for Mismatch {
    fn from(error: io::Error) -> Self {
        Self::new("a connection", error)
    }
}

/// Describes that `received` differs from the bytes of `message` at `start`.
pub(super) fn wrong_bytes(message: &[u8], start: usize, received: &[u8]) -> Mismatch {
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
pub(super) fn missing_bytes(message: &[u8], start: usize, received: &[u8], end: &str) -> Mismatch {
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
