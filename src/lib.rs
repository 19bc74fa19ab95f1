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
//! | `bin/echo-client.rs` | the binary: parses the arguments, runs the command, sets the exit code |
//! | `cli/client.rs` | its command line |
//! | `client.rs` | connects to the server; messages for errors that every command can meet |
//! | `client/connection.rs` | a connection that one thread reads while another thread writes |
//! | `client/interactive.rs` | the interactive session: its threads and events |
//! | `client/interactive/screen.rs` | output: replies above the prompt |
//! | `client/interactive/prompt.rs` | the line editor: keys, history, search |
//! | `client/interactive/text.rs` | escapes what a terminal must not receive |
//! | `client/pipe.rs` | pipe mode: stdin to the server, echoes to stdout |
//! | `client/conformance.rs` | `echo-client test`: runs the checks and reports the results |
//! | `client/conformance/checks.rs` | what an echo server guarantees, a function for each check |
//! | `client/conformance/test_client.rs` | the client that the checks use: sends and expects |
//! | `client/conformance/mismatch.rs` | how a failed check describes what it got instead |
//! | `client/bench.rs` | `echo-client bench`: the load generator, one run from start to end |
//! | `client/bench/load.rs` | what all connections share: the workload, start and end |
//! | `client/bench/worker.rs` | the thread of one connection: round trips, bulk or connects |
//! | `client/bench/session.rs` | sends messages on one connection and verifies their echoes |
//! | `client/bench/payload.rs` | the random bytes that are sent |
//! | `client/bench/tally.rs` | what is counted: messages, bytes, latencies, failures |
//! | `client/bench/failure.rs` | why a connection failed, in the words of the report |
//! | `client/bench/progress.rs` | the progress bar |
//! | `client/bench/report.rs` | the report, for people or scripts |
//! | `client/bench/histogram.rs` | the drawn histogram of latencies |
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
