//! Datagrams of UDP and UDP-Lite that the program has not read: each with the address that
//! it came from, in `cryonaut-datagrams-FILE.json`, since CRIU's format has no
//! place for them and CRIU itself loses them.
//!
//! They are read without being taken (SO_PEEK_OFF), and come back as packets
//! in their senders' names ([`super::packet`]).

use super::{CLOSE, address, object, packet, sort_of};
use crate::files::{Build, Collect, OpenFile};
use crate::{Error, Result, hexadecimal};
use cryonaut_image::records::InetSkEntry;
use cryonaut_kernel::sys::socket::{self, so};
use libc::{IPPROTO_IP, IPPROTO_IPV6, SOL_SOCKET};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recvfrom};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

/// More than a datagram can have.
const LARGEST: usize = 64 << 10;
/// `UDP_GRO`.
const UDP_GRO: i32 = 104;
/// `SO_PEEK_OFF` when every look begins at the beginning.
const NO_OFFSET: i32 = -1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Datagram {
    from: SocketAddr,
    /// Hexadecimal.
    data: String,
}

fn name_of(id: u32) -> String {
    format!("datagrams-{id}")
}

/// Reads what the program has not.
pub fn collect(cx: &Collect<'_>, file: &OpenFile<'_>, record: &InetSkEntry) -> Result<()> {
    if let Some(reason) = hindrance(file.file, record) {
        return Err(Error::unsupported(
            file.object(),
            format!("it has datagrams that the program has not read, and {reason}"),
            "let the program read them before the checkpoint",
        ));
    }
    let failed = |e| Error::kernel(file.object(), "look at what it has not read", e);
    let before = socket::get_int(file.file, SOL_SOCKET, libc::SO_PEEK_OFF).map_err(failed)?;
    if before != NO_OFFSET {
        return Err(Error::unsupported(
            file.object(),
            "it has datagrams that the program has looked at (SO_PEEK_OFF) and not read",
            CLOSE,
        ));
    }
    socket::set_int(file.file, SOL_SOCKET, libc::SO_PEEK_OFF, 0).map_err(failed)?;
    let read = peek_all(file.file);
    socket::set_int(file.file, SOL_SOCKET, libc::SO_PEEK_OFF, before).map_err(failed)?;
    Ok(cx.images.write_json(&name_of(record.id), &read.map_err(failed)?)?)
}

fn peek_all(socket: BorrowedFd<'_>) -> std::result::Result<Vec<Datagram>, Errno> {
    let mut all = Vec::new();
    let mut buffer = vec![0u8; LARGEST];
    loop {
        match recvfrom(socket, &mut buffer[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => return Ok(all),
            Err(errno) => return Err(errno),
            Ok((_, got, from)) => {
                let from = from.ok_or(Errno::INVAL).and_then(SocketAddr::try_from)?;
                let data = hexadecimal::encode(&buffer[..got]);
                all.push(Datagram { from, data });
            }
        }
    }
}

/// Why its datagrams could not be brought back to it, or not as they were.
fn hindrance(socket: BorrowedFd<'_>, record: &InetSkEntry) -> Option<&'static str> {
    let on = |level, option| socket::get_int(socket, level, option).is_ok_and(|value| value != 0);
    let own = address::of_record(record, &record.src_addr, record.src_port, 0).ok()?;
    let tells = [(IPPROTO_IP, libc::IP_PKTINFO), (IPPROTO_IP, libc::IP_RECVORIGDSTADDR)]
        .into_iter()
        .chain([(IPPROTO_IPV6, libc::IPV6_RECVPKTINFO), (IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR)]);
    let local = match own.ip().to_canonical() {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unicast_link_local(),
    };
    if record.opts.reuseaddr == Some(true) || record.opts.so_reuseport == Some(true) {
        return Some("others may have its port too, so that they could go elsewhere");
    }
    if record.opts.so_bound_dev.as_ref().is_some_and(|name| name != "lo") {
        return Some("it receives from one network device alone");
    }
    if !local {
        return Some("it receives for a group or on one link alone");
    }
    if own.ip().is_unspecified() && tells.into_iter().any(|(level, option)| on(level, option)) {
        return Some("the program asks to which address of this host each was sent, which is not known");
    }
    on(libc::IPPROTO_UDP, UDP_GRO).then_some("they may have been put together (UDP_GRO)")
}

/// Sends it again what it had, if anything.
pub fn build(cx: &Build<'_>, socket: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    let Some(all) = cx.images.read_json::<Vec<Datagram>>(&name_of(record.id))? else { return Ok(()) };
    let what = || object(record.id, sort_of(record));
    for datagram in &all {
        let own = own_address(record, &datagram.from)?;
        let data = hexadecimal::decode(&datagram.data);
        let bad =
            || Error::bad_image(format!("cryonaut-{}.json", name_of(record.id)), "it has a datagram without data");
        let before = in_use(socket);
        packet::send_datagram(record.proto as i32, datagram.from, own, &data.ok_or_else(bad)?).map_err(|errno| {
            Error::Kernel {
                object: what(),
                action: format!("send it again what {} had sent", datagram.from),
                errno,
                remedy: if errno == Errno::PERM { "this needs CAP_NET_RAW and CAP_NET_ADMIN" } else { "" },
            }
        })?;
        if !packet::arrives(|| in_use(socket) > before) {
            return Err(Error::unsupported(
                what(),
                format!("what {} had sent does not reach it again", datagram.from),
                "a firewall of this host must let packets from there out of this host and into it",
            ));
        }
    }
    Ok(())
}

/// Where it is to be reached on this host, by who speaks as a sender did.
fn own_address(record: &InetSkEntry, from: &SocketAddr) -> Result<SocketAddr> {
    let mut own = address::of_record(record, &record.src_addr, record.src_port, 0)?;
    if own.ip().is_unspecified() {
        own.set_ip(match from.ip().to_canonical() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(own)
}

/// Memory in use by what it has received: the first word of SO_MEMINFO.
pub fn in_use(socket: BorrowedFd<'_>) -> u32 {
    let words = socket::get_bytes(socket, SOL_SOCKET, so::MEMINFO, 4).unwrap_or_default();
    words.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word))
}
