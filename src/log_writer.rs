//! Writes the log to stderr in a background thread. The reader of stderr may be slow or may have
//! stopped reading, and a connection's thread must not wait for it. So a connection's thread only
//! queues its line, and the background thread writes the queued lines in batches.

use std::io::{self, ErrorKind, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Maximum number of queued bytes. Further lines are dropped and counted.
const QUEUE_LIMIT: usize = 1_048_576;

/// Stack size of the background thread, in bytes.
const STACK_SIZE: usize = 131_072;

/// Pause after each batch, in which the next one gathers. It limits the wake-ups of the background
/// thread on a busy server to 200 a second.
const BATCH_INTERVAL: Duration = Duration::from_millis(5);

/// A handle to the background thread. Each line of the log is one call of [`Write::write`], which
/// never blocks on the stream.
///
/// ```
/// use std::io::{Write, sink};
/// use std::time::Duration;
///
/// use echo_server::log_writer::LogWriter;
///
/// # fn main() -> std::io::Result<()> {
/// let mut log = LogWriter::start(sink())?;
/// log.write_all(b"a line\n")?;
/// log.close(Duration::from_secs(1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct LogWriter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Notified when the background thread has work to do, and when it has ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    pending: Vec<u8>,
    dropped: u64,
    /// Whether the background thread waits to be notified.
    idle: bool,
    closing: bool,
    closed: bool,
}

impl LogWriter {
    /// Starts the thread that writes the queued lines to `out`.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be spawned.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let writer = Self::default();
        let shared = Arc::clone(&writer.0);
        thread::Builder::new()
            .name("log".to_owned())
            .stack_size(STACK_SIZE)
            .spawn(move || shared.write_to(out))?;
        Ok(writer)
    }

    /// Waits until all lines are written, but no longer than `timeout`, because the stream may not
    /// be read.
    pub fn close(&self, timeout: Duration) {
        let mut queue = self.0.lock();
        queue.closing = true;
        self.0.changed.notify_all();
        drop(self.0.changed.wait_timeout_while(queue, timeout, |queue| !queue.closed));
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.lock();
        if queue.pending.len() + line.len() > QUEUE_LIMIT {
            queue.dropped += 1;
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
            let (dropped, closing) = (mem::take(&mut queue.dropped), queue.closing);
            drop(queue);
            if dropped > 0 {
                let report =
                    format!("{dropped} lines of the log lost here: they were not read in time\n");
                batch.extend_from_slice(report.as_bytes());
            }
            // A stream that is closed or broken does not stop the service.
            let _ = write_patiently(&mut out, &batch);
            batch.clear();
            if closing {
                break;
            }
            thread::sleep(BATCH_INTERVAL);
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// Does what `write_all` does, and waits if the stream is non-blocking: another process that shares
/// the stream can make it so.
fn write_patiently(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(BATCH_INTERVAL),
            Err(error) => return Err(error),
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A stream that blocks each write until the test permits it.
    struct Stalled {
        permits: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.permits.recv();
            let _ = self.written.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_unread_stream_bounds_the_queue_and_counts_drops() -> io::Result<()> {
        let (permit, permits) = channel();
        let (written, output) = channel();
        let mut log = LogWriter::start(Stalled { permits, written })?;
        let line = [b'x'; 1023].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        for _ in 0..5000 {
            // No write is permitted yet, so a call that waits for the stream hangs the test.
            log.write_all(&line)?;
        }
        drop(permit);
        log.close(Duration::from_secs(20));
        let output: String = output.try_iter().collect();
        let reports = output.lines().filter_map(|line| line.split_once(" lines of the log lost"));
        let dropped: usize = reports.map(|(n, _)| n.parse::<usize>().expect("a number")).sum();
        let kept = output.lines().filter(|line| line.len() == 1023).count();
        assert_eq!(kept + dropped, 5000);
        // The stalled batch and the queue.
        assert!((1024..=2048).contains(&kept), "{kept} lines kept");
        Ok(())
    }

    #[test]
    fn close_gives_up_after_its_timeout() -> io::Result<()> {
        let (_permit, permits) = channel();
        let (written, _output) = channel();
        let mut log = LogWriter::start(Stalled { permits, written })?;
        log.write_all(b"line\n")?;
        log.close(Duration::from_millis(1));
        assert!(!log.0.lock().closed);
        Ok(())
    }

    #[test]
    fn close_does_not_wait_for_a_broken_stream() -> io::Result<()> {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut log = LogWriter::start(Broken)?;
        log.write_all(b"line\n")?;
        log.close(Duration::from_secs(20));
        assert!(log.0.lock().closed);
        Ok(())
    }

    #[test]
    fn interrupted_and_short_writes_lose_nothing() -> io::Result<()> {
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
        let mut log = LogWriter::start(Reluctant(0, written))?;
        log.write_all(b"one line\n")?;
        log.close(Duration::from_secs(20));
        assert_eq!(output.try_iter().collect::<Vec<u8>>(), b"one line\n");
        Ok(())
    }
}
