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
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::pidfd;
use rustix::process::PidfdGetfdFlags;
use std::os::fd::AsFd;

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
    /// The id of its descriptor table, if it is for this process to write.
    table: Option<u32>,
}

impl Owner {
    /// `table`: whether its descriptor table has not been given to another to write.
    pub fn of(process: &Process, table: bool) -> Owner {
        Owner {
            pid: process.pid,
            speaker: process.speaker(),
            task: process.task.clone(),
            umask: process.status.umask,
            table: process.ids.filter(|_| table).map(|ids| ids.files_id),
        }
    }
}

/// Writes its descriptor table, and what else it uses of the file system.
pub fn write(files: Files<'_, '_>, owner: &Owner) -> Result<()> {
    if let Some(id) = owner.table {
        write_table(files, owner, id)?;
    }
    let mut cx = lock(files);
    let fs = task::fs_record(&mut cx, &owner.task, owner.pid, owner.umask)?;
    Ok(cx.images.write_one(ImageKind::Fs, owner.pid as u64, &fs)?)
}

/// The descriptor table: every open file, and the numbers under which it is.
fn write_table(files: Files<'_, '_>, owner: &Owner, id: u32) -> Result<()> {
    let (pid, task) = (owner.pid, &owner.task);
    let failed = |e| Error::kernel(Object::Process(pid), "duplicate its descriptors", e);
    let pidfd = pidfd::open_thread(pid_of(owner.speaker)?).map_err(failed)?;
    let writer = lock(files).images.entry_file(ImageKind::Fdinfo, u64::from(id))?;
    let (guard, options, may_look) = {
        let cx = lock(files);
        (cx.guard, cx.options, cx.has_sockets)
    };
    let look = || Alike::of(task, owner.speaker, pidfd.as_fd(), (guard, &options.tcp));
    let alike = if may_look { look() } else { None };
    let all = match &alike {
        Some(alike) => alike.descriptors().to_vec(),
        None => task.fds()?,
    };
    for some in all.chunks(FILES_AT_ONCE) {
        let hold = |fd: i32| {
            let file = rustix::process::pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).map_err(failed)?;
            HeldFile::read(task, pid, fd, file, alike.as_ref())
        };
        // Not while others wait for their turn.
        let held = parallel::map(some.to_vec(), hold).into_iter().collect::<Result<Vec<_>>>()?;
        let mut cx = lock(files);
        cx.some(&held);
        for file in held {
            writer.append(&cx.descriptor(task, pid, file)?)?;
        }
    }
    lock(files).images.complete(writer);
    Ok(())
}
