//! Packet sockets (packet(7)): `packet_sock_entry` in files.img.
//!
//! What they are bound to, what they have asked of network devices, options,
//! a fanout of packets among several, and rings ([`ring`]). They see the
//! packets of a moment: those that come while the program is away are not
//! theirs, and what waits in the queue of a socket is lost with those, which
//! is said. What waits in a ring is memory, and is kept.
//!
//! A socket is bound last, when everything is there: no packet comes before.

mod blocks;
mod ring;

pub use ring::{Rings, is_mapping, mapped};

use super::beside::Extra;
use super::inet::{build_inode, mode_of, owner_of, ready, refuse_error};
use super::settings::{self, Setting, When};
use super::{CLOSE, Sort, cannot_set, filter, object, options};
use crate::files::{Build, Collect, FileKind, OpenFile, Settle, apply_status_flags};
use crate::{Error, Result};
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, PacketMclist, PacketSockEntry};
use cryonaut_kernel::sys::packet::{self, Address, PacketSocket, opt};
use cryonaut_kernel::sys::socket;
use libc::SOL_PACKET;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::netdevice::{index_to_name_inlined, name_to_index};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Packet sockets.
#[derive(Debug)]
pub struct Packet;

/// The old kind (packet(7)), which is bound to a device by its name.
const SOCK_PACKET: i32 = 10;
/// PACKET_FANOUT_CBPF and PACKET_FANOUT_EBPF: a program chooses who gets a packet.
const FANOUT_PROGRAMS: [u32; 2] = [6, 7];
/// `fanout` of a record without one.
const NO_FANOUT: u32 = u32::MAX;

/// The options of such a socket.
const TABLES: &[&[Setting]] = &[settings::SOCKET, settings::PACKET];

impl FileKind for Packet {
    fn name(&self) -> &'static str {
        "a packet socket"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Packetsk
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        super::is_socket(file) && file.asked.sort(file.file).is_ok_and(|sort| sort.family == libc::AF_PACKET)
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let failed = |what: &'static str| move |e| Error::kernel(file.object(), what, e);
        let sort = file.asked.sort(file.file).map_err(failed("ask what it is"))?;
        refuse_error(file)?;
        let told = told(&mut cx.sockets.here.packet, file)?;
        let get = |option| socket::get_int(file.file, SOL_PACKET, option);
        let on = |option| get(option).is_ok_and(|value| value != 0);
        let mut record = PacketSockEntry {
            id,
            r#type: sort.kind as u32,
            protocol: u32::from(protocol(file, sort).map_err(failed("ask for its protocol"))?),
            flags: file.flags(),
            ifindex: told.device as u32,
            fown: file.owner()?,
            opts: options::collect(file)?,
            version: told.version,
            reserve: told.reserve,
            aux_data: on(opt::AUXDATA),
            orig_dev: on(opt::ORIGDEV),
            vnet_hdr: on(opt::VNET_HDR),
            loss: told.loss,
            timestamp: told.timestamp,
            copy_thresh: told.copy_threshold,
            mclist: memberships(&told),
            rx_ring: told.receives.as_ref().map(ring::record),
            tx_ring: told.sends.as_ref().map(ring::record),
            ..PacketSockEntry::default()
        };
        if told.fanout {
            record.fanout = Some(get(opt::FANOUT).map_err(failed("ask for its fanout"))? as u32);
        }
        refuse(file, &record)?;
        record.opts.so_filter = filter::collect(file.file, &file.object())?;
        let mut extra = Extra { owner: owner_of(file), mode: mode_of(file), ..Extra::default() };
        for device in record.mclist.iter().map(|member| member.index).chain([record.ifindex]).filter(|n| *n != 0) {
            // One that has gone cannot be named, nor asked of.
            if let Ok(name) = index_to_name_inlined(file.file, device) {
                extra.devices.insert(device, name.to_string());
            }
        }
        extra.rings = ring::collect(cx, file, &told, id)?;
        if extra.rings.is_none() && ready(file.file).contains(PollFlags::IN) {
            tracing::warn!("{}: packets that the program has not read are lost", file.object());
        }
        settings::collect(&mut cx.sockets, file, sort, TABLES, &mut extra);
        cx.sockets.note(id, extra);
        Ok(FileEntry { r#type: FdTypes::Packetsk as i32, id, psk: Some(record), ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let record = entry.psk.as_ref().ok_or_else(|| Build::lacks(entry, self.name()))?;
        let extra = cx.sockets()?.of(entry.id);
        settings::check_names(TABLES, &extra)?;
        let what = || object(entry.id, sort_of(record));
        // One of the old kind never gets another protocol; the others see nothing until they are bound.
        let made = match record.r#type as i32 {
            SOCK_PACKET => Sort { protocol: record.protocol as i32, ..sort_of(record) }.make(),
            _ => sort_of(record).make(),
        };
        let file = made.map_err(|errno| Error::Kernel {
            object: what(),
            action: "make a packet socket".into(),
            errno,
            remedy: if errno == Errno::PERM { "this needs CAP_NET_RAW" } else { "" },
        })?;
        let socket = file.as_fd();
        build_inode(socket, &extra).map_err(|e| Error::kernel(what(), "give it its owner", e))?;
        build_options(socket, record)?;
        settings::build(socket, TABLES, &extra, When::Early, what)?;
        options::build(socket, &record.opts, what)?;
        record.opts.reuseaddr.map_or(Ok(()), |wanted| options::set_reuseaddr(socket, wanted, what))?;
        ring::build(cx, socket, record, extra.rings.as_ref())?;
        // The newest is the first of the list.
        for member in record.mclist.iter().rev() {
            let device = device_here(socket, member.index, &extra, record)?;
            packet::join(socket, device, member.r#type as u16, &member.addr).map_err(|e| {
                let what = format!("its membership of kind {} at network device {device}", member.r#type);
                cannot_set(object(entry.id, sort_of(record)), &what, e)
            })?;
        }
        filter::build(socket, &record.opts.so_filter, what)?;
        settings::build(socket, TABLES, &extra, When::Late, what)?;
        apply_status_flags(socket, entry.id, record.flags)?;
        Ok(file)
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.psk.as_ref().map(|record| &record.fown)
    }

    fn settle(&self, cx: &mut Settle<'_>, entry: &FileEntry, file: BorrowedFd<'_>) -> Result<()> {
        let Some(record) = &entry.psk else { return Ok(()) };
        let extra = super::Beside::read(cx.images)?.of(entry.id);
        bind(file, record, &extra)?;
        // Of a device that is down it tells an error at once, which its program has been told already.
        let failed = |e| Error::kernel(object(entry.id, sort_of(record)), "ask for the error of its binding", e);
        socket::get_int(file, libc::SOL_SOCKET, libc::SO_ERROR).map_err(failed)?;
        match record.fanout {
            None | Some(NO_FANOUT) => Ok(()),
            Some(fanout) => {
                socket::set_int(file, SOL_PACKET, opt::FANOUT, fanout as i32).map_err(|errno| Error::Kernel {
                    object: object(entry.id, sort_of(record)),
                    action: format!("join the fanout {:#x}", fanout & 0xffff),
                    errno,
                    remedy: "its network device must be up, and nobody else have a fanout of that number",
                })
            }
        }
    }
}

fn sort_of(record: &PacketSockEntry) -> Sort {
    Sort { family: libc::AF_PACKET, kind: record.r#type as i32, protocol: 0 }
}

/// What sock_diag knows of it.
fn told(known: &mut Option<Vec<PacketSocket>>, file: &OpenFile<'_>) -> Result<PacketSocket> {
    let all = match known {
        Some(all) => all,
        unasked => unasked.insert(packet::all().map_err(|errno| Error::Kernel {
            object: file.object(),
            action: "ask sock_diag about packet sockets".into(),
            errno,
            remedy: "the kernel needs CONFIG_PACKET_DIAG (module af_packet_diag)",
        })?),
    };
    let found = all.iter().find(|socket| u64::from(socket.inode) == file.stat.st_ino).cloned();
    found.ok_or_else(|| Error::unsupported(file.object(), "sock_diag does not know it", CLOSE))
}

/// In the order of the network. One of the old kind tells it in /proc/net/packet alone.
fn protocol(file: &OpenFile<'_>, sort: Sort) -> std::result::Result<u16, Errno> {
    if sort.kind != SOCK_PACKET {
        return packet::address(file.file).map(|address| address.protocol);
    }
    let text = std::fs::read_to_string("/proc/thread-self/net/packet").map_err(|e| crate::error::errno_of(&e))?;
    text.lines().find_map(|line| protocol_in(line, file.stat.st_ino)).map(u16::to_be).ok_or(Errno::NOENT)
}

/// The protocol in a line about the socket with this inode: address of the socket, references, type, protocol, device,
/// whether it runs, memory, user, inode.
fn protocol_in(line: &str, inode: u64) -> Option<u16> {
    let words: Vec<&str> = line.split_whitespace().collect();
    if words.get(8)?.parse() != Ok(inode) { None } else { u16::from_str_radix(words.get(3)?, 16).ok() }
}

/// One for each time that it has asked.
fn memberships(told: &PacketSocket) -> Vec<PacketMclist> {
    let one = |m: &packet::Membership| PacketMclist { index: m.device, r#type: m.kind.into(), addr: m.address.clone() };
    told.memberships.iter().flat_map(|m| std::iter::repeat_n(one(m), m.count as usize)).collect()
}

fn refuse(file: &OpenFile<'_>, record: &PacketSockEntry) -> Result<()> {
    if record.ifindex == u32::MAX {
        return Err(Error::unsupported(file.object(), "the network device that it was bound to has gone", CLOSE));
    }
    let way = record.fanout.map(|fanout| fanout >> 16 & 0xff);
    if way.is_some_and(|way| FANOUT_PROGRAMS.contains(&way)) {
        // Of a classic one the kernel keeps but its translation (net/packet/af_packet.c, fanout_set_data_cbpf); one of
        // eBPF is tied to maps, which other programs may write to.
        let reason = "a program of BPF chooses which socket of its fanout gets a packet, and nobody tells that program";
        return Err(Error::unsupported(file.object(), reason, "let the program use another kind of fanout"));
    }
    Ok(())
}

/// What is to be set before there are rings.
fn build_options(socket: BorrowedFd<'_>, record: &PacketSockEntry) -> Result<()> {
    for (option, name, wanted) in [
        (opt::VERSION, "PACKET_VERSION", record.version),
        (opt::RESERVE, "PACKET_RESERVE", record.reserve),
        (opt::AUXDATA, "PACKET_AUXDATA", record.aux_data.into()),
        (opt::ORIGDEV, "PACKET_ORIGDEV", record.orig_dev.into()),
        (opt::VNET_HDR, "PACKET_VNET_HDR", record.vnet_hdr.into()),
        (opt::LOSS, "PACKET_LOSS", record.loss.into()),
        (opt::TIMESTAMP, "PACKET_TIMESTAMP", record.timestamp),
        (opt::COPY_THRESH, "PACKET_COPY_THRESH", record.copy_thresh),
    ] {
        if wanted != 0 {
            socket::set_int(socket, SOL_PACKET, option, wanted as i32)
                .map_err(|e| cannot_set(object(record.id, sort_of(record)), name, e))?;
        }
    }
    Ok(())
}

/// The number here of a device, by its name if the image has that.
fn device_here(socket: BorrowedFd<'_>, index: u32, extra: &Extra, record: &PacketSockEntry) -> Result<u32> {
    let Some(name) = extra.devices.get(&index) else { return Ok(index) };
    name_to_index(socket, name).map_err(|errno| Error::Kernel {
        object: object(record.id, sort_of(record)),
        action: format!("find the network device {name}"),
        errno,
        remedy: "make one of that name",
    })
}

/// From here on it sees packets.
fn bind(socket: BorrowedFd<'_>, record: &PacketSockEntry, extra: &Extra) -> Result<()> {
    let device = device_here(socket, record.ifindex, extra, record)?;
    let bound = match record.r#type as i32 {
        SOCK_PACKET if device == 0 => Ok(()),
        SOCK_PACKET => index_to_name_inlined(socket, device)
            .and_then(|name| packet::bind_old(socket, &CString::new(name.to_string()).map_err(|_| Errno::INVAL)?)),
        // One without a protocol has never been bound.
        _ if record.protocol == 0 && device == 0 => Ok(()),
        _ => packet::bind(socket, Address { protocol: record.protocol as u16, device: device as i32 }),
    };
    let what = || object(record.id, sort_of(record));
    bound.map_err(|e| Error::kernel(what(), format!("bind it to network device {device}"), e))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;

    #[test]
    fn a_protocol_is_found_by_inode() {
        let line = "ffff8881 3      10   0003   1     1 0      0      4711";
        assert_eq!((protocol_in(line, 4711), protocol_in(line, 4712)), (Some(3), None));
    }

    #[test]
    fn binding_options_and_memberships_come_back() {
        let sort = Sort { family: libc::AF_PACKET, kind: libc::SOCK_RAW, protocol: 0 };
        let (one, old) = match sort.make() {
            Ok(one) => {
                (one, Sort { kind: SOCK_PACKET, protocol: i32::from(0x88b7_u16.to_be()), ..sort }.make().unwrap())
            }
            // Not root.
            Err(Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        };
        let address = Address { protocol: 0x88b7_u16.to_be(), device: 1 };
        for (option, value) in [(opt::AUXDATA, 1), (opt::RESERVE, 32), (opt::IGNORE_OUTGOING, 1)] {
            socket::set_int(&one, SOL_PACKET, option, value).unwrap();
        }
        packet::join(&one, 1, 0, &[1, 2, 3, 4, 5, 6]).unwrap();
        packet::join(&one, 1, 0, &[1, 2, 3, 4, 5, 6]).unwrap();
        packet::bind(&one, address).unwrap();
        socket::set_int(&one, SOL_PACKET, opt::FANOUT, 2 << 16 | 4711).unwrap();
        packet::bind_old(&old, c"lo").unwrap();
        let tell = |socket: &OwnedFd| {
            let inode = rustix::fs::fstat(socket).unwrap().st_ino as u32;
            let told = packet::all().unwrap().into_iter().find(|told| told.inode == inode).unwrap();
            PacketSocket { inode: 0, ..told }
        };
        let (before, old_before) = (tell(&one), tell(&old));
        let carried = Carried::collect(&[&one, &old]);
        assert_eq!(carried.record(1).psk.as_ref().unwrap().protocol, u32::from(0x88b7_u16.to_be()));
        drop((one, old));
        let carried = carried.build(RestoreOptions::default());
        carried.settle(&[]);
        assert_eq!((tell(carried.file(0)), tell(carried.file(1))), (before, old_before));
        assert_eq!(packet::address(carried.file(0)), Ok(address));
        assert_eq!(socket::get_int(carried.file(0), SOL_PACKET, opt::FANOUT), Ok(2 << 16 | 4711));
        assert_eq!(socket::get_int(carried.file(0), SOL_PACKET, opt::IGNORE_OUTGOING), Ok(1));
    }

    #[test]
    fn a_ring_that_would_be_waited_for_too_long_is_refused() {
        let sort = Sort { family: libc::AF_PACKET, kind: libc::SOCK_RAW, protocol: 0 };
        let Ok(one) = sort.make() else { return };
        let ring = packet::Ring {
            block_size: 4096,
            blocks: 2,
            frame_size: 2048,
            frames: 4,
            retire_ms: 1,
            private: 0,
            features: 0,
        };
        socket::set_int(&one, SOL_PACKET, opt::VERSION, 2).unwrap();
        packet::make_ring(&one, opt::RX_RING, &ring, 2).unwrap();
        // Without the right to look into the kernel.
        let Ok(mut carried) = Carried::try_collect(&[&one]) else { return };
        drop(one);
        for record in carried.records.values_mut().filter_map(|entry| entry.psk.as_mut()) {
            record.rx_ring.as_mut().unwrap().retire_tmo = u32::MAX;
        }
        let refused = carried.try_build(RestoreOptions::default()).map(drop).unwrap_err();
        assert!(matches!(refused, Error::BadImage { .. }), "{refused}");
    }
}
