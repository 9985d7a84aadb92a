//! Connections that wait to be accepted, each a socket of TCP that no process has a descriptor of. What they are is read
//! from the kernel's memory ([`tcp_inside`]), so they stay where they are whatever happens; CRIU's format has no place for
//! them: they are in `cryonaut-accept-queue-FILE.json`, FILE that of who listens.
//!
//! Nothing can be put into an accept queue but by a handshake. So one is held with a new listening socket, in the peer's
//! name ([`packet`]), while the network lock keeps the answers from the peer. The peer's numbers are as they were; our
//! own the kernel chooses, and where the same ends have just had a connection (TIME_WAIT) it chooses them by that one's
//! last (tcp_timewait_state_process in net/ipv4/tcp_minisocks.c). So one such is made first, in repair mode. A handshake
//! that was not over yet is held as far as it had come.

use super::super::beside::Extra;
use super::super::{Sort, object};
use super::packet::{self, ACK, FIN, PSH, RST, SYN, Segment};
use super::peers::Peers;
use super::tcp::{self, Info};
use super::{sort_of, state};
use crate::files::{Collect, OpenFile, Settle};
use crate::tcp_policy::TcpPolicy;
use crate::{Error, RestoreOptions, Result, hexadecimal};
use cryonaut_image::ImageDir;
use cryonaut_image::records::InetSkEntry;
use cryonaut_kernel::sys::tcp_inside::{self, HalfOpen, Waiting};
use cryonaut_kernel::sys::tcp_repair::{self, Queue, Window};
use cryonaut_kernel::sys::{sock_diag, socket};
use libc::{IPPROTO_TCP, SOL_SOCKET};
use rustix::io::Errno;
use rustix::net::Shutdown;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// By how much the numbers of a connection are ahead of the one before, in the same place.
const AHEAD: u32 = 65535 + 2;
/// How far the peer's numbers of the one before are behind.
const BEHIND: u32 = 1000;
/// A window for the one before.
const SOME: u32 = 1 << 14;
/// Data in one segment: so many that with all that is added little of a buffer of the kernel's is left empty.
const SEGMENT: usize = 7600;
/// Data in one file of the image, and of a connection: in hexadecimal not more than a file may have.
const PART: usize = 4 << 20;
/// Options of a segment (RFC 9293, 7323, 2018).
mod option {
    pub const NOTHING: u8 = 1;
    pub const MSS: u8 = 2;
    pub const SCALE: u8 = 3;
    pub const SACK: u8 = 4;
    pub const STAMPS: u8 = 8;
}

/// A connection that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Guest {
    own: SocketAddr,
    peer: SocketAddr,
    /// The sequence number of what is sent next.
    sent: u32,
    /// That of the first byte of `data`.
    received: u32,
    /// What the peer lets be sent, and its largest segment.
    window: u32,
    mss: u16,
    /// By how many bits windows are shifted, the peer's and our own.
    scales: Option<(u8, u8)>,
    sack: bool,
    /// The last time stamp of the peer.
    timestamp: Option<u32>,
    /// The peer has sent its end.
    ended: bool,
    #[serde(default, skip_serializing_if = "Stage::is_usual")]
    stage: Stage,
    /// What it had sent before, in hexadecimal.
    data: String,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stage {
    /// It waits to be accepted.
    #[default]
    Waits,
    /// The same, and has been reset by its peer.
    Reset,
    /// Its peer has been answered.
    Answered,
    /// And has acknowledged that, which was not enough yet.
    Acknowledged,
}

impl Stage {
    fn is_usual(&self) -> bool {
        *self == Stage::Waits
    }

    fn is_half_open(self) -> bool {
        matches!(self, Stage::Answered | Stage::Acknowledged)
    }
}

/// A file of the image.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    /// Which boot of which host it was: our own time stamps go on only there.
    boot: String,
    connections: Vec<Guest>,
}

fn name_of(id: u32, part: usize) -> String {
    if part == 0 { format!("accept-queue-{id}") } else { format!("accept-queue-{id}-{part}") }
}

fn this_boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

/// States in which a connection that nobody has a descriptor of waits to be accepted.
pub fn may_wait(state: u32) -> bool {
    matches!(state, state::ESTABLISHED | state::CLOSE_WAIT)
}

/// Whether there are handshakes that are not over in our network namespace.
pub fn any_half_open() -> bool {
    sock_diag::tcp(1 << state::SYN_RECV).is_ok_and(|all| !all.is_empty())
}

/// Writes down who waits at a listening socket, and who is about to.
pub fn collect(
    cx: &mut Collect<'_>,
    file: &OpenFile<'_>,
    record: &InetSkEntry,
    extra: &Extra,
    count: u32,
) -> Result<()> {
    let mut guests = if count > 0 { collect_waiting(cx, file, record, extra, count)? } else { Vec::new() };
    guests.extend(collect_half_open(cx, file, record, extra)?);
    write(cx, record.id, guests)
}

fn collect_waiting(
    cx: &Collect<'_>,
    file: &OpenFile<'_>,
    record: &InetSkEntry,
    extra: &Extra,
    count: u32,
) -> Result<Vec<Guest>> {
    if !extra.keys.is_empty() {
        return Err(refuse(cx, file, count, "and their packets are signed (TCP-MD5)"));
    }
    let all = match tcp_inside::waiting(file.file) {
        Ok(all) => all,
        Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {
            return Err(refuse(cx, file, count, "which cannot be looked into without BTF, CAP_BPF and CAP_PERFMON"));
        }
        Err(errno) => return Err(Error::kernel(file.object(), "see who waits to be accepted", errno)),
    };
    let mut guests = Vec::new();
    for one in all {
        let (own, peer) = one.ends;
        match cx.options.tcp.of(peer) {
            TcpPolicy::Refuse => return Err(tcp::refuse_connections(cx, file)),
            TcpPolicy::Close | TcpPolicy::Reset => {
                tracing::debug!("{}: {peer}, who waits to be accepted, is given up", file.object());
                continue;
            }
            TcpPolicy::Keep => {}
        }
        if let Some(reason) = hindrance(record, &one) {
            return Err(refuse(cx, file, count, &format!("and {peer} {reason}")));
        }
        if one.error == 0 && !cx.locked.is_some_and(|locked| locked.contains(&(own, peer))) {
            tracing::warn!("{}: {peer} has connected when all stood still already, and is lost", file.object());
            continue;
        }
        guests.push(Guest::of(one));
    }
    Ok(guests)
}

/// Whose handshake is not over, of those whose packets are held back: they wait for an answer, not for a connection that
/// somebody knows of, so nothing is refused for their sake.
fn collect_half_open(
    cx: &mut Collect<'_>,
    file: &OpenFile<'_>,
    record: &InetSkEntry,
    extra: &Extra,
) -> Result<Vec<Guest>> {
    let Some(locked) = cx.locked else { return Ok(Vec::new()) };
    if !*cx.sockets.here.half_open.get_or_insert_with(any_half_open) {
        return Ok(Vec::new());
    }
    let all = match tcp_inside::half_open(file.file) {
        Ok(all) => all,
        Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => Vec::new(),
        Err(errno) => return Err(Error::kernel(file.object(), "see who is about to connect", errno)),
    };
    let is_carried = |one: &HalfOpen| {
        let carried = extra.keys.is_empty() && record.opts.so_bound_dev.is_none() && locked.contains(&one.ends);
        if !carried {
            tracing::warn!("{}: {}, who was about to connect, is lost", file.object(), one.ends.1);
        }
        carried
    };
    Ok(all.into_iter().filter(is_carried).map(Guest::half_open).collect())
}

fn write(cx: &Collect<'_>, id: u32, guests: Vec<Guest>) -> Result<()> {
    let boot = this_boot();
    let mut parts: Vec<Vec<Guest>> = Vec::new();
    let mut len = 0;
    for guest in guests {
        len += guest.data.len() / 2;
        match parts.last_mut().filter(|_| len <= PART) {
            Some(part) => part.push(guest),
            None => {
                len = guest.data.len() / 2;
                parts.push(vec![guest]);
            }
        }
    }
    for (n, connections) in parts.into_iter().enumerate() {
        cx.images.write_json(&name_of(id, n), &Part { boot: boot.clone(), connections })?;
    }
    Ok(())
}

/// Why one could not be brought back to where it waits.
fn hindrance(record: &InetSkEntry, one: &Waiting) -> Option<&'static str> {
    let reset = u32::from(one.state) == state::CLOSE && matches!(one.error, libc::ECONNRESET | libc::EPIPE);
    if !(may_wait(one.state.into()) || reset) || one.sent != one.acknowledged {
        return Some("has an error that no packet brings, or is not through with its handshake");
    }
    if one.unread.urgent.is_some() {
        return Some("has sent urgent data");
    }
    if one.unread.data.len() > PART {
        return Some("has sent more than 4 MiB");
    }
    record.opts.so_bound_dev.is_some().then_some("is to come by one network device, which nothing from here does")
}

/// Names who waits.
fn refuse(cx: &Collect<'_>, file: &OpenFile<'_>, count: u32, reason: &str) -> Error {
    const SHOWN: usize = 20;
    let own = Peers::of_tree([(file.pid, cx.speaker(file.pid))].into_iter(), true, cx.has_sockets).unwrap_or_default();
    let mut waiting: Vec<String> = own.waiting_at(file.fd).take(SHOWN).map(|peer| peer.to_string()).collect();
    if count as usize > waiting.len() {
        waiting.push(format!("{} more", count as usize - waiting.len()));
    }
    let at = super::address::local(file.file).map_or_else(|_| String::new(), |own| format!(" at {own}"));
    Error::unsupported(
        file.object(),
        format!("{count} connections wait to be accepted{at} (of {}), {reason}", waiting.join(", ")),
        "let the program accept them before the checkpoint, or give them up with --skip-in-flight: their peers may connect \
         again",
    )
}

impl Guest {
    fn of(one: Waiting) -> Guest {
        Guest {
            own: one.ends.0,
            peer: one.ends.1,
            sent: one.sent,
            received: one.unread.begin,
            window: one.window,
            mss: one.mss,
            scales: one.scales,
            sack: one.sack,
            timestamp: one.timestamp,
            // A connection breaks by a reset, and by one behind the peer's end it is a broken pipe (tcp_reset).
            ended: u32::from(one.state) == state::CLOSE_WAIT || one.error == libc::EPIPE,
            stage: if one.error == 0 { Stage::Waits } else { Stage::Reset },
            data: hexadecimal::encode(&one.unread.data),
        }
    }

    fn half_open(one: HalfOpen) -> Guest {
        Guest {
            own: one.ends.0,
            peer: one.ends.1,
            sent: one.sent,
            received: one.received,
            // What the peer lets be sent is in its next packet.
            window: SOME,
            mss: one.mss,
            scales: one.scales,
            sack: one.sack,
            timestamp: one.timestamp,
            ended: false,
            stage: if one.acknowledged { Stage::Acknowledged } else { Stage::Answered },
            data: String::new(),
        }
    }
}

/// Those of a listening socket of an image.
fn read(images: &ImageDir, id: u32) -> Result<Vec<Guest>> {
    let mut all = Vec::new();
    let boot = this_boot();
    let mut part = 0;
    while let Some(read) = images.read_json::<Part>(&name_of(id, part))? {
        // The clock of another boot's time stamps would go back: do without.
        let one = |guest: Guest| Guest { timestamp: guest.timestamp.filter(|_| read.boot == boot), ..guest };
        all.extend(read.connections.into_iter().map(one));
        part += 1;
    }
    Ok(all)
}

/// The ends of those at a listening socket of an image, and whether each was reset.
pub fn ends_of(images: &ImageDir, id: u32) -> Result<Vec<(SocketAddr, SocketAddr, bool)>> {
    Ok(read(images, id)?.into_iter().map(|guest| (guest.own, guest.peer, guest.stage == Stage::Reset)).collect())
}

/// The ends of connections of an image that are in the middle of the handshake, that of who listens first.
pub fn half_open<'r>(
    images: &ImageDir,
    records: impl Iterator<Item = &'r InetSkEntry>,
) -> Result<HashSet<(SocketAddr, SocketAddr)>> {
    let mut all = HashSet::new();
    for record in records.filter(|record| record.state == state::LISTEN && sort_of(record).is_tcp()) {
        let guests = read(images, record.id)?.into_iter().filter(|guest| guest.stage.is_half_open());
        all.extend(guests.map(|guest| (guest.own, guest.peer)));
    }
    Ok(all)
}

/// Lets them wait again at a socket that listens, in their order.
pub fn build(cx: &Settle<'_>, listener: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    let mut guests = read(cx.images, record.id)?;
    guests.retain(|guest| keeps(guest, cx.options));
    if guests.is_empty() {
        return Ok(());
    }
    let failed = |what: &str, e| Error::kernel(object(record.id, sort_of(record)), what, e);
    let deferred = socket::get_int(listener, IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
    let deferred = deferred.map_err(|e| failed("ask for TCP_DEFER_ACCEPT", e))?;
    let defer = |seconds| {
        let set = socket::set_int(listener, IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, seconds);
        set.map_err(|e| failed("set TCP_DEFER_ACCEPT", e))
    };
    // Who has not sent anything would not come through; and more may wait than was allowed since.
    if deferred != 0 {
        defer(0)?;
    }
    tcp::listen(listener, record.backlog.max(guests.len() as u32), record)?;
    choose(cx, listener, record, true)?;
    let (half_open, whole): (Vec<&Guest>, Vec<&Guest>) = guests.iter().partition(|guest| guest.stage.is_half_open());
    for guest in whole {
        guest.come(listener, record)?;
    }
    if deferred != 0 {
        defer(deferred)?;
    }
    let begun: Vec<&Guest> = half_open.into_iter().filter(|guest| guest.begins(record)).collect();
    choose(cx, listener, record, false)?;
    tcp::listen(listener, record.backlog, record)?;
    // With a queue that is full, or with nothing sent yet, that is not the end of the handshake, as it was not.
    for guest in begun.iter().filter(|guest| guest.stage == Stage::Acknowledged) {
        guest.send(ACK, guest.received, &[]).map_err(|e| failed("have an acknowledgement come again", e))?;
    }
    let now = if begun.is_empty() { Vec::new() } else { tcp_inside::half_open(listener).unwrap_or_default() };
    for guest in begun {
        if let Some(one) = now.iter().find(|one| one.ends == (guest.own, guest.peer)) {
            guest.tell_time(one).map_err(|e| failed("tell a peer the time of its answer", e))?;
        }
    }
    Ok(())
}

fn keeps(guest: &Guest, options: &RestoreOptions) -> bool {
    options.tcp.of(guest.peer).keeps_record()
}

/// Where several share the port, this one alone is to be chosen, or all again.
fn choose(cx: &Settle<'_>, listener: BorrowedFd<'_>, record: &InetSkEntry, alone: bool) -> Result<()> {
    let shares = |socket: BorrowedFd<'_>| socket::get_int(socket, SOL_SOCKET, libc::SO_REUSEPORT) == Ok(1);
    if !shares(listener) {
        return Ok(());
    }
    // They are counted in the order in which they have begun to listen, which is that of their ids.
    let same = |other: &InetSkEntry| {
        let key = |one: &InetSkEntry| (one.state, one.family, one.src_port, one.src_addr.clone());
        other.id < record.id && key(other) == key(record) && cx.built.get(&other.id).is_some_and(|f| shares(f.as_fd()))
    };
    let before = cx.records.values().filter_map(|e| e.isk.as_ref()).filter(|other| same(other)).count() as u32;
    let set = match alone {
        true => {
            let code = (libc::BPF_RET | libc::BPF_K) as u16;
            let program = [libc::sock_filter { code, jt: 0, jf: 0, k: before }];
            socket::attach_filter_for(listener, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
        }
        false => socket::set_int(listener, SOL_SOCKET, socket::so::DETACH_REUSEPORT_BPF, 0),
    };
    set.map_err(|e| Error::kernel(object(record.id, sort_of(record)), "choose it among those that share its port", e))
}

impl Guest {
    /// Connects as its peer did.
    fn come(&self, listener: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
        let what = || object(record.id, sort_of(record));
        let action = || format!("let {} wait to be accepted again", self.peer);
        let failed = |errno: Errno| Error::Kernel {
            object: what(),
            action: action(),
            errno,
            remedy: match errno {
                Errno::PERM => "this needs CAP_NET_ADMIN and CAP_NET_RAW",
                Errno::ADDRNOTAVAIL => "this host must have the address, and nobody the connection",
                _ => "",
            },
        };
        let before = waiting_at(listener).map_err(failed)?;
        let stuck = |step: &str| {
            let reason = format!("cannot {}: {step}", action());
            let remedy =
                "a firewall of this host must let packets from the peer's address out of this host and into it";
            Err(Error::unsupported(what(), reason, remedy))
        };
        if let Some(step) = self.begin().map_err(failed)? {
            return stuck(step);
        }
        self.send(ACK, self.received, &[]).map_err(failed)?;
        if !packet::arrives(|| waiting_at(listener).is_ok_and(|now| now > before)) {
            return stuck("its handshake does not come to an end");
        }
        let mut at = self.received;
        let bad = || Error::bad_image(format!("cryonaut-{}.json", name_of(record.id, 0)), "it has data that is none");
        let data = hexadecimal::decode(&self.data).ok_or_else(bad)?;
        for some in data.chunks(SEGMENT) {
            self.send(PSH | ACK, at, some).map_err(failed)?;
            at = at.wrapping_add(some.len() as u32);
        }
        if self.ended {
            self.send(FIN | ACK, at, &[]).map_err(failed)?;
        }
        let unread = data.len() as u32 + u32::from(self.ended);
        if !packet::arrives(|| self.told().is_ok_and(|(told, _)| told.unread == unread)) {
            return stuck("what it has sent is not received again");
        }
        if self.stage == Stage::Reset {
            let end = at.wrapping_add(u32::from(self.ended));
            self.send(RST | ACK, end, &[]).map_err(failed)?;
            let is_over = || !self.is(state::ESTABLISHED) && !self.is(state::CLOSE_WAIT);
            return if packet::arrives(is_over) { Ok(()) } else { stuck("its reset is not received again") };
        }
        // What is old is answered at once. An answer that was put off would go when the lock is lifted, and a peer that is
        // no more would break it off.
        self.send(ACK, self.received.wrapping_sub(1), &[]).map_err(failed)?;
        let scale = self.told().map_err(failed)?.1;
        match self.scales {
            Some((_, own)) if scale.is_some_and(|scale| scale != own) => Err(Error::unsupported(
                what(),
                format!("{}, who waits to be accepted, knows another window scale than this kernel chooses", self.peer),
                "net.ipv4.tcp_rmem and net.core.rmem_max must be as where the image is from",
            )),
            _ => Ok(()),
        }
    }

    /// Its peer begins the handshake and is answered; or else, what is missing.
    fn begin(&self) -> std::result::Result<Option<&'static str>, Errno> {
        self.go_before()?;
        if !self.is(state::TIME_WAIT) {
            return Ok(Some("what comes before is not there (is net.ipv4.tcp_max_tw_buckets reached?)"));
        }
        self.send(SYN, self.received.wrapping_sub(1), &[])?;
        Ok((!packet::arrives(|| self.is(state::SYN_RECV))).then_some("nothing is heard of its beginning"))
    }

    /// The same of one that goes no further: should it not come about, its peer will hear so when it speaks.
    fn begins(&self, record: &InetSkEntry) -> bool {
        let reason = match self.begin() {
            Ok(None) => return true,
            Ok(Some(reason)) => reason.to_owned(),
            Err(errno) => errno.to_string(),
        };
        let listener = object(record.id, sort_of(record));
        tracing::warn!("{listener}: {}, who was about to connect, is lost: {reason}", self.peer);
        false
    }

    /// The answer was given anew, under the network lock: what the peer repeats of the time of the one that it has got would
    /// be taken for old. So it gets a packet with nothing but that of the new one.
    fn tell_time(&self, now: &HalfOpen) -> std::result::Result<(), Errno> {
        let (Some(stamp), Some(peers)) = (now.answered_at, self.timestamp) else { return Ok(()) };
        packet::send(&Segment {
            from: self.own,
            to: self.peer,
            sequence: self.sent,
            acknowledged: self.received,
            window: now.window,
            options: &stamps(stamp, peers),
            ..self.segment(ACK, 0)
        })
    }

    /// A connection of before, which has ended.
    fn go_before(&self) -> std::result::Result<(), Errno> {
        let family = if self.own.ip().to_canonical().is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = Sort { family, kind: libc::SOCK_STREAM, protocol: IPPROTO_TCP }.make()?;
        let socket = socket.as_fd();
        let (sent, received) = (self.sent.wrapping_sub(2 + AHEAD), self.received.wrapping_sub(BEHIND));
        tcp_repair::begin(socket)?;
        for (queue, number) in [(Queue::Receive, received), (Queue::Send, sent)] {
            tcp_repair::choose(socket, queue)?;
            tcp_repair::set_sequence(socket, number)?;
        }
        let _ = sock_diag::end_leftovers(self.own, self.peer);
        rustix::net::bind(socket, &self.own)?;
        rustix::net::connect(socket, &self.peer)?;
        let window = Window { snd_wl1: received, snd_wnd: SOME, max_window: SOME, rcv_wnd: SOME, rcv_wup: received };
        tcp_repair::set_window(socket, &window)?;
        // In repair mode, an end counts as sent and is not.
        tcp_repair::choose(socket, Queue::Send)?;
        rustix::net::shutdown(socket, Shutdown::Write)?;
        let end = Segment { acknowledged: sent.wrapping_add(1), ..self.segment(ACK, received) };
        packet::send(&end)?;
        packet::arrives(|| tcp::state_of(socket) == Ok(state::FIN_WAIT2));
        packet::send(&Segment { flags: FIN | ACK, ..end })?;
        packet::arrives(|| tcp::state_of(socket) == Ok(state::CLOSE));
        Ok(())
    }

    fn segment(&self, flags: u8, sequence: u32) -> Segment<'static> {
        let scale = if flags & SYN != 0 { 0 } else { self.scales.map_or(0, |(peers, _)| peers.min(14)) };
        Segment {
            from: self.peer,
            to: self.own,
            sequence,
            acknowledged: if flags & SYN != 0 { 0 } else { self.sent },
            flags,
            window: (self.window >> scale).min(0xffff) as u16,
            urgent: 0,
            options: &[],
            data: &[],
        }
    }

    fn send(&self, flags: u8, sequence: u32, data: &[u8]) -> std::result::Result<(), Errno> {
        let mut options = Vec::new();
        if flags & SYN != 0 {
            options.extend([option::MSS, 4]);
            options.extend(self.mss.to_be_bytes());
            options.extend(self.scales.iter().flat_map(|(peers, _)| [option::NOTHING, option::SCALE, 3, *peers]));
            options
                .extend(self.sack.then_some([option::NOTHING, option::NOTHING, option::SACK, 2]).into_iter().flatten());
        }
        // It has no time of ours to repeat.
        options.extend(self.timestamp.iter().flat_map(|stamp| stamps(*stamp, 0)));
        packet::send(&Segment { options: &options, data, ..self.segment(flags, sequence) })
    }

    fn told(&self) -> std::result::Result<(sock_diag::InetSocket, Option<u8>), Errno> {
        sock_diag::tcp_one(self.own, self.peer)
    }

    fn is(&self, state: u32) -> bool {
        self.told().is_ok_and(|(told, _)| u32::from(told.state) == state)
    }
}

/// The option with a time stamp and one that is repeated.
fn stamps(own: u32, repeated: u32) -> Vec<u8> {
    let kind = [option::NOTHING, option::NOTHING, option::STAMPS, 10];
    [kind, own.to_be_bytes(), repeated.to_be_bytes()].concat()
}

/// How many wait.
fn waiting_at(listener: BorrowedFd<'_>) -> std::result::Result<u32, Errno> {
    Info::of(listener).map(|info| info.waiting)
}
