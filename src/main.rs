//! The `echo-server` program: parse the flags, bind, say ready, run, exit code.

#![warn(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where the stream is closed"
)]

use std::io::{self, Write};
use std::process::{self, ExitCode};

use clap::Parser;
use echo_server::Server;
use echo_server::cli::{ServerArgs, explain_bind_error};
use log::debug;

/// The exit code of a second Ctrl+C: 128 and the number of SIGINT, as shells have it.
const FORCED: i32 = 130;

fn main() -> ExitCode {
    let args = ServerArgs::parse();
    env_logger::Builder::new()
        .filter_level(args.verbosity.log_level_filter())
        .format_target(false)
        .parse_default_env()
        .init();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Whoever closed stderr does not want to know; the exit code still tells.
            let _ = writeln!(io::stderr(), "echo-server: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &ServerArgs) -> Result<(), String> {
    let config = args.config();
    let address = config.address;
    let server = Server::bind(config).map_err(|error| explain_bind_error(address, &error))?;
    let address = server
        .local_addr()
        .map_err(|error| explain_bind_error(address, &error))?;

    let stop = server.shutdown_handle();
    ctrlc::set_handler(move || {
        if stop.is_shutdown() {
            process::exit(FORCED);
        }
        stop.shutdown();
    })
    .map_err(|error| format!("cannot listen for Ctrl+C: {error}"))?;

    // For those who log and read no stdout.
    debug!("listening on {address}");
    say_ready(&format!("Server listening on {address}"));
    server
        .run()
        .map_err(|error| format!("gave up on {address}: {error}"))
}

/// Scripts wait for this line, so it must not stay in a buffer. Where nobody reads stdout, the
/// service goes on.
fn say_ready(line: &str) {
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
