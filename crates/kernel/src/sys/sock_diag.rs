//! What the kernel tells of the internet sockets of a network namespace (sock_diag(7)), and no option of a socket does.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// The older question for sockets of TCP, which takes those of both families at a time.
const TCPDIAG_GETSOCK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// `struct inet_diag_msg`, and where in it the state, the ports, the cookie and the inode are.
const MESSAGE: usize = 72;
const STATE: usize = 1;
/// Both addresses and the rest of `struct inet_diag_sockid`.
const ID: std::ops::Range<usize> = 4..52;
const PORTS: usize = 4;
const COOKIE: usize = 44;
const UNREAD: usize = 56;
const INODE: usize = 68;
const INET_DIAG_INFO: u16 = 2;
/// For any cookie (INET_DIAG_NOCOOKIE).
const NO_COOKIE: [u8; 8] = [0xff; 8];
const INET_DIAG_SHUTDOWN: u16 = 8;
/// The kernel fills at most this much at a time.
const ROOM: usize = 64 << 10;

/// A socket, as the kernel tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InetSocket {
    /// `TCP_ESTABLISHED` (1) to `TCP_CLOSE` (7), `TCP_LISTEN` (10) and so on, whatever the protocol.
    pub state: u8,
    /// Its own port, and the peer's.
    pub ports: (u16, u16),
    /// `SO_COOKIE` of it.
    pub cookie: u64,
    /// Its inode number; 0 if it belongs to no descriptor.
    pub inode: u32,
    /// Which directions are shut down: 1 for receiving, 2 for sending.
    pub shutdown: u8,
    /// Bytes that were received and not read, an end counted as one; of a listening socket, connections that wait.
    pub unread: u32,
    family: u8,
    id: [u8; 48],
}

/// All sockets of a family (`AF_INET`, `AF_INET6`) and protocol in our network namespace that have a port. ENOENT where
/// the kernel lacks the module for the protocol.
pub fn inet(family: u8, protocol: u8) -> Result<Vec<InetSocket>, Errno> {
    in_states(family, protocol, u32::MAX)
}

/// All that the kernel tells of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InetDetail {
    pub socket: InetSocket,
    /// Which timer of TCP runs (tcp(7), `ss -o`); 0 for none.
    pub timer: u8,
    /// How often was sent again what that timer watches.
    pub retransmits: u8,
    /// Milliseconds until the timer ends.
    pub expires_ms: u32,
    /// The network device that it is bound to; 0 for none.
    pub device: u32,
    /// Bytes that were not read; of a socket that listens, how many wait to be accepted.
    pub received: u32,
    /// Bytes that were not acknowledged; of a socket that listens, how many may wait.
    pub sent: u32,
    /// Whose it is.
    pub uid: u32,
    /// `INET_DIAG_*` (linux/inet_diag.h) that were told beside, as they stand there.
    pub attributes: Vec<(u16, Vec<u8>)>,
}

/// All sockets of a family and protocol that have a port, with everything that the kernel tells of them. ENOENT where the
/// kernel lacks the module for the protocol.
pub fn details(family: u8, protocol: u8) -> Result<Vec<InetDetail>, Errno> {
    // idiag_ext asks for the attributes up to 8, a bit each, from 1 on.
    let mut request = vec![family, protocol, u8::MAX, 0];
    request.extend_from_slice(&u32::MAX.to_ne_bytes());
    request.extend_from_slice(&[0; 48]);
    dump(&request, MESSAGE, |body| InetDetail {
        socket: socket_of(body),
        timer: body[2],
        retransmits: body[3],
        device: word(body, 40),
        expires_ms: word(body, 52),
        received: word(body, 56),
        sent: word(body, 60),
        uid: word(body, 64),
        attributes: attributes(&body[MESSAGE..]).map(|(kind, value)| (kind, value.to_vec())).collect(),
    })
}

/// All sockets of TCP, of both families, that are in one of these states (bits by number), in our network namespace. It
/// takes one walk through all that there are, where a family takes one each.
pub fn tcp(states: u32) -> Result<Vec<InetSocket>, Errno> {
    // struct inet_diag_req: family, lengths of addresses, extensions; struct inet_diag_sockid; states; a flag.
    let mut request = vec![0; 4 + ID.len()];
    request.extend_from_slice(&states.to_ne_bytes());
    request.extend_from_slice(&[0; 4]);
    let service = Service { answer: TCPDIAG_GETSOCK, ..DIAG };
    exchange(&service, TCPDIAG_GETSOCK, NLM_F_DUMP, &request, MESSAGE, socket_of)
}

/// The socket of TCP that has a connection with these ends, or what is left of it, or else the one that listens for it;
/// and by how many bits its window is shifted. ENOENT if there is none. Both addresses are of one family.
pub fn tcp_one(own: SocketAddr, peer: SocketAddr) -> Result<(InetSocket, Option<u8>), Errno> {
    let mut id = [0; 48];
    id[..2].copy_from_slice(&own.port().to_be_bytes());
    id[2..4].copy_from_slice(&peer.port().to_be_bytes());
    for (at, end) in [(4, own), (20, peer)] {
        match end.ip().to_canonical() {
            IpAddr::V4(v4) => id[at..at + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => id[at..at + 16].copy_from_slice(&v6.octets()),
        }
    }
    id[40..].copy_from_slice(&NO_COOKIE);
    let family = if own.ip().to_canonical().is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let extensions = 1 << (INET_DIAG_INFO - 1);
    let request = request([family as u8, libc::IPPROTO_TCP as u8], extensions, u32::MAX, &id);
    let scale = |body: &[u8]| {
        let mut all = attributes(&body[MESSAGE..]);
        all.find(|(kind, _)| *kind == INET_DIAG_INFO).and_then(|(_, info)| info.get(6).map(|scales| scales >> 4))
    };
    let read = |body: &[u8]| (socket_of(body), scale(body));
    exchange(&DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_ACK, &request, MESSAGE, read)?.pop().ok_or(Errno::NOENT)
}

/// What TCP's connections from this port have left behind for a minute (TIME_WAIT) is taken away, so that the port is
/// free for who has not set SO_REUSEADDR. How many there were. EOPNOTSUPP where the kernel lacks
/// CONFIG_INET_DIAG_DESTROY; EPERM without CAP_NET_ADMIN.
pub fn end_time_waits(port: u16) -> Result<usize, Errno> {
    end(1 << TIME_WAIT, |socket| socket.ports.0 == port)
}

/// What is left of a connection of TCP whose program has ended or closed it is taken away, so that it can be there again.
/// How many there were; the errors are those of [`end_time_waits`].
pub fn end_leftovers(own: SocketAddr, peer: SocketAddr) -> Result<usize, Errno> {
    // A handshake too, of which nobody listens any more (SYN_RECV).
    const LEFT: u32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << TIME_WAIT | 1 << 9 | 1 << 11;
    let ends = (own.ip().to_canonical(), peer.ip().to_canonical());
    let ports = (own.port(), peer.port());
    end(LEFT, |socket| socket.inode == 0 && socket.ports == ports && socket.addresses() == ends)
}

const TIME_WAIT: u32 = 6;

fn end(states: u32, which: impl Fn(&InetSocket) -> bool) -> Result<usize, Errno> {
    let mut ended = 0;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let all = in_states(family, libc::IPPROTO_TCP as u8, states)?;
        for socket in all.iter().filter(|socket| which(socket)) {
            match ask(SOCK_DESTROY, NLM_F_ACK, [socket.family, libc::IPPROTO_TCP as u8], states, &socket.id) {
                // It has gone by itself meanwhile.
                Ok(_) | Err(Errno::NOENT) => ended += 1,
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(ended)
}

impl InetSocket {
    /// Both ends, its own first; those of IPv4 as such, also of a socket of IPv6.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        let (own, peer) = self.addresses();
        (SocketAddr::new(own, self.ports.0), SocketAddr::new(peer, self.ports.1))
    }

    /// Its own address and the peer's; those of IPv4 as such, also of a socket of IPv6.
    fn addresses(&self) -> (IpAddr, IpAddr) {
        let address = |at: usize| {
            let bytes: [u8; 16] = self.id[at..at + 16].try_into().unwrap_or_default();
            match i32::from(self.family) {
                libc::AF_INET => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
                _ => IpAddr::from(bytes).to_canonical(),
            }
        };
        (address(4), address(20))
    }
}

fn in_states(family: u8, protocol: u8, states: u32) -> Result<Vec<InetSocket>, Errno> {
    ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, [family, protocol], states, &[0; 48])
}

fn ask(message: u16, flags: u16, what: [u8; 2], states: u32, id: &[u8; 48]) -> Result<Vec<InetSocket>, Errno> {
    exchange(&DIAG, message, flags, &request(what, 0, states, id), MESSAGE, socket_of)
}

fn request(what: [u8; 2], extensions: u8, states: u32, id: &[u8; 48]) -> Vec<u8> {
    let mut request = Vec::with_capacity(REQUEST);
    request.extend_from_slice(&[what[0], what[1], extensions, 0]);
    request.extend_from_slice(&states.to_ne_bytes());
    request.extend_from_slice(id);
    request
}

/// Whom a request goes to, and which answers tell something.
pub(super) struct Service {
    pub protocol: Protocol,
    /// `nlmsg_type` of the answers.
    pub answer: u16,
}

const DIAG: Service = Service { protocol: SOCK_DIAG, answer: SOCK_DIAG_BY_FAMILY };

/// Asks for all sockets that a request of a family describes.
pub(super) fn dump<T>(request: &[u8], least: usize, read: impl Fn(&[u8]) -> T) -> Result<Vec<T>, Errno> {
    dump_from(&DIAG, SOCK_DIAG_BY_FAMILY, request, least, read)
}

/// The same of another part of the kernel that speaks netlink.
pub(super) fn dump_from<T>(
    service: &Service,
    message: u16,
    request: &[u8],
    least: usize,
    read: impl Fn(&[u8]) -> T,
) -> Result<Vec<T>, Errno> {
    exchange(service, message, NLM_F_DUMP, request, least, read)
}

fn exchange<T>(
    service: &Service,
    message: u16,
    flags: u16,
    request: &[u8],
    least: usize,
    read: impl Fn(&[u8]) -> T,
) -> Result<Vec<T>, Errno> {
    let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(service.protocol))?;
    let mut whole = Vec::with_capacity(HEADER + request.len());
    whole.extend_from_slice(&((HEADER + request.len()) as u32).to_ne_bytes());
    whole.extend_from_slice(&message.to_ne_bytes());
    whole.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    whole.resize(HEADER, 0);
    whole.extend_from_slice(request);
    sendto(&netlink, &whole, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    answers(&netlink, service.answer, least, read)
}

fn answers<T>(netlink: &OwnedFd, answer: u16, least: usize, read: impl Fn(&[u8]) -> T) -> Result<Vec<T>, Errno> {
    let mut all = Vec::new();
    let mut buffer = vec![0u8; ROOM];
    loop {
        let (got, _) = recv(netlink.as_fd(), &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..got];
        while rest.len() >= HEADER {
            let len = word(rest, 0) as usize;
            if len < HEADER || len > rest.len() {
                return Err(Errno::BADMSG);
            }
            let body = &rest[HEADER..len];
            match half(rest, 4) {
                NLMSG_DONE => return Ok(all),
                NLMSG_ERROR if body.len() >= 4 => {
                    let error = (word(body, 0) as i32).wrapping_neg();
                    return if error == 0 { Ok(all) } else { Err(Errno::from_raw_os_error(error)) };
                }
                kind if kind == answer && body.len() >= least => all.push(read(body)),
                _ => {}
            }
            rest = rest.get(aligned(len)..).unwrap_or_default();
        }
        if got == 0 {
            return Err(Errno::BADMSG);
        }
    }
}

fn socket_of(body: &[u8]) -> InetSocket {
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let mut socket = InetSocket {
        state: body[STATE],
        ports: (port(PORTS), port(PORTS + 2)),
        // Two words, the lower first.
        cookie: u64::from(word(body, COOKIE)) | u64::from(word(body, COOKIE + 4)) << 32,
        inode: word(body, INODE),
        shutdown: 0,
        unread: word(body, UNREAD),
        family: body[0],
        id: body[ID].try_into().unwrap_or([0; 48]),
    };
    for (kind, value) in attributes(&body[MESSAGE..]) {
        if kind == INET_DIAG_SHUTDOWN && !value.is_empty() {
            socket.shutdown = value[0];
        }
    }
    socket
}

/// The attributes of an answer: number and value.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(half(rest.get(..4)?, 0));
        let value = rest.get(4..len)?;
        let kind = half(rest, 2);
        rest = rest.get(aligned(len)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn aligned(len: usize) -> usize {
    len.next_multiple_of(4)
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_socket_is_found_with_what_is_shut_down() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect("127.0.0.1:9").unwrap();
        rustix::net::shutdown(&udp, rustix::net::Shutdown::Write).unwrap();
        let inode = rustix::fs::fstat(&udp).unwrap().st_ino as u32;
        let all = match inet(libc::AF_INET as u8, libc::IPPROTO_UDP as u8) {
            Ok(all) => all,
            // A kernel without it.
            Err(Errno::NOENT) => return,
            Err(errno) => panic!("{errno}"),
        };
        let found = all.iter().find(|socket| socket.inode == inode).unwrap();
        assert_eq!((found.ports, found.shutdown), ((udp.local_addr().unwrap().port(), 9), 2));
        assert_eq!(found.cookie, rustix::net::sockopt::socket_cookie(&udp).unwrap());
        let all = details(libc::AF_INET as u8, libc::IPPROTO_UDP as u8).unwrap();
        let detail = all.iter().find(|detail| detail.socket.inode == inode).unwrap();
        assert_eq!(detail.socket, *found);
        const SKMEMINFO: u16 = 7;
        assert!(detail.attributes.iter().any(|(kind, value)| *kind == SKMEMINFO && value.len() >= 36));
    }

    #[test]
    fn connections_of_both_families_are_found_at_once() {
        const ESTABLISHED: u32 = 1 << 1;
        let mut ends = Vec::new();
        let mut kept = Vec::new();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else { continue };
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            ends.push((client.local_addr().unwrap(), client.peer_addr().unwrap()));
            kept.push((client, listener));
        }
        let all = tcp(ESTABLISHED).unwrap();
        for end in ends {
            let (one, scale) = tcp_one(end.0, end.1).unwrap();
            assert_eq!((one.ends(), one.state), (end, 1));
            assert!(scale.is_some());
            assert_eq!(all.iter().filter(|socket| socket.ends() == end).count(), 1, "{end:?}");
        }
        assert!(all.iter().all(|socket| socket.state == 1));
    }

    #[test]
    fn a_port_is_free_again() {
        use std::io::Read;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        drop(listener.accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop((client, listener));
        // Without SO_REUSEADDR, which std sets.
        let bind = || {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            rustix::net::bind(&socket, &address)
        };
        assert_eq!(bind(), Err(Errno::ADDRINUSE));
        match end_time_waits(address.port()) {
            Ok(count) => assert_eq!((count, bind()), (1, Ok(()))),
            Err(errno) => assert!([Errno::OPNOTSUPP, Errno::PERM].contains(&errno), "{errno}"),
        }
    }

    #[test]
    fn a_connection_that_has_ended_leaves_nothing() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (own, peer) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        // It waits for the other's end, for which there is no hurry.
        drop(client);
        match end_leftovers(own, peer) {
            Ok(count) => assert_eq!(count, 1),
            Err(errno) => assert!([Errno::OPNOTSUPP, Errno::PERM].contains(&errno), "{errno}"),
        }
        // Who has a program is left alone.
        assert_eq!(end_leftovers(peer, own).unwrap_or(0), 0);
        drop(server);
    }
}
