//! The `echo-client` program: parse the flags, hand over to the command, exit code.

#![warn(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where the stream is closed"
)]

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use echo_server::cli::ClientArgs;
use echo_server::client::{Failure, pipe};

fn main() -> ExitCode {
    let args = ClientArgs::parse();
    match pipe::run(&args.target()) {
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
