//! The line editor: what each key does, the history, and the visible part of the line.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use super::text::escape;

const CTRL: KeyModifiers = KeyModifiers::CONTROL;
const ALT: KeyModifiers = KeyModifiers::ALT;

/// What precedes the line.
const LABEL: &str = "> ";

/// What the user has entered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A line, without its newline.
    Line(Vec<u8>),
    /// Ctrl+C, or Ctrl+D on an empty line.
    Disconnect,
    /// Ctrl+L.
    ClearScreen,
    /// Ctrl+Z.
    Suspend,
}

/// The line being typed, and the history.
#[derive(Default)]
pub(super) struct Prompt {
    /// The line before the cursor. Split there, inserting costs the same in a line of any length.
    before: String,
    /// The line after the cursor.
    after: String,
    history: Vec<String>,
    /// The entry of `history` being edited; `history.len()` is the new line.
    position: usize,
    /// The new line while an entry of the history is edited.
    new_line: String,
}

impl Prompt {
    /// Handles a key. Returns what it completes, if anything.
    pub(super) fn press(&mut self, key: KeyEvent) -> Option<Input> {
        use KeyCode::{Backspace, Char, Delete, Down, End, Enter, Home, Left, Right, Tab, Up};

        // Windows also reports when a key is released.
        if key.kind == KeyEventKind::Release {
            return None;
        }
        match (key.modifiers, key.code) {
            // Typed before raw mode, or pasted, Enter is a newline: Ctrl+J.
            (_, Enter) | (CTRL, Char('j' | 'm')) => return Some(Input::Line(self.submit())),
            (CTRL, Char('c')) => return Some(Input::Disconnect),
            (CTRL, Char('d')) if self.is_empty() => return Some(Input::Disconnect),
            (CTRL, Char('l')) => return Some(Input::ClearScreen),
            (CTRL, Char('z')) => return Some(Input::Suspend),

            (_, Up) | (CTRL, Char('p')) => self.recall(self.position.saturating_sub(1)),
            (_, Down) | (CTRL, Char('n')) => self.recall(self.position + 1),
            (_, Left) | (CTRL, Char('b')) => self.move_left(self.previous_character()),
            (_, Right) | (CTRL, Char('f')) => self.move_right(self.next_character()),
            (_, Home) | (CTRL, Char('a')) => self.move_left(0),
            (_, End) | (CTRL, Char('e')) => self.move_right(self.after.len()),

            (_, Backspace) | (CTRL, Char('h')) => self.before.truncate(self.previous_character()),
            (_, Delete) | (CTRL, Char('d')) => drop(self.after.drain(..self.next_character())),
            (CTRL, Char('w')) => self.before.truncate(self.previous_word()),
            (CTRL, Char('u')) => self.before.clear(),
            (CTRL, Char('k')) => self.after.clear(),

            (_, Tab) => self.before.push('\t'),
            // Ctrl and Alt together are AltGr on Windows: those characters are inserted.
            (modifiers, Char(c)) if modifiers != CTRL && modifiers != ALT => self.before.push(c),
            _ => {}
        }
        None
    }

    /// Returns whether the line is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    /// Returns the start of the character before the cursor, as an index of `before`.
    fn previous_character(&self) -> usize {
        let mut characters = self.before.grapheme_indices(true);
        characters.next_back().map_or(0, |(start, _)| start)
    }

    /// Returns the end of the character after the cursor, as an index of `after`.
    fn next_character(&self) -> usize {
        self.after.graphemes(true).next().map_or(0, str::len)
    }

    /// Returns the start of the word before the cursor, as an index of `before`. Spaces may follow it.
    fn previous_word(&self) -> usize {
        let words = self.before.trim_end();
        words.trim_end_matches(|c: char| !c.is_whitespace()).len()
    }

    fn move_left(&mut self, start: usize) {
        let moved = self.before.split_off(start);
        self.after.insert_str(0, &moved);
    }

    fn move_right(&mut self, len: usize) {
        self.before.extend(self.after.drain(..len));
    }

    /// Takes the line and adds it to the history, unless it is empty or repeats the last entry.
    fn submit(&mut self) -> Vec<u8> {
        let line = self.take_line();
        if !line.is_empty() && self.history.last() != Some(&line) {
            self.history.push(line.clone());
        }
        self.position = self.history.len();
        line.into_bytes()
    }

    fn take_line(&mut self) -> String {
        self.move_right(self.after.len());
        std::mem::take(&mut self.before)
    }

    /// Replaces the line by an entry of the history, or after the last one by the new line.
    fn recall(&mut self, position: usize) {
        let line = self.take_line();
        if self.position == self.history.len() {
            self.new_line = line;
        }
        self.position = position.min(self.history.len());
        let line = self.history.get(self.position);
        self.before.clone_from(line.unwrap_or(&self.new_line));
    }

    /// Returns one row with the part of the line around the cursor, and the cursor's column.
    pub(super) fn row(&self, columns: u16) -> (String, u16) {
        let room = usize::from(columns).saturating_sub(LABEL.len() + 1).max(1);
        // Only the visible part is looked at, because the row is drawn after every key.
        let (mut start, mut width) = (self.before.len(), 0);
        for (index, character) in self.before.grapheme_indices(true).rev() {
            if width + character.width() > room {
                break;
            }
            (start, width) = (index, width + character.width());
        }
        let cursor = u16::try_from(LABEL.len() + width).unwrap_or(columns);
        let mut row = LABEL.to_owned();
        row.extend(self.before[start..].graphemes(true).map(printable));
        for character in self.after.graphemes(true) {
            width += character.width();
            if width > room {
                break;
            }
            row += &printable(character);
        }
        (row, cursor)
    }
}

/// Returns the character, or as many spaces as it is wide if it could move the cursor.
fn printable(character: &str) -> String {
    if character == "\t" || escape(character.as_bytes()) != character {
        " ".repeat(character.width())
    } else {
        character.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: &str, columns: u16) -> (String, u16) {
        Prompt {
            before: line.into(),
            ..Prompt::default()
        }
        .row(columns)
    }

    /// Presses keys and returns the line. Capitals are pressed with Ctrl.
    fn press(mut prompt: Prompt, keys: &str) -> String {
        for key in keys.chars() {
            let (modifiers, code) = match key {
                '↑' => (KeyModifiers::NONE, KeyCode::Up),
                '↓' => (KeyModifiers::NONE, KeyCode::Down),
                '←' => (KeyModifiers::NONE, KeyCode::Left),
                '→' => (KeyModifiers::NONE, KeyCode::Right),
                '↖' => (KeyModifiers::NONE, KeyCode::Home),
                '↘' => (KeyModifiers::NONE, KeyCode::End),
                '⌫' => (KeyModifiers::NONE, KeyCode::Backspace),
                '⌦' => (KeyModifiers::NONE, KeyCode::Delete),
                '↹' => (KeyModifiers::NONE, KeyCode::Tab),
                'A'..='Z' => (CTRL, KeyCode::Char(key.to_ascii_lowercase())),
                _ => (KeyModifiers::NONE, KeyCode::Char(key)),
            };
            assert_eq!(prompt.press(KeyEvent::new(code, modifiers)), None);
        }
        prompt.take_line()
    }

    /// The line after these keys, with three lines in the history.
    fn recalled(keys: &str) -> String {
        let history = ["twofold", "one", "two"].map(str::to_owned).to_vec();
        let prompt = Prompt {
            position: history.len(),
            history,
            ..Prompt::default()
        };
        press(prompt, keys)
    }

    #[test]
    fn the_keys_work_as_in_a_shell() {
        for (keys, line) in [
            ("AD", "ne two"),
            ("BBD", "one to"),
            ("AFD", "oe two"),
            ("AEH", "one tw"),
            ("BBBK", "one "),
            ("BBBU", "two"),
            ("W", "one "),
            ("WW", ""),
            ("BH", "one to"),
            ("←⌦", "one tw"),
            ("↖→⌦", "oe two"),
            ("↖↘⌫", "one tw"),
            ("↹!", "one two\t!"),
        ] {
            let prompt = Prompt {
                before: "one two".into(),
                ..Prompt::default()
            };
            assert_eq!(press(prompt, keys), line, "{keys}");
        }
    }

    #[test]
    fn a_character_of_several_bytes_is_one_step() {
        for (keys, line) in [
            ("←⌦", "世👩‍👩‍👧"),
            ("←←→⌦", "世👩‍👩‍👧"),
            ("↖→⌦", "世界"),
            ("↖⌦", "👩‍👩‍👧界"),
            ("←⌫", "世界"),
            ("⌫", "世👩‍👩‍👧"),
        ] {
            let prompt = Prompt {
                before: "世👩‍👩‍👧界".into(),
                ..Prompt::default()
            };
            assert_eq!(press(prompt, keys), line, "{keys}");
        }
    }

    #[test]
    fn ctrl_d_disconnects_only_if_the_line_is_empty() {
        let control_d = KeyEvent::new(KeyCode::Char('d'), KeyModifiers::CONTROL);
        assert_eq!(Prompt::default().press(control_d), Some(Input::Disconnect));
        assert_eq!(recalled("abAD"), "b");
    }

    #[test]
    fn letters_without_ctrl_are_inserted() {
        let letters = "abcdefghijklmnopqrstuvwxyz";
        assert_eq!(recalled(letters), letters);
        assert_eq!(recalled("aXb"), "ab", "Ctrl+X has no effect");
    }

    #[test]
    fn the_history_omits_empty_and_repeated_lines() {
        let mut prompt = Prompt::default();
        for line in ["one", "one", "", "two", "one"] {
            prompt.before = line.into();
            assert_eq!(prompt.submit(), line.as_bytes());
        }
        assert_eq!(
            (prompt.history.join(" "), prompt.position),
            ("one two one".to_owned(), 3)
        );
    }

    #[test]
    fn up_and_down_go_through_the_history() {
        for (keys, line) in [
            ("↑", "two"),
            ("↑↑↑↑↑", "twofold"),
            ("↑↑↑↓", "one"),
            ("↑↑↓↓↓", ""),
            ("new↑↑↓↓", "new"),
            ("PPPN", "one"),
            ("newPPNN", "new"),
            ("newP!N", "new"),
        ] {
            assert_eq!(recalled(keys), line, "{keys}");
        }
    }

    #[test]
    fn a_row_counts_the_columns_of_each_character() {
        assert_eq!(row("hello", 80), ("> hello".to_owned(), 7));
        assert_eq!(row("世界", 80), ("> 世界".to_owned(), 6));
        assert_eq!(row("👩‍👩‍👧!", 80), ("> 👩‍👩‍👧!".to_owned(), 5));
        assert_eq!(row("a\tb\u{202e}c", 80), ("> a bc".to_owned(), 6));
    }

    #[test]
    fn a_long_line_is_shown_around_the_cursor() {
        assert_eq!(row("0123456789", 10), ("> 3456789".to_owned(), 9));
        assert_eq!(
            row(&("👩‍👩‍👧".repeat(20) + "END"), 12),
            ("> 👩‍👩‍👧👩‍👩‍👧👩‍👩‍👧END".to_owned(), 11)
        );
    }

    #[test]
    fn text_after_the_cursor_is_shown_as_far_as_it_fits() {
        let prompt = Prompt {
            before: "01".into(),
            after: "23456789".into(),
            ..Prompt::default()
        };
        assert_eq!(prompt.row(80), ("> 0123456789".to_owned(), 4));
        assert_eq!(prompt.row(10), ("> 0123456".to_owned(), 4));
    }

    #[test]
    fn a_narrow_window_does_not_break_the_row() {
        for columns in 0..6 {
            let (_, cursor) = row("世界!", columns);
            assert!(cursor <= columns.max(4), "{cursor} of {columns}");
        }
    }
}
