//! The command line of `echo-client`.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Command, Parser, Subcommand, ValueEnum, value_parser};

use super::{GenerateArgs, parse_buffer_size, parse_duration};
use crate::client::Target;

/// Talks to a TCP echo server. Without a command: line by line if stdin is a terminal, otherwise as
/// a pipe from stdin through the server to stdout.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "echo-client",
    version,
    next_help_heading = "Server",
    after_help = EXAMPLES
)]
pub struct ClientArgs {
    /// Name or IP address of the server [default: 127.0.0.1]
    #[arg(long, global = true, value_parser = parse_server_host)]
    pub host: Option<String>,

    /// Port of the server [default: 54000]
    #[arg(
        short,
        long,
        global = true,
        value_parser = value_parser!(u16).range(1..)
    )]
    pub port: Option<u16>,

    /// How long the server may take to accept, and send nothing while echoes are pending
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        value_parser = parse_timeout,
        default_value = "5s"
    )]
    pub timeout: Duration,

    /// Documents to print instead of connecting.
    #[command(flatten)]
    pub generate: GenerateArgs,

    /// What to do
    #[command(subcommand)]
    pub command: Option<ClientCommand>,
}

const EXAMPLES: &str = "\
Examples:
  echo-client                      sends each line; quit, exit or Ctrl+D disconnects
  echo-client <in >out             pipes a file through the server
  echo-client test --host server   checks whether the server echoes correctly
  echo-client bench                measures throughput and latency
  echo-client bench a:7 b:7        measures two servers in turns and compares them

Exit codes: 0 success, 1 failure, 2 invalid arguments, 130 ended by Ctrl+C.";

/// The commands of `echo-client`.
#[derive(Clone, Debug, Subcommand)]
pub enum ClientCommand {
    /// Checks whether the server echoes exactly and reliably
    Test(TestOptions),
    /// Measures the throughput and latency of a server, or of several in turns
    Bench(BenchOptions),
}

/// The options of `echo-client test`.
#[derive(Clone, Debug, Args)]
pub struct TestOptions {
    /// Runs only the checks whose names contain this
    #[arg(value_name = "NAME", default_value = "", hide_default_value = true)]
    pub name: String,

    /// Prints the results as JSON
    #[arg(long)]
    pub json: bool,

    /// Also writes the results to a file as JUnit XML, for CI systems
    #[expect(clippy::doc_markdown, reason = "the help shows this text")]
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

/// The options of `echo-client bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchOptions {
    /// Servers to measure, instead of --host and --port; several are measured in turns
    #[arg(value_name = "ADDRESS", value_parser = parse_address)]
    pub addresses: Vec<(String, u16)>,

    /// How often to measure each of the addresses, up to 1000 [default: 5, or once if there is only
    /// one]
    #[arg(
        long,
        value_name = "N",
        value_parser = value_parser!(u16).range(1..=1000),
        requires = "addresses"
    )]
    pub rounds: Option<u16>,

    /// Number of connections, each with its own thread
    #[arg(
        long,
        value_name = "N",
        value_parser = value_parser!(u16).range(1..),
        default_value = "1"
    )]
    pub connections: u16,

    /// Size of each message, in bulk mode of each write: bytes, or a number with KiB or MiB
    /// [default: 64, in bulk mode 64KiB]
    #[arg(
        long,
        value_name = "BYTES",
        value_parser = parse_buffer_size,
        default_value = "64",
        default_value_if("mode", "bulk", "64KiB"),
        hide_default_value = true
    )]
    pub size: usize,

    /// How long each measurement takes
    #[arg(long, value_parser = parse_timeout, default_value = "5s")]
    pub duration: Duration,

    /// How long to run before each measurement
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_warm_up,
        default_value = "1s"
    )]
    pub warm_up: Duration,

    /// What each connection does
    #[arg(long, value_enum, default_value_t)]
    pub mode: BenchMode,

    /// Prints the results as JSON
    #[arg(long)]
    pub json: bool,
}

/// What each connection of `echo-client bench` does, repeatedly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BenchMode {
    /// Sends a message and waits for its echo: round trips
    #[default]
    Rtt,
    /// Sends without pause while it receives: throughput
    Bulk,
    /// Connects, exchanges one message and closes: connections per second
    Connect,
}

impl ClientArgs {
    /// Returns the server that the arguments name.
    #[must_use]
    pub fn target(&self) -> Target {
        let host = self.host.clone();
        Target {
            host: host.unwrap_or_else(|| "127.0.0.1".to_owned()),
            port: self.port.unwrap_or(54000),
            timeout: self.timeout,
        }
    }

    /// Returns the servers that `echo-client bench` measures.
    ///
    /// # Errors
    /// Returns an error if there are addresses as well as `--host` or `--port`.
    pub fn bench_targets(&self, options: &BenchOptions) -> Result<Vec<Target>, clap::Error> {
        if options.addresses.is_empty() {
            return Ok(vec![self.target()]);
        }
        // clap would not find a conflict with options that precede the command.
        if self.host.is_some() || self.port.is_some() {
            let conflict = "an ADDRESS cannot be used with --host or --port: it replaces both";
            let mut bench = BenchOptions::augment_args(Command::new("echo-client bench"));
            return Err(bench.error(ErrorKind::ArgumentConflict, conflict));
        }
        let targets = options.addresses.iter().map(|(host, port)| Target {
            host: host.clone(),
            port: *port,
            timeout: self.timeout,
        });
        Ok(targets.collect())
    }
}

impl BenchMode {
    /// Returns the name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rtt => "rtt",
            Self::Bulk => "bulk",
            Self::Connect => "connect",
        }
    }
}

/// Accepts IPv6 addresses with or without brackets, which are common before a port.
fn parse_server_host(value: &str) -> Result<String, String> {
    let without_brackets = value
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let host = without_brackets.unwrap_or(value);
    // A link-local address names its interface: fe80::1%eth0.
    let address = host.split('%').next().unwrap_or(host);
    let is_name =
        !host.is_empty() && !host.contains([':', ' ']) && !host.contains(char::is_control);
    if is_name || address.parse::<Ipv6Addr>().is_ok() {
        Ok(host.to_owned())
    } else {
        Err("a name or an IP address alone is needed; the port has its own option, --port".into())
    }
}

/// Accepts a host with a port. An IPv6 address needs brackets, without which its last group could be
/// the port.
fn parse_address(value: &str) -> Result<(String, u16), String> {
    let (host, port) = value.rsplit_once(':').unwrap_or((value, ""));
    let has_brackets = host.starts_with('[');
    match (parse_server_host(host), port.parse()) {
        (Ok(host), Ok(port @ 1..)) if host.contains(':') == has_brackets => Ok((host, port)),
        _ => Err(
            "HOST:PORT is needed, such as 127.0.0.1:54000, [::1]:54000 or server:54000".to_owned(),
        ),
    }
}

/// The longest duration of each option. The sum of several must not overflow the clock.
const DAY: Duration = Duration::from_secs(86_400);

fn parse_timeout(value: &str) -> Result<Duration, String> {
    match parse_duration(value)? {
        timeout if (Duration::from_millis(1)..=DAY).contains(&timeout) => Ok(timeout),
        _ => Err("it must be from 1ms to 24h".to_owned()),
    }
}

fn parse_warm_up(value: &str) -> Result<Duration, String> {
    match parse_duration(value)? {
        warm_up if warm_up <= DAY => Ok(warm_up),
        _ => Err("it must be at most 24h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_host_may_be_an_address_with_or_without_brackets(ip: IpAddr, v6: Ipv6Addr) {
            prop_assert_eq!(parse_server_host(&ip.to_string()), Ok(ip.to_string()));
            prop_assert_eq!(parse_server_host(&format!("[{v6}]")), Ok(v6.to_string()));
            let with_interface = format!("{v6}%eth0");
            prop_assert_eq!(parse_server_host(&with_interface), Ok(with_interface.clone()));
        }

        #[test]
        fn a_host_may_be_a_name_without_a_port(name in "[a-z][a-z0-9.-]{0,30}", port: u16) {
            prop_assert_eq!(parse_server_host(&name), Ok(name.clone()));
            for invalid in [format!("{name}:{port}"), format!("{name} ")] {
                prop_assert!(parse_server_host(&invalid).is_err());
            }
        }

        #[test]
        fn an_address_with_a_port_is_rejected(address: SocketAddr) {
            prop_assert!(parse_server_host(&address.to_string()).is_err());
        }

        #[test]
        fn a_bench_address_has_a_host_and_a_port(ip: IpAddr, port: u16, name in "[a-z][a-z0-9.-]{0,30}") {
            let (address, ip) = (SocketAddr::new(ip, port), ip.to_string());
            let valid = |host: &str| Some((host.to_owned(), port)).filter(|_| port > 0);
            prop_assert_eq!(parse_address(&address.to_string()).ok(), valid(&ip));
            prop_assert_eq!(parse_address(&format!("{name}:{port}")).ok(), valid(&name));
            for invalid in [ip.clone(), name.clone(), format!("{name}:"), format!(":{port}"), format!("[{name}]:{port}")] {
                prop_assert!(parse_address(&invalid).is_err(), "{}", invalid);
            }
            let without_brackets = parse_address(&format!("{ip}:{port}")).ok();
            prop_assert_eq!(without_brackets, valid(&ip).filter(|_| address.is_ipv4()));
        }

        #[test]
        fn a_port_is_from_1_to_65535(port in 0..200_000_u32) {
            let valid = u16::try_from(port).ok().filter(|port| *port > 0);
            let args = ClientArgs::try_parse_from(["echo-client", "--port", &port.to_string()]);
            prop_assert_eq!(args.ok().and_then(|args| args.port), valid);
        }

        #[test]
        fn a_timeout_is_from_a_millisecond_to_a_day(us in 0..100_000_000_000_u64) {
            let day = 86_400_000_000;
            let valid = (1_000..=day).contains(&us).then(|| Duration::from_micros(us));
            prop_assert_eq!(parse_timeout(&format!("{us}us")).ok(), valid);
        }
    }
}
