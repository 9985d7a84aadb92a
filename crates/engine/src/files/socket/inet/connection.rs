//! A TCP connection: taken apart in repair mode (TCP_REPAIR), and put together
//! again in it. `tcp-stream-INODE.img` has the queues, sequence numbers and
//! windows.
//!
//! Numbers of the record are the kernel's own: they count an end (FIN) that
//! was sent or received, the queues do not. Everything that is put together
//! stays in repair mode, and so without a word to its peer, until
//! [`Connection::release`]. What only packets bring about, that an end was
//! received or acknowledged, is brought about by packets of our own
//! ([`super::packet`]), in the peer's name.

use super::super::beside::Extra;
use super::super::{object, options};
use super::apart::{self, TakenApart, Whole, opt};
use super::inside::{self, Signing};
use super::packet::{self, Segment};
use super::urgent::Urgent;
use super::{address, error, ready, sort_of, state, zone_of};
use crate::files::{Build, Collect, OpenFile};
use crate::{Error, Object, Result, parallel};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{InetSkEntry, SkShutdown, TcpStreamEntry};
use cryonaut_kernel::sys::socket_inside::Inside;
use cryonaut_kernel::sys::tcp_inside::{self, Unread};
use cryonaut_kernel::sys::tcp_repair::{self, Agreed, Queue, Window};
use cryonaut_kernel::sys::{sock_diag, socket};
use libc::SOL_SOCKET;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Between these TCP_MAXSEG may be (net/ipv4/tcp.c).
const MIN_MSS: u32 = 88;
const MAX_MSS: u32 = 32767;
/// Bytes that are given to a queue in one go: one buffer of the kernel's.
const CHUNK: usize = 32 << 10;
/// Connections are ended by one thread if they are fewer.
const WORTH_THREADS: usize = 64;
/// What a queue takes besides its data, generously.
const OVERHEAD: usize = 256 << 10;

/// Whether our own end was sent in this state.
pub fn sent_end(state: u32) -> bool {
    matches!(state, state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK)
}

/// Whether the peer's end was received.
fn received_end(state: u32) -> bool {
    matches!(state, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING)
}

/// States in which there is a peer that knows of the connection.
pub fn is_connected(state: u32) -> bool {
    matches!(state, state::ESTABLISHED | state::CLOSE_WAIT) || sent_end(state)
}

/// Writes a connection down, and leaves it as it was.
pub fn collect(
    cx: &Collect<'_>,
    file: &OpenFile<'_>,
    record: &mut InetSkEntry,
    extra: &mut Extra,
    inside: Option<&Inside>,
) -> Result<()> {
    record.set_shutdown(match (received_end(record.state), sent_end(record.state)) {
        (false, false) => SkShutdown::None,
        (true, false) => SkShutdown::Read,
        (false, true) => SkShutdown::Write,
        (true, true) => SkShutdown::Both,
    });
    if record.shutdown() == SkShutdown::None {
        record.shutdown = None;
    }
    let TakenApart { stream, data } = match file.asked.taken.take() {
        Some(taken) => *taken,
        None => {
            let told = urgent_of(file, extra, inside)?;
            let (reuse, state) = (record.opts.reuseaddr == Some(true), record.state);
            let one = Whole { socket: file.file, reuse, state, unread: told.as_ref().map(|unread| &unread.data[..]) };
            let taken = apart::take(cx.guard, &[one]).and_then(|mut all| all.pop().unwrap_or(Err(Errno::INVAL)));
            taken.map_err(|e| repair_error(file.object(), "take its connection apart (TCP_REPAIR)", e))?
        }
    };
    let image = cx.images.entry_file(ImageKind::TcpStream, u64::from(record.ino))?;
    image.append_with(&stream, &data)?;
    cx.images.complete(image);
    Ok(())
}

/// What it has received, if a mark of urgent data is in it: neither is to be had from it whole.
fn urgent_of(file: &OpenFile<'_>, extra: &mut Extra, inside: Option<&Inside>) -> Result<Option<Unread>> {
    let Some(inside) = inside else {
        if !ready(file.file).contains(PollFlags::PRI) {
            return Ok(None);
        }
        let reason = "it has urgent data that the program has not read, which only a kernel with BTF tells";
        return Err(Error::unsupported(file.object(), reason, "let the program read it before the checkpoint"));
    };
    extra.urgent_sent = inside.urgent_sent;
    if !inside.urgent {
        return Ok(None);
    }
    let told = tcp_inside::unread(file.file).map_err(|e| Error::kernel(file.object(), "look at its urgent data", e))?;
    extra.urgent = Urgent::of(&told);
    Ok(extra.urgent.is_some().then_some(told))
}

fn repair_error(object: Object, action: &str, errno: Errno) -> Error {
    let remedy = if errno == Errno::PERM { "connections of TCP need CAP_NET_ADMIN" } else { "" };
    Error::Kernel { object, action: action.into(), errno, remedy }
}

/// A connection that is put together, and does not speak yet.
#[derive(Debug)]
pub struct Connection {
    id: u32,
    record: InetSkEntry,
    stream: TcpStreamEntry,
    /// What is to be sent once it may.
    not_sent: Vec<u8>,
    /// Behind how many bytes of that the urgent one is over.
    urgent: Option<usize>,
    /// By which its packets are signed.
    keys: Vec<Signing>,
    own: SocketAddr,
    peer: SocketAddr,
}

/// Puts a connection together in a new socket, which has its options already.
pub fn build(cx: &Build<'_>, socket: BorrowedFd<'_>, record: &InetSkEntry, extra: &Extra) -> Result<Connection> {
    let file = || format!("tcp-stream-{:x}.img", record.ino);
    let all = cx.images.read_tailed::<TcpStreamEntry>(ImageKind::TcpStream, u64::from(record.ino))?;
    let Some((stream, data)) = all.into_iter().next() else {
        return Err(Error::bad_image(file(), "it has no connection"));
    };
    let zone = zone_of(record)?;
    let own = address::of_record(record, &record.src_addr, record.src_port, zone)?;
    let peer = address::of_record(record, &record.dst_addr, record.dst_port, zone)?;
    let unread = stream.inq_len as usize;
    let sent = data.len() - (stream.unsq_len.unwrap_or(0).min(stream.outq_len) as usize);
    let what = || object(record.id, sort_of(record));
    let failed = |action: &str, e| repair_error(what(), action, e);
    tcp_repair::begin(socket).map_err(|e| failed("put its connection together (TCP_REPAIR)", e))?;
    connect(socket, record, &stream, &own, &peer)?;
    make_room_for(socket, stream.inq_len as usize, stream.outq_len as usize)
        .map_err(|e| failed("make room for its queues", e))?;
    let before = extra.urgent.map_or(unread, |urgent| unread.min(urgent.behind as usize));
    put(socket, Queue::Receive, &data[..before]).map_err(|e| failed("give it back what it had not read", e))?;
    let (urgent_sent, urgent_not_sent) = split(&data[unread..sent], extra.urgent_sent.map(|at| at as usize));
    for (part, is_urgent) in urgent_sent {
        let put = if is_urgent { put_urgent(socket, part) } else { put(socket, Queue::Send, part) };
        put.map_err(|e| failed("give it back what was not acknowledged", e))?;
    }
    let rest = &data[before..unread];
    set_window(socket, record.state, &stream, rest.len() as u32).map_err(|e| failed("set its windows", e))?;
    if let Some(urgent) = extra.urgent {
        let begin = stream.inq_seq.wrapping_sub(u32::from(received_end(record.state)) + rest.len() as u32);
        let told = (begin, acknowledged(record.state, &stream), window_of(&stream));
        urgent.build(socket, record, (own, peer), told, (before as u32, rest))?;
    }
    compute_segments(socket, &peer).map_err(|e| failed("have the size of its segments computed", e))?;
    options::buffers(socket, &record.opts, what)?;
    if extra.error != 0 {
        let sent = stream.outq_seq.wrapping_sub(u32::from(sent_end(record.state))).wrapping_sub(stream.outq_len);
        error::build(socket, record, extra.error, (own, peer), sent)?;
    }
    let not_sent = data[sent..].to_vec();
    // Packets that are to bring about an end are not signed.
    let keys = extra.keys.clone();
    if is_open(record.state) {
        inside::build_keys(socket, record, &keys)?;
    }
    Ok(Connection { id: record.id, record: record.clone(), stream, not_sent, urgent: urgent_not_sent, keys, own, peer })
}

fn connect(
    socket: BorrowedFd<'_>,
    record: &InetSkEntry,
    stream: &TcpStreamEntry,
    own: &SocketAddr,
    peer: &SocketAddr,
) -> Result<()> {
    let failed = |action: String, errno| Error::Kernel {
        object: object(record.id, sort_of(record)),
        action,
        errno,
        remedy: match errno {
            Errno::ADDRNOTAVAIL => "this host must have the address, and nobody the connection",
            Errno::NETUNREACH | Errno::HOSTUNREACH => "this host needs a way to the peer",
            _ => "",
        },
    };
    let set = |queue, seq: u32| {
        tcp_repair::choose(socket, queue)
            .and_then(|()| tcp_repair::set_sequence(socket, seq))
            .map_err(|e| failed("set its sequence numbers".into(), e))
    };
    let received = stream.inq_seq.wrapping_sub(u32::from(received_end(record.state)));
    let written = stream.outq_seq.wrapping_sub(u32::from(sent_end(record.state)));
    set(Queue::Receive, received.wrapping_sub(stream.inq_len))?;
    set(Queue::Send, written.wrapping_sub(stream.outq_len))?;
    rustix::net::bind(socket, own).map_err(|e| failed(format!("bind it to {own}"), e))?;
    // The kernel computes now how large segments are; what is said later would not count.
    let mss = stream.mss_clamp.clamp(MIN_MSS, MAX_MSS) as i32;
    let limit = |mss| socket::set_int(socket, libc::IPPROTO_TCP, libc::TCP_MAXSEG, mss);
    limit(mss).map_err(|e| failed("set the size of its segments".into(), e))?;
    let mut connected = rustix::net::connect(socket, peer);
    if connected == Err(Errno::ADDRNOTAVAIL) {
        // A restore that was killed at its very end has left something of the same connection.
        match sock_diag::end_leftovers(*own, *peer) {
            Ok(count) => tracing::debug!("{own} with {peer}: {count} were left of it"),
            Err(e) => tracing::debug!("{own} with {peer}: cannot end what is left of it: {e}"),
        }
        connected = rustix::net::connect(socket, peer);
    }
    connected.map_err(|e| failed(format!("connect it with {peer}"), e))?;
    limit(0).map_err(|e| failed("set the size of its segments".into(), e))?;
    let has = |bit| stream.opt_mask & bit != 0;
    let agreed = Agreed {
        mss: stream.mss_clamp,
        scales: has(opt::WSCALE).then_some((stream.snd_wscale, stream.rcv_wscale.unwrap_or(0))),
        sack: has(opt::SACK),
        timestamps: has(opt::TIMESTAMPS),
    };
    tcp_repair::set_agreed(socket, &agreed).map_err(|e| failed("set what was agreed upon".into(), e))?;
    let clock = stream.timestamp.filter(|_| agreed.timestamps);
    clock
        .map_or(Ok(()), |clock| tcp_repair::set_timestamp(socket, clock))
        .map_err(|e| failed("set the clock of its time stamps".into(), e))
}

/// Room for the queues, however small the buffers are afterwards.
pub fn make_room_for(socket: BorrowedFd<'_>, unread: usize, sent: usize) -> std::result::Result<(), Errno> {
    for (len, force) in [(unread, libc::SO_RCVBUFFORCE), (sent, libc::SO_SNDBUFFORCE)] {
        if len > 0 {
            socket::set_int(socket, SOL_SOCKET, force, (len * 2 + OVERHEAD) as i32)?;
        }
    }
    Ok(())
}

/// Puts data into a queue.
pub fn put(socket: BorrowedFd<'_>, queue: Queue, mut data: &[u8]) -> std::result::Result<(), Errno> {
    tcp_repair::choose(socket, queue)?;
    while !data.is_empty() {
        let took = tcp_repair::fill(socket, &data[..data.len().min(CHUNK)])?;
        data = &data[took..];
    }
    Ok(())
}

/// Whether no packet of the peer is needed to bring a connection into its state.
fn is_open(state: u32) -> bool {
    matches!(state, state::ESTABLISHED | state::FIN_WAIT1)
}

/// Up to where the peer has acknowledged.
fn acknowledged(state: u32, stream: &TcpStreamEntry) -> u32 {
    stream.outq_seq.wrapping_sub(stream.outq_len.wrapping_add(u32::from(sent_end(state))))
}

/// The window of the peer, as it stands in a packet.
fn window_of(stream: &TcpStreamEntry) -> u16 {
    (stream.snd_wnd.unwrap_or(0) >> stream.snd_wscale).min(0xffff) as u16
}

/// Data in parts, each with whether its last byte is urgent; and where the urgent byte is over behind all.
fn split(data: &[u8], urgent: Option<usize>) -> (Vec<(&[u8], bool)>, Option<usize>) {
    match urgent {
        Some(at) if (1..=data.len()).contains(&at) => (vec![(&data[..at], true), (&data[at..], false)], None),
        urgent => (vec![(data, false)], urgent.map(|at| at - data.len().min(at)).filter(|at| *at > 0)),
    }
}

/// Puts data into the queue for sending, of which the last byte is urgent.
fn put_urgent(socket: BorrowedFd<'_>, data: &[u8]) -> std::result::Result<(), Errno> {
    let (before, last) = data.split_at(data.len().saturating_sub(1));
    put(socket, Queue::Send, before)?;
    tcp_repair::fill_urgent(socket, last).map(drop)
}

/// Sets what was told of windows; so much of what was received is to come yet.
fn set_window(
    socket: BorrowedFd<'_>,
    state: u32,
    stream: &TcpStreamEntry,
    to_come: u32,
) -> std::result::Result<(), Errno> {
    let (Some(snd_wl1), Some(snd_wnd), Some(max_window), Some(rcv_wnd), Some(rcv_wup)) =
        (stream.snd_wl1, stream.snd_wnd, stream.max_window, stream.rcv_wnd, stream.rcv_wup)
    else {
        return Ok(());
    };
    // The peer's end is not here yet.
    let end = u32::from(received_end(state));
    let next = stream.inq_seq.wrapping_sub(end).wrapping_sub(to_come);
    let beyond = rcv_wup.wrapping_sub(next) as i32;
    // Where it is over stays.
    let (rcv_wup, rcv_wnd) = if beyond > 0 { (next, rcv_wnd + beyond as u32) } else { (rcv_wup, rcv_wnd) };
    tcp_repair::set_window(socket, &Window { snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup })
}

/// Segments on a loopback are larger than can be said before. To set options of
/// IPv4, be it those that are there, has their size computed anew; IPv6 has no
/// such way.
fn compute_segments(socket: BorrowedFd<'_>, peer: &SocketAddr) -> std::result::Result<(), Errno> {
    if peer.ip().to_canonical().is_ipv6() {
        return Ok(());
    }
    let same = socket::get_bytes(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, 40)?;
    socket::set_bytes(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &same)
}

impl Connection {
    /// Lets it speak: from now on its peer is answered. `half_open` are the ends of [`super::half_open`].
    pub fn release(&self, socket: BorrowedFd<'_>, half_open: &HashSet<(SocketAddr, SocketAddr)>) -> Result<()> {
        let what = || object(self.id, sort_of(&self.record));
        let failed = |action: &str, e| Error::kernel(what(), action, e);
        // Who is not through with the handshake would answer with a time that it then does not bear to be told
        // (tcp_check_req).
        let is_asked = half_open.is_empty() || !half_open.contains(&super::canonical((self.peer, self.own)));
        let end = if is_asked { tcp_repair::end } else { tcp_repair::end_silently };
        end(socket).map_err(|e| failed("let its connection go on", e))?;
        self.send(socket).map_err(|e| failed("send what it had not sent", e))?;
        self.end(socket)?;
        if !is_open(self.record.state) {
            inside::build_keys(socket, &self.record, &self.keys)?;
        }
        options::set_reuseaddr(socket, self.record.opts.reuseaddr == Some(true), what)
    }

    /// What was in the queue and not sent.
    fn send(&self, socket: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
        if self.not_sent.is_empty() {
            return Ok(());
        }
        let room = (self.stream.outq_len as usize * 2 + OVERHEAD) as i32;
        socket::set_int(socket, SOL_SOCKET, libc::SO_SNDBUFFORCE, room)?;
        for (mut rest, is_urgent) in split(&self.not_sent, self.urgent).0 {
            let urgent = if is_urgent { SendFlags::OOB } else { SendFlags::empty() };
            while !rest.is_empty() {
                let took = rustix::net::send(socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL | urgent)?;
                rest = &rest[took..];
            }
        }
        options::buffers(socket, &self.record.opts, || object(self.id, sort_of(&self.record)))
            .map_err(|e| e.errno().unwrap_or(Errno::INVAL))
    }

    /// Its ends, in the order in which they came about.
    fn end(&self, socket: BorrowedFd<'_>) -> Result<()> {
        let state = self.record.state;
        let shut = || {
            rustix::net::shutdown(socket, rustix::net::Shutdown::Write)
                .map_err(|e| Error::kernel(object(self.id, sort_of(&self.record)), "shut it down", e))
        };
        let acknowledged = acknowledged(state, &self.stream);
        match state {
            state::CLOSE_WAIT => self.receive(socket, packet::FIN, acknowledged, state),
            state::LAST_ACK => {
                self.receive(socket, packet::FIN, acknowledged, state::CLOSE_WAIT)?;
                shut()
            }
            state::FIN_WAIT1 => shut(),
            state::FIN_WAIT2 => {
                shut()?;
                self.receive(socket, 0, self.stream.outq_seq, state)
            }
            state::CLOSING => {
                shut()?;
                self.receive(socket, packet::FIN, acknowledged, state)
            }
            _ => Ok(()),
        }
    }

    /// Has it receive a packet of its peer without data, which brings it into a state.
    fn receive(&self, socket: BorrowedFd<'_>, flags: u8, acknowledged: u32, comes: u32) -> Result<()> {
        let segment = Segment {
            from: self.peer,
            to: self.own,
            sequence: self.stream.inq_seq.wrapping_sub(u32::from(received_end(self.record.state))),
            acknowledged,
            flags: flags | packet::ACK,
            options: &[],
            data: &[],
            window: window_of(&self.stream),
            urgent: 0,
        };
        let what = || object(self.id, sort_of(&self.record));
        packet::send(&segment).map_err(|e| Error::Kernel {
            object: what(),
            action: "send the end of its peer to it".into(),
            errno: e,
            remedy: if e == Errno::PERM { "this needs CAP_NET_RAW" } else { "" },
        })?;
        if packet::arrives(|| super::tcp::state_of(socket) == Ok(comes)) {
            return Ok(());
        }
        Err(Error::unsupported(
            what(),
            "the end of its peer does not reach it",
            "a firewall of this host must let packets from the peer's address out of this host and into it",
        ))
    }
}

/// Does it with each, those of many by several threads.
fn some_at_a_time<T: Send>(sockets: impl ExactSizeIterator<Item = T>, end: impl Fn(T) + Sync + Send) {
    if sockets.len() < WORTH_THREADS {
        return sockets.for_each(end);
    }
    parallel::map(sockets.collect(), end);
}

/// Connections of the tree that was frozen, held so that the peers hear
/// nothing when their processes end.
#[derive(Debug, Default)]
pub struct Held {
    carried: Vec<OwnedFd>,
    /// Their peers are to hear that they were broken off.
    broken_off: Vec<OwnedFd>,
}

impl Held {
    /// One more.
    pub fn hold(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<()> {
        self.carried.push(socket.as_fd().try_clone_to_owned()?);
        Ok(())
    }

    /// One that ends with a reset.
    pub fn hold_for_reset(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<()> {
        self.broken_off.push(socket.as_fd().try_clone_to_owned()?);
        Ok(())
    }

    /// All of them: those that go without a word, and those that end with a reset.
    pub fn parts(&self) -> [(bool, &[OwnedFd]); 2] {
        [(true, &self.carried), (false, &self.broken_off)]
    }

    /// More of either.
    pub fn add(&mut self, silently: bool, sockets: Vec<OwnedFd>) {
        if silently { &mut self.carried } else { &mut self.broken_off }.extend(sockets);
    }

    /// Our descriptors of them.
    pub fn numbers(&self) -> Vec<RawFd> {
        self.carried.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// Their processes have ended: they go without a word, and those that are to be broken off with it.
    pub fn silence(&self) {
        some_at_a_time(self.carried.iter(), |socket| {
            if let Err(e) = tcp_repair::begin(socket) {
                tracing::warn!("a connection of TCP ends with a word to its peer: {e}");
            }
        });
        // To close one that lingers no time at all is to reset it (socket(7), tcp_close).
        let at_once = [1u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
        for socket in &self.broken_off {
            if let Err(e) = socket::set_bytes(socket.as_fd(), SOL_SOCKET, libc::SO_LINGER, &at_once) {
                tracing::warn!("a connection of TCP ends without a reset: {e}");
            }
        }
    }

    /// Closes them: what the kernel has to do for the last descriptor of a connection takes its time.
    pub fn close(self) {
        some_at_a_time(self.carried.into_iter().chain(self.broken_off).collect::<Vec<_>>().into_iter(), drop);
    }
}
