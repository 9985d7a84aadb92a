//! What was written to one end of a pty and not yet read from the other.
//!
//! The kernel lets nobody look at it without taking it out. So it is taken out
//! and put back at once, and only where the workload is to end after the
//! checkpoint anyway: a checkpointer that dies between the two would lose it.

use super::super::{Collect, OpenFile};
use super::info::{self, Device};
use crate::options::Afterwards;
use crate::{Error, Object, Result};
use cryonaut_image::records::{TtyDataEntry, TtyInfoEntry};
use cryonaut_image::{ImageDir, ImageKind};
use cryonaut_kernel::sys::tty;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes that the line discipline holds for readers (N_TTY_BUF_SIZE less one
/// in the kernel's drivers/tty/n_tty.c). When it is full, more may stand behind.
const FULL: usize = 4095;

/// Writes down what waits to be read from this end.
pub(super) fn collect(cx: &Collect<'_>, file: &OpenFile<'_>, info: &TtyInfoEntry, device: Device) -> Result<()> {
    let failed = |e| Error::kernel(file.object(), "copy what waits to be read", e);
    let waiting = rustix::io::ioctl_fionread(file.file).map_err(failed)? as usize;
    if waiting == 0 {
        return Ok(());
    }
    let why_not = if device != Device::Master {
        Some("typed input cannot be read without loss")
    } else if cx.options.afterwards != Afterwards::Kill {
        Some("it cannot be read safely from a workload that goes on")
    } else if waiting >= FULL {
        Some("it is more than can be put back")
    } else {
        None
    };
    if let Some(why) = why_not {
        tracing::warn!("{}: {waiting} bytes that wait to be read are not carried: {why}", file.object());
        return Ok(());
    }
    match take_and_put_back(file.file, waiting, info.packet_mode).map_err(failed)? {
        Some(data) => Ok(cx.images.append(ImageKind::TtyData, None, &TtyDataEntry { tty_id: info.id, data }, None)?),
        None => {
            tracing::warn!("{}: {waiting} bytes that wait to be read are not carried: a packet is on its way", file.object());
            Ok(())
        }
    }
}

/// Reads a master empty and pushes all of it back. A master has no line
/// editing, so that TIOCSTI puts back bytes as they were.
fn take_and_put_back(master: BorrowedFd<'_>, waiting: usize, packets: bool) -> std::result::Result<Option<Vec<u8>>, Errno> {
    let ready = |flags: PollFlags| {
        let mut polled = [PollFd::from_borrowed_fd(master, flags)];
        poll(&mut polled, Some(&Timespec::default())).map(|_| polled[0].revents().intersects(flags))
    };
    // A status packet would be read first, and cannot be put back.
    if packets && ready(PollFlags::PRI)? {
        return Ok(None);
    }
    // In packet mode each read begins with a byte that says "data" (TIOCPKT, ioctl_tty(2)).
    let head = usize::from(packets);
    let mut data = Vec::with_capacity(waiting);
    let mut room = vec![0; FULL + 1];
    let mut trouble = None;
    while data.len() < waiting {
        match ready(PollFlags::IN).and_then(|ready| if ready { rustix::io::read(master, &mut room) } else { Ok(0) }) {
            Ok(n) if n > head => data.extend_from_slice(&room[head..n]),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(e) => {
                trouble = Some(e);
                break;
            }
        }
    }
    for &byte in &data {
        tty::push_input(master, byte)?;
    }
    trouble.map_or(Ok(Some(data)), Err)
}

/// Puts recorded bytes into a new pty, both ways, before it has its settings.
pub(super) fn fill(
    images: &ImageDir,
    master: BorrowedFd<'_>,
    info: &TtyInfoEntry,
    infos: &BTreeMap<u32, TtyInfoEntry>,
) -> Result<()> {
    let data: Vec<TtyDataEntry> = images.read_all_optional(ImageKind::TtyData, None)?;
    let slave = infos.values().find(|other| other.pty == info.pty && other.id != info.id && other.termios.is_some());
    let failed = |e| Error::kernel(Object::Other(info::name(info)), "put back what waited to be read", e);
    for entry in data.iter().filter(|entry| !entry.data.is_empty()) {
        if entry.tty_id == info.id {
            fill_output(&peer(master).map_err(failed)?, &entry.data).map_err(failed)?;
        } else if let Some(slave) = slave.filter(|slave| slave.id == entry.tty_id) {
            let settings = slave.termios.as_ref().map(info::from_record).transpose()?.unwrap_or_default();
            fill_input(&peer(master).map_err(failed)?, &entry.data, settings.termios).map_err(failed)?;
        }
    }
    Ok(())
}

fn peer(master: BorrowedFd<'_>) -> std::result::Result<OwnedFd, Errno> {
    tty::open_peer(master, OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC)
}

/// Output for the master: written to the slave without any processing.
fn fill_output(slave: &OwnedFd, mut data: &[u8]) -> std::result::Result<(), Errno> {
    let mut settings = tty::get_termios(slave)?;
    settings.oflag &= !libc::OPOST;
    tty::set_termios(slave, &settings)?;
    while !data.is_empty() {
        data = &data[rustix::io::write(slave, data)?..];
    }
    Ok(())
}

/// Input for the slave, as if typed, with line editing but no other meaning of
/// any character than the end of a line. A last line without an end was ended
/// by end-of-file, or it could not have been read.
pub(super) fn fill_input(slave: &OwnedFd, data: &[u8], settings: tty::Termios) -> std::result::Result<(), Errno> {
    let mut quiet = settings;
    (quiet.iflag, quiet.lflag) = (0, settings.lflag & libc::ICANON);
    let end_of_line = [libc::VEOL, libc::VEOL2];
    for (at, character) in quiet.cc.iter_mut().enumerate() {
        if !end_of_line.contains(&at) {
            *character = 0;
        }
    }
    let eof = (1..=255u8).find(|byte| !data.contains(byte) && *byte != b'\n').unwrap_or(4);
    quiet.cc[libc::VEOF] = eof;
    tty::set_termios(slave, &quiet)?;
    for &byte in data {
        tty::push_input(slave, byte)?;
    }
    let ended = data.last().is_none_or(|last| *last == b'\n' || end_of_line.iter().any(|&at| quiet.cc[at] == *last));
    if quiet.lflag & libc::ICANON != 0 && !ended {
        tty::push_input(slave, eof)?;
    }
    Ok(())
}

/// The descriptor of an end as the tests need it.
#[cfg(test)]
pub(super) fn waiting(file: impl AsFd) -> usize {
    rustix::io::ioctl_fionread(file).unwrap() as usize
}
