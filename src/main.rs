//! The `echo-server` program: parse the flags, bind, say ready, run, exit code.

#![warn(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where the stream is closed"
)]

use std::env;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::SocketAddr;
use std::process::{self, ExitCode};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use echo_server::cli::{self, ServerArgs, explain_bind_error};
use echo_server::log_writer::{LogWriter, retry_if_blocked};
use echo_server::platform::{console, raise_file_limit, systemd};
use echo_server::{Config, Server};
use env_logger::{Target, WriteStyle};
use log::{debug, warn};

/// The exit code of a second Ctrl+C: 128 and the number of SIGINT, as shells have it.
const FORCED: i32 = 130;

/// How long the exit waits for stdout and stderr to be read.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match cli::print_document::<ServerArgs>() {
        Ok(false) => serve(&cli::parse()),
        Ok(true) => ExitCode::SUCCESS,
        Err(message) => fail(io::stderr(), &message),
    }
}

/// Serves from the first line of the log to the last.
fn serve(args: &ServerArgs) -> ExitCode {
    let log = match LogWriter::start(io::stderr()) {
        Ok(log) => log,
        Err(error) => return fail(io::stderr(), &format!("cannot start: {error}")),
    };
    init_logger(args, &log);
    // Disconnects when the ready line is written, or when there is none to write.
    let (writing, written) = mpsc::channel();
    let code = match run(args, writing) {
        Ok(()) => ExitCode::SUCCESS,
        // The log writer keeps the order of the lines, and does not block if stderr is not read.
        Err(message) => fail(log.clone(), &message),
    };
    let deadline = Instant::now() + FLUSH_TIMEOUT;
    let _ = written.recv_timeout(FLUSH_TIMEOUT);
    log.close(deadline.saturating_duration_since(Instant::now()));
    code
}

/// Writes the error line and returns the exit code that goes with it. If stderr is closed, the exit
/// code alone reports the failure.
fn fail(mut stderr: impl Write, message: &str) -> ExitCode {
    let _ = stderr.write_all(format!("echo-server: {message}\n").as_bytes());
    ExitCode::FAILURE
}

fn init_logger(args: &ServerArgs, log: &LogWriter) {
    let coloured =
        io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let filters = env::var("RUST_LOG").unwrap_or_default();
    // env_logger prints filter errors directly to stderr, which may be closed or full.
    let error = env_filter::Builder::new().try_parse(&filters).err();
    env_logger::Builder::new()
        .filter_level(args.verbosity.log_level_filter())
        .format_target(false)
        .write_style(if coloured {
            WriteStyle::Always
        } else {
            WriteStyle::Never
        })
        .parse_filters(if error.is_none() { &filters } else { "" })
        .target(Target::Pipe(Box::new(log.clone())))
        .init();
    if let Some(error) = error {
        warn!("ignoring invalid RUST_LOG: {error}");
    }
}

fn run(args: &ServerArgs, writing: Sender<()>) -> Result<(), String> {
    let config = args.config();
    let address = config.address;
    if let Err(error) = raise_file_limit() {
        warn!("cannot raise the limit of open files: {error}");
    }
    let server = listen(config)?;
    let address = server
        .local_addr()
        .map_err(|error| explain_bind_error(address, &error))?;

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

    // The address is in the log too, because stdout may be closed.
    debug!("listening on {address}");
    write_ready_line(address, writing)?;
    systemd::ready();
    server.run();
    Ok(())
}

/// On the socket that systemd has handed over, else on one of its own.
fn listen(config: Config) -> Result<Server, String> {
    if let Some(listener) = systemd::listener()? {
        return Server::from_listener(listener, config)
            .map_err(|error| format!("cannot serve the inherited socket: {error}"));
    }
    let address = config.address;
    Server::bind(config).map_err(|error| explain_bind_error(address, &error))
}

/// Writes the line that scripts wait for, in a thread of its own, because stdout may be a full pipe.
/// The thread drops `writing` when the line is written or stdout fails.
fn write_ready_line(address: SocketAddr, writing: Sender<()>) -> Result<(), String> {
    let write = move || {
        // The buffer keeps what a non-blocking stdout does not take at once.
        let mut stdout = BufWriter::new(io::stdout());
        let _ = writeln!(stdout, "Server listening on {address}");
        let _ = retry_if_blocked(|| stdout.flush());
        drop(writing);
    };
    let spawned = thread::Builder::new()
        .name("stdout".to_owned())
        .spawn(write);
    spawned
        .map(drop)
        .map_err(|error| format!("cannot start: {error}"))
}
