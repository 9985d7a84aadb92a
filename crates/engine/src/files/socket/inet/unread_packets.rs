//! Packets that a raw socket or one for pings has received and its program not
//! read: whole, in `cryonaut-packets-FILE.json`, since CRIU's format has no
//! place for them.
//!
//! They are read from the kernel's memory, and come back by being sent once
//! more, from this host to itself. Who else has a raw socket of the protocol
//! gets such a packet as well; those of the image are deaf meanwhile
//! ([`deafen`]). So does the kernel: what it would act upon is refused, and so
//! is what would leave this host.

use super::{object, packet, sort_of, unread};
use crate::files::socket::Sort;
use crate::files::{Build, Collect, OpenFile};
use crate::{Error, Result, hexadecimal};
use cryonaut_image::records::InetSkEntry;
use cryonaut_kernel::sys::ip_queue::{self, IpPacket};
use cryonaut_kernel::sys::socket;
use rustix::io::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;

/// Protocols above IP of which the kernel itself gets packets, or may (linux/in.h): IGMP, IPIP, TCP, UDP, DCCP, IPv6 in IP,
/// RSVP, GRE, ESP, AH, IPComp, PIM, L2TP, SCTP, UDP-Lite, MPLS.
const ACTED_UPON: [i32; 16] = [2, 4, 6, 17, 33, 41, 46, 47, 50, 51, 94, 103, 108, 115, 132, 136];
/// Types of ICMP that are answers, upon which nothing follows: to an echo, a time, an information, a mask.
const ANSWERS: [u8; 4] = [0, 14, 16, 18];
/// The answer to an echo of IPv6.
const ANSWER6: u8 = 129;
/// Where a filter finds the mark of a packet (linux/filter.h, SKF_AD_MARK).
const MARK_OF_PACKET: i32 = 20;

fn name_of(id: u32) -> String {
    format!("packets-{id}")
}

/// Reads what the program has not.
pub fn collect(cx: &Collect<'_>, file: &OpenFile<'_>, sort: Sort, record: &InetSkEntry) -> Result<()> {
    let refused = |reason: String| {
        let remedy = "let the program read them before the checkpoint";
        Error::unsupported(file.object(), format!("it has packets that the program has not read, and {reason}"), remedy)
    };
    let all = match ip_queue::packets(file.file) {
        Ok(all) => all,
        Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {
            let reason =
                "they cannot be seen: this needs CAP_BPF and CAP_PERFMON, and a kernel with /sys/kernel/btf/vmlinux";
            return Err(refused(reason.into()));
        }
        Err(e) => return Err(Error::kernel(file.object(), "look at what it has not read", e)),
    };
    if record.opts.so_bound_dev.as_ref().is_some_and(|name| name != "lo") {
        return Err(refused("it receives from one network device alone".into()));
    }
    if let Some(reason) = all.iter().find_map(|packet| hindrance(packet, sort)) {
        return Err(refused(reason));
    }
    let all: Vec<String> = all.iter().map(|packet| hexadecimal::encode(&packet.bytes)).collect();
    Ok(cx.images.write_json(&name_of(record.id), &all)?)
}

/// Why a packet must not be sent again.
fn hindrance(packet: &IpPacket, sort: Sort) -> Option<String> {
    let kind = packet.bytes.get(packet.payload).copied();
    match sort.protocol {
        libc::IPPROTO_ICMP if kind.is_none_or(|kind| !ANSWERS.contains(&kind)) => {
            return Some("one of them is no answer of ICMP: this host would act upon it again".into());
        }
        libc::IPPROTO_ICMPV6 if kind != Some(ANSWER6) => {
            return Some("one of them is no answer to an echo of ICMPv6: this host would act upon it again".into());
        }
        protocol if ACTED_UPON.contains(&protocol) => {
            return Some(format!("this host would act upon them again, as upon all of protocol {protocol}"));
        }
        _ => {}
    }
    let is_local = match whither(&packet.bytes)? {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unicast_link_local(),
    };
    (!is_local).then(|| "one of them was sent to a group or on one link alone".into())
}

/// The destination.
pub fn whither(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?).into()),
        6 => Some(Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

fn filter(socket: BorrowedFd<'_>, of_others: bool) -> std::result::Result<(), Errno> {
    let insn = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let end = |bytes| insn(libc::BPF_RET | libc::BPF_K, bytes, 0);
    let mark = (libc::SKF_AD_OFF + MARK_OF_PACKET) as u32;
    let own = [
        insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, mark, 0),
        insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, packet::MARK as u32, 1),
        end(u32::MAX),
        end(0),
    ];
    socket::attach_filter(socket, if of_others { &own[3..] } else { &own })
}

/// A new one receives nothing until [`listen`]: what comes for others of the image, and from now on, is not for it.
pub fn deafen(socket: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    filter(socket, true).map_err(|e| Error::kernel(object(record.id, sort_of(record)), "make it deaf", e))
}

/// Receives again. Its own filter comes afterwards.
pub fn listen(socket: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    socket::set_int(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
        .map_err(|e| Error::kernel(object(record.id, sort_of(record)), "let it receive again", e))
}

/// Sends it again what it had, if anything.
pub fn build(cx: &Build<'_>, socket: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    let Some(all) = cx.images.read_json::<Vec<String>>(&name_of(record.id))? else { return Ok(()) };
    let what = || object(record.id, sort_of(record));
    let failed = |action: &str, errno| Error::Kernel {
        object: what(),
        action: action.into(),
        errno,
        remedy: match errno {
            Errno::PERM => "this needs CAP_NET_RAW and CAP_NET_ADMIN",
            Errno::ADDRNOTAVAIL => "this host must have the addresses that it had",
            _ => "",
        },
    };
    filter(socket, false).map_err(|e| failed("let it receive its own", e))?;
    for text in &all {
        let bad = || Error::bad_image(format!("cryonaut-{}.json", name_of(record.id)), "it has a packet that is none");
        let bytes = hexadecimal::decode(text).ok_or_else(bad)?;
        let to = whither(&bytes).ok_or_else(bad)?;
        let sent = is_ours(to).and_then(|()| {
            let before = unread::in_use(socket);
            packet::send_whole(&bytes, to)?;
            Ok(packet::arrives(|| unread::in_use(socket) > before))
        });
        if !sent.map_err(|e| failed("send it again what it had not read", e))? {
            let reason = "what it had not read does not reach it again";
            let remedy = "a firewall of this host must let packets from their senders out of this host and into it";
            return Err(Error::unsupported(what(), reason, remedy));
        }
    }
    deafen(socket, record)
}

/// Nothing is to leave this host: only an address of ours can be bound.
pub fn is_ours(to: IpAddr) -> std::result::Result<(), Errno> {
    let bound = UdpSocket::bind(SocketAddr::new(to, 0));
    bound.map(drop).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// Whether a socket is of this sort.
pub fn concerns(sort: Sort) -> bool {
    sort.kind == libc::SOCK_RAW || super::datagram::is_ping(sort)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_acts_upon_or_goes_elsewhere_is_not_sent_again() {
        let sort = |protocol| Sort { family: libc::AF_INET, kind: libc::SOCK_RAW, protocol };
        let packet = |to: [u8; 4], kind| {
            let mut bytes = vec![0u8; 28];
            (bytes[0], bytes[20]) = (0x45, kind);
            bytes[16..20].copy_from_slice(&to);
            IpPacket { bytes, payload: 20 }
        };
        let own = [127, 0, 0, 1];
        assert_eq!(hindrance(&packet(own, 0), sort(libc::IPPROTO_ICMP)), None);
        assert_eq!(hindrance(&packet(own, 8), sort(253)), None);
        for (to, kind, protocol) in [(own, 8, 1), (own, 0, 6), ([224, 0, 0, 5], 0, 89), ([255; 4], 0, 253)] {
            assert!(hindrance(&packet(to, kind), sort(protocol)).is_some(), "{to:?} {kind} {protocol}");
        }
    }
}
