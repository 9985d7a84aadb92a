//! Sockets of IPv4 and IPv6: `inet_sk_entry` in files.img.
//!
//! What they all have is here: addresses, options of the socket and of the
//! internet protocol. What a protocol has of its own is in [`tcp`] and
//! [`datagram`].
//!
//! A socket is made, given its options and its address when it is built. What
//! others of the network could notice is left for when every process has what
//! it had ([`FileKind::settle`]): only then does it listen.

mod address;
mod apart;
mod connection;
mod datagram;
mod ended;
mod error;
mod error_queue;
mod in_flight;
mod inside;
mod multicast;
mod packet;
mod peers;
mod raw;
mod tcp;
mod unread;
mod unread_packets;
mod urgent;
mod waiting;

pub use apart::{TakenApart, at_rest, take_apart, take_some};
pub use connection::{Connection, Held, is_connected};
pub use ended::Ended;
pub use inside::{Signing, get_ready, look as look_inside};
pub use multicast::{Candidate, Membership};
pub use packet::arrives;
pub use peers::{Peer, Peers};
pub use tcp::Told as TcpTold;
pub use urgent::Urgent;
pub use waiting::half_open;

use super::beside::{Beside, Extra};
use super::settings::{self, Setting, When};
use super::{CLOSE, Sort, cannot_set, filter, object, options};
use crate::files::{Build, Collect, FileKind, OpenFile, Settle, apply_status_flags};
use crate::users;
use crate::{Error, Result};
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, InetSkEntry, IpOptsEntry, SkShutdown, TcpOptsEntry};
use cryonaut_kernel::sys::socket;
use cryonaut_kernel::sys::socket_inside::Waits;
use libc::{IPPROTO_IP, IPPROTO_IPV6};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::net::Shutdown;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Sockets of IPv4 and IPv6.
#[derive(Debug)]
pub struct Inet;

/// States that the record tells, of TCP and in its terms of others (include/net/tcp_states.h).
mod state {
    pub const ESTABLISHED: u32 = 1;
    pub const SYN_SENT: u32 = 2;
    pub const SYN_RECV: u32 = 3;
    pub const FIN_WAIT1: u32 = 4;
    pub const FIN_WAIT2: u32 = 5;
    pub const TIME_WAIT: u32 = 6;
    pub const CLOSE: u32 = 7;
    pub const CLOSE_WAIT: u32 = 8;
    pub const LAST_ACK: u32 = 9;
    pub const LISTEN: u32 = 10;
    pub const CLOSING: u32 = 11;
}

/// Permission bits of a new socket's inode (net/socket.c, sock_alloc).
const NEW_MODE: u32 = 0o777;

impl FileKind for Inet {
    fn name(&self) -> &'static str {
        "an internet socket"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Inetsk
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        super::is_socket(file)
            && file.asked.sort(file.file).is_ok_and(|sort| matches!(sort.family, libc::AF_INET | libc::AF_INET6))
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let failed = |e| Error::kernel(file.object(), "ask what it is", e);
        let sort = file.asked.sort(file.file).map_err(failed)?;
        let Waits { error, messages } = error::waiting(file)?;
        let mut record = InetSkEntry {
            id,
            ino: file.stat.st_ino as u32,
            family: sort.family as u32,
            r#type: sort.kind as u32,
            proto: sort.protocol as u32,
            state: state::CLOSE,
            flags: file.flags(),
            fown: file.owner()?,
            opts: options::collect(file)?,
            ..InetSkEntry::default()
        };
        record.opts.so_filter = match file.asked.filter() {
            Some(filter) => filter,
            None => filter::collect(file.file, &file.object())?,
        };
        let mut extra = Extra { owner: owner_of(file), mode: mode_of(file), ..Extra::default() };
        collect_ip(&mut record, sort, file)?;
        collect_addresses(&mut record, file)?;
        let inside = inside::of(cx, file, sort)?;
        if let Some(inside) = &inside {
            inside::collect(file, inside, &mut extra)?;
        }
        if messages > 0 {
            error_queue::collect(file, &record, error, &mut extra)?;
        }
        if sort.is_tcp() {
            tcp::collect(cx, file, &mut record, &mut extra, (error, inside.as_ref()))?;
        } else {
            datagram::collect(cx, file, sort, &mut record, &mut extra)?;
            let peer = address::peer(file.file).ok().flatten();
            if error != 0 && messages == 0 && !error::can_come(&record, error, peer) {
                return Err(error::refuse(file, error));
            }
            extra.error = error;
        }
        settings::collect(&mut cx.sockets, file, sort, &tables(&record), &mut extra);
        cx.sockets.note(id, extra);
        Ok(FileEntry { r#type: FdTypes::Inetsk as i32, id, isk: Some(record), ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let record = entry.isk.as_ref().ok_or_else(|| Build::lacks(entry, self.name()))?;
        let extra = cx.sockets()?.of(entry.id);
        // By what it was: of a connection that is not to go on, not all is used.
        settings::check_names(&tables(record), &extra)?;
        let record = &tcp::as_asked(record, cx.options);
        let sort = sort_of(record);
        let what = || object(entry.id, sort);
        datagram::check(record)?;
        let file = sort.make().map_err(|errno| Error::Kernel {
            object: what(),
            action: "make a socket".into(),
            errno,
            remedy: match (errno, sort.kind) {
                (Errno::ACCESS, libc::SOCK_DGRAM) => "sockets for pings need our group in net.ipv4.ping_group_range",
                _ => "",
            },
        })?;
        let socket = file.as_fd();
        build_inode(socket, &extra).map_err(|e| Error::kernel(what(), "give it its owner", e))?;
        let sees_all = unread_packets::concerns(sort);
        if sees_all {
            unread_packets::deafen(socket, record)?;
        }
        build_early(socket, record, &extra)?;
        let connected = tcp::is_connection(record);
        if connected {
            let connection = connection::build(cx, socket, record, &extra)?;
            cx.connections.insert(entry.id, connection);
        } else if record.state == state::SYN_SENT {
            in_flight::build(socket, record, &extra)?;
        } else if !ends_again(cx, socket, record, &extra)? {
            build_address(cx, socket, record)?;
        }
        if !connected {
            if record.state != state::LISTEN {
                inside::build_chooser(socket, record, &extra.chooser)?;
            }
            inside::build_keys(socket, record, &extra.keys)?;
        }
        if sort.is_tcp() {
            tcp::build(socket, record, &extra)?;
        } else {
            datagram::build(cx, socket, record, &extra)?;
        }
        let is_shut = connected || tcp::has_ended(record) && ready(socket).contains(PollFlags::RDHUP);
        if !is_shut {
            build_shutdown(socket, record)?;
        }
        if !sees_all {
            build_late(socket, record, &extra)?;
        }
        apply_status_flags(socket, entry.id, record.flags)?;
        Ok(file)
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.isk.as_ref().map(|record| &record.fown)
    }

    fn settle(&self, cx: &mut Settle<'_>, entry: &FileEntry, file: BorrowedFd<'_>) -> Result<()> {
        let Some(record) = &entry.isk else { return Ok(()) };
        if tcp::is_connection(&tcp::as_asked(record, cx.options)) {
            // It is not free yet: see `Connection::release`.
            return Ok(());
        }
        if record.state == state::LISTEN {
            listen(cx, file, record)?;
            waiting::build(cx, file, record)?;
            if record.opts.so_reuseport == Some(true) {
                // Who has one before could not listen.
                inside::build_chooser(file, record, &Beside::read(cx.images)?.of(record.id).chooser)?;
            }
            settle_reuseport(cx, record)?;
        }
        if unread_packets::concerns(sort_of(record)) {
            unread_packets::listen(file, record)?;
            build_late(file, record, &super::Beside::read(cx.images)?.of(entry.id))?;
        }
        // Not before everybody has an address.
        let what = || object(entry.id, sort_of(record));
        record.opts.reuseaddr.map_or(Ok(()), |wanted| options::set_reuseaddr(file, wanted, what))
    }
}

fn sort_of(record: &InetSkEntry) -> Sort {
    Sort { family: record.family as i32, kind: record.r#type as i32, protocol: record.proto as i32 }
}

/// How a socket is called in messages.
pub fn describe(sort: Sort) -> String {
    let protocol = match (sort.kind, sort.protocol) {
        (libc::SOCK_RAW, _) => "raw",
        (_, libc::IPPROTO_TCP) => "TCP",
        (_, libc::IPPROTO_UDP) => "UDP",
        (_, libc::IPPROTO_UDPLITE) => "UDP-Lite",
        (_, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => "ICMP",
        (_, libc::IPPROTO_SCTP) => "SCTP",
        (_, libc::IPPROTO_DCCP) => "DCCP",
        (_, libc::IPPROTO_MPTCP) => "MPTCP",
        (_, number) => return format!("socket of protocol {number}"),
    };
    format!("{protocol} socket of IPv{}", if sort.family == libc::AF_INET6 { 6 } else { 4 })
}

/// The tables of options that such a socket has.
fn tables(record: &InetSkEntry) -> Vec<&'static [Setting]> {
    let sort = sort_of(record);
    let mut tables = vec![settings::SOCKET];
    let stream = sort.kind == libc::SOCK_STREAM;
    if sort.family == libc::AF_INET || sort.kind != libc::SOCK_RAW {
        tables.push(settings::IP);
        tables.extend((!stream).then_some(settings::IP_MULTICAST));
    }
    if sort.family == libc::AF_INET6 {
        tables.push(settings::IPV6);
        tables.extend((!stream).then_some(settings::IPV6_MULTICAST));
    }
    if sort.is_tcp() {
        tables.extend(tcp::tables(record));
    } else {
        tables.extend(datagram::tables(record));
    }
    tables
}

/// An error that the program has not been told yet would be gone with the question.
pub(super) fn refuse_error(file: &OpenFile<'_>) -> Result<()> {
    if !ready(file.file).contains(PollFlags::ERR) {
        return Ok(());
    }
    Err(Error::unsupported(
        file.object(),
        "it has an error or a message about one for the program, which has not been read",
        "let the program read it, or close the socket, before the checkpoint",
    ))
}

/// Both ends of a connection, its own first; those of IPv4 as such, also of a socket of IPv6.
pub fn ends_of(socket: BorrowedFd<'_>) -> Option<(SocketAddr, SocketAddr)> {
    Some(canonical((address::local(socket).ok()?, address::peer(socket).ok()??)))
}

/// Both ends, those of IPv4 as such, which sockets of IPv6 have in another form.
pub fn canonical((one, other): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
    (canonical(one), canonical(other))
}

/// What poll(2) tells of it now.
pub(super) fn ready(socket: BorrowedFd<'_>) -> PollFlags {
    let all = PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP | PollFlags::PRI;
    let mut asked = [PollFd::from_borrowed_fd(socket, all)];
    match poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(_) => asked[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

pub(super) fn owner_of(file: &OpenFile<'_>) -> Option<(u32, u32)> {
    let owner = (file.stat.st_uid, file.stat.st_gid);
    (owner != users::outside((0, 0))).then(|| users::inside(owner))
}

pub(super) fn mode_of(file: &OpenFile<'_>) -> Option<u32> {
    let mode = file.stat.st_mode & 0o7777;
    (mode != NEW_MODE).then_some(mode)
}

pub(super) fn build_inode(socket: BorrowedFd<'_>, extra: &Extra) -> std::result::Result<(), Errno> {
    if let Some((uid, gid)) = extra.owner.or_else(|| users::are_mapped().then_some((0, 0))) {
        let (uid, gid) = users::outside((uid, gid));
        rustix::fs::fchown(socket, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    extra.mode.map_or(Ok(()), |mode| rustix::fs::fchmod(socket, Mode::from_raw_mode(mode)))
}

/// What the record has of the internet protocol's options.
#[derive(Debug, Clone, PartialEq)]
pub struct Ip {
    v6only: Option<bool>,
    options: IpOptsEntry,
}

/// Asks for them, but for those of raw sockets.
pub fn read_ip(socket: BorrowedFd<'_>, sort: Sort) -> std::result::Result<Ip, Errno> {
    let get = |level, option| socket::get_int(socket, level, option);
    let on = |level, option| get(level, option).is_ok_and(|value| value != 0).then_some(true);
    let mut ip = IpOptsEntry::default();
    let mut v6only = None;
    if sort.family == libc::AF_INET6 {
        v6only = Some(get(IPPROTO_IPV6, libc::IPV6_V6ONLY)? != 0);
        ip.freebind = on(IPPROTO_IPV6, libc::IPV6_FREEBIND);
    } else {
        ip.freebind = on(IPPROTO_IP, libc::IP_FREEBIND);
        ip.pktinfo = on(IPPROTO_IP, libc::IP_PKTINFO);
        ip.tos = get(IPPROTO_IP, libc::IP_TOS).ok().filter(|tos| *tos != 0).map(|tos| tos as u32);
        ip.ttl = get(IPPROTO_IP, libc::IP_TTL).ok().map(|ttl| ttl as u32);
    }
    Ok(Ip { v6only, options: ip })
}

fn collect_ip(record: &mut InetSkEntry, sort: Sort, file: &OpenFile<'_>) -> Result<()> {
    let asked = file.asked.ip().map_or_else(|| read_ip(file.file, sort), Ok);
    let Ip { v6only, options: mut ip } = asked.map_err(|e| Error::kernel(file.object(), "ask for IPV6_V6ONLY", e))?;
    record.v6only = v6only;
    if sort.kind == libc::SOCK_RAW {
        ip.raw = Some(raw::options(file.file));
    }
    record.ip_opts = Some(ip);
    record.tcp_opts = Some(TcpOptsEntry::default());
    Ok(())
}

fn collect_addresses(record: &mut InetSkEntry, file: &OpenFile<'_>) -> Result<()> {
    let failed = |e| Error::kernel(file.object(), "ask for its addresses", e);
    let local = address::local(file.file).map_err(failed)?;
    let peer = address::peer(file.file).map_err(failed)?;
    let none = if local.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let remote = peer.unwrap_or_else(|| none.parse().unwrap_or(local));
    record.src_port = local.port().into();
    record.dst_port = remote.port().into();
    record.src_addr = address::words(local.ip());
    record.dst_addr = address::words(remote.ip());
    if let Some(zone) = [local, remote].iter().map(address::zone).find(|zone| *zone != 0) {
        let name = rustix::net::netdevice::index_to_name_inlined(file.file, zone);
        let name = name.map_err(|e| Error::kernel(file.object(), format!("name the network device {zone}"), e))?;
        record.ifname = Some(name.to_string());
    }
    if peer.is_some() {
        record.state = state::ESTABLISHED;
    }
    Ok(())
}

/// Everything that is to be there before the socket has an address.
fn build_early(socket: BorrowedFd<'_>, record: &InetSkEntry, extra: &Extra) -> Result<()> {
    let what = || object(record.id, sort_of(record));
    let set = |level, option, name: &str, wanted: Option<u32>| match wanted {
        Some(wanted) if socket::get_int(socket, level, option) != Ok(wanted as i32) => {
            socket::set_int(socket, level, option, wanted as i32).map_err(|e| cannot_set(what(), name, e))
        }
        _ => Ok(()),
    };
    set(IPPROTO_IPV6, libc::IPV6_V6ONLY, "IPV6_V6ONLY", record.v6only.map(u32::from))?;
    if let Some(ip) = &record.ip_opts {
        set(IPPROTO_IP, libc::IP_PKTINFO, "IP_PKTINFO", ip.pktinfo.map(u32::from))?;
        set(IPPROTO_IP, libc::IP_TOS, "IP_TOS", ip.tos)?;
        set(IPPROTO_IP, libc::IP_TTL, "IP_TTL", ip.ttl)?;
        let v6 = record.family == libc::AF_INET6 as u32;
        let freebind = if v6 { (IPPROTO_IPV6, libc::IPV6_FREEBIND) } else { (IPPROTO_IP, libc::IP_FREEBIND) };
        set(freebind.0, freebind.1, "IP_FREEBIND", ip.freebind.map(u32::from))?;
    }
    settings::build(socket, &tables(record), extra, When::Early, what)?;
    options::build(socket, &record.opts, what)
}

/// What bars others from it, or itself from what is to be done before.
fn build_late(socket: BorrowedFd<'_>, record: &InetSkEntry, extra: &Extra) -> Result<()> {
    let what = || object(record.id, sort_of(record));
    filter::build(socket, &record.opts.so_filter, what)?;
    settings::build(socket, &tables(record), extra, When::Late, what)
}

/// Gives it its own address, if it has one.
fn build_address(cx: &Build<'_>, socket: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    let what = || object(record.id, sort_of(record));
    let own = address::of_record(record, &record.src_addr, record.src_port, zone_of(record)?)?;
    // Of a raw socket, the number of the protocol stands in the place of a port.
    let raw = record.r#type == libc::SOCK_RAW as u32;
    if own.ip().is_unspecified() && (own.port() == 0 || raw) {
        return Ok(());
    }
    // What stays of TCP's former connections would be in the way, and so would others of this image.
    let company = || cx.records().values().filter_map(|e| e.isk.as_ref()).filter(|other| shares_port(record, other));
    let reuse = sort_of(record).is_tcp() || record.opts.reuseaddr == Some(true) || company().next().is_some();
    options::set_reuseaddr(socket, reuse, what)?;
    if company().any(|other| other.opts.so_reuseport == Some(true)) {
        // One that has given it up since must share as well, until all have the port.
        options::set_reuseport(socket, true, what)?;
    }
    let mut bound = rustix::net::bind(socket, &own);
    if bound == Err(Errno::ADDRINUSE) && tcp::clear_port(record) {
        bound = rustix::net::bind(socket, &own);
    }
    match bound {
        // Of a connection that has ended it is but a memory, whoever has the port now.
        Err(Errno::ADDRINUSE) if tcp::has_ended(record) => tcp::bind_beside(socket, record, &own),
        Err(Errno::ADDRNOTAVAIL) if tcp::has_ended(record) => Ok(()),
        Err(Errno::ADDRNOTAVAIL) => bind_freely(socket, record, &own),
        Err(errno) => Err(Error::Kernel {
            object: what(),
            action: format!("bind it to {own}"),
            errno,
            remedy: match errno {
                Errno::ADDRINUSE => "another program here has the address: end that one",
                Errno::ACCESS => "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE",
                _ => "",
            },
        }),
        Ok(()) => Ok(()),
    }
}

/// Lets what is left of a connection come about again, if there is any. Whether it has, and so its address.
fn ends_again(cx: &Build<'_>, socket: BorrowedFd<'_>, record: &InetSkEntry, extra: &Extra) -> Result<bool> {
    match &extra.ended {
        Some(ended) if record.state == state::CLOSE => {
            Ok(ended::build(cx, socket, record, ended)? || address::local(socket).is_ok_and(|own| own.port() != 0))
        }
        _ => Ok(false),
    }
}

/// Lets it listen, also beside what is left of connections at its port: that has none in the kernel's eyes, but here it
/// has, and may be one that does not share it (SO_REUSEADDR).
fn listen(cx: &Settle<'_>, socket: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    if rustix::net::listen(socket, record.backlog as i32) != Err(Errno::ADDRINUSE) {
        return tcp::listen(socket, record.backlog, record);
    }
    let others = cx.records.values().filter_map(|e| e.isk.as_ref());
    let others = others.filter(|other| shares_port(record, other) && tcp::has_ended(other));
    let others: Vec<(&InetSkEntry, BorrowedFd<'_>)> =
        others.filter_map(|other| Some((other, cx.built.get(&other.id)?.as_fd()))).collect();
    let share = |one: &InetSkEntry, socket, on| options::set_reuseaddr(socket, on, || object(one.id, sort_of(one)));
    share(record, socket, true)?;
    others.iter().try_for_each(|(other, socket)| share(other, *socket, true))?;
    tcp::listen(socket, record.backlog, record)?;
    others.iter().try_for_each(|(other, socket)| share(other, *socket, other.opts.reuseaddr == Some(true)))
}

/// Once the last that listens at a port does, those that had given up to share it do so again.
fn settle_reuseport(cx: &Settle<'_>, record: &InetSkEntry) -> Result<()> {
    let all = cx.records.values().filter_map(|e| e.isk.as_ref());
    let company =
        all.filter(|other| other.state == state::LISTEN && (other.id == record.id || shares_port(record, other)));
    let company: Vec<&InetSkEntry> = company.collect();
    if company.iter().any(|other| other.id > record.id) {
        return Ok(());
    }
    for other in company.into_iter().filter(|other| other.opts.so_reuseport == Some(false)) {
        if let Some(file) = cx.built.get(&other.id) {
            options::set_reuseport(file.as_fd(), false, || object(other.id, sort_of(other)))?;
        }
    }
    Ok(())
}

fn shares_port(one: &InetSkEntry, other: &InetSkEntry) -> bool {
    one.id != other.id && (one.proto, one.src_port) == (other.proto, other.src_port)
}

/// Binds it to an address that this host does not have: it had none of that
/// before either, or it comes yet.
fn bind_freely(socket: BorrowedFd<'_>, record: &InetSkEntry, own: &SocketAddr) -> Result<()> {
    let what = || object(record.id, sort_of(record));
    let failed = |errno| Error::Kernel {
        object: what(),
        action: format!("bind it to {own}"),
        errno,
        remedy: "this host has no such address: give it to a network device",
    };
    let (level, option) = match own {
        SocketAddr::V4(_) => (IPPROTO_IP, libc::IP_FREEBIND),
        SocketAddr::V6(_) => (IPPROTO_IPV6, libc::IPV6_FREEBIND),
    };
    let before = socket::get_int(socket, level, option).map_err(failed)?;
    socket::set_int(socket, level, option, 1).map_err(failed)?;
    rustix::net::bind(socket, own).map_err(failed)?;
    tracing::warn!("{}: bound to {own}, an address that this host does not have", what());
    socket::set_int(socket, level, option, before).map_err(failed)
}

/// The number here of the device that the record names.
fn zone_of(record: &InetSkEntry) -> Result<u32> {
    let Some(name) = &record.ifname else { return Ok(0) };
    let socket = sort_of(record).make();
    socket.and_then(|socket| rustix::net::netdevice::name_to_index(socket, name)).map_err(|errno| Error::Kernel {
        object: object(record.id, sort_of(record)),
        action: format!("find the network device {name}"),
        errno,
        remedy: "its address is one of that device: make one of that name",
    })
}

fn build_shutdown(socket: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    let how = match record.shutdown() {
        SkShutdown::None => return Ok(()),
        SkShutdown::Read => Shutdown::Read,
        SkShutdown::Write => Shutdown::Write,
        SkShutdown::Both => Shutdown::Both,
    };
    match rustix::net::shutdown(socket, how) {
        // It says so, and does it nonetheless (net/ipv4/af_inet.c, inet_shutdown).
        Ok(()) | Err(Errno::NOTCONN) => Ok(()),
        Err(e) => Err(Error::kernel(object(record.id, sort_of(record)), "shut it down", e)),
    }
}
