//! The `echo-server` program: parse the flags, bind, say ready, run, exit code.

#![warn(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where the stream is closed"
)]

use std::env;
use std::io::{self, IsTerminal, Write};
use std::process::{self, ExitCode};
use std::time::Duration;

use echo_server::cli::{self, ServerArgs, explain_bind_error};
use echo_server::log_writer::LogWriter;
use echo_server::platform::{console, raise_file_limit, systemd};
use echo_server::{Config, Server};
use env_logger::{Target, WriteStyle};
use log::{debug, warn};

/// The exit code of a second Ctrl+C: 128 and the number of SIGINT, as shells have it.
const FORCED: i32 = 130;

/// How long the end waits for somebody to read the last lines of the log.
const LAST_LINES: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let args = cli::parse::<ServerArgs>();
    let outcome = match args.documents.print::<ServerArgs>() {
        Ok(false) => serve(&args),
        printed => printed.map(drop),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Whoever closed stderr does not want to know; the exit code still tells.
            let _ = writeln!(io::stderr(), "echo-server: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Serves from the first line of the log to the last.
fn serve(args: &ServerArgs) -> Result<(), String> {
    let log = start_log(args)?;
    let outcome = run(args);
    log.close(LAST_LINES);
    outcome
}

fn start_log(args: &ServerArgs) -> Result<LogWriter, String> {
    let log = LogWriter::start(io::stderr()).map_err(|error| format!("cannot start: {error}"))?;
    let coloured =
        io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let filters = env::var("RUST_LOG").unwrap_or_default();
    // Of what it does not understand, env_logger tells a stderr that may be closed or not be read.
    let mistake = env_filter::Builder::new().try_parse(&filters).err();
    env_logger::Builder::new()
        .filter_level(args.verbosity.log_level_filter())
        .format_target(false)
        .write_style(if coloured { WriteStyle::Always } else { WriteStyle::Never })
        .parse_filters(if mistake.is_none() { &filters } else { "" })
        .target(Target::Pipe(Box::new(log.clone())))
        .init();
    if let Some(mistake) = mistake {
        warn!("RUST_LOG counts for nothing: {mistake}");
    }
    Ok(log)
}

fn run(args: &ServerArgs) -> Result<(), String> {
    let config = args.config();
    let address = config.address;
    if let Err(error) = raise_file_limit() {
        warn!("cannot raise the limit of open files: {error}");
    }
    let server = listen(config)?;
    let address = server.local_addr().map_err(|error| explain_bind_error(address, &error))?;

    let stop = server.shutdown_handle();
    ctrlc::set_handler(move || {
        if stop.is_shutdown() {
            process::exit(FORCED);
        }
        stop.shutdown();
        systemd::stopping();
    })
    .map_err(|error| format!("cannot listen for Ctrl+C: {error}"))?;
    let stop = server.shutdown_handle();
    console::on_close(move || stop.shutdown())
        .map_err(|error| format!("cannot listen for the console's close: {error}"))?;

    // For those who log and read no stdout.
    debug!("listening on {address}");
    say_ready(&format!("Server listening on {address}"));
    systemd::ready();
    server.run().map_err(|error| format!("gave up on {address}: {error}"))
}

/// On the socket that systemd has handed over, else on one of its own.
fn listen(config: Config) -> Result<Server, String> {
    if let Some(listener) = systemd::listener()? {
        return Server::from_listener(listener, config)
            .map_err(|error| format!("cannot serve the socket that was handed over: {error}"));
    }
    let address = config.address;
    Server::bind(config).map_err(|error| explain_bind_error(address, &error))
}

/// Scripts wait for this line, so it must not stay in a buffer. Where nobody reads stdout, the
/// service goes on.
fn say_ready(line: &str) {
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
