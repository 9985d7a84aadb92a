//! Devices of /dev/net/tun: what their files know of them, and the files.
//!
//! A device that nobody is attached to does not stay, unless it is said to. It is made persistent until its files are
//! attached; then what the record says of that holds.

use super::link_build::object;
use crate::files::{Build, Collect, FileKind, OpenFile, apply_status_flags, regular};
use crate::freeze::{Process, pid_of};
use crate::{Error, Object, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, NetDeviceEntry, TunfileEntry};
use cryonaut_kernel::sys::{pidfd, tun};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

const PATH: &str = "/dev/net/tun";
/// Its major and minor number.
const DEVICE: (u32, u32) = (10, 200);

/// What the files of processes know of their devices: names, lengths of headers, bytes that may wait. Names of different
/// namespaces may be the same, so it is asked of those who are in the one that is meant.
pub fn of_files<'p>(processes: impl Iterator<Item = &'p Process>) -> BTreeMap<String, (u32, u32)> {
    let mut all = BTreeMap::new();
    for process in processes.filter(|process| !process.is_zombie()) {
        let is_tun = |fd: &i32| process.task.link(&format!("fd/{fd}")).is_ok_and(|path| path.as_os_str() == PATH);
        let files: Vec<i32> = process.task.fds().unwrap_or_default().into_iter().filter(is_tun).collect();
        if files.is_empty() {
            continue;
        }
        let Some(pidfd) = pid_of(process.speaker()).ok().and_then(|tid| pidfd::open_thread(tid).ok()) else { continue };
        for fd in files {
            let Ok(file) = pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()) else { continue };
            if let (Ok((name, _)), Ok((header, unsent))) = (tun::get_device(&file), tun::get_rooms(&file)) {
                all.insert(name, (header as u32, unsent as u32));
            }
        }
    }
    all
}

fn open() -> Result<OwnedFd> {
    rustix::fs::open(PATH, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| Error::Kernel {
        object: Object::Path(PATH.into()),
        action: "open it".into(),
        errno,
        remedy: "devices of tun need CONFIG_TUN (module tun)",
    })
}

/// Makes the device of a record, in the calling thread's network namespace.
pub fn make_device(record: &NetDeviceEntry) -> Result<()> {
    let lacks = || Error::bad_image("netdev", format!("{} is said to be a tun and has no record of one", record.name));
    let told = record.tun.ok_or_else(lacks)?;
    let file = open()?;
    let make = || -> std::result::Result<(), Errno> {
        tun::choose_index(&file, record.ifindex)?;
        let flags = tun::KINDS | tun::NO_PI | tun::VNET_HDR | tun::MULTI_QUEUE;
        tun::attach(&file, &record.name, told.flags & flags)?;
        tun::set_owner(&file, told.owner, told.group)?;
        tun::set_rooms(&file, (told.vnethdr as i32, told.sndbuf as i32))?;
        tun::set_persistent(&file, true)
    };
    make().map_err(|e| Error::kernel(object(&record.name), "make it", e))
}

/// A file that is attached to a device, or is about to be.
#[derive(Debug)]
pub struct TunFile;

impl FileKind for TunFile {
    fn name(&self) -> &'static str {
        "tun"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Tunf
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        let device = (rustix::fs::major(file.stat.st_rdev), rustix::fs::minor(file.stat.st_rdev));
        device == DEVICE && file.flags() & libc::O_PATH as u32 == 0 && file.link_bytes() == PATH.as_bytes()
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.reg.as_ref().map(|opened| &opened.fown)
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let mut entry = TunfileEntry { id, ..TunfileEntry::default() };
        match tun::get_device(file.file) {
            Ok((name, flags)) => {
                entry.netdev = Some(name);
                entry.detached = (flags & tun::DETACH_QUEUE != 0).then_some(true);
            }
            Err(Errno::BADFD) => {}
            Err(e) => return Err(Error::kernel(file.object(), "ask for its device", e)),
        }
        entry.ns_id = cx.network_of(file)?;
        // As CRIU does: how it is open stands in a record of its own under the same id.
        let opened = regular::plain_record(file, id)?;
        cx.images.append(ImageKind::Files, None, &opened, None)?;
        Ok(FileEntry { r#type: FdTypes::Tunf.into(), id, tunf: Some(entry), ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let record = entry.tunf.as_ref().ok_or_else(|| Build::lacks(entry, "a tun"))?;
        let file = open()?;
        if let Some(opened) = &entry.reg {
            apply_status_flags(file.as_fd(), entry.id, opened.flags)?;
        }
        let Some(name) = &record.netdev else { return Ok(file) };
        let device = cx.networks.tun(record.ns_id, name);
        let failed = |e| Error::kernel(object(name), "attach its file to it", e);
        let told = device.unwrap_or_default();
        let flags = tun::KINDS | tun::NO_PI | tun::VNET_HDR | tun::MULTI_QUEUE;
        tun::attach(&file, name, told.flags & flags).map_err(failed)?;
        if record.detached() {
            tun::detach_queue(&file).map_err(failed)?;
        }
        if told.flags & tun::PERSIST == 0 {
            tun::set_persistent(&file, false).map_err(failed)?;
        }
        Ok(file)
    }
}
