//! How the server ends a connection. During graceful shutdown it keeps echoing until the client is
//! quiet. Then, as after an idle timeout, it lingers until the client has received everything.

use std::io::ErrorKind;
use std::net;
use std::ops::ControlFlow::{self, Break, Continue};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::{CloseReason, Connection};
use crate::platform::socket::receive;
use crate::platform::tcp_info::TcpInfo;
use crate::platform::wait::{PollFlags, wait_for_socket};

/// How long a lingering close waits for the client's FIN after the acknowledgement.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_millis(300);

/// How often a thread checks for acknowledgements: no event reports them.
pub(super) const ACK_POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Connection {
    /// Blocks until the client has sent more. Ends the connection once the client is quiet, when
    /// everything it sent has been echoed, or once the shutdown timeout passes.
    pub(super) fn wait_or_close(&self) -> ControlFlow<CloseReason> {
        let shutdown = &self.shared.shutdown;
        let waiting_since = Instant::now();
        let receive_buffer = SockRef::from(&self.stream).recv_buffer_size();
        let may_have_waited = receive_buffer.is_ok_and(|size| self.bytes_echoed >= size as u64 / 4);
        loop {
            if shutdown.is_overdue() {
                return Break(CloseReason::ForciblyClosed);
            }
            let quiet_at =
                shutdown.quiet_at(TcpInfo::of(&self.stream), waiting_since, may_have_waited);
            let is_quiet = Instant::now() >= quiet_at;
            let deadline = [Some(quiet_at), shutdown.deadline()]
                .into_iter()
                .flatten()
                .min();
            match wait_for_socket(&self.stream, PollFlags::IN, deadline, None) {
                Ok(true) => return Continue(()),
                Ok(false) if is_quiet => return Break(CloseReason::ServerShuttingDown),
                // `quiet_at` may be later by now, so compute it again.
                Ok(false) => {}
                Err(error) => return Break(error.into()),
            }
        }
    }

    /// Half-closes, then reads and discards until the client has acknowledged everything and has sent
    /// FIN. Waits for up to `timeout`, and for the FIN up to 0.3 s after the acknowledgement. Returns
    /// whether everything was acknowledged, as far as the system reports it.
    ///
    /// Closing a socket with unread data sends RST, which destroys data in flight (RFC 1122,
    /// section 4.2.2.13). And after shutdown the host may be gone before the kernel could send
    /// lost data again.
    pub(super) fn lingering_close(&mut self, timeout: Duration) -> bool {
        if self.stream.shutdown(net::Shutdown::Write).is_err() {
            return true; // The client has reset the connection.
        }
        let shutdown = &self.shared.shutdown;
        let acknowledge_by = Instant::now() + timeout;
        let mut linger_until = Instant::now() + LINGER_TIMEOUT;
        let mut client_closed = false;
        loop {
            if shutdown.is_requested() {
                // Clients in the listen backlog must be served before the shutdown timeout.
                self.client_permit = None;
            }
            let now = Instant::now();
            let acknowledged = TcpInfo::of(&self.stream).is_none_or(|info| info.fin_acknowledged);
            if !acknowledged {
                linger_until = now + LINGER_TIMEOUT;
            }
            let is_done = acknowledged && (client_closed || now >= linger_until);
            if is_done || now >= acknowledge_by || shutdown.is_overdue() {
                return acknowledged;
            }
            if client_closed {
                thread::sleep(ACK_POLL_INTERVAL);
                continue;
            }
            let next_check = Some(now + ACK_POLL_INTERVAL);
            if let Ok(false) = wait_for_socket(&self.stream, PollFlags::IN, next_check, None) {
                continue;
            }
            self.buffer.clear();
            match receive(&self.stream, &mut self.buffer) {
                Ok(received) => client_closed = received == 0,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return true, // The client has reset the connection.
            }
        }
    }
}
