//! The command line of `echo-server`: its options, their environment variables, the parsers of
//! their values, and the messages for invalid ones.

#[cfg(feature = "client")]
mod client;
mod fault;
mod generate;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::BoolishValueParser;
use clap::error::{self, ContextKind, ContextValue};
use clap::{CommandFactory, Parser};
use clap_verbosity_flag::{LogLevel, Verbosity, VerbosityFilter};
use jiff::fmt::friendly::SpanParser;

use crate::server::{Config, MAX_BUFFER_SIZE, MAX_BUSY_POLL};
#[cfg(feature = "client")]
pub use client::{BenchMode, BenchOptions, ClientArgs, ClientCommand, TestOptions};
pub use fault::Fault;
use fault::{combine_faults, parse_fault};
pub use generate::{GenerateArgs, print_document};

/// A TCP echo server: sends back to each client what it receives, byte for byte.
#[derive(Clone, Debug, Parser)]
#[command(name = "echo-server", version, after_help = EXAMPLES)]
pub struct ServerArgs {
    /// IP address to listen on; `::` serves IPv6 and IPv4
    #[arg(
        long,
        env = "ECHO_SERVER_HOST",
        hide_env = true,
        help_heading = "Network",
        value_name = "ADDR",
        value_parser = parse_host,
        default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    )]
    pub host: IpAddr,

    /// Port to listen on; 0: the system chooses a free port
    #[arg(
        short,
        long,
        env = "ECHO_SERVER_PORT",
        hide_env = true,
        help_heading = "Network",
        value_parser = parse_port,
        default_value = "54000"
    )]
    pub port: u16,

    /// Requires a PROXY protocol header on each connection, and logs the client address in it
    #[arg(
        long,
        env = "ECHO_SERVER_PROXY_PROTOCOL",
        hide_env = true,
        help_heading = "Network",
        value_parser = BoolishValueParser::new()
    )]
    pub proxy_protocol: bool,

    /// Connection limit, at least 1; further clients wait in the listen backlog
    #[arg(
        long,
        env = "ECHO_SERVER_MAX_CONNECTIONS",
        hide_env = true,
        help_heading = "Limits",
        value_name = "N",
        value_parser = parse_max_connections,
        default_value = "10000"
    )]
    pub max_connections: usize,

    /// Per-IP limit; further connections are rejected; 0: no limit
    #[arg(
        long,
        env = "ECHO_SERVER_MAX_CONNECTIONS_PER_IP",
        hide_env = true,
        help_heading = "Limits",
        value_name = "N",
        value_parser = parse_max_connections_per_ip,
        default_value = "0"
    )]
    pub max_connections_per_ip: usize,

    /// Closes a connection after this long without a byte in or out, such as 30s; 0s: never
    #[arg(
        long,
        env = "ECHO_SERVER_IDLE_TIMEOUT",
        hide_env = true,
        help_heading = "Limits",
        value_name = "DURATION",
        value_parser = parse_duration,
        default_value = "0s"
    )]
    pub idle_timeout: Duration,

    /// How long graceful shutdown waits for pending echoes
    #[arg(
        long,
        env = "ECHO_SERVER_SHUTDOWN_TIMEOUT",
        hide_env = true,
        help_heading = "Limits",
        value_name = "DURATION",
        value_parser = parse_duration,
        default_value = "5s"
    )]
    pub shutdown_timeout: Duration,

    /// Buffer of each connection: bytes, or a number with KiB or MiB, up to 16MiB
    #[arg(
        long,
        env = "ECHO_SERVER_BUFFER_SIZE",
        hide_env = true,
        help_heading = "Performance",
        value_name = "BYTES",
        value_parser = parse_buffer_size,
        default_value = "64KiB"
    )]
    pub buffer_size: usize,

    /// Maximum time to poll before blocking, adaptive, up to 10ms; 0s: off
    #[arg(
        long,
        env = "ECHO_SERVER_BUSY_POLL",
        hide_env = true,
        help_heading = "Performance",
        value_name = "DURATION",
        value_parser = parse_busy_poll,
        default_value = "50us"
    )]
    pub busy_poll: Duration,

    /// Misbehaves on purpose: latency=100ms, slice=3, limit=1KiB, reset=1KiB, stall=1KiB or
    /// corrupt=1KiB; repeatable, or separated by commas
    #[arg(
        long,
        env = "ECHO_SERVER_FAULT",
        hide_env = true,
        help_heading = "Faults",
        value_name = "KIND=VALUE",
        value_delimiter = ',',
        value_parser = parse_fault
    )]
    pub fault: Vec<Fault>,

    /// How much to log. `RUST_LOG` takes precedence.
    #[command(flatten, next_help_heading = "Log")]
    pub verbosity: Verbosity<DefaultLevel>,

    /// Documents to print instead of serving.
    #[command(flatten)]
    pub generate: GenerateArgs,
}

const EXAMPLES: &str = "\
Examples:
  echo-server                        every IPv4 address of this machine, port 54000
  echo-server --host 127.0.0.1 -q    this machine only, and only warnings in the log
  ECHO_SERVER_PORT=7007 echo-server  each option from --host to --fault has such a variable

An option takes precedence over its variable, and RUST_LOG over -v and -q.

Exit codes: 0 after a signal, 1 cannot start, 2 invalid option, 130 after a second signal.";

/// Logs connections, but neither sizes nor bytes, unless `-v` or `-q` is given.
#[derive(Clone, Copy, Debug)]
pub struct DefaultLevel;

impl LogLevel for DefaultLevel {
    fn default_filter() -> VerbosityFilter {
        VerbosityFilter::Info
    }

    fn verbose_help() -> Option<&'static str> {
        Some("More log: sizes of reads and writes; -vv: the bytes too")
    }

    fn quiet_help() -> Option<&'static str> {
        Some("Less log: warnings only; -qqq: nothing")
    }
}

/// Parses the arguments of this process. If they are invalid, prints an error and exits with code 2.
///
/// The most common mistake is an address as an argument of its own, as other programs expect it.
#[must_use]
pub fn parse<Program: Parser>() -> Program {
    match Program::try_parse() {
        Ok(program) => program,
        Err(mut error) => {
            if has_positional_argument(&error) {
                let hint = "an address is given with '--host' and '--port'".into();
                error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint]));
            }
            error.exit()
        }
    }
}

/// Returns whether the error is a word that is neither an option nor similar to a command.
fn has_positional_argument(error: &clap::Error) -> bool {
    use clap::error::ErrorKind;

    let kind = match error.kind() {
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        _ => return false,
    };
    match error.get(kind) {
        Some(ContextValue::String(word)) => {
            !word.starts_with('-') && error.get(ContextKind::SuggestedSubcommand).is_none()
        }
        _ => false,
    }
}

impl ServerArgs {
    /// Returns the configuration that these options ask for.
    ///
    /// # Errors
    /// Returns an error if a kind of fault is given twice.
    ///
    /// ```
    /// use clap::Parser;
    /// use echo_server::cli::ServerArgs;
    ///
    /// # fn main() -> Result<(), clap::Error> {
    /// let args = ServerArgs::try_parse_from(["echo-server", "--buffer-size", "4KiB"])?;
    /// assert_eq!(args.config()?.buffer_size, 4096);
    /// # Ok(())
    /// # }
    /// ```
    pub fn config(&self) -> Result<Config, clap::Error> {
        let faults = match combine_faults(&self.fault) {
            Ok(faults) => faults,
            Err(message) => {
                let kind = error::ErrorKind::ArgumentConflict;
                return Err(Self::command().error(kind, message));
            }
        };
        Ok(Config {
            address: SocketAddr::new(self.host, self.port),
            proxy_protocol: self.proxy_protocol,
            max_connections: self.max_connections,
            max_connections_per_ip: NonZeroUsize::new(self.max_connections_per_ip),
            idle_timeout: Some(self.idle_timeout).filter(|timeout| !timeout.is_zero()),
            shutdown_timeout: self.shutdown_timeout,
            buffer_size: self.buffer_size,
            busy_poll: self.busy_poll,
            faults,
        })
    }
}

fn parse_host(value: &str) -> Result<IpAddr, String> {
    let needed = "an IP address is needed, such as 0.0.0.0 for every interface, 127.0.0.1 for this \
                  machine only, or :: for IPv6 and IPv4";
    value.parse().map_err(|_| match value {
        "localhost" => format!("{needed}; did you mean 127.0.0.1?"),
        _ if value.parse::<SocketAddr>().is_ok() => {
            format!("{needed}; the port has its own option, --port")
        }
        _ => needed.to_owned(),
    })
}

fn parse_port(value: &str) -> Result<u16, String> {
    value
        .parse()
        .map_err(|_| "a number from 0 to 65535 is needed".to_owned())
}

fn parse_max_connections(value: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(n) if n >= 1 => Ok(n),
        _ => Err("a whole number is needed, at least 1".to_owned()),
    }
}

fn parse_max_connections_per_ip(value: &str) -> Result<usize, String> {
    value
        .parse()
        .map_err(|_| "a whole number is needed; 0: no limit".to_owned())
}

fn parse_duration(value: &str) -> Result<Duration, String> {
    SpanParser::new()
        .parse_unsigned_duration(value)
        .map_err(|_| {
            let hint = unit_hint(value, "s");
            format!(
                "a number with a unit (us, ms, s, m, h) is needed, such as 500ms, 30s or 5m{hint}"
            )
        })
}

fn parse_busy_poll(value: &str) -> Result<Duration, String> {
    match parse_duration(value) {
        Ok(limit) if limit <= MAX_BUSY_POLL => Ok(limit),
        _ => Err("a number with a unit is needed, from 0s to 10ms, such as 50us".to_owned()),
    }
}

/// Returns a suggestion if `value` is a duration without a unit.
fn unit_hint(value: &str, unit: &str) -> String {
    let is_number = value.parse::<u64>().is_ok();
    if is_number {
        format!("; did you mean {value}{unit}?")
    } else {
        String::new()
    }
}

fn parse_buffer_size(value: &str) -> Result<usize, String> {
    let bytes = parse_size(value)
        .ok_or("a number of bytes is needed, or one with KiB or MiB, such as 64KiB")?;
    match usize::try_from(bytes) {
        Ok(bytes) if (1..=MAX_BUFFER_SIZE).contains(&bytes) => Ok(bytes),
        _ => Err("it must be from 1 byte to 16MiB".to_owned()),
    }
}

/// Parses a number of bytes, or one with a unit such as `KiB`.
fn parse_size(value: &str) -> Option<u64> {
    let size: ByteSize = value.parse().ok()?;
    Some(size.as_u64())
}

/// Returns the error message for a server that cannot listen on `address`: why, and what to do.
#[must_use]
pub fn explain_bind_error(address: SocketAddr, error: &io::Error) -> String {
    let why = match error.kind() {
        ErrorKind::AddrInUse => {
            "the port is in use; stop the program that uses it, or choose another port with --port \
             (0 lets the system choose)"
        }
        ErrorKind::PermissionDenied => {
            "permission denied; choose another port with --port (ports below 1024 are for privileged \
             users)"
        }
        ErrorKind::AddrNotAvailable => {
            "this machine has no such address; --host 0.0.0.0 listens on all its addresses, \
             --host 127.0.0.1 on this machine only"
        }
        _ => return format!("cannot listen on {address}: {error}; try another --host or --port"),
    };
    format!("cannot listen on {address}: {why}")
}

#[cfg(test)]
mod tests {
    use std::fmt::Display;

    use clap::FromArgMatches;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn defaults_are_those_of_the_library() -> Result<(), clap::Error> {
        // Ignore the variables of the user who runs the tests.
        let command = ServerArgs::command().mut_args(|arg| arg.env(None::<&str>));
        let matches = command.try_get_matches_from(["echo-server"])?;
        let args = ServerArgs::from_arg_matches(&matches)?;
        assert_eq!(args.config()?, Config::default());
        Ok(())
    }

    fn size(value: impl Display) -> Option<usize> {
        parse_buffer_size(&value.to_string()).ok()
    }

    fn duration(value: impl Display) -> Option<Duration> {
        parse_duration(&value.to_string()).ok()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sizes_are_numbers_of_bytes(bytes in 1..=MAX_BUFFER_SIZE, kib in 1..=16_384_usize, mib in 1..=16_usize) {
            prop_assert_eq!(size(bytes), Some(bytes));
            prop_assert_eq!(size(format_args!("{kib}KiB")), Some(kib * 1024));
            prop_assert_eq!(size(format_args!("{kib} KiB")), Some(kib * 1024));
            prop_assert_eq!(size(format_args!("{mib}MiB")), Some(mib * 1024 * 1024));
        }

        #[test]
        fn sizes_out_of_bounds_are_invalid(bytes in MAX_BUFFER_SIZE + 1.., mib in 17..100_000_000_u64) {
            prop_assert_eq!(size(bytes), None);
            prop_assert_eq!(size(format_args!("{mib}MiB")), None);
            prop_assert_eq!(size(format_args!("-{mib}")), None);
        }

        #[test]
        fn durations_are_numbers_of_units(n in 0..=u64::from(u32::MAX)) {
            prop_assert_eq!(duration(format_args!("{n}us")), Some(Duration::from_micros(n)));
            prop_assert_eq!(duration(format_args!("{n}ms")), Some(Duration::from_millis(n)));
            prop_assert_eq!(duration(format_args!("{n}s")), Some(Duration::from_secs(n)));
            prop_assert_eq!(duration(format_args!("{n}m")), Some(Duration::from_secs(n * 60)));
        }

        #[test]
        fn durations_are_sums_of_their_parts(h in 0..1000_u64, s in 0..10_000_u64, us in 0..10_000_000_u64) {
            let sum = Duration::from_secs(h * 3600 + s) + Duration::from_micros(us);
            prop_assert_eq!(duration(format_args!("{h}h {s}s {us}us")), Some(sum));
            prop_assert_eq!(duration(format_args!("{h}h{s}s{us}us")), Some(sum));
        }

        #[test]
        fn busy_poll_is_limited_to_10_ms(us in 0..20_000_u64) {
            let limit = Some(Duration::from_micros(us)).filter(|limit| *limit <= MAX_BUSY_POLL);
            prop_assert_eq!(parse_busy_poll(&format!("{us}us")).ok(), limit);
        }

        #[test]
        fn numbers_without_a_unit_get_a_suggestion(n in 1..u64::MAX) {
            let error = parse_duration(&n.to_string()).expect_err("it has no unit");
            prop_assert!(error.ends_with(&format!("; did you mean {n}s?")), "{}", error);
        }

        #[test]
        fn addresses_and_numbers_keep_their_value(ip: IpAddr, port: u16, n in 1..usize::MAX) {
            prop_assert_eq!(parse_host(&ip.to_string()), Ok(ip));
            prop_assert_eq!(parse_port(&port.to_string()), Ok(port));
            prop_assert_eq!(parse_max_connections(&n.to_string()), Ok(n));
            let with_port = parse_host(&SocketAddr::new(ip, port).to_string());
            prop_assert!(with_port.is_err_and(|error| error.contains("--port")));
            prop_assert!(parse_host("server").is_err_and(|error| !error.contains("--port")));
        }

        #[test]
        fn errors_have_one_line(text in ".*") {
            let errors = [
                parse_host(&text).err(),
                parse_port(&text).err(),
                parse_max_connections(&text).err(),
                parse_max_connections_per_ip(&text).err(),
                parse_duration(&text).err(),
                parse_busy_poll(&text).err(),
                parse_buffer_size(&text).err(),
                parse_fault(&text).err(),
            ];
            for error in errors.into_iter().flatten() {
                prop_assert_eq!(error.lines().count(), 1);
            }
        }
    }
}
