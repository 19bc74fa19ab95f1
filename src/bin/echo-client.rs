//! The `echo-client` program: parse the flags, hand over to the command, exit code.

#![warn(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where the stream is closed"
)]

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use echo_server::cli::{ClientArgs, ClientCommand};
use echo_server::client::{Failure, conformance, interactive, pipe};

fn main() -> ExitCode {
    let args = ClientArgs::parse();
    let target = args.target();
    let outcome = match args.command {
        Some(ClientCommand::Test(options)) => conformance::run(&target, &options),
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
