//! Errors that wait for the program (SO_ERROR). To ask for one takes it away, so they are read from the kernel's memory
//! ([`socket_inside`]); and they are brought about again as they had come, by packets ([`packet`]): a message of ICMP, in
//! the peer's name. What no packet brings about is refused.

use super::super::{CLOSE, object};
use super::{packet, ready, sort_of, state};
use crate::files::OpenFile;
use crate::{Error, Result};
use cryonaut_image::records::InetSkEntry;
use cryonaut_kernel::sys::socket_inside::Waits;
use cryonaut_kernel::sys::{socket, socket_inside};
use libc::{IPPROTO_IP, IPPROTO_IPV6};
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// The error that waits, or 0, and how many messages are in the queue of errors. Refused is what cannot be told.
pub fn waiting(file: &OpenFile<'_>) -> Result<Waits> {
    let none = file.asked.seen().map(|seen| !seen.has_error());
    if none.unwrap_or_else(|| !ready(file.file).contains(PollFlags::ERR)) {
        return Ok(Waits { error: 0, messages: 0 });
    }
    let refuse = |reason: String| Err(Error::unsupported(file.object(), reason, CLOSE));
    match socket_inside::waits(file.file) {
        Ok(waits) => Ok(waits),
        Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => refuse(
            "it has an error or a message about one for the program, which cannot be looked at without BTF, CAP_BPF and \
             CAP_PERFMON"
                .into(),
        ),
        Err(errno) => Err(Error::kernel(file.object(), "look at its error", errno)),
    }
}

/// What a message of ICMP says, by the error that it brings about (net/ipv4/icmp.c, icmp_err_convert; net/ipv6/icmp.c,
/// icmpv6_err_convert): code of type 3, or of type 1 of ICMPv6.
fn code(error: i32, v6: bool) -> Option<u8> {
    match (error, v6) {
        (libc::ENETUNREACH, _) => Some(0),
        (libc::EHOSTUNREACH, false) => Some(1),
        (libc::EHOSTUNREACH, true) => Some(3),
        (libc::ECONNREFUSED, false) => Some(3),
        (libc::ECONNREFUSED, true) => Some(4),
        (libc::EACCES, true) => Some(1),
        (libc::ENOPROTOOPT, false) => Some(2),
        (libc::EHOSTDOWN, false) => Some(7),
        (libc::ENONET, false) => Some(8),
        _ => None,
    }
}

/// Errors by which a socket of UDP that is connected to a peer is told of at once.
fn is_fatal(error: i32) -> bool {
    !matches!(error, libc::ENETUNREACH | libc::EHOSTUNREACH)
}

/// Whether an error can be brought about again.
pub fn can_come(record: &InetSkEntry, error: i32, peer: Option<SocketAddr>) -> bool {
    let Some(peer) = peer else { return false };
    let known = code(error, peer.ip().to_canonical().is_ipv6()).is_some();
    let sort = sort_of(record);
    match sort.protocol {
        _ if sort.is_tcp() => known,
        libc::IPPROTO_UDP if sort.kind == libc::SOCK_DGRAM => {
            known && is_fatal(error) && record.state == state::ESTABLISHED
        }
        _ => false,
    }
}

/// For one that cannot be.
pub fn refuse(file: &OpenFile<'_>, error: i32) -> Error {
    let name = std::io::Error::from_raw_os_error(error);
    let reason =
        format!("it has an error for the program that was not read, and nothing brings it about again: {name}");
    Error::unsupported(
        file.object(),
        reason,
        "let the program read it (SO_ERROR), or close the socket, before the checkpoint",
    )
}

/// Brings an error about, in a socket that is connected from `own` to `peer`; `sequence` of TCP is one that was sent.
pub fn build(
    socket: BorrowedFd<'_>,
    record: &InetSkEntry,
    error: i32,
    (own, peer): (SocketAddr, SocketAddr),
    sequence: u32,
) -> Result<()> {
    let what = || object(record.id, sort_of(record));
    let failed = |e| Error::Kernel {
        object: what(),
        action: "bring its error about again".into(),
        errno: e,
        remedy: if e == Errno::PERM { "this needs CAP_NET_RAW" } else { "" },
    };
    let v6 = peer.ip().to_canonical().is_ipv6();
    let code = code(error, v6)
        .ok_or_else(|| Error::bad_image("cryonaut-sockets.json", format!("nothing brings the error {error} about")))?;
    let (level, option) = if v6 { (IPPROTO_IPV6, libc::IPV6_RECVERR) } else { (IPPROTO_IP, libc::IP_RECVERR) };
    // TCP takes it for final only if the program wants to know.
    let tcp = sort_of(record).is_tcp();
    let before = socket::get_int(socket, level, option).map_err(failed)?;
    if tcp {
        socket::set_int(socket, level, option, 1).map_err(failed)?;
    }
    packet::send_unreachable(code, record.proto as i32, (own, peer), sequence).map_err(failed)?;
    let came = packet::arrives(|| ready(socket).contains(PollFlags::ERR));
    if tcp {
        socket::set_int(socket, level, option, before).map_err(failed)?;
    }
    if came {
        return Ok(());
    }
    let remedy = "a firewall of this host must let packets from the peer's address out of this host and into it";
    Err(Error::unsupported(what(), "its error does not come about again", remedy))
}
