//! A pagemap with its pages, being written: into files, or to a page server.
//!
//! Few pages are read in large pieces and written; many leave the process without coming by us ([`way`](super::way)). Either way the
//! checkpointer's own memory does not depend on the size of the process.

use super::ranges;
use super::{
    PAGE,
    absent::{Absent, MappedFiles},
    way::Way,
    write_behind::WriteBehind,
};
use crate::freeze::Process;
use crate::precopy::Precopied;
use crate::{Error, Object, Progress, Result};
use cryonaut_image::{DumpDir, ImageKind, PageFlags, PagemapWriter};
use cryonaut_page_server::send::Upload;
use cryonaut_page_server::{Sender, Target};
use cryonaut_puppet::Hand;
use cryonaut_puppet::memory::{MAX_SPANS, Remote, read_spans};
use std::fs::File;
use std::ops::Range;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// How many pages were looked at and written.
#[derive(Debug, Default, Clone, Copy, serde::Serialize)]
pub struct PageCount {
    /// Pages that exist.
    pub scanned: u64,
    /// Pages that are in the image.
    pub written: u64,
    /// Pages that are left to the image before.
    pub in_parent: u64,
    /// Pages that stay with the process until whoever restores it fetches them.
    pub lazy: u64,
}

impl PageCount {
    /// Takes in another count.
    pub fn add(&mut self, other: PageCount) {
        self.scanned += other.scanned;
        self.written += other.written;
        self.in_parent += other.in_parent;
        self.lazy += other.lazy;
    }
}

/// A run of memory that is not fetched yet.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u64,
    len: u64,
    how: How,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// All of it is stored.
    Stored,
    /// What is not zeros is.
    UnlessZero,
    /// Nothing: the parent image has it.
    InParent,
    /// Nothing: the process keeps it until whoever restores it fetches it.
    Left,
}

impl How {
    fn absent(self) -> Absent {
        if self == How::UnlessZero { Absent::Zeros } else { Absent::Unknown }
    }

    /// What a pagemap says of it, if nothing is to be fetched.
    fn elsewhere(self) -> Option<PageFlags> {
        match self {
            How::InParent => Some(PageFlags::PARENT),
            How::Left => Some(PageFlags::LAZY),
            How::Stored | How::UnlessZero => None,
        }
    }
}

/// A pagemap and its pages, being written.
#[derive(Debug)]
pub struct PageWriter<'a> {
    /// One for each process that has the pages, or the segment's alone; none if
    /// they are written already.
    maps: Vec<PagemapWriter>,
    /// In the place of a pagemap, if all goes to a page server.
    upload: Option<Upload>,
    file: WriteBehind,
    /// Contents that are at hand, not yet handed on.
    buffer: Vec<u8>,
    /// Memory that comes behind them, and the length of what is to be fetched of it.
    spans: Vec<Span>,
    spans_len: usize,
    /// How they come from now on; otherwise they are read.
    pub(super) way: Option<Way<'a>>,
    count: PageCount,
    /// Pages that are as their file has them, and were left out.
    pub(super) like_file: Vec<ranges::Range>,
    /// Of what is in them.
    pub(super) like_file_sum: Box<blake3::Hasher>,
    progress: Progress,
}

impl<'a> PageWriter<'a> {
    /// Begins the pagemap of kind `kind` and id `id`, and the file or whatever else is the place of its pages.
    pub fn new(place: PagesPlace<'_>, kind: ImageKind, id: u64) -> Result<Self> {
        Self::shared(place, kind, &[id])
    }

    /// The same for several ids with the same pages.
    pub(super) fn shared(place: PagesPlace<'_>, kind: ImageKind, ids: &[u64]) -> Result<Self> {
        let PagesPlace { images, pages_id, server, progress, .. } = place;
        let target = ids.first().and_then(|id| Target::of(kind, *id));
        if let (Some(server), Some(target)) = (server, target) {
            let upload = server.begin(target)?;
            let pipe = upload.pages().map_err(|e| super::write_behind::failed(&e))?;
            return Ok(Self::with(Vec::new(), Some(upload), pipe, progress));
        }
        let map = |id: &u64| PagemapWriter::create(images, kind, *id, pages_id);
        let maps = ids.iter().map(map).collect::<std::result::Result<_, _>>()?;
        Ok(Self::with(maps, None, images.raw_file(ImageKind::Pages, u64::from(pages_id))?, progress))
    }

    fn with(maps: Vec<PagemapWriter>, upload: Option<Upload>, pages: File, progress: Option<&Progress>) -> Self {
        PageWriter {
            maps,
            upload,
            file: WriteBehind::new(pages),
            buffer: Vec::new(),
            spans: Vec::new(),
            spans_len: 0,
            way: None,
            count: PageCount::default(),
            like_file: Vec::new(),
            like_file_sum: Box::default(),
            progress: progress.cloned().unwrap_or_default(),
        }
    }

    /// Opens a short way for what comes from now on, if the process can serve.
    pub(super) fn open_way(&mut self, process: &Process, hand: &'a mut Hand, mem: &File, alone: bool) -> Result<()> {
        self.fetch(process.speaker())?;
        self.hand_on()?;
        self.way = Way::open(process, hand, mem, alone, &mut self.file)?;
        Ok(())
    }

    /// Notes that a run of pages follows, or is elsewhere.
    fn entry(&mut self, start: u64, len: u64, flags: PageFlags) -> Result<()> {
        for map in &mut self.maps {
            map.push(start, len / PAGE, flags)?;
        }
        if let Some(upload) = &self.upload {
            upload.push(start, len / PAGE, flags);
        }
        Ok(())
    }

    /// Notes that a run of pages follows.
    fn note(&mut self, start: u64, len: u64) -> Result<()> {
        self.entry(start, len, PageFlags::PRESENT)?;
        self.count.written += len / PAGE;
        Ok(())
    }

    /// Notes a run of pages of which nothing is to be fetched.
    pub(super) fn elsewhere(&mut self, pid: i32, start: u64, len: u64, how: How) -> Result<()> {
        self.count.scanned += len / PAGE;
        if how == How::Left {
            self.count.lazy += len / PAGE;
        }
        // In the order of what is still to be fetched.
        self.spans.push(Span { start, len, how });
        if self.spans.len() == MAX_SPANS { self.fetch(pid) } else { Ok(()) }
    }

    /// Adds pages whose contents `read` gets, piece by piece, but for those that are as if they were `absent`: it is told
    /// where in the run a piece begins.
    pub(super) fn read(
        &mut self,
        start: u64,
        len: u64,
        absent: &Absent,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.count.scanned += len / PAGE;
        let mut done = 0;
        while done < len {
            let filled = self.buffer.len();
            let take = (len - done).min((PIECE - filled) as u64);
            self.buffer.resize(filled + take as usize, 0);
            read(done, &mut self.buffer[filled..])?;
            let end = self.keep(start + done, filled..filled + take as usize, absent, filled)?;
            self.buffer.truncate(end);
            self.progress.advance(take);
            done += take;
            self.hand_on_if_full()?;
        }
        Ok(())
    }

    /// Notes the pages that begin at `start`, whose contents are in a part of the buffer, but for those that are as if they
    /// were absent, and moves them to `to`. Returns the end of them there.
    fn keep(&mut self, start: u64, part: Range<usize>, absent: &Absent, mut to: usize) -> Result<usize> {
        let all = (start, start + part.len() as u64);
        let same = absent.same(start, &self.buffer[part.clone()]);
        if matches!(absent, Absent::File(..)) {
            for &(from, to) in &same {
                ranges::push(&mut self.like_file, (from, to));
                let from_start = |at: u64| part.start + (at - start) as usize;
                self.like_file_sum.update(&self.buffer[from_start(from)..from_start(to)]);
            }
        }
        for kept in ranges::without(&[all], &same) {
            let (from, len) = (part.start + (kept.0 - start) as usize, (kept.1 - kept.0) as usize);
            self.note(kept.0, len as u64)?;
            if from != to {
                self.buffer.copy_within(from..from + len, to);
            }
            to += len;
        }
        Ok(to)
    }

    /// Adds pages whose contents are at hand.
    pub fn bytes(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        self.read(start, bytes.len() as u64, &Absent::Unknown, |offset, room| {
            room.copy_from_slice(&bytes[offset as usize..][..room.len()]);
            Ok(())
        })
    }

    /// Adds a run of a process's readable memory; read when enough is together.
    pub(super) fn remote(&mut self, pid: i32, start: u64, len: u64, how: How) -> Result<()> {
        self.count.scanned += len / PAGE;
        let (mut at, end) = (start, start + len);
        while at < end {
            let take = (end - at).min(self.room() as u64);
            self.spans.push(Span { start: at, len: take, how });
            self.spans_len += take as usize;
            at += take;
            if self.room() == 0 || self.spans.len() == MAX_SPANS {
                self.fetch(pid)?;
            }
        }
        Ok(())
    }

    /// Bytes that can be told of before they are fetched.
    fn room(&self) -> usize {
        let filled = self.buffer.len();
        let room = self.way.as_ref().map_or(PIECE - filled, |way| way.room(self.file.len() + filled as u64));
        room - self.spans_len
    }

    /// Adds what [`PageWriter::remote`] and [`PageWriter::elsewhere`] were told of. Before anything else is added.
    pub(super) fn fetch(&mut self, pid: i32) -> Result<()> {
        let (spans, len) = (std::mem::take(&mut self.spans), std::mem::take(&mut self.spans_len));
        self.progress.advance(len as u64);
        if self.way.is_some() && len > 0 {
            self.hand_on()?;
            return self.push(&spans);
        }
        let filled = self.buffer.len();
        self.buffer.resize(filled + len, 0);
        let to_fetch = spans.iter().filter(|span| span.how.elsewhere().is_none());
        let remote: Vec<Remote> = to_fetch.map(|span| Remote { address: span.start, len: span.len }).collect();
        let got = if remote.is_empty() { Ok(0) } else { read_spans(pid, &remote, &mut self.buffer[filled..]) };
        if got != Ok(len) {
            let at = remote.first().map_or(0, |s| s.address);
            let errno = got.err().unwrap_or(rustix::io::Errno::FAULT);
            return Err(Error::kernel(Object::Mapping(pid, at, "memory".into()), "read its contents", errno));
        }
        let (mut from, mut to) = (filled, filled);
        for span in spans {
            if let Some(flags) = span.how.elsewhere() {
                self.entry(span.start, span.len, flags)?;
                continue;
            }
            let part = from..from + span.len as usize;
            from = part.end;
            to = self.keep(span.start, part, &span.how.absent(), to)?;
        }
        self.buffer.truncate(to);
        self.hand_on_if_full()
    }

    /// Has the process hand its pages on.
    fn push(&mut self, spans: &[Span]) -> Result<()> {
        let Some(way) = &mut self.way else { return Ok(()) };
        let suspects = spans.iter().filter(|span| span.how == How::UnlessZero);
        let zeros = way.zeros(&suspects.map(|span| (span.start, span.start + span.len)).collect::<Vec<_>>())?;
        let mut remote = Vec::new();
        for span in spans {
            if let Some(flags) = span.how.elsewhere() {
                self.entry(span.start, span.len, flags)?;
                continue;
            }
            for (start, end) in ranges::without(&[(span.start, span.start + span.len)], &zeros) {
                self.note(start, end - start)?;
                remote.push(Remote { address: start, len: end - start });
            }
        }
        match &mut self.way {
            Some(way) if !remote.is_empty() => way.push(&remote, &mut self.file),
            _ => Ok(()),
        }
    }

    fn hand_on_if_full(&mut self) -> Result<()> {
        if self.buffer.len() < PIECE { Ok(()) } else { self.hand_on() }
    }

    fn hand_on(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            if let Some(way) = &mut self.way {
                way.settle(&self.file)?;
            }
            self.buffer = self.file.append(std::mem::take(&mut self.buffer))?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Completes the files.
    pub fn finish(mut self) -> Result<PageCount> {
        self.hand_on()?;
        if let Some(way) = self.way.take() {
            way.close(&self.file)?;
        }
        self.file.finish()?;
        // The pipe's end is the file's.
        drop(self.file);
        self.upload.map(Upload::finish).transpose()?;
        for map in self.maps {
            map.finish()?;
        }
        Ok(self.count)
    }
}

/// Where the pages of a process go.
#[derive(Debug, Clone, Copy)]
pub struct PagesPlace<'a> {
    /// The image.
    pub images: &'a DumpDir,
    /// The number of the file.
    pub pages_id: u32,
    /// Who takes them in the place of that.
    pub server: Option<&'a Sender>,
    /// Whether no other process is in the tree.
    pub alone: bool,
    /// Whether what may come later stays with the process.
    pub lazily: bool,
    /// What was copied while the tree ran.
    pub precopied: Option<&'a Precopied<'a>>,
    /// The files that its processes map.
    pub files: Option<&'a MappedFiles>,
    /// Who is told how far it is.
    pub progress: Option<&'a Progress>,
}
