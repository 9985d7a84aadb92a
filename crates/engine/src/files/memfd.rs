//! Files made by memfd_create(2), and shared anonymous memory, which is such a
//! file made by mmap(2): inodes without a path, of which several open files and
//! mappings may exist. The inode and its contents are written once
//! (`memfd.img`, and pages as of shared memory); each open file names it.
//!
//! Contents are read and written through an open file of our own, since
//! looking for data moves the position. Seals come last of all, when every
//! mapping has been made: a seal against future writing lets those that are
//! there go on.

use super::regular_path::reopen;
use super::{Build, Collect, FileKind, OpenFile, Settle, apply_status_flags, shared_pages};
use crate::memory::PAGE;
use crate::users;
use crate::{Error, Object, Result};
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, MemfdFileEntry, MemfdInodeEntry};
use cryonaut_image::{ImageDir, ImageKind};
use cryonaut_kernel::sys::huge;
use rustix::fs::{AtFlags, Gid, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom, Stat, Uid};
use rustix::io::Errno;
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

/// Files made by memfd_create(2).
#[derive(Debug)]
pub struct Memfd;

const PREFIX: &[u8] = b"/memfd:";
const SUFFIX: &[u8] = b" (deleted)";

/// Ids of their contents are told apart from those of anonymous shared memory
/// by this bit.
const SHMID_BIT: u32 = 1 << 30;

/// `O_LARGEFILE` as the kernel shows it; libc has 0 for it here.
const LARGEFILE: u32 = 0o100000;

/// The name under which the kernel shows shared anonymous memory, and such of huge pages.
const ANONYMOUS: &[u8] = b"/dev/zero";
const ANONYMOUS_HUGE: &[u8] = b"/anon_hugepage";

/// Whether a file with this link and status is one.
pub(super) fn is_memfd(file: BorrowedFd<'_>, stat: &Stat, link: &[u8]) -> bool {
    if stat.st_nlink == 0 && link.strip_suffix(SUFFIX).is_some_and(|name| name == ANONYMOUS || name == ANONYMOUS_HUGE) {
        return is_anonymous(file, stat);
    }
    // No path of a file system has no links yet both seals and this name.
    link.starts_with(PREFIX)
        && stat.st_nlink == 0
        && reopen(file, OFlags::RDONLY).is_ok_and(|own| rustix::fs::fcntl_get_seals(&own).is_ok())
}

/// Whether a deleted file with the name of shared anonymous memory is that, and not one that was in a file system.
fn is_anonymous(file: BorrowedFd<'_>, stat: &Stat) -> bool {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    let device = || {
        let own = rustix::fs::memfd_create("device", MemfdFlags::CLOEXEC).ok()?;
        Some(rustix::fs::fstat(own).ok()?.st_dev)
    };
    *DEVICE.get_or_init(device) == Some(stat.st_dev) || huge::page_of(file).is_ok_and(|page| page.is_some())
}

impl FileKind for Memfd {
    fn name(&self) -> &'static str {
        "memfd"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Memfd
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        is_memfd(file.file, &file.stat, file.link_bytes())
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let inode = collect_inode(cx, file.file, &file.stat, file.link_bytes(), &file.object())?;
        let path_only = file.flags() & libc::O_PATH as u32 != 0;
        let pos = if path_only { 0 } else { file.info.pos as u64 };
        Ok(record(id, file.flags(), pos, file.owner()?, inode))
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let memfd = part(entry)?;
        let object = || Object::File(entry.id, "memfd".into());
        let key = key(memfd);
        if !cx.kept.contains_key(&key) {
            let made = build_inode(cx.images, cx.memfds.of(cx.images, memfd)?)?;
            cx.kept.insert(key, made);
        }
        let flags = OFlags::from_bits_retain(memfd.flags) - OFlags::CREATE - OFlags::EXCL - OFlags::TRUNC;
        let first = cx.kept[&key].as_fd();
        let file = match cx.memfds.may_be_first(memfd) {
            true => first.try_clone_to_owned().map_err(|e| crate::error::errno_of(&e)),
            false => reopen(first, flags),
        };
        let file = file.map_err(|e| Error::kernel(object(), "open it again", e))?;
        if !flags.contains(OFlags::PATH) {
            rustix::fs::seek(&file, SeekFrom::Start(memfd.pos))
                .map_err(|e| Error::kernel(object(), format!("set its position to {}", memfd.pos), e))?;
            apply_status_flags(file.as_fd(), entry.id, memfd.flags)?;
        }
        Ok(file)
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.memfd.as_ref().map(|memfd| &memfd.fown)
    }

    fn settle(&self, cx: &mut Settle<'_>, entry: &FileEntry, file: BorrowedFd<'_>) -> Result<()> {
        seal(cx.memfds.of(cx.images, part(entry)?)?, file, &Object::File(entry.id, "memfd".into()))
    }
}

/// What is kept is the open file that made an inode.
fn key(memfd: &MemfdFileEntry) -> (&'static str, u64) {
    ("memfd", u64::from(memfd.inode_id))
}

/// The open file that made the inode of a record already built; it can do
/// everything. See [`Inodes::may_be_first`].
pub(super) fn first<'b>(cx: &'b Build<'_>, memfd: &MemfdFileEntry) -> Option<BorrowedFd<'b>> {
    cx.kept.get(&key(memfd)).map(AsFd::as_fd)
}

/// Writes down a memfd that is used without a descriptor (mapped, run).
pub(super) fn collect_path(
    cx: &mut Collect<'_>,
    file: BorrowedFd<'_>,
    stat: &Stat,
    link: &[u8],
    flags: u32,
    object: &Object,
) -> Result<u32> {
    let inode = collect_inode(cx, file, stat, link, object)?;
    let id = cx.new_id();
    cx.images.append(ImageKind::Files, None, &record(id, flags, 0, FownEntry::default(), inode), None)?;
    Ok(id)
}

fn record(id: u32, flags: u32, pos: u64, fown: FownEntry, inode_id: u32) -> FileEntry {
    let memfd = MemfdFileEntry { id, flags, pos, fown, inode_id };
    FileEntry { r#type: FdTypes::Memfd as i32, id, memfd: Some(memfd), ..FileEntry::default() }
}

fn part(entry: &FileEntry) -> Result<&MemfdFileEntry> {
    entry.memfd.as_ref().ok_or_else(|| Build::lacks(entry, "a memfd"))
}

/// The id of the inode; it is written the first time.
fn collect_inode(cx: &mut Collect<'_>, file: BorrowedFd<'_>, stat: &Stat, link: &[u8], object: &Object) -> Result<u32> {
    // Huge pages have file systems of their own, with inode numbers of their own.
    let key = (stat.st_dev, stat.st_ino);
    if let Some(&known) = cx.memfds.get(&key) {
        return Ok(known);
    }
    let failed = |action: &'static str| move |e| Error::kernel(object.clone(), action, e);
    let own = reopen(file, OFlags::RDONLY).map_err(failed("open it for reading"))?;
    let seals = rustix::fs::fcntl_get_seals(&own).map_err(failed("read its seals"))?;
    let huge = huge::page_of(&own).map_err(failed("ask for its file system"))?.map(huge_flags);
    let id = cx.memfds.len() as u32 + 1;
    let shmid = SHMID_BIT | id;
    let name = link.strip_prefix(PREFIX).unwrap_or(link);
    let name = name.strip_suffix(SUFFIX).unwrap_or(name);
    // No flags, said aloud, tell a memfd that has the name of shared anonymous memory from that.
    let takes_name = name == ANONYMOUS && link.starts_with(PREFIX);
    let (uid, gid) = users::inside((stat.st_uid, stat.st_gid));
    let entry = MemfdInodeEntry {
        name: name.to_vec(),
        uid,
        gid,
        size: stat.st_size as u64,
        shmid,
        seals: seals.bits(),
        inode_id: u64::from(id),
        hugetlb_flag: huge.or(takes_name.then_some(0)),
        mode: Some(stat.st_mode & 0o7777),
    };
    cx.images.append(ImageKind::MemfdInode, None, &entry, None)?;
    let page = page_of(&entry);
    shared_pages::write(cx, u64::from(shmid), &File::from(own), entry.size, page, object)?;
    cx.memfds.insert(key, id);
    Ok(id)
}

/// `MFD_HUGETLB` and the size of the pages, as its logarithm in the upper bits.
fn huge_flags(page: u64) -> u32 {
    libc::MFD_HUGETLB | huge::flag_of(page)
}

/// Bytes of its pages.
fn page_of(inode: &MemfdInodeEntry) -> u64 {
    match inode.hugetlb_flag {
        None | Some(0) => PAGE,
        Some(flags) => huge::of_flags(flags),
    }
}

/// The inodes of an image.
#[derive(Debug, Default)]
pub struct Inodes {
    /// By id; read when the first is asked for.
    read: OnceCell<HashMap<u64, MemfdInodeEntry>>,
    /// Those of which a descriptor has the open file that made it.
    given: HashSet<u32>,
}

impl Inodes {
    fn of(&self, images: &ImageDir, memfd: &MemfdFileEntry) -> Result<&MemfdInodeEntry> {
        let inodes = match self.read.get() {
            Some(inodes) => inodes,
            None => {
                let all: Vec<MemfdInodeEntry> = images.read_all(ImageKind::MemfdInode, None)?;
                self.read.get_or_init(|| all.into_iter().map(|inode| (inode.inode_id, inode)).collect())
            }
        };
        let found = inodes.get(&u64::from(memfd.inode_id));
        found.ok_or_else(|| Error::bad_image("memfd.img", format!("no inode has the id {}", memfd.inode_id)))
    }

    /// Whether a record gets the open file that made the inode. That one is not
    /// counted as a writer: a memfd with it and no other can be run, and a
    /// mapping of it does not stand in the way.
    fn may_be_first(&mut self, memfd: &MemfdFileEntry) -> bool {
        let flags = OFlags::from_bits_retain(memfd.flags);
        if flags.contains(OFlags::PATH) || flags & OFlags::RWMODE != OFlags::RDWR {
            return false;
        }
        // The kernel shows this flag of every descriptor; what is only mapped has it not.
        let is_mapping = flags & OFlags::from_bits_retain(LARGEFILE) == OFlags::empty();
        is_mapping || self.given.insert(memfd.inode_id)
    }
}

/// Makes the inode and fills it.
fn build_inode(images: &ImageDir, inode: &MemfdInodeEntry) -> Result<OwnedFd> {
    let object = Object::Other(format!("memfd {}", String::from_utf8_lossy(&inode.name)));
    let failed = |action: &'static str| {
        let object = object.clone();
        move |e| Error::kernel(object, action, e)
    };
    let page = page_of(inode);
    let is_anonymous = match inode.hugetlb_flag {
        None => inode.name == ANONYMOUS && inode.seals == SealFlags::SEAL.bits(),
        Some(_) => inode.name == ANONYMOUS_HUGE,
    };
    let file =
        File::from(if is_anonymous { anonymous(inode.size, page, &object)? } else { create(inode, page, &object)? });
    rustix::fs::ftruncate(&file, inode.size).map_err(failed("set its size"))?;
    shared_pages::read(images, u64::from(inode.shmid), &file, inode.size, page, &object)?;
    let (uid, gid) = users::outside((inode.uid, inode.gid));
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(&file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(failed("give it its owner"))?;
    if let Some(mode) = inode.mode {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777)).map_err(failed("set its mode"))?;
    }
    Ok(file.into())
}

fn cannot_create(object: &Object, page: u64) -> impl Fn(Errno) -> Error {
    move |errno| Error::Kernel {
        object: object.clone(),
        action: "create it".into(),
        errno,
        remedy: if page > PAGE { "check that huge pages of its size are configured" } else { "" },
    }
}

/// Shared anonymous memory of `size` bytes as a file: what `mmap(MAP_SHARED |
/// MAP_ANONYMOUS)` makes can be opened through /proc/self/map_files, which
/// keeps the name that the kernel gives such memory.
pub fn anonymous(size: u64, page: u64, object: &Object) -> Result<OwnedFd> {
    match cryonaut_kernel::sys::shmem::anonymous(size, page) {
        Ok(file) => Ok(file),
        Err(_) => {
            // Without CAP_CHECKPOINT_RESTORE the name differs, nothing else.
            let huge = MemfdFlags::from_bits_retain(if page > PAGE { huge_flags(page) } else { 0 });
            let file =
                rustix::fs::memfd_create("shared", MemfdFlags::CLOEXEC | huge).map_err(cannot_create(object, page))?;
            rustix::fs::ftruncate(&file, size).map_err(|e| Error::kernel(object.clone(), "set its size", e))?;
            Ok(file)
        }
    }
}

fn create(inode: &MemfdInodeEntry, page: u64, object: &Object) -> Result<OwnedFd> {
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let base = base | MemfdFlags::from_bits_retain(inode.hugetlb_flag.unwrap_or(0));
    // Whether it may be run is said by its mode and seals alone, whatever this system's default. Before Linux 6.3
    // there was nothing to say, and a system may be set not to hear it.
    let created = match rustix::fs::memfd_create(inode.name.as_slice(), base | MemfdFlags::EXEC) {
        Err(Errno::INVAL | Errno::ACCESS) => rustix::fs::memfd_create(inode.name.as_slice(), base),
        created => created,
    };
    created.map_err(cannot_create(object, page))
}

/// Adds the seals, once for all open files of the inode.
fn seal(inode: &MemfdInodeEntry, file: BorrowedFd<'_>, object: &Object) -> Result<()> {
    let wanted = SealFlags::from_bits_retain(inode.seals);
    if wanted.is_empty() {
        return Ok(());
    }
    let failed = |errno| Error::Kernel {
        object: object.clone(),
        action: format!("add its seals ({:#x})", inode.seals),
        errno,
        remedy: "",
    };
    // Sealing asks for a descriptor that can write, whatever the record's may.
    let own =
        rustix::fs::open(format!("/proc/self/fd/{}", file.as_raw_fd()), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let own = own.map_err(failed)?;
    let has = rustix::fs::fcntl_get_seals(&own).map_err(failed)?;
    if has.contains(wanted) { Ok(()) } else { rustix::fs::fcntl_add_seals(&own, wanted).map_err(failed) }
}

#[cfg(test)]
#[path = "memfd_tests.rs"]
mod tests;
