//! A TCP echo server ([RFC 862]): sends back to each client what it receives, byte for byte.
//!
//! It uses blocking I/O and one thread per client. The binary `echo-server` serves from the command
//! line. The library runs inside other programs, for example in their tests:
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
//!     address: ([127, 0, 0, 1], 0).into(), // port 0: the system chooses a free port
//!     ..Config::default()
//! })?;
//! let address = server.local_addr()?;
//! let handle = server.shutdown_handle();
//! let running = thread::spawn(move || server.run());
//!
//! let mut client = TcpStream::connect(address)?;
//! client.write_all(b"hello")?;
//! client.shutdown(Shutdown::Write)?;
//! let mut echo = String::new();
//! client.read_to_string(&mut echo)?;
//! assert_eq!(echo, "hello");
//!
//! handle.shutdown();
//! running.join().expect("the server does not panic");
//! # Ok(())
//! # }
//! ```
//!
//! # Map of the source
//!
//! This map follows one connection. The first five files show how it begins and echoes, the next four
//! how it ends and waits:
//!
//! | file | role |
//! | --- | --- |
//! | `main.rs` | the binary: parses the arguments, binds, prints the ready line, serves |
//! | `server.rs` | [`Server`]: accept loop, one thread per client, drain |
//! | `server/listener.rs` | the listening socket and its backlog |
//! | `server/limits.rs` | limits on clients, in all and per IP address: permits |
//! | `server/connection.rs` | one connection: admission, echo loop, close |
//! | `server/connection/drain.rs` | how the server ends a connection: quiet clients, lingering close |
//! | `server/shutdown.rs` | graceful shutdown: [`ShutdownHandle`], `AtomicBool`, waker, deadline |
//! | `platform/wait.rs` | how a thread waits for a socket, in a way that shutdown can end |
//! | `platform/socket.rs` | socket options, `recv` and `accept` |
//! | `server/connection/faults.rs` | faults on request |
//! | `server/config.rs` | [`Config`] |
//! | `server/busy_poll.rs` | adaptive polling before a thread blocks |
//! | `server/connection/proxy_protocol.rs` | the PROXY protocol header |
//! | `platform.rs` | what differs by platform |
//! | `platform/tcp_info.rs` | round trips, retransmissions and acknowledgements of a connection |
//! | `platform/capacity.rs` | how many connections the system can hold |
//! | `platform/systemd.rs` | socket activation and readiness notification |
//! | `platform/console.rs` | console close on Windows |
//! | `platform/terminal.rs` | how the client notices that its terminal is closed |
//! | `cli.rs` | command line of the server |
//! | `cli/fault.rs` | the values of `--fault` |
//! | `cli/generate.rs` | generated man page and completions |
//! | `plural.rs` | singular and plural in messages |
//! | `log_writer.rs` | writes the log to stderr without blocking the threads that log |
//!
//! The client, `echo-client`, is behind the feature `client`, which is on by default:
//!
//! | file | role |
//! | --- | --- |
//! | `bin/echo-client.rs` | the binary: parses the arguments, runs the command, sets the exit code |
//! | `cli/client.rs` | its command line |
//! | `client.rs` | connects to the server; messages for errors that every command can meet |
//! | `client/connection.rs` | a connection that one thread reads while another thread writes |
//! | `client/interactive.rs` | the interactive session: its threads and events |
//! | `client/interactive/screen.rs` | output: replies above the prompt |
//! | `client/interactive/prompt.rs` | the line editor: keys and history |
//! | `client/interactive/text.rs` | escapes what a terminal must not receive |
//! | `client/pipe.rs` | pipe mode: stdin to the server, echoes to stdout |
//! | `client/conformance.rs` | `echo-client test`: runs the checks and reports the results |
//! | `client/conformance/checks.rs` | what an echo server guarantees, a function for each check |
//! | `client/conformance/report.rs` | the report of the suite, as text, JSON or `JUnit` |
//! | `client/conformance/expect.rs` | what the checks send and expect, and how they describe what came instead |
//! | `client/bench.rs` | `echo-client bench`: the load generator: its rounds, and each measurement from start to end |
//! | `client/bench/workload.rs` | what all connections share: the workload, its random bytes, start and end |
//! | `client/bench/worker.rs` | the thread of one connection: sends messages and verifies their echoes |
//! | `client/bench/tally.rs` | what is counted: messages, bytes, latencies, failures |
//! | `client/bench/progress.rs` | the progress bar |
//! | `client/bench/report.rs` | the report of one measurement, for people or scripts |
//! | `client/bench/comparison.rs` | the report of servers that were measured in turns |
//!
//! The [`manual`] describes installation, operation and performance.
//!
//! [RFC 862]: https://www.rfc-editor.org/rfc/rfc862

#![warn(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic if the stream is closed"
)]

// The binaries use these modules. They are not part of the public API.
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "client")]
#[doc(hidden)]
pub mod client;
#[doc(hidden)]
pub mod log_writer;
#[doc(hidden)]
pub mod platform;

pub mod manual;

mod plural;
mod server;

pub use server::{Config, Faults, Server, ShutdownHandle};
