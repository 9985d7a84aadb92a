//! System V shared memory (sysvipc(7)), as far as it is mapped.
//!
//! Segments belong to the ipc namespace, which is not the tree's: they outlive
//! it, unless they were removed and only mapped still. So a restore finds most
//! of them where they were, and makes those that have gone again, with their
//! ids. Contents are those of the image, as of all memory; but a segment that
//! somebody else has mapped as well is no part of the tree, and is refused.
//!
//! Where a segment is mapped, the record says as CRIU would; what it is, is in
//! `cryonaut-sysv-memory.json`, and its pages are as of shared memory.

use super::{Build, Collect, shared_pages};
use crate::memory::{PAGE, page_size};
use crate::restore::Work;
use crate::users;
use crate::{Error, Object, Result};
use cryonaut_image::ImageDir;
use cryonaut_image::records::{TaskKobjIdsEntry, VmaEntry};
use cryonaut_kernel::proc::maps::{FlaggedVma, VmFlags, Vma};
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::huge;
use cryonaut_kernel::sys::namespace::within;
use cryonaut_kernel::sys::sysv::{self, Attached, LOCKED, REMOVED, Status};
use cryonaut_puppet::{Arg, Batch};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

const NAME: &str = "sysv-memory";
/// Ids of their contents are told apart from those of memfds and anonymous shared memory by this bit.
const SHMID_BIT: u64 = 1 << 31;
/// SHM_RDONLY and SHM_EXEC of shmat(2).
const READ_ONLY: u32 = 0o10000;
const EXECUTABLE: u32 = 0o100000;

const BEYOND: &str = "it reaches beyond the end of its segment of System V memory";
const WHOLE: &str = "let the program map it whole";

/// What to do where a segment of huge pages cannot be made.
pub const LACK_OF_HUGE_PAGES: &str = "check that huge pages of its size are free (/proc/meminfo)";

/// What a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Segment {
    key: i32,
    size: u64,
    owner: (u32, u32),
    /// Permissions, and whether it was removed or is locked.
    mode: u32,
    /// Mappings of it, in the whole tree.
    mappings: u64,
    /// Bytes of its huge pages; `None` if they are not huge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    huge_page: Option<u64>,
}

impl Segment {
    /// Whether a segment with its id can be the one that was written down. Ids come again, and a removed segment was gone
    /// with its last mapping: what is there under its id is another's, not to be written to, nor to be removed.
    fn is(&self, there: &Status) -> bool {
        (self.key, self.size, users::outside(self.owner)) == (there.key, there.size, (there.uid, there.gid))
            && self.mode & REMOVED == 0
    }
}

/// Segments that were written down, by id; with how many of their mappings have been seen.
pub type Known = BTreeMap<i32, (Segment, u64, Object)>;

/// Bytes that the file of a segment has: huge pages are whole.
pub fn file_size(size: u64, huge_page: Option<u64>) -> u64 {
    huge_page.map_or(size, |page| size.next_multiple_of(page))
}

/// Whether a mapping is of a segment.
pub fn is_mapping(vma: &Vma) -> bool {
    vma.deleted && vma.path.as_bytes().starts_with(b"/SYSV")
}

/// Writes down a mapping, and its segment the first time.
pub fn collect(
    cx: &mut Collect<'_>,
    ids: &TaskKobjIdsEntry,
    object: Object,
    of: &FlaggedVma,
    record: &mut VmaEntry,
) -> Result<()> {
    let no = |reason: &str, remedy| Err(Error::unsupported(object.clone(), reason, remedy));
    let id = of.vma.inode as i32;
    record.shmid = id as u64;
    record.fdflags = Some(if of.flags.contains(VmFlags::MAYWRITE) { libc::O_RDWR } else { libc::O_RDONLY } as u32);
    let len = of.vma.end - of.vma.start;
    let is_inside = |size: u64| of.vma.offset + len <= size.next_multiple_of(of.page_size);
    if let Some(own) = cx.namespaces.and_then(|all| all.of(ids, Namespace::Ipc)) {
        // Written down with all that is in its namespace.
        let there = within(&[own.file.as_fd()], || sysv::status(id)).and_then(|told| told);
        return match there.map_err(|e| Error::kernel(object.clone(), "ask about its segment", e))? {
            there if is_inside(there.size) => Ok(()),
            _ => no(BEYOND, WHOLE),
        };
    }
    let segment = match cx.sysv.get_mut(&id) {
        Some((segment, seen, _)) => {
            *seen += 1;
            *segment
        }
        None => {
            let segment = write(cx, id, &object)?;
            cx.sysv.insert(id, (segment, 1, object.clone()));
            segment
        }
    };
    if is_inside(segment.size) { Ok(()) } else { no(BEYOND, WHOLE) }
}

fn write(cx: &mut Collect<'_>, id: i32, object: &Object) -> Result<Segment> {
    let failed = |action: &'static str| move |e| Error::kernel(object.clone(), action, e);
    let Status { key, size, uid, gid, mode, attached } = sysv::status(id).map_err(failed("ask about its segment"))?;
    let ours = Attached::new(id, size).map_err(failed("map its segment"))?;
    let file = File::from(ours.file().map_err(failed("open its segment"))?);
    let huge_page = huge::page_of(&file).map_err(failed("ask for its pages"))?;
    let (size_there, page) = (file_size(size, huge_page), huge_page.unwrap_or(PAGE));
    shared_pages::write(cx, SHMID_BIT | id as u64, &file, size_there, page, object)?;
    Ok(Segment { key, size, owner: users::inside((uid, gid)), mode, mappings: attached, huge_page })
}

/// All mappings were seen: those that were not are somebody else's.
pub fn finish(cx: &Collect<'_>) -> Result<()> {
    for (id, (segment, seen, object)) in &cx.sysv {
        if *seen < segment.mappings {
            let others = segment.mappings - seen;
            return Err(Error::unsupported(
                object.clone(),
                format!("its segment of System V memory ({id}) is mapped {others} times outside of the tree as well"),
                "checkpoint all who share it in one tree (ipcs -m -p names who made it and who came last)",
            ));
        }
    }
    let all: BTreeMap<i32, Segment> = cx.sysv.iter().map(|(id, (segment, _, _))| (*id, *segment)).collect();
    if all.is_empty() { Ok(()) } else { Ok(cx.images.write_json(NAME, &all)?) }
}

/// The segments of a restore.
#[derive(Debug, Default)]
pub struct Segments {
    read: Option<BTreeMap<i32, Segment>>,
    ready: Vec<i32>,
    /// Those that were made, until all is well.
    made: Vec<i32>,
    /// By which those that are removed are there until the tree has mapped them.
    held: Vec<Attached>,
}

impl Segments {
    /// All is well: what was made stays.
    pub fn keep(&mut self) {
        self.made.clear();
        self.held.clear();
    }

    /// A segment is there, with its contents.
    fn prepare(&mut self, images: &ImageDir, id: i32) -> Result<()> {
        if self.ready.contains(&id) {
            return Ok(());
        }
        let read = match &mut self.read {
            Some(read) => read,
            unread => unread.insert(images.read_json(NAME)?.unwrap_or_default()),
        };
        let segment = *read
            .get(&id)
            .ok_or_else(|| Error::bad_image(format!("cryonaut-{NAME}.json"), format!("it lacks the segment {id}")))?;
        let object = Object::Other(format!("segment {id} of System V memory"));
        let failed = |action: &'static str| {
            let object = object.clone();
            move |e| Error::kernel(object, action, e)
        };
        match sysv::status(id) {
            Ok(there) if there.attached > 0 || !segment.is(&there) => {
                let reason = "somebody else has it mapped here, or another segment has its id";
                return Err(Error::unsupported(
                    object,
                    reason,
                    "end who uses it (ipcs -m -p), or remove it (ipcrm -m)",
                ));
            }
            Ok(_) => {}
            Err(_) => {
                make(id, &segment, &object)?;
                self.made.push(id);
            }
        }
        let ours = Attached::new(id, segment.size).map_err(failed("map it"))?;
        let file = File::from(ours.file().map_err(failed("open it"))?);
        let hole = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        let huge_page = huge::page_of(&file).map_err(failed("ask for its pages"))?;
        let (size, page) = (file_size(segment.size, huge_page), huge_page.unwrap_or(PAGE));
        rustix::fs::fallocate(&file, hole, 0, size.next_multiple_of(page)).map_err(failed("empty it"))?;
        shared_pages::read(images, SHMID_BIT | id as u64, &file, size, page, &object)?;
        if segment.mode & LOCKED != 0 {
            sysv::lock(id).map_err(failed("lock it"))?;
        }
        if segment.mode & REMOVED != 0 {
            sysv::remove(id).map_err(failed("remove it, as it was"))?;
            self.made.retain(|made| *made != id);
            self.held.push(ours);
        }
        self.ready.push(id);
        Ok(())
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        for id in &self.made {
            // Nothing of a restore that fails is to stay; who has removed it meanwhile has done the same.
            let _ = sysv::remove(*id);
        }
    }
}

fn make(id: i32, segment: &Segment, object: &Object) -> Result<()> {
    // A removed one has no key any more.
    let key = if segment.mode & REMOVED != 0 { libc::IPC_PRIVATE } else { segment.key };
    let failed = |errno| Error::Kernel {
        object: object.clone(),
        action: format!("make it, with the key {:#x} and {} bytes", segment.key, segment.size),
        errno,
        remedy: match errno {
            Errno::EXIST => "another segment has its key: remove that (ipcrm -M)",
            Errno::BUSY => "another segment has its id: remove that (ipcrm -m)",
            Errno::NOSPC | Errno::INVAL => "see the limits of ipcs -l",
            Errno::NOMEM if segment.huge_page.is_some() => LACK_OF_HUGE_PAGES,
            Errno::ACCESS | Errno::PERM => "this needs CAP_CHECKPOINT_RESTORE",
            _ => "",
        },
    };
    sysv::create(id, key, segment.size, segment.mode, segment.huge_page).map_err(failed)?;
    let (uid, gid) = users::outside(segment.owner);
    sysv::set_owner(id, uid, gid, segment.mode).map_err(|errno| {
        // It is in nobody's list yet. Who has removed it meanwhile has done the same.
        let _ = sysv::remove(id);
        Error::kernel(object.clone(), format!("give it to user {uid} and group {gid}"), errno)
    })
}

/// Has a process map a segment at its place; whatever stands there is in the way.
/// `in_own` is the ipc namespace if that is of the tree's own, where all segments are made before.
pub fn map(files: &mut Build<'_>, work: &mut Work<'_>, vma: &VmaEntry, in_own: Option<BorrowedFd<'_>>) -> Result<()> {
    let id = vma.shmid as i32;
    if in_own.is_none() {
        let images = files.images;
        files.sysv.prepare(images, id)?;
    }
    let there = match in_own {
        Some(namespace) => within(&[namespace], || sysv::status(id)).and_then(|told| told),
        None => sysv::status(id),
    };
    let object = || Object::Other(format!("segment {id} of System V memory"));
    let size = there.map_err(|e| Error::kernel(object(), "ask about it", e))?.size;
    let size = size.checked_next_multiple_of(page_size(vma.flags)).unwrap_or(u64::MAX);
    let writable = vma.fdflags.unwrap_or(libc::O_RDWR as u32) & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
    let mut flags = if writable { 0 } else { READ_ONLY };
    let mut gets = (libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 }) as u32;
    if vma.prot & libc::PROT_EXEC as u32 != 0 {
        flags |= EXECUTABLE;
        gets |= libc::PROT_EXEC as u32;
    }
    let len = vma.end - vma.start;
    if (vma.pgoff, len) == (0, size) {
        work.batch.call(libc::SYS_shmat, [vma.shmid.into(), vma.start.into(), flags.into()]);
    } else {
        // Of a part, the rest would be in the way of what stands beside it.
        work.flush()?;
        let mut apart = Batch::new();
        let attached = apart.call(libc::SYS_shmat, [vma.shmid.into(), Arg::Val(0), flags.into()]);
        work.hand.run(&mut apart)?;
        let whole = apart.result(attached).unwrap_or_default();
        let moves = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let mut apart = Batch::new();
        apart.call(
            libc::SYS_mremap,
            [(whole + vma.pgoff).into(), len.into(), len.into(), moves.into(), vma.start.into()],
        );
        apart.call(libc::SYS_munmap, [whole.into(), size.into()]);
        work.hand.run(&mut apart)?;
    }
    if gets != vma.prot {
        work.batch.call(libc::SYS_mprotect, [vma.start.into(), len.into(), vma.prot.into()]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: Segment = Segment { key: 0, size: 5000, owner: (0, 0), mode: 0o640, mappings: 1, huge_page: None };

    #[test]
    fn what_cannot_be_given_its_owner_does_not_stay() {
        // One that was there a moment ago, for a free id.
        let (mut id, object) = (0, Object::Other("segment".into()));
        let made = loop {
            match sysv::create(id, libc::IPC_PRIVATE, 5000, 0o640, None) {
                Err(Errno::BUSY) => id += 1,
                made => break made,
            }
        };
        // Without CAP_CHECKPOINT_RESTORE.
        if made.is_err() {
            return;
        }
        sysv::remove(id).unwrap();
        assert!(make(id, &Segment { owner: (u32::MAX, u32::MAX), ..SEGMENT }, &object).is_err());
        assert_eq!(sysv::status(id).map(|there| there.size), Err(Errno::INVAL));
    }

    #[test]
    fn another_of_the_same_id_is_told_apart() {
        let there = Status { key: 0, size: 5000, uid: 0, gid: 0, mode: 0o640, attached: 0 };
        assert!(SEGMENT.is(&there));
        assert!(!SEGMENT.is(&Status { uid: 1000, ..there }));
        assert!(!SEGMENT.is(&Status { size: 4096, ..there }));
        // Nobody can have kept it.
        assert!(!Segment { mode: 0o640 | REMOVED, ..SEGMENT }.is(&there));
    }
}
