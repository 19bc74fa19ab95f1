//! Collects the lines of a log while a program writes them.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use super::PATIENCE;

/// The lines of a log, collected as they arrive.
#[derive(Default)]
pub struct Log {
    lines: Arc<(Mutex<Vec<String>>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

impl Log {
    /// Starts a thread that reads `source` until it ends.
    pub fn read(source: impl Read + Send + 'static) -> Self {
        let lines: Arc<(Mutex<Vec<String>>, Condvar)> = Arc::default();
        let shared = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                shared
                    .0
                    .lock()
                    .expect("the lock is not poisoned")
                    .push(text);
                shared.1.notify_all();
                line.clear();
            }
        });
        Self {
            lines,
            reader: Some(reader),
        }
    }

    /// Returns the lines read so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines
            .0
            .lock()
            .expect("the lock is not poisoned")
            .clone()
    }

    /// Waits until the source ends, then returns all lines. May be called once.
    pub fn read_to_end(&mut self) -> Vec<String> {
        let reader = self.reader.take().expect("the log is read to its end once");
        reader.join().expect("the reader does not panic");
        self.lines()
    }

    /// Waits for `count` lines that contain `text`, and returns all lines that do.
    pub fn wait_for(&self, count: usize, text: &str) -> Vec<String> {
        let (lines, line_added) = &*self.lines;
        let found = |lines: &[String]| -> Vec<String> {
            lines
                .iter()
                .filter(|line| line.contains(text))
                .cloned()
                .collect()
        };
        let lines = lines.lock().expect("the lock is not poisoned");
        let (lines, _) = line_added
            .wait_timeout_while(lines, PATIENCE, |lines| found(lines).len() < count)
            .expect("the lock is not poisoned");
        let found = found(&lines);
        assert!(
            found.len() >= count,
            "expected {count} lines with {text:?} in the log: {lines:#?}"
        );
        found
    }
}
