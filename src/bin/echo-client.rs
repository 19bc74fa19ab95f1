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

use echo_server::cli::{self, ClientArgs, ClientCommand};
use echo_server::client::{Error, bench, conformance, interactive, pipe};

/// The exit code of an end that was forced by a signal: 128 and the number of SIGINT, as shells have
/// it.
const FORCED: i32 = 130;

fn main() -> ExitCode {
    let outcome = match cli::print_document::<ClientArgs>() {
        Ok(false) => talk(cli::parse()),
        printed => printed.map(drop).map_err(Error::Message),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Error::Message(message) = failure {
                // Whoever closed stderr does not want to know; the exit code still tells.
                let _ = writeln!(io::stderr(), "echo-client: {message}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Hands over to the command, or to what is meant without one.
fn talk(args: ClientArgs) -> Result<(), Error> {
    let target = args.target();
    match args.command {
        Some(ClientCommand::Test(options)) => conformance::run(&target, &options),
        Some(ClientCommand::Bench(options)) => {
            stop_on_ctrl_c().and_then(|stop| bench::run(&target, &options, &stop))
        }
        None if io::stdin().is_terminal() => {
            on_signal(end_conversation).and_then(|()| interactive::run(&target))
        }
        None => pipe::run(&target),
    }
}

/// The flag that the first Ctrl+C sets.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    on_signal(move || {
        if stopped.swap(true, Ordering::Relaxed) {
            process::exit(FORCED);
        }
    })?;
    Ok(stop)
}

/// Whatever else is under way, the person gets the terminal back.
fn end_conversation() {
    interactive::give_terminal_back();
    process::exit(FORCED);
}

/// It is the program that has signals, not the library: a process has one handler, and that is for
/// its `main` to give away.
fn on_signal(handler: impl FnMut() + Send + 'static) -> Result<(), Error> {
    let set = ctrlc::set_handler(handler);
    set.map_err(|error| format!("cannot listen for Ctrl+C: {error}").into())
}
