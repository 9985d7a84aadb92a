//! All internet sockets of a process at a glance, read by a program of the kernel's own that walks its descriptors
//! ([`bpf_iter`]): what fields say, and would take a hundred calls of each socket to be told.
//!
//! Most of it is a [`Glance::likeness`]: the fields that options of a stream of TCP are made of. Nobody need understand
//! them. Sockets in which they are the same give the same answers to those options, so that one of them can be asked for
//! all. Whoever uses it had better ask a few more of them, and compare: a kernel may begin to keep something elsewhere.

mod layout;
mod program;

use super::bpf_iter::{self, Visit, load};
use super::tcp_repair::{Agreed, Window};
use super::unix_memory::Reader;
use layout::{Layout, Name, Part};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{OwnedFd, RawFd};
use std::sync::OnceLock;

/// What a process has open.
#[derive(Debug, Clone, Default)]
pub struct Descriptors {
    /// All of them, ascending.
    pub all: Vec<RawFd>,
    /// Those that are sockets of IPv4 and IPv6.
    pub sockets: BTreeMap<RawFd, Glance>,
}

/// A socket of IPv4 or IPv6. What is of TCP means nothing in another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    record: Box<[u8]>,
    likeness: Box<[u8]>,
    layout: &'static Layout,
}

/// The program, and what it tells of a socket.
struct Ready {
    program: OwnedFd,
    layout: Layout,
}

fn ready() -> Result<&'static Ready, Errno> {
    static READY: OnceLock<Result<Ready, Errno>> = OnceLock::new();
    let make = || {
        let reader = Reader::new()?;
        let layout = Layout::of(&reader)?;
        let visit = Visit::Files(0);
        let program = load(reader.btf, visit.target(), &bpf_iter::program(visit, &program::body(&reader, &layout)?))?;
        Ok(Ready { program, layout })
    };
    READY.get_or_init(make).as_ref().map_err(|e| *e)
}

/// Gets ready what takes longest; [`of_process`] does it if nobody has.
pub fn prepare() {
    let _ = ready();
}

/// What a process has open, by any of its threads. ENOENT or ENOTSUP where the kernel does not describe its types, or has
/// others; EPERM without the right to look.
pub fn of_process(tid: i32) -> Result<Descriptors, Errno> {
    let ready = ready()?;
    let words = bpf_iter::run_for_files(&ready.program, tid)?;
    let mut rest = words.as_slice();
    let mut descriptors = Descriptors::default();
    while let Some(first) = rest.first() {
        let fd = *first as u32 as RawFd;
        descriptors.all.push(fd);
        let len = if first >> 32 == 0 { 1 } else { ready.layout.len / 8 };
        let (record, behind) = rest.split_at_checked(len).ok_or(Errno::BADMSG)?;
        rest = behind;
        if len > 1 {
            descriptors.sockets.insert(fd, Glance::new(&ready.layout, record));
        }
    }
    Ok(descriptors)
}

impl Glance {
    fn new(layout: &'static Layout, words: &[u64]) -> Glance {
        let record = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut glance = Glance { record, likeness: Box::default(), layout };
        let route = Some(&layout.route).filter(|_| glance.sort().0 == libc::AF_INET6);
        let mut likeness = Vec::with_capacity(glance.record.len());
        for part in layout.options.iter().chain(route) {
            likeness.extend_from_slice(&glance.value(part).to_le_bytes()[..part.field.len.into()]);
        }
        glance.likeness = likeness.into();
        glance
    }

    fn value(&self, part: &Part) -> u64 {
        let bytes = self.record.get(part.place..).unwrap_or_default().iter().take(part.field.len.into());
        bytes.rev().fold(0, |all, byte| all << 8 | u64::from(*byte)) & part.mask
    }

    /// Zero if it has none.
    fn get(&self, name: Name) -> u64 {
        let part = self.layout.parts.iter().find(|(its, _)| *its == name);
        part.map_or(0, |(_, part)| {
            self.value(part) >> if part.mask == u64::MAX { 0 } else { part.mask.trailing_zeros() }
        })
    }

    fn word(&self, name: Name) -> u32 {
        self.get(name) as u32
    }

    /// The fields that options of a stream of TCP are made of.
    #[must_use]
    pub fn likeness(&self) -> &[u8] {
        &self.likeness
    }

    /// `AF_*`, `SOCK_*`, `IPPROTO_*`.
    #[must_use]
    pub fn sort(&self) -> (i32, i32, i32) {
        (self.get(Name::Family) as i32, self.get(Name::Type) as i32, self.get(Name::Protocol) as i32)
    }

    /// In which network namespace it is: the same number for sockets of one. It means nothing else.
    #[must_use]
    pub fn network(&self) -> u64 {
        self.get(Name::Network)
    }

    /// `TCP_ESTABLISHED` (1) to `TCP_CLOSE` (7), `TCP_LISTEN` (10) and so on.
    #[must_use]
    pub fn state(&self) -> u32 {
        self.word(Name::State)
    }

    /// Its inode number.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.get(Name::Inode)
    }

    /// `O_*`; `O_CLOEXEC` is that of the descriptor.
    #[must_use]
    pub fn flags(&self) -> u32 {
        let fd = self.record.first_chunk().map_or(0, |fd| u32::from_le_bytes(*fd));
        let word = self.record.get(self.layout.cloexec..).and_then(|rest| rest.first_chunk());
        let cloexec = word.map_or(0, |word| u64::from_le_bytes(*word)) >> (fd % 64) & 1 != 0;
        let flags = self.word(Name::Flags) & !(libc::O_CLOEXEC as u32);
        if cloexec { flags | libc::O_CLOEXEC as u32 } else { flags }
    }

    /// Whether its file was ever locked.
    #[must_use]
    pub fn may_have_locks(&self) -> bool {
        self.get(Name::Locks) != 0
    }

    /// Whether its signals were ever given an owner, or a number.
    #[must_use]
    pub fn may_have_owner(&self) -> bool {
        self.get(Name::Owner) != 0
    }

    /// Whether an error waits for the program, or something in the queue of errors.
    #[must_use]
    pub fn has_error(&self) -> bool {
        self.get(Name::Error) != 0 || self.get(Name::Errors) != 0
    }

    /// What SO_SNDBUF and SO_RCVBUF tell.
    #[must_use]
    pub fn buffers(&self) -> (u32, u32) {
        (self.word(Name::SendBuffer), self.word(Name::ReceiveBuffer))
    }

    /// What TCP_WINDOW_CLAMP tells.
    #[must_use]
    pub fn window_clamp(&self) -> u32 {
        self.word(Name::WindowClamp)
    }

    /// Of one that listens: how many connections wait to be accepted.
    #[must_use]
    pub fn backlog(&self) -> u32 {
        self.word(Name::Backlog)
    }

    /// Both ends, its own first; those of IPv4 as such, also of a socket of IPv6.
    #[must_use]
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        let v6 = |high, low| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&self.get(high).to_le_bytes());
            bytes[8..].copy_from_slice(&self.get(low).to_le_bytes());
            IpAddr::from(bytes).to_canonical()
        };
        let v4 = |name| IpAddr::from(self.word(name).to_le_bytes());
        let (own, peer) = match self.sort().0 {
            libc::AF_INET6 => (v6(Name::V6, Name::V6Low), v6(Name::V6Peer, Name::V6PeerLow)),
            _ => (v4(Name::V4), v4(Name::V4Peer)),
        };
        let peer_port = u16::from_be_bytes((self.get(Name::PeerPort) as u16).to_le_bytes());
        (SocketAddr::new(own, self.get(Name::Port) as u16), SocketAddr::new(peer, peer_port))
    }

    /// Whether there is a mark of urgent data in what was received, or was before, or in what was not acknowledged.
    #[must_use]
    pub fn has_urgent(&self) -> bool {
        let ahead = self.word(Name::Mark).wrapping_sub(self.word(Name::Acknowledged));
        self.get(Name::Urgent) != 0 || ahead as i32 > 0
    }

    /// What [`socket_inside`](super::socket_inside) reads of a descriptor, in its order.
    pub(super) fn inside(&self) -> [u64; 7] {
        [Name::Policy, Name::OtherPolicy, Name::Group, Name::Urgent, Name::Acknowledged, Name::Mark, Name::Keys]
            .map(|name| self.get(name))
    }

    /// What repair mode tells of a connection that is established, has read and sent everything, and has no mark of urgent
    /// data; `None` of any other.
    #[must_use]
    pub fn at_rest(&self) -> Option<AtRest> {
        const ESTABLISHED: u32 = 1;
        let (received, written) = (self.word(Name::ReceivedNext), self.word(Name::Written));
        let rests = self.state() == ESTABLISHED
            && self.word(Name::Read) == received
            && self.word(Name::Acknowledged) == written
            && self.get(Name::Urgent) == 0;
        rests.then(|| AtRest {
            received,
            written,
            window: Window {
                snd_wl1: self.word(Name::WindowFrom),
                snd_wnd: self.word(Name::Window),
                max_window: self.word(Name::MaxWindow),
                rcv_wnd: self.word(Name::OwnWindow),
                rcv_wup: self.word(Name::OwnWindowFrom),
            },
            agreed: Agreed {
                mss: self.word(Name::Mss),
                scales: (self.get(Name::Scaled) != 0).then(|| (self.word(Name::Scale), self.word(Name::OwnScale))),
                sack: self.get(Name::Sack) != 0,
                timestamps: self.get(Name::Timestamps) != 0,
            },
        })
    }
}

/// A connection whose queues are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtRest {
    /// The sequence number of what is received next.
    pub received: u32,
    /// The sequence number of what is sent next.
    pub written: u32,
    pub window: Window,
    pub agreed: Agreed,
}

#[cfg(test)]
mod tests {
    use super::super::socket::{get_bytes, get_int, set_int};
    use super::super::tcp_repair::{self, Queue};
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    fn look() -> Option<Descriptors> {
        match of_process(std::process::id() as i32) {
            Ok(all) => Some(all),
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => None,
            Err(errno) => panic!("{errno}"),
        }
    }

    #[test]
    fn sockets_are_as_they_say() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let Some(all) = look() else { return };
            assert!(all.all.contains(&file.as_raw_fd()) && !all.sockets.contains_key(&file.as_raw_fd()));
            let (one, listening) = (&all.sockets[&client.as_raw_fd()], &all.sockets[&listener.as_raw_fd()]);
            let family = if address.starts_with('[') { libc::AF_INET6 } else { libc::AF_INET };
            assert_eq!(one.sort(), (family, libc::SOCK_STREAM, libc::IPPROTO_TCP));
            assert_eq!((one.state(), listening.state(), listening.backlog()), (1, 10, 1));
            assert_eq!(one.ends(), (client.local_addr().unwrap(), client.peer_addr().unwrap()));
            assert_eq!(one.flags(), (libc::O_RDWR | libc::O_CLOEXEC) as u32);
            let get = |level, option| get_int(&client, level, option).unwrap() as u32;
            let buffers = (get(libc::SOL_SOCKET, libc::SO_SNDBUF), get(libc::SOL_SOCKET, libc::SO_RCVBUF));
            assert_eq!(one.buffers(), buffers);
            assert_eq!(one.window_clamp(), get(libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP));
            assert!(!one.may_have_locks() && !one.may_have_owner() && !one.has_error());
            let before = one.likeness().to_vec();
            set_int(&client, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).unwrap();
            rustix::io::fcntl_setfd(&client, rustix::io::FdFlags::empty()).unwrap();
            let one = look().unwrap().sockets[&client.as_raw_fd()].clone();
            assert_ne!(one.likeness(), before);
            assert_eq!(one.flags(), libc::O_RDWR as u32);
        }
    }

    #[test]
    fn a_connection_at_rest_is_as_repair_mode_tells() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let Some(all) = look() else { return };
        let at_rest = all.sockets[&client.as_raw_fd()].at_rest().unwrap();
        if tcp_repair::begin(&client).is_err() {
            return;
        }
        let sequence = |queue| {
            tcp_repair::choose(&client, queue).unwrap();
            tcp_repair::sequence(&client).unwrap()
        };
        assert_eq!((at_rest.received, at_rest.written), (sequence(Queue::Receive), sequence(Queue::Send)));
        assert_eq!(at_rest.window, tcp_repair::window(&client).unwrap());
        assert_eq!(at_rest.agreed.mss, tcp_repair::agreed_mss(&client).unwrap());
        let scales = get_bytes(&client, libc::IPPROTO_TCP, libc::TCP_INFO, 8).unwrap()[6];
        assert_eq!(at_rest.agreed.scales, Some((u32::from(scales & 15), u32::from(scales >> 4))));
        tcp_repair::end_silently(&client).unwrap();
        std::io::Write::write_all(&mut &server, b"?").unwrap();
        assert_eq!(look().unwrap().sockets[&client.as_raw_fd()].at_rest(), None);
    }
}
