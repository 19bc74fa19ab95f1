//! Looking before sleeping: a thread that has echoed may look for its client's next bytes for a
//! moment before it blocks in `read`, since most of a short round trip is the waking of a processor
//! that has gone to sleep. Whether that pays, no rule can tell: it brings three times the messages
//! where client and server have a processor each, costs a fifth where they share one, and half where
//! other programs keep all of them busy. So each connection tries it: it sleeps for a stretch of
//! messages, looks for a stretch, and keeps to what took less time, looking only as long as it does.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::platform::wait::is_readable;

/// How many messages are timed before anything is concluded. The processors need some dozens to
/// fall in with the looking: with the default limit, at first, the bytes come just after it.
const STRETCH: u32 = 128;

/// For how many stretches looking goes on before sleeping is timed again, and how many looking rests
/// for at most: where it does not pay, one message in 250 is looked for.
const LONGEST: u32 = 256;

/// Looking that has paid for so many stretches was right, whatever has ended it. Less than that, and
/// the rest after it is four times as long as the last. Idle processors interrupt it after some
/// hundreds, busy ones after ten at most.
const LASTING: u32 = 32;

/// How long it may take to wake a processor; 0.35 ms were seen in a virtual machine. Where messages
/// take longer than that and the limit, it is the client that is slow, or the way to it, and looking
/// is not tried.
const WAKING: Duration = Duration::from_micros(400);

/// Two looks are a microsecond apart. This much between them, and another program had the processor:
/// then it has no time to sleep, and whoever uses it up by looking is kept waiting for it.
const INTERRUPTED: Duration = Duration::from_millis(1);

/// With how many clients inside each may look: they must be fewer than the processors, or who looks
/// keeps one from those who have something to do (up to a fifth less with 16 and 64 clients).
pub(crate) fn max_spinning_clients(limit: Duration) -> usize {
    if limit.is_zero() {
        return 0;
    }
    thread::available_parallelism().map_or(0, |processors| processors.get() - 1)
}

/// One connection's looking, and whether that pays.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    limit: Duration,
    /// When the wait for the next bytes began, where it is timed.
    since: Option<Instant>,
    phase: Phase,
    /// How many messages of the phase are left.
    left: u32,
    /// How long this stretch was waited for.
    waited: Duration,
    /// What a stretch of looking may take: clearly less than the last of sleeping took.
    worth: Duration,
    /// How many stretches the last rest had.
    rest: u32,
}

/// What a connection does with its waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It sleeps, and times that.
    Sleep,
    /// It looks, and times that.
    Look,
    /// It sleeps, and needs no clock.
    Rest,
}

impl BusyPoll {
    pub(crate) fn new(limit: Duration) -> Self {
        let (waited, worth) = (Duration::ZERO, Duration::ZERO);
        Self {
            limit,
            since: None,
            phase: Phase::Sleep,
            left: STRETCH,
            waited,
            worth,
            rest: 0,
        }
    }

    /// Before a read that may sleep: looks for bytes, for the limit at most, where that pays.
    pub(crate) fn spin(&mut self, client: &TcpStream) {
        if self.phase == Phase::Rest {
            return self.count(Duration::ZERO);
        }
        let since = Instant::now();
        self.since = Some(since);
        let mut last = since;
        while self.phase == Phase::Look {
            let found = is_readable(client);
            let now = Instant::now();
            if now - last > INTERRUPTED {
                self.give_up();
            }
            if found || now - since >= self.limit {
                return;
            }
            last = now;
        }
    }

    /// After the read: the bytes have come.
    pub(crate) fn record_arrival(&mut self) {
        if let Some(since) = self.since.take() {
            self.count(since.elapsed());
        }
    }

    /// Counts a message that was waited for, for so long.
    fn count(&mut self, waited: Duration) {
        // One long pause must not outweigh all else.
        let longest = (self.limit + WAKING) * 2;
        self.waited += waited.min(longest);
        self.left -= 1;
        match self.phase {
            Phase::Look if self.waited >= self.worth => self.give_up(),
            _ if !self.left.is_multiple_of(STRETCH) => {}
            Phase::Sleep if self.waited >= longest * STRETCH / 2 => self.give_up(),
            Phase::Sleep => {
                self.worth = self.waited * 3 / 4;
                self.enter(Phase::Look, LONGEST);
            }
            _ if self.left == 0 => self.enter(Phase::Sleep, 1),
            _ => self.waited = Duration::ZERO,
        }
    }

    /// Looking does not pay, or not now.
    fn give_up(&mut self) {
        let lasted = self.phase == Phase::Look && self.left <= (LONGEST - LASTING) * STRETCH;
        self.rest = if lasted {
            1
        } else {
            (self.rest * 4).clamp(1, LONGEST)
        };
        self.enter(Phase::Rest, self.rest);
    }

    fn enter(&mut self, phase: Phase, stretches: u32) {
        (self.phase, self.left, self.waited) = (phase, stretches * STRETCH, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    const QUICK: Duration = Duration::from_micros(20);
    const MIDDLING: Duration = Duration::from_micros(60);
    const SLOW: Duration = Duration::from_millis(1);
    const SILENCE: Duration = Duration::from_secs(3600);

    fn fresh() -> BusyPoll {
        BusyPoll::new(Duration::from_micros(50))
    }

    /// Lets 100,000 messages come that are waited for so long; how many of them were looked for.
    fn looks(busy_poll: &mut BusyPoll, asleep: Duration, looking: Duration) -> u32 {
        let waits = (0..100_000).map(|_| {
            let looks = busy_poll.phase == Phase::Look;
            busy_poll.count(if looks { looking } else { asleep });
            u32::from(looks)
        });
        waits.sum()
    }

    #[test]
    fn where_looking_pays_almost_all_messages_are_looked_for() {
        assert!(looks(&mut fresh(), MIDDLING, QUICK) > 99_000);
    }

    #[test]
    fn where_it_wins_nothing_or_little_almost_none_are() {
        for looking in [MIDDLING * 2, MIDDLING, MIDDLING * 4 / 5] {
            assert!(
                looks(&mut fresh(), MIDDLING, looking) < 1_000,
                "{looking:?}"
            );
        }
    }

    #[test]
    fn none_of_a_slow_clients_are() {
        assert_eq!(looks(&mut fresh(), SLOW, QUICK), 0);
    }

    #[test]
    fn looking_that_no_longer_pays_ends_within_a_stretch() {
        let mut busy_poll = fresh();
        looks(&mut busy_poll, MIDDLING, QUICK);
        assert!(looks(&mut busy_poll, QUICK, MIDDLING) < 1_000);
        looks(&mut busy_poll, QUICK, QUICK);
        assert!(
            looks(&mut busy_poll, MIDDLING, QUICK) > 60_000,
            "it is found out when it pays again"
        );
    }

    #[test]
    fn a_client_that_falls_silent_ends_looking_after_a_few_messages() {
        let mut busy_poll = fresh();
        looks(&mut busy_poll, MIDDLING, QUICK);
        assert!(looks(&mut busy_poll, SILENCE, SILENCE) < 10);
    }

    #[test]
    fn one_long_pause_does_not_hide_that_looking_pays() {
        let mut busy_poll = fresh();
        busy_poll.count(SILENCE);
        assert!(looks(&mut busy_poll, MIDDLING, QUICK) > 99_000);
    }

    /// Two ends of a connection.
    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port can be had");
        let address = listener.local_addr().expect("it has an address");
        let client = TcpStream::connect(address).expect("it listens");
        (client, listener.accept().expect("it is in the queue").0)
    }

    #[test]
    fn who_does_not_look_times_the_wait_until_the_bytes_come() {
        let (_client, server) = connected();
        let mut busy_poll = fresh();
        busy_poll.record_arrival();
        assert_eq!(busy_poll.left, STRETCH, "nobody waited");
        busy_poll.spin(&server);
        assert_eq!(busy_poll.left, STRETCH, "they have not come yet");
        busy_poll.record_arrival();
        assert_eq!(busy_poll.left, STRETCH - 1);
        busy_poll.record_arrival();
        assert_eq!(busy_poll.left, STRETCH - 1, "they came once");
    }

    #[test]
    fn who_rests_needs_no_clock() {
        let (_client, server) = connected();
        let mut busy_poll = fresh();
        busy_poll.enter(Phase::Rest, 1);
        busy_poll.spin(&server);
        busy_poll.record_arrival();
        assert_eq!((busy_poll.since, busy_poll.left), (None, STRETCH - 1));
    }

    /// Looks once; for how long, and whether it will again.
    fn look_once(limit: Duration, client: &TcpStream) -> (Duration, bool) {
        let mut busy_poll = BusyPoll::new(limit);
        busy_poll.enter(Phase::Look, LONGEST);
        busy_poll.spin(client);
        (
            busy_poll.since.expect("it is timed").elapsed(),
            busy_poll.phase == Phase::Look,
        )
    }

    /// Others may interrupt the test itself, but not each time.
    #[test]
    fn looking_goes_on_until_the_limit_unless_it_is_interrupted() {
        let (_client, server) = connected();
        let limit = INTERRUPTED * 2;
        let mut looks = (0..1_000).map(|_| look_once(limit, &server));
        assert!(looks.any(|(lasted, again)| lasted >= limit && again));
    }

    #[test]
    fn looking_ends_when_the_bytes_are_there() {
        let (mut client, server) = connected();
        client.write_all(b"x").expect("it goes out");
        server.peek(&mut [0]).expect("it comes");
        let limit = INTERRUPTED * 2;
        let mut looks = (0..1_000).map(|_| look_once(limit, &server));
        assert!(looks.any(|(lasted, again)| lasted < limit && again));
    }

    #[test]
    fn who_is_interrupted_soon_rests_longer_and_longer_and_who_seldom_is_for_one_stretch() {
        let mut busy_poll = fresh();
        let mut rest_after = |messages: u32| {
            while busy_poll.phase != Phase::Look {
                busy_poll.count(MIDDLING);
            }
            (0..messages).for_each(|_| busy_poll.count(QUICK));
            busy_poll.give_up();
            busy_poll.left / STRETCH
        };
        assert_eq!([10; 6].map(&mut rest_after), [1, 4, 16, 64, 256, 256]);
        assert_eq!([LASTING * STRETCH, 10].map(&mut rest_after), [1, 4]);
    }
}
