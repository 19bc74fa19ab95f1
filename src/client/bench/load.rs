//! One connection's part of the load: what it sends, how it looks at what comes back, when it ends.
//!
//! All send parts of one endless stream of random bytes, each connection from a place of its own,
//! each message from where the last one ended. So no message is like the next, and a stale, mixed-up
//! or shifted echo is seen, yet to make and to check a message costs no more than a `memcmp`.

use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use super::tally::{Live, Reason, Tally};
use super::{Mode, STACK_SIZE};
use crate::client::connection::Connection;
use crate::client::{connect, is_timeout};

/// The bytes after which the stream repeats itself: a prime number, so that no shift by a power of
/// two, such as the size of somebody's buffer, goes unnoticed.
const PERIOD: usize = 65_521;

/// The distance between the places where two connections begin, in bytes.
const SPACING: usize = 7_919;

/// The most that is read at once, and the most of one message that is under way at once, in bytes.
/// A longer message is read while it is still being sent: a server that cannot write its echoes
/// does not read either. So much fits into the buffers on the way.
const WINDOW: usize = 65_536;

/// How often a thread that waits for bytes looks whether the run is over.
const TICK: Duration = Duration::from_millis(50);

/// The pause after a connection that failed, in [`Mode::Connect`]: one that is refused takes no
/// time, and a server that restarts needs some.
const PAUSE: Duration = Duration::from_millis(10);

/// What all connections of a run share.
pub(super) struct Load {
    address: SocketAddr,
    timeout: Duration,
    pub(super) mode: Mode,
    /// Bytes.
    size: usize,
    /// One period of the stream, and as much after it as anybody may ask for at once.
    noise: Vec<u8>,
    /// Unset until all are to start.
    window: OnceLock<Window>,
    over: AtomicBool,
}

/// When it is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: Instant,
    pub(super) end: Instant,
}

impl Load {
    pub(super) fn new(address: SocketAddr, timeout: Duration, mode: Mode, size: usize) -> Self {
        let mut noise = vec![0; PERIOD];
        fastrand::Rng::with_seed(862).fill(&mut noise);
        while noise.len() < PERIOD + size.max(WINDOW) {
            noise.extend_from_within(..PERIOD);
        }
        let (window, over) = (OnceLock::new(), AtomicBool::new(false));
        Self {
            address,
            timeout,
            mode,
            size,
            noise,
            window,
            over,
        }
    }

    /// Starts all who wait in [`Self::work`].
    pub(super) fn start(&self, warm_up: Duration, duration: Duration) -> Window {
        let start = Instant::now() + warm_up;
        *self.window.get_or_init(|| Window {
            start,
            end: start + duration,
        })
    }

    /// Ends the run before its time.
    pub(super) fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Does one connection's part: connects, unless it is given a `stream`, drops `ready`, waits
    /// for the start, and goes on until the run is over or the connection has failed.
    pub(super) fn work(
        &self,
        number: usize,
        stream: Option<TcpStream>,
        live: &Live,
        ready: Sender<Infallible>,
    ) -> Tally {
        let mut worker = Worker {
            load: self,
            live,
            tally: Tally::default(),
            outgoing: Outgoing {
                place: number * SPACING % PERIOD,
            },
            incoming: Incoming {
                place: number * SPACING % PERIOD,
                buffer: vec![0; self.receive_size()],
                quiet: Duration::ZERO,
            },
        };
        let end = match self.mode {
            Mode::Connect => {
                drop((stream, ready));
                worker.connect_and_close()
            }
            Mode::Rtt | Mode::Bulk => self.open(stream).and_then(|connection| {
                drop(ready);
                if self.mode == Mode::Rtt {
                    worker.ping(&connection)
                } else {
                    worker.pour(&connection)
                }
            }),
        };
        if let Err(End::Lost(reason)) = end {
            worker.tally.lose(reason);
        }
        worker.tally
    }

    fn receive_size(&self) -> usize {
        if self.mode == Mode::Bulk {
            WINDOW
        } else {
            self.size.min(WINDOW)
        }
    }

    /// Prepares `stream`, or a new connection: nothing on it blocks for longer than it may.
    fn open(&self, stream: Option<TcpStream>) -> Result<Connection, End> {
        let stream = stream.map_or_else(|| connect(self.address, self.timeout), Ok)?;
        stream.set_read_timeout(Some(TICK.min(self.timeout)))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(Connection::new(stream))
    }

    fn window(&self) -> Window {
        *self.window.wait()
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Returns an error if the run does not wait for the rest of a message any longer: it was
    /// stopped, or the window ended longer ago than the timeout.
    fn check_time_for_rest(&self) -> Result<(), End> {
        if self.is_over() {
            Err(End::Over)
        } else if Instant::now() >= self.window().end + self.timeout {
            Err(End::Lost(Reason::Late))
        } else {
            Ok(())
        }
    }
}

/// One connection after another in [`Mode::Connect`], else one.
struct Worker<'a> {
    load: &'a Load,
    live: &'a Live,
    tally: Tally,
    outgoing: Outgoing,
    incoming: Incoming,
}

impl Worker<'_> {
    /// Sends a message and takes its echo, again and again.
    fn ping(&mut self, connection: &Connection) -> Result<(), End> {
        let window = self.load.window();
        let mut begun = Instant::now();
        loop {
            self.exchange(connection)?;
            // The end of one message is the start of the next: one look at the clock for each.
            let now = Instant::now();
            self.count_message(begun, now, window);
            if now >= window.end || self.load.is_over() {
                return Ok(());
            }
            begun = now;
        }
    }

    /// Connects, exchanges one message, closes, again and again.
    ///
    /// It closes with FIN, as clients do, though that keeps the port for a while (`TIME_WAIT`): to
    /// close with RST would be cheaper for both sides, and another load than the server has in
    /// earnest. Where the ports run out, that is counted.
    fn connect_and_close(&mut self) -> Result<(), End> {
        let window = self.load.window();
        loop {
            let begun = Instant::now();
            let visit = self.visit();
            let now = Instant::now();
            match visit {
                Ok(()) => self.count_message(begun, now, window),
                Err(End::Lost(reason)) => {
                    self.tally.lose(reason);
                    self.incoming.place = self.outgoing.place;
                    self.incoming.quiet = Duration::ZERO;
                    thread::sleep(PAUSE);
                }
                Err(End::Over) => return Ok(()),
            }
            if now >= window.end || self.load.is_over() {
                return Ok(());
            }
        }
    }

    fn visit(&mut self) -> Result<(), End> {
        let connection = self.load.open(None)?;
        self.exchange(&connection)
    }

    /// Sends one message and takes its echo.
    fn exchange(&mut self, connection: &Connection) -> Result<(), End> {
        let size = self.load.size;
        let (mut sent, mut received) = (0, 0);
        while received < size {
            let until = size.min(received + WINDOW);
            while sent < until {
                match self.outgoing.send(connection, until - sent, self.load) {
                    Ok(bytes) => sent += bytes,
                    Err(error) if is_timeout(&error) => return Err(error.into()),
                    // The next read returns how the connection ended.
                    Err(_) => break,
                }
            }
            received += self
                .incoming
                .receive(connection, size - received, self.load)?;
            if received < size {
                self.load.check_time_for_rest()?;
            }
        }
        Ok(())
    }

    /// A message that ends after the window has kept the server busy within it: its latency is
    /// recorded, lest the slowest go missing. But it is not one of the window's messages.
    fn count_message(&mut self, begun: Instant, now: Instant, window: Window) {
        self.live.add(1);
        if now < window.start {
            return;
        }
        self.tally.time(now - begun);
        if now < window.end {
            self.tally.messages += 1;
            self.tally.bytes += self.load.size as u64;
        }
    }

    /// Sends without pause from a second thread, and takes all echoes here.
    fn pour(&mut self, connection: &Connection) -> Result<(), End> {
        let window = self.load.window();
        // Unknown until the sender has ended.
        let total = AtomicU64::new(u64::MAX);
        let (load, outgoing) = (self.load, &mut self.outgoing);
        let (live, tally, incoming) = (self.live, &mut self.tally, &mut self.incoming);
        thread::scope(|scope| {
            thread::Builder::new()
                .stack_size(STACK_SIZE)
                .spawn_scoped(scope, || {
                    outgoing.send_all(connection, window, &total, load);
                })
                .map_err(|error| End::Lost(Reason::NoThread(error.to_string())))?;
            let received = incoming.receive_all(connection, window, &total, load, |bytes, now| {
                live.add(bytes as u64);
                if (window.start..window.end).contains(&now) {
                    tally.bytes += bytes as u64;
                }
            });
            // Wakes the sender if it is blocked in a write.
            connection.close();
            received
        })
    }
}

/// What goes out on a connection.
struct Outgoing {
    /// Where in the stream the next byte stands.
    place: usize,
}

impl Outgoing {
    /// Sends up to `at_most` bytes and returns how many.
    fn send(
        &mut self,
        mut connection: &Connection,
        at_most: usize,
        load: &Load,
    ) -> io::Result<usize> {
        match connection.write(&load.noise[self.place..][..at_most]) {
            Ok(sent) => {
                self.place = (self.place + sent) % PERIOD;
                Ok(sent)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Sends until the window's end, then stores in `total` how many bytes that were. If the
    /// connection ends before, the receiver reports how.
    fn send_all(
        &mut self,
        connection: &Connection,
        window: Window,
        total: &AtomicU64,
        load: &Load,
    ) {
        let mut sent = 0;
        while Instant::now() < window.end && !load.is_over() {
            match self.send(connection, load.size, load) {
                Ok(bytes) => sent += bytes as u64,
                // The receiver decides how long nothing may move: a slow server may send for long
                // before it takes more.
                Err(error) if is_timeout(&error) => {}
                Err(_) => return,
            }
        }
        total.store(sent, Ordering::Relaxed);
    }
}

/// What comes back on a connection.
struct Incoming {
    /// Where in the stream the next byte must stand.
    place: usize,
    buffer: Vec<u8>,
    /// For how long nothing has come, in whole ticks: a busy connection needs no clock for it.
    quiet: Duration,
}

impl Incoming {
    /// Receives `at_most` that many bytes, and compares them with those that were sent; how many.
    fn receive(
        &mut self,
        mut connection: &Connection,
        at_most: usize,
        load: &Load,
    ) -> Result<usize, End> {
        let room = at_most.min(self.buffer.len());
        match connection.read(&mut self.buffer[..room]) {
            Ok(0) => Err(End::Lost(Reason::Closed)),
            Ok(received) => {
                if self.buffer[..received] != load.noise[self.place..][..received] {
                    return Err(End::Lost(Reason::Wrong));
                }
                self.place = (self.place + received) % PERIOD;
                self.quiet = Duration::ZERO;
                Ok(received)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
            Err(error) if is_timeout(&error) => self.wait_on(load).map(|()| 0),
            Err(error) => Err(error.into()),
        }
    }

    /// After a tick without a byte: whether there is reason to wait for the next.
    fn wait_on(&mut self, load: &Load) -> Result<(), End> {
        self.quiet += TICK.min(load.timeout);
        if load.is_over() {
            Err(End::Over)
        } else if self.quiet >= load.timeout {
            Err(End::Lost(Reason::Late))
        } else {
            Ok(())
        }
    }

    /// Receives until all of `total` bytes have come back; `count` hears of each piece and when it
    /// came. A server that is slow to give back the last has the timeout for it, and is left then.
    fn receive_all(
        &mut self,
        connection: &Connection,
        window: Window,
        total: &AtomicU64,
        load: &Load,
        mut count: impl FnMut(usize, Instant),
    ) -> Result<(), End> {
        let mut received = 0;
        while received < total.load(Ordering::Relaxed) {
            let bytes = self.receive(connection, WINDOW, load)?;
            let now = Instant::now();
            count(bytes, now);
            received += bytes as u64;
            if load.is_over() || now >= window.end + load.timeout {
                return Err(End::Over);
            }
        }
        Ok(())
    }
}

/// Why a connection ended before its time.
enum End {
    /// The run was stopped.
    Over,
    Lost(Reason),
}

impl<E: Into<Reason>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Lost(error.into())
    }
}
