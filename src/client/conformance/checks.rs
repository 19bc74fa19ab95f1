//! The checks: what a TCP echo server guarantees its clients, with a function for each guarantee.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use super::expect::Mismatch;
use crate::client::connection::Connection;
use crate::client::is_timeout;

/// How long silence must last, and how long a client pauses.
const PAUSE: Duration = Duration::from_millis(200);

/// If a write blocks for this long, the buffers on the way are taken to be full.
const BUFFERS_FULL_AFTER: Duration = Duration::from_millis(50);

/// If a write blocks for this long, the server is taken to be blocked, too.
const SERVER_BLOCKED_AFTER: Duration = Duration::from_secs(1);

/// The most that a client sends without reading, in bytes: more than the usual buffers on the way
/// hold, but little enough for a server whose buffer has no limit.
const MAX_UNREAD: usize = 32 * 1024 * 1024;

/// The length of the stream that goes both ways at once, in bytes.
const STREAM_LEN: usize = 64 * 1024 * 1024;

/// The length of the stream that ends with pending echoes, in bytes.
const PENDING_LEN: usize = 8 * 1024 * 1024;

/// The size of the parts in which a stream is sent and compared, in bytes. Each has the timeout.
pub(super) const CHUNK: usize = 65_536;

/// One guarantee of an echo server: its name, and the function that checks it.
pub(super) type Check = (&'static str, fn(&Connection) -> Result<(), Mismatch>);

/// All checks. The simple ones come first, because the failure of one explains later failures.
pub(super) const CHECKS: &[Check] = &[
    ("one byte", |c| c.exchange(b"a")),
    ("every byte value", |c| {
        c.exchange(&(0..=255).collect::<Vec<_>>())
    }),
    ("NUL", |c| c.exchange(b"\0before\0\0after\0")),
    ("CR LF, LF and CR", |c| c.exchange(LINE_ENDS)),
    ("bytes that are not UTF-8", |c| c.exchange(NOT_UTF_8)),
    ("text in several scripts", |c| c.exchange(SCRIPTS)),
    ("silence until the client speaks", |c| {
        c.expect_silence(PAUSE)
    }),
    ("nothing beyond what was sent", nothing_beyond_the_echo),
    ("nothing sent, half-closed: FIN", nothing_sent),
    ("a message without a newline", |c| c.exchange(b"no newline")),
    ("bytes sent one by one", bytes_sent_one_by_one),
    ("two messages in one segment", |c| c.exchange(TWO_LINES)),
    ("a message cut by a pause", message_cut_by_a_pause),
    ("words that other servers obey", commands_of_other_servers),
    ("sizes around the edges of buffers", sizes_around_buffers),
    ("64 MiB both ways at once", both_ways_at_once),
    ("half-close with megabytes pending", half_close_with_pending),
    ("a connection that stays open", connection_that_stays_open),
    ("64 clients at once", clients_at_once),
    ("a client that resets", client_that_resets),
    ("a client that never reads", client_that_never_reads),
    ("100 connections closed at once", connections_closed_at_once),
];

const LINE_ENDS: &[u8] = b"a\r\nb\nc\rd\r\n\r\n\n\n";
const NOT_UTF_8: &[u8] = b"\xff\xff\xfe\x80\xc3(\xed\xa0\x80\xf8\x88";
const SCRIPTS: &[u8] =
    "English, Ελληνικά, Русский, עברית, العربية, हिन्दी, 中文, 日本語, 한국어, 🦀\n".as_bytes();
const TWO_LINES: &[u8] = b"first\nsecond\n";

fn nothing_beyond_the_echo(client: &Connection) -> Result<(), Mismatch> {
    client.exchange(b"five!")?;
    client.expect_silence(PAUSE)
}

fn nothing_sent(client: &Connection) -> Result<(), Mismatch> {
    client.half_close();
    client.expect_fin()
}

fn bytes_sent_one_by_one(client: &Connection) -> Result<(), Mismatch> {
    for byte in b'a'..=b'z' {
        client.exchange(&[byte])?;
    }
    Ok(())
}

fn message_cut_by_a_pause(client: &Connection) -> Result<(), Mismatch> {
    client.send(b"cut in ")?;
    thread::sleep(PAUSE);
    client.send(b"the middle\n")?;
    client.expect(b"cut in the middle\n")
}

fn commands_of_other_servers(client: &Connection) -> Result<(), Mismatch> {
    let http = "GET / HTTP/1.0\r\n\r\n";
    for command in ["quit\r\n", "exit\n", "\x04", "\x03", ".\r\n", "\n", http] {
        client.exchange(command.as_bytes())?;
    }
    Ok(())
}

/// Exchanges messages around the usual sizes of buffers, the powers of two: a message may fill a buffer,
/// or leave one byte for the next.
fn sizes_around_buffers(client: &Connection) -> Result<(), Mismatch> {
    let message = random_bytes(2 * CHUNK);
    for exponent in 7..=16 {
        let buffer_size = 1 << exponent;
        for size in [buffer_size - 1, buffer_size, buffer_size + 1] {
            client.exchange(&message[..size])?;
        }
    }
    Ok(())
}

/// Sends and half-closes in a second thread, while this one receives the echo and then FIN.
fn both_ways_at_once(client: &Connection) -> Result<(), Mismatch> {
    let stream = random_bytes(STREAM_LEN);
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        thread::Builder::new()
            .spawn_scoped(scope, || send_stream(client, &stream, &sent))
            .map_err(|error| Mismatch::new("a thread on this machine", error))?;
        let result = expect_stream(client, &stream, &sent);
        // Ends the sending thread, which may be blocked in a write.
        client.close();
        result
    })
}

fn send_stream(client: &Connection, stream: &[u8], sent: &AtomicUsize) {
    for chunk in stream.chunks(CHUNK) {
        // Counted before the write, because the echo may arrive before it returns.
        sent.fetch_add(chunk.len(), Relaxed);
        // Only the receiving thread knows whether the server still makes progress.
        if client.send_all(chunk, || {}).is_err() {
            return;
        }
    }
    client.half_close();
}

fn expect_stream(client: &Connection, stream: &[u8], sent: &AtomicUsize) -> Result<(), Mismatch> {
    for end in (CHUNK..=stream.len()).step_by(CHUNK) {
        client.expect_part(stream, end - CHUNK..end)?;
        if sent.load(Relaxed) < end {
            let expected = "bytes after they were sent";
            return Err(Mismatch::new(expected, "all of them before"));
        }
    }
    client.expect_fin()
}

/// Receives only while the buffers on the way are full, and only half of the pending echoes. At the
/// half-close, about as much is pending as the buffers can hold.
fn half_close_with_pending(mut client: &Connection) -> Result<(), Mismatch> {
    client.stream.set_write_timeout(Some(BUFFERS_FULL_AFTER))?;
    let bytes = random_bytes(PENDING_LEN);
    let (mut sent, mut received) = (0, 0);
    while sent < PENDING_LEN {
        match client.write(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(error) if is_timeout(&error) => {
                let half = received + (sent - received).div_ceil(2);
                client.expect_part(&bytes, received..half)?;
                received = half;
            }
            // The next read returns how the connection ended.
            Err(_) => break,
        }
    }
    client.half_close();
    client.expect_part(&bytes, received..PENDING_LEN)?;
    client.expect_fin()
}

fn connection_that_stays_open(client: &Connection) -> Result<(), Mismatch> {
    for message in [b"first ", b"second", b"third "] {
        thread::sleep(PAUSE);
        client.exchange(message)?;
    }
    Ok(())
}

fn clients_at_once(client: &Connection) -> Result<(), Mismatch> {
    let mut clients = Vec::new();
    for _ in 0..64 {
        clients.push(client.another()?);
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

fn client_that_resets(bystander: &Connection) -> Result<(), Mismatch> {
    let client = bystander.another()?;
    client.send(&[b'x'; 16_384])?;
    client.expect(b"x")?;
    client.reset()?;
    // Gives the server time to notice the reset.
    bystander.expect_silence(PAUSE)?;
    bystander.exchange(b"one that was there")?;
    bystander.another()?.exchange(b"one that came later")
}

fn client_that_never_reads(bystander: &Connection) -> Result<(), Mismatch> {
    let client = bystander.another()?;
    client.fill(MAX_UNREAD, SERVER_BLOCKED_AFTER)?;
    bystander.exchange(b"one that was there")?;
    bystander.another()?.exchange(b"one that came later")
}

fn connections_closed_at_once(client: &Connection) -> Result<(), Mismatch> {
    // A server may serve one client at a time.
    client.close();
    for _ in 0..10 {
        for _ in 0..10 {
            client.another()?;
        }
        // Waits for a server that is slow to accept.
        client.another()?.exchange(b"the next one")?;
    }
    Ok(())
}

/// Returns `len` random bytes, the same ones at each call.
fn random_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(862).fill(&mut bytes);
    bytes
}
