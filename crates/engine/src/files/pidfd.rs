//! Processes held by a file (pidfd_open(2)).
//!
//! One of a process that has ended and been waited for is built from a process
//! that ends at once, with the same status where the kernel tells it (Linux
//! 6.15): the status goes beside the record, in `cryonaut-pidfd-ID.json`. All
//! that meant the same process mean the same one again.

use super::{Build, Collect, FileKind, OpenFile};
use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, PidfdEntry};
use cryonaut_kernel::proc::fdinfo::Details;
use cryonaut_kernel::sys::pidfd::{Fields, get_info};
use cryonaut_kernel::sys::process::spawn_ended;
use cryonaut_kernel::sys::wait::{Who, wait};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// Processes held by a file.
#[derive(Debug)]
pub struct PidFd;

/// `nspid` of a process that is no more.
const REAPED: i32 = -1;

/// `PIDFD_THREAD` (linux/pidfd.h): of one thread, not of the whole process.
const THREAD: u32 = libc::O_EXCL as u32;

/// The flags that pidfd_open(2) takes, which the record holds.
const OPENING: u32 = THREAD | PidfdFlags::NONBLOCK.bits();

/// How a process had ended.
#[derive(Debug, Serialize, Deserialize)]
struct Ended {
    /// As wait(2) reports it.
    status: i32,
}

impl FileKind for PidFd {
    fn name(&self) -> &'static str {
        "pidfd"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Pidfd
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        matches!(file.info.details, Details::PidFd { .. })
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let Details::PidFd { pid, .. } = &file.info.details else {
            return Err(file.unexpected(self.name()));
        };
        let nspid = match *pid {
            REAPED => {
                let told = get_info(file.file, Fields::EXIT).ok().filter(|info| info.fields.contains(Fields::EXIT));
                if let Some(info) = told {
                    cx.images.write_json(&ended_name(id), &Ended { status: info.exit_code })?;
                }
                REAPED
            }
            pid if cx.pids.contains(&pid) => pid,
            pid => {
                let reason = format!("it holds {pid}, which is no process of the tree");
                return Err(Error::unsupported(file.object(), reason, "close it, or checkpoint a tree with both"));
            }
        };
        let ino = file.stat.st_ino as u32;
        let flags = file.flags() & OPENING;
        let pidfd = PidfdEntry { id, ino, flags, nspid, fown: file.owner()? };
        Ok(FileEntry { r#type: FdTypes::Pidfd as i32, id, pidfd: Some(pidfd), ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let pidfd = entry.pidfd.ok_or_else(|| Build::lacks(entry, self.name()))?;
        if pidfd.nspid == REAPED {
            return build_ended(cx, &pidfd);
        }
        open(pid_of(pidfd.nspid)?, &pidfd).map_err(|e| failed(&pidfd, &format!("open process {}", pidfd.nspid), e))
    }

    fn needs_processes(&self, _entry: &FileEntry) -> bool {
        true
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.pidfd.as_ref().map(|pidfd| &pidfd.fown)
    }
}

fn ended_name(id: u32) -> String {
    format!("pidfd-{id}")
}

fn failed(pidfd: &PidfdEntry, action: &str, errno: Errno) -> Error {
    Error::kernel(Object::File(pidfd.id, "pidfd".into()), action, errno)
}

fn open(pid: Pid, pidfd: &PidfdEntry) -> std::result::Result<OwnedFd, Errno> {
    pidfd_open(pid, PidfdFlags::from_bits_retain(pidfd.flags & OPENING))
}

/// Builds all that mean the same process that is no more.
fn build_ended(cx: &mut Build<'_>, wanted: &PidfdEntry) -> Result<OwnedFd> {
    let same = |e: &&PidfdEntry| e.nspid == REAPED && e.ino == wanted.ino && e.id != wanted.id;
    let others: Vec<PidfdEntry> =
        cx.records().values().filter_map(|e| e.pidfd.as_ref()).filter(same).copied().collect();
    let ended: Option<Ended> = cx.images.read_json(&ended_name(wanted.id))?;
    let child = spawn_ended(ended.map_or(0, |ended| ended.status))
        .map_err(|e| failed(wanted, "make a process that ends", e))?;
    let file = open(child.pid, wanted);
    let others: Vec<_> = others.iter().map(|other| (other.id, open(child.pid, other))).collect();
    while let Err(e) = wait(Who::One(child.pid)) {
        if e != Errno::INTR {
            return Err(failed(wanted, "wait for a process that ends", e));
        }
    }
    for (id, other) in others {
        cx.put(id, other.map_err(|e| failed(wanted, "open a process that ends", e))?);
    }
    file.map_err(|e| failed(wanted, "open a process that ends", e))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;
    use cryonaut_kernel::proc::Task;
    use std::os::fd::AsRawFd;

    #[test]
    fn living_and_ended_processes_come_back() {
        let me = rustix::process::getpid();
        let living = pidfd_open(me, PidfdFlags::NONBLOCK).unwrap();
        let ended = |status| {
            let child = spawn_ended(status).unwrap();
            let twin = pidfd_open(child.pid, PidfdFlags::empty()).unwrap();
            wait(Who::One(child.pid)).unwrap();
            (child.pidfd, twin)
        };
        let (three, twin) = ended(3 << 8);
        let (terminated, _) = ended(libc::SIGTERM);
        let originals = [&living, &three, &terminated, &twin];
        let carried = Carried::collect(&[&living, &three, &terminated, &twin]).build(RestoreOptions::default());
        let told = |fd: &OwnedFd| Task::current().unwrap().fdinfo(fd.as_raw_fd()).unwrap().details;
        let status = |fd: &OwnedFd| get_info(fd, Fields::EXIT).map(|info| info.exit_code);
        for (n, original) in originals.into_iter().enumerate() {
            assert_eq!(told(carried.file(n)), told(original), "{n}");
            assert_eq!(rustix::fs::fcntl_getfl(carried.file(n)), rustix::fs::fcntl_getfl(original));
            if n > 0 {
                assert_eq!(status(carried.file(n)), status(original), "{n}");
            }
        }
        let ino = |n: usize| rustix::fs::fstat(carried.file(n)).unwrap().st_ino;
        assert_eq!(ino(1), ino(3));
    }
}
