//! Messages about errors that wait for the program beside the error itself (IP_RECVERR, MSG_ERRQUEUE), of UDP. To read
//! one takes it away, so they are read from the kernel's memory ([`ip_queue`]): each is the packet of ICMP that has brought
//! it, and comes back by being sent once more, to this socket alone since its port is there. What has another origin (this
//! host itself, time stamps of what was sent, MSG_ZEROCOPY) is refused.

use super::super::beside::Extra;
use super::super::{CLOSE, object};
use super::unread_packets::{is_ours, whither};
use super::{packet, ready, sort_of};
use crate::files::OpenFile;
use crate::{Error, Result, hexadecimal};
use cryonaut_image::records::InetSkEntry;
use cryonaut_kernel::sys::{ip_queue, socket, socket_inside};
use libc::SOL_SOCKET;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Writes them down; `error` is the one that SO_ERROR would tell, or 0.
pub fn collect(file: &OpenFile<'_>, record: &InetSkEntry, error: i32, extra: &mut Extra) -> Result<()> {
    let all =
        ip_queue::errors(file.file).map_err(|e| Error::kernel(file.object(), "look at its queue of errors", e))?;
    let refuse = |reason: &str| {
        let reason = format!("it has {} messages about errors that the program has not read, {reason}", all.len());
        Err(Error::unsupported(file.object(), reason, CLOSE))
    };
    let sort = sort_of(record);
    if (sort.kind, sort.protocol) != (libc::SOCK_DGRAM, libc::IPPROTO_UDP) {
        return refuse("which are carried of UDP alone");
    }
    if error != 0 && all.last().is_some_and(|last| last.error != error) {
        return refuse("and an error of another kind");
    }
    for one in &all {
        match &one.packet {
            Some(packet) => extra.errors.push(hexadecimal::encode(packet)),
            None => return refuse("of which no packet has brought one"),
        }
    }
    Ok(())
}

/// Has them come again; `extra.error` is there then, too.
pub fn build(socket: BorrowedFd<'_>, record: &InetSkEntry, extra: &Extra) -> Result<()> {
    let what = || object(record.id, sort_of(record));
    let failed = |errno| Error::Kernel {
        object: what(),
        action: "bring its messages about errors about again".into(),
        errno,
        remedy: match errno {
            Errno::PERM => "this needs CAP_NET_RAW",
            Errno::ADDRNOTAVAIL => "this host must have the addresses that it had",
            _ => "",
        },
    };
    for (before, text) in extra.errors.iter().enumerate() {
        let bad = || Error::bad_image("cryonaut-sockets.json", "it has a packet that is none");
        let bytes = hexadecimal::decode(text).ok_or_else(bad)?;
        let to = whither(&bytes).ok_or_else(bad)?;
        is_ours(to).and_then(|()| packet::send_whole(&bytes, to)).map_err(failed)?;
        let came = || match socket_inside::waits(socket) {
            Ok(waits) => waits.messages as usize > before,
            Err(_) => ready(socket).contains(PollFlags::ERR),
        };
        if !packet::arrives(came) {
            let remedy = "a firewall of this host must let packets of ICMP out of this host and into it";
            return Err(Error::unsupported(what(), "a message about an error does not reach it again", remedy));
        }
    }
    if extra.error == 0 {
        // The program has asked for it; to do so takes it away.
        socket::get_int(socket, SOL_SOCKET, libc::SO_ERROR).map_err(failed)?;
    }
    Ok(())
}
