//! What a socket tells: its addresses, whether it is ready, and every option that there is, asked for by number. The
//! engine has tables of options; here all numbers are tried, so that what the tables lack is found.

use std::os::fd::BorrowedFd;

use cryonaut_kernel::sys::socket::{get_bytes, get_filter, get_int, unsent};
use cryonaut_kernel::sys::{netlink, packet, unix_diag, unix_name};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_SOCKET};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;

use super::{Object, Taking};

/// Levels, their highest numbers (those of the headers of Linux 6.18 and some more), and what is not asked for.
const LEVELS: &[(&str, i32, i32, &[i32])] = &[
    // SO_ERROR takes the error away; a filter is asked for apart; a pidfd of the peer is a new one;
    // NAPI's number, the memory in use, both cookies and the processor that served it last are of the moment.
    ("SOL_SOCKET", SOL_SOCKET, 90, &[4, 26, 31, 49, 55, 56, 57, 71, 77]),
    // IP_MTU is that of a route.
    ("IPPROTO_IP", IPPROTO_IP, 60, &[9, 14]),
    // IPV6_2292PKTOPTIONS and IPV6_PATHMTU hold the last packet's.
    ("IPPROTO_IPV6", IPPROTO_IPV6, 80, &[6, 9, 24, 61]),
    ("IPPROTO_TCP", IPPROTO_TCP, 50, &[TCP_INFO, 12, 19, 20, 21, 22, 24, 26, 28, 29, 35]),
    ("IPPROTO_UDP", IPPROTO_UDP, 110, &[]),
    ("SOL_RAW", 255, 3, &[]),
    ("IPPROTO_ICMPV6", 58, 3, &[]),
    ("SOL_NETLINK", libc::SOL_NETLINK, 20, &[]),
    // PACKET_STATISTICS begins anew when it is read, PACKET_HDRLEN has a question, PACKET_ROLLOVER_STATS counts.
    ("SOL_PACKET", libc::SOL_PACKET, 30, &[6, 11, 21]),
];
/// Told by sock_diag as well, each member apart.
const TCP_INFO: i32 = 11;

/// Level and option of multicast: nobody can set them for a stream, and those of an accepted one are chance.
const MULTICAST: &[(i32, i32)] = &[(IPPROTO_IP, 33), (IPPROTO_IPV6, 17), (IPPROTO_IPV6, 18)];

pub(super) fn take(taking: &mut Taking, object: &Object, socket: BorrowedFd<'_>) {
    let stream = get_int(socket, SOL_SOCKET, libc::SO_TYPE) == Ok(libc::SOCK_STREAM);
    for (name, level, highest, left_out) in LEVELS {
        let not_of_streams = |option: i32| stream && MULTICAST.contains(&(*level, option));
        for option in (1..=*highest).filter(|option| !left_out.contains(option) && !not_of_streams(*option)) {
            let value = match get_bytes(socket, *level, option, 64) {
                Err(Errno::NOPROTOOPT | Errno::OPNOTSUPP) => continue,
                value => value.map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
            };
            taking.put_result(object, format!("socket.{name}.{option}"), value);
        }
    }
    let filter = get_filter(socket);
    let filter = filter.map(|all| all.iter().map(|i| format!("{:x}/{}/{}/{:x} ", i.code, i.jt, i.jf, i.k)).collect());
    taking.put_result::<String>(object, "socket.filter", filter);
    let name = |address: Result<rustix::net::SocketAddrAny, Errno>| match address {
        Ok(address) => std::net::SocketAddr::try_from(address).map(|address| address.to_string()),
        Err(errno) => Err(errno),
    };
    let internet = matches!(get_int(socket, SOL_SOCKET, libc::SO_DOMAIN), Ok(libc::AF_INET | libc::AF_INET6));
    if internet {
        taking.put_result(object, "socket.address", name(rustix::net::getsockname(socket)));
        let peer = rustix::net::getpeername(socket).and_then(|peer| peer.ok_or(Errno::NOTCONN));
        taking.put_result(object, "socket.peer", name(peer));
        super::inet::take(taking, object, socket);
    }
    if get_int(socket, SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_UNIX) {
        taking.put(object, "socket.unix", unix(socket));
    }
    if get_int(socket, SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_NETLINK) {
        taking.put(object, "socket.netlink", of_netlink(socket));
    }
    if get_int(socket, SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_PACKET) {
        taking.put(object, "socket.packet", of_packet(socket));
    }
    taking.put_result(object, "socket.unread", rustix::io::ioctl_fionread(socket));
    taking.put_result(object, "socket.unsent", unsent(socket));
    let all = PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP | PollFlags::PRI;
    let mut asked = [PollFd::from_borrowed_fd(socket, all)];
    let polled = poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    taking.put_result(object, "socket.ready", polled.map(|_| format!("{:?}", asked[0].revents())));
}

/// Port, peer, and what sock_diag tells.
fn of_netlink(socket: BorrowedFd<'_>) -> String {
    let name = |address: Result<rustix::net::SocketAddrAny, Errno>| {
        address.and_then(SocketAddrNetlink::try_from).map(|name| (name.pid(), name.groups()))
    };
    let own = name(rustix::net::getsockname(socket));
    let peer = name(rustix::net::getpeername(socket).and_then(|peer| peer.ok_or(Errno::NOTCONN)));
    let inode = rustix::fs::fstat(socket).map_or(0, |stat| stat.st_ino as u32);
    let told = netlink::all().unwrap_or_default().into_iter().find(|told| told.inode == inode);
    format!("{own:?} to {peer:?}, {:?}", told.map(|told| (told.state, told.answering)))
}

/// Its binding, and what sock_diag tells.
fn of_packet(socket: BorrowedFd<'_>) -> String {
    let inode = rustix::fs::fstat(socket).map_or(0, |stat| stat.st_ino as u32);
    let told = packet::all().unwrap_or_default().into_iter().find(|told| told.inode == inode);
    format!("{:?}, {:?}", packet::address(socket), told.map(|told| packet::PacketSocket { inode: 0, ..told }))
}

/// What sock_diag tells of a Unix socket, with the names of both ends.
fn unix(socket: BorrowedFd<'_>) -> String {
    let shown = |name: &[u8]| String::from_utf8_lossy(name).replace('\0', "@");
    let inode = rustix::fs::fstat(socket).map_or(0, |stat| stat.st_ino as u32);
    let all = unix_diag::all().unwrap_or_default();
    let find = |inode: u32| all.iter().find(|told| told.inode == inode);
    let Some(told) = find(inode) else { return "not told".into() };
    let peer = match told.peer {
        None => "none".to_owned(),
        Some(peer) => find(peer).map_or("gone".to_owned(), |peer| {
            let mutual = if peer.peer == Some(inode) { "mutual" } else { "one-way" };
            format!("{mutual} {:?}", shown(&peer.name))
        }),
    };
    let file = unix_name::file_of(socket).and_then(rustix::fs::fstat);
    // An accepted one names the file of who had listened; whether that is there still is not its own affair.
    let accepted = told.state == 1 && i32::from(told.kind) != libc::SOCK_DGRAM;
    let links = |stat: &rustix::fs::Stat| if accepted { 0 } else { stat.st_nlink };
    let file = file.map(|stat| format!("{:o} {}:{} {}", stat.st_mode, stat.st_uid, stat.st_gid, links(&stat)));
    let (listens, lens) = (told.state == 10, (told.received, told.sent));
    // Who waits to be accepted, first come first.
    let waits = |client: &u32| find(*client).map_or("gone".to_owned(), |client| shown(&client.name));
    let waiting: Vec<String> = told.waiting.iter().map(waits).collect();
    let lens = if listens { format!("{lens:?} {waiting:?}") } else { String::new() };
    format!("{} {:?} {file:?}, peer {peer}, shut {}, {lens}", told.state, shown(&told.name), told.shutdown)
}
