//! Options of `SOL_SOCKET` that CRIU's record has, for the sockets of every
//! family: sizes and locks of the buffers, timeouts, marks. Those that it has
//! not are in the tables of [`super::settings`].
//!
//! A new socket is given what it has not yet, so that no right is needed for
//! what is at its default.

use super::cannot_set;
use crate::files::OpenFile;
use crate::{Error, Object, Result};
use cryonaut_image::records::SkOptsEntry;
use cryonaut_kernel::sys::socket::{self, so};
use libc::SOL_SOCKET;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Longest name of a network device, with its zero (IFNAMSIZ).
const IFNAMSIZ: usize = 16;
/// Buffers whose sizes the program has chosen (SO_BUF_LOCK, linux/socket.h).
const BUF_LOCK: u32 = 3;

/// Reads them. Keepalive's times are TCP's, and filters are [`super::filter`]'s.
pub fn collect(file: &OpenFile<'_>) -> Result<SkOptsEntry> {
    file.asked
        .options()
        .map_or_else(|| read(file.file), Ok)
        .map_err(|e| Error::kernel(file.object(), "read its options", e))
}

/// Asks for them.
pub(super) fn read(socket: BorrowedFd<'_>) -> std::result::Result<SkOptsEntry, Errno> {
    let get = |option| socket::get_int(socket, SOL_SOCKET, option).map(|value| value as u32);
    // Not of every family.
    let may = |option| get(option).map(|value| value != 0).unwrap_or(false);
    let (snd_sec, snd_usec) = timeout(socket, libc::SO_SNDTIMEO)?;
    let (rcv_sec, rcv_usec) = timeout(socket, libc::SO_RCVTIMEO)?;
    let linger = words(&socket::get_bytes(socket, SOL_SOCKET, libc::SO_LINGER, 8)?);
    let mark = get(libc::SO_MARK)?;
    Ok(SkOptsEntry {
        so_sndbuf: get(libc::SO_SNDBUF)?,
        so_rcvbuf: get(libc::SO_RCVBUF)?,
        so_snd_tmo_sec: snd_sec,
        so_snd_tmo_usec: snd_usec,
        so_rcv_tmo_sec: rcv_sec,
        so_rcv_tmo_usec: rcv_usec,
        reuseaddr: Some(get(libc::SO_REUSEADDR)? != 0),
        so_priority: Some(get(libc::SO_PRIORITY)?),
        so_rcvlowat: Some(get(libc::SO_RCVLOWAT)?),
        so_mark: (mark != 0).then_some(mark),
        so_passcred: may(libc::SO_PASSCRED).then_some(true),
        so_passsec: may(libc::SO_PASSSEC).then_some(true),
        so_dontroute: Some(get(libc::SO_DONTROUTE)? != 0),
        so_no_check: Some(may(libc::SO_NO_CHECK)),
        so_bound_dev: device(socket)?,
        so_reuseport: Some(may(libc::SO_REUSEPORT)),
        so_broadcast: Some(get(libc::SO_BROADCAST)? != 0),
        so_keepalive: Some(get(libc::SO_KEEPALIVE)? != 0),
        so_oobinline: Some(get(libc::SO_OOBINLINE)?),
        so_linger: linger.and_then(|[on, seconds]| (on != 0).then_some(seconds)),
        so_buf_lock: Some(get(so::BUF_LOCK)?),
        ..SkOptsEntry::default()
    })
}

fn words(bytes: &[u8]) -> Option<[u32; 2]> {
    let (one, two) = (bytes.first_chunk::<4>()?, bytes.last_chunk::<4>()?);
    Some([u32::from_ne_bytes(*one), u32::from_ne_bytes(*two)])
}

/// Seconds and microseconds; zeros for no limit.
fn timeout(socket: BorrowedFd<'_>, option: i32) -> std::result::Result<(u64, u64), Errno> {
    let bytes = socket::get_bytes(socket, SOL_SOCKET, option, 16)?;
    let (Some(sec), Some(usec)) = (bytes.first_chunk(), bytes.last_chunk()) else { return Err(Errno::INVAL) };
    Ok((u64::from_ne_bytes(*sec), u64::from_ne_bytes(*usec)))
}

/// The network device that it is bound to.
fn device(socket: BorrowedFd<'_>) -> std::result::Result<Option<String>, Errno> {
    let name = match socket::get_bytes(socket, SOL_SOCKET, libc::SO_BINDTODEVICE, IFNAMSIZ) {
        // Families without devices.
        Err(Errno::NOPROTOOPT | Errno::OPNOTSUPP) => return Ok(None),
        name => name?,
    };
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok((!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned()))
}

/// Sets what is to be there before the socket has an address; all but
/// SO_REUSEADDR, with which the caller has plans.
pub fn build(socket: BorrowedFd<'_>, opts: &SkOptsEntry, object: impl Fn() -> Object) -> Result<()> {
    let set =
        |option, name: &str, wanted: u32| set(socket, option, wanted as i32).map_err(|e| cannot_set(object(), name, e));
    let flag =
        |option, name: &str, wanted: Option<bool>| wanted.map_or(Ok(()), |wanted| set(option, name, u32::from(wanted)));
    if let Some(name) = &opts.so_bound_dev {
        socket::set_bytes(socket, SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_bytes()).map_err(|errno| {
            Error::Kernel {
                object: object(),
                action: format!("bind it to the network device {name}"),
                errno,
                remedy: if errno == Errno::NODEV { "there is no such device here: make one" } else { "" },
            }
        })?;
    }
    flag(libc::SO_REUSEPORT, "SO_REUSEPORT", opts.so_reuseport)?;
    flag(libc::SO_PASSCRED, "SO_PASSCRED", opts.so_passcred)?;
    flag(libc::SO_PASSSEC, "SO_PASSSEC", opts.so_passsec)?;
    flag(libc::SO_DONTROUTE, "SO_DONTROUTE", opts.so_dontroute)?;
    flag(libc::SO_NO_CHECK, "SO_NO_CHECK", opts.so_no_check)?;
    flag(libc::SO_BROADCAST, "SO_BROADCAST", opts.so_broadcast)?;
    flag(libc::SO_KEEPALIVE, "SO_KEEPALIVE", opts.so_keepalive)?;
    for (option, name, wanted) in [
        (libc::SO_PRIORITY, "SO_PRIORITY", opts.so_priority),
        // Before the buffers: TCP may make them larger for its sake.
        (libc::SO_RCVLOWAT, "SO_RCVLOWAT", opts.so_rcvlowat),
        (libc::SO_MARK, "SO_MARK", opts.so_mark),
        (libc::SO_OOBINLINE, "SO_OOBINLINE", opts.so_oobinline),
    ] {
        wanted.map_or(Ok(()), |wanted| set(option, name, wanted))?;
    }
    if let Some(seconds) = opts.so_linger {
        let linger = [1u32.to_ne_bytes(), seconds.to_ne_bytes()].concat();
        socket::set_bytes(socket, SOL_SOCKET, libc::SO_LINGER, &linger)
            .map_err(|e| cannot_set(object(), "SO_LINGER", e))?;
    }
    for (option, name, sec, usec) in [
        (libc::SO_SNDTIMEO, "SO_SNDTIMEO", opts.so_snd_tmo_sec, opts.so_snd_tmo_usec),
        (libc::SO_RCVTIMEO, "SO_RCVTIMEO", opts.so_rcv_tmo_sec, opts.so_rcv_tmo_usec),
    ] {
        if (sec, usec) != (0, 0) {
            let limit = [sec.to_ne_bytes(), usec.to_ne_bytes()].concat();
            socket::set_bytes(socket, SOL_SOCKET, option, &limit).map_err(|e| cannot_set(object(), name, e))?;
        }
    }
    buffers(socket, opts, object)
}

/// Sets a number unless it is set already.
fn set(socket: BorrowedFd<'_>, option: i32, wanted: i32) -> std::result::Result<(), Errno> {
    // Options that no socket of the family has are not set, nor missed if they are to be off.
    let same = match socket::get_int(socket, SOL_SOCKET, option) {
        Ok(value) => value == wanted,
        Err(_) => wanted == 0,
    };
    if same { Ok(()) } else { socket::set_int(socket, SOL_SOCKET, option, wanted) }
}

/// Whether SO_REUSEADDR is as wanted, and if not, makes it so.
pub fn set_reuseaddr(socket: BorrowedFd<'_>, wanted: bool, object: impl Fn() -> Object) -> Result<()> {
    set(socket, libc::SO_REUSEADDR, i32::from(wanted)).map_err(|e| cannot_set(object(), "SO_REUSEADDR", e))
}

/// The same of SO_REUSEPORT.
pub fn set_reuseport(socket: BorrowedFd<'_>, wanted: bool, object: impl Fn() -> Object) -> Result<()> {
    set(socket, libc::SO_REUSEPORT, i32::from(wanted)).map_err(|e| cannot_set(object(), "SO_REUSEPORT", e))
}

/// Sizes of the buffers, and whether the program has chosen them.
pub fn buffers(socket: BorrowedFd<'_>, opts: &SkOptsEntry, object: impl Fn() -> Object) -> Result<()> {
    for (option, force, name, wanted) in [
        (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, "SO_SNDBUF", opts.so_sndbuf),
        (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, "SO_RCVBUF", opts.so_rcvbuf),
    ] {
        size(socket, option, force, wanted).map_err(|e| cannot_set(object(), name, e))?;
    }
    // An image that does not say it has set what it has.
    let Some(wanted) = opts.so_buf_lock else { return Ok(()) };
    set(socket, so::BUF_LOCK, (wanted & BUF_LOCK) as i32).map_err(|e| cannot_set(object(), "SO_BUF_LOCK", e))
}

/// The kernel doubles what it is told, and tells what it has made of it. More
/// than the sysctl allows needs a right, and it may have been larger by itself.
fn size(socket: BorrowedFd<'_>, option: i32, force: i32, wanted: u32) -> std::result::Result<(), Errno> {
    let is = || socket::get_int(socket, SOL_SOCKET, option).map(|is| is as u32 & !1 == wanted & !1);
    if is()? {
        return Ok(());
    }
    let half = (wanted / 2) as i32;
    socket::set_int(socket, SOL_SOCKET, option, half)?;
    if is()? { Ok(()) } else { socket::set_int(socket, SOL_SOCKET, force, half) }
}
