//! Connections that have ended, of which the program may still ask who the peer was, with data that it has not read or an
//! error that it has not been told. They are put together once more in repair mode, with the data, and end by a packet of
//! the peer: nobody else hears of it. `tcp-stream-INODE.img` has the data, if there is any.
//!
//! An attempt to connect that was refused is another thing: connect(2) would take what has been a connection for one. It is
//! made again under the network lock, which lets nobody hear of it, and refused. Of one whose program has been told nothing
//! is left: it may connect the same socket again.

use super::super::beside::Extra;
use super::super::{CLOSE, object, options};
use super::packet::{self, ACK, FIN, RST, Segment};
use super::{address, connection, error, in_flight, sort_of, state, tcp};
use crate::files::{Build, Collect, OpenFile};
use crate::{Error, Object, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{InetSkEntry, TcpStreamEntry};
use cryonaut_kernel::sys::tcp_repair::{self, Queue, Window};
use cryonaut_kernel::sys::{sock_diag, socket, socket_inside, tcp_inside};
use libc::SOL_SOCKET;
use rustix::io::Errno;
use rustix::net::Shutdown;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// Numbers of the two directions: nobody else knows them any more.
const RECEIVED: u32 = 1 << 20;
const SENT: u32 = 1 << 21;
const WINDOW: u32 = 1 << 14;

/// What is left of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ended {
    /// With whom it was.
    peer: SocketAddr,
    /// Bytes that were not read.
    unread: u32,
    /// The error that waits, or 0.
    error: i32,
    /// It was no connection yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    attempt: bool,
}

impl Ended {
    /// Whether the name of the peer is all that is left.
    fn is_but_a_name(&self) -> bool {
        self.unread == 0 && self.error == 0
    }

    /// To whom an attempt was that is made again.
    pub fn attempted(&self) -> Option<SocketAddr> {
        self.attempt.then_some(self.peer)
    }
}

/// Writes down what is left of a connection.
pub fn collect(
    cx: &Collect<'_>,
    file: &OpenFile<'_>,
    record: &InetSkEntry,
    extra: &mut Extra,
    (error, urgent): (i32, bool),
) -> Result<()> {
    let failed = |e| Error::kernel(file.object(), "look at what is unread", e);
    let unread = rustix::io::ioctl_fionread(file.file).map_err(failed)? as u32;
    if unread == 0 && error == 0 {
        // Where nothing tells it, such a name is not worth a wrong answer to who connects again.
        let peer = if tcp::has_ended(record) { address::last_peer(file.file).map_err(failed)? } else { None };
        let peer = peer.filter(|_| socket_inside::was_connected(file.file).unwrap_or(false));
        extra.ended = peer.map(|peer| Ended { peer, unread, error, attempt: false });
        return Ok(());
    }
    if urgent && tcp_inside::unread(file.file).map_err(failed)?.urgent.is_some() {
        let reason = "its connection has ended with urgent data, which cannot be carried then";
        return Err(Error::unsupported(file.object(), reason, CLOSE));
    }
    let peer = address::last_peer(file.file).map_err(failed)?;
    let comes = error == 0 || by_reset(error) || error::can_come(record, error, peer);
    let Some(peer) = peer.filter(|_| comes) else { return Err(error::refuse(file, error)) };
    let attempt = unread == 0 && error::can_come(record, error, Some(peer));
    let attempt = attempt && !socket_inside::was_connected(file.file).unwrap_or(true);
    extra.ended = Some(Ended { peer, unread, error, attempt });
    let data = tcp_repair::contents(file.file, unread as usize).map_err(failed)?;
    let stream =
        TcpStreamEntry { inq_len: unread, inq_seq: RECEIVED.wrapping_add(unread), ..TcpStreamEntry::default() };
    let image = cx.images.entry_file(ImageKind::TcpStream, u64::from(record.ino))?;
    image.append_with(&stream, &data)?;
    cx.images.complete(image);
    Ok(())
}

/// Whether a reset brings an error about: in a connection, and in one whose peer had sent its end (tcp_reset).
fn by_reset(error: i32) -> bool {
    matches!(error, libc::ECONNRESET | libc::EPIPE)
}

/// Puts one together and lets it end. `false` if only the name of its peer was left, and that could not be had: the socket
/// is then as it was, but may have its address.
pub fn build(cx: &Build<'_>, socket: BorrowedFd<'_>, record: &InetSkEntry, ended: &Ended) -> Result<bool> {
    match put_together(cx, socket, record, ended) {
        Err(e) if ended.is_but_a_name() => {
            tracing::warn!("{e}; who its peer was is forgotten");
            let what = || object(record.id, sort_of(record));
            give_up(socket).map_err(|e| Error::kernel(what(), "disconnect it", e))?;
            options::set_reuseaddr(socket, true, what).map(|()| false)
        }
        built => built.map(|()| true),
    }
}

/// Takes back whatever has been done of it.
fn give_up(socket: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    if tcp::state_of(socket)? != state::CLOSE {
        rustix::net::connect_unspec(socket)?;
        socket::get_int(socket, SOL_SOCKET, libc::SO_ERROR)?;
    }
    tcp_repair::end_silently(socket)
}

fn put_together(cx: &Build<'_>, socket: BorrowedFd<'_>, record: &InetSkEntry, ended: &Ended) -> Result<()> {
    let own = address::of_record(record, &record.src_addr, record.src_port, 0)?;
    let what = || object(record.id, sort_of(record));
    let failed = |errno| Error::Kernel {
        object: what(),
        action: format!("put together what is left of its connection with {}", ended.peer),
        errno,
        remedy: match errno {
            Errno::PERM => "this needs CAP_NET_ADMIN and CAP_NET_RAW",
            Errno::ADDRNOTAVAIL => "this host must have the address, and nobody the connection",
            Errno::NETUNREACH | Errno::HOSTUNREACH => "this host needs a way to the peer",
            _ => "",
        },
    };
    if ended.attempt {
        in_flight::begin(socket, record, (own, ended.peer), Some(SENT))?;
        refuse_again(socket, record, ended.error, (own, ended.peer))?;
        options::set_reuseaddr(socket, true, what)?;
        return options::buffers(socket, &record.opts, what);
    }
    let data = match ended.unread {
        0 => Vec::new(),
        unread => {
            let all = cx.images.read_tailed::<TcpStreamEntry>(ImageKind::TcpStream, u64::from(record.ino))?;
            let data = all.into_iter().next().map(|(_, data)| data).filter(|data| data.len() == unread as usize);
            data.ok_or_else(|| Error::bad_image(format!("tcp-stream-{:x}.img", record.ino), "it lacks data"))?
        }
    };
    assemble(socket, (own, ended.peer), &data).map_err(failed)?;
    let end = End { socket, own, peer: ended.peer, received: RECEIVED.wrapping_add(ended.unread) };
    let came = match ended.error {
        libc::EPIPE => end.send(FIN | ACK, state::CLOSE_WAIT).and_then(|_| end.reset(1)),
        0 | libc::ECONNRESET => end.reset(0),
        error => {
            error::build(socket, record, error, (own, ended.peer), SENT)?;
            end.orderly()
        }
    };
    if !came.map_err(failed)? {
        return Err(unheard(what()));
    }
    if ended.error == 0 {
        // To ask for it takes it away.
        socket::get_int(socket, SOL_SOCKET, libc::SO_ERROR).map_err(failed)?;
    }
    tcp_repair::end_silently(socket).map_err(failed)?;
    // Others are still to have the port; what it was is set at the end.
    options::set_reuseaddr(socket, true, what)?;
    options::buffers(socket, &record.opts, what)
}

/// Has an attempt refused that has just been made.
fn refuse_again(
    socket: BorrowedFd<'_>,
    record: &InetSkEntry,
    error: i32,
    (own, peer): (SocketAddr, SocketAddr),
) -> Result<()> {
    if error != libc::ECONNREFUSED {
        return error::build(socket, record, error, (own, peer), SENT);
    }
    let end = End { socket, own, peer, received: 0 };
    let refusal = Segment { acknowledged: SENT.wrapping_add(1), ..end.segment(RST | ACK, 0) };
    let what = || object(record.id, sort_of(record));
    packet::send(&refusal).map_err(|e| Error::kernel(what(), "refuse its attempt to connect again", e))?;
    if end.comes(state::CLOSE) { Ok(()) } else { Err(unheard(what())) }
}

fn unheard(object: Object) -> Error {
    let remedy = "a firewall of this host must let packets from the peer's address out of this host and into it";
    Error::unsupported(object, "the end of its peer does not reach it", remedy)
}

fn assemble(
    socket: BorrowedFd<'_>,
    (own, peer): (SocketAddr, SocketAddr),
    data: &[u8],
) -> std::result::Result<(), Errno> {
    tcp_repair::begin(socket)?;
    for (queue, number) in [(Queue::Receive, RECEIVED), (Queue::Send, SENT)] {
        tcp_repair::choose(socket, queue)?;
        tcp_repair::set_sequence(socket, number)?;
    }
    rustix::net::bind(socket, &own)?;
    let mut connected = rustix::net::connect(socket, &peer);
    if connected == Err(Errno::ADDRNOTAVAIL) && sock_diag::end_leftovers(own, peer).is_ok_and(|count| count > 0) {
        connected = rustix::net::connect(socket, &peer);
    }
    connected?;
    connection::make_room_for(socket, data.len(), 0)?;
    connection::put(socket, Queue::Receive, data)?;
    let next = RECEIVED.wrapping_add(data.len() as u32);
    let window = Window { snd_wl1: next, snd_wnd: WINDOW, max_window: WINDOW, rcv_wnd: WINDOW, rcv_wup: next };
    tcp_repair::set_window(socket, &window)
}

/// A connection that is to end.
struct End<'s> {
    socket: BorrowedFd<'s>,
    own: SocketAddr,
    peer: SocketAddr,
    received: u32,
}

impl End<'_> {
    fn segment(&self, flags: u8, further: u32) -> Segment<'static> {
        Segment {
            from: self.peer,
            to: self.own,
            sequence: self.received.wrapping_add(further),
            acknowledged: SENT,
            flags,
            window: WINDOW as u16,
            urgent: 0,
            options: &[],
            data: &[],
        }
    }

    fn comes(&self, wanted: u32) -> bool {
        packet::arrives(|| tcp::state_of(self.socket) == Ok(wanted))
    }

    /// A packet that brings it into a state; whether it did.
    fn send(&self, flags: u8, wanted: u32) -> std::result::Result<bool, Errno> {
        packet::send(&self.segment(flags, 0))?;
        Ok(self.comes(wanted))
    }

    fn reset(&self, further: u32) -> std::result::Result<bool, Errno> {
        packet::send(&self.segment(RST | ACK, further))?;
        Ok(self.comes(state::CLOSE))
    }

    /// Both ends, in one packet: an answer to the first would have the peer, who knows of nothing, break it off.
    fn orderly(&self) -> std::result::Result<bool, Errno> {
        // In repair mode, an end counts as sent and is not.
        tcp_repair::choose(self.socket, Queue::Send)?;
        rustix::net::shutdown(self.socket, Shutdown::Write)?;
        packet::send(&Segment { acknowledged: SENT.wrapping_add(1), ..self.segment(FIN | ACK, 0) })?;
        let came = self.comes(state::CLOSE);
        // What stays of it for a minute was not there before.
        let _ = sock_diag::end_leftovers(self.own, self.peer);
        Ok(came)
    }
}
