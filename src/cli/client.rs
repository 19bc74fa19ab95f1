//! The flags of `echo-client`.

use std::net::Ipv6Addr;
use std::time::Duration;

use clap::{Parser, Subcommand};

use super::{Documents, parse_duration};
use crate::client::{Target, bench::BenchOptions, conformance::TestOptions};

/// Talks to a TCP echo server. Without a command: at a terminal line by line, else as a pipe from
/// stdin through the server to stdout.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "echo-client",
    version,
    after_help = EXAMPLES
)]
pub struct ClientArgs {
    /// Name or IP address of the server
    #[arg(long, global = true, help_heading = "Server", value_name = "HOST", value_parser = parse_server_host, default_value = "127.0.0.1")]
    pub host: String,

    /// Port of the server
    #[arg(short, long, global = true, help_heading = "Server", value_parser = parse_server_port, default_value = "54000")]
    pub port: u16,

    /// How long the server may take to accept a connection, and to go on while it owes bytes
    #[arg(long, global = true, help_heading = "Server", value_name = "DURATION", value_parser = parse_timeout, default_value = "5s")]
    pub timeout: Duration,

    /// What it prints about itself instead of connecting.
    #[command(flatten)]
    pub documents: Documents,

    /// What to do
    #[command(subcommand)]
    pub command: Option<ClientCommand>,
}

const EXAMPLES: &str = "\
Examples:
  echo-client                        line by line; quit, exit or Ctrl+D leaves
  echo-client <in >out               a pipe through the server: out is what in was
  echo-client test --host server     does it echo, exactly and always?
  echo-client bench                  how many echoes a second, and how soon?

Exit codes: 0 all went well, 1 it failed or a check did, 2 a bad option, 130 a signal ended it.";

impl ClientArgs {
    /// The server that these flags name.
    #[must_use]
    pub fn target(&self) -> Target {
        Target {
            host: self.host.clone(),
            port: self.port,
            timeout: self.timeout,
        }
    }
}

/// The commands of `echo-client`.
#[derive(Clone, Debug, Subcommand)]
pub enum ClientCommand {
    /// Checks whether the server echoes, exactly and always
    Test(TestOptions),
    /// Measures how many echoes a second the server gives, and how long each takes
    Bench(BenchOptions),
}

/// The longest that anything may be asked to take.
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// IPv6 addresses are often written in brackets, with a port behind them.
fn parse_server_host(value: &str) -> Result<String, String> {
    let host = value
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(value);
    // A link-local address names its interface: fe80::1%eth0.
    let address = host.split('%').next().unwrap_or(host);
    let is_name =
        !host.is_empty() && !host.contains([':', ' ']) && !host.contains(char::is_control);
    if is_name || address.parse::<Ipv6Addr>().is_ok() {
        Ok(host.to_owned())
    } else {
        Err("a name or an IP address alone is needed; the port has its own flag, --port".to_owned())
    }
}

fn parse_server_port(value: &str) -> Result<u16, String> {
    match value.parse() {
        Ok(port) if port >= 1 => Ok(port),
        _ => Err("a number from 1 to 65535 is needed".to_owned()),
    }
}

pub(crate) fn parse_timeout(value: &str) -> Result<Duration, String> {
    let timeout = parse_duration(value)?;
    if (Duration::from_millis(1)..=DAY).contains(&timeout) {
        Ok(timeout)
    } else {
        Err("it must be from 1ms to 24h".to_owned())
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
        fn an_address_is_itself_with_or_without_brackets(ip: IpAddr, v6: Ipv6Addr) {
            prop_assert_eq!(parse_server_host(&ip.to_string()), Ok(ip.to_string()));
            prop_assert_eq!(parse_server_host(&format!("[{v6}]")), Ok(v6.to_string()));
            let with_interface = format!("{v6}%eth0");
            prop_assert_eq!(parse_server_host(&with_interface), Ok(with_interface.clone()));
        }

        #[test]
        fn a_name_is_itself_and_has_no_port(name in "[a-z][a-z0-9.-]{0,30}", port: u16) {
            prop_assert_eq!(parse_server_host(&name), Ok(name.clone()));
            for wrong in [format!("{name}:{port}"), format!("{name} ")] {
                prop_assert!(parse_server_host(&wrong).is_err());
            }
        }

        #[test]
        fn an_address_with_a_port_is_refused(address: SocketAddr) {
            prop_assert!(parse_server_host(&address.to_string()).is_err());
        }

        #[test]
        fn a_port_is_from_1_to_65535(port in 0..200_000_u32) {
            let valid = u16::try_from(port).ok().filter(|port| *port > 0);
            prop_assert_eq!(parse_server_port(&port.to_string()).ok(), valid);
        }

        #[test]
        fn a_timeout_is_from_a_millisecond_to_a_day(us in 0..100_000_000_000_u64) {
            let day = 86_400_000_000;
            let valid = (1_000..=day).contains(&us).then(|| Duration::from_micros(us));
            prop_assert_eq!(parse_timeout(&format!("{us}us")).ok(), valid);
        }
    }
}
