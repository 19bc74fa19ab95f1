//! The flags of `echo-client`.

use std::time::Duration;

use clap::{Parser, Subcommand};

use super::parse_duration;
use crate::client::{Target, bench::BenchOptions, conformance::TestOptions};

/// Talks to a TCP echo server. Without a command: at a terminal line by line, else as a pipe from
/// stdin through the server to stdout.
#[derive(Clone, Debug, Parser)]
#[command(name = "echo-client", version)]
pub struct ClientArgs {
    /// Name or IP address of the server
    #[arg(long, global = true, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,

    /// Port of the server
    #[arg(short, long, global = true, value_parser = parse_server_port, default_value = "54000")]
    pub port: u16,

    /// How long the server may take to accept a connection, and to go on while it owes bytes
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_timeout, default_value = "5s")]
    pub timeout: Duration,

    /// What to do
    #[command(subcommand)]
    pub command: Option<ClientCommand>,
}

impl ClientArgs {
    /// The server that these flags name.
    #[must_use]
    pub fn target(&self) -> Target {
        Target { host: self.host.clone(), port: self.port, timeout: self.timeout }
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

fn parse_server_port(value: &str) -> Result<u16, String> {
    match value.parse() {
        Ok(port) if port >= 1 => Ok(port),
        _ => Err("a number from 1 to 65535 is needed".to_owned()),
    }
}

pub(crate) fn parse_timeout(value: &str) -> Result<Duration, String> {
    let timeout = parse_duration(value)?;
    if (Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60)).contains(&timeout) {
        Ok(timeout)
    } else {
        Err("it must be from 1ms to 24h".to_owned())
    }
}
