//! The `echo-client` program: parse the flags, hand over to the command, exit code.

#![warn(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where the stream is closed"
)]

use std::io::{self, IsTerminal, Write};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use echo_server::cli::{ClientArgs, ClientCommand};
use echo_server::client::{Failure, bench, conformance, interactive, pipe};

/// The exit code of a second Ctrl+C: 128 and the number of SIGINT, as shells have it.
const FORCED: i32 = 130;

fn main() -> ExitCode {
    let args = ClientArgs::parse();
    let target = args.target();
    let outcome = match args.command {
        Some(ClientCommand::Test(options)) => conformance::run(&target, &options),
        Some(ClientCommand::Bench(options)) => {
            stop_on_ctrl_c().and_then(|stop| bench::run(&target, &options, &stop))
        }
        None if io::stdin().is_terminal() => interactive::run(&target),
        None => pipe::run(&target),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Failure::Because(message) = failure {
                // Whoever closed stderr does not want to know; the exit code still tells.
                let _ = writeln!(io::stderr(), "echo-client: {message}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The flag that the first Ctrl+C sets. It is the program that has signals, not the library: a
/// process has one handler, and that is for its `main` to give away.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if stopped.swap(true, Ordering::Relaxed) {
            process::exit(FORCED);
        }
    })
    .map_err(|error| format!("cannot listen for Ctrl+C: {error}"))?;
    Ok(stop)
}
