//! The PROXY protocol ([specification][spec]). Behind a load balancer every connection comes from
//! the load balancer's address, so it begins with a header that carries the client's address. The
//! header is not echoed. Any client can forge one, so a server that accepts headers must be
//! reachable only through the load balancer.
//!
//! [spec]: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::{Duration, Instant};

use proxy_header::{ParseConfig, ProxyHeader};

use super::{CloseReason, Connection};
use crate::server::listener::canonical;

/// How long a PROXY header may take. It comes with the connection's first bytes, and the
/// specification asks for at least 3 s, so that a lost packet can be sent again.
const PROXY_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest header that is accepted, in bytes. Version 2 allows 64 KiB, but no load balancer
/// needs that much, and each connection must stay within its memory. nginx has the same limit.
const MAX_LENGTH: usize = 4096;

/// The longest header of version 1, a line of text, with its CR LF, in bytes.
const MAX_V1_LENGTH: usize = 107;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// After the signature of version 2: a command, a protocol, and the length of the rest.
const V2_PREFIX_LENGTH: usize = V2_SIGNATURE.len() + 4;

/// The commands of version 2: the load balancer's own connection, such as a health check, or a
/// client's.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

impl Connection {
    /// Removes the PROXY header from the stream. Returns the client's address if the header has
    /// one.
    pub(super) fn read_proxy_header(&mut self) -> ControlFlow<CloseReason, Option<SocketAddr>> {
        let deadline = Instant::now() + PROXY_HEADER_TIMEOUT;
        let mut header = Vec::new();
        if let Err(error) = header.try_reserve_exact(MAX_LENGTH) {
            return Break(io::Error::from(error).into());
        }
        while Instant::now() < deadline {
            if self.shared.shutdown.is_requested() {
                self.wait_while_draining()?;
            }
            match self.receive_or_wait(Some(deadline))? {
                None => continue,
                Some(0) => {
                    return Break(CloseReason::InvalidProxyHeader(
                        "closed by client before it was complete",
                    ));
                }
                Some(_) => {}
            }
            let length_before = header.len();
            let piece = &self.buffer[..self.buffer.len().min(MAX_LENGTH - header.len())];
            header.extend_from_slice(piece);
            match parse(&header) {
                Parsed::Incomplete => {}
                Parsed::Complete { length, client } => {
                    // What follows the header is echoed.
                    self.buffer.drain(..length - length_before);
                    return Continue(client);
                }
                Parsed::Invalid => {
                    return Break(CloseReason::InvalidProxyHeader(
                        "missing, malformed or too long",
                    ));
                }
            }
        }
        Break(CloseReason::InvalidProxyHeader("incomplete after 5s"))
    }
}

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// The beginning of a header.
    Incomplete,
    /// A header, and possibly more.
    Complete {
        /// The length of the header in bytes.
        length: usize,
        /// The client's address, if the header has one.
        client: Option<SocketAddr>,
    },
    /// Something else, or a header that is malformed or too long.
    Invalid,
}

/// Parses the first bytes of a connection.
fn parse(bytes: &[u8]) -> Parsed {
    if may_begin_with(bytes, V1_SIGNATURE) {
        parse_v1(bytes)
    } else if may_begin_with(bytes, V2_SIGNATURE) {
        parse_v2(bytes)
    } else {
        Parsed::Invalid
    }
}

/// Returns whether `bytes` begin with `signature`, as far as they go.
fn may_begin_with(bytes: &[u8], signature: &[u8]) -> bool {
    let length = signature.len().min(bytes.len());
    signature[..length] == bytes[..length]
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    let line = &bytes[..bytes.len().min(MAX_V1_LENGTH)];
    match line.iter().position(|byte| *byte == b'\n') {
        Some(end) => parse_complete(&line[..=end]),
        None if line.len() == MAX_V1_LENGTH => Parsed::Invalid,
        None => Parsed::Incomplete,
    }
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let Some([command, _, high, low]) = bytes.get(V2_SIGNATURE.len()..V2_PREFIX_LENGTH) else {
        return Parsed::Incomplete;
    };
    let length = V2_PREFIX_LENGTH + usize::from(u16::from_be_bytes([*high, *low]));
    if length > MAX_LENGTH {
        return Parsed::Invalid;
    }
    match (*command, bytes.get(..length)) {
        (LOCAL | PROXY, None) => Parsed::Incomplete,
        // The specification requires ignoring the rest of such a header.
        (LOCAL, Some(_)) => Parsed::Complete {
            length,
            client: None,
        },
        (PROXY, Some(header)) => parse_complete(header),
        _ => Parsed::Invalid,
    }
}

fn parse_complete(header: &[u8]) -> Parsed {
    let config = ParseConfig {
        include_tlvs: false,
        ..ParseConfig::default()
    };
    let Ok((parsed, length)) = ProxyHeader::parse(header, config) else {
        return Parsed::Invalid;
    };
    let client = parsed
        .proxied_address()
        .map(|address| canonical(address.source));
    Parsed::Complete { length, client }
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
        fn a_header_is_complete_at_its_last_byte(
            ip: IpAddr,
            port: u16,
            version in 1..=2_u8,
            rest: Vec<u8>,
        ) {
            let source = SocketAddr::new(ip, port);
            let header = header(source, version);
            for cut in 0..header.len() {
                prop_assert_eq!(parse(&header[..cut]), Parsed::Incomplete, "cut at {}", cut);
            }
            let complete = Parsed::Complete { length: header.len(), client: Some(canonical(source)) };
            prop_assert_eq!(parse(&[header, rest].concat()), complete);
        }

        #[test]
        fn any_bytes_can_be_parsed(bytes: Vec<u8>, signature in 0..3_usize) {
            let signature = [V1_SIGNATURE, V2_SIGNATURE, b""][signature];
            let bytes = [signature, &bytes].concat();
            if let Parsed::Complete { length, .. } = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }

        #[test]
        fn a_header_longer_than_the_limit_is_invalid(length in 4081..=65_535_u16) {
            let header = [V2_SIGNATURE, &[PROXY, 0x11], &length.to_be_bytes()].concat();
            prop_assert_eq!(parse(&header), Parsed::Invalid);
        }

        #[test]
        fn other_first_bytes_are_invalid(bytes in "[A-OQ-Za-z0-9].{0,40}") {
            prop_assert_eq!(parse(bytes.as_bytes()), Parsed::Invalid);
        }
    }
}
