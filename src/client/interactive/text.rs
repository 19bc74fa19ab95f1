//! What a stranger sends, as text that is safe at a terminal: UTF-8 where it is UTF-8, however the
//! network has cut it, and everything that could drive the terminal or turn the order of the text
//! escaped.

use std::mem;

/// Turns bytes into text, piece by piece.
#[derive(Default)]
pub(super) struct Decoder {
    /// The beginning of a character whose rest has not come yet.
    tail: Vec<u8>,
}

impl Decoder {
    /// The text of `bytes`; a character that is cut off at their end is kept for the next call.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> String {
        let mut whole = mem::take(&mut self.tail);
        whole.extend_from_slice(bytes);
        let mut text = String::with_capacity(whole.len());
        let mut chunks = whole.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text += &escape(chunk.valid());
            if chunks.peek().is_none() && is_beginning(chunk.invalid()) {
                self.tail = chunk.invalid().to_vec();
            } else {
                text += &chunk.invalid().escape_ascii().to_string();
            }
        }
        text
    }

    /// What was kept, escaped: no more will come.
    pub(super) fn finish(&mut self) -> String {
        mem::take(&mut self.tail).escape_ascii().to_string()
    }
}

/// Whether these bytes, which are no character, could become one.
fn is_beginning(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// The text, with everything that could drive the terminal or turn the order of the text escaped.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => escaped.push(c),
            '\0'..='\x1f' | '\x7f' => escaped += &(c as u8).escape_ascii().to_string(),
            // C1, which some terminals obey as they do ESC; what turns the order of letters; and
            // what some take for the end of a line.
            '\u{80}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => escaped.extend(c.escape_unicode()),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: &[&[u8]]) -> String {
        let mut decoder = Decoder::default();
        let mut text: String = pieces.iter().map(|piece| decoder.decode(piece)).collect();
        text += &decoder.finish();
        text
    }

    #[test]
    fn every_script_is_shown_as_it_is() {
        let text = "Grüße, мир, 世界, שלום, नमस्ते, 🦀👩‍👩‍👧\ttab\n";
        assert_eq!(decode(&[text.as_bytes()]), text);
    }

    #[test]
    fn what_could_drive_the_terminal_is_escaped() {
        assert_eq!(
            decode(&[b"\x1b[2J\x07\r\0\x7f\n"]),
            "\\x1b[2J\\x07\\r\\x00\\x7f\n"
        );
        assert_eq!(
            decode(&["\u{9b}2J \u{80}\u{9f}".as_bytes()]),
            "\\u{9b}2J \\u{80}\\u{9f}"
        );
        assert_eq!(
            decode(&["\u{202e}abc\u{2066}".as_bytes()]),
            "\\u{202e}abc\\u{2066}"
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_escaped() {
        assert_eq!(decode(&[b"a\xffb\xc3(\xe2\x82"]), "a\\xffb\\xc3(\\xe2\\x82");
        assert_eq!(decode(&[b"\xe2\x82", b"!"]), "\\xe2\\x82!");
    }

    #[test]
    fn half_a_character_waits_for_its_rest() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"\xe2\x82"), "");
        assert_eq!(decoder.decode(b"\xac"), "€");
        assert_eq!(
            decoder.decode(b"\xff"),
            "\\xff",
            "it is not half of anything"
        );
        assert_eq!(decoder.finish(), "");
    }

    /// Bytes that are mostly text, so that the cuts fall into characters, with some that are not.
    fn mixed() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            any::<u8>().prop_map(|byte| vec![byte]),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn cutting_anywhere_gives_the_same_text(bytes in mixed(), sizes in prop::collection::vec(1..9_usize, 1..40)) {
            let (mut rest, mut pieces) = (&bytes[..], Vec::new());
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at(rest.len().min(*size));
                pieces.push(piece);
                rest = after;
            }
            let text = decode(&pieces);
            prop_assert_eq!(&text, &decode(&[&bytes]));
            let safe = |c: char| c == '\n' || c == '\t' || !c.is_control();
            prop_assert!(text.chars().all(safe), "{:?}", text);
        }
    }
}
