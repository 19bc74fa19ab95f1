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
/// thread on a busy server to 200/s.
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
    dropped: usize,
    /// Whether the background thread waits to be notified.
    idle: bool,
    closing: bool,
    closed: bool,
}

impl LogWriter {
    /// Starts the thread that writes the queued lines to `out`.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be spawned or there is no memory for the queue.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let writer = Self::default();
        let shared = Arc::clone(&writer.0);
        // The queue never grows later: if the system is short of memory then, a failed allocation
        // would end the process.
        let mut batch = Vec::new();
        batch.try_reserve_exact(QUEUE_LIMIT)?;
        writer.0.lock().pending.try_reserve_exact(QUEUE_LIMIT)?;
        thread::Builder::new()
            .name("log".to_owned())
            .stack_size(STACK_SIZE)
            .spawn(move || shared.write_to(out, batch))?;
        Ok(writer)
    }

    /// Waits until all lines are written, but no longer than `timeout`, because the stream may not
    /// be read.
    pub fn close(&self, timeout: Duration) {
        let mut queue = self.0.lock();
        queue.closing = true;
        self.0.changed.notify_all();
        drop(
            self.0
                .changed
                .wait_timeout_while(queue, timeout, |queue| !queue.closed),
        );
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

    fn write_to(&self, stream: impl Write, mut batch: Vec<u8>) {
        let mut output = Output {
            stream,
            partial_line: Vec::new(),
            dropped: 0,
            reason: String::new(),
        };
        loop {
            let mut queue = self.lock();
            while queue.pending.is_empty() && !queue.closing {
                queue.idle = true;
                queue = self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            mem::swap(&mut batch, &mut queue.pending);
            let (dropped, closing) = (mem::take(&mut queue.dropped), queue.closing);
            drop(queue);
            output.write_lines(&mut batch);
            if dropped > 0 {
                output.count_dropped(dropped, "stderr was not read in time".to_owned());
                output.write_lines(&mut batch);
            }
            if closing {
                break;
            }
            thread::sleep(BATCH_INTERVAL);
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// The stream, and what it still has to receive if its last write failed.
struct Output<W> {
    stream: W,
    /// The unwritten end of a line that was written in part. It goes first, so that no two lines
    /// merge.
    partial_line: Vec<u8>,
    /// Number of lines dropped since the last report of them.
    dropped: usize,
    /// Why the latest of them was dropped.
    reason: String,
}

impl<W: Write> Output<W> {
    /// Writes `lines` and leaves it empty. If the stream fails, drops the lines that it did not
    /// take, and counts them; the next call reports them.
    fn write_lines(&mut self, lines: &mut Vec<u8>) {
        if let Err((error, unwritten)) = self.try_write_lines(lines) {
            let dropped = unwritten.split_inclusive(|&b| b == b'\n').count();
            self.count_dropped(dropped, error.to_string());
        }
        lines.clear();
    }

    /// Writes the rest of the last line, the report of dropped lines, and `lines`.
    ///
    /// # Errors
    /// Returns the stream's error and the lines of which nothing is written.
    fn try_write_lines<'a>(&mut self, lines: &'a [u8]) -> Result<(), (io::Error, &'a [u8])> {
        let rest = mem::take(&mut self.partial_line);
        let (written, outcome) = write_until_error(&mut self.stream, &rest);
        if let Err(error) = outcome {
            self.partial_line = rest[written..].to_vec();
            return Err((error, lines));
        }
        let report = self.report();
        let (written, outcome) = write_until_error(&mut self.stream, report.as_bytes());
        if written > 0 {
            self.dropped = 0;
            self.partial_line = report.as_bytes()[written..].to_vec();
        }
        if let Err(error) = outcome {
            return Err((error, lines));
        }
        let (written, outcome) = write_until_error(&mut self.stream, lines);
        if let Err(error) = outcome {
            let line_end = match written {
                0 => 0,
                _ => written - 1 + line_length(&lines[written - 1..]),
            };
            self.partial_line = lines[written..line_end].to_vec();
            return Err((error, &lines[line_end..]));
        }
        Ok(())
    }

    fn count_dropped(&mut self, count: usize, reason: String) {
        self.dropped += count;
        self.reason = reason;
    }

    fn report(&self) -> String {
        match self.dropped {
            0 => String::new(),
            1 => format!("1 log line dropped: {}\n", self.reason),
            n => format!("{n} log lines dropped: {}\n", self.reason),
        }
    }
}

/// Returns the length of the first line, with its line break.
fn line_length(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .position(|&b| b == b'\n')
        .map_or(bytes.len(), |last| last + 1)
}

/// Writes until all is written or the stream fails. Returns how many bytes were written.
fn write_until_error(stream: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match retry_if_blocked(|| stream.write(&bytes[written..])) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(error) => return (written, Err(error)),
        }
    }
    (written, retry_if_blocked(|| stream.flush()))
}

/// Calls `operation` again as long as it is interrupted or would block. A stream that is shared
/// with another process can be non-blocking, because that process can make it so.
///
/// # Errors
/// Returns the first other error of `operation`.
fn retry_if_blocked<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match operation() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(BATCH_INTERVAL),
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use proptest::prelude::*;

    use super::*;

    /// A stream that blocks each write until the test permits it.
    struct Stalled {
        permits: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.permits.recv();
            let _ = self
                .written
                .send(String::from_utf8_lossy(bytes).into_owned());
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
        let line = [b'x'; 1023]
            .iter()
            .chain(b"\n")
            .copied()
            .collect::<Vec<u8>>();
        for _ in 0..5000 {
            // No write is permitted yet, so a call that waits for the stream hangs the test.
            log.write_all(&line)?;
        }
        drop(permit);
        log.close(Duration::from_secs(20));
        let output: String = output.try_iter().collect();
        assert!(output.contains(" log lines dropped: stderr was not read in time\n"));
        let reports = output
            .lines()
            .filter_map(|line| line.split_once(" log lines dropped: "));
        let dropped: usize = reports
            .map(|(n, _)| n.parse::<usize>().expect("a number"))
            .sum();
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

    /// A file on a disk with limited space.
    #[derive(Default)]
    struct Disk {
        free: usize,
        file: Vec<u8>,
        failures: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = bytes.len().min(self.free);
            if written == 0 {
                self.failures += 1;
                return Err(ErrorKind::StorageFull.into());
            }
            self.file.extend(&bytes[..written]);
            self.free -= written;
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn on_disk(free: usize) -> Output<Disk> {
        let stream = Disk {
            free,
            ..Disk::default()
        };
        Output {
            stream,
            partial_line: Vec::new(),
            dropped: 0,
            reason: String::new(),
        }
    }

    #[test]
    fn a_full_disk_drops_whole_lines_and_reports_them() {
        let mut output = on_disk(9);
        output.write_lines(&mut b"line 1\nline 2\nline 3\n".to_vec());
        output.stream.free = 1000;
        output.write_lines(&mut b"line 4\n".to_vec());
        output.stream.free = 0;
        output.write_lines(&mut b"line 5\nline 6\n".to_vec());
        output.stream.free = 1000;
        output.write_lines(&mut b"line 7\n".to_vec());
        let written = String::from_utf8_lossy(&output.stream.file).into_owned();
        let reason = io::Error::from(ErrorKind::StorageFull);
        let first = format!("line 1\nline 2\n1 log line dropped: {reason}\nline 4\n");
        assert_eq!(
            written,
            format!("{first}2 log lines dropped: {reason}\nline 7\n")
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_disk_space_keeps_lines_whole_and_counts_drops(
            steps in prop::collection::vec((0..4_usize, 0..120_usize), 1..20),
        ) {
            let mut output = on_disk(0);
            let mut total = 0;
            for (count, free) in steps.iter().copied().chain([(1, 10_000)]) {
                output.stream.free = free;
                let lines = (total..total + count).map(|n| format!("line {n}\n"));
                output.write_lines(&mut lines.collect::<String>().into_bytes());
                total += count;
            }
            let (mut kept, mut dropped) = (0, 0);
            for line in String::from_utf8_lossy(&output.stream.file).lines() {
                if let Some((count, _)) = line.split_once(" log line") {
                    dropped += count.parse::<usize>().expect("a number");
                } else {
                    let number = line.strip_prefix("line ").map(str::parse::<usize>);
                    prop_assert_eq!(number, Some(Ok(kept + dropped)), "{}", line);
                    kept += 1;
                }
            }
            prop_assert_eq!(kept + dropped, total);
            prop_assert!(output.stream.failures <= steps.len(), "it retries by itself");
        }
    }
}
