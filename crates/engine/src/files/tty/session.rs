//! What a terminal is to sessions: the controlling terminal of one, with a
//! foreground process group (credentials(7), tty_ioctl(4)). Only a session's
//! leader can make it that, so its hand does.

use super::super::Settle;
use super::build::info_of;
use super::info::{self, Device};
use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::{TtyFileEntry, TtyInfoEntry, TtyType};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::tty;
use cryonaut_puppet::{Arg, Batch};
use rustix::fs::OFlags;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

const TIOCSCTTY: u64 = 0x540e;
const TIOCSPGRP: u64 = 0x5410;
const TIOCGPTPEER: u64 = 0x5441;

/// Gives the session back its terminal, once for each terminal; then the modes
/// that would have been in the way.
pub(super) fn settle(cx: &mut Settle<'_>, file: &TtyFileEntry, opened: BorrowedFd<'_>) -> Result<()> {
    let infos = info::read_all(cx.images)?;
    let info = info_of(&infos, file)?;
    if info.termios.is_none() || TtyType::try_from(info.r#type) == Ok(TtyType::TtytypeExtTty) {
        return Ok(());
    }
    if is_first(cx, &infos, file, info) && info.sid != 0 {
        let leader = info.sid as i32;
        if cx.hands.contains_key(&leader) {
            take(cx, &infos, info, leader)?;
        } else if cx.options.shell_job {
            take_foreground(cx, file, info, opened)?;
        }
    }
    let failed = |what: &'static str| move |e| Error::kernel(Object::Other(info::name(info)), format!("set its {what}"), e);
    if info.exclusive {
        tty::set_exclusive(opened, true).map_err(failed("exclusive mode"))?;
    }
    if info.packet_mode {
        tty::set_packet_mode(opened, true).map_err(failed("packet mode"))?;
    }
    if info.locked {
        tty::set_pty_locked(opened, true).map_err(failed("lock"))?;
    }
    Ok(())
}

/// The terminals that one record's session has: both ends of the pty, or the
/// terminal under its other names.
fn is_same(info: &TtyInfoEntry, other: &TtyInfoEntry) -> bool {
    other.termios.is_some() && other.sid == info.sid
}

/// The records of open files of the session's terminal.
fn files_of<'r>(
    cx: &Settle<'r>,
    infos: &'r BTreeMap<u32, TtyInfoEntry>,
    info: &'r TtyInfoEntry,
) -> impl Iterator<Item = (&'r TtyFileEntry, &'r TtyInfoEntry)> {
    let files = cx.records.values().filter_map(|entry| entry.tty.as_ref());
    files.filter_map(|file| Some((file, infos.get(&file.tty_info_id)?))).filter(|(_, other)| is_same(info, other))
}

fn is_first(cx: &Settle<'_>, infos: &BTreeMap<u32, TtyInfoEntry>, file: &TtyFileEntry, info: &TtyInfoEntry) -> bool {
    files_of(cx, infos, info).map(|(other, _)| other.id).min() == Some(file.id)
}

fn is_master(info: &TtyInfoEntry) -> bool {
    Device::of(u64::from(info.rdev)) == Some(Device::Master)
}

/// Makes it the controlling terminal of the leader's session, and sets the
/// foreground group.
fn take(cx: &mut Settle<'_>, infos: &BTreeMap<u32, TtyInfoEntry>, info: &TtyInfoEntry, leader: i32) -> Result<()> {
    if Task::open(pid_of(leader)?)?.stat()?.tty_nr != 0 {
        return Ok(());
    }
    let mut held = None;
    let mut number = None;
    for (file, other) in files_of(cx, infos, info) {
        number = number.or(other.pty.map(|pty| pty.index));
        let theirs = cx.places.get(&file.id).and_then(|places| places.iter().find(|(pid, _)| *pid == leader));
        if let Some(&(_, fd)) = theirs
            && held.is_none_or(|(_, master)| master)
        {
            held = Some((fd, is_master(other)));
        }
    }
    let flags = (OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC).bits();
    let mut batch = Batch::new();
    // A leader may have closed it, or have the other end alone.
    let (terminal, temporary) = match (held, number) {
        (Some((fd, false)), _) => (Arg::from(fd), None),
        (Some((fd, true)), _) => {
            let call = batch.call(libc::SYS_ioctl, [fd.into(), Arg::Val(TIOCGPTPEER), flags.into()]);
            (call.into(), Some(call))
        }
        (None, Some(number)) => {
            let path = batch.cstr(format!("/dev/pts/{number}"));
            let call = batch.call(libc::SYS_open, [path.into(), flags.into()]);
            (call.into(), Some(call))
        }
        (None, None) => return Ok(()),
    };
    batch.call(libc::SYS_ioctl, [terminal, Arg::Val(TIOCSCTTY), Arg::Val(0)]);
    if info.pgrp != 0 {
        let group = batch.bytes(&info.pgrp.to_le_bytes());
        // The group may have been without a process: then it is nobody's turn.
        batch.attempt(libc::SYS_ioctl, [terminal, Arg::Val(TIOCSPGRP), group.into()]);
    }
    if let Some(call) = temporary {
        batch.call(libc::SYS_close, [call.into()]);
    }
    cx.run_in(leader, &mut batch)
}

/// The tree takes the place of the caller in the foreground of its terminal,
/// if that is where the caller is, and with the settings that it had.
fn take_foreground(cx: &mut Settle<'_>, file: &TtyFileEntry, info: &TtyInfoEntry, opened: BorrowedFd<'_>) -> Result<()> {
    let in_front = rustix::termios::tcgetpgrp(opened).is_ok_and(|group| group == rustix::process::getpgrp());
    let Some((pid, fd)) = cx.holder(file.id).filter(|_| in_front) else { return Ok(()) };
    if let Some(entry) = &info.termios {
        let done = info::apply_settings(opened, entry)?;
        done.map_err(|e| Error::kernel(Object::Other(info::name(info)), "set the settings of the caller's terminal", e))?;
    }
    if info.pgrp != 0 {
        let mut batch = Batch::new();
        let group = batch.bytes(&info.pgrp.to_le_bytes());
        batch.attempt(libc::SYS_ioctl, [fd.into(), Arg::Val(TIOCSPGRP), group.into()]);
        cx.run_in(pid, &mut batch)?;
    }
    Ok(())
}
