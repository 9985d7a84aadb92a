//! Building terminals: a pty comes to be with its master; slaves are opened
//! through it, so that no mount of devpts is needed for them.

use super::super::{Build, apply_status_flags, regular_path};
use super::data;
use super::info::{self, Device};
use super::orphan;
use crate::users;
use crate::{Error, Object, RestoreOptions, Result};
use cryonaut_image::records::{RegFileEntry, TtyFileEntry, TtyInfoEntry, TtyType};
use cryonaut_kernel::sys::tty;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Builds the open file of a record.
pub(super) fn build(cx: &mut Build<'_>, file: &TtyFileEntry) -> Result<OwnedFd> {
    let infos = info::read_all(cx.images)?;
    let info = info_of(&infos, file)?;
    let key = info::key(info.rdev, info.dev.unwrap_or_default());
    if let Some(given) = cx.inherited(&key)? {
        return Ok(given);
    }
    let device = Device::of(u64::from(info.rdev));
    let built = match TtyType::try_from(info.r#type) {
        Ok(TtyType::TtytypeExtTty) => Err(Error::unsupported(
            object(file, info),
            format!("it is to be given from outside, as {key}"),
            "name a descriptor for it with --inherit-fd",
        )),
        _ if info.termios.is_none() && device != Some(Device::Master) => hung_up(cx, file, info),
        Ok(TtyType::TtytypePty) if device == Some(Device::Master) => master(cx, file, info, &infos),
        Ok(TtyType::TtytypePty) => slave(cx, file, info, &infos),
        Ok(TtyType::TtytypeCtty) => controlling(cx, file, info, &infos),
        _ => device_node(cx, file, info),
    }?;
    apply_status_flags(built.as_fd(), file.id, file.flags)?;
    Ok(built)
}

pub(super) fn info_of<'i>(infos: &'i BTreeMap<u32, TtyInfoEntry>, file: &TtyFileEntry) -> Result<&'i TtyInfoEntry> {
    infos
        .get(&file.tty_info_id)
        .ok_or_else(|| Error::bad_image("tty-info.img", format!("no terminal has the id {:#x}", file.tty_info_id)))
}

pub(super) fn object(file: &TtyFileEntry, info: &TtyInfoEntry) -> Object {
    Object::File(file.id, info::name(info))
}

fn path_of<'b>(cx: &Build<'b>, file: &TtyFileEntry) -> Result<&'b RegFileEntry> {
    let id = file.regf_id.unwrap_or_default();
    cx.record(id)?
        .reg
        .as_ref()
        .ok_or_else(|| Error::bad_image("files.img", format!("terminal {:#x} has no path", file.id)))
}

/// Flags for opening a terminal. The kernel keeps them as they are, so that
/// even `O_LARGEFILE` is there again only where it was.
pub(super) fn open_flags(file: &TtyFileEntry) -> OFlags {
    let at_open_only = OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC | OFlags::from_bits_retain(libc::O_ASYNC as u32);
    (OFlags::from_bits_retain(file.flags) - at_open_only) | OFlags::NOCTTY | OFlags::CLOEXEC
}

/// The master of a pty, and with it the pty and its state.
fn master(
    cx: &mut Build<'_>,
    file: &TtyFileEntry,
    info: &TtyInfoEntry,
    infos: &BTreeMap<u32, TtyInfoEntry>,
) -> Result<OwnedFd> {
    let failed = |action: &'static str| move |e| Error::kernel(object(file, info), action, e);
    let path = path_of(cx, file)?;
    let index = info.pty.map(|pty| pty.index);
    let master = open_master(cx, path, object(file, info), index)?;
    tty::set_pty_locked(&master, false).map_err(failed("unlock it"))?;
    data::fill(cx.images, master.as_fd(), info, infos)?;
    info::apply(master.as_fd(), info)?;
    // With every slave closed, reading from the master fails (EIO) instead of waiting for one to be opened. A pty
    // that is locked has never had one.
    let has_slave = infos.values().any(|other| other.pty == info.pty && other.id != info.id);
    if !has_slave && !info.locked {
        tty::open_peer(&master, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC)
            .map(drop)
            .map_err(failed("open its slave"))?;
    }
    Ok(master)
}

/// How long to wait for a number: its last holder may be ending just now, or
/// another restore on its way to a higher one.
const PATIENCE: Duration = Duration::from_secs(1);

/// Opens a master, of pty `wanted` if that is said.
pub(super) fn open_master(
    cx: &mut Build<'_>,
    path: &RegFileEntry,
    object: Object,
    wanted: Option<u32>,
) -> Result<OwnedFd> {
    let begun = Instant::now();
    loop {
        if let Some(master) = reach(cx, path, &object, wanted)? {
            return Ok(master);
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::Kernel {
                object,
                action: format!("make it: /dev/pts/{} is in use by another terminal", wanted.unwrap_or_default()),
                errno: Errno::BUSY,
                remedy: "close that terminal, or restore into a mount namespace with a devpts of its own",
            });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Opens masters until one has the wanted number: the kernel gives the lowest
/// that is free. `None` if it is taken.
fn reach(cx: &mut Build<'_>, path: &RegFileEntry, object: &Object, wanted: Option<u32>) -> Result<Option<OwnedFd>> {
    if let Some(made) = wanted.and_then(|wanted| cx.mounts.take_terminal(path.mnt_id, wanted)) {
        return Ok(Some(made));
    }
    let mut below = Vec::new();
    loop {
        let master = regular_path::open_recorded(cx, path)?;
        let number = tty::pty_number(&master).map_err(|e| Error::kernel(object.clone(), "ask for its number", e))?;
        match wanted {
            Some(wanted) if number < wanted => below.push(master),
            Some(wanted) if number > wanted => return Ok(None),
            _ => return Ok(Some(master)),
        }
    }
}

/// The slave of a pty: through its master if that is in the tree, else the
/// caller's terminal.
fn slave(
    cx: &mut Build<'_>,
    file: &TtyFileEntry,
    info: &TtyInfoEntry,
    infos: &BTreeMap<u32, TtyInfoEntry>,
) -> Result<OwnedFd> {
    let slave = match through_master(cx, file, info, |other| other.pty == info.pty, infos)? {
        Some(slave) => slave,
        None if orphan::are_made(cx.options) => orphan::slave(cx, file, info)?,
        None => return from_caller(cx, file, info),
    };
    let failed = |e| Error::kernel(object(file, info), "set its owner and mode", e);
    let (uid, gid) = users::outside((info.uid(), info.gid()));
    let (uid, gid) = (info.uid.map(|_| Uid::from_raw(uid)), info.gid.map(|_| Gid::from_raw(gid)));
    rustix::fs::fchown(&slave, uid, gid).map_err(failed)?;
    if let Some(mode) = path_of(cx, file)?.mode {
        rustix::fs::fchmod(&slave, Mode::from_raw_mode(mode & 0o7777)).map_err(failed)?;
    }
    Ok(slave)
}

/// `/dev/tty` of a session whose leader could not open it ([`session`]): what
/// it stood for is opened instead.
///
/// [`session`]: super::session
fn controlling(
    cx: &mut Build<'_>,
    file: &TtyFileEntry,
    info: &TtyInfoEntry,
    infos: &BTreeMap<u32, TtyInfoEntry>,
) -> Result<OwnedFd> {
    let is_it = |other: &TtyInfoEntry| info.sid != 0 && other.sid == info.sid;
    let opened = through_master(cx, file, info, is_it, infos)?;
    opened.map_or_else(|| from_caller(cx, file, info), Ok)
}

/// A descriptor of the terminal that controls a session, if the tree has it,
/// and whether it is foreign.
pub(super) fn terminal_of(
    cx: &mut Build<'_>,
    infos: &BTreeMap<u32, TtyInfoEntry>,
    session: u32,
) -> Result<Option<(OwnedFd, bool)>> {
    let files = cx.records().values().filter_map(|entry| entry.tty.as_ref());
    let known = files.filter_map(|file| Some((file, infos.get(&file.tty_info_id)?)));
    let mut its = known.filter(|(_, info)| info.sid == session && session != 0 && info.termios.is_some());
    // Any record will do that leads to it: the name /dev/tty by itself does not.
    let Some((file, info)) = its.find(|(_, info)| TtyType::try_from(info.r#type) != Ok(TtyType::TtytypeCtty)) else {
        return Ok(None);
    };
    let foreign = is_foreign(cx.options, infos, info);
    if info.pty.is_some() && !foreign {
        let plain = TtyFileEntry { flags: OFlags::RDWR.bits(), ..*file };
        if let Some(slave) = through_master(cx, &plain, info, |other| other.pty == info.pty, infos)? {
            return Ok(Some((slave, false)));
        }
    }
    let failed = |e| Error::kernel(object(file, info), "duplicate it", e);
    rustix::io::fcntl_dupfd_cloexec(cx.file(file.id)?, 0).map(|twin| Some((twin, foreign))).map_err(failed)
}

/// Whether the terminal is one that the tree does not have to itself: given by
/// the user, or that of the caller.
pub(super) fn is_foreign(options: &RestoreOptions, infos: &BTreeMap<u32, TtyInfoEntry>, info: &TtyInfoEntry) -> bool {
    let key = info::key(info.rdev, info.dev.unwrap_or_default());
    let is_master = |other: &TtyInfoEntry| Device::of(u64::from(other.rdev)) == Some(Device::Master);
    let has_master = info.pty.is_some() && infos.values().any(|other| other.pty == info.pty && is_master(other));
    let is_pty = TtyType::try_from(info.r#type) == Ok(TtyType::TtytypePty);
    TtyType::try_from(info.r#type) == Ok(TtyType::TtytypeExtTty)
        || options.inherit_fds.iter().any(|(_, name)| *name == key)
        || (is_pty && !has_master && !orphan::are_made(options))
}

/// Opens the slave of the pty that is meant, if its master is in the tree.
fn through_master(
    cx: &mut Build<'_>,
    file: &TtyFileEntry,
    info: &TtyInfoEntry,
    is_it: impl Fn(&TtyInfoEntry) -> bool,
    infos: &BTreeMap<u32, TtyInfoEntry>,
) -> Result<Option<OwnedFd>> {
    let is_master =
        |other: &TtyInfoEntry| other.pty.is_some() && Device::of(u64::from(other.rdev)) == Some(Device::Master);
    let master = cx
        .records()
        .values()
        .filter_map(|entry| entry.tty.as_ref())
        .find(|other| infos.get(&other.tty_info_id).is_some_and(|other| is_master(other) && is_it(other)));
    let Some(master) = master else {
        return Ok(None);
    };
    let peer = tty::open_peer(cx.file(master.id)?, open_flags(file));
    peer.map(Some).map_err(|e| Error::kernel(object(file, info), "open it through its master", e))
}

/// Where a new terminal comes from that is to be in the place of a file: of the same devpts, if that is of a mount namespace
/// of the tree.
pub(super) fn ptmx(cx: &Build<'_>, file: &TtyFileEntry) -> Result<RegFileEntry> {
    let own = cx.mounts.ptmx(path_of(cx, file)?.mnt_id);
    let (name, mnt_id) = own.unwrap_or((b"/dev/ptmx".to_vec(), -1));
    Ok(RegFileEntry { name, flags: OFlags::RDWR.bits(), mnt_id: Some(mnt_id), ..RegFileEntry::default() })
}

/// A slave whose master is gone: that of a pty that is closed again at once.
fn hung_up(cx: &mut Build<'_>, file: &TtyFileEntry, info: &TtyInfoEntry) -> Result<OwnedFd> {
    let failed = |e| Error::kernel(object(file, info), "make a terminal that is hung up", e);
    let path = ptmx(cx, file)?;
    let master = open_master(cx, &path, object(file, info), None)?;
    tty::set_pty_locked(&master, false).map_err(failed)?;
    tty::open_peer(&master, open_flags(file)).map_err(failed)
}

/// The terminal of whoever restores, in place of one outside of the tree.
fn from_caller(cx: &Build<'_>, file: &TtyFileEntry, info: &TtyInfoEntry) -> Result<OwnedFd> {
    if !cx.options.shell_job {
        return Err(Error::unsupported(
            object(file, info),
            "its terminal belonged to a program outside of the tree",
            "use --shell-job to give it the terminal of the restore, or --inherit-fd",
        ));
    }
    let flags = open_flags(file);
    if Device::of(u64::from(info.rdev)) == Some(Device::Controlling)
        && let Ok(opened) = rustix::fs::open("/dev/tty", flags, Mode::empty())
    {
        return Ok(opened);
    }
    if let Some(ours) = terminal_of_caller() {
        // Its flags are to be its own, not shared with the caller's.
        let opened = regular_path::reopen(ours.as_fd(), flags);
        return opened.map_err(|e| Error::kernel(object(file, info), "open the terminal of the restore", e));
    }
    rustix::fs::open("/dev/tty", flags, Mode::empty()).map_err(|errno| Error::Kernel {
        object: object(file, info),
        action: "find a terminal in its place".into(),
        errno,
        remedy: "run the restore from a terminal",
    })
}

/// The terminal that this program has been given as input or output.
pub(super) fn terminal_of_caller() -> Option<OwnedFd> {
    let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let ours = [input.as_fd(), output.as_fd(), errors.as_fd()].into_iter().find(|ours| rustix::termios::isatty(ours));
    ours.and_then(|ours| ours.try_clone_to_owned().ok())
}

/// The console, a virtual console or a serial line: what the machine has.
fn device_node(cx: &mut Build<'_>, file: &TtyFileEntry, info: &TtyInfoEntry) -> Result<OwnedFd> {
    let opened = regular_path::open_recorded(cx, path_of(cx, file)?)?;
    if let Some(entry) = &info.termios {
        let done = info::apply_settings(opened.as_fd(), entry)?;
        done.map_err(|e| Error::kernel(object(file, info), "set its settings", e))?;
    }
    Ok(opened)
}
