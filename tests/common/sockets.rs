//! Sockets of the tests, and the bytes that they send. Reads and writes that block for too long fail
//! the test instead of hanging it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Socket, Type};

use super::{PATIENCE, skip, wait_for};

/// Connects to `address`.
pub fn connect(address: SocketAddr) -> TcpStream {
    with_timeouts(TcpStream::connect_timeout(&address, PATIENCE).expect("the server accepts"))
}

/// Connects with a receive buffer of about `size` bytes.
pub fn connect_with_buffer(address: SocketAddr, size: usize) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None);
    let socket = socket.expect("a socket can be created");
    socket
        .set_recv_buffer_size(size)
        .expect("the size can be set");
    socket.connect(&address.into()).expect("the server accepts");
    with_timeouts(TcpStream::from(socket))
}

/// Connects from this address in 127.0.0.0/8. On Linux they all belong to the machine.
#[cfg(target_os = "linux")]
pub fn connect_from(ip: [u8; 4], server: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be created");
    socket
        .bind(&SocketAddr::from((ip, 0)).into())
        .expect("the address belongs to this machine");
    socket.connect(&server.into()).expect("the server accepts");
    with_timeouts(TcpStream::from(socket))
}

/// Accepts the next client of `listener`.
pub fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("the mode can be set");
    let stream = wait_for("a client connects", || match listener.accept() {
        Ok((stream, _)) => Some(stream),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
            None
        }
    });
    // On some systems it inherits the mode.
    stream.set_nonblocking(false).expect("the mode can be set");
    with_timeouts(stream)
}

/// Sets how long a read may block.
pub fn set_read_timeout(stream: &TcpStream, timeout: Duration) {
    let set = stream.set_read_timeout(Some(timeout));
    set.expect("the timeout can be set");
}

/// Bounds each read and write by [`PATIENCE`].
pub fn with_timeouts(stream: TcpStream) -> TcpStream {
    set_read_timeout(&stream, PATIENCE);
    stream
        .set_write_timeout(Some(PATIENCE))
        .expect("the timeout can be set");
    stream
}

/// Returns a listener on an ephemeral port of 127.0.0.1, and its address.
pub fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("the listener has an address");
    (listener, address)
}

/// Returns a socket that is bound but does not listen, and its address. No other socket can listen
/// there, so connections are refused.
pub fn closed_port() -> (Socket, SocketAddr) {
    bind(false)
}

/// Returns a socket that reserves a port, and its address. The system does not choose this port as an
/// ephemeral port, but servers can listen on it one after the other, since they set `SO_REUSEADDR`.
#[cfg(unix)]
pub fn reserve_port() -> (Socket, SocketAddr) {
    bind(true)
}

fn bind(reuse_address: bool) -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be created");
    socket
        .set_reuse_address(reuse_address)
        .expect("the option can be set");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("a port is free");
    let address = socket
        .local_addr()
        .ok()
        .and_then(|address| address.as_socket());
    (socket, address.expect("the socket has an address"))
}

/// Returns the address of this end of the connection.
pub fn local_address(stream: &TcpStream) -> SocketAddr {
    stream.local_addr().expect("the socket has an address")
}

/// Sends `bytes`.
#[track_caller]
pub fn send(mut stream: &TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("the bytes are sent");
}

/// Receives as many bytes as `message` has, and checks that they are its echo.
#[track_caller]
pub fn receive_echo(mut stream: &TcpStream, message: &[u8]) {
    let mut echo = vec![0; message.len()];
    stream.read_exact(&mut echo).expect("the echo arrives");
    assert!(echo == message, "the echo differs from the message");
}

/// Sends `message` and receives its echo.
#[track_caller]
pub fn exchange(stream: &TcpStream, message: &[u8]) {
    send(stream, message);
    receive_echo(stream, message);
}

/// Exchanges `message` with each client, one after the other.
#[track_caller]
pub fn exchange_all(clients: &[TcpStream], message: &[u8]) {
    for client in clients {
        exchange(client, message);
    }
}

/// Sends the chunks and then FIN. Returns what arrives meanwhile, until the server's FIN.
pub fn send_and_read_all(stream: &TcpStream, chunks: &[&[u8]]) -> Vec<u8> {
    thread::scope(|scope| {
        scope.spawn(|| {
            for chunk in chunks {
                send(stream, chunk);
            }
            half_close(stream);
        });
        read_until_fin(stream)
    })
}

/// Sends FIN.
pub fn half_close(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).expect("FIN is sent");
}

/// Reads until FIN. Fails the test if the stream ends in another way, such as RST.
pub fn read_until_fin(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .expect("the stream ends with FIN");
    bytes
}

/// Sends without reading until every buffer on the way to the server and back is full. Returns what
/// was sent. The server's thread is then blocked in its write.
///
/// Takes 0.3 s: the buffers count as full after that long without progress.
pub fn fill(mut stream: &TcpStream) -> Vec<u8> {
    // A prime length: the pattern does not line up with any buffer size.
    let noise = noise(1_000_003, 5);
    let (mut sent, mut last_progress) = (0, Instant::now());
    stream.set_nonblocking(true).expect("the mode can be set");
    while last_progress.elapsed() < Duration::from_millis(300) {
        // With a load balancer in between there are eight buffers of up to 32 MiB each.
        assert!(sent < 300_000_000, "backpressure never stops the client");
        match stream.write(&noise[sent % noise.len()..]) {
            Ok(written) => (sent, last_progress) = (sent + written, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).expect("the mode can be set");
    // Built only now: the caller's next step may have to come before an idle timeout.
    let mut all = noise.repeat(sent.div_ceil(noise.len()));
    all.truncate(sent);
    all
}

/// Closes the connection with RST.
pub fn reset(stream: TcpStream) {
    reset_on_close(&stream);
    drop(stream);
}

/// Makes the system close the connection with RST once it is dropped.
pub fn reset_on_close(stream: &TcpStream) {
    let set = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    set.expect("SO_LINGER can be set");
}

/// Returns whether a read reports a reset although a `poll` has met it first, and reports a skipped
/// test if not. Wine 8 reports FIN.
pub fn reset_can_be_read() -> bool {
    let (listener, address) = listen();
    let mut client = connect(address);
    reset(listener.accept().expect("the client has connected").0);
    poll(&mut [PollFd::new(&client, PollFlags::IN)], None).expect("a socket can be polled");
    let is_reported = client.read(&mut [0]).is_err();
    if !is_reported {
        skip(format_args!("after poll, a reset is reported as FIN"));
    }
    is_reported
}

/// Returns `len` pseudo-random bytes (xorshift, starting from `seed`), in which no part looks like
/// another.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
