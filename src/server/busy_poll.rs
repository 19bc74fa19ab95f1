//! Adaptive busy polling. After an echo, a thread may poll for the client's next bytes for a moment
//! before it blocks in `recv`, because waking a sleeping CPU is most of a short round trip.
//!
//! Whether that pays depends on the machine and its load, so each connection measures it: it blocks
//! for a sample of messages, spins for a sample, and keeps what took less time.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::platform::wait::is_readable;

/// The number of messages in a sample. CPUs need some dozens of messages to adapt to spinning.
const SAMPLE_SIZE: u32 = 128;

/// How many samples of spinning come before the next sample of blocking.
const SPINNING_SAMPLES: u32 = 256;

/// The longest back-off, in samples.
const MAX_BACKOFF: u32 = 256;

/// After at least this many samples of spinning, the back-off is short. After fewer, it is four times as
/// long as the last one.
const MIN_PAYING_SAMPLES: u32 = 32;

/// How long it may take to wake a CPU. If messages take longer than that plus the maximum time to
/// spin, the client or its link is slow, and spinning is not tried.
const MAX_WAKE_LATENCY: Duration = Duration::from_micros(400);

/// Two polls are about a microsecond apart. If this much time passes between them, another program
/// ran on the CPU, so no CPU is free for spinning.
const PREEMPTION_GAP: Duration = Duration::from_millis(1);

/// Returns the maximum number of connected clients at which threads may spin. It is below the number
/// of CPUs, so that spinning threads do not keep one from threads that have work to do.
pub(crate) fn max_spinning_clients(max_spin: Duration) -> usize {
    if max_spin.is_zero() {
        return 0;
    }
    thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1)
}

/// The busy polling of one connection.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    /// The maximum time to spin for one message.
    max_spin: Duration,
    /// When the wait for the next message began, if it is measured.
    started: Option<Instant>,
    phase: Phase,
    /// How many messages are left in the phase.
    remaining: u32,
    /// The total waiting time in this sample.
    waited: Duration,
    /// The maximum waiting time in a sample of spinning: three quarters of the last sample of
    /// blocking.
    budget: Duration,
    /// The length of the last back-off, in samples.
    backoff_samples: u32,
}

/// How a connection waits for the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It blocks in `recv`, and measures how long.
    Baseline,
    /// It spins before `recv`, and measures how long.
    Spinning,
    /// It blocks in `recv`, without reading the clock.
    Backoff,
}

impl BusyPoll {
    pub(crate) fn new(max_spin: Duration) -> Self {
        Self {
            max_spin,
            started: None,
            phase: Phase::Baseline,
            remaining: SAMPLE_SIZE,
            waited: Duration::ZERO,
            budget: Duration::ZERO,
            backoff_samples: 0,
        }
    }

    /// Begins the wait for the next message. If spinning pays, spins until bytes arrive or the maximum
    /// time passes. Called before `recv`.
    pub(crate) fn spin_if_it_pays(&mut self, client: &TcpStream) {
        if self.phase == Phase::Backoff {
            // Only counts the message: a back-off is not measured.
            return self.record_wait(Duration::ZERO);
        }
        let started = Instant::now();
        self.started = Some(started);
        let mut last = started;
        while self.phase == Phase::Spinning {
            let found = is_readable(client);
            let now = Instant::now();
            if now - last > PREEMPTION_GAP {
                self.back_off();
            }
            if found || now - started >= self.max_spin {
                return;
            }
            last = now;
        }
    }

    /// Ends the wait for a message. Called after a `recv` that returned bytes.
    pub(crate) fn record_arrival(&mut self) {
        if let Some(started) = self.started.take() {
            self.record_wait(started.elapsed());
        }
    }

    /// Records how long a message was waited for, and decides how to wait for the next one.
    fn record_wait(&mut self, waited: Duration) {
        let slow_wait = self.max_spin + MAX_WAKE_LATENCY;
        // One long pause must not outweigh the other messages.
        self.waited += waited.min(slow_wait * 2);
        self.remaining -= 1;
        let sample_is_complete = self.remaining.is_multiple_of(SAMPLE_SIZE);
        match self.phase {
            Phase::Spinning if self.waited >= self.budget => self.back_off(),
            _ if !sample_is_complete => {}
            Phase::Baseline if self.waited >= slow_wait * SAMPLE_SIZE => self.back_off(),
            Phase::Baseline => {
                self.budget = self.waited * 3 / 4;
                self.enter(Phase::Spinning, SPINNING_SAMPLES);
            }
            _ if self.remaining == 0 => self.enter(Phase::Baseline, 1),
            _ => self.waited = Duration::ZERO,
        }
    }

    /// Stops spinning for a while, because it does not pay now.
    fn back_off(&mut self) {
        let has_paid = self.phase == Phase::Spinning
            && self.remaining <= (SPINNING_SAMPLES - MIN_PAYING_SAMPLES) * SAMPLE_SIZE;
        self.backoff_samples = if has_paid {
            1
        } else {
            (self.backoff_samples * 4).clamp(1, MAX_BACKOFF)
        };
        self.enter(Phase::Backoff, self.backoff_samples);
    }

    fn enter(&mut self, phase: Phase, samples: u32) {
        self.phase = phase;
        self.remaining = samples * SAMPLE_SIZE;
        self.waited = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};
    use std::num::NonZeroUsize;

    use super::*;

    const QUICK: Duration = Duration::from_micros(20);
    const MIDDLING: Duration = Duration::from_micros(60);
    const SLOW: Duration = Duration::from_millis(1);
    const SILENCE: Duration = Duration::from_secs(3600);

    fn new_busy_poll() -> BusyPoll {
        BusyPoll::new(Duration::from_micros(50))
    }

    /// Records 100,000 messages that take this long when blocking and when spinning. Returns for
    /// how many the connection was spinning.
    fn count_spins(busy_poll: &mut BusyPoll, blocking: Duration, spinning: Duration) -> u32 {
        let waits = (0..100_000).map(|_| {
            let spins = busy_poll.phase == Phase::Spinning;
            busy_poll.record_wait(if spins { spinning } else { blocking });
            u32::from(spins)
        });
        waits.sum()
    }

    #[test]
    fn one_cpu_is_left_to_threads_that_have_work() {
        let cpus = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        assert_eq!(max_spinning_clients(QUICK), cpus - 1);
        assert_eq!(max_spinning_clients(Duration::ZERO), 0);
    }

    #[test]
    fn almost_all_messages_spin_if_it_pays() {
        assert!(count_spins(&mut new_busy_poll(), MIDDLING, QUICK) > 99_000);
    }

    #[test]
    fn almost_no_message_spins_if_it_saves_little() {
        for spinning in [MIDDLING * 2, MIDDLING, MIDDLING * 4 / 5] {
            assert!(
                count_spins(&mut new_busy_poll(), MIDDLING, spinning) < 1_000,
                "{spinning:?}"
            );
        }
    }

    #[test]
    fn no_message_of_a_slow_client_spins() {
        assert_eq!(count_spins(&mut new_busy_poll(), SLOW, QUICK), 0);
    }

    #[test]
    fn spinning_ends_within_a_sample_once_it_no_longer_pays() {
        let mut busy_poll = new_busy_poll();
        count_spins(&mut busy_poll, MIDDLING, QUICK);
        assert!(count_spins(&mut busy_poll, QUICK, MIDDLING) < 1_000);
        count_spins(&mut busy_poll, QUICK, QUICK);
        assert!(
            count_spins(&mut busy_poll, MIDDLING, QUICK) > 60_000,
            "spinning begins again once it pays"
        );
    }

    #[test]
    fn a_silent_client_ends_spinning_after_a_few_messages() {
        let mut busy_poll = new_busy_poll();
        count_spins(&mut busy_poll, MIDDLING, QUICK);
        assert!(count_spins(&mut busy_poll, SILENCE, SILENCE) < 10);
    }

    #[test]
    fn one_long_pause_does_not_hide_that_spinning_pays() {
        let mut busy_poll = new_busy_poll();
        busy_poll.record_wait(SILENCE);
        assert!(count_spins(&mut busy_poll, MIDDLING, QUICK) > 99_000);
    }

    /// Returns both ends of a connection.
    fn connected() -> (TcpStream, TcpStream) {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the system has a free port");
        let address = listener.local_addr().expect("it has an address");
        let client = TcpStream::connect(address).expect("it listens");
        (
            client,
            listener.accept().expect("the client has connected").0,
        )
    }

    #[test]
    fn blocking_is_measured_until_the_bytes_arrive() {
        let (_client, server) = connected();
        let mut busy_poll = new_busy_poll();
        busy_poll.record_arrival();
        assert_eq!(busy_poll.remaining, SAMPLE_SIZE, "there was no wait");
        busy_poll.spin_if_it_pays(&server);
        assert_eq!(busy_poll.remaining, SAMPLE_SIZE, "no bytes have arrived");
        busy_poll.record_arrival();
        assert_eq!(busy_poll.remaining, SAMPLE_SIZE - 1);
        busy_poll.record_arrival();
        assert_eq!(
            busy_poll.remaining,
            SAMPLE_SIZE - 1,
            "the bytes arrived once"
        );
    }

    #[test]
    fn backoff_needs_no_clock() {
        let (_client, server) = connected();
        let mut busy_poll = new_busy_poll();
        busy_poll.enter(Phase::Backoff, 1);
        busy_poll.spin_if_it_pays(&server);
        busy_poll.record_arrival();
        assert_eq!(busy_poll.started, None);
        assert_eq!(busy_poll.remaining, SAMPLE_SIZE - 1);
    }

    /// Spins once. Returns for how long, and whether the connection goes on spinning.
    fn spin_once(limit: Duration, client: &TcpStream) -> (Duration, bool) {
        let mut busy_poll = BusyPoll::new(limit);
        busy_poll.enter(Phase::Spinning, SPINNING_SAMPLES);
        busy_poll.spin_if_it_pays(client);
        let started = busy_poll.started.expect("spinning is measured");
        (started.elapsed(), busy_poll.phase == Phase::Spinning)
    }

    /// Other programs may interrupt the test itself, but not each time.
    #[test]
    fn spinning_lasts_until_the_limit_unless_preempted() {
        let (_client, server) = connected();
        let limit = PREEMPTION_GAP * 2;
        let mut spins = (0..1_000).map(|_| spin_once(limit, &server));
        assert!(spins.any(|(lasted, goes_on)| lasted >= limit && goes_on));
    }

    #[test]
    fn spinning_ends_when_bytes_arrive() {
        let (mut client, server) = connected();
        client.write_all(b"x").expect("the client sends");
        server.peek(&mut [0]).expect("the bytes arrive");
        let limit = PREEMPTION_GAP * 2;
        let mut spins = (0..1_000).map(|_| spin_once(limit, &server));
        assert!(spins.any(|(lasted, goes_on)| lasted < limit && goes_on));
    }

    #[test]
    fn backoff_grows_unless_spinning_has_paid() {
        let mut busy_poll = new_busy_poll();
        let mut backoff_after = |messages: u32| {
            while busy_poll.phase != Phase::Spinning {
                busy_poll.record_wait(MIDDLING);
            }
            for _ in 0..messages {
                busy_poll.record_wait(QUICK);
            }
            busy_poll.back_off();
            busy_poll.remaining / SAMPLE_SIZE
        };
        assert_eq!([10; 6].map(&mut backoff_after), [1, 4, 16, 64, 256, 256]);
        let messages = [MIN_PAYING_SAMPLES * SAMPLE_SIZE, 10];
        assert_eq!(messages.map(&mut backoff_after), [1, 4]);
    }
}
