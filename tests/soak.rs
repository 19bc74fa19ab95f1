//! Everything at once: polite, rude, slow, silent and streaming clients, under a limit and an idle
//! timeout, and a stop at a random moment. What polite clients sent comes back to the last byte;
//! afterwards the server has no thread and no file left over, which Linux alone lets a test count
//! from outside. 10 s; `ECHO_SERVER_SOAK_SECONDS` makes it longer.
#![cfg(target_os = "linux")]

mod common;

use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{PATIENCE, Server, noise, reset, wait_until};
use rustix::process::Signal;

/// A number below `bound` that differs from call to call and from run to run.
fn random(bound: u32) -> u32 {
    let any = RandomState::new().hash_one(()) % u64::from(bound);
    u32::try_from(any).expect("it is below a u32")
}

/// The server, and what the crowd around it needs to know.
struct Crowded {
    server: Server,
    /// Nobody is to come again.
    over: AtomicBool,
    /// The server has been told to stop, or is about to be.
    stopping: AtomicBool,
}

/// Connects; `None` where the server has stopped.
fn enter(server: &Server) -> Option<TcpStream> {
    let stream = TcpStream::connect(server.address).ok()?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("the timeout can be set");
    stream
        .set_write_timeout(Some(PATIENCE))
        .expect("the timeout can be set");
    Some(stream)
}

/// Sends and half-closes, reads until FIN. Where the server accepted it, not a byte may be missing.
/// In a stop that holds for what it had sent before: on a busy machine it may pause for so long
/// that the server takes it for quiet.
fn polite(
    Crowded {
        server, stopping, ..
    }: &Crowded,
) {
    let sent = noise(random(2_000_000) as usize, random(u32::MAX).into());
    let Some(stream) = enter(server) else { return };
    let (echo, owed) = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let (mut writer, mut owed) = (&stream, 0);
            for chunk in sent.chunks(50_000) {
                if writer.write_all(chunk).is_err() {
                    return owed;
                }
                if !stopping.load(Ordering::SeqCst) {
                    owed += chunk.len();
                }
            }
            let _ = stream.shutdown(Shutdown::Write);
            owed
        });
        let mut echo = Vec::new();
        let echo = (&stream).read_to_end(&mut echo).map(|_| echo);
        // Whoever has been left need not send on.
        let _ = stream.shutdown(Shutdown::Both);
        (echo, sender.join().expect("it does not panic"))
    });
    match echo {
        Ok(echo) => {
            assert!(sent.starts_with(&echo), "the echo differs");
            assert!(
                echo.len() >= owed,
                "{} of {owed} bytes came back",
                echo.len()
            );
        }
        // It was still in the SYN queue when the listener was closed.
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            assert!(
                stopping.load(Ordering::SeqCst),
                "a reset where nothing stops"
            );
        }
    }
}

/// Resets in the middle of what it sends.
fn rude(Crowded { server, .. }: &Crowded) {
    let Some(stream) = enter(server) else { return };
    let _ = (&stream).write_all(&noise(random(300_000) as usize, 1));
    reset(stream);
}

/// Sends a good deal, and takes its time to read it.
fn slow(Crowded { server, .. }: &Crowded) {
    let Some(mut stream) = enter(server) else {
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

/// Says nothing until the server closes.
fn silent(Crowded { server, .. }: &Crowded) {
    let Some(mut stream) = enter(server) else {
        return;
    };
    assert!(
        !matches!(stream.read(&mut [0]), Ok(1)),
        "a byte that nobody sent"
    );
}

/// Sends and never reads, until the server closes.
fn deaf(Crowded { server, .. }: &Crowded) {
    let Some(mut stream) = enter(server) else {
        return;
    };
    while stream.write_all(&[7; 4096]).is_ok() {}
}

/// What each client of the crowd does, again and again.
const KINDS: [fn(&Crowded); 10] = [
    polite, polite, polite, polite, rude, rude, slow, slow, silent, deaf,
];

#[test]
fn linux_polite_clients_lose_no_byte_in_a_crowd_and_nothing_is_left_over() {
    let seconds = std::env::var("ECHO_SERVER_SOAK_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(10));
    let arguments = ["-q", "--max-connections", "12", "--idle-timeout", "2s"];
    while Instant::now() < end {
        let server = Server::start(&arguments);
        let (threads, files) = (server.threads(), server.files().len());
        let (over, stopping) = (AtomicBool::new(false), AtomicBool::new(false));
        let mut crowded = Crowded {
            server,
            over,
            stopping,
        };
        thread::scope(|scope| {
            let Crowded {
                server,
                over,
                stopping,
            } = &crowded;
            let come_and_go = |kind: &'static fn(&Crowded)| {
                let crowded = &crowded;
                scope.spawn(move || {
                    while !crowded.over.load(Ordering::Relaxed) {
                        kind(crowded);
                    }
                })
            };
            let crowd: Vec<_> = KINDS.iter().cycle().take(20).map(come_and_go).collect();
            thread::sleep(Duration::from_millis(500 + u64::from(random(1500))));
            if random(2) == 0 {
                // Everybody leaves: the server is as it was before they came.
                over.store(true, Ordering::Relaxed);
                for client in crowd {
                    client.join().expect("it is served");
                }
                wait_until("nothing is left over", || {
                    (server.threads(), server.files().len()) == (threads, files)
                });
            }
            stopping.store(true, Ordering::SeqCst);
            server.signal(Signal::TERM);
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(crowded.server.wait().code(), Some(0));
    }
}
