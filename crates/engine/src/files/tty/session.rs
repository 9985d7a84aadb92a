//! What a terminal is to sessions: the controlling terminal of one, with a
//! foreground process group (credentials(7), tty_ioctl(4)). Only a session's
//! leader can make it that, so its hand does.

use super::super::{Build, Settle, apply_status_flags};
use super::build::{self, info_of};
use super::info;
use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::{TtyFileEntry, TtyInfoEntry, TtyType};
use cryonaut_kernel::sys::tty;
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Arg, Batch, Hand};
use rustix::fs::OFlags;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const TIOCSCTTY: u64 = 0x540e;
const TIOCSPGRP: u64 = 0x5410;

/// Gives the terminal back its foreground group, once for each terminal; then
/// the modes that would have been in the way.
pub(super) fn settle(cx: &mut Settle<'_>, file: &TtyFileEntry, opened: BorrowedFd<'_>) -> Result<()> {
    let infos = info::read_all(cx.images)?;
    let info = info_of(&infos, file)?;
    if info.termios.is_none() {
        return Ok(());
    }
    if is_first(cx, &infos, file, info) && info.sid != 0 {
        let leader = info.sid as i32;
        if cx.hands.contains_key(&leader) {
            set_foreground(cx, &infos, info, leader)?;
        } else if cx.options.shell_job {
            take_foreground(cx, file, info, opened)?;
        }
    }
    if build::is_foreign(cx.options, &infos, info) {
        return Ok(());
    }
    let failed =
        |what: &'static str| move |e| Error::kernel(Object::Other(info::name(info)), format!("set its {what}"), e);
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

/// Makes the terminal of the session that `leader` has just begun its
/// controlling terminal, and opens the session's `/dev/tty`. To be done before
/// the leader has children: they inherit it, there is no other way to it.
pub(crate) fn give_terminal(cx: &mut Build<'_>, hand: &mut Hand, service: &Service, leader: i32) -> Result<()> {
    let infos = info::read_all(cx.images)?;
    let Some((terminal, foreign)) = build::terminal_of(cx, &infos, leader as u32)? else {
        return Ok(());
    };
    let fd = service.give(hand, &[terminal.as_fd()])?[0];
    let mut batch = Batch::new();
    let taken = batch.attempt(libc::SYS_ioctl, [fd.into(), Arg::Val(TIOCSCTTY), Arg::Val(0)]);
    batch.call(libc::SYS_close, [fd.into()]);
    hand.run(&mut batch)?;
    if let Err(errno) = batch.result(taken) {
        let session = Object::Other(format!("session {leader}"));
        let error = Error::kernel(session, "take its controlling terminal", errno);
        if !foreign {
            return Err(error);
        }
        // The caller's own session has it, and goes on having it.
        tracing::warn!("{error}: it has none now");
        return Ok(());
    }
    let names = cx.records().values().filter_map(|entry| entry.tty.as_ref()).filter(|file| {
        infos.get(&file.tty_info_id).is_some_and(|info| {
            info.sid == leader as u32
                && info.termios.is_some()
                && TtyType::try_from(info.r#type) == Ok(TtyType::TtytypeCtty)
        })
    });
    for file in names {
        if let Some(opened) = open_own(cx, hand, leader, file)? {
            apply_status_flags(opened.as_fd(), file.id, file.flags)?;
            cx.put(file.id, opened);
        }
    }
    Ok(())
}

/// `/dev/tty`, opened by the leader and taken over; `None` where it has none.
fn open_own(cx: &Build<'_>, hand: &mut Hand, leader: i32, file: &TtyFileEntry) -> Result<Option<OwnedFd>> {
    let failed = |e| Error::kernel(Object::File(file.id, "/dev/tty".into()), "take it from its session", e);
    // In a mount namespace of the tree, its leader is there already.
    let root = cx.options.root.as_deref().filter(|_| cx.mounts.is_empty()).unwrap_or(Path::new("/"));
    let mut batch = Batch::new();
    let path = batch.cstr(root.join("dev/tty").as_os_str().as_bytes());
    let call = batch.attempt(libc::SYS_open, [path.into(), build::open_flags(file).bits().into()]);
    hand.run(&mut batch)?;
    let Ok(fd) = batch.result(call) else {
        return Ok(None);
    };
    let pidfd = rustix::process::pidfd_open(pid_of(leader)?, PidfdFlags::empty()).map_err(failed)?;
    let opened = rustix::process::pidfd_getfd(&pidfd, fd as i32, PidfdGetfdFlags::empty());
    let mut batch = Batch::new();
    batch.call(libc::SYS_close, [fd.into()]);
    hand.run(&mut batch)?;
    opened.map(Some).map_err(failed)
}

/// Sets the foreground group, through the leader: by a descriptor that it has
/// of the terminal, or by the name that every terminal has for its session.
fn set_foreground(
    cx: &mut Settle<'_>,
    infos: &BTreeMap<u32, TtyInfoEntry>,
    info: &TtyInfoEntry,
    leader: i32,
) -> Result<()> {
    if info.pgrp == 0 {
        return Ok(());
    }
    let held = files_of(cx, infos, info).find_map(|(file, _)| {
        let places = cx.places.get(&file.id)?;
        places.iter().find(|(pid, _)| *pid == leader).map(|&(_, fd)| fd)
    });
    let mut batch = Batch::new();
    let group = batch.bytes(&cx.numbers.seen_from(leader, info.pgrp as i32).to_le_bytes());
    // The group may have been without a process: then it is nobody's turn.
    match held {
        Some(fd) => {
            batch.attempt(libc::SYS_ioctl, [fd.into(), Arg::Val(TIOCSPGRP), group.into()]);
        }
        None => {
            let path = batch.cstr("/dev/tty");
            let flags = (OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC).bits();
            let fd = batch.attempt(libc::SYS_open, [path.into(), flags.into()]);
            batch.attempt(libc::SYS_ioctl, [fd.into(), Arg::Val(TIOCSPGRP), group.into()]);
            batch.attempt(libc::SYS_close, [fd.into()]);
        }
    }
    cx.run_in(leader, &mut batch)
}

/// The tree takes the place of the caller in the foreground of its terminal,
/// if that is where the caller is, and with the settings that it had.
fn take_foreground(
    cx: &mut Settle<'_>,
    file: &TtyFileEntry,
    info: &TtyInfoEntry,
    opened: BorrowedFd<'_>,
) -> Result<()> {
    let in_front = rustix::termios::tcgetpgrp(opened).is_ok_and(|group| group == rustix::process::getpgrp());
    let Some((pid, fd)) = cx.holder(file.id).filter(|_| in_front) else {
        return Ok(());
    };
    if let Some(entry) = &info.termios {
        let done = info::apply_settings(opened, entry)?;
        done.map_err(|e| {
            Error::kernel(Object::Other(info::name(info)), "set the settings of the caller's terminal", e)
        })?;
    }
    if info.pgrp != 0 {
        let mut batch = Batch::new();
        let group = batch.bytes(&cx.numbers.seen_from(pid, info.pgrp as i32).to_le_bytes());
        batch.attempt(libc::SYS_ioctl, [fd.into(), Arg::Val(TIOCSPGRP), group.into()]);
        cx.run_in(pid, &mut batch)?;
    }
    Ok(())
}
