//! Files made by memfd_create(2): inodes without a path, of which several open
//! files and mappings may exist. The inode and its contents are written once
//! (`memfd.img`, and pages as of shared memory); each open file names it.
//!
//! Contents are read and written through an open file of our own, since
//! looking for data moves the position. Seals come last of all, when every
//! mapping has been made: a seal against future writing lets those that are
//! there go on.

use super::regular_path::reopen;
use super::{Build, Collect, FileKind, OpenFile, Settle, apply_status_flags, shared_pages};
use crate::{Error, Object, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, MemfdFileEntry, MemfdInodeEntry};
use rustix::fs::{AtFlags, Gid, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom, Stat, Uid};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Files made by memfd_create(2).
#[derive(Debug)]
pub struct Memfd;

const PREFIX: &[u8] = b"/memfd:";
const SUFFIX: &[u8] = b" (deleted)";

/// Ids of their contents are told apart from those of anonymous shared memory
/// by this bit.
const SHMID_BIT: u32 = 1 << 30;

/// Whether a file with this link and status is one.
pub(super) fn is_memfd(file: BorrowedFd<'_>, stat: &Stat, link: &[u8]) -> bool {
    // No path of a file system has no links yet both seals and this name.
    link.starts_with(PREFIX)
        && stat.st_nlink == 0
        && reopen(file, OFlags::RDONLY).is_ok_and(|own| rustix::fs::fcntl_get_seals(&own).is_ok())
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
        let key = ("memfd", u64::from(memfd.inode_id));
        if !cx.kept.contains_key(&key) {
            let inode = inode_of(cx.images, memfd)?;
            let made = build_inode(cx, &inode)?;
            cx.kept.insert(key, made);
        }
        let flags = OFlags::from_bits_retain(memfd.flags) - OFlags::CREATE - OFlags::EXCL - OFlags::TRUNC;
        let file = reopen(cx.kept[&key].as_fd(), flags).map_err(|e| Error::kernel(object(), "open it again", e))?;
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
        seal(&inode_of(cx.images, part(entry)?)?, file, &Object::File(entry.id, "memfd".into()))
    }
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
    let fs = rustix::fs::fstatfs(&own).map_err(failed("ask for its file system"))?;
    let id = cx.memfds.len() as u32 + 1;
    let shmid = SHMID_BIT | id;
    let name = link.strip_prefix(PREFIX).unwrap_or(link);
    let entry = MemfdInodeEntry {
        name: name.strip_suffix(SUFFIX).unwrap_or(name).to_vec(),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        shmid,
        seals: seals.bits(),
        inode_id: u64::from(id),
        hugetlb_flag: (fs.f_type == libc::HUGETLBFS_MAGIC).then(|| huge_flags(fs.f_bsize as u64)),
        mode: Some(stat.st_mode & 0o7777),
    };
    cx.images.append(ImageKind::MemfdInode, None, &entry, None)?;
    shared_pages::write(cx, shmid, &File::from(own), entry.size, object)?;
    cx.memfds.insert(key, id);
    Ok(id)
}

/// `MFD_HUGETLB` and the size of the pages, as its logarithm in the upper bits.
fn huge_flags(page: u64) -> u32 {
    libc::MFD_HUGETLB | page.trailing_zeros() << libc::MFD_HUGE_SHIFT
}

fn inode_of(images: &cryonaut_image::ImageDir, memfd: &MemfdFileEntry) -> Result<MemfdInodeEntry> {
    let inodes: Vec<MemfdInodeEntry> = images.read_all(ImageKind::MemfdInode, None)?;
    let found = inodes.into_iter().find(|inode| inode.inode_id == u64::from(memfd.inode_id));
    found.ok_or_else(|| Error::bad_image("memfd.img", format!("no inode has the id {}", memfd.inode_id)))
}

/// Makes the inode and fills it; an `O_PATH` descriptor of it.
fn build_inode(cx: &Build<'_>, inode: &MemfdInodeEntry) -> Result<OwnedFd> {
    let object = Object::Other(format!("memfd {}", String::from_utf8_lossy(&inode.name)));
    let failed = |action: &'static str| {
        let object = object.clone();
        move |e| Error::kernel(object, action, e)
    };
    let file = File::from(create(inode).map_err(|errno| Error::Kernel {
        object: object.clone(),
        action: "create it".into(),
        errno,
        remedy: if inode.hugetlb_flag.is_some() { "check that huge pages of its size are configured" } else { "" },
    })?);
    rustix::fs::ftruncate(&file, inode.size).map_err(failed("set its size"))?;
    let huge = inode.hugetlb_flag.map(|flags| 1 << (flags >> libc::MFD_HUGE_SHIFT));
    shared_pages::read(cx.images, inode.shmid, inode.size, &object, |piece, at| {
        let done = match huge {
            // They do not say where their holes are.
            Some(_) if piece.iter().all(|&byte| byte == 0) => Ok(()),
            Some(page) => cryonaut_kernel::sys::huge::write(&file, page, at, piece),
            None => file.write_all_at(piece, at).map_err(|e| crate::error::errno_of(&e)),
        };
        done.map_err(failed("fill it"))
    })?;
    let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
    rustix::fs::chownat(&file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(failed("give it its owner"))?;
    if let Some(mode) = inode.mode {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777)).map_err(failed("set its mode"))?;
    }
    // Not open for writing: it may be a program about to be run.
    reopen(file.as_fd(), OFlags::PATH).map_err(failed("open it again"))
}

fn create(inode: &MemfdInodeEntry) -> std::result::Result<OwnedFd, Errno> {
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let base = base | MemfdFlags::from_bits_retain(inode.hugetlb_flag.unwrap_or(0));
    // Whether it may be run is said by its mode and seals alone, whatever this system's default. Before Linux 6.3
    // there was nothing to say, and a system may be set not to hear it.
    match rustix::fs::memfd_create(inode.name.as_slice(), base | MemfdFlags::EXEC) {
        Err(Errno::INVAL | Errno::ACCESS) => rustix::fs::memfd_create(inode.name.as_slice(), base),
        created => created,
    }
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
