//! The log on its way to stderr. Whoever reads it may be slow or may have stopped reading, like a
//! pager; a client's thread must not wait for that. So it leaves its line in a queue, and a thread
//! of its own writes what has gathered there, many lines at a time.

use std::io::{self, ErrorKind, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The most that waits to be written, in bytes; lines beyond it are lost, and counted.
const LIMIT: usize = 1_048_576;

/// What the writer's thread has for its calls, in bytes.
const STACK_SIZE: usize = 131_072;

/// How long lines may gather after some were written: a busy server wakes the writer 200 times a
/// second, not for each line.
const GATHER: Duration = Duration::from_millis(5);

/// Where the log's lines go, each by one call of [`Write::write`].
///
/// ```
/// use std::io::{Write, sink};
/// use std::time::Duration;
///
/// use echo_server::log_queue::LogQueue;
///
/// # fn main() -> std::io::Result<()> {
/// let mut log = LogQueue::start(sink())?;
/// log.write_all(b"a line\n")?;
/// log.close(Duration::from_secs(1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct LogQueue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Notified when the writer has something to do, and when it has ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    pending: Vec<u8>,
    lost: u64,
    /// Whether the writer sleeps until it is notified.
    idle: bool,
    closing: bool,
    closed: bool,
}

impl LogQueue {
    /// Starts the thread that writes the queue to `out`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Self::default();
        let writer = Arc::clone(&queue.0);
        thread::Builder::new()
            .name("log".to_owned())
            .stack_size(STACK_SIZE)
            .spawn(move || writer.write_to(out))?;
        Ok(queue)
    }

    /// Blocks until all is written, for `timeout` at most: nobody may be reading.
    pub fn close(&self, timeout: Duration) {
        let mut queue = self.0.lock();
        queue.closing = true;
        self.0.changed.notify_all();
        drop(self.0.changed.wait_timeout_while(queue, timeout, |queue| !queue.closed));
    }
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.lock();
        if queue.pending.len() + line.len() > LIMIT {
            queue.lost += 1;
        } else {
            queue.pending.extend_from_slice(line);
        }
        if mem::take(&mut queue.idle) {
            self.0.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, mut out: impl Write) {
        let mut batch = Vec::new();
        loop {
            let mut queue = self.lock();
            while queue.pending.is_empty() && !queue.closing {
                queue.idle = true;
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            mem::swap(&mut batch, &mut queue.pending);
            let (lost, closing) = (mem::take(&mut queue.lost), queue.closing);
            drop(queue);
            if lost > 0 {
                let told =
                    format!("{lost} lines of the log lost here: they were not read in time\n");
                batch.extend_from_slice(told.as_bytes());
            }
            // Nobody can be told that stderr is closed or broken; the service goes on.
            let _ = write_patiently(&mut out, &batch);
            batch.clear();
            if closing {
                break;
            }
            thread::sleep(GATHER);
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// `write_all`, also where another program has made the stream non-blocking for all who share it.
fn write_patiently(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(GATHER),
            Err(error) => return Err(error),
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A stderr that takes a write only when the test gives leave.
    struct Stalled {
        leave: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.leave.recv();
            let _ = self.written.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_reads_are_bounded_and_the_lost_ones_counted() -> io::Result<()> {
        let (go, leave) = channel();
        let (written, output) = channel();
        let mut queue = LogQueue::start(Stalled { leave, written })?;
        let line = [b'x'; 1023].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        for _ in 0..5000 {
            // Nobody gives leave: were this to wait for the reader, the test would hang here.
            queue.write_all(&line)?;
        }
        drop(go);
        queue.close(Duration::from_secs(20));
        let output: String = output.try_iter().collect();
        let losses = output.lines().filter_map(|line| line.split_once(" lines of the log lost"));
        let lost: usize = losses.map(|(n, _)| n.parse::<usize>().expect("in numbers")).sum();
        let kept = output.lines().filter(|line| line.len() == 1023).count();
        assert_eq!(kept + lost, 5000);
        // What was in the writer's hands when it stalled, and what the queue holds.
        assert!((1024..=2048).contains(&kept), "{kept} lines kept");
        Ok(())
    }

    #[test]
    fn closing_gives_up_on_a_reader_that_never_reads() -> io::Result<()> {
        let (_go, leave) = channel();
        let (written, _output) = channel();
        let mut queue = LogQueue::start(Stalled { leave, written })?;
        queue.write_all(b"line\n")?;
        queue.close(Duration::from_millis(1));
        assert!(!queue.0.lock().closed);
        Ok(())
    }

    #[test]
    fn closing_does_not_wait_for_a_stream_that_is_broken() -> io::Result<()> {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut queue = LogQueue::start(Broken)?;
        queue.write_all(b"line\n")?;
        queue.close(Duration::from_secs(20));
        assert!(queue.0.lock().closed);
        Ok(())
    }

    #[test]
    fn a_stream_that_takes_little_at_a_time_and_often_nothing_loses_nothing() -> io::Result<()> {
        struct Reluctant(u8, Sender<u8>);
        impl Write for Reluctant {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = (self.0 + 1) % 3;
                match self.0 {
                    0 => Err(ErrorKind::WouldBlock.into()),
                    1 => Err(ErrorKind::Interrupted.into()),
                    _ => {
                        let _ = self.1.send(bytes[0]);
                        Ok(1)
                    }
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (written, output) = channel();
        let mut queue = LogQueue::start(Reluctant(0, written))?;
        queue.write_all(b"one line\n")?;
        queue.close(Duration::from_secs(20));
        assert_eq!(output.try_iter().collect::<Vec<u8>>(), b"one line\n");
        Ok(())
    }
}
