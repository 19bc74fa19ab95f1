//! Collects the lines of a log while a program writes them.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use super::PATIENCE;

/// The lines of a log, collected as they arrive.
#[derive(Default)]
pub struct Log {
    state: Arc<(Mutex<State>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    has_ended: bool,
}

impl Log {
    /// Starts a thread that reads `source` until it ends.
    pub fn read(source: impl Read + Send + 'static) -> Self {
        let mut log = Self::default();
        let shared = Arc::clone(&log.state);
        log.reader = Some(thread::spawn(move || {
            let mut source = BufReader::new(source);
            loop {
                let mut line = Vec::new();
                let read = source.read_until(b'\n', &mut line);
                let mut state = lock(&shared.0);
                shared.1.notify_all();
                if !read.is_ok_and(|n| n > 0) {
                    state.has_ended = true;
                    return;
                }
                let text = String::from_utf8_lossy(&line);
                state.lines.push(text.trim_end().to_owned());
            }
        }));
        log
    }

    /// Returns the lines read so far.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.state.0).lines.clone()
    }

    /// Waits until the source ends, then returns all lines. May be called once.
    pub fn read_to_end(&mut self) -> Vec<String> {
        let reader = self.reader.take().expect("the log is read to its end once");
        reader.join().expect("the reader does not panic");
        self.lines()
    }

    /// Waits for `count` lines that contain `text`, and returns all lines that do. Fails the test as
    /// soon as the source has ended without them.
    pub fn wait_for(&self, count: usize, text: &str) -> Vec<String> {
        let found = |state: &State| -> Vec<String> {
            let lines = state.lines.iter();
            lines.filter(|line| line.contains(text)).cloned().collect()
        };
        let (state, changed) = &*self.state;
        let (state, _) = changed
            .wait_timeout_while(lock(state), PATIENCE, |state| {
                !state.has_ended && found(state).len() < count
            })
            .expect("the lock is not poisoned");
        let found = found(&state);
        assert!(
            found.len() >= count,
            "expected {count} lines with {text:?} in the log: {:#?}",
            state.lines
        );
        found
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("the lock is not poisoned")
}
