//! Connections that have ended, with data that the program has not read or an error that it has not been told. They are
//! put together once more in repair mode, with the data, and end by a packet of the peer: nobody else hears of it.
//! `tcp-stream-INODE.img` has the data.

use super::super::beside::Extra;
use super::super::{CLOSE, object, options};
use super::packet::{self, ACK, FIN, RST, Segment};
use super::{address, connection, error, sort_of, state, tcp};
use crate::files::{Build, Collect, OpenFile};
use crate::{Error, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{InetSkEntry, TcpStreamEntry};
use cryonaut_kernel::sys::tcp_repair::{self, Queue, Window};
use cryonaut_kernel::sys::{sock_diag, socket, tcp_inside};
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
}

/// Writes down what is left of a connection, if it is more than its name.
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
        return Ok(());
    }
    if urgent && tcp_inside::unread(file.file).map_err(failed)?.urgent.is_some() {
        let reason = "its connection has ended with urgent data, which cannot be carried then";
        return Err(Error::unsupported(file.object(), reason, CLOSE));
    }
    let peer = address::last_peer(file.file).map_err(failed)?;
    let comes = error == 0 || by_reset(error) || error::can_come(record, error, peer);
    let Some(peer) = peer.filter(|_| comes) else { return Err(error::refuse(file, error)) };
    extra.ended = Some(Ended { peer, unread, error });
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

/// Puts one together and lets it end.
pub fn build(cx: &Build<'_>, socket: BorrowedFd<'_>, record: &InetSkEntry, ended: &Ended) -> Result<()> {
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
    let all = cx.images.read_tailed::<TcpStreamEntry>(ImageKind::TcpStream, u64::from(record.ino))?;
    let data = all.into_iter().next().map(|(_, data)| data).filter(|data| data.len() == ended.unread as usize);
    let data = data.ok_or_else(|| Error::bad_image(format!("tcp-stream-{:x}.img", record.ino), "it lacks data"))?;
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
        let remedy = "a firewall of this host must let packets from the peer's address out of this host and into it";
        return Err(Error::unsupported(what(), "the end of its peer does not reach it", remedy));
    }
    if ended.error == 0 {
        // To ask for it takes it away.
        socket::get_int(socket, SOL_SOCKET, libc::SO_ERROR).map_err(failed)?;
    }
    tcp_repair::end_silently(socket).map_err(failed)?;
    options::buffers(socket, &record.opts, what)
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
    rustix::net::connect(socket, &peer)?;
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
