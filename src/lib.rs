//! A TCP echo server ([RFC 862]): whatever a client sends comes back to it, byte for byte.
//!
//! It is blocking and has one thread for each client, which is the plainest shape a server can
//! have. The story of one connection reads downwards through these files:
//!
//! | file | its part |
//! | --- | --- |
//! | `main.rs` | the program: parse the flags, bind, say ready, run, exit code |
//! | [`cli`] | the flags, their environment variables, how their values are read |
//! | `cli/documents.rs` | the man page and the completions |
//! | [`log_writer`] | writes the log to stderr without blocking the threads that log |
//! | [`server`] | [`Server`]: the accept loop and the stop |
//! | `server/listener.rs` | the listening socket: fast restart, a deep backlog, both IP versions |
//! | `server/connection.rs` | one connection: admission, the echo loop, the drain, the lingering close |
//! | `server/connection/proxy.rs` | the PROXY header, which carries the client's address |
//! | `server/limits.rs` | the connection limit and the per-IP limit: permits |
//! | `server/accept_backoff.rs` | how long the accept loop pauses after a failed `accept` |
//! | `server/overload_log.rs` | what the log says when new clients must wait in the listen backlog |
//! | `server/busy_poll.rs` | polling before blocking, and whether that pays |
//! | `server/totals.rs` | what the server has done, for its last log line |
//! | `server/shutdown.rs` | graceful shutdown: an `AtomicBool`, its deadline and its handle |
//! | [`platform`] | all that differs by platform |
//! | `platform/console.rs` | the close of the console, which on Windows is the end of the program |
//! | `platform/terminal.rs` | how the client's prompt learns that its terminal has gone |
//! | `platform/socket.rs` | socket options, `recv` and `accept` |
//! | `platform/wait.rs` | how a thread waits for a socket, in a way that shutdown can end |
//! | `platform/tcp_info.rs` | round trips, retransmissions and acknowledgements of a connection |
//! | `platform/capacity.rs` | how many connections the system can hold |
//! | `platform/systemd.rs` | with the feature `systemd`: the socket that it hands over, the news that it wants |
//!
//! The client, `echo-client`, is behind the feature `client`, which is on by default:
//!
//! | file | its part |
//! | --- | --- |
//! | `bin/echo-client.rs` | the program: parse the flags, hand over to the command, exit code |
//! | `cli/client.rs` | its flags |
//! | `client.rs` | where the server is, how to connect to it, what can fail on the way |
//! | `client/interactive.rs` | line by line at a terminal: the threads, and the conversation |
//! | `client/interactive/screen.rs` | the screen, and all that is written to it |
//! | `client/interactive/prompt.rs` | the line being typed: keys, history, search |
//! | `client/interactive/text.rs` | what a stranger sends, as text that is safe at a terminal |
//! | `client/pipe.rs` | from stdin through the server to stdout |
//! | `client/conformance.rs` | `echo-client test`: the suite and its report |
//! | `client/conformance/checks.rs` | what an echo server owes its clients, a function for each property |
//! | `client/conformance/peer.rs` | a connection to the server under test, and how a fault is told |
//! | `client/bench.rs` | `echo-client bench`: the load generator, the run as a whole |
//! | `client/bench/load.rs` | one connection's part of the load |
//! | `client/bench/tally.rs` | what is counted: messages, latencies, failures |
//! | `client/bench/report.rs` | what a run has shown, for a person or a script |
//!
//! The library runs inside other programs too, for example in their tests:
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::{Shutdown, TcpStream};
//! use std::thread;
//!
//! use echo_server::{Config, Server};
//!
//! # fn main() -> std::io::Result<()> {
//! let server = Server::bind(Config {
//!     address: ([127, 0, 0, 1], 0).into(), // port 0: the system chooses a free one
//!     ..Config::default()
//! })?;
//! let address = server.local_addr()?;
//! let stop = server.shutdown_handle();
//! let running = thread::spawn(move || server.run());
//!
//! let mut client = TcpStream::connect(address)?;
//! client.write_all(b"hello")?;
//! client.shutdown(Shutdown::Write)?;
//! let mut echo = String::new();
//! client.read_to_string(&mut echo)?;
//! assert_eq!(echo, "hello");
//!
//! stop.shutdown();
//! running.join().expect("the server does not panic");
//! # Ok(())
//! # }
//! ```
//!
//! [RFC 862]: https://www.rfc-editor.org/rfc/rfc862

#![warn(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where the stream is closed"
)]

pub mod cli;
#[cfg(feature = "client")]
pub mod client;
pub mod log_writer;
pub mod platform;
mod plural;
pub mod server;

pub use server::{Config, Server, ShutdownHandle};
