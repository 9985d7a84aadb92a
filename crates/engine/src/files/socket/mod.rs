//! Sockets: which family an open socket is of, and which room that leads to.
//!
//! What all families have in common is here: the options of `SOL_SOCKET`
//! ([`options`]), filters ([`filter`]), tables of what a number or a string of
//! bytes says ([`settings`]), and what CRIU's records have no place for
//! ([`beside`]). Each family is a kind of open file with a folder of its own:
//! [`inet`] for IPv4 and IPv6, [`unix`] for Unix sockets. One that has none yet is
//! refused by name ([`refusal`]).
//!
//! Everything is asked of our own duplicate of the socket. A checkpoint without
//! sockets asks nothing here.

mod beside;
mod filter;
mod inet;
mod options;
mod settings;
mod unix;

pub use beside::{Beside, Known};
pub use inet::{Connection, Held, Inet, Peers};
pub use settings::Asked;
pub use unix::{Making as UnixMaking, Unix, complete as complete_unix, finish as finish_unix, sort as sort_unix};

use super::OpenFile;
use crate::{Error, Object, Result};
use cryonaut_kernel::sys::socket::{self, so};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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

    /// A new one.
    fn make(self) -> std::result::Result<OwnedFd, Errno> {
        let family = AddressFamily::from_raw(self.family as u16);
        let protocol = rustix::net::RawProtocol::new(self.protocol as u32).map(rustix::net::Protocol::from_raw);
        socket_with(family, SocketType::from_raw(self.kind as u32), SocketFlags::CLOEXEC, protocol)
    }
}

/// Whether an open file is a socket, and not just the name of one.
fn is_socket(file: &OpenFile<'_>) -> bool {
    file.is_socket()
}

/// Why a socket that no kind has recognised is not carried; `None` if it is no
/// socket.
pub fn refusal(file: &OpenFile<'_>) -> Option<Error> {
    let sort = is_socket(file).then(|| Sort::of(file.file).ok())??;
    let what = match sort.family {
        libc::AF_NETLINK => "netlink sockets".to_owned(),
        libc::AF_PACKET => "packet sockets".to_owned(),
        libc::AF_VSOCK => "sockets to a virtual machine's host (vsock)".to_owned(),
        libc::AF_ALG => "sockets of the kernel's ciphers (AF_ALG)".to_owned(),
        libc::AF_XDP => "XDP sockets".to_owned(),
        other => format!("sockets of family {other}"),
    };
    Some(Error::unsupported(file.object(), format!("{what} cannot be carried yet"), CLOSE))
}

/// What a user can do about most of them.
const CLOSE: &str = "let the program close it before the checkpoint";

/// A socket with a namespace of its own belongs to a network that is not ours.
fn refuse_other_network(known: &mut Known, file: &OpenFile<'_>) -> Result<()> {
    let cookie = |socket: BorrowedFd<'_>| {
        let bytes = socket::get_bytes(socket, libc::SOL_SOCKET, so::NETNS_COOKIE, 8)?;
        Ok(u64::from_ne_bytes(bytes.try_into().unwrap_or_default()))
    };
    let failed = |e| Error::kernel(file.object(), "ask for its network namespace", e);
    let own = match known.network {
        Some(own) => own,
        None => {
            let ours =
                Sort::of(file.file).and_then(Sort::make).and_then(|ours| cookie(ours.as_fd())).map_err(failed)?;
            *known.network.insert(ours)
        }
    };
    if cookie(file.file).map_err(failed)? != own {
        let reason = "it belongs to another network namespace than this program's, which cannot be carried yet";
        return Err(Error::unsupported(file.object(), reason, CLOSE));
    }
    Ok(())
}

/// For messages at the restore.
fn object(id: u32, sort: Sort) -> Object {
    Object::File(id, inet::describe(sort))
}

/// A failure to set something.
fn cannot_set(object: Object, what: &str, errno: Errno) -> Error {
    let remedy = if errno == Errno::PERM { "this needs CAP_NET_ADMIN" } else { "" };
    Error::Kernel { object, action: format!("set {what}"), errno, remedy }
}
