//! The ioctls of /dev/net/tun (linux/if_tun.h, Documentation/networking/tuntap.rst).

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

use super::check;

const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<i32>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<i32>(b'T', 204);
const TUNSETGROUP: Opcode = opcode::write::<i32>(b'T', 206);
const TUNGETIFF: Opcode = opcode::read::<u32>(b'T', 210);
const TUNGETSNDBUF: Opcode = opcode::read::<i32>(b'T', 211);
const TUNSETSNDBUF: Opcode = opcode::write::<i32>(b'T', 212);
const TUNGETVNETHDRSZ: Opcode = opcode::read::<i32>(b'T', 215);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(b'T', 216);
const TUNSETQUEUE: Opcode = opcode::write::<i32>(b'T', 217);
const TUNSETIFINDEX: Opcode = opcode::write::<u32>(b'T', 218);

/// IFF_TUN, IFF_TAP: of which kind a device is.
pub const KINDS: u32 = 1 | 2;
pub const MULTI_QUEUE: u32 = 0x100;
pub const DETACH_QUEUE: u32 = 0x400;
pub const PERSIST: u32 = 0x800;
pub const NO_PI: u32 = 0x1000;
pub const VNET_HDR: u32 = 0x4000;

/// `struct ifreq` as far as these calls go.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == 40);

impl Request {
    fn new(name: &str, flags: u32) -> Result<Request, Errno> {
        let mut request = Request { name: [0; 16], flags: flags as u16, rest: [0; 22] };
        // With a zero at the end.
        let room = request.name[..15].get_mut(..name.len()).ok_or(Errno::NAMETOOLONG)?;
        room.copy_from_slice(name.as_bytes());
        Ok(request)
    }

    fn call(&mut self, file: impl AsFd, what: Opcode) -> Result<(), Errno> {
        // SAFETY: these ioctls read and write one struct ifreq, which this is, of the same size.
        check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), what.into(), &raw mut *self) }).map(drop)
    }
}

/// The device that a file is attached to: its name, and the flags of both. EBADFD if there is none.
pub fn get_device(file: impl AsFd) -> Result<(String, u32), Errno> {
    let mut request = Request::new("", 0)?;
    request.call(file, TUNGETIFF)?;
    let name = request.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok((String::from_utf8_lossy(name).into_owned(), request.flags.into()))
}

/// Attaches a file to a device of the network namespace in which the file was opened, which is made if it is not there.
pub fn attach(file: impl AsFd, name: &str, flags: u32) -> Result<(), Errno> {
    Request::new(name, flags)?.call(file, TUNSETIFF)
}

/// Detaches the file's queue from its device, for the time being.
pub fn detach_queue(file: impl AsFd) -> Result<(), Errno> {
    Request::new("", DETACH_QUEUE)?.call(file, TUNSETQUEUE)
}

/// The number that a device is to have which is made by this file.
pub fn choose_index(file: impl AsFd, index: u32) -> Result<(), Errno> {
    // SAFETY: TUNSETIFINDEX reads one number.
    unsafe { ioctl(file, Setter::<TUNSETIFINDEX, u32>::new(index)) }
}

/// Length of the header of packets, and how many bytes may wait to be sent.
pub fn get_rooms(file: impl AsFd) -> Result<(i32, i32), Errno> {
    // SAFETY: both write one number.
    let header = unsafe { ioctl(&file, Getter::<TUNGETVNETHDRSZ, i32>::new())? };
    // SAFETY: as above.
    let unsent = unsafe { ioctl(&file, Getter::<TUNGETSNDBUF, i32>::new())? };
    Ok((header, unsent))
}

/// Sets what [`get_rooms`] tells.
pub fn set_rooms(file: impl AsFd, (header, unsent): (i32, i32)) -> Result<(), Errno> {
    // SAFETY: both read one number.
    unsafe { ioctl(&file, Setter::<TUNSETVNETHDRSZ, i32>::new(header))? };
    // SAFETY: as above.
    unsafe { ioctl(&file, Setter::<TUNSETSNDBUF, i32>::new(unsent)) }
}

/// Who may attach to it; -1 for anybody.
pub fn set_owner(file: impl AsFd, user: i32, group: i32) -> Result<(), Errno> {
    for (what, id) in [(TUNSETOWNER, user), (TUNSETGROUP, group)] {
        if id != -1 {
            // SAFETY: these take a number, no pointer.
            check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), what.into(), id as libc::c_ulong) })?;
        }
    }
    Ok(())
}

/// Whether it stays when nobody is attached.
pub fn set_persistent(file: impl AsFd, stays: bool) -> Result<(), Errno> {
    // SAFETY: TUNSETPERSIST takes a number, no pointer.
    check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), TUNSETPERSIST.into(), libc::c_ulong::from(stays)) }).map(drop)
}
