//! The checks: what a TCP echo server guarantees its clients, with a function for each guarantee.

use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, Release},
};
use std::thread;
use std::time::Duration;

use super::mismatch::{Mismatch, Part};
use super::test_client::{TestClient, TestTarget};

/// How long silence must last, and how long a client pauses.
const PAUSE: Duration = Duration::from_millis(200);

/// How long a sender must make no progress before the buffers on the way are taken to be full.
const STALL: Duration = Duration::from_millis(50);

/// How long a write must block before the server is taken to be blocked, too.
const BLOCKED: Duration = Duration::from_secs(1);

/// The most that a client sends without reading, in bytes: more than the usual buffers on the way
/// hold, but little enough for a server whose buffer has no limit.
const MAX_UNREAD: usize = 32 * 1024 * 1024;

/// The length of the stream that goes both ways at once, in bytes.
const STREAM_LEN: usize = 64 * 1024 * 1024;

/// The length of the stream that ends with pending echoes, in bytes.
const PENDING_LEN: usize = 8 * 1024 * 1024;

/// The size of the parts in which a stream is made and compared, in bytes.
const CHUNK: usize = 65_536;

/// One guarantee of an echo server.
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) run: fn(&TestTarget) -> Result<(), Mismatch>,
}

const fn check(name: &'static str, run: fn(&TestTarget) -> Result<(), Mismatch>) -> Check {
    Check { name, run }
}

/// All checks. The simple ones come first, because the failure of one explains later failures.
pub(super) const CHECKS: &[Check] = &[
    check("one byte", one_byte),
    check("every byte value", every_byte_value),
    check("NUL", nul),
    check("CR LF, LF and CR", line_ends),
    check("bytes that are not UTF-8", bytes_that_are_not_utf_8),
    check("text in several scripts", text_in_several_scripts),
    check("silence until the client speaks", silence_until_sent),
    check("nothing beyond what was sent", nothing_beyond_the_echo),
    check("nothing sent, half-closed: FIN", nothing_sent),
    check("a message without a newline", message_without_newline),
    check("bytes sent one by one", bytes_sent_one_by_one),
    check("two messages in one segment", two_messages_in_one_segment),
    check("a message cut by a pause", message_cut_by_a_pause),
    check("words that other servers obey", commands_of_other_servers),
    check("sizes around the edges of buffers", sizes_around_buffers),
    check("64 MiB both ways at once", both_ways_at_once),
    check(
        "half-close with megabytes pending",
        half_close_while_pending,
    ),
    check("a connection that stays open", connection_that_stays_open),
    check("64 clients at once", clients_at_once),
    check("a client that resets", client_that_resets),
    check("a client that never reads", client_that_never_reads),
    check("100 connections closed at once", connections_closed_at_once),
];

fn one_byte(target: &TestTarget) -> Result<(), Mismatch> {
    target.exchange(b"a")
}

fn every_byte_value(target: &TestTarget) -> Result<(), Mismatch> {
    let bytes: Vec<u8> = (0..=255).collect();
    target.exchange(&bytes)
}

fn nul(target: &TestTarget) -> Result<(), Mismatch> {
    target.exchange(b"\0before\0\0after\0")
}

fn line_ends(target: &TestTarget) -> Result<(), Mismatch> {
    target.exchange(b"a\r\nb\nc\rd\r\n\r\n\n\n")
}

fn bytes_that_are_not_utf_8(target: &TestTarget) -> Result<(), Mismatch> {
    target.exchange(b"\xff\xff\xfe\x80\xc3(\xed\xa0\x80\xf8\x88")
}

fn text_in_several_scripts(target: &TestTarget) -> Result<(), Mismatch> {
    let text = "English, Ελληνικά, Русский, עברית, العربية, हिन्दी, 中文, 日本語, 한국어, 🦀\n";
    target.exchange(text.as_bytes())
}

fn silence_until_sent(target: &TestTarget) -> Result<(), Mismatch> {
    target.connect()?.expect_silence(PAUSE)
}

fn nothing_beyond_the_echo(target: &TestTarget) -> Result<(), Mismatch> {
    let client = target.connect()?;
    client.exchange(b"five!")?;
    client.expect_silence(PAUSE)
}

fn nothing_sent(target: &TestTarget) -> Result<(), Mismatch> {
    let client = target.connect()?;
    client.connection.half_close();
    client.expect_fin()
}

fn message_without_newline(target: &TestTarget) -> Result<(), Mismatch> {
    target.exchange(b"no newline")
}

fn bytes_sent_one_by_one(target: &TestTarget) -> Result<(), Mismatch> {
    let client = target.connect()?;
    for byte in b'a'..=b'z' {
        client.exchange(&[byte])?;
    }
    Ok(())
}

fn two_messages_in_one_segment(target: &TestTarget) -> Result<(), Mismatch> {
    target.exchange(b"first\nsecond\n")
}

fn message_cut_by_a_pause(target: &TestTarget) -> Result<(), Mismatch> {
    let client = target.connect()?;
    client.send(b"cut in ")?;
    thread::sleep(PAUSE);
    client.send(b"the middle\n")?;
    client.expect(b"cut in the middle\n")
}

fn commands_of_other_servers(target: &TestTarget) -> Result<(), Mismatch> {
    let client = target.connect()?;
    client.exchange(b"quit\r\n")?;
    client.exchange(b"exit\n")?;
    client.exchange(b"\x04")?;
    client.exchange(b"\x03")?;
    client.exchange(b".\r\n")?;
    client.exchange(b"\n")?;
    client.exchange(b"GET / HTTP/1.0\r\n\r\n")
}

/// Buffers are powers of two: a message may fill one, and leave one byte for the next.
fn sizes_around_buffers(target: &TestTarget) -> Result<(), Mismatch> {
    let client = target.connect()?;
    let message: Vec<u8> = random_chunks(2 * CHUNK).flatten().collect();
    for exponent in 7..=16 {
        let buffer_size = 1 << exponent;
        for size in [buffer_size - 1, buffer_size, buffer_size + 1] {
            client.exchange(&message[..size])?;
        }
    }
    Ok(())
}

fn both_ways_at_once(target: &TestTarget) -> Result<(), Mismatch> {
    echo_stream(target, STREAM_LEN, |_, _| {})
}

/// Receives only while the buffers on the way are full, and only half of the pending echoes. At the
/// half-close, about as much is pending as the buffers can hold.
fn half_close_while_pending(target: &TestTarget) -> Result<(), Mismatch> {
    let mut stall_at = 0;
    echo_stream(target, PENDING_LEN, |received, sent| {
        if received >= stall_at {
            stall_at = usize::midpoint(received, wait_for_stall(sent, PENDING_LEN));
        }
    })
}

fn connection_that_stays_open(target: &TestTarget) -> Result<(), Mismatch> {
    let client = target.connect()?;
    for message in [b"first ", b"second", b"third "] {
        thread::sleep(PAUSE);
        client.exchange(message)?;
    }
    Ok(())
}

fn clients_at_once(target: &TestTarget) -> Result<(), Mismatch> {
    let mut clients = Vec::new();
    for _ in 0..64 {
        clients.push(target.connect()?);
    }
    for round in 1..=3 {
        let message = |i: usize| format!("message {round} of client {i}");
        for (i, client) in clients.iter().enumerate() {
            client.send(message(i).as_bytes())?;
        }
        for (i, client) in clients.iter().enumerate() {
            client.expect(message(i).as_bytes())?;
        }
    }
    Ok(())
}

fn client_that_resets(target: &TestTarget) -> Result<(), Mismatch> {
    let bystander = target.connect()?;
    let client = target.connect()?;
    client.send(&[b'x'; 16_384])?;
    client.expect(b"x")?;
    client.reset()?;
    // Gives the server time to notice the reset.
    bystander.expect_silence(PAUSE)?;
    bystander.exchange(b"one that was there")?;
    target.exchange(b"one that came later")
}

fn client_that_never_reads(target: &TestTarget) -> Result<(), Mismatch> {
    let bystander = target.connect()?;
    let client = target.connect()?;
    client.fill(MAX_UNREAD, BLOCKED)?;
    bystander.exchange(b"one that was there")?;
    target.exchange(b"one that came later")
}

fn connections_closed_at_once(target: &TestTarget) -> Result<(), Mismatch> {
    for _ in 0..10 {
        for _ in 0..10 {
            target.connect()?;
        }
        // Waits for a server that is slow to accept.
        target.exchange(b"the next one")?;
    }
    Ok(())
}

/// Sends `len` bytes and half-closes in a second thread. Meanwhile expects their echo and then FIN.
///
/// Calls `before_part` before each part of the echo, with the number of bytes received so far and
/// the counter of bytes sent.
fn echo_stream(
    target: &TestTarget,
    len: usize,
    mut before_part: impl FnMut(usize, &AtomicUsize),
) -> Result<(), Mismatch> {
    let client = target.connect()?;
    let (sent, all_received) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        thread::Builder::new()
            .spawn_scoped(scope, || send_stream(&client, len, &sent, &all_received))
            .map_err(|error| Mismatch::new("a thread on this machine", error))?;
        let result = expect_stream(&client, len, |received| before_part(received, &sent));
        // Ends the sending thread, which may be blocked in a write.
        match result {
            Ok(()) => all_received.store(true, Release),
            Err(_) => client.connection.close(),
        }
        result
    })?;
    if sent.load(Relaxed) < len {
        return Err(Mismatch::new(
            "bytes after they were sent",
            "all of them before",
        ));
    }
    client.expect_fin()
}

fn send_stream(client: &TestClient, len: usize, sent: &AtomicUsize, all_received: &AtomicBool) {
    for chunk in random_chunks(len) {
        if !client.send_while_receiving(&chunk, all_received) {
            break;
        }
        sent.fetch_add(chunk.len(), Relaxed);
    }
    client.connection.half_close();
}

fn expect_stream(
    client: &TestClient,
    len: usize,
    mut before_part: impl FnMut(usize),
) -> Result<(), Mismatch> {
    for (i, chunk) in random_chunks(len).enumerate() {
        let offset = i * CHUNK;
        before_part(offset);
        client.expect_part(&Part {
            bytes: &chunk,
            offset,
            whole_len: len,
        })?;
    }
    Ok(())
}

/// Returns `len` random bytes in chunks, the same ones at each call.
fn random_chunks(len: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(862);
    (0..len.div_ceil(CHUNK)).map(move |_| {
        let mut chunk = vec![0; CHUNK];
        random.fill(&mut chunk);
        chunk
    })
}

/// Waits until a sender has sent all `len` bytes or makes no progress, and returns how many are sent.
fn wait_for_stall(sent: &AtomicUsize, len: usize) -> usize {
    loop {
        let before = sent.load(Relaxed);
        if before == len {
            return len;
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
    fn a_sender_stalls_when_done_or_without_progress() {
        let (sender, stalls) = mpsc::channel();
        thread::spawn(move || {
            [5, 9].map(|len| sender.send(wait_for_stall(&AtomicUsize::new(5), len)))
        });
        for _ in 0..2 {
            assert_eq!(stalls.recv_timeout(Duration::from_secs(60)), Ok(5));
        }
    }
}
