//! Sockets: which family an open socket is of, and which room that leads to.
//!
//! What all families have in common is here: the options of `SOL_SOCKET`
//! ([`options`]), filters ([`filter`]), tables of what a number or a string of
//! bytes says ([`settings`]), what CRIU's records have no place for ([`beside`]),
//! what is asked ahead ([`asked`]), of many at once ([`alike`]). Each family is a kind of open file with a folder of its own:
//! [`inet`] for IPv4 and IPv6, [`unix`] for Unix sockets, [`netlink`] for what
//! speaks with the kernel, [`packet`] for what sees the frames of network
//! devices. One that has none is refused by name ([`refusal`]).
//!
//! Everything is asked of our own duplicate of the socket. A checkpoint without
//! sockets asks nothing here.

mod alike;
mod asked;
mod beside;
mod filter;
mod inet;
mod netlink;
mod network;
mod options;
pub mod packet;
mod settings;
mod unix;

pub use alike::Alike;
pub use asked::Asked;
pub use beside::{Beside, Known};
pub use inet::{Connection, Held, Inet, Peer, Peers, canonical, get_ready, half_open, look_inside, take_apart};
pub use netlink::Netlink;
pub use network::{Networks, is_record, recorded as recorded_network, tell as tell_network};
pub use packet::Packet;
pub use unix::{
    Actors, Making as UnixMaking, Unix, complete as complete_unix, finish as finish_unix, make_all as make_unix,
    sort as sort_unix,
};

use super::OpenFile;
use crate::{Error, Object};
use cryonaut_kernel::sys::creds;
use cryonaut_kernel::sys::socket::{self, so};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::os::fd::{BorrowedFd, OwnedFd};

/// What a socket is: what it was made with (socket(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sort {
    /// `AF_*`.
    pub family: i32,
    /// `SOCK_*`.
    pub kind: i32,
    /// `IPPROTO_*`, or the family's own.
    pub protocol: i32,
}

impl Sort {
    /// Of a socket.
    fn of(socket: BorrowedFd<'_>) -> std::result::Result<Sort, Errno> {
        let get = |option| socket::get_int(socket, libc::SOL_SOCKET, option);
        Ok(Sort { family: get(libc::SO_DOMAIN)?, kind: get(libc::SO_TYPE)?, protocol: get(libc::SO_PROTOCOL)? })
    }

    /// Whether it is one of TCP over IPv4 or IPv6: raw sockets have the number of their protocol there as well.
    fn is_tcp(self) -> bool {
        matches!(self.family, libc::AF_INET | libc::AF_INET6)
            && (self.kind, self.protocol) == (libc::SOCK_STREAM, libc::IPPROTO_TCP)
    }

    /// A new one.
    fn make(self) -> std::result::Result<OwnedFd, Errno> {
        match self.make_as_we_are() {
            Err(Errno::ACCESS) if self.kind == libc::SOCK_DGRAM => {
                let group = first_for_pings().ok_or(Errno::ACCESS)?;
                creds::with_groups(&[group], || self.make_as_we_are())
            }
            made => made,
        }
    }

    fn make_as_we_are(self) -> std::result::Result<OwnedFd, Errno> {
        let family = AddressFamily::from_raw(self.family as u16);
        let protocol = rustix::net::RawProtocol::new(self.protocol as u32).map(rustix::net::Protocol::from_raw);
        socket_with(family, SocketType::from_raw(self.kind as u32), SocketFlags::CLOEXEC, protocol)
    }
}

/// A group that may send pings in this thread's network namespace. Ours need not be one, if it belongs to a user
/// namespace.
fn first_for_pings() -> Option<u32> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").ok()?;
    let mut ends = range.split_whitespace().map(|end| end.parse::<u32>().ok());
    let (first, last) = (ends.next()??, ends.next()??);
    (first <= last).then_some(first)
}

/// Whether an open file is a socket, and not just the name of one.
fn is_socket(file: &OpenFile<'_>) -> bool {
    file.is_socket()
}

/// Why a socket that no kind has recognised is not carried; `None` if it is no
/// socket.
pub fn refusal(file: &OpenFile<'_>) -> Option<Error> {
    let sort = is_socket(file).then(|| Sort::of(file.file).ok())??;
    let reason = match sort.family {
        libc::AF_VSOCK => {
            "it is a socket to a virtual machine or its host (vsock): the other end is known to another kernel, where \
             nobody can keep it waiting or bring it back"
        }
        libc::AF_ALG => "it is a socket of the kernel's ciphers (AF_ALG): keys and what was begun are never told",
        libc::AF_XDP => "it is an XDP socket: its rings belong to a queue of a network device",
        libc::AF_KEY => "it is a socket of the old key management (PF_KEY), which keeps what it was asked for",
        libc::AF_BLUETOOTH => "it is a Bluetooth socket: the device has a part of its state",
        AF_SMC => "it is a socket of shared memory communication (SMC): the peer has a part of its memory",
        libc::AF_RDS | libc::AF_TIPC => "the protocol's state, which the peers know, is in the kernel alone",
        other => {
            return Some(Error::unsupported(
                file.object(),
                format!("sockets of family {other} cannot be carried"),
                CLOSE,
            ));
        }
    };
    let remedy = "let the program close it before the checkpoint and open it anew afterwards, or do without";
    Some(Error::unsupported(file.object(), reason, remedy))
}

/// `AF_SMC` (linux/socket.h), which libc lacks.
const AF_SMC: i32 = 43;

/// What a user can do about most of them.
const CLOSE: &str = "let the program close it before the checkpoint";

/// The cookie of its network namespace.
fn network_of(socket: BorrowedFd<'_>) -> std::result::Result<u64, Errno> {
    let bytes = socket::get_bytes(socket, libc::SOL_SOCKET, so::NETNS_COOKIE, 8)?;
    Ok(u64::from_ne_bytes(bytes.try_into().unwrap_or_default()))
}

/// For messages at the restore.
fn object(id: u32, sort: Sort) -> Object {
    let what = match sort.family {
        libc::AF_NETLINK => format!("netlink socket of protocol {}", sort.protocol),
        libc::AF_PACKET => "packet socket".to_owned(),
        _ => inet::describe(sort),
    };
    Object::File(id, what)
}

/// A failure to set something.
fn cannot_set(object: Object, what: &str, errno: Errno) -> Error {
    let remedy = if errno == Errno::PERM { "this needs CAP_NET_ADMIN" } else { "" };
    Error::Kernel { object, action: format!("set {what}"), errno, remedy }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;

    #[test]
    fn other_families_are_refused_with_the_reason() {
        for (family, reason) in [(libc::AF_VSOCK, "vsock"), (libc::AF_XDP, "queue of a network device")] {
            for kind in [libc::SOCK_STREAM, libc::SOCK_RAW] {
                // A kernel without the family, or a family without the kind.
                let Ok(socket) = (Sort { family, kind, protocol: 0 }).make() else { continue };
                let error = Carried::try_collect(&[&socket]).err().map(|error| error.to_string()).unwrap_or_default();
                assert!(error.contains(reason), "{error}");
            }
        }
    }
}
