//! Taking connections of TCP apart in repair mode, some at a time: their guard
//! is told of all of them with one message. Each is left as it was.

use super::address;
use super::connection::{is_connected, sent_end};
use crate::files::{Collect, HeldFile};
use crate::tcp_policy::TcpPolicy;
use cryonaut_image::records::TcpStreamEntry;
use cryonaut_kernel::guard::{Guard, MOST_IN_REPAIR};
use cryonaut_kernel::sys::socket;
use cryonaut_kernel::sys::socket_glance::{AtRest, Glance};
use cryonaut_kernel::sys::tcp_repair::{self, Queue, Window};
use libc::SOL_SOCKET;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Connections with more in their queues are taken apart one by one.
const MUCH: u64 = 64 << 10;

/// `TCPI_OPT_*` (linux/tcp.h) that `opt_mask` has.
pub mod opt {
    pub const TIMESTAMPS: u32 = 1;
    pub const SACK: u32 = 2;
    pub const WSCALE: u32 = 4;
}

/// What a connection is, besides its addresses and options.
#[derive(Debug)]
pub struct TakenApart {
    pub stream: TcpStreamEntry,
    /// What was not read, and then what was not acknowledged.
    pub data: Vec<u8>,
}

/// A connection to be taken apart.
#[derive(Debug, Clone, Copy)]
pub struct Whole<'s> {
    pub socket: BorrowedFd<'s>,
    /// Whether it has SO_REUSEADDR, which repair mode takes away.
    pub reuse: bool,
    /// In which state of TCP it is.
    pub state: u32,
    /// What it has received, where that is not to be had from it.
    pub unread: Option<&'s [u8]>,
}

type Taken = std::result::Result<TakenApart, Errno>;

/// Takes some apart, at most [`MOST_IN_REPAIR`]; fails if they cannot be guarded.
pub fn take(guard: Option<&Guard>, all: &[Whole<'_>]) -> std::result::Result<Vec<Taken>, Errno> {
    if let Some(guard) = guard {
        guard.in_repair(&all.iter().map(|one| (one.socket, one.reuse)).collect::<Vec<_>>())?;
    }
    let taken = all.iter().map(take_one).collect();
    guard.map_or(Ok(()), Guard::repaired)?;
    Ok(taken)
}

/// The sequence number of what a connection sends next; it is left as it was.
pub fn next_sent(guard: Option<&Guard>, one: &Whole<'_>) -> std::result::Result<u32, Errno> {
    if let Some(guard) = guard {
        guard.in_repair(&[(one.socket, one.reuse)])?;
    }
    tcp_repair::begin(one.socket)?;
    let next = tcp_repair::choose(one.socket, Queue::Send).and_then(|()| tcp_repair::sequence(one.socket));
    put_right(one)?;
    guard.map_or(Ok(()), Guard::repaired)?;
    next
}

/// Ends repair mode, with which SO_REUSEADDR has gone.
fn put_right(one: &Whole<'_>) -> std::result::Result<(), Errno> {
    let ended = tcp_repair::end_silently(one.socket);
    let reused = match one.reuse {
        true => socket::set_int(one.socket, SOL_SOCKET, libc::SO_REUSEADDR, 1),
        false => Ok(()),
    };
    ended.and(reused)
}

fn take_one(one: &Whole<'_>) -> Taken {
    tcp_repair::begin(one.socket)?;
    let read = read(one.socket, one.state, one.unread);
    // In any case.
    let ended = put_right(one);
    let (stream, data) = read?;
    ended?;
    Ok(TakenApart { stream, data })
}

/// Takes those of some files apart that are to be carried, for when their turn
/// has come. What fails is left for then.
pub fn take_apart(cx: &mut Collect<'_>, files: &[HeldFile]) {
    if !cx.options.tcp.may_keep() {
        return;
    }
    let mut chosen = Vec::new();
    for file in files {
        let asked = file.asked();
        let (Some(state), Some(reuse)) = (asked.state(), asked.reuses()) else { continue };
        if !is_connected(state) || !is_kept(cx, file) {
            continue;
        }
        if let Some(taken) = asked.seen_at_rest().and_then(|seen| at_rest(file.socket(), seen)) {
            asked.taken.set(Some(Box::new(taken)));
        } else if is_small(file.socket()) && !is_urgent(cx, file) && cx.sockets.apart.insert(file.inode()) {
            let whole = Whole { socket: file.socket(), reuse, state, unread: None };
            chosen.push((whole, &asked.taken));
        }
    }
    for some in chosen.chunks(MOST_IN_REPAIR) {
        let whole: Vec<Whole<'_>> = some.iter().map(|(whole, _)| *whole).collect();
        let Ok(all) = take(cx.guard, &whole) else { return };
        for ((_, place), taken) in some.iter().zip(all) {
            place.set(taken.ok().map(Box::new));
        }
    }
}

fn is_kept(cx: &Collect<'_>, file: &HeldFile) -> bool {
    let peer = match file.asked().seen() {
        Some(seen) => Ok(Some(seen.ends().1)),
        None => address::peer(file.socket()),
    };
    peer.is_ok_and(|peer| peer.is_some_and(|peer| cx.options.tcp.of(peer) == TcpPolicy::Keep))
}

/// Whether who takes it apart has to look for marks.
fn is_urgent(cx: &Collect<'_>, file: &HeldFile) -> bool {
    match file.asked().glance() {
        Some(glance) => glance.has_urgent(),
        None => {
            let inside = cx.sockets.inside.get(&file.inode());
            inside.is_some_and(|inside| inside.urgent || inside.urgent_sent.is_some())
        }
    }
}

/// Takes some apart, each with its state and what it has answered; `None` if that fails of any.
pub fn take_some<'s>(
    guard: &Guard,
    sockets: impl Iterator<Item = (BorrowedFd<'s>, u32, bool)>,
) -> Option<Vec<TakenApart>> {
    let whole = |(socket, state, reuse)| Whole { socket, reuse, state, unread: None };
    take(Some(guard), &sockets.map(whole).collect::<Vec<_>>()).ok()?.into_iter().collect::<Result<_, _>>().ok()
}

/// What a connection is that has nothing in its queues, as was seen; repair mode is not needed for it.
pub fn at_rest(socket: BorrowedFd<'_>, seen: &Glance) -> Option<TakenApart> {
    let AtRest { received, written, window, agreed } = seen.at_rest()?;
    let bit = |is: bool, bit: u32| if is { bit } else { 0 };
    let (snd_wscale, rcv_wscale) = agreed.scales.unwrap_or_default();
    let stream = TcpStreamEntry {
        inq_seq: received,
        outq_seq: written,
        opt_mask: bit(agreed.timestamps, opt::TIMESTAMPS)
            | bit(agreed.sack, opt::SACK)
            | bit(agreed.scales.is_some(), opt::WSCALE),
        snd_wscale,
        rcv_wscale: Some(rcv_wscale),
        mss_clamp: agreed.mss,
        timestamp: Some(tcp_repair::timestamp(socket).ok()?),
        unsq_len: Some(0),
        ..with_window(TcpStreamEntry::default(), &window)
    };
    Some(TakenApart { stream, data: Vec::new() })
}

fn with_window(stream: TcpStreamEntry, window: &Window) -> TcpStreamEntry {
    TcpStreamEntry {
        snd_wl1: Some(window.snd_wl1),
        snd_wnd: Some(window.snd_wnd),
        max_window: Some(window.max_window),
        rcv_wnd: Some(window.rcv_wnd),
        rcv_wup: Some(window.rcv_wup),
        ..stream
    }
}

impl TakenApart {
    /// Whether it is the same, at another time.
    pub fn is_like(&self, other: &TakenApart) -> bool {
        let then = |stream: &TcpStreamEntry| TcpStreamEntry { timestamp: None, ..*stream };
        then(&self.stream) == then(&other.stream) && self.data == other.data
    }
}

fn is_small(socket: BorrowedFd<'_>) -> bool {
    let unread = rustix::io::ioctl_fionread(socket).unwrap_or(u64::MAX);
    let unacknowledged = socket::unsent(socket).map_or(u64::MAX, |bytes| bytes as u64);
    unread.max(unacknowledged) <= MUCH
}

fn read(
    socket: BorrowedFd<'_>,
    state: u32,
    unread: Option<&[u8]>,
) -> std::result::Result<(TcpStreamEntry, Vec<u8>), Errno> {
    let info = socket::get_bytes(socket, libc::IPPROTO_TCP, libc::TCP_INFO, 8)?;
    let (Some(&agreed), Some(&scales)) = (info.get(5), info.get(6)) else { return Err(Errno::INVAL) };
    let end = u32::from(sent_end(state));
    let inq_len = match unread {
        Some(data) => data.len() as u32,
        None => rustix::io::ioctl_fionread(socket)? as u32,
    };
    let outstanding = (socket::unsent(socket)? as u32).saturating_sub(end);
    let not_sent = socket::not_sent(socket)? as u32;
    tcp_repair::choose(socket, Queue::Receive)?;
    let inq_seq = tcp_repair::sequence(socket)?;
    let mut data = match unread {
        Some(data) => data.to_vec(),
        None => tcp_repair::contents(socket, inq_len as usize)?,
    };
    tcp_repair::choose(socket, Queue::Send)?;
    let outq_seq = tcp_repair::sequence(socket)?;
    data.extend(tcp_repair::contents(socket, outstanding as usize)?);
    let window = tcp_repair::window(socket)?;
    // Of an end that was acknowledged, nothing is outstanding.
    let stream = TcpStreamEntry {
        inq_len,
        inq_seq,
        outq_len: outstanding,
        outq_seq,
        opt_mask: u32::from(agreed) & (opt::TIMESTAMPS | opt::SACK | opt::WSCALE),
        // The peer's scale is in the lower half.
        snd_wscale: u32::from(scales & 0xf),
        rcv_wscale: Some(u32::from(scales >> 4)),
        mss_clamp: tcp_repair::agreed_mss(socket)?,
        timestamp: Some(tcp_repair::timestamp(socket)?),
        unsq_len: Some(not_sent.min(outstanding)),
        ..with_window(TcpStreamEntry::default(), &window)
    };
    Ok((stream, data))
}
