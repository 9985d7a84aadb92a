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
    let waiting = arrived(file.file).map_err(failed)?;
    let kills = cx.options.afterwards == Afterwards::Kill;
    // Of a line that is still being typed nothing tells while lines are edited.
    let may_hide_a_line = kills && device != Device::Master && edits_lines(file.file).map_err(failed)?;
    if waiting == 0 && !may_hide_a_line {
        return Ok(());
    }
    let why_not = if !kills {
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
    let taken = match device {
        Device::Master => output(file.file, info.packet_mode),
        _ => input(file.file),
    };
    match taken.map_err(failed)? {
        Some(data) if data.is_empty() => Ok(()),
        Some(data) => Ok(cx.images.append(ImageKind::TtyData, None, &TtyDataEntry { tty_id: info.id, data }, None)?),
        None if waiting == 0 => Ok(()),
        None => {
            tracing::warn!(
                "{}: {waiting} bytes that wait to be read are not carried: the terminal's mode does not let them be put back",
                file.object()
            );
            Ok(())
        }
    }
}

/// Whether one of these can be had without waiting. What the other end has written and a worker of the kernel was yet
/// to bring here has come then, unless something else was here already (n_tty_poll in drivers/tty/n_tty.c).
fn ready(end: BorrowedFd<'_>, flags: PollFlags) -> std::result::Result<bool, Errno> {
    let mut polled = [PollFd::from_borrowed_fd(end, flags)];
    poll(&mut polled, Some(&Timespec::default())).map(|_| polled[0].revents().intersects(flags))
}

/// How much waits to be read: without [`ready`], what was written just now might not be counted.
fn arrived(end: BorrowedFd<'_>) -> std::result::Result<usize, Errno> {
    ready(end, PollFlags::IN)?;
    Ok(rustix::io::ioctl_fionread(end)? as usize)
}

fn edits_lines(slave: BorrowedFd<'_>) -> std::result::Result<bool, Errno> {
    tty::get_termios(slave).map(|settings| settings.lflag & libc::ICANON != 0)
}

/// Reads a master empty and pushes all of it back. A master has no line
/// editing, so that TIOCSTI puts back bytes as they were.
fn output(master: BorrowedFd<'_>, packets: bool) -> std::result::Result<Option<Vec<u8>>, Errno> {
    // A status packet would be read first, and cannot be put back.
    if packets && ready(master, PollFlags::PRI)? {
        return Ok(None);
    }
    // In packet mode each read begins with a byte that says "data" (TIOCPKT, ioctl_tty(2)).
    let head = usize::from(packets);
    let mut data = Vec::new();
    let mut room = vec![0; FULL + 1];
    let mut trouble = None;
    while data.len() < FULL {
        room.truncate(FULL - data.len() + head);
        let read = |ready| if ready { rustix::io::read(master, &mut room) } else { Ok(0) };
        match ready(master, PollFlags::IN).and_then(read) {
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
            push_input(peer(master).map_err(failed)?, &entry.data, &settings.termios).map_err(failed)?;
        }
    }
    Ok(())
}

/// The same for a slave whose master was outside of the tree: what it had not read.
pub(super) fn fill_orphan(images: &ImageDir, master: BorrowedFd<'_>, slave: &TtyInfoEntry) -> Result<()> {
    let data: Vec<TtyDataEntry> = images.read_all_optional(ImageKind::TtyData, None)?;
    let failed = |e| Error::kernel(Object::Other(info::name(slave)), "put back what waited to be read", e);
    for entry in data.iter().filter(|entry| entry.tty_id == slave.id && !entry.data.is_empty()) {
        let settings = slave.termios.as_ref().map(info::from_record).transpose()?.unwrap_or_default();
        push_input(peer(master).map_err(failed)?, &entry.data, &settings.termios).map_err(failed)?;
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

/// Reads a slave's input empty and pushes all of it back: the lines, and one
/// that is still being typed. `None` if the settings do not allow it.
fn input(slave: BorrowedFd<'_>) -> std::result::Result<Option<Vec<u8>>, Errno> {
    let settings = tty::get_termios(slave)?;
    let locked = tty::get_locked_termios(slave)?;
    if settings.lflag & libc::EXTPROC != 0 || locked != tty::Termios::default() {
        return Ok(None);
    }
    // Line editing hides what is not a whole line yet.
    let mut raw = quiet(&settings);
    raw.lflag = 0;
    (raw.cc[libc::VMIN], raw.cc[libc::VTIME]) = (0, 0);
    tty::set_termios(slave, &raw)?;
    let mut data = Vec::new();
    let mut room = vec![0; FULL + 1];
    let taken = loop {
        match rustix::io::read(slave, &mut room) {
            Ok(0) | Err(Errno::AGAIN) => break Ok(()),
            Ok(n) => data.extend_from_slice(&room[..n]),
            Err(Errno::INTR) => {}
            Err(e) => break Err(e),
        }
    };
    let back = push_input(slave, &data, &settings);
    tty::set_termios(slave, &settings)?;
    taken.and(back).map(|()| Some(data))
}

/// Settings with which no character has any meaning but the end of a line.
/// Flow control stays as it is: changing it would start a stopped terminal, and
/// be told to a master in packet mode.
fn quiet(settings: &tty::Termios) -> tty::Termios {
    const KEPT: [usize; 4] = [libc::VEOL, libc::VEOL2, libc::VSTART, libc::VSTOP];
    let mut quiet = *settings;
    quiet.iflag &= libc::IXON;
    quiet.lflag &= libc::ICANON | libc::IEXTEN;
    for (at, character) in quiet.cc.iter_mut().enumerate() {
        if !KEPT.contains(&at) {
            *character = 0;
        }
    }
    quiet
}

/// Puts input into a slave as if typed, without any effect of its characters.
/// The settings are left changed. Where a line was ended by end-of-file, the
/// kernel has a zero byte in place of it.
pub(super) fn push_input(slave: impl AsFd, data: &[u8], settings: &tty::Termios) -> std::result::Result<(), Errno> {
    let mut quiet = quiet(settings);
    let flow_control = [quiet.cc[libc::VSTART], quiet.cc[libc::VSTOP]];
    if data.iter().any(|byte| flow_control.contains(byte)) {
        quiet.iflag = 0;
    }
    let mut end_of_file = 0;
    if quiet.lflag & libc::ICANON != 0 {
        end_of_file =
            (1..=255u8).find(|byte| !data.contains(byte) && !quiet.cc.contains(byte) && *byte != b'\n').unwrap_or(0);
        quiet.cc[libc::VEOF] = end_of_file;
    }
    tty::set_termios(&slave, &quiet)?;
    for &byte in data {
        tty::push_input(&slave, if byte == 0 { end_of_file } else { byte })?;
    }
    Ok(())
}

/// The descriptor of an end as the tests need it.
#[cfg(test)]
pub(super) fn waiting(file: impl AsFd) -> usize {
    rustix::io::ioctl_fionread(file).unwrap() as usize
}
