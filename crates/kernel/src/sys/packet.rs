//! Packet sockets (packet(7)): what the kernel tells of them (sock_diag(7)), and their addresses and rings.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use super::bpf_iter::{self, Base, Field};
use super::btf::Btf;
use super::check;
use super::sock_diag::{attributes, dump, word};
use super::socket::{get_bytes, set_bytes};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// `struct packet_diag_msg`.
const MESSAGE: usize = 16;
/// Information, memberships, rings, fanout (linux/packet_diag.h, `PACKET_SHOW_*`).
const SHOW: u32 = 0xf;

const INFO: u16 = 0;
const MCLIST: u16 = 1;
const RX_RING: u16 = 2;
const TX_RING: u16 = 3;
const FANOUT: u16 = 4;

/// Bits of `pdi_flags`.
const LOSS: u32 = 1 << 4;
const MEMBERSHIP: usize = 44;
const RING_WORDS: usize = 7;

/// `setsockopt` of `SOL_PACKET` (linux/if_packet.h).
pub mod opt {
    pub const ADD_MEMBERSHIP: i32 = 1;
    pub const RX_RING: i32 = 5;
    pub const STATISTICS: i32 = 6;
    pub const COPY_THRESH: i32 = 7;
    pub const AUXDATA: i32 = 8;
    pub const ORIGDEV: i32 = 9;
    pub const VERSION: i32 = 10;
    pub const RESERVE: i32 = 12;
    pub const TX_RING: i32 = 13;
    pub const LOSS: i32 = 14;
    pub const VNET_HDR: i32 = 15;
    pub const TIMESTAMP: i32 = 17;
    pub const FANOUT: i32 = 18;
    pub const TX_HAS_OFF: i32 = 19;
    pub const QDISC_BYPASS: i32 = 20;
    pub const IGNORE_OUTGOING: i32 = 23;
    pub const VNET_HDR_SZ: i32 = 24;
}

/// A packet socket, as the kernel tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PacketSocket {
    /// Its inode number.
    pub inode: u32,
    /// The number of its network device; 0 for all, -1 if that has gone.
    pub device: i32,
    /// `TPACKET_V1` (0) to `TPACKET_V3`.
    pub version: u32,
    pub reserve: u32,
    pub copy_threshold: u32,
    pub timestamp: u32,
    pub loss: bool,
    pub memberships: Vec<Membership>,
    pub receives: Option<Ring>,
    pub sends: Option<Ring>,
    /// Whether it shares its packets with others.
    pub fanout: bool,
}

/// What a socket has asked of a device (`PACKET_ADD_MEMBERSHIP`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The number of the device.
    pub device: u32,
    /// How often it has asked for the same.
    pub count: u32,
    /// `PACKET_MR_*`.
    pub kind: u16,
    pub address: Vec<u8>,
}

/// A ring (`struct tpacket_req3`, of whose last three those of other versions have nothing).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    pub block_size: u32,
    pub blocks: u32,
    pub frame_size: u32,
    pub frames: u32,
    pub retire_ms: u32,
    pub private: u32,
    pub features: u32,
}

impl Ring {
    /// Bytes of it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.block_size as usize * self.blocks as usize
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All packet sockets of our network namespace. ENOENT where the kernel lacks CONFIG_PACKET_DIAG.
pub fn all() -> Result<Vec<PacketSocket>, Errno> {
    let mut request = vec![libc::AF_PACKET as u8, 0, 0, 0];
    for number in [0, SHOW, u32::MAX, u32::MAX] {
        request.extend_from_slice(&number.to_ne_bytes());
    }
    dump(&request, MESSAGE, socket_of)
}

fn socket_of(body: &[u8]) -> PacketSocket {
    let mut socket = PacketSocket { inode: word(body, 4), ..PacketSocket::default() };
    for (kind, value) in attributes(&body[MESSAGE..]) {
        match (kind, value.len()) {
            (INFO, 24..) => {
                socket.device = word(value, 0) as i32;
                (socket.version, socket.reserve) = (word(value, 4), word(value, 8));
                (socket.copy_threshold, socket.timestamp) = (word(value, 12), word(value, 16));
                socket.loss = word(value, 20) & LOSS != 0;
            }
            (MCLIST, _) => socket.memberships = value.chunks_exact(MEMBERSHIP).map(membership).collect(),
            (RX_RING, 28..) => socket.receives = Some(ring(value)),
            (TX_RING, 28..) => socket.sends = Some(ring(value)),
            (FANOUT, _) => socket.fanout = true,
            _ => {}
        }
    }
    socket
}

fn membership(bytes: &[u8]) -> Membership {
    let len = usize::from(u16::from_ne_bytes([bytes[10], bytes[11]]));
    Membership {
        device: word(bytes, 0),
        count: word(bytes, 4),
        kind: u16::from_ne_bytes([bytes[8], bytes[9]]),
        address: bytes[12..].iter().copied().take(len).collect(),
    }
}

fn ring(value: &[u8]) -> Ring {
    let at = |n: usize| word(value, 4 * n);
    Ring {
        block_size: at(0),
        blocks: at(1),
        frame_size: at(2),
        frames: at(3),
        retire_ms: at(4),
        private: at(5),
        features: at(6),
    }
}

/// Makes a ring (`opt::RX_RING`, `opt::TX_RING`) of a socket whose version is set. EBUSY if it has one; ENOMEM where
/// its blocks are not to be had in one piece each.
pub fn make_ring(socket: impl AsFd, which: i32, ring: &Ring, version: u32) -> Result<(), Errno> {
    const V3: u32 = 2;
    let words =
        [ring.block_size, ring.blocks, ring.frame_size, ring.frames, ring.retire_ms, ring.private, ring.features];
    let words = &words[..if version == V3 { RING_WORDS } else { 4 }];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    set_bytes(socket, libc::SOL_PACKET, which, &bytes)
}

/// Adds a membership, as often as it was.
pub fn join(socket: impl AsFd, device: u32, kind: u16, address: &[u8]) -> Result<(), Errno> {
    // struct packet_mreq, whose address may be longer than its eight bytes.
    let len = u16::try_from(address.len()).map_err(|_| Errno::INVAL)?;
    let mut bytes = [&device.to_ne_bytes()[..], &kind.to_ne_bytes(), &len.to_ne_bytes(), address].concat();
    bytes.resize(bytes.len().max(16), 0);
    set_bytes(socket, libc::SOL_PACKET, opt::ADD_MEMBERSHIP, &bytes)
}

/// What a socket is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Its protocol (`ETH_P_*`) in the order of the network, as it stands in memory.
    pub protocol: u16,
    /// The number of its device; 0 for all.
    pub device: i32,
}

/// Binds a socket.
pub fn bind(socket: impl AsFd, to: Address) -> Result<(), Errno> {
    // SAFETY: a sockaddr_ll of zeros is a valid one.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    (address.sll_protocol, address.sll_ifindex) = (to.protocol, to.device);
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of the address.
    check(unsafe { libc::bind(socket.as_fd().as_raw_fd(), (&raw const address).cast(), size) }).map(drop)
}

/// Binds a socket of the old kind (SOCK_PACKET) to a device by its name. EINVAL for a name of more than 13 bytes.
pub fn bind_old(socket: impl AsFd, device: &CStr) -> Result<(), Errno> {
    const NAME: usize = 14;
    // SAFETY: a sockaddr of zeros is a valid one.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::AF_PACKET as u16;
    if device.count_bytes() >= NAME {
        return Err(Errno::INVAL);
    }
    for (room, byte) in address.sa_data.iter_mut().zip(device.to_bytes()) {
        *room = *byte as libc::c_char;
    }
    let size = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of the address.
    check(unsafe { libc::bind(socket.as_fd().as_raw_fd(), (&raw const address), size) }).map(drop)
}

/// What a socket is bound to; of the old kind (SOCK_PACKET), whose address is a name, nothing of use.
pub fn address(socket: impl AsFd) -> Result<Address, Errno> {
    // SAFETY: a sockaddr_ll of zeros is a valid one.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `size` bytes, which is the room that `address` has.
    check(unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut size) })?;
    Ok(Address { protocol: address.sll_protocol, device: address.sll_ifindex })
}

/// Sends a frame; without bytes, what stands in the ring for sending.
pub fn send_to(socket: impl AsFd, bytes: &[u8], to: Address) -> Result<(), Errno> {
    // SAFETY: a sockaddr_ll of zeros is a valid one.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    (address.sll_protocol, address.sll_ifindex, address.sll_halen) = (to.protocol, to.device, 6);
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let at = bytes.as_ptr().cast();
    // SAFETY: the kernel reads `size` bytes of the address and all of `bytes`.
    check(unsafe { libc::sendto(fd, at, bytes.len(), 0, (&raw const address).cast(), size) }).map(drop)
}

/// At which frames of its rings the kernel goes on, for receiving and for sending, of a descriptor of a task. No call
/// tells; see [`bpf_iter`]. ENOTSUP where the kernel does not describe its structures.
pub fn heads(at: (i32, i32)) -> Result<(u32, u32), Errno> {
    let btf = Btf::running()?;
    let sk = Field { offset: btf.field("socket", "sk").ok_or(Errno::NOTSUP)?, len: 8 };
    let sk = bpf_iter::fields(btf, at, Base::Behind, &[sk])?[2];
    let head = |ring| btf.inner_field("packet_sock", ring, "head").map(|offset| Field { offset, len: 4 });
    let both = [head("rx_ring").ok_or(Errno::NOTSUP)?, head("tx_ring").ok_or(Errno::NOTSUP)?];
    let words = bpf_iter::fields(btf, at, Base::Address(sk), &both)?;
    Ok((words[2] as u32, words[3] as u32))
}

/// Where the kernel stands in a ring of blocks (TPACKET_V3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Which block it fills, or does next.
    pub active: u32,
    /// The number that the block gets which it opens next.
    pub next_number: u64,
    /// It has none open, because the program has not given the next one back.
    pub is_frozen: bool,
    /// Where in the block it goes on: an address of the kernel.
    pub at: u64,
}

/// The same of a ring of blocks for receiving.
pub fn blocks(at: (i32, i32)) -> Result<Blocks, Errno> {
    let btf = Btf::running()?;
    let sk = Field { offset: btf.field("socket", "sk").ok_or(Errno::NOTSUP)?, len: 8 };
    let sk = bpf_iter::fields(btf, at, Base::Behind, &[sk])?[2];
    let queue = btf.inner_field("packet_sock", "rx_ring", "prb_bdqc").ok_or(Errno::NOTSUP)?;
    let field = |name, len| {
        let offset = btf.field("tpacket_kbdq_core", name).ok_or(Errno::NOTSUP)?;
        Ok(Field { offset: queue + offset, len })
    };
    let fields = [
        field("kactive_blk_num", 2)?,
        field("knxt_seq_num", 8)?,
        field("reset_pending_on_curr_blk", 1)?,
        field("nxt_offset", 8)?,
    ];
    let words = bpf_iter::fields(btf, at, Base::Address(sk), &fields)?;
    Ok(Blocks { active: words[2] as u32, next_number: words[3], is_frozen: words[4] != 0, at: words[5] })
}

/// Packets that a socket has got, and that were dropped, since this was last asked.
pub fn statistics(socket: impl AsFd) -> Result<(u32, u32), Errno> {
    let bytes = get_bytes(socket, libc::SOL_PACKET, opt::STATISTICS, 8)?;
    if bytes.len() < 8 { Err(Errno::INVAL) } else { Ok((word(&bytes, 0), word(&bytes, 4))) }
}

/// The rings of a socket in our memory, the one for receiving first.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

impl Mapped {
    /// Maps rings of so many bytes altogether. EINVAL if that is not their size.
    pub fn new(socket: impl AsFd, len: usize) -> Result<Self, Errno> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let start = unsafe { mmap(std::ptr::null_mut(), len, rights, MapFlags::SHARED, socket, 0) }?;
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, len })
    }

    /// A copy of what is there.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // SAFETY: the mapping has `len` bytes and lives as long as `self`; others may write it meanwhile, so it is
        // copied by a pointer and no reference to it exists.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr(), bytes.as_mut_ptr(), self.len) };
        bytes
    }

    /// The same of a part; `None` if it reaches beyond the end.
    #[must_use]
    pub fn read_at(&self, at: usize, len: usize) -> Option<Vec<u8>> {
        at.checked_add(len).filter(|end| *end <= self.len)?;
        let mut bytes = vec![0; len];
        // SAFETY: `at..at + len` is within the mapping, as just checked; it is copied by a pointer as above.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(at), bytes.as_mut_ptr(), len) };
        Some(bytes)
    }

    /// Writes bytes there; what would reach beyond the end is not written. Whether all was.
    pub fn write(&self, at: usize, bytes: &[u8]) -> bool {
        let fits = at.checked_add(bytes.len()).is_some_and(|end| end <= self.len);
        if fits {
            // SAFETY: `at..at + bytes.len()` is within the mapping, as just checked.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(at), bytes.len()) };
        }
        fits
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketType, socket};

    #[test]
    fn a_socket_is_told_with_its_ring_and_memberships() {
        let one = match socket(AddressFamily::PACKET, SocketType::RAW, None) {
            Ok(one) => one,
            // Not root.
            Err(Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        };
        const ALLMULTI: u16 = 2;
        let wanted =
            Ring { block_size: 4096, blocks: 2, frame_size: 1024, frames: 8, retire_ms: 0, private: 0, features: 0 };
        make_ring(&one, opt::RX_RING, &wanted, 0).unwrap();
        join(&one, 1, ALLMULTI, &[]).unwrap();
        bind(&one, Address { protocol: 0x88b5_u16.to_be(), device: 1 }).unwrap();
        let inode = rustix::fs::fstat(&one).unwrap().st_ino as u32;
        let all = match all() {
            Ok(all) => all,
            // A kernel without it.
            Err(Errno::NOENT) => return,
            Err(errno) => panic!("{errno}"),
        };
        let told = all.iter().find(|socket| socket.inode == inode).unwrap();
        assert_eq!((told.device, told.receives, told.sends, told.fanout), (1, Some(wanted), None, false));
        assert_eq!(told.memberships, [Membership { device: 1, count: 1, kind: ALLMULTI, address: vec![] }]);
        assert_eq!(address(&one), Ok(Address { protocol: 0x88b5_u16.to_be(), device: 1 }));
        let mapped = Mapped::new(&one, wanted.len()).unwrap();
        assert!(mapped.write(8190, &[7, 8]) && !mapped.write(8191, &[7, 8]));
        assert_eq!(mapped.read()[8190..], [7, 8]);
        assert_eq!((mapped.read_at(8191, 1), mapped.read_at(8191, 2)), (Some(vec![8]), None));
        match heads((std::process::id() as i32, one.as_raw_fd())) {
            Ok(heads) => assert_eq!(heads, (0, 0)),
            Err(errno) => assert_eq!(errno, Errno::NOTSUP),
        }
    }
}
