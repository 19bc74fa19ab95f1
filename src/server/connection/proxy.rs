//! The PROXY protocol: behind a balancer every connection comes from the balancer's address, so it
//! says first, in a header, whose connection it is ([the specification][spec]). The header is no
//! client's, and is not echoed. It cannot be told from one that a client has made up: a server that
//! believes it must be reached by the balancer alone.
//!
//! [spec]: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::{Duration, Instant};

use proxy_header::{ParseConfig, ProxyHeader};

use super::{CloseReason, Connection};
use crate::server::listener::canonical;

/// How long the header may take. It comes with the connection's first bytes, and the specification
/// asks for at least 3 s, so that a lost packet can be sent again.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest header that is accepted, in bytes. Version 2 allows 64 KiB, but no load balancer needs
/// that much, and each connection must stay within its memory. nginx has the same limit.
const MAX_LENGTH: usize = 4096;

/// How a header of version 1 begins: a line of text.
const V1: &[u8] = b"PROXY ";

/// The longest such line, with its CR LF, in bytes.
const LONGEST_LINE: usize = 107;

/// How a header of version 2 begins: 16 bytes, of which the last two tell how many follow.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The byte behind that: the version, and whether the connection is the balancer's own.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// What a connection's first bytes are.
#[derive(Debug, PartialEq, Eq)]
enum Start {
    /// The beginning of a header.
    Partial,
    /// A header and maybe more.
    Header {
        /// Bytes.
        length: usize,
        /// The client; none where it is the balancer's own connection, such as a health check, or
        /// where the balancer does not tell.
        client: Option<SocketAddr>,
    },
    /// Anything else.
    Other,
}

impl Start {
    fn parse(bytes: &[u8]) -> Self {
        let begins = |signature: &[u8]| {
            let length = signature.len().min(bytes.len());
            signature[..length] == bytes[..length]
        };
        if begins(V1) {
            Self::parse_line(bytes)
        } else if begins(V2) {
            Self::parse_block(bytes)
        } else {
            Self::Other
        }
    }

    fn parse_line(bytes: &[u8]) -> Self {
        let line = &bytes[..bytes.len().min(LONGEST_LINE)];
        match line.iter().position(|byte| *byte == b'\n') {
            Some(end) => Self::parse_whole(&line[..=end]),
            None if line.len() == LONGEST_LINE => Self::Other,
            None => Self::Partial,
        }
    }

    fn parse_block(bytes: &[u8]) -> Self {
        let Some([command, _, high, low]) = bytes.get(V2.len()..V2.len() + 4) else {
            return Self::Partial;
        };
        let length = V2.len() + 4 + usize::from(u16::from_be_bytes([*high, *low]));
        if length > MAX_LENGTH {
            return Self::Other;
        }
        match (*command, bytes.get(..length)) {
            (LOCAL | PROXY, None) => Self::Partial,
            // Whatever else it says means nothing.
            (LOCAL, Some(_)) => Self::Header {
                length,
                client: None,
            },
            (PROXY, Some(header)) => Self::parse_whole(header),
            _ => Self::Other,
        }
    }

    fn parse_whole(header: &[u8]) -> Self {
        let config = ParseConfig {
            include_tlvs: false,
            ..ParseConfig::default()
        };
        match ProxyHeader::parse(header, config) {
            Ok((parsed, length)) => {
                let client = parsed
                    .proxied_address()
                    .map(|address| canonical(address.source));
                Self::Header { length, client }
            }
            Err(_) => Self::Other,
        }
    }
}

impl Connection {
    /// Removes the header from the stream. Returns the client's address if the header has one.
    pub(super) fn read_proxy_header(&mut self) -> ControlFlow<CloseReason, Option<SocketAddr>> {
        let deadline = Instant::now() + TIMEOUT;
        let mut header = Vec::new();
        if let Err(error) = header.try_reserve_exact(MAX_LENGTH) {
            return Break(io::Error::from(error).into());
        }
        while Instant::now() < deadline {
            let received = if self.shared.shutdown.is_requested() {
                self.receive_unless_quiet()?
            } else {
                self.receive_or_wait(Some(deadline))?
            };
            match received {
                None => continue,
                Some(0) => {
                    return Break(CloseReason::InvalidProxyHeader(
                        "the client closed the connection before its end",
                    ));
                }
                Some(_) => {}
            }
            let length_before = header.len();
            let piece = &self.buffer[..self.buffer.len().min(MAX_LENGTH - header.len())];
            header.extend_from_slice(piece);
            match Start::parse(&header) {
                Start::Partial => {}
                Start::Header { length, client } => {
                    // What follows the header is echoed.
                    self.sent = length - length_before;
                    return Continue(client);
                }
                Start::Other => {
                    return Break(CloseReason::InvalidProxyHeader(
                        "the connection begins with other bytes",
                    ));
                }
            }
        }
        Break(CloseReason::InvalidProxyHeader("none arrived within 5s"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use proxy_header::ProxiedAddress;

    use super::*;

    fn header(source: SocketAddr, version: u8) -> Vec<u8> {
        let header = ProxyHeader::with_address(ProxiedAddress::stream(source, source));
        let mut bytes = Vec::new();
        let encoded = match version {
            1 => header.encode_v1(&mut bytes),
            _ => header.encode_v2(&mut bytes),
        };
        encoded.expect("it can be encoded");
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_header_is_one_once_it_is_whole_and_whatever_follows(
            ip: IpAddr,
            port: u16,
            version in 1..=2_u8,
            rest: Vec<u8>,
        ) {
            let source = SocketAddr::new(ip, port);
            let header = header(source, version);
            for cut in 0..header.len() {
                prop_assert_eq!(Start::parse(&header[..cut]), Start::Partial, "cut at {}", cut);
            }
            let whole = Start::Header { length: header.len(), client: Some(canonical(source)) };
            prop_assert_eq!(Start::parse(&[header, rest].concat()), whole);
        }

        #[test]
        fn any_bytes_get_an_answer(bytes: Vec<u8>, signature in 0..3_usize) {
            let signature = [V1, V2, b""][signature];
            let bytes = [signature, &bytes].concat();
            if let Start::Header { length, .. } = Start::parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }

        #[test]
        fn a_header_longer_than_the_limit_is_invalid(length in 4081..=65_535_u16) {
            let header = [V2, &[PROXY, 0x11], &length.to_be_bytes()].concat();
            prop_assert_eq!(Start::parse(&header), Start::Other);
        }

        #[test]
        fn bytes_that_begin_otherwise_are_no_header(bytes in "[A-OQ-Za-z0-9].{0,40}") {
            prop_assert_eq!(Start::parse(bytes.as_bytes()), Start::Other);
        }
    }
}
