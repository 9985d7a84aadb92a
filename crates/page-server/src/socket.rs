//! Connecting and listening, and a stream that is plain or under TLS.

use crate::tls::{ClientTls, ServerTls, TlsOptions};
use crate::{Error, Result};
use rustix::net::sockopt;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Bytes that TLS is given at a time.
const PIECE: usize = 256 << 10;

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name or an address; empty for all addresses of this host, or this host itself.
    pub host: String,
    /// 0 to listen at any that is free.
    pub port: u16,
}

impl Address {
    fn shown(&self) -> String {
        let host = if self.host.is_empty() { "*" } else { &self.host };
        if host.contains(':') { format!("[{host}]:{}", self.port) } else { format!("{host}:{}", self.port) }
    }

    fn resolve(&self, otherwise: &str) -> Result<Vec<SocketAddr>> {
        let host = if self.host.is_empty() { otherwise } else { &self.host };
        let found = (host.trim_matches(['[', ']']), self.port).to_socket_addrs();
        let found = found.map_err(Error::io(&self.shown(), "find its address"))?.collect::<Vec<_>>();
        match found.is_empty() {
            true => Err(Error::Address { address: self.shown(), problem: "it has no address".into() }),
            false => Ok(found),
        }
    }
}

/// The other end, and how it is reached.
#[derive(Debug)]
pub enum Place {
    /// By its address.
    At(Address),
    /// By a connection that the caller has.
    Socket(OwnedFd),
}

/// A connection.
#[derive(Debug)]
pub struct Stream {
    inner: Inner,
    peer: String,
    /// Whether the socket is the caller's, who may have it open still when we are done.
    lent: bool,
}

#[derive(Debug)]
enum Inner {
    Plain(TcpStream),
    Client(Box<ClientTls>),
    Server(Box<ServerTls>),
}

impl Stream {
    /// Reaches a server.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Address`], [`Error::Credentials`].
    pub fn connect(place: Place, tls: Option<&TlsOptions>) -> Result<Self> {
        let (socket, peer, host, lent) = match place {
            Place::At(address) => {
                let found = address.resolve("localhost")?;
                let peer = address.shown();
                let socket = TcpStream::connect(&found[..]).map_err(Error::io(&peer, "connect"))?;
                (socket, peer, address.host, false)
            }
            Place::Socket(fd) => (TcpStream::from(fd), "at the socket given".to_owned(), String::new(), true),
        };
        let _ = socket.set_nodelay(true);
        notice_silence(&socket);
        let inner = match tls {
            None => Inner::Plain(socket),
            Some(tls) => Inner::Client(Box::new(tls.client(socket, &peer, &host)?)),
        };
        Ok(Stream { inner, peer, lent })
    }

    /// Takes over a connection that was made by the other end.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Credentials`].
    pub fn serve(socket: OwnedFd, peer: String, lent: bool, tls: Option<&TlsOptions>) -> Result<Self> {
        let socket = TcpStream::from(socket);
        // A request is answered at once; that a socket of another kind knows no such option matters not.
        let _ = socket.set_nodelay(true);
        notice_silence(&socket);
        let inner = match tls {
            None => Inner::Plain(socket),
            Some(tls) => Inner::Server(Box::new(tls.server(socket, &peer)?)),
        };
        Ok(Stream { inner, peer, lent })
    }

    /// Who is at the other end, for messages.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Whether the caller may have the socket open still when we are done.
    pub fn is_lent(&self) -> bool {
        self.lent
    }

    /// Bytes that have come and are not in the socket any more: poll(2) does not tell of them.
    pub fn has_pending(&mut self) -> bool {
        match &mut self.inner {
            Inner::Plain(_) => false,
            Inner::Client(tls) => tls.has_pending(),
            Inner::Server(tls) => tls.has_pending(),
        }
    }

    /// Sends `len` bytes of a pipe or file; those of a pipe without a copy, unless under TLS.
    pub(crate) fn send_from(&mut self, from: &mut File, len: u64) -> io::Result<()> {
        let sent = match &mut self.inner {
            // std::io::copy splices between a pipe and a socket.
            Inner::Plain(socket) => io::copy(&mut from.take(len), socket)?,
            _ => io::copy(&mut BufReader::with_capacity(PIECE, from.take(len)), self)?,
        };
        if sent == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// How long the other end may not move.
    pub(crate) fn set_patience(&self, limit: Duration) -> io::Result<()> {
        self.socket().set_write_timeout(Some(limit))?;
        self.socket().set_read_timeout(Some(limit))
    }

    /// Says that nothing more comes from us, and waits until the other end has said so, too: who closes a socket that
    /// has something unread breaks the connection off.
    pub(crate) fn end(&mut self) {
        let _ = self.say_end();
        if self.lent {
            return;
        }
        // However it ends, all that matters was said before.
        if matches!(self.inner, Inner::Plain(_)) {
            let _ = self.socket().shutdown(Shutdown::Write);
        }
        let _ = io::copy(self, &mut io::sink());
    }

    /// The end of what we say, for TLS.
    fn say_end(&mut self) -> io::Result<()> {
        match &mut self.inner {
            Inner::Plain(_) => Ok(()),
            Inner::Client(tls) => tls.say_end(),
            Inner::Server(tls) => tls.say_end(),
        }
    }

    fn socket(&self) -> &TcpStream {
        match &self.inner {
            Inner::Plain(socket) => socket,
            Inner::Client(tls) => tls.socket(),
            Inner::Server(tls) => tls.socket(),
        }
    }
}

/// Has the kernel find out within about a minute that the other host is gone, even if nobody waits for it to say something.
/// That a socket of another kind knows no such options matters not.
fn notice_silence(socket: &TcpStream) {
    let (idle, between, times) = (Duration::from_secs(30), Duration::from_secs(10), 3);
    let _ = sockopt::set_socket_keepalive(socket, true);
    let _ = sockopt::set_tcp_keepidle(socket, idle);
    let _ = sockopt::set_tcp_keepintvl(socket, between);
    let _ = sockopt::set_tcp_keepcnt(socket, times);
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Plain(socket) => socket.read(buffer),
            Inner::Client(tls) => tls.read(buffer),
            Inner::Server(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Plain(socket) => socket.write(bytes),
            Inner::Client(tls) => tls.write(bytes),
            Inner::Server(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.inner {
            Inner::Plain(socket) => socket.flush(),
            Inner::Client(tls) => tls.flush(),
            Inner::Server(tls) => tls.flush(),
        }
    }
}

/// Who waits to be connected to.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    shown: String,
}

impl Listener {
    /// Listens; who connects waits until [`Listener::accept`].
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Address`].
    pub fn bind(address: &Address) -> Result<Self> {
        let found = address.resolve("0.0.0.0")?;
        let shown = address.shown();
        let socket = TcpListener::bind(&found[..]).map_err(Error::io(&shown, "listen there"))?;
        Ok(Listener { socket, shown })
    }

    /// The socket of one who listens already.
    pub fn inherited(socket: OwnedFd) -> Self {
        Listener { socket: TcpListener::from(socket), shown: "*".into() }
    }

    /// The port that it has.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn port(&self) -> Result<u16> {
        let address = self.socket.local_addr().map_err(Error::io(&self.shown, "tell its port"))?;
        Ok(address.port())
    }

    /// The first who connects; nobody else can then.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Credentials`].
    pub fn accept(self, tls: Option<&TlsOptions>) -> Result<Stream> {
        let (socket, from) = self.socket.accept().map_err(Error::io(&self.shown, "accept a connection"))?;
        drop(self.socket);
        Stream::serve(socket.into(), from.to_string(), false, tls)
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        listener.socket.into()
    }
}
