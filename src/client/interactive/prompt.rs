//! The line being typed: what each key does to it, the lines before it, and what of it is to be
//! seen. It knows keys but no terminal.

use std::mem;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tui_input::{Input, InputRequest};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use super::text::escape;

/// What a key has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// The line: Enter.
    Line(Vec<u8>),
    /// The conversation: Ctrl+D on an empty line, or Ctrl+C.
    Leave,
}

/// The line being typed, and those that were typed before it.
#[derive(Default)]
pub(super) struct Prompt {
    line: Input,
    history: Vec<String>,
    /// Which line of the history stands in `line`; the number of them all: the new one does.
    at: usize,
    /// The new line, while one of the history stands in its place.
    new: String,
    /// What is searched for in the history, while Ctrl+R does.
    needle: Option<String>,
}

impl Prompt {
    /// Does what the key asks for.
    pub(super) fn press(&mut self, key: KeyEvent) -> Option<Typed> {
        // Windows tells of keys that go up, too.
        if key.kind == KeyEventKind::Release || self.search(key) {
            return None;
        }
        let control = key.modifiers == KeyModifiers::CONTROL;
        match key.code {
            KeyCode::Enter => return Some(Typed::Line(self.enter())),
            // What was typed before the prompt was there, or pasted, has these for Enter.
            KeyCode::Char('j' | 'm') if control => return Some(Typed::Line(self.enter())),
            KeyCode::Char('c') if control => return Some(Typed::Leave),
            KeyCode::Char('d') if control && self.is_empty() => return Some(Typed::Leave),
            KeyCode::Char('r') if control => self.needle = Some(String::new()),
            KeyCode::Up => self.recall(self.at.checked_sub(1)),
            KeyCode::Char('p') if control => self.recall(self.at.checked_sub(1)),
            KeyCode::Down => self.recall(Some(self.at + 1)),
            KeyCode::Char('n') if control => self.recall(Some(self.at + 1)),
            _ => {
                edit(key).and_then(|request| self.line.handle(request));
            }
        }
        None
    }

    /// Whether nothing has been typed.
    pub(super) fn is_empty(&self) -> bool {
        self.line.value().is_empty()
    }

    /// Takes the line, and remembers it.
    fn enter(&mut self) -> Vec<u8> {
        let line = self.line.value_and_reset();
        if !line.is_empty() && self.history.last() != Some(&line) {
            self.history.push(line.clone());
        }
        self.at = self.history.len();
        line.into_bytes()
    }

    /// Puts a line of the history, or the new one, in the place of the line.
    fn recall(&mut self, at: Option<usize>) {
        let Some(at) = at.filter(|at| *at <= self.history.len()) else {
            return;
        };
        if self.at == self.history.len() {
            self.line.value().clone_into(&mut self.new);
        }
        self.at = at;
        let line = self.history.get(at).unwrap_or(&self.new).clone();
        self.line = mem::take(&mut self.line).with_value(line);
    }

    /// Whether the key belongs to a search. Any other key ends it, and works on what was found.
    fn search(&mut self, key: KeyEvent) -> bool {
        let Some(mut needle) = self.needle.take() else {
            return false;
        };
        let control = key.modifiers == KeyModifiers::CONTROL;
        let end = match key.code {
            KeyCode::Char('r') if control => self.at,
            KeyCode::Char('g') if control => return self.give_up_search(),
            KeyCode::Esc => return self.give_up_search(),
            KeyCode::Char(c) if !control => {
                needle.push(c);
                self.history.len().min(self.at + 1)
            }
            KeyCode::Backspace => {
                needle.pop();
                self.history.len()
            }
            _ => return false,
        };
        let found = self.history[..end]
            .iter()
            .rposition(|line| line.contains(&needle));
        self.recall(found);
        self.needle = Some(needle);
        true
    }

    fn give_up_search(&mut self) -> bool {
        self.recall(Some(self.history.len()));
        true
    }

    /// What stands in front of the line.
    fn label(&self) -> String {
        match &self.needle {
            None => "> ".to_owned(),
            Some(needle) => format!("(search: {needle}) "),
        }
    }

    /// What is to be seen in one row of a screen, and the column of the cursor in it. A line that is
    /// too long is shown in part, around the cursor.
    pub(super) fn row(&self, columns: u16) -> (String, u16) {
        let mut row = self.label();
        let start = row.width();
        let room = usize::from(columns).saturating_sub(start + 1).max(1);
        let scrolled = self.line.visual_scroll(room);
        let mut column = 0;
        for character in self.line.value().graphemes(true) {
            let left = column;
            column += character.width();
            if left >= scrolled && column <= scrolled + room {
                if character == "\t" || escape(character) != character {
                    // Neither may move the cursor.
                    row.push_str(&" ".repeat(character.width()));
                } else {
                    row.push_str(character);
                }
            }
        }
        let cursor = start + self.line.visual_cursor().saturating_sub(scrolled);
        (row, u16::try_from(cursor).unwrap_or(columns))
    }
}

/// The keys of Emacs and of every editor, as in a shell.
fn edit(key: KeyEvent) -> Option<InputRequest> {
    let control = key.modifiers == KeyModifiers::CONTROL;
    let alt = key.modifiers == KeyModifiers::ALT;
    let by_word = control || alt;
    Some(match key.code {
        KeyCode::Left if by_word => InputRequest::GoToPrevWord,
        KeyCode::Right if by_word => InputRequest::GoToNextWord,
        KeyCode::Left => InputRequest::GoToPrevChar,
        KeyCode::Right => InputRequest::GoToNextChar,
        KeyCode::Home => InputRequest::GoToStart,
        KeyCode::End => InputRequest::GoToEnd,
        KeyCode::Backspace if by_word => InputRequest::DeletePrevWord,
        KeyCode::Backspace => InputRequest::DeletePrevChar,
        KeyCode::Delete => InputRequest::DeleteNextChar,
        KeyCode::Tab => InputRequest::InsertChar('\t'),
        KeyCode::Char(c) if control => match c {
            'a' => InputRequest::GoToStart,
            'b' => InputRequest::GoToPrevChar,
            'd' => InputRequest::DeleteNextChar,
            'e' => InputRequest::GoToEnd,
            'f' => InputRequest::GoToNextChar,
            'h' => InputRequest::DeletePrevChar,
            'k' => InputRequest::DeleteTillEnd,
            'u' => InputRequest::DeleteFromStart,
            'w' => InputRequest::DeletePrevWord,
            'y' => InputRequest::Yank,
            _ => return None,
        },
        KeyCode::Char(c) if alt => match c {
            'b' => InputRequest::GoToPrevWord,
            'd' => InputRequest::DeleteNextWord,
            'f' => InputRequest::GoToNextWord,
            _ => return None,
        },
        // With Ctrl and Alt both: AltGr on Windows.
        KeyCode::Char(c) => InputRequest::InsertChar(c),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: &str, columns: u16) -> (String, u16) {
        Prompt {
            line: line.into(),
            ..Prompt::default()
        }
        .row(columns)
    }

    /// What these keys make of "one two", with the cursor at its end.
    fn edited(keys: &[(KeyCode, KeyModifiers)]) -> String {
        let mut line = Input::from("one two");
        for (code, modifiers) in keys {
            line.handle(edit(KeyEvent::new(*code, *modifiers)).expect("the key edits"));
        }
        line.value().to_owned()
    }

    #[test]
    fn the_keys_are_those_of_a_shell() {
        let control = |keys: &str| {
            let keys = keys
                .chars()
                .map(|key| (KeyCode::Char(key), KeyModifiers::CONTROL));
            edited(&keys.collect::<Vec<_>>())
        };
        for (keys, line) in [
            ("ad", "ne two"),
            ("bbd", "one to"),
            ("afd", "oe two"),
            ("aeh", "one tw"),
            ("bbbk", "one "),
            ("bbbu", "two"),
            ("w", "one "),
            ("bbbkay", "twoone "),
        ] {
            assert_eq!(control(keys), line, "{keys}");
        }
        let (none, alt) = (KeyModifiers::NONE, KeyModifiers::ALT);
        let delete = (KeyCode::Delete, none);
        for (keys, line) in [
            (vec![(KeyCode::Left, none), delete], "one tw"),
            (
                vec![(KeyCode::Home, none), (KeyCode::Right, none), delete],
                "oe two",
            ),
            (
                vec![
                    (KeyCode::Home, none),
                    (KeyCode::End, none),
                    (KeyCode::Backspace, none),
                ],
                "one tw",
            ),
            (vec![(KeyCode::Left, alt), delete], "one wo"),
            (vec![(KeyCode::Char('b'), alt), delete], "one wo"),
            (
                vec![(KeyCode::Home, none), (KeyCode::Right, alt), delete],
                "one wo",
            ),
            (
                vec![(KeyCode::Home, none), (KeyCode::Char('f'), alt), delete],
                "one wo",
            ),
            (
                vec![(KeyCode::Home, none), (KeyCode::Char('d'), alt)],
                "two",
            ),
            (vec![(KeyCode::Backspace, alt)], "one "),
            (
                vec![(KeyCode::Tab, none), (KeyCode::Char('!'), none)],
                "one two\t!",
            ),
        ] {
            assert_eq!(edited(&keys), line, "{keys:?}");
        }
    }

    /// What stands in the line after these keys, with three lines in the history.
    fn recalled(keys: &str) -> String {
        let history = ["twofold", "one", "two"].map(str::to_owned).to_vec();
        let mut prompt = Prompt {
            at: history.len(),
            history,
            ..Prompt::default()
        };
        for key in keys.chars() {
            let (code, modifiers) = match key {
                '↑' => (KeyCode::Up, KeyModifiers::NONE),
                '↓' => (KeyCode::Down, KeyModifiers::NONE),
                '⌫' => (KeyCode::Backspace, KeyModifiers::NONE),
                '⎋' => (KeyCode::Esc, KeyModifiers::NONE),
                'A'..='Z' => (
                    KeyCode::Char(key.to_ascii_lowercase()),
                    KeyModifiers::CONTROL,
                ),
                _ => (KeyCode::Char(key), KeyModifiers::NONE),
            };
            assert_eq!(prompt.press(KeyEvent::new(code, modifiers)), None);
        }
        prompt.line.value().to_owned()
    }

    #[test]
    fn ctrl_d_leaves_from_an_empty_line_only() {
        let control_d = KeyEvent::new(KeyCode::Char('d'), KeyModifiers::CONTROL);
        assert_eq!(Prompt::default().press(control_d), Some(Typed::Leave));
        assert_eq!(recalled("abAD"), "b");
    }

    #[test]
    fn letters_are_commands_with_control_only() {
        let letters = "abcdefghijklmnopqrstuvwxyz";
        assert_eq!(recalled(letters), letters);
    }

    #[test]
    fn a_line_is_remembered_unless_it_is_empty_or_the_one_before() {
        let mut prompt = Prompt::default();
        for line in ["one", "one", "", "two", "one"] {
            prompt.line = line.into();
            assert_eq!(prompt.enter(), line.as_bytes());
        }
        assert_eq!(
            (prompt.history.join(" "), prompt.at),
            ("one two one".to_owned(), 3)
        );
    }

    #[test]
    fn the_lines_before_are_recalled() {
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
    fn the_lines_before_are_searched_from_the_last_to_the_first() {
        for (keys, line) in [
            ("Rt", "two"),
            ("Rtwo", "two"),
            ("RtwoR", "twofold"),
            ("RtwoRR", "twofold"),
            ("Rtwof", "twofold"),
            ("Rone", "one"),
            ("Rone⌫", "one"),
            ("Rone⌫⌫", "two"),
            ("Rx", ""),
            ("Rr", ""),
            ("Rtg", "two"),
            ("newRx", "new"),
            ("newRoneG", "new"),
            ("newRone⎋", "new"),
            ("RoneA!", "!one"),
            ("Rone↑", "twofold"),
        ] {
            assert_eq!(recalled(keys), line, "{keys}");
        }
    }

    #[test]
    fn a_row_shows_whole_characters_in_the_columns_they_take() {
        assert_eq!(row("hello", 80), ("> hello".to_owned(), 7));
        assert_eq!(row("世界", 80), ("> 世界".to_owned(), 6));
        assert_eq!(row("👩‍👩‍👧!", 80), ("> 👩‍👩‍👧!".to_owned(), 5));
        assert_eq!(row("a\tb\u{202e}c", 80), ("> a bc".to_owned(), 6));
    }

    #[test]
    fn a_line_that_is_too_long_is_shown_where_the_cursor_is() {
        assert_eq!(row("0123456789", 10), ("> 3456789".to_owned(), 9));
        assert_eq!(
            row(&("👩‍👩‍👧".repeat(20) + "END"), 12),
            ("> 👩‍👩‍👧👩‍👩‍👧👩‍👩‍👧END".to_owned(), 11)
        );
    }

    #[test]
    fn no_screen_is_too_narrow() {
        for columns in 0..6 {
            let (_, cursor) = row("世界!", columns);
            assert!(cursor <= columns.max(4), "{cursor} of {columns}");
        }
    }
}
