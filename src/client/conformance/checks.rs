//! The checks: what a TCP echo server owes its clients, a function for each property.

use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, Release},
};
use std::thread;
use std::time::Duration;

use indicatif::ProgressStyle;

use super::peer::{Fault, Part, Peer, Subject};

/// How long nothing must come where nothing may, and how long a client pauses.
const PAUSE: Duration = Duration::from_millis(200);

/// How long a sender must not get on before the way counts as full for now.
const STALL: Duration = Duration::from_millis(50);

/// How long a sender must not get on before the server counts as waiting for its client to read.
const STUCK: Duration = Duration::from_secs(1);

/// The most that is sent to a server that is not read from, in bytes: more than the buffers of any
/// usual way there and back. A server with a buffer that has no end must not have it filled.
const MOST_UNREAD: usize = 33_554_432;

/// What goes through in one stream, in bytes.
const STREAM: usize = 67_108_864;

/// What goes out before the half-close, in bytes.
const OWED: usize = 8_388_608;

/// The piece in which streams are made and compared, in bytes.
const CHUNK: usize = 65_536;

/// Clients at once.
const CROWD: usize = 64;

/// One property of an echo server.
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) run: fn(&Subject) -> Result<(), Fault>,
}

/// All of them, the simple ones first: where those fail, the others have no better reason to.
pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "one byte",
        run: |subject| exchange(subject, b"a"),
    },
    Check {
        name: "every byte value",
        run: |subject| exchange(subject, &(0..=255).collect::<Vec<u8>>()),
    },
    Check {
        name: "NUL",
        run: |subject| exchange(subject, b"\0before\0\0after\0"),
    },
    Check {
        name: "CR LF, LF and CR",
        run: |subject| exchange(subject, b"a\r\nb\nc\rd\r\n\r\n\n\n"),
    },
    Check {
        name: "bytes that are not UTF-8",
        run: |subject| exchange(subject, b"\xff\xff\xfe\x80\xc3(\xed\xa0\x80\xf8\x88"),
    },
    Check {
        name: "text in several scripts",
        run: |subject| exchange(subject, SCRIPTS.as_bytes()),
    },
    Check {
        name: "silence until the client speaks",
        run: |subject| subject.connect()?.expect_silence(PAUSE),
    },
    Check {
        name: "nothing beyond what was sent",
        run: nothing_beyond_what_was_sent,
    },
    Check {
        name: "nothing sent, half-closed: FIN",
        run: nothing_sent_then_half_closed,
    },
    Check {
        name: "a message without a newline",
        run: |subject| exchange(subject, b"no newline"),
    },
    Check {
        name: "bytes sent one by one",
        run: bytes_sent_one_by_one,
    },
    Check {
        name: "two messages in one segment",
        run: |subject| exchange(subject, b"first\nsecond\n"),
    },
    Check {
        name: "a message cut by a pause",
        run: a_message_cut_by_a_pause,
    },
    Check {
        name: "words that other servers obey",
        run: words_that_other_servers_obey,
    },
    Check {
        name: "sizes around the edges of buffers",
        run: sizes_around_the_edges_of_buffers,
    },
    Check {
        name: "64 MiB both ways at once",
        run: both_ways_at_once,
    },
    Check {
        name: "half-close with megabytes owed",
        run: half_close_with_megabytes_owed,
    },
    Check {
        name: "a connection that stays open",
        run: a_connection_that_stays_open,
    },
    Check {
        name: "64 clients at once",
        run: clients_at_once,
    },
    Check {
        name: "a client that resets",
        run: a_client_that_resets,
    },
    Check {
        name: "a client that never reads",
        run: a_client_that_never_reads,
    },
    Check {
        name: "100 connections closed at once",
        run: connections_closed_at_once,
    },
];

const SCRIPTS: &str =
    "English, Ελληνικά, Русский, עברית, العربية, हिन्दी, 中文, 日本語, 한국어, 🦀\n";

fn exchange(subject: &Subject, bytes: &[u8]) -> Result<(), Fault> {
    subject.connect()?.exchange(bytes)
}

fn nothing_beyond_what_was_sent(subject: &Subject) -> Result<(), Fault> {
    let peer = subject.connect()?;
    peer.exchange(b"five!")?;
    peer.expect_silence(PAUSE)
}

fn nothing_sent_then_half_closed(subject: &Subject) -> Result<(), Fault> {
    let peer = subject.connect()?;
    peer.half_close();
    peer.expect_fin()
}

fn bytes_sent_one_by_one(subject: &Subject) -> Result<(), Fault> {
    let peer = subject.connect()?;
    (b'a'..=b'z').try_for_each(|byte| peer.exchange(&[byte]))
}

fn a_message_cut_by_a_pause(subject: &Subject) -> Result<(), Fault> {
    let peer = subject.connect()?;
    peer.send(b"cut in ")?;
    thread::sleep(PAUSE);
    peer.send(b"the middle\n")?;
    peer.expect(b"cut in the middle\n")
}

fn words_that_other_servers_obey(subject: &Subject) -> Result<(), Fault> {
    let peer = subject.connect()?;
    let words: [&[u8]; 7] = [
        b"quit\r\n",
        b"exit\n",
        b"\x04",
        b"\x03",
        b".\r\n",
        b"\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ];
    words.iter().try_for_each(|word| peer.exchange(word))
}

/// Servers have buffers of powers of two: a message may fill one, and leave one byte for the next.
fn sizes_around_the_edges_of_buffers(subject: &Subject) -> Result<(), Fault> {
    let peer = subject.connect()?;
    let message: Vec<u8> = noise(2 * CHUNK).flatten().collect();
    for edge in (7..=16).map(|exponent| 1 << exponent) {
        for size in [edge - 1, edge, edge + 1] {
            peer.exchange(&message[..size])?;
        }
    }
    Ok(())
}

fn both_ways_at_once(subject: &Subject) -> Result<(), Fault> {
    let peer = subject.connect()?;
    subject.progress.set_style(ProgressStyle::default_bar());
    subject.progress.set_length(STREAM as u64);
    while_sending(&peer, STREAM, |_| {
        noise(STREAM).enumerate().try_for_each(|(i, chunk)| {
            subject.progress.set_position((i * CHUNK) as u64);
            peer.expect_part(&Part {
                bytes: &chunk,
                offset: i * CHUNK,
                whole: STREAM,
            })
        })
    })?;
    peer.expect_fin()
}

/// The client reads only where the way is full, and only half of what it is owed: when it
/// half-closes, about as much is owed as the way can hold.
fn half_close_with_megabytes_owed(subject: &Subject) -> Result<(), Fault> {
    let peer = subject.connect()?;
    while_sending(&peer, OWED, |sent| {
        let mut due = 0;
        for (i, chunk) in noise(OWED).enumerate() {
            let received = i * CHUNK;
            if received >= due {
                due = usize::midpoint(received, wait_for_stall(sent, OWED));
            }
            peer.expect_part(&Part {
                bytes: &chunk,
                offset: received,
                whole: OWED,
            })?;
        }
        Ok(())
    })?;
    peer.expect_fin()
}

fn a_connection_that_stays_open(subject: &Subject) -> Result<(), Fault> {
    let peer = subject.connect()?;
    for message in [b"first ", b"second", b"third "] {
        thread::sleep(PAUSE);
        peer.exchange(message)?;
    }
    Ok(())
}

fn clients_at_once(subject: &Subject) -> Result<(), Fault> {
    let crowd = (0..CROWD)
        .map(|_| subject.connect())
        .collect::<Result<Vec<_>, _>>()?;
    for round in 1..=3 {
        let message = |i: usize| format!("message {round} of client {i}");
        for (i, peer) in crowd.iter().enumerate() {
            peer.send(message(i).as_bytes())?;
        }
        for (i, peer) in crowd.iter().enumerate() {
            peer.expect(message(i).as_bytes())?;
        }
    }
    Ok(())
}

fn a_client_that_resets(subject: &Subject) -> Result<(), Fault> {
    let bystander = subject.connect()?;
    let resets = subject.connect()?;
    resets.send(&[b'x'; 16_384])?;
    resets.expect(b"x")?;
    resets.reset()?;
    // The server needs a moment to notice.
    bystander.expect_silence(PAUSE)?;
    bystander.exchange(b"one that was there")?;
    exchange(subject, b"one that came later")
}

fn a_client_that_never_reads(subject: &Subject) -> Result<(), Fault> {
    let bystander = subject.connect()?;
    let never_reads = subject.connect()?;
    never_reads.fill(MOST_UNREAD, STUCK)?;
    bystander.exchange(b"one that was there")?;
    exchange(subject, b"one that came later")
}

fn connections_closed_at_once(subject: &Subject) -> Result<(), Fault> {
    // A server that is slow to accept gets on visibly.
    for _ in 0..10 {
        for _ in 0..10 {
            subject.connect()?;
        }
        exchange(subject, b"the next one")?;
    }
    Ok(())
}

/// Bytes in which no part looks like another, in chunks; the same ones at each call.
fn noise(len: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(862);
    (0..len.div_ceil(CHUNK)).map(move |_| {
        let mut chunk = vec![0; CHUNK];
        random.fill(&mut chunk);
        chunk
    })
}

/// Sends `len` bytes of noise and half-closes, while `receive`, which is given the count of bytes
/// that are out, takes what comes.
fn while_sending(
    peer: &Peer,
    len: usize,
    receive: impl FnOnce(&AtomicUsize) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let (sent, all_received) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let sender = thread::Builder::new().spawn_scoped(scope, || {
            let all_sent = noise(len).all(|chunk| {
                let taken = peer.send_beside_reader(&chunk, &all_received);
                sent.fetch_add(chunk.len(), Relaxed);
                taken
            });
            peer.half_close();
            all_sent
        });
        let sender = sender.map_err(|error| Fault::new("a thread of this system", error))?;
        let received = receive(&sent);
        if received.is_ok() {
            all_received.store(true, Release);
        } else {
            peer.abandon();
        }
        let all_sent = sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        received?;
        if !all_sent {
            return Err(Fault::new(
                "bytes after they were sent",
                "all of them before",
            ));
        }
        Ok(())
    })
}

/// Waits until a sender of `all` bytes is done, or the way is full; how much is then out.
fn wait_for_stall(sent: &AtomicUsize, all: usize) -> usize {
    loop {
        let before = sent.load(Relaxed);
        if before == all {
            return all;
        }
        thread::sleep(STALL);
        if sent.load(Relaxed) == before {
            return before;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_sender_has_stalled_when_it_is_done_or_gets_on_no_more() {
        let (told, stalled) = mpsc::channel();
        thread::spawn(move || {
            [5, 9].map(|all| told.send(wait_for_stall(&AtomicUsize::new(5), all)))
        });
        for _ in 0..2 {
            assert_eq!(stalled.recv_timeout(Duration::from_secs(60)), Ok(5));
        }
    }
}
