//! The `echo-client` binary: parses the arguments, runs the command, and sets the exit code.

#![warn(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic if the stream is closed"
)]

use std::io::{self, IsTerminal, Write};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use echo_server::cli::{self, ClientArgs, ClientCommand};
use echo_server::client::{Error, bench, conformance, interactive, pipe};

/// The exit code after Ctrl+C: 128 plus the number of SIGINT, as in shells.
const EXIT_SIGINT: i32 = 130;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Error::Message(message) = error {
                // If stderr is closed, the exit code still reports the failure.
                let _ = writeln!(io::stderr(), "echo-client: {message}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    if cli::print_document::<ClientArgs>()? {
        return Ok(());
    }
    let args: ClientArgs = cli::parse();
    let target = args.target();
    match &args.command {
        Some(ClientCommand::Test(options)) => conformance::run(&target, options),
        Some(ClientCommand::Bench(options)) => {
            let targets = args.bench_targets(options).unwrap_or_else(|e| e.exit());
            let stop = stop_on_ctrl_c()?;
            bench::run(&targets, options, &stop)
        }
        None if io::stdin().is_terminal() => {
            on_signal(|| {
                interactive::restore_terminal();
                process::exit(EXIT_SIGINT);
            })?;
            interactive::run(&target)
        }
        None => pipe::run(&target),
    }
}

/// Returns a flag that the first Ctrl+C sets. If it is set already, Ctrl+C ends the process.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    on_signal(move || {
        if flag.swap(true, Ordering::Relaxed) {
            process::exit(EXIT_SIGINT);
        }
    })?;
    Ok(stop)
}

/// Sets the signal handler. A process has only one, so `main` sets it rather than the library.
fn on_signal(handler: impl FnMut() + Send + 'static) -> Result<(), Error> {
    ctrlc::set_handler(handler)
        .map_err(|error| format!("cannot set the signal handler: {error}").into())
}
