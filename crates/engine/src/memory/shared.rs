//! Shared anonymous memory: each segment is written once and built once,
//! however many processes map it.

use super::pages::{PageCount, PageWriter};
use super::{PAGE, vma::page_size};
use crate::files::Collect;
use crate::freeze::Process;
use crate::{Error, Object, Result};
use cryonaut_image::records::VmaEntry;
use cryonaut_image::{ImageDir, ImageKind, Pagemap};
use cryonaut_kernel::proc::maps::FlaggedVma;
use rustix::fs::{MemfdFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

const PIECE: usize = 1 << 20;

/// The segments met while dumping.
#[derive(Debug, Default)]
pub struct SharedDump {
    known: HashMap<(u32, u32, u64), u64>,
    /// What was written.
    pub count: PageCount,
}

impl SharedDump {
    /// The id of the segment behind a mapping; its contents are written the
    /// first time.
    pub fn segment(&mut self, cx: &mut Collect<'_>, process: &Process, mapping: &FlaggedVma) -> Result<u64> {
        let vma = &mapping.vma;
        let key = (vma.dev.0, vma.dev.1, vma.inode);
        if let Some(id) = self.known.get(&key) {
            return Ok(*id);
        }
        // Ids of segments live apart from file ids; the inode number is unique enough for both readers and us.
        let id = self.known.len() as u64 + 1;
        let file = File::from(process.task.open_file(&vma.map_files_name(), OFlags::RDONLY)?);
        let count = write_segment(cx, id, &file, mapping, process.pid)?;
        self.count.scanned += count.scanned;
        self.count.written += count.written;
        self.known.insert(key, id);
        Ok(id)
    }
}

/// Writes what a shared memory file holds, hole by hole.
fn write_segment(cx: &mut Collect<'_>, id: u64, file: &File, mapping: &FlaggedVma, pid: i32) -> Result<PageCount> {
    let vma = &mapping.vma;
    let failed = |what: &'static str| {
        move |errno: Errno| Error::kernel(Object::Mapping(pid, vma.start, "shared memory".into()), what, errno)
    };
    let size = rustix::fs::fstat(file).map_err(failed("stat its file"))?.st_size as u64;
    let mut out = PageWriter::new(cx.images, ImageKind::ShmemPagemap, id, cx.new_pages_id())?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(failed("find its data")(e)),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).map_err(failed("find its data"))?;
        let (mut from, end) = (data / PAGE * PAGE, hole.next_multiple_of(PAGE));
        while from < end {
            let take = buffer.len().min((end - from) as usize);
            buffer[..take].fill(0);
            let mut got = 0;
            while got < take {
                match file.read_at(&mut buffer[got..take], from + got as u64) {
                    Ok(0) => break,
                    Ok(n) => got += n,
                    Err(e) => return Err(failed("read its contents")(crate::error::errno_of(&e))),
                }
            }
            // Huge pages do not say where their holes are.
            if mapping.page_size == PAGE || buffer[..take].iter().any(|&byte| byte != 0) {
                out.bytes(from, &buffer[..take])?;
            }
            from += take as u64;
        }
        at = end;
    }
    out.finish()
}

/// Bytes of a segment, and of its pages.
#[derive(Debug, Clone, Copy)]
struct Size {
    len: u64,
    page: u64,
}

/// The segments built for a restore.
#[derive(Debug, Default)]
pub struct SharedBuild {
    sizes: HashMap<u64, Size>,
    built: HashMap<u64, OwnedFd>,
}

impl SharedBuild {
    /// Takes note of a mapping, so that its segment becomes large enough.
    pub fn note(&mut self, vma: &VmaEntry) {
        let size = self.sizes.entry(vma.shmid).or_insert(Size { len: 0, page: page_size(vma.flags) });
        size.len = size.len.max(vma.pgoff + (vma.end - vma.start));
    }

    /// A segment that was built.
    pub fn get(&self, id: u64) -> Result<BorrowedFd<'_>> {
        let built = self.built.get(&id).map(AsFd::as_fd);
        built.ok_or_else(|| Error::bad_image(format!("pagemap-shmem-{id}.img"), "no mapping tells its size"))
    }

    /// The segment, built now if it was not yet: a file of /dev/zero's kind,
    /// so that it looks as it did.
    pub fn segment(&mut self, images: &ImageDir, id: u64) -> Result<BorrowedFd<'_>> {
        if !self.built.contains_key(&id) {
            let size = self.sizes.get(&id).copied().unwrap_or(Size { len: 0, page: PAGE });
            let file = anonymous_segment(size)?;
            fill(images, id, &file, size.page)?;
            self.built.insert(id, file.into());
        }
        Ok(self.built[&id].as_fd())
    }
}

/// A shared anonymous mapping of ours, as a file: what `mmap(MAP_SHARED |
/// MAP_ANONYMOUS)` makes can be opened through /proc/self/map_files, which
/// keeps the name that the kernel gives such memory.
fn anonymous_segment(size: Size) -> Result<File> {
    let failed = |action: &'static str| {
        move |errno| Error::Kernel {
            object: Object::Other("shared memory".into()),
            action: action.into(),
            errno,
            remedy: if size.page > PAGE { "check that huge pages of its size are configured" } else { "" },
        }
    };
    match cryonaut_kernel::sys::shmem::anonymous(size.len, size.page) {
        Ok(file) => Ok(file.into()),
        Err(_) => {
            // Without CAP_CHECKPOINT_RESTORE the name differs, nothing else.
            let huge = libc::MFD_HUGETLB | size.page.trailing_zeros() << libc::MFD_HUGE_SHIFT;
            let huge = MemfdFlags::from_bits_retain(if size.page > PAGE { huge } else { 0 });
            let fd = rustix::fs::memfd_create("shared", MemfdFlags::CLOEXEC | huge).map_err(failed("create it"))?;
            rustix::fs::ftruncate(&fd, size.len).map_err(failed("size it"))?;
            Ok(fd.into())
        }
    }
}

/// Puts the pages of the image into a shared memory file.
fn fill(images: &ImageDir, id: u64, file: &File, page: u64) -> Result<()> {
    let map = Pagemap::read(images, ImageKind::ShmemPagemap, id)?;
    if map.runs().is_empty() {
        return Ok(());
    }
    let pages = images.open_raw(ImageKind::Pages, u64::from(map.pages_id()))?;
    let failed = |e: std::io::Error| {
        Error::kernel(Object::Other(format!("shared memory {id}")), "fill it", crate::error::errno_of(&e))
    };
    let mut buffer = vec![0; PIECE];
    for run in map.runs().iter().filter(|r| r.offset.is_some()) {
        let (mut done, len) = (0, run.len());
        while done < len {
            let take = buffer.len().min((len - done) as usize);
            pages.read_exact_at(&mut buffer[..take], run.offset.unwrap_or(0) + done).map_err(failed)?;
            if page > PAGE {
                cryonaut_kernel::sys::huge::write(file, page, run.vaddr + done, &buffer[..take])
                    .map_err(|e| failed(e.into()))?;
            } else {
                file.write_all_at(&buffer[..take], run.vaddr + done).map_err(failed)?;
            }
            done += take as u64;
        }
    }
    Ok(())
}
