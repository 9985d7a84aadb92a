//! Connections that nobody has answered yet (SYN_SENT). They are begun again with the port and the numbers that they had:
//! the peer may have heard of them. That is done under the network lock, so that the first packet goes when it is lifted,
//! by the kernel's own patience; an answer that came at once would be ours and not the program's.

use super::super::beside::Extra;
use super::super::object;
use super::apart::{self, Whole};
use super::{CLOSE, address, sort_of, zone_of};
use crate::files::{Collect, OpenFile};
use crate::{Error, Result};
use cryonaut_image::records::InetSkEntry;
use cryonaut_kernel::sys::tcp_repair::{self, Queue};
use cryonaut_kernel::sys::{sock_diag, socket};
use libc::IPPROTO_TCP;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// `tcpi_unacked` and `tcpi_notsent_bytes` of `struct tcp_info`.
const UNACKED: usize = 24;
const NOT_SENT: usize = 144;

/// Writes one down, and leaves it as it was.
pub fn collect(
    cx: &Collect<'_>,
    file: &OpenFile<'_>,
    record: &mut InetSkEntry,
    extra: &mut Extra,
    peer: SocketAddr,
) -> Result<()> {
    let failed = |e| Error::kernel(file.object(), "ask for the beginning of its connection (TCP_REPAIR)", e);
    let info = socket::get_bytes(file.file, IPPROTO_TCP, libc::TCP_INFO, NOT_SENT + 4).map_err(failed)?;
    let word = |at: usize| info.get(at..at + 4).and_then(|w| w.try_into().ok()).map_or(0, u32::from_ne_bytes);
    if word(UNACKED) > 1 || word(NOT_SENT) > 0 {
        let reason = "its connection is not established yet and has data already (TCP Fast Open)";
        return Err(Error::unsupported(file.object(), reason, CLOSE));
    }
    let whole =
        Whole { socket: file.file, reuse: record.opts.reuseaddr == Some(true), state: record.state, unread: None };
    let next = apart::next_sent(cx.guard, &whole).map_err(failed)?;
    // That of the beginning itself.
    extra.first_sent = Some(next.wrapping_sub(1));
    record.dst_addr = address::words(peer.ip());
    record.dst_port = peer.port().into();
    Ok(())
}

/// Begins one again.
pub fn build(socket: BorrowedFd<'_>, record: &InetSkEntry, extra: &Extra) -> Result<()> {
    let zone = zone_of(record)?;
    let own = address::of_record(record, &record.src_addr, record.src_port, zone)?;
    let peer = address::of_record(record, &record.dst_addr, record.dst_port, zone)?;
    begin(socket, record, (own, peer), extra.first_sent)
}

/// Begins one with these ends and this number, if it matters; its first packet goes when no lock holds it back.
pub fn begin(
    socket: BorrowedFd<'_>,
    record: &InetSkEntry,
    (own, peer): (SocketAddr, SocketAddr),
    first: Option<u32>,
) -> Result<()> {
    let failed = |action: &str, errno| Error::Kernel {
        object: object(record.id, sort_of(record)),
        action: format!("{action} {own} to {peer}"),
        errno,
        remedy: match errno {
            Errno::PERM => "connections of TCP need CAP_NET_ADMIN",
            Errno::ADDRNOTAVAIL => "this host must have the address, and nobody the connection",
            Errno::NETUNREACH | Errno::HOSTUNREACH => "this host needs a way to the peer",
            _ => "",
        },
    };
    let bind = || {
        tcp_repair::begin(socket)?;
        tcp_repair::choose(socket, Queue::Send)?;
        first.map_or(Ok(()), |first| tcp_repair::set_sequence(socket, first))?;
        rustix::net::bind(socket, &own)?;
        tcp_repair::end_silently(socket)
    };
    bind().map_err(|e| failed("bind what is to connect", e))?;
    let before = rustix::fs::fcntl_getfl(socket).map_err(|e| failed("connect", e))?;
    rustix::fs::fcntl_setfl(socket, before | OFlags::NONBLOCK).map_err(|e| failed("connect", e))?;
    let mut begun = rustix::net::connect(socket, &peer);
    if begun == Err(Errno::ADDRNOTAVAIL) && sock_diag::end_leftovers(own, peer).is_ok_and(|count| count > 0) {
        begun = rustix::net::connect(socket, &peer);
    }
    match begun {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(failed("connect", errno)),
    }
    rustix::fs::fcntl_setfl(socket, before).map_err(|e| failed("connect", e))
}
