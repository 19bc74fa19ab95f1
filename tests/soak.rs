//! Everything at once: well-behaved, resetting, slow, silent and flooding clients, a connection limit,
//! an idle timeout, and a shutdown at a random moment. Well-behaved clients lose no byte, and
//! afterwards the server has no thread and no file left over. Only Linux lets a test count those.
//!
//! Takes five seconds, because the idle timeout is longer than a busy machine may delay a client.
//! `ECHO_SERVER_SOAK_SECONDS` makes it longer, as in CI.
#![cfg(target_os = "linux")]

use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Server, for_each_at_once, noise, reset, wait_until, with_timeouts};
use rustix::process::Signal;

/// Returns a number below `bound` that differs from call to call and from run to run.
fn random(bound: u32) -> u32 {
    let number = RandomState::new().hash_one(()) % u64::from(bound);
    u32::try_from(number).expect("the number is below a u32")
}

/// A server and the state that its clients share.
struct Soak {
    server: Server,
    /// Set when no client may connect any more.
    done: AtomicBool,
    /// Set shortly before the server gets its signal.
    shutting_down: AtomicBool,
}

/// Connects. Returns `None` if the server has shut down.
fn connect(server: &Server) -> Option<TcpStream> {
    let stream = TcpStream::connect(server.address).ok()?;
    Some(with_timeouts(stream))
}

/// Sends and half-closes, and reads until FIN. If the server has accepted the connection, no byte may
/// be missing.
///
/// During a shutdown this holds for bytes sent before the signal. On a busy machine the client may
/// later pause for so long that the server takes it for quiet.
fn well_behaved(soak: &Soak) {
    let sent = noise(random(2_000_000) as usize, random(u32::MAX).into());
    let Some(stream) = connect(&soak.server) else {
        return;
    };
    let (echo, guaranteed) = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let (mut writer, mut guaranteed) = (&stream, 0);
            for chunk in sent.chunks(50_000) {
                if writer.write_all(chunk).is_err() {
                    return guaranteed;
                }
                if !soak.shutting_down.load(Ordering::SeqCst) {
                    guaranteed += chunk.len();
                }
            }
            let _ = stream.shutdown(Shutdown::Write);
            guaranteed
        });
        let mut echo = Vec::new();
        let echo = (&stream).read_to_end(&mut echo).map(|_| echo);
        // After the server's FIN, the sender need not go on.
        let _ = stream.shutdown(Shutdown::Both);
        (echo, sender.join().expect("the sender does not panic"))
    });
    match echo {
        Ok(echo) => {
            assert!(sent.starts_with(&echo), "the echo differs");
            assert!(
                echo.len() >= guaranteed,
                "{} of {guaranteed} bytes arrived",
                echo.len()
            );
        }
        // The handshake was not complete when the server closed its listener.
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            assert!(
                soak.shutting_down.load(Ordering::SeqCst),
                "a reset without a shutdown"
            );
        }
    }
}

/// Sends, and resets the connection before the echo is complete.
fn resetting(soak: &Soak) {
    let Some(stream) = connect(&soak.server) else {
        return;
    };
    let _ = (&stream).write_all(&noise(random(300_000) as usize, 1));
    reset(stream);
}

/// Sends a lot, and reads it slowly.
fn slow(soak: &Soak) {
    let Some(mut stream) = connect(&soak.server) else {
        return;
    };
    let sent = noise(50_000, 2);
    let mut echo = vec![0; sent.len()];
    if stream.write_all(&sent).is_err() {
        return;
    }
    for piece in echo.chunks_mut(10_000) {
        thread::sleep(Duration::from_millis(random(50).into()));
        if stream.read_exact(piece).is_err() {
            return;
        }
    }
    assert!(echo == sent);
}

/// Sends nothing until the server closes the connection.
fn silent(soak: &Soak) {
    let Some(mut stream) = connect(&soak.server) else {
        return;
    };
    assert!(
        !matches!(stream.read(&mut [0]), Ok(1)),
        "the server sent a byte of its own"
    );
}

/// Sends and never reads, until the server closes the connection.
fn flooding(soak: &Soak) {
    let Some(mut stream) = connect(&soak.server) else {
        return;
    };
    while stream.write_all(&[7; 4096]).is_ok() {}
}

/// What the clients of a server do, each of them again and again.
const CLIENTS: [fn(&Soak); 10] = [
    well_behaved,
    well_behaved,
    well_behaved,
    well_behaved,
    resetting,
    resetting,
    slow,
    slow,
    silent,
    flooding,
];

#[test]
fn linux_mixed_clients_lose_no_byte_and_leave_nothing_behind() {
    let seconds = std::env::var("ECHO_SERVER_SOAK_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
    for_each_at_once([true, false], |disconnect_first| {
        run_server(disconnect_first);
        while Instant::now() < end {
            run_server(disconnect_first);
        }
    });
}

/// Runs a server with its clients for up to a second, then shuts it down. If `disconnect_first` is
/// true, all clients disconnect before.
fn run_server(disconnect_first: bool) {
    let arguments = ["-q", "--max-connections", "6", "--idle-timeout", "3s"];
    let server = Server::start(&arguments);
    // Main, log and signal handler remain.
    wait_until("the ready line's thread has ended", || {
        server.threads() == 3
    });
    let (threads, files) = (server.threads(), server.files().len());
    let mut soak = Soak {
        server,
        done: AtomicBool::new(false),
        shutting_down: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let soak = &soak;
        let repeat = |client: fn(&Soak)| {
            scope.spawn(move || {
                while !soak.done.load(Ordering::Relaxed) {
                    client(soak);
                }
            })
        };
        let clients = CLIENTS.map(repeat);
        thread::sleep(Duration::from_millis(300 + u64::from(random(700))));
        if disconnect_first {
            // The server is then as before they connected.
            soak.done.store(true, Ordering::Relaxed);
            for client in clients {
                client.join().expect("the client is served");
            }
            wait_until("no thread and no file is left over", || {
                (soak.server.threads(), soak.server.files().len()) == (threads, files)
            });
        }
        soak.shutting_down.store(true, Ordering::SeqCst);
        soak.server.signal(Signal::TERM);
        soak.done.store(true, Ordering::Relaxed);
    });
    assert_eq!(soak.server.wait().code(), Some(0));
}
