//! Who made a connection: the kernel notes it when a pair is made, and when somebody connects or listens, and tells it to
//! the other end (SO_PEERCRED, SO_PEERGROUPS; SO_PEERPIDFD even holds that process). So the same process makes the call
//! again, by its hand and with the ids that it had then. In the place of one that is no more acts a child of ours that has
//! its pid, and ends; where that pid is taken, one with any other, so that at least the user and groups are as they were.

use super::build::failed;
use super::object;
use crate::freeze::pid_of;
use crate::users;
use crate::{Error, Result};
use cryonaut_image::records::UnixSkEntry;
use cryonaut_kernel::sys::acting::{self, Act, Ids};
use cryonaut_kernel::sys::socket;
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Arg, Batch, Call, Hand};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Room for ids of groups at first; a process may have 65,536.
const GROUPS: usize = 64;
const MOST_GROUPS: usize = 1 << 16;
/// An id that setresuid(2) leaves as it is.
const KEEP: u64 = u32::MAX as u64;
/// Capabilities stay when the user changes (SECBIT_NO_SETUID_FIXUP, capabilities(7)).
const NO_SETUID_FIXUP: u64 = 1 << 2;

/// A process at the time of a call: its pid, effective user and group, supplementary groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    pid: i32,
    uid: u32,
    gid: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<u32>,
}

impl Maker {
    /// Whom a socket tells as its peer; of one that listens, who let it. `None` if nobody was noted.
    pub fn of(socket: BorrowedFd<'_>) -> std::result::Result<Option<Maker>, Errno> {
        let words = |option, most: usize| {
            let bytes = socket::get_bytes(socket, libc::SOL_SOCKET, option, 4 * most)?;
            let word = |word: &[u8]| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            Ok(bytes.chunks_exact(4).map(word).collect::<Vec<u32>>())
        };
        let told = words(libc::SO_PEERCRED, 3)?;
        let &[pid, uid, gid] = told.as_slice() else { return Ok(None) };
        if pid == 0 {
            return Ok(None);
        }
        let groups = match words(libc::SO_PEERGROUPS, GROUPS) {
            Err(Errno::RANGE) => words(libc::SO_PEERGROUPS, MOST_GROUPS)?,
            told => told?,
        };
        Ok(Some(Maker::new(pid as i32, uid, gid, groups)))
    }

    /// Who is told otherwise.
    pub fn new(pid: i32, uid: u32, gid: u32, groups: Vec<u32>) -> Maker {
        let ((uid, gid), groups) = (users::inside((uid, gid)), users::groups_inside(groups));
        Maker { pid, uid, gid, groups }
    }

    /// Whether it is the process of this pid.
    pub fn is(&self, pid: i32) -> bool {
        self.pid == pid
    }

    fn ids(&self) -> Ids {
        let (uid, gid) = users::outside((self.uid, self.gid));
        Ids { pid: self.pid, uid, gid, groups: users::groups_outside(self.groups.clone()) }
    }
}

/// Those who can make a call.
#[derive(Debug)]
pub struct Actors<'a> {
    hands: Option<(&'a mut BTreeMap<i32, Hand>, &'a Service)>,
    /// The network namespaces of processes, in which they make sockets.
    networks: BTreeMap<i32, u32>,
}

/// Where to connect to: a `sockaddr_un`, whose name may be relative to a directory.
#[derive(Debug)]
pub struct Target {
    /// The directory.
    pub dir: Option<OwnedFd>,
    /// The address.
    pub address: Vec<u8>,
}

impl Target {
    /// By an abstract name, or one in a directory.
    pub fn new(name: &[u8], dir: Option<OwnedFd>) -> Target {
        Target { dir, address: [&(libc::AF_UNIX as u16).to_ne_bytes(), name].concat() }
    }
}

impl<'a> Actors<'a> {
    /// The processes of the tree, and ourselves.
    pub fn new(hands: &'a mut BTreeMap<i32, Hand>, service: &'a Service, networks: BTreeMap<i32, u32>) -> Actors<'a> {
        Actors { hands: Some((hands, service)), networks }
    }

    /// Ourselves, and those that we make.
    pub fn none() -> Actors<'a> {
        Actors { hands: None, networks: BTreeMap::new() }
    }

    fn hand(&mut self, maker: &Maker) -> Option<(&mut Hand, &'a Service)> {
        let (hands, service) = self.hands.as_mut()?;
        Some((hands.get_mut(&maker.pid)?, service))
    }

    /// Makes a pair, for the socket of a record.
    pub fn pair(&mut self, maker: Option<&Maker>, record: &UnixSkEntry) -> Result<(OwnedFd, OwnedFd)> {
        let failed = || failed(record, "make a pair of sockets");
        let Some(maker) = maker else {
            let kind = SocketType::from_raw(record.r#type);
            return socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).map_err(failed());
        };
        // Who has left the network namespace where it had made the pair does not make it there again.
        let is_there = record.ns_id.is_none_or(|network| self.networks.get(&maker.pid).is_none_or(|is| *is == network));
        let Some((hand, _)) = self.hand(maker).filter(|_| is_there) else {
            return acting::pair(&maker.ids(), record.r#type as i32).map_err(failed());
        };
        let mut b = begin(maker);
        let ends = b.space(8);
        let kind = record.r#type | libc::SOCK_CLOEXEC as u32;
        let made = b.attempt(libc::SYS_socketpair, [libc::AF_UNIX.into(), kind.into(), 0.into(), ends.into()]);
        b.read_back(ends);
        end(&mut b);
        hand.run(&mut b)?;
        b.result(made).map_err(failed())?;
        let numbers = [b.read_u32(ends) as i32, b.read_u32(ends.at(4)) as i32];
        let taken = numbers.map(|number| take(hand.pid(), number));
        let mut b = Batch::new();
        for number in numbers {
            b.call(libc::SYS_close, [number.into()]);
        }
        hand.run(&mut b)?;
        let [one, other] = taken;
        Ok((one.map_err(failed())?, other.map_err(failed())?))
    }

    /// Connects a socket, which does not wait any more then (O_NONBLOCK): where too many have connected already, it would
    /// for ever. The process in whose name that was.
    pub fn connect(
        &mut self,
        maker: Option<&Maker>,
        socket: BorrowedFd<'_>,
        to: &Target,
        record: &UnixSkEntry,
    ) -> Result<i32> {
        let failed = || {
            move |errno| Error::Kernel {
                object: object(record),
                action: "connect it to its name".into(),
                errno,
                remedy: match errno {
                    Errno::AGAIN => "more are to wait than this system lets: raise net.core.somaxconn",
                    _ => "",
                },
            }
        };
        let flags = rustix::fs::fcntl_getfl(socket).map_err(failed())?;
        rustix::fs::fcntl_setfl(socket, flags | OFlags::NONBLOCK).map_err(failed())?;
        let dir = to.dir.as_ref().map(AsFd::as_fd);
        let Some(maker) = maker else {
            let own = rustix::process::getpid().as_raw_nonzero().get();
            return acting::connect(socket, dir, &to.address).map(|()| own).map_err(failed());
        };
        let Some((hand, service)) = self.hand(maker) else {
            return acting::act(&maker.ids(), Act::Connect(socket, dir, &to.address)).map_err(failed());
        };
        let files: Vec<BorrowedFd<'_>> = std::iter::once(socket).chain(dir).collect();
        let numbers = service.give(hand, &files)?;
        let mut b = begin(maker);
        let before = numbers.get(1).map(|dir| {
            let dot = b.cstr(".");
            let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
            let before = b.call(libc::SYS_openat, [libc::AT_FDCWD.into(), dot.into(), flags.into(), 0.into()]);
            b.call(libc::SYS_fchdir, [(*dir).into()]);
            before
        });
        let address = b.bytes(&to.address);
        let made = b.attempt(libc::SYS_connect, [numbers[0].into(), address.into(), to.address.len().into()]);
        if let Some(before) = before {
            b.call(libc::SYS_fchdir, [Arg::Result(before)]);
            b.call(libc::SYS_close, [Arg::Result(before)]);
        }
        finish(hand, b, made, &numbers)?.map_err(failed())?;
        Ok(hand.pid())
    }

    /// Lets a socket listen.
    pub fn listen(
        &mut self,
        maker: Option<&Maker>,
        socket: BorrowedFd<'_>,
        backlog: i32,
        record: &UnixSkEntry,
    ) -> Result<()> {
        let failed = || failed(record, "let it listen");
        let Some(maker) = maker else { return rustix::net::listen(socket, backlog).map_err(failed()) };
        let Some((hand, service)) = self.hand(maker) else {
            return acting::act(&maker.ids(), Act::Listen(socket, backlog)).map(drop).map_err(failed());
        };
        let numbers = service.give(hand, &[socket])?;
        let mut b = begin(maker);
        let made = b.attempt(libc::SYS_listen, [numbers[0].into(), backlog.into()]);
        finish(hand, b, made, &numbers)?.map(drop).map_err(failed())
    }
}

/// A batch that begins by taking on the ids. What the process will be is set later, and all of it.
fn begin(maker: &Maker) -> Batch {
    let mut b = Batch::new();
    secure(&mut b, NO_SETUID_FIXUP);
    let groups: Vec<u8> = maker.groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
    let list = b.bytes(&groups);
    b.call(libc::SYS_setgroups, [maker.groups.len().into(), list.into()]);
    b.call(libc::SYS_setresgid, [KEEP.into(), maker.gid.into(), KEEP.into()]);
    b.call(libc::SYS_setresuid, [KEEP.into(), maker.uid.into(), KEEP.into()]);
    b
}

/// And ends by taking on ours again.
fn end(b: &mut Batch) {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    b.call(libc::SYS_setresuid, [KEEP.into(), uid.into(), KEEP.into()]);
    b.call(libc::SYS_setresgid, [KEEP.into(), gid.into(), KEEP.into()]);
    secure(b, 0);
}

fn secure(b: &mut Batch, bits: u64) {
    b.call(libc::SYS_prctl, [libc::PR_SET_SECUREBITS.into(), bits.into(), 0.into(), 0.into(), 0.into()]);
}

/// Runs a batch to its end, which closes what the process was given; what became of one of its calls.
fn finish(hand: &mut Hand, mut b: Batch, made: Call, numbers: &[i32]) -> Result<std::result::Result<u64, Errno>> {
    end(&mut b);
    for number in numbers {
        b.call(libc::SYS_close, [(*number).into()]);
    }
    hand.run(&mut b)?;
    Ok(b.result(made))
}

fn take(pid: i32, number: i32) -> std::result::Result<OwnedFd, Errno> {
    let process: Pid = pid_of(pid).map_err(|_| Errno::SRCH)?;
    pidfd_getfd(pidfd_open(process, PidfdFlags::empty())?, number, PidfdGetfdFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SocketAddrUnix, bind, listen, socket_with};

    #[test]
    fn who_finds_no_room_is_told_so() {
        let make = || socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let (listener, first, second) = (make(), make(), make());
        let name = format!("cryonaut-no-room-{}", std::process::id()).into_bytes();
        bind(&listener, &SocketAddrUnix::new_abstract_name(&name).unwrap()).unwrap();
        listen(&listener, 0).unwrap();
        let to = Target::new(&[b"\0", name.as_slice()].concat(), None);
        let record = UnixSkEntry::default();
        let connect = |socket: &OwnedFd| Actors::none().connect(None, socket.as_fd(), &to, &record);
        connect(&first).unwrap();
        assert_eq!(connect(&second).unwrap_err().errno(), Some(Errno::AGAIN));
    }
}
