//! The record of a terminal: read from a descriptor of it, and looked up again.

use super::super::{Collect, OpenFile};
use super::data;
use crate::freeze::pid_of;
use crate::users;
use crate::{Error, Object, Result};
use cryonaut_image::records::{
    FdTypes, FileEntry, FownEntry, RegFileEntry, TermiosEntry, TtyInfoEntry, TtyPtyEntry, TtyType, WinsizeEntry,
};
use cryonaut_image::{ImageDir, ImageKind};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::fdinfo::Details;
use cryonaut_kernel::sys::tty::{self, Termios, Termios2};
use rustix::fs::{major, minor};
use rustix::io::Errno;
use rustix::termios::Winsize;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// What a device node leads to (the kernel's Documentation/admin-guide/devices.txt).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Device {
    Master,
    Slave,
    /// `/dev/tty`: the terminal of whoever opens it.
    Controlling,
    Console,
    Virtual,
    Serial,
}

impl Device {
    /// The device with this number; `None` if it is no terminal that we know.
    pub fn of(rdev: u64) -> Option<Device> {
        match (major(rdev), minor(rdev)) {
            (5, 2) => Some(Device::Master),
            (136..=143, _) => Some(Device::Slave),
            (5, 0) => Some(Device::Controlling),
            (5, 1) => Some(Device::Console),
            (4, 0..=63) => Some(Device::Virtual),
            (4, _) => Some(Device::Serial),
            _ => None,
        }
    }

    fn in_image(self) -> TtyType {
        match self {
            Device::Master | Device::Slave => TtyType::TtytypePty,
            Device::Controlling => TtyType::TtytypeCtty,
            Device::Console => TtyType::TtytypeConsole,
            Device::Virtual => TtyType::TtytypeVt,
            Device::Serial => TtyType::TtytypeSerial,
        }
    }
}

/// The key by which the user names a terminal to be replaced.
pub(super) fn key(rdev: u32, dev: u32) -> String {
    format!("tty[{rdev:x}:{dev:x}]")
}

/// How a user knows the terminal.
pub(super) fn name(info: &TtyInfoEntry) -> String {
    match (Device::of(u64::from(info.rdev)), info.pty) {
        (Some(Device::Master), Some(pty)) => format!("master of /dev/pts/{}", pty.index),
        (_, Some(pty)) => format!("/dev/pts/{}", pty.index),
        (Some(Device::Controlling), _) => "/dev/tty".into(),
        (Some(Device::Console), _) => "/dev/console".into(),
        (Some(Device::Virtual), _) => format!("/dev/tty{}", minor(u64::from(info.rdev))),
        _ => format!("terminal {}:{}", major(u64::from(info.rdev)), minor(u64::from(info.rdev))),
    }
}

/// The terminals of an image, by id.
pub(super) fn read_all(images: &ImageDir) -> Result<BTreeMap<u32, TtyInfoEntry>> {
    let infos: Vec<TtyInfoEntry> = images.read_all_optional(ImageKind::TtyInfo, None)?;
    Ok(infos.into_iter().map(|info| (info.id, info)).collect())
}

/// Writes down the terminal behind an open file unless it was before, and
/// returns the id of its record.
pub(super) fn collect(cx: &mut Collect<'_>, file: &OpenFile<'_>) -> Result<u32> {
    let Some(device) = Device::of(file.stat.st_rdev) else {
        return Err(file.unexpected("a terminal"));
    };
    let settings = match tty::get_termios2(file.file) {
        Ok(settings) => Some(settings),
        // The other end of the pty is gone: it is hung up, for good.
        Err(Errno::IO) if device != Device::Master => None,
        Err(e) => return Err(Error::kernel(file.object(), "read its settings", e)),
    };
    if let Some(line) = settings.map(|settings| settings.termios.line).filter(|line| *line != 0) {
        return Err(Error::unsupported(
            file.object(),
            format!("it has the line discipline {line}: it is a network link or another device, no terminal"),
            "set the line discipline back to 0 (N_TTY) before the checkpoint",
        ));
    }
    let behind = match settings {
        Some(_) => tty::device(file.file).map_err(|e| Error::kernel(file.object(), "ask for its terminal", e))?,
        None => file.stat.st_rdev as u32,
    };
    let place =
        ("tty", (device as u64) << 52 | (file.stat.st_dev & 0xffff_ffff) << 20 | u64::from(minor(u64::from(behind))));
    if settings.is_some()
        && let Some(&known) = cx.notes.get(&place)
    {
        return Ok(known);
    }
    let external = cx.options.external.contains(&key(file.stat.st_rdev as u32, file.stat.st_dev as u32));
    if settings.is_some() && !external {
        refuse_outsiders(cx, file, device, behind)?;
    }
    let mut info = read(cx, file, device, behind, settings)?;
    if external {
        info.r#type = TtyType::TtytypeExtTty as i32;
    }
    info.id = new_id(cx, &info);
    if settings.is_some() {
        cx.notes.insert(place, info.id);
    }
    cx.images.append(ImageKind::TtyInfo, None, &info, None)?;
    if settings.is_some() && !external && (device == Device::Master || device == Device::Slave) {
        data::collect(cx, file, &info, device)?;
    }
    Ok(info.id)
}

/// A terminal whose other side is not in the tree cannot be built again.
fn refuse_outsiders(cx: &mut Collect<'_>, file: &OpenFile<'_>, device: Device, behind: u32) -> Result<()> {
    if cx.options.shell_job || !matches!(device, Device::Slave | Device::Controlling) {
        return Ok(());
    }
    let is_pty = Device::of(u64::from(behind)) == Some(Device::Slave);
    if is_pty && (cx.options.orphan_terminals || has_master(cx, minor(u64::from(behind)))?) {
        return Ok(());
    }
    let terminal = if is_pty {
        format!("/dev/pts/{}", minor(u64::from(behind)))
    } else {
        format!("device {}:{}", major(u64::from(behind)), minor(u64::from(behind)))
    };
    Err(Error::unsupported(
        file.object(),
        format!("its terminal, {terminal}, belongs to a program outside of the tree"),
        "use --shell-job to give it the terminal of the restore, or --external tty[RDEV:DEV] and --inherit-fd",
    ))
}

/// Whether a process of the tree has the master of pty N.
fn has_master(cx: &mut Collect<'_>, index: u32) -> Result<bool> {
    if cx.notes.insert(("tty masters known", 0), 0).is_none() {
        for &pid in cx.pids {
            // A zombie has no descriptors.
            let task = Task::open(pid_of(cx.speaker(pid))?)?;
            for fd in task.fds().unwrap_or_default() {
                if !task.link(&format!("fd/{fd}")).is_ok_and(|link| link.ends_with("ptmx")) {
                    continue;
                }
                if let Details::Tty { index } = task.fdinfo(fd)?.details {
                    cx.notes.insert(("tty master", index as u64), 0);
                }
            }
        }
    }
    Ok(cx.notes.contains_key(&("tty master", u64::from(index))))
}

fn read(
    cx: &Collect<'_>,
    file: &OpenFile<'_>,
    device: Device,
    behind: u32,
    settings: Option<Termios2>,
) -> Result<TtyInfoEntry> {
    let failed = |what: &'static str| move |e| Error::kernel(file.object(), format!("ask for its {what}"), e);
    let pty = matches!(device, Device::Master | Device::Slave).then(|| TtyPtyEntry { index: minor(u64::from(behind)) });
    let (uid, gid) = users::inside((file.stat.st_uid, file.stat.st_gid));
    let mut info = TtyInfoEntry {
        r#type: device.in_image() as i32,
        rdev: file.stat.st_rdev as u32,
        dev: Some(file.stat.st_dev as u32),
        uid: Some(uid),
        gid: Some(gid),
        pty,
        ..TtyInfoEntry::default()
    };
    let Some(settings) = settings else {
        return Ok(info);
    };
    info.termios = Some(to_record(&settings));
    let locked = tty::get_locked_termios(file.file).map_err(failed("locked settings"))?;
    info.termios_locked = Some(to_record(&Termios2 { termios: locked, ..Termios2::default() }));
    info.winsize = Some(window(file.file).map_err(failed("size"))?);
    info.exclusive = tty::exclusive(file.file).map_err(failed("exclusive mode"))?;
    if device == Device::Master {
        info.locked = tty::pty_locked(file.file).map_err(failed("lock"))?;
        info.packet_mode = tty::packet_mode(file.file).map_err(failed("packet mode"))?;
    }
    (info.sid, info.pgrp) = session_of(cx, file, behind)?;
    Ok(info)
}

fn window(file: BorrowedFd<'_>) -> std::result::Result<WinsizeEntry, Errno> {
    let size = rustix::termios::tcgetwinsize(file)?;
    Ok(WinsizeEntry {
        ws_row: size.ws_row.into(),
        ws_col: size.ws_col.into(),
        ws_xpixel: size.ws_xpixel.into(),
        ws_ypixel: size.ws_ypixel.into(),
    })
}

/// The session whose controlling terminal it is, and its foreground group;
/// zeros if there is none. TIOCGSID tells it of masters alone, /proc of any.
fn session_of(cx: &Collect<'_>, file: &OpenFile<'_>, behind: u32) -> Result<(u32, u32)> {
    let found = |stat: cryonaut_kernel::proc::stat::Stat| {
        (stat.tty_nr as u32 == behind && stat.session > 0).then(|| (stat.session as u32, stat.tpgid.max(0) as u32))
    };
    if let Some(session) = found(file.task.stat()?) {
        return Ok(session);
    }
    for &pid in cx.pids {
        if let Some(session) = found(Task::open(pid_of(pid)?)?.stat()?) {
            return Ok(session);
        }
    }
    Ok((0, 0))
}

/// Ids as CRIU gives them: a pty's slave and master have 2N and 2N + 1, other
/// terminals one above that for each type. Where that one is taken (another
/// instance of devpts, another session's `/dev/tty`), the next above 0x10000.
fn new_id(cx: &mut Collect<'_>, info: &TtyInfoEntry) -> u32 {
    const PTYS: u32 = 1000;
    let usual = match (TtyType::try_from(info.r#type), info.pty) {
        (Ok(TtyType::TtytypeExtTty), _) => Some(2016),
        (_, Some(pty)) if pty.index >= PTYS => None,
        (_, Some(pty)) => Some(2 * pty.index + u32::from(Device::of(u64::from(info.rdev)) == Some(Device::Master))),
        (Ok(TtyType::TtytypeConsole), _) => Some(2004),
        (Ok(TtyType::TtytypeVt), _) => Some(2008),
        (Ok(TtyType::TtytypeCtty), _) => Some(2012),
        _ => None,
    };
    if let Some(id) = usual
        && cx.notes.insert(("tty id", u64::from(id)), 0).is_none()
    {
        return id;
    }
    let more = cx.notes.entry(("tty ids above", 0)).or_insert(0x1_0000);
    *more += 1;
    *more - 1
}

/// Writes down the path of a terminal's open file; returns the record's id.
pub(super) fn collect_path(cx: &mut Collect<'_>, file: &OpenFile<'_>) -> Result<u32> {
    let id = cx.new_id();
    // The name of a pty that is hung up is gone, and is not needed.
    let name = file.link_bytes();
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    let mnt_id = cx.mount_of(file.file).map_err(|e| Error::kernel(file.object(), "ask for its mount", e))?;
    let reg = RegFileEntry {
        id,
        flags: file.flags(),
        pos: 0,
        fown: FownEntry::default(),
        name: name.to_vec(),
        mnt_id: Some(mnt_id),
        mode: Some(file.stat.st_mode),
        ..RegFileEntry::default()
    };
    let entry = FileEntry { r#type: FdTypes::Reg as i32, id, reg: Some(reg), ..FileEntry::default() };
    cx.images.append(ImageKind::Files, None, &entry, None)?;
    Ok(id)
}

/// The image has 19 words for the control characters, but CRIU copies the
/// kernel's 19 bytes into the first five of them.
const CONTROL_WORDS: usize = 19;

pub(super) fn to_record(settings: &Termios2) -> TermiosEntry {
    let Termios { iflag, oflag, cflag, lflag, line, cc } = settings.termios;
    let mut bytes = [0; 4 * CONTROL_WORDS];
    bytes[..cc.len()].copy_from_slice(&cc);
    let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    TermiosEntry {
        c_iflag: iflag,
        c_oflag: oflag,
        c_cflag: cflag,
        c_lflag: lflag,
        c_line: line.into(),
        c_ispeed: settings.ispeed,
        c_ospeed: settings.ospeed,
        c_cc: words.collect(),
    }
}

/// Settings from a record. Speeds are 0 where CRIU wrote it.
pub(super) fn from_record(entry: &TermiosEntry) -> Result<Termios2> {
    let mut cc = [0; 19];
    let bytes: Vec<u8> = entry.c_cc.iter().flat_map(|word| word.to_le_bytes()).collect();
    let Some(bytes) = bytes.get(..cc.len()) else {
        return Err(Error::bad_image("tty-info.img", format!("{} control characters of a terminal", bytes.len())));
    };
    cc.copy_from_slice(bytes);
    let termios = Termios {
        iflag: entry.c_iflag,
        oflag: entry.c_oflag,
        cflag: entry.c_cflag,
        lflag: entry.c_lflag,
        line: entry.c_line as u8,
        cc,
    };
    Ok(Termios2 { termios, ispeed: entry.c_ispeed, ospeed: entry.c_ospeed })
}

/// Gives a terminal the settings and size of its record.
pub(super) fn apply(file: BorrowedFd<'_>, info: &TtyInfoEntry) -> Result<()> {
    let failed = |what: &'static str| move |e| Error::kernel(Object::Other(name(info)), format!("set its {what}"), e);
    if let Some(entry) = &info.termios {
        apply_settings(file, entry).and_then(|done| done.map_err(failed("settings")))?;
    }
    if let Some(entry) = &info.termios_locked {
        let locked = from_record(entry)?.termios;
        if tty::get_locked_termios(file).map_err(failed("locked settings"))? != locked {
            tty::set_locked_termios(file, &locked).map_err(failed("locked settings"))?;
        }
    }
    if let Some(size) = &info.winsize {
        let size = Winsize {
            ws_row: size.ws_row as u16,
            ws_col: size.ws_col as u16,
            ws_xpixel: size.ws_xpixel as u16,
            ws_ypixel: size.ws_ypixel as u16,
        };
        rustix::termios::tcsetwinsize(file, size).map_err(failed("size"))?;
    }
    Ok(())
}

/// Gives a terminal recorded settings.
pub(super) fn apply_settings(file: BorrowedFd<'_>, entry: &TermiosEntry) -> Result<std::result::Result<(), Errno>> {
    let settings = from_record(entry)?;
    Ok(match settings.ospeed {
        0 => tty::set_termios(file, &settings.termios),
        _ => tty::set_termios2(file, &settings),
    })
}
