//! The `echo-server` binary: parses the arguments, binds, prints the ready line, serves, and sets the
//! exit code.

#![warn(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic if the stream is closed"
)]

use std::env;
use std::io::{self, Write};
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use echo_server::cli::{self, ServerArgs, explain_bind_error};
use echo_server::log_writer::LogWriter;
use echo_server::platform::{console, raise_file_limit, systemd};
use echo_server::{Config, Server};
use env_logger::{Target, WriteStyle};
use log::{debug, warn};

/// The exit code after a second Ctrl+C: 128 plus the number of SIGINT, as in shells.
const EXIT_SIGINT: i32 = 130;

/// How long the process waits at exit until the log is written.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match cli::print_document::<ServerArgs>() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(message) => return fail(io::stderr(), &message),
    }
    let args: ServerArgs = cli::parse();
    match args.config() {
        Ok(config) => serve(config, &args),
        Err(error) => error.exit(),
    }
}

/// Serves clients, from the first log line to the last, and returns the exit code.
fn serve(config: Config, args: &ServerArgs) -> ExitCode {
    let log = match LogWriter::start(io::stderr()) {
        Ok(log) => log,
        Err(error) => return fail(io::stderr(), &format!("cannot start: {error}")),
    };
    init_logger(args, &log);
    let code = match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        // The log writer keeps the order of the lines, and does not block if stderr is not read.
        Err(message) => fail(log.clone(), &message),
    };
    log.close(LOG_FLUSH_TIMEOUT);
    code
}

/// Writes an error line and returns the exit code for a failure. If stderr is closed, the exit code
/// alone reports it.
fn fail(mut stderr: impl Write, message: &str) -> ExitCode {
    let _ = stderr.write_all(format!("echo-server: {message}\n").as_bytes());
    ExitCode::FAILURE
}

fn init_logger(args: &ServerArgs, log: &LogWriter) {
    // No colours if stderr is a Windows console that would show the escape sequences.
    let colours = AutoStream::auto(io::stderr()).current_choice();
    let filters = env::var("RUST_LOG").unwrap_or_default();
    // Checked first: env_logger would print errors directly to stderr, which may be closed or full.
    let error = env_filter::Builder::new().try_parse(&filters).err();
    env_logger::Builder::new()
        .filter_level(args.verbosity.log_level_filter())
        .format_target(false)
        .write_style(match colours {
            ColorChoice::AlwaysAnsi => WriteStyle::Always,
            _ => WriteStyle::Never,
        })
        .parse_filters(if error.is_none() { &filters } else { "" })
        .target(Target::Pipe(Box::new(log.clone())))
        .init();
    if let Some(error) = error {
        warn!("ignoring invalid RUST_LOG: {error}");
    }
}

fn run(config: Config) -> Result<(), String> {
    if let Err(error) = raise_file_limit() {
        warn!("cannot raise the limit of open files: {error}");
    }
    let address = config.address;
    let server = match systemd::listener()? {
        Some(listener) => Server::from_listener(listener, config)
            .map_err(|error| format!("cannot serve the inherited socket: {error}"))?,
        None => Server::bind(config).map_err(|error| explain_bind_error(address, &error))?,
    };
    let address = server
        .local_addr()
        .map_err(|error| explain_bind_error(address, &error))?;

    let handle = server.shutdown_handle();
    ctrlc::set_handler(move || {
        if handle.is_shutdown() {
            process::exit(EXIT_SIGINT);
        }
        handle.shutdown();
        systemd::stopping();
    })
    .map_err(|error| format!("cannot set the signal handler: {error}"))?;
    let handle = server.shutdown_handle();
    console::on_close(move || handle.shutdown())
        .map_err(|error| format!("cannot set the handler for console close: {error}"))?;

    // With -v the address is in the log too, because stdout may be closed.
    debug!("listening on {address}");
    // Scripts wait for this line. A thread writes it, because stdout may be a full pipe.
    let line = format!("Server listening on {address}\n");
    thread::Builder::new()
        .spawn(move || io::stdout().write_all(line.as_bytes()))
        .map_err(|error| format!("cannot start: {error}"))?;
    systemd::ready();
    server.run();
    Ok(())
}
