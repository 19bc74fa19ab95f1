//! What the kernel knows about a TCP connection ([tcp(7)], `TCP_INFO`), on Linux. Elsewhere no
//! safe interface exists, and callers fall back to fixed times.
//!
//! [tcp(7)]: https://man7.org/linux/man-pages/man7/tcp.7.html

use std::net::TcpStream;
use std::time::Duration;

/// A snapshot of a connection's state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpInfo {
    /// Smoothed round-trip time.
    pub(crate) rtt: Duration,
    /// Retransmission timeout (RFC 6298): how long TCP waits for an acknowledgement before it
    /// sends again. At least 0.2 s on Linux.
    pub(crate) rto: Duration,
    /// Time since data last arrived, or since the connection was established.
    pub(crate) last_received: Duration,
    /// Time since data was last sent, or since the connection was established.
    pub(crate) last_sent: Duration,
    /// Whether the peer has acknowledged everything, FIN included, or has reset the connection. Only
    /// valid after a half-close.
    pub(crate) fin_acknowledged: bool,
    /// How many bytes the peer has acknowledged.
    pub(crate) bytes_acknowledged: u64,
    /// Whether the connection no longer exists.
    pub(crate) closed: bool,
}

impl TcpInfo {
    /// Reads `TCP_INFO` of `stream`. Returns `None` if that fails.
    #[cfg(target_os = "linux")]
    pub(crate) fn of(stream: &TcpStream) -> Option<Self> {
        use nix::sys::socket::GetSockOpt;

        // States of a connection that no longer exists, or whose FIN is not acknowledged
        // (`net/tcp_states.h`).
        const CLOSE: u8 = 7;
        const FIN_WAIT1: u8 = 4;
        const LAST_ACK: u8 = 9;
        const CLOSING: u8 = 11;

        let info = linux::TcpInfoOption.get(stream).ok()?;
        Some(Self {
            rtt: Duration::from_micros(info.rtt.into()),
            rto: Duration::from_micros(info.rto.into()),
            last_received: Duration::from_millis(info.last_data_recv.into()),
            last_sent: Duration::from_millis(info.last_data_sent.into()),
            fin_acknowledged: !matches!(info.state, FIN_WAIT1 | LAST_ACK | CLOSING),
            bytes_acknowledged: info.bytes_acked,
            closed: info.state == CLOSE,
        })
    }

    /// Returns `None`: no safe interface exists.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn of(_: &TcpStream) -> Option<Self> {
        None
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use nix::libc; // the macro below expects it in scope

    /// The beginning of the kernel's `struct tcp_info`. Newer kernels only append to it, and
    /// return as much as is asked for. Kernels before 4.1 return less, which `nix` does not expect;
    /// the manual requires 4.1.
    #[repr(C)]
    #[derive(Clone, Copy, Debug)]
    pub(super) struct RawTcpInfo {
        pub(super) state: u8,
        /// From `tcpi_ca_state` to the bit fields.
        _flags: [u8; 7],
        /// Microseconds.
        pub(super) rto: u32,
        /// From `tcpi_ato` to `tcpi_fackets`.
        _ato_to_fackets: [u32; 8],
        /// Milliseconds.
        pub(super) last_data_sent: u32,
        _last_ack_sent: u32,
        /// Milliseconds.
        pub(super) last_data_recv: u32,
        /// From `tcpi_last_ack_recv` to `tcpi_rcv_ssthresh`.
        _last_ack_recv_to_rcv_ssthresh: [u32; 3],
        /// Microseconds.
        pub(super) rtt: u32,
        /// From `tcpi_rttvar` to `tcpi_total_retrans`.
        _rttvar_to_total_retrans: [u32; 8],
        /// `tcpi_pacing_rate` and `tcpi_max_pacing_rate`.
        _pacing_rates: [u64; 2],
        pub(super) bytes_acked: u64,
    }

    /// The socket option. The macro is how `nix` extends its list of options; all bit patterns are
    /// valid for [`RawTcpInfo`].
    #[derive(Clone, Copy, Debug)]
    pub(super) struct TcpInfoOption;

    nix::getsockopt_impl!(
        TcpInfoOption,
        libc::IPPROTO_TCP,
        libc::TCP_INFO,
        RawTcpInfo,
        nix::sys::socket::sockopt::GetStruct<RawTcpInfo>
    );
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{self, Read, Write};
    use std::net::{Ipv4Addr, Shutdown, TcpListener};

    use super::*;

    #[test]
    fn reports_rtt_rto_and_the_acknowledged_fin() -> io::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        client.write_all(b"x")?;
        server.read_exact(&mut [0])?;
        let info = TcpInfo::of(&server).expect("the kernel answers");
        assert!(
            info.rtt > Duration::ZERO && info.rtt < Duration::from_secs(1),
            "{info:?}"
        );
        assert!(info.rto >= Duration::from_millis(200), "{info:?}");
        assert!(info.last_received < Duration::from_secs(1), "{info:?}");
        server.shutdown(Shutdown::Write)?;
        assert_eq!(client.read(&mut [0])?, 0);
        drop(client);
        // The client's FIN, which comes with the acknowledgement.
        assert_eq!(server.read(&mut [0])?, 0);
        assert!(TcpInfo::of(&server).is_some_and(|info| info.fin_acknowledged));
        Ok(())
    }
}
