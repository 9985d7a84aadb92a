//! Netlink sockets (netlink(7)): `netlink_sk_entry` in files.img.
//!
//! The kernel behind them keeps no state of its own for most of them: port,
//! groups and options make the socket. Where it does ([`bonds`]), and where it
//! has said something that was not read, nobody can say it again in the
//! kernel's name, and the socket is refused.
//!
//! Groups are joined last, when everything is there: from then on the kernel
//! speaks of what happens.

mod bonds;

use super::beside::Extra;
use super::inet::{build_inode, mode_of, owner_of, ready, refuse_error};
use super::settings::{self, Setting, When};
use super::{Sort, cannot_set, filter, object, options};
use crate::files::{Build, Collect, FileKind, OpenFile, Settle, apply_status_flags};
use crate::{Error, Result};
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, NetlinkSkEntry};
use cryonaut_kernel::sys::netlink::{self, NetlinkSocket};
use cryonaut_kernel::sys::socket;
use libc::SOL_NETLINK;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, recvfrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Netlink sockets.
#[derive(Debug)]
pub struct Netlink;

/// States of the record, which are the kernel's (`sk_state`).
mod state {
    pub const CONNECTED: u32 = 1;
    /// That of a new one (TCP_CLOSE).
    pub const NEW: u32 = 7;
}

/// Numbers that libc lacks on this target (linux/netlink.h).
const ADD_MEMBERSHIP: i32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;
/// More bytes of groups than any protocol has.
const MOST: usize = 4096;

/// The options of such a socket.
const TABLES: &[&[Setting]] = &[settings::SOCKET, settings::NETLINK];

impl FileKind for Netlink {
    fn name(&self) -> &'static str {
        "a netlink socket"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Netlinksk
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        super::is_socket(file) && file.asked.sort(file.file).is_ok_and(|sort| sort.family == libc::AF_NETLINK)
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let failed = |what: &'static str| move |e| Error::kernel(file.object(), what, e);
        let sort = file.asked.sort(file.file).map_err(failed("ask what it is"))?;
        refuse_error(file)?;
        let told = told(&mut cx.sockets.here.netlink, file)?;
        refuse_unread(file, told)?;
        let own = rustix::net::getsockname(file.file).and_then(SocketAddrNetlink::try_from);
        let peer = rustix::net::getpeername(file.file).and_then(|peer| peer.ok_or(Errno::NOTCONN)?.try_into());
        let own: SocketAddrNetlink = own.map_err(failed("ask for its port"))?;
        let peer: SocketAddrNetlink = peer.map_err(failed("ask whom it is connected to"))?;
        let mut record = NetlinkSkEntry {
            id,
            ino: file.stat.st_ino as u32,
            protocol: sort.protocol as u32,
            state: told.map_or(state::NEW, |told| told.state.into()),
            flags: file.flags(),
            portid: own.pid(),
            groups: groups(file.file).map_err(failed("ask for its groups"))?,
            dst_portid: peer.pid(),
            dst_group: group_of(peer.groups()),
            fown: file.owner()?,
            opts: options::collect(file)?,
            ..NetlinkSkEntry::default()
        };
        bonds::refuse(file, &record)?;
        record.opts.so_filter = filter::collect(file.file, &file.object())?;
        let mut extra = Extra { owner: owner_of(file), mode: mode_of(file), ..Extra::default() };
        extra.kind = Some(sort.kind).filter(|kind| *kind != libc::SOCK_RAW);
        settings::collect(&mut cx.sockets, file, sort, TABLES, &mut extra);
        cx.sockets.note(id, extra);
        Ok(FileEntry { r#type: FdTypes::Netlinksk as i32, id, nlsk: Some(record), ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let record = entry.nlsk.as_ref().ok_or_else(|| Build::lacks(entry, self.name()))?;
        let extra = cx.sockets()?.of(entry.id);
        settings::check_names(TABLES, &extra)?;
        let sort = sort_of(record, &extra);
        let what = || object(entry.id, sort);
        let file = sort.make().map_err(|errno| Error::Kernel {
            object: what(),
            action: format!("make a netlink socket of protocol {}", record.protocol),
            errno,
            remedy: if errno == Errno::PROTONOSUPPORT { "this kernel lacks what it speaks to" } else { "" },
        })?;
        let socket = file.as_fd();
        build_inode(socket, &extra).map_err(|e| Error::kernel(what(), "give it its owner", e))?;
        settings::build(socket, TABLES, &extra, When::Early, what)?;
        options::build(socket, &record.opts, what)?;
        record.opts.reuseaddr.map_or(Ok(()), |wanted| options::set_reuseaddr(socket, wanted, what))?;
        filter::build(socket, &record.opts.so_filter, what)?;
        build_address(socket, record, sort)?;
        settings::build(socket, TABLES, &extra, When::Late, what)?;
        apply_status_flags(socket, entry.id, record.flags)?;
        Ok(file)
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.nlsk.as_ref().map(|record| &record.fown)
    }

    fn settle(&self, _cx: &mut Settle<'_>, entry: &FileEntry, file: BorrowedFd<'_>) -> Result<()> {
        let Some(record) = &entry.nlsk else { return Ok(()) };
        for group in members(&record.groups) {
            socket::set_int(file, SOL_NETLINK, ADD_MEMBERSHIP, group as i32).map_err(|errno| Error::Kernel {
                object: object(entry.id, sort_of(record, &Extra::default())),
                action: format!("join the group {group}"),
                errno,
                remedy: match errno {
                    Errno::NOENT | Errno::INVAL => "this kernel has no such group: load the module that it belongs to",
                    Errno::PERM => "this needs CAP_NET_ADMIN",
                    _ => "",
                },
            })?;
        }
        Ok(())
    }
}

fn sort_of(record: &NetlinkSkEntry, extra: &Extra) -> Sort {
    let kind = extra.kind.unwrap_or(libc::SOCK_RAW);
    Sort { family: libc::AF_NETLINK, kind, protocol: record.protocol as i32 }
}

/// What sock_diag knows of it: nothing if it has neither a port nor a group.
fn told(known: &mut Option<Vec<NetlinkSocket>>, file: &OpenFile<'_>) -> Result<Option<NetlinkSocket>> {
    let all = match known {
        Some(all) => all,
        unasked => unasked.insert(netlink::all().map_err(|errno| Error::Kernel {
            object: file.object(),
            action: "ask sock_diag about netlink sockets".into(),
            errno,
            remedy: "the kernel needs CONFIG_NETLINK_DIAG (module netlink_diag)",
        })?),
    };
    Ok(all.iter().find(|socket| u64::from(socket.inode) == file.stat.st_ino).copied())
}

/// What the kernel has said is gone when it is read, and can be looked at only up to the end of the first message.
fn refuse_unread(file: &OpenFile<'_>, told: Option<NetlinkSocket>) -> Result<()> {
    let has = ready(file.file).contains(PollFlags::IN);
    if !has && !told.is_some_and(|told| told.answering) {
        return Ok(());
    }
    let looked = recvfrom(file.file, &mut [0u8; 64][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    let sender = looked.ok().and_then(|(_, _, from)| SocketAddrNetlink::try_from(from?).ok());
    let reason = match sender.map(|sender| sender.pid()) {
        Some(0) => "the kernel has sent it messages that were not read, and which nobody can send again in its name",
        Some(_) => "it has messages that were not read, of which only the first could be looked at",
        None => "the kernel is in the middle of an answer to it",
    };
    Err(Error::unsupported(file.object(), reason, "let the program read them, or try the checkpoint again"))
}

/// The groups that it has joined: words of bits, the first for the groups from 1 on.
fn groups(socket: BorrowedFd<'_>) -> std::result::Result<Vec<u32>, Errno> {
    let bytes = socket::get_bytes(socket, SOL_NETLINK, LIST_MEMBERSHIPS, MOST)?;
    let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
    let mut words: Vec<u32> = bytes.chunks_exact(4).map(word).collect();
    while words.last() == Some(&0) {
        words.pop();
    }
    Ok(words)
}

/// The numbers of groups.
fn members(words: &[u32]) -> impl Iterator<Item = u32> {
    (0u32..)
        .zip(words)
        .flat_map(|(at, word)| (0..32).filter(move |bit| word >> bit & 1 != 0).map(move |bit| 32 * at + bit + 1))
}

/// The group of a mask of one bit; 0 for none.
fn group_of(mask: u32) -> u32 {
    if mask == 0 { 0 } else { mask.trailing_zeros() + 1 }
}

/// Gives it its port, and connects it if it was.
fn build_address(socket: BorrowedFd<'_>, record: &NetlinkSkEntry, sort: Sort) -> Result<()> {
    let what = || object(record.id, sort);
    if record.portid != 0 {
        rustix::net::bind(socket, &SocketAddrNetlink::new(record.portid, 0)).map_err(|errno| Error::Kernel {
            object: what(),
            action: format!("give it the port {}", record.portid),
            errno,
            remedy: if errno == Errno::ADDRINUSE { "another netlink socket has it: end its program" } else { "" },
        })?;
    }
    if record.state != state::CONNECTED {
        return Ok(());
    }
    let group = record.dst_group.checked_sub(1).map_or(0, |bit| 1u32.checked_shl(bit).unwrap_or(0));
    let peer = SocketAddrNetlink::new(record.dst_portid, group);
    rustix::net::connect(socket, &peer)
        .map_err(|e| cannot_set(what(), &format!("its peer to port {}, group {}", peer.pid(), record.dst_group), e))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;
    use rustix::net::netlink::{KOBJECT_UEVENT, NETFILTER, USERSOCK};
    use rustix::net::{AddressFamily, SendFlags, SocketType, bind, sendto};

    /// Of rtnetlink, whose number is 0, if no other is said.
    fn new(protocol: Option<rustix::net::Protocol>) -> OwnedFd {
        rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, protocol).unwrap()
    }

    fn name(socket: &OwnedFd) -> SocketAddrNetlink {
        rustix::net::getsockname(socket).unwrap().try_into().unwrap()
    }

    #[test]
    fn groups_are_bits_of_words() {
        assert_eq!(members(&[1 << 31 | 1, 0, 2]).collect::<Vec<_>>(), [1, 32, 66]);
        assert_eq!((group_of(0), group_of(1 << 31)), (0, 32));
    }

    #[test]
    fn port_groups_and_peer_come_back() {
        let all = [new(None), new(Some(KOBJECT_UEVENT)), new(None)];
        bind(&all[0], &SocketAddrNetlink::new(0, 1)).unwrap();
        socket::set_int(&all[0], SOL_NETLINK, ADD_MEMBERSHIP, 33).unwrap();
        rustix::net::connect(&all[1], &SocketAddrNetlink::new(4711, 2)).unwrap();
        let names = all.each_ref().map(name);
        let carried = Carried::collect(&[&all[0], &all[1], &all[2]]);
        drop(all);
        let carried = carried.build(RestoreOptions::default());
        carried.settle(&[]);
        assert_eq!([0, 1, 2].map(|n| name(carried.file(n))), names);
        assert_eq!(groups(carried.file(0).as_fd()).unwrap(), [1, 1]);
        let peer = rustix::net::getpeername(carried.file(1)).unwrap().unwrap();
        assert_eq!(SocketAddrNetlink::try_from(peer), Ok(SocketAddrNetlink::new(4711, 2)));
        let states = [0, 1, 2].map(|n| carried.record(n).nlsk.as_ref().unwrap().state);
        assert_eq!(states[1], state::CONNECTED);
        assert!(states[0] != state::CONNECTED && states[2] != state::CONNECTED);
    }

    #[test]
    fn what_was_not_read_is_refused() {
        let (one, other) = (new(Some(USERSOCK)), new(Some(USERSOCK)));
        bind(&one, &SocketAddrNetlink::new(0, 0)).unwrap();
        sendto(&other, b"sixteen bytes...", SendFlags::empty(), &name(&one)).unwrap();
        let error = Carried::try_collect(&[&one]).err().unwrap().to_string();
        assert!(error.contains("not read"), "{error}");
        assert!(Carried::try_collect(&[&other, &new(Some(NETFILTER))]).is_ok());
    }
}
