//! What processes have open, written down: descriptor tables, and the
//! directories they are in. It needs no hand and nothing that ptrace tells, so
//! any thread can do it.

use super::{Files, lock};
use crate::attributes::task;
use crate::files::HeldFile;
use crate::files::socket::Alike;
use crate::freeze::{Process, pid_of};
use crate::{Error, Object, Result, parallel};
use cryonaut_image::ImageKind;
use cryonaut_kernel::Errno;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::glance::{Descriptor, Objects};
use cryonaut_kernel::sys::pidfd;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Descriptors of a process that we hold at a time.
const FILES_AT_ONCE: usize = 64;

/// A process, as far as its files are concerned.
#[derive(Debug)]
pub struct Owner {
    pid: i32,
    /// [`Process::speaker`].
    speaker: i32,
    task: Task,
    umask: Option<u32>,
    /// [`Process::objects`].
    objects: Option<Objects>,
    /// The id of its descriptor table, if it is for this process to write.
    table: Option<u32>,
    /// [`Process::descriptors`].
    seen: Option<Vec<Descriptor>>,
}

impl Owner {
    /// `table`: whether its descriptor table has not been given to another to write.
    pub fn of(process: &Process, table: bool) -> Owner {
        Owner {
            pid: process.pid,
            speaker: process.speaker(),
            task: process.task.clone(),
            umask: process.status.umask,
            objects: process.objects,
            table: process.ids.filter(|_| table).map(|ids| ids.files_id),
            seen: process.descriptors.clone().filter(|_| table),
        }
    }
}

/// Writes its descriptor table, and what else it uses of the file system.
pub fn write(files: Files<'_, '_>, owner: &Owner) -> Result<()> {
    if let Some(id) = owner.table {
        write_table(files, owner, id)?;
    }
    let mut cx = lock(files);
    let fs = task::fs_record(&mut cx, (owner.pid, &owner.task), owner.objects, owner.umask)?;
    Ok(cx.images.write_one(ImageKind::Fs, owner.pid as u64, &fs)?)
}

/// The descriptor table: every open file, and the numbers under which it is.
fn write_table(files: Files<'_, '_>, owner: &Owner, id: u32) -> Result<()> {
    let writer = lock(files).images.entry_file(ImageKind::Fdinfo, u64::from(id))?;
    let alike = owner.alike(files)?;
    for some in owner.numbers(alike.as_ref())?.chunks(FILES_AT_ONCE) {
        let (mut lines, mut others) = (Vec::with_capacity(some.len()), Vec::new());
        {
            let cx = lock(files);
            for number in some {
                match number.seen.as_ref().and_then(|seen| cx.known(seen)) {
                    Some(line) => lines.push(line),
                    None => others.push(*number),
                }
            }
        }
        // Not while others wait for their turn.
        let held = owner.hold(others, alike.as_ref())?;
        let mut cx = lock(files);
        cx.some(&held);
        for held in held {
            lines.push(cx.descriptor(&owner.task, owner.pid, held)?);
        }
        drop(cx);
        lines.sort_unstable_by_key(|line| line.fd);
        lines.iter().try_for_each(|line| writer.append(line))?;
    }
    lock(files).images.complete(writer);
    Ok(())
}

/// A number of a descriptor table, and what was seen of it at a glance.
#[derive(Debug, Clone, Copy)]
struct Number {
    fd: RawFd,
    seen: Option<Descriptor>,
}

impl Owner {
    /// What is seen of a process that has many descriptors, if there are sockets.
    fn alike(&self, files: Files<'_, '_>) -> Result<Option<Alike>> {
        let (guard, options, may_look) = {
            let cx = lock(files);
            (cx.guard, cx.options, cx.has_sockets)
        };
        if !may_look {
            return Ok(None);
        }
        Ok(Alike::of(&self.task, self.speaker, self.open()?.as_fd(), (guard, &options.tcp)))
    }

    /// All of its table, ascending.
    fn numbers(&self, alike: Option<&Alike>) -> Result<Vec<Number>> {
        let seen = |seen: &Descriptor| Number { fd: seen.fd, seen: Some(*seen) };
        let of = |fd: RawFd| Number { fd, seen: None };
        Ok(match (alike, &self.seen) {
            (None, Some(all)) => all.iter().map(seen).collect(),
            (Some(alike), _) => alike.descriptors().iter().copied().map(of).collect(),
            (None, None) => self.task.fds()?.into_iter().map(of).collect(),
        })
    }

    /// Takes duplicates of some of its descriptors, and reads about them.
    fn hold(&self, some: Vec<Number>, alike: Option<&Alike>) -> Result<Vec<HeldFile>> {
        if some.is_empty() {
            return Ok(Vec::new());
        }
        let process = self.open()?;
        let hold = |Number { fd, seen }: Number| -> Result<HeldFile> {
            let file = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).map_err(|e| self.failed(e))?;
            Ok(HeldFile::read(&self.task, self.pid, fd, file, alike)?.at(seen.map(|seen| seen.file)))
        };
        parallel::map(some, hold).into_iter().collect()
    }

    fn open(&self) -> Result<OwnedFd> {
        pidfd::open_thread(pid_of(self.speaker)?).map_err(|e| self.failed(e))
    }

    fn failed(&self, e: Errno) -> Error {
        Error::kernel(Object::Process(self.pid), "duplicate its descriptors", e)
    }
}
