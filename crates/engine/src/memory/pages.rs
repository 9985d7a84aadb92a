//! Copying the contents of a frozen process's private memory into the image.
//!
//! PAGEMAP_SCAN says which pages the process has of its own: in memory or in
//! swap, not the page of zeros, not merely the file's. They are read in large
//! pieces and written one behind the other, so the checkpointer's own memory
//! does not depend on the size of the process.

use super::{
    PAGE,
    vma::{is_droppable, status},
};
use crate::freeze::Process;
use crate::{Error, Object, Result};
use cryonaut_image::records::VmaEntry;
use cryonaut_image::{DumpDir, ImageKind, PageFlags, PagemapWriter};
use cryonaut_kernel::pagemap::{Categories, PageRun, Query, ScanFlags, scan};
use cryonaut_puppet::memory::{MAX_SPANS, Remote, read_spans};
use rustix::fs::OFlags;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// How many pages were looked at and written.
#[derive(Debug, Default, Clone, Copy, serde::Serialize)]
pub struct PageCount {
    /// Pages that exist.
    pub scanned: u64,
    /// Pages that are in the image.
    pub written: u64,
}

impl PageCount {
    /// Takes in another count.
    pub fn add(&mut self, other: PageCount) {
        self.scanned += other.scanned;
        self.written += other.written;
    }
}

/// A pagemap and its pages, being written.
#[derive(Debug)]
pub struct PageWriter {
    map: PagemapWriter,
    file: File,
    spans: Vec<Remote>,
    pending: usize,
    buffer: Vec<u8>,
    count: PageCount,
}

impl PageWriter {
    /// Begins the pagemap of kind `kind` and id `id`, with its pages in
    /// `pages-PAGES_ID.img`.
    pub fn new(images: &DumpDir, kind: ImageKind, id: u64, pages_id: u32) -> Result<Self> {
        Ok(PageWriter {
            map: PagemapWriter::create(images, kind, id, pages_id)?,
            file: images.raw_file(ImageKind::Pages, u64::from(pages_id))?,
            spans: Vec::new(),
            pending: 0,
            buffer: Vec::new(),
            count: PageCount::default(),
        })
    }

    /// Notes that a run of pages follows.
    pub fn note(&mut self, start: u64, len: u64) -> Result<()> {
        self.map.push(start, len / PAGE, PageFlags::PRESENT)?;
        self.count.scanned += len / PAGE;
        self.count.written += len / PAGE;
        Ok(())
    }

    /// Adds pages whose contents are at hand.
    pub fn bytes(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        self.note(start, bytes.len() as u64)?;
        self.write(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| {
            let errno = crate::error::errno_of(&e);
            Error::Kernel {
                object: Object::Other("pages image".into()),
                action: "write it".into(),
                errno,
                remedy: if errno == rustix::io::Errno::NOSPC { "free some space on its file system" } else { "" },
            }
        })
    }

    /// Adds a run of a process's readable memory; read when enough is together.
    fn remote(&mut self, pid: i32, start: u64, len: u64) -> Result<()> {
        self.note(start, len)?;
        let (mut at, end) = (start, start + len);
        while at < end {
            let take = (end - at).min((PIECE - self.pending) as u64);
            self.spans.push(Remote { address: at, len: take });
            self.pending += take as usize;
            at += take;
            if self.pending == PIECE || self.spans.len() == MAX_SPANS {
                self.flush(pid)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, pid: i32) -> Result<()> {
        if self.pending == 0 {
            return Ok(());
        }
        self.buffer.resize(PIECE, 0);
        let mut buffer = std::mem::take(&mut self.buffer);
        let got = read_spans(pid, &self.spans, &mut buffer[..self.pending]);
        if got != Ok(self.pending) {
            let at = self.spans.first().map_or(0, |s| s.address);
            let errno = got.err().unwrap_or(rustix::io::Errno::FAULT);
            return Err(Error::kernel(Object::Mapping(pid, at, "memory".into()), "read its contents", errno));
        }
        self.write(&buffer[..self.pending])?;
        self.buffer = buffer;
        self.spans.clear();
        self.pending = 0;
        Ok(())
    }

    /// Completes both files.
    pub fn finish(self) -> Result<PageCount> {
        self.map.finish()?;
        Ok(self.count)
    }
}

/// Writes the pages that the process has of its own. Guard regions found on
/// the way are added to `vmas` as records of their own.
///
/// Unless the process is `alone`, it may share pages with others until one of
/// them writes. process_vm_readv(2) would end that: it pins what it reads, and
/// a page that is to be pinned is made the process's own.
pub fn dump_private(
    images: &DumpDir,
    pages_id: u32,
    process: &Process,
    vmas: &mut Vec<VmaEntry>,
    alone: bool,
) -> Result<PageCount> {
    let mut out = PageWriter::new(images, ImageKind::Pagemap, process.pid as u64, pages_id)?;
    let pagemap = process.task.open_file("pagemap", OFlags::RDONLY)?;
    let mem = File::from(process.task.open_file("mem", OFlags::RDONLY)?);
    let mut guards = Vec::new();
    for vma in vmas.iter().filter(|v| holds_pages(v)) {
        // Every page of the kernel's code: a reader on another kernel has to look into it.
        if vma.status & status::VDSO != 0 {
            out.remote(process.pid, vma.start, vma.end - vma.start)?;
            continue;
        }
        let query = Query {
            start: vma.start,
            end: vma.end,
            inverted: Categories::PFNZERO,
            all: Categories::PFNZERO,
            any: Categories::PRESENT | Categories::SWAPPED | Categories::GUARD,
            tell: Categories::FILE | Categories::GUARD,
            flags: ScanFlags::empty(),
        };
        each_run(process, &pagemap, query, |run| {
            if run.categories.contains(Categories::GUARD) {
                guards.push(guard_record(vma, run));
                return Ok(());
            }
            if run.categories.contains(Categories::FILE) {
                return Ok(());
            }
            let len = run.end - run.start;
            if alone && vma.prot & libc::PROT_READ as u32 != 0 {
                return out.remote(process.pid, run.start, len);
            }
            out.flush(process.pid)?;
            through_file(&mut out, &mem, process, run)
        })?;
    }
    out.flush(process.pid)?;
    vmas.extend(guards);
    out.finish()
}

/// Whether a mapping can have pages that are the process's own.
fn holds_pages(vma: &VmaEntry) -> bool {
    let private = vma.status & (status::ANON_PRIVATE | status::FILE_PRIVATE) != 0;
    private && !is_droppable(vma) && vma.status & status::REGULAR != 0 && vma.status & status::VVAR == 0
}

/// Memory that the process itself may not read, or shares: through
/// /proc/PID/mem, which asks no leave of the protection and pins nothing.
fn through_file(out: &mut PageWriter, mem: &File, process: &Process, run: &PageRun) -> Result<()> {
    let mut at = run.start;
    let mut buffer = vec![0; PIECE.min((run.end - run.start) as usize)];
    while at < run.end {
        let take = buffer.len().min((run.end - at) as usize);
        mem.read_exact_at(&mut buffer[..take], at).map_err(|e| {
            let errno = crate::error::errno_of(&e);
            Error::kernel(Object::Mapping(process.pid, at, "memory".into()), "read its contents", errno)
        })?;
        out.bytes(at, &buffer[..take])?;
        at += take as u64;
    }
    Ok(())
}

fn guard_record(vma: &VmaEntry, run: &PageRun) -> VmaEntry {
    VmaEntry { start: run.start, end: run.end, status: status::GUARD, fd: -1, flags: vma.flags, ..VmaEntry::default() }
}

fn each_run(
    process: &Process,
    pagemap: &std::os::fd::OwnedFd,
    mut query: Query,
    mut each: impl FnMut(&PageRun) -> Result<()>,
) -> Result<()> {
    let mut runs = [PageRun::default(); 512];
    while query.start < query.end {
        let (count, stopped) = scan(pagemap, &query, &mut runs).map_err(|errno| {
            let remedy = if errno == rustix::io::Errno::NOTTY { "this needs Linux 6.7 or later" } else { "" };
            let object = Object::Mapping(process.pid, query.start, "memory".into());
            Error::Kernel { object, action: "ask which pages it has".into(), errno, remedy }
        })?;
        for run in &runs[..count] {
            each(run)?;
        }
        query.start = stopped;
    }
    Ok(())
}
