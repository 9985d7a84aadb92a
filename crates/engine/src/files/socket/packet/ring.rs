//! Rings of a packet socket (PACKET_RX_RING, PACKET_TX_RING): frames in memory
//! that the kernel and the program share.
//!
//! Both go round it, each by an index of its own. The program's is in its
//! memory; the kernel's begins with zero in a new ring, no call tells it or
//! sets it. So it is read by a program of BPF, and a new ring is brought there
//! with frames that go through the loopback device, under a protocol that
//! nobody listens to. Then it gets the contents of the old one.
//!
//! Rings of version 3 for receiving have blocks: see [`blocks`].

use super::blocks::{self, Stand};
use super::{Address, CLOSE, PacketSocket, object, opt, packet, sort_of};
use crate::files::lines::{self, Lines};
use crate::files::socket::inet::arrives;
use crate::files::{Build, Collect, OpenFile};
use crate::{Error, Object, Result};
use cryonaut_image::records::{PacketRing, PacketSockEntry};
use cryonaut_kernel::proc::maps::Vma;
use cryonaut_kernel::sys::packet::{Mapped, Ring};
use cryonaut_kernel::sys::socket;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// TPACKET_V3.
const V3: u32 = 2;
/// Protocols for local experiments (IEEE 802, also linux/if_ether.h's ETH_P_802_EX1), one for each direction.
const RECEIVED: u16 = 0x88b5;
const SENT: u16 = 0x88b6;
/// One that is reserved (RFC 7042), which no frame has.
const NONE: u16 = 0xffff;
/// The loopback device is the first of every network.
const LOOPBACK: i32 = 1;
/// TP_STATUS_SEND_REQUEST.
const SEND_REQUEST: u32 = 1;
/// Where a frame for sending has its data: behind the header, by version.
const DATA: [usize; 3] = [32, 32, 48];
/// Bytes of a frame that is sent to bring a ring forward; what stands before its data for a machine's sake
/// (PACKET_VNET_HDR) at most.
const FRAME: usize = 60;
const VNET: usize = 12;
/// Bytes of a ring in one file of the image: in hexadecimal not more than a file may have.
const PART: usize = 4 << 20;
/// How often a ring is read until nothing has come meanwhile.
const TRIES: u32 = 200;

/// Where the kernel stands in the rings of a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rings {
    receives_at: u32,
    sends_at: u32,
    /// Files with their contents.
    parts: usize,
    /// Of a ring of blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blocks: Option<Stand>,
}

/// Whether a mapping may be of rings.
pub fn is_mapping(vma: &Vma) -> bool {
    vma.path.as_bytes().starts_with(b"socket:")
}

/// The id of the socket that a mapping is of.
pub fn mapped(cx: &Collect<'_>, object: impl Fn() -> Object, vma: &Vma) -> Result<u32> {
    let no = |reason| Err(Error::unsupported(object(), reason, "unmap it before the checkpoint"));
    let known = |what| cx.notes.get(&(what, vma.inode)).copied();
    match (known("packet-ring"), known("packet-ring-pages")) {
        (Some(id), Some(pages)) if vma.offset == 0 && vma.end - vma.start == u64::from(pages) << 12 => Ok(id),
        (Some(_), _) => no("only a part of the rings of its socket is mapped, which cannot be done again"),
        (None, _) => no("it is of no packet socket that a process of the tree before this one has as a descriptor"),
    }
}

/// A ring as the record has it.
pub fn record(ring: &Ring) -> PacketRing {
    PacketRing {
        block_size: ring.block_size,
        block_nr: ring.blocks,
        frame_size: ring.frame_size,
        frame_nr: ring.frames,
        retire_tmo: ring.retire_ms,
        sizeof_priv: ring.private,
        features: ring.features,
    }
}

fn of_record(ring: &PacketRing) -> Ring {
    Ring {
        block_size: ring.block_size,
        blocks: ring.block_nr,
        frame_size: ring.frame_size,
        frames: ring.frame_nr,
        retire_ms: ring.retire_tmo,
        private: ring.sizeof_priv,
        features: ring.features,
    }
}

fn part_name(id: u32, part: usize) -> String {
    format!("packet-ring-{id}-{part}")
}

/// Writes down the contents of the rings of a socket, if it has any.
pub fn collect(cx: &mut Collect<'_>, file: &OpenFile<'_>, told: &PacketSocket, id: u32) -> Result<Option<Rings>> {
    let len: usize = [told.receives, told.sends].iter().flatten().map(Ring::len).sum();
    if len == 0 {
        return Ok(None);
    }
    let of_blocks = told.receives.filter(|_| told.version == V3);
    of_blocks.as_ref().map_or(Ok(()), |ring| blocks::refuse(file, ring))?;
    let (place, mut bytes) = read(file, len, of_blocks.is_some())?;
    let mut rings = Rings { sends_at: place.heads.1, ..Rings::default() };
    match of_blocks.zip(place.blocks) {
        None => rings.receives_at = place.heads.0,
        Some((ring, stands)) => {
            let stand = blocks::hand_over(&mut bytes, &ring, &stands);
            let strange = || Error::unsupported(file.object(), "its ring is not as the kernel leaves it", CLOSE);
            rings.blocks = Some(stand.ok_or_else(strange)?);
        }
    }
    for part in bytes.chunks(PART) {
        cx.images.write_json(&part_name(id, rings.parts), &lines::of(part))?;
        rings.parts += 1;
    }
    let inode = file.stat.st_ino;
    let pages =
        u32::try_from(len >> 12).map_err(|_| Error::unsupported(file.object(), "its rings are too large", CLOSE))?;
    cx.notes.insert(("packet-ring", inode), id);
    cx.notes.insert(("packet-ring-pages", inode), pages);
    Ok(Some(rings))
}

/// Where the kernel stands in the rings of a socket.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    heads: (u32, u32),
    blocks: Option<packet::Blocks>,
}

/// The network does not stand still: reads until no packet has come meanwhile.
fn read(file: &OpenFile<'_>, len: usize, of_blocks: bool) -> Result<(Place, Vec<u8>)> {
    let at = (file.speaker, file.fd);
    let place = || {
        let heads = packet::heads(at)?;
        Ok(Place { heads, blocks: if of_blocks { Some(packet::blocks(at)?) } else { None } })
    };
    let place = || {
        place().map_err(|errno| Error::Kernel {
            object: file.object(),
            action: "see where the kernel stands in its rings".into(),
            errno,
            remedy: "this needs CAP_BPF and CAP_PERFMON, and a kernel with /sys/kernel/btf/vmlinux (see cryonaut check)",
        })
    };
    let rings = Mapped::new(file.file, len).map_err(|e| Error::kernel(file.object(), "map its rings", e))?;
    let mut before = place()?;
    for _ in 0..TRIES {
        let bytes = rings.read();
        let after = place()?;
        if before == after {
            return Ok((after, bytes));
        }
        before = after;
    }
    Err(Error::unsupported(file.object(), "packets come faster into its ring than it can be read", "try again"))
}

/// Makes the rings of a record, brings them to where they stood and gives them their contents.
pub fn build(cx: &Build<'_>, socket: BorrowedFd<'_>, record: &PacketSockEntry, stood: Option<&Rings>) -> Result<()> {
    let what = || object(record.id, sort_of(record));
    let (receives, sends) = (record.rx_ring.as_ref().map(of_record), record.tx_ring.as_ref().map(of_record));
    for (which, ring) in [(opt::RX_RING, &receives), (opt::TX_RING, &sends)] {
        let Some(ring) = ring else { continue };
        packet::make_ring(socket, which, ring, record.version).map_err(|errno| Error::Kernel {
            object: what(),
            action: format!("make its ring of {} blocks of {} bytes", ring.blocks, ring.block_size),
            errno,
            remedy: if errno == Errno::NOMEM { "there is not so much memory in one piece: try again" } else { "" },
        })?;
    }
    // CRIU does not keep the contents.
    let Some(stood) = stood else { return Ok(()) };
    let bad = |problem| Error::bad_image("cryonaut-sockets.json", problem);
    let fits = |at: u32, ring: &Option<Ring>| at == 0 || ring.is_some_and(|ring| at < ring.frames);
    if !fits(stood.receives_at, &receives) || !fits(stood.sends_at, &sends) {
        return Err(bad("a ring has fewer frames than it says"));
    }
    if stood.blocks.is_some() && !receives.is_some_and(|ring| record.version == V3 && blocks::can_be_brought(&ring)) {
        return Err(bad("a ring of blocks is none that was ever written down"));
    }
    let [received, sent] = [receives, sends].map(|ring| ring.as_ref().map_or(0, Ring::len));
    let rings = Mapped::new(socket, received + sent).map_err(|e| Error::kernel(what(), "map its rings", e))?;
    let forward = || {
        let mut open = None;
        if let Some((ring, stand)) = receives.as_ref().zip(stood.blocks.as_ref()) {
            open = blocks::bring(socket, &rings, ring, stand, record.reserve)?;
        } else if stood.receives_at > 0 {
            receive(socket, stood.receives_at)?;
        }
        if let Some(ring) = sends.filter(|_| stood.sends_at > 0) {
            send(socket, &rings, received, &ring, stood.sends_at, record.version)?;
        }
        Ok(open)
    };
    let open = forward().map_err(|errno| Error::Kernel {
        object: what(),
        action: "bring its rings to where they stood, by frames over the loopback device".into(),
        errno,
        remedy: if errno == Errno::NETDOWN { "let that be up: ip link set lo up" } else { "" },
    })?;
    fill(cx, &rings, record, received + sent, stood.parts)?;
    // The kernel goes on with what it has begun.
    if open.is_some_and(|open| !open.write(&rings)) {
        return Err(bad("a ring has fewer blocks than it says"));
    }
    Ok(())
}

fn fill(cx: &Build<'_>, rings: &Mapped, record: &PacketSockEntry, len: usize, parts: usize) -> Result<()> {
    for part in 0..parts {
        let name = part_name(record.id, part);
        let bad = || Error::bad_image(format!("cryonaut-{name}.json"), "its contents do not fit the ring");
        let at = part * PART;
        let lines: Lines = cx.images.read_json(&name)?.ok_or_else(bad)?;
        let bytes = lines::bytes_of(&lines, len.checked_sub(at).ok_or_else(bad)?.min(PART)).ok_or_else(bad)?;
        if !rings.write(at, &bytes) {
            return Err(bad());
        }
    }
    Ok(())
}

/// What sends frames to a socket that is brought forward. Each begins with the number of that socket, by which those for
/// others, in this restore or in another, are kept away.
#[derive(Debug)]
pub struct Feeder<'s> {
    socket: BorrowedFd<'s>,
    sender: OwnedFd,
    number: [u8; 8],
}

impl<'s> Feeder<'s> {
    /// Lets the socket receive them.
    pub fn new(socket: BorrowedFd<'s>) -> std::result::Result<Self, Errno> {
        let sender = socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let number = rustix::net::sockopt::socket_cookie(socket)?;
        let insn = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
        let load = |offset| insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (libc::SKF_NET_OFF + offset) as u32, 0);
        let is = |word: u64, jf| insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, word as u32, jf);
        let end = |bytes| insn(libc::BPF_RET | libc::BPF_K, bytes, 0);
        let filter = [load(0), is(number >> 32, 3), load(4), is(number, 1), end(u32::MAX), end(0)];
        socket::attach_filter(socket, &filter)?;
        packet::bind(socket, Address { protocol: RECEIVED.to_be(), device: LOOPBACK })?;
        Ok(Self { socket, sender, number: number.to_be_bytes() })
    }

    /// Sends it one of so many bytes, eight at least.
    pub fn send(&self, len: usize) -> std::result::Result<(), Errno> {
        let mut frame = self.number.to_vec();
        frame.resize(len, 0);
        packet::send_to(&self.sender, &frame, Address { protocol: RECEIVED.to_be(), device: LOOPBACK })
    }

    /// What others of the image are sent is not for this one.
    pub fn end(self) -> std::result::Result<(), Errno> {
        packet::bind(self.socket, Address { protocol: NONE.to_be(), device: LOOPBACK })?;
        socket::set_int(self.socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
    }
}

/// Lets it receive so many frames.
fn receive(socket: BorrowedFd<'_>, count: u32) -> std::result::Result<(), Errno> {
    let feeder = Feeder::new(socket)?;
    let mut got = 0;
    for sent in 1..=count {
        feeder.send(FRAME)?;
        // The device's queue is not to overflow.
        if sent % 64 == 0 || sent == count {
            let dropped = std::cell::Cell::new(0);
            let total = std::cell::Cell::new(got);
            let all = arrives(|| {
                if let Ok((packets, drops)) = packet::statistics(socket) {
                    total.set(total.get() + packets);
                    dropped.set(dropped.get() + drops);
                }
                total.get() >= sent
            });
            if !all || dropped.get() > 0 {
                return Err(Errno::NOBUFS);
            }
            got = total.get();
        }
    }
    feeder.end()
}

/// Lets it send so many frames.
fn send(
    socket: BorrowedFd<'_>,
    rings: &Mapped,
    start: usize,
    ring: &Ring,
    count: u32,
    version: u32,
) -> std::result::Result<(), Errno> {
    let data = DATA[(version as usize).min(2)];
    let per_block = (ring.block_size / ring.frame_size) as usize;
    for at in 0..count as usize {
        let frame = start + at / per_block * ring.block_size as usize + at % per_block * ring.frame_size as usize;
        // Behind a header for machines there may be two bytes more than it has; protocols stand behind two addresses.
        let mut bytes = vec![0; data + VNET + FRAME];
        for header in [0, 10, VNET] {
            bytes[data + header + 12..][..2].copy_from_slice(&SENT.to_be_bytes());
        }
        let len = ((VNET + FRAME) as u32).to_ne_bytes();
        match version {
            0 => {
                bytes[..8].copy_from_slice(&u64::from(SEND_REQUEST).to_ne_bytes());
                bytes[8..12].copy_from_slice(&len);
            }
            1 => {
                bytes[..4].copy_from_slice(&SEND_REQUEST.to_ne_bytes());
                bytes[4..8].copy_from_slice(&len);
            }
            _ => {
                bytes[16..20].copy_from_slice(&len);
                bytes[20..24].copy_from_slice(&SEND_REQUEST.to_ne_bytes());
            }
        }
        // tp_mac and tp_net, of which PACKET_TX_HAS_OFF asks for one.
        let offsets = [16, 12, 24][(version as usize).min(2)];
        for half in [offsets, offsets + 2] {
            bytes[half..half + 2].copy_from_slice(&(data as u16).to_ne_bytes());
        }
        if bytes.len() > ring.frame_size as usize || !rings.write(frame, &bytes) {
            return Err(Errno::MSGSIZE);
        }
    }
    packet::send_to(socket.as_fd(), &[], Address { protocol: SENT.to_be(), device: LOOPBACK })
}
