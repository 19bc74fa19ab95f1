//! Makes bytes from the network safe to print at a terminal.

/// Returns `bytes` as text. Bytes that are not UTF-8, and characters that could control the terminal
/// or reorder the text, are escaped; newlines and tabs are kept.
pub(super) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' | '\t' => text.push(c),
                '\0'..='\x1f' | '\x7f' => text.extend((c as u8).escape_ascii().map(char::from)),
                // C1 controls, bidirectional formatting, line and paragraph separators.
                '\u{80}'..='\u{9f}'
                | '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' => text.extend(c.escape_unicode()),
                _ => text.push(c),
            }
        }
        text.extend(chunk.invalid().escape_ascii().map(char::from));
    }
    text
}

/// Returns the length of `bytes` without an incomplete UTF-8 character at the end.
pub(super) fn complete_len(bytes: &[u8]) -> usize {
    let end = bytes
        .utf8_chunks()
        .last()
        .map_or(&[][..], |chunk| chunk.invalid());
    let is_incomplete = str::from_utf8(end).is_err_and(|error| error.error_len().is_none());
    bytes.len() - if is_incomplete { end.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text of `pieces`, each escaped up to its last complete character.
    fn escape_pieces(pieces: &[&[u8]]) -> String {
        let (mut text, mut bytes) = (String::new(), Vec::new());
        for piece in pieces {
            bytes.extend_from_slice(piece);
            let rest = bytes.split_off(complete_len(&bytes));
            text += &escape(&bytes);
            bytes = rest;
        }
        text + &escape(&bytes)
    }

    #[test]
    fn text_in_any_script_is_kept() {
        let text = "Grüße, мир, 世界, שלום, नमस्ते, 🦀👩‍👩‍👧\ttab\n";
        assert_eq!(escape(text.as_bytes()), text);
    }

    #[test]
    fn control_and_formatting_characters_are_escaped() {
        for (bytes, text) in [
            ("\x1b[2J\x07\r\0\x7f\n", "\\x1b[2J\\x07\\r\\x00\\x7f\n"),
            ("\u{9b}2J \u{80}\u{9f}", "\\u{9b}2J \\u{80}\\u{9f}"),
            ("\u{202e}abc\u{2066}", "\\u{202e}abc\\u{2066}"),
        ] {
            assert_eq!(escape(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn invalid_utf8_is_escaped() {
        assert_eq!(
            escape_pieces(&[b"a\xffb\xc3(\xe2\x82"]),
            "a\\xffb\\xc3(\\xe2\\x82"
        );
        assert_eq!(escape_pieces(&[b"\xe2\x82", b"!"]), "\\xe2\\x82!");
    }

    #[test]
    fn an_incomplete_character_is_not_counted() {
        assert_eq!(complete_len(b"a\xe2\x82"), 1);
        assert_eq!(complete_len(b"\xe2\x82\xac"), 3);
        assert_eq!(complete_len(b"\xff"), 1, "it cannot become a character");
        assert_eq!(complete_len(b""), 0);
    }

    /// Mostly text, so that cuts fall into characters, with some invalid bytes.
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
            let text = escape_pieces(&pieces);
            prop_assert_eq!(&text, &escape(&bytes));
            let safe = |c: char| c == '\n' || c == '\t' || !c.is_control();
            prop_assert!(text.chars().all(safe), "{:?}", text);
        }
    }
}
