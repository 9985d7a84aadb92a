//! Where a program has its rings mapped.
//!
//! The kernel maps a ring where it likes and nowhere else, and does not move
//! it either. All that is free besides the wanted place is therefore filled
//! for the moment, while the process has next to no mappings. The other way
//! would be memory of the process's own as rings (IORING_SETUP_NO_MMAP): but
//! then the instance is another than it was, its memory ordinary memory, which
//! fork does not share and which the program can neither map again nor
//! resize; and older kernels want it in one physical piece.

use super::{CLOSE, Record, bring_to, cannot_make, object};
use crate::files::{Build, Collect};
use crate::{Error, Object, Result};
use cryonaut_image::ImageDir;
use cryonaut_image::records::{FdTypes, FileEntry, VmaEntry};
use cryonaut_kernel::proc::maps::Vma;
use cryonaut_kernel::sys::io_uring::{PART_MASK, Params};
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Arg, Batch, Hand};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

/// Whether a mapping is of a ring.
pub fn is_mapping(vma: &Vma) -> bool {
    vma.path.as_bytes().starts_with(b"anon_inode:[io_uring]")
}

/// The id of the file that a mapping is of.
pub fn mapped(cx: &Collect<'_>, object: impl Fn() -> Object, vma: &Vma) -> Result<u32> {
    let no = |reason, remedy| Err(Error::unsupported(object(), reason, remedy));
    if vma.offset & !PART_MASK != 0 {
        return no("only a part of its rings is mapped, which cannot be done again", CLOSE);
    }
    match cx.notes.get(&("io_uring", vma.inode)) {
        Some(&id) => Ok(id),
        None => no("no process of the tree before this one has the descriptor that it belongs to", "unmap it first"),
    }
}

/// Whether a record is of a mapping of a ring.
pub fn is_recorded(files: &Build<'_>, vma: &VmaEntry) -> bool {
    vma.status & crate::memory::status::FILE_SHARED != 0
        && files.records().get(&(vma.shmid as u32)).is_some_and(|file| file.r#type == FdTypes::Und as i32)
}

/// Makes a ring in the first process that has it mapped: memory that is registered with it later counts as this one's.
fn make_in(hand: &mut Hand, images: &ImageDir, entry: &FileEntry) -> Result<OwnedFd> {
    let record = Record::read(images, entry)?;
    let flags = record.flags_at_first();
    let mut asked = Params::new(record.cq_entries, flags);
    if let Some(poller) = record.poller {
        if poller.pid != hand.pid() {
            let reason = "a process that has it mapped comes back before the one that made it";
            return Err(Error::unsupported(object(entry.id), reason, ""));
        }
        asked = poller.ask(asked);
    }
    let mut params = asked.clone();
    let mut b = Batch::new();
    let words = b.bytes(&params.0.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>());
    b.read_back(words);
    let made = b.attempt(libc::SYS_io_uring_setup, [record.sq_entries.into(), words.into()]);
    hand.run(&mut b)?;
    let number = b.result(made).map_err(|e| cannot_make(entry.id, e))? as i32;
    for (at, word) in params.0.iter_mut().enumerate() {
        *word = b.read_u32(words.at(4 * at));
    }
    let failed = |e| Error::kernel(object(entry.id), "take it from the process that has made it", e);
    let process = pidfd_open(crate::freeze::pid_of(hand.pid())?, PidfdFlags::empty()).map_err(failed)?;
    let file = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).map_err(failed)?;
    let mut b = Batch::new();
    b.call(libc::SYS_close, [number.into()]);
    hand.run(&mut b)?;
    let layout = params.layout(record.sq_entries, &asked);
    bring_to(entry.id, &record, &file, layout.map_err(|e| cannot_make(entry.id, e))?)?;
    Ok(file)
}

/// Maps a ring at its address. The process has few mappings yet, and none where this one goes.
pub fn map(hand: &mut Hand, service: &Service, files: &mut Build<'_>, vma: &VmaEntry) -> Result<()> {
    let (pid, id) = (hand.pid(), vma.shmid as u32);
    if !files.built().contains_key(&id) {
        let file = make_in(hand, files.images, files.record(id)?)?;
        files.put(id, file);
    }
    let number = service.give(hand, &[files.file(id)?])?[0];
    let taken = cryonaut_kernel::proc::Task::open(crate::freeze::pid_of(pid)?)?.maps()?;
    let mut keep: Vec<(u64, u64)> = taken.iter().map(|v| (v.start, v.end)).collect();
    keep.push((vma.start, vma.end));
    let fillers = crate::memory::free_besides(keep);
    let mut b = Batch::new();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    for &(start, end) in &fillers {
        let len = end - start;
        b.call(
            libc::SYS_mmap,
            [start.into(), len.into(), libc::PROT_NONE.into(), flags.into(), Arg::Val(u64::MAX), 0.into()],
        );
    }
    let shared = libc::MAP_SHARED;
    let len = vma.end - vma.start;
    let at = b.attempt(
        libc::SYS_mmap,
        [0.into(), len.into(), vma.prot.into(), shared.into(), number.into(), vma.pgoff.into()],
    );
    for &(start, end) in &fillers {
        b.call(libc::SYS_munmap, [start.into(), (end - start).into()]);
    }
    b.call(libc::SYS_close, [number.into()]);
    let object = || Object::Mapping(pid, vma.start, "io_uring".into());
    hand.run(&mut b).map_err(|e| match e {
        cryonaut_puppet::Error::Call { errno: errno @ Errno::NOMEM, .. } => Error::Kernel {
            object: object(),
            action: "keep all other places taken while it is mapped".into(),
            errno,
            remedy: "restore without a limit of the address space (ulimit -v)",
        },
        e => e.into(),
    })?;
    match b.result(at) {
        Ok(at) if at == vma.start => Ok(()),
        Ok(_) => Err(Error::kernel(object(), "have the kernel map it there", Errno::EXIST)),
        Err(e) => Err(Error::kernel(object(), "map it", e)),
    }
}
