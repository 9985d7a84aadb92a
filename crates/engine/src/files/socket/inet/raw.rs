//! Raw sockets: the protocol stands in the place of a port, and the address of
//! a peer in /proc/net alone, since no call tells it without a port. For pings
//! the latter is so too.

use super::{address, object, ready, sort_of, state};
use crate::files::OpenFile;
use crate::files::socket::{Sort, cannot_set};
use crate::{Error, Object, Result};
use cryonaut_image::records::{InetSkEntry, IpOptsRawEntry, SkShutdown};
use cryonaut_kernel::sys::socket;
use rustix::event::PollFlags;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// `SOL_RAW` and `ICMP_FILTER` (linux/icmp.h), `ICMPV6_FILTER` (linux/icmpv6.h).
const SOL_RAW: i32 = 255;
const FILTER: i32 = 1;

/// What the record has of their options.
pub fn options(socket: BorrowedFd<'_>) -> IpOptsRawEntry {
    let on = |option| socket::get_int(socket, libc::IPPROTO_IP, option).is_ok_and(|value| value != 0).then_some(true);
    let filter = socket::get_bytes(socket, SOL_RAW, FILTER, 4)
        .or_else(|_| socket::get_bytes(socket, libc::IPPROTO_ICMPV6, FILTER, 32))
        .unwrap_or_default();
    IpOptsRawEntry {
        hdrincl: on(libc::IP_HDRINCL),
        nodefrag: on(libc::IP_NODEFRAG),
        checksum: on(libc::IP_CHECKSUM),
        icmpv_filter: filter.chunks_exact(4).filter_map(|w| w.first_chunk().map(|w| u32::from_ne_bytes(*w))).collect(),
    }
}

/// Reads what is their own.
pub fn collect(file: &OpenFile<'_>, sort: Sort, record: &mut InetSkEntry) -> Result<()> {
    let ready = ready(file.file);
    if ready.contains(PollFlags::RDHUP) {
        record.set_shutdown(if ready.contains(PollFlags::HUP) { SkShutdown::Both } else { SkShutdown::Read });
    }
    let list = match (sort.kind == libc::SOCK_RAW, sort.family == libc::AF_INET6) {
        (true, false) => "/proc/thread-self/net/raw",
        (true, true) => "/proc/thread-self/net/raw6",
        (false, false) => "/proc/thread-self/net/icmp",
        (false, true) => "/proc/thread-self/net/icmp6",
    };
    let text = std::fs::read_to_string(list)
        .map_err(|e| Error::kernel(Object::Path(list.into()), "read it", crate::error::errno_of(&e)))?;
    if let Some(peer) = text.lines().find_map(|line| peer_in(line, file.stat.st_ino)) {
        record.dst_addr = address::words(peer);
        record.state = state::ESTABLISHED;
    }
    Ok(())
}

/// Whether there are packets that the program has not read. Of one that is shut down, poll says so in any case.
pub fn has_unread(file: &OpenFile<'_>) -> bool {
    let ready = ready(file.file);
    let is_shut = ready.contains(PollFlags::RDHUP);
    ready.contains(PollFlags::IN) && (!is_shut || rustix::io::ioctl_fionread(file.file).is_ok_and(|len| len > 0))
}

/// The peer in a line about the socket with this inode, if it has one: number, own address, peer, state, queues, timer,
/// retransmissions, uid, timeout, inode.
fn peer_in(line: &str, inode: u64) -> Option<IpAddr> {
    let words: Vec<&str> = line.split_whitespace().collect();
    if words.get(9)?.parse() != Ok(inode) || u32::from_str_radix(words.get(3)?, 16) != Ok(state::ESTABLISHED) {
        return None;
    }
    let (peer, _) = words.get(2)?.split_once(':')?;
    // Words in the order of memory.
    let word = |at: usize| u32::from_str_radix(peer.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match peer.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let octets = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).into())
        }
        _ => None,
    }
}

/// What the record has of their options, as CRIU writes it.
pub fn build(socket: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    let Some(raw) = record.ip_opts.as_ref().and_then(|ip| ip.raw.as_ref()) else { return Ok(()) };
    let what = || object(record.id, sort_of(record));
    for (option, name, wanted) in [
        (libc::IP_HDRINCL, "IP_HDRINCL", raw.hdrincl),
        (libc::IP_NODEFRAG, "IP_NODEFRAG", raw.nodefrag),
        (libc::IP_CHECKSUM, "IP_CHECKSUM", raw.checksum),
    ] {
        if let Some(wanted) = wanted.map(i32::from)
            && socket::get_int(socket, libc::IPPROTO_IP, option) != Ok(wanted)
        {
            socket::set_int(socket, libc::IPPROTO_IP, option, wanted).map_err(|e| cannot_set(what(), name, e))?;
        }
    }
    let (level, size) = match raw.icmpv_filter.len() {
        0 => return Ok(()),
        1 => (SOL_RAW, 4),
        _ => (libc::IPPROTO_ICMPV6, 32),
    };
    let filter: Vec<u8> = raw.icmpv_filter.iter().flat_map(|word| word.to_ne_bytes()).collect();
    if socket::get_bytes(socket, level, FILTER, size).as_ref() == Ok(&filter) {
        return Ok(());
    }
    socket::set_bytes(socket, level, FILTER, &filter).map_err(|e| cannot_set(what(), "its filter of ICMP", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_found_by_inode() {
        let v4 =
            " 253: 0100007F:00FD 0200007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0";
        assert_eq!(peer_in(v4, 4711), Some("127.0.0.2".parse().unwrap()));
        assert_eq!(peer_in(v4, 4712), None);
        let v6 = "   58: 00000000000000000000000000000000:003A 00000000000000000000000001000000:0000 \
                  01 00000000:00000000 00:00000000 00000000     0        0 99 2 0 0";
        assert_eq!(peer_in(v6, 99), Some("::1".parse().unwrap()));
        assert_eq!(peer_in(&v6.replace(" 01 ", " 07 "), 99), None);
    }
}
