//! Servers for the conformance suite to find at fault, each with a mistake that programs make.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use super::{listen, reset_on_close, wait_until};

/// What the connections of a broken server share.
pub struct State {
    /// Connections that hold a permit.
    active: AtomicUsize,
    /// Whether a connection has been reset.
    was_reset: AtomicBool,
    buffer: Mutex<Vec<u8>>,
    /// Waits for as many clients as the suite connects at once.
    barrier: Barrier,
}

/// Serves a connection.
pub type Serve = fn(&TcpStream, &State);

/// Starts a server that calls `serve` for each connection, in a thread of its own.
pub fn serve(serve: Serve) -> SocketAddr {
    let (listener, address) = listen();
    let state = Arc::new(State {
        active: AtomicUsize::new(0),
        was_reset: AtomicBool::new(false),
        buffer: Mutex::default(),
        barrier: Barrier::new(64),
    });
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, state) = (stream.expect("a client is accepted"), Arc::clone(&state));
            state.active.fetch_add(1, SeqCst);
            thread::spawn(move || serve(&stream, &state));
        }
    });
    address
}

/// Echoes what it reads until the client's FIN, after `change` has changed each piece.
pub fn echo(mut stream: &TcpStream, mut change: impl FnMut(&mut Vec<u8>)) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        let mut piece = buffer[..n].to_vec();
        change(&mut piece);
        if stream.write_all(&piece).is_err() {
            return;
        }
    }
}

pub fn converts_to_upper_case(stream: &TcpStream, _: &State) {
    echo(stream, |piece| piece.make_ascii_uppercase());
}

pub fn drops_every_nul(stream: &TcpStream, _: &State) {
    echo(stream, |piece| piece.retain(|&byte| byte != 0));
}

pub fn clamps_bytes_to_seven_bits(stream: &TcpStream, _: &State) {
    echo(stream, |piece| {
        for byte in piece {
            *byte = (*byte).min(0x7f);
        }
    });
}

pub fn turns_cr_lf_into_lf(stream: &TcpStream, _: &State) {
    echo(stream, |piece| piece.retain(|&byte| byte != b'\r'));
}

pub fn replaces_invalid_utf_8(stream: &TcpStream, _: &State) {
    echo(stream, |piece| {
        *piece = String::from_utf8_lossy(piece).into_owned().into_bytes();
    });
}

pub fn replaces_non_ascii(stream: &TcpStream, _: &State) {
    let ascii = |byte: &mut u8| *byte = if byte.is_ascii() { *byte } else { b'?' };
    echo(stream, |piece| piece.iter_mut().for_each(ascii));
}

pub fn prefixes_its_echoes(stream: &TcpStream, _: &State) {
    echo(stream, |piece| drop(piece.splice(0..0, *b"You said: ")));
}

/// The mistake in C: `send(client, buffer, sizeof(buffer), 0)`.
pub fn pads_to_its_buffer_size(stream: &TcpStream, _: &State) {
    echo(stream, |piece| piece.resize(4096, 0));
}

pub fn repeats_the_last_byte(stream: &TcpStream, _: &State) {
    echo(stream, |piece| piece.extend(piece.last().copied()));
}

pub fn sends_a_greeting(mut stream: &TcpStream, _: &State) {
    if stream.write_all(b"Welcome!\n").is_ok() {
        echo(stream, |_| {});
    }
}

pub fn resets_silent_clients(stream: &TcpStream, _: &State) {
    let timeout = Some(Duration::from_millis(20));
    stream
        .set_read_timeout(timeout)
        .expect("the timeout can be set");
    if stream.peek(&mut [0]).is_err() {
        reset_on_close(stream);
    } else {
        echo(stream, |_| {});
    }
}

pub fn says_goodbye(mut stream: &TcpStream, _: &State) {
    echo(stream, |_| {});
    // Fails if the client does not wait for FIN.
    let _ = stream.write_all(b"bye");
}

pub fn resets_at_the_end(stream: &TcpStream, _: &State) {
    echo(stream, |_| {});
    reset_on_close(stream);
}

pub fn never_closes(stream: &TcpStream, _: &State) {
    echo(stream, |_| {});
    thread::park();
}

pub fn waits_for_newlines(mut stream: &TcpStream, _: &State) {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream);
    while let Ok(1..) = reader.read_until(b'\n', &mut line) {
        if stream.write_all(&line).is_err() {
            return;
        }
        line.clear();
    }
}

pub fn ignores_single_bytes(stream: &TcpStream, _: &State) {
    echo(stream, |piece| {
        piece.truncate(if piece.len() > 1 { piece.len() } else { 0 });
    });
}

pub fn echoes_one_line_per_read(stream: &TcpStream, _: &State) {
    echo(stream, |piece| {
        let line = piece.iter().position(|&byte| byte == b'\n');
        piece.truncate(line.map_or(piece.len(), |newline| newline + 1));
    });
}

/// If it is late, it reads both parts of a message at once and trims only the end.
pub fn trims_whitespace(stream: &TcpStream, _: &State) {
    echo(stream, |piece| *piece = piece.trim_ascii_end().to_vec());
}

pub fn obeys_quit(stream: &TcpStream, _: &State) {
    echo(stream, |piece| {
        if piece.starts_with(b"quit") {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

pub fn truncates_long_messages(stream: &TcpStream, _: &State) {
    echo(stream, |piece| piece.truncate(1024));
}

/// After a megabyte it echoes each piece only when the next one arrives, so never the last one.
pub fn loses_pending_bytes_at_half_close(stream: &TcpStream, _: &State) {
    let (mut kept, mut received) = (Vec::new(), 0);
    echo(stream, |piece| {
        received += piece.len();
        if received > 1_000_000 {
            std::mem::swap(&mut kept, piece);
        }
    });
}

/// A proxy in front of a correct server. It closes both connections at the client's FIN.
pub fn relays_without_half_close(mut client: &TcpStream, _: &State) {
    let server = TcpStream::connect(serve(|stream, _| echo(stream, |_| {})));
    let mut server = server.expect("the server accepts");
    let (mut from_server, mut to_client) = (
        server.try_clone().expect("a socket"),
        client.try_clone().expect("a socket"),
    );
    thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
    let _ = std::io::copy(&mut client, &mut server);
    let _ = client.shutdown(Shutdown::Both);
}

/// All connections share a buffer.
pub fn mixes_up_its_clients(stream: &TcpStream, state: &State) {
    let buffer = || state.buffer.lock().expect("the lock is not poisoned");
    echo(stream, |piece| {
        buffer().clone_from(piece);
        if piece.starts_with(b"message") {
            state.barrier.wait();
        }
        piece.clone_from(&buffer());
    });
}

pub fn serves_one_client_at_a_time(stream: &TcpStream, state: &State) {
    let _turn = state.buffer.lock().expect("the lock is not poisoned");
    echo(stream, |_| {});
    let _ = stream.shutdown(Shutdown::Both);
}

/// One lock protects all writes, as in an event loop whose writes block.
pub fn blocks_on_a_client_that_never_reads(mut stream: &TcpStream, state: &State) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        let _turn = state.buffer.lock().expect("the lock is not poisoned");
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

pub fn resets_a_client_that_never_reads(stream: &TcpStream, _: &State) {
    let timeout = Some(Duration::from_millis(100));
    stream
        .set_write_timeout(timeout)
        .expect("the timeout can be set");
    echo(stream, |_| {});
    reset_on_close(stream);
}

pub fn stops_serving_after_a_reset(mut stream: &TcpStream, state: &State) {
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer);
        // The client has reset another connection, but its thread may not have run since.
        if buffer.starts_with(b"one that") {
            wait_until("the reset is seen", || state.was_reset.load(SeqCst));
        }
        match read {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                state.was_reset.store(true, SeqCst);
            }
            Ok(n @ 1..) if !state.was_reset.load(SeqCst) => {
                if stream.write_all(&buffer[..n]).is_ok() {
                    continue;
                }
                state.was_reset.store(true, SeqCst);
            }
            _ => {}
        }
        return;
    }
}

pub fn leaks_the_permits_of_silent_clients(mut stream: &TcpStream, state: &State) {
    let is_full = state.active.load(SeqCst) > 99;
    let mut first = [0; 4096];
    if let Ok(n @ 1..) = stream.read(&mut first) {
        state.active.fetch_sub(1, SeqCst);
        if !is_full && stream.write_all(&first[..n]).is_ok() {
            echo(stream, |_| {});
        }
    }
}
