//! One segment of shared memory that is copied while processes write to it.

use super::processor::Share;
use super::space::Round;
use super::store::{Place, Store};
use crate::files::shared_pages::next_data;
use crate::memory::ranges::{self, Range};
use crate::memory::{PAGE, PageCount};
use crate::tracking::TrackedSpace;
use crate::{Error, Object, Progress, Result};
use cryonaut_image::{DumpDir, ImageKind, PagemapWriter};
use cryonaut_kernel::pagemap::PageRun;
use cryonaut_kernel::proc::maps::Vma;
use rangemap::RangeSet;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Instant;

/// Bytes that are protected at a time when all of a mapping is to be: its process waits for each piece at most, should it
/// want to change its mappings.
const PROTECTED_AT_ONCE: u64 = 16 << 20;
/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;
/// Bytes of a block, of which a file tells how many it has.
const BLOCK: u64 = 512;

/// What may have been written to, by offset.
#[derive(Debug, Default)]
struct Changes {
    /// Pages that are there.
    pages: RangeSet<u64>,
    /// Where there may be holes as well.
    with_holes: RangeSet<u64>,
}

/// Something was done to a segment, or its mappings, that the page tables of its processes do not tell.
pub const UNSETTLED: &str = "it was mapped anew, or given holes, while it was copied";

/// A mapping of it, which is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    pub pid: i32,
    pub range: Range,
    /// Where in the segment it begins.
    pub offset: u64,
}

impl Mapping {
    /// Of a process's mapping of a file.
    pub fn of(pid: i32, vma: &Vma) -> Mapping {
        Mapping { pid, range: (vma.start, vma.end), offset: vma.offset }
    }

    /// What of the segment is in a part of it.
    fn shown(&self, part: Range) -> std::ops::Range<u64> {
        let to_offset = |at: u64| at - self.range.0 + self.offset;
        to_offset(part.0)..to_offset(part.1)
    }

    /// The part of it that lies in another.
    fn within(&self, other: &Mapping) -> Option<Mapping> {
        let range = (self.range.0.max(other.range.0), self.range.1.min(other.range.1));
        let is_same = self.offset.wrapping_sub(self.range.0) == other.offset.wrapping_sub(other.range.0);
        (is_same && range.0 < range.1).then(|| Mapping { range, offset: self.shown(range).start, ..*self })
    }
}

/// The segment.
#[derive(Debug)]
pub struct Segment {
    /// As the kernel calls it.
    pub name: String,
    /// Our own open file, for reading.
    pub file: File,
    inode: u64,
    size: u64,
    store: Store,
    pages_id: u32,
    /// All mappings by which it may be written to, as they were found when it was last looked at: none has come since, or
    /// `count` is another.
    mappings: Vec<Mapping>,
    /// The address spaces that had them when all were known, and what had been done there until then.
    pub spaces: BTreeSet<u64>,
    count: u64,
    /// To be copied, whatever the page tables tell.
    unknown: RangeSet<u64>,
    /// Bytes that it has room for, beyond those that are copied.
    slack: i64,
    /// Bytes that the last round copied; `None` before there was one.
    last_bytes: Option<u64>,
    is_in_image: bool,
    progress: Progress,
    buffer: Vec<u8>,
}

impl Segment {
    /// Of a file, of which nothing is copied yet; its pages go into `pages-PAGES_ID.img`, which is `into`.
    pub fn new(
        (name, inode): (String, u64),
        file: File,
        (into, pages_id): (File, u32),
        progress: &Progress,
    ) -> Segment {
        Segment {
            name,
            file,
            inode,
            size: 0,
            store: Store::new(Place::File(into), RangeSet::new()),
            pages_id,
            mappings: Vec::new(),
            spaces: BTreeSet::new(),
            count: 0,
            unknown: RangeSet::new(),
            slack: 0,
            last_bytes: None,
            is_in_image: false,
            progress: progress.clone(),
            buffer: Vec::new(),
        }
    }

    fn object(&self) -> Object {
        Object::Other(format!("shared memory {}", self.name))
    }

    fn failed(&self, action: &'static str) -> impl Fn(std::io::Error) -> Error {
        let object = self.object();
        move |e| Error::kernel(object.clone(), action, crate::error::errno_of(&e))
    }

    /// Its size and the room that it has, in bytes.
    fn measure(&self) -> Result<(u64, u64)> {
        let told = self.file.metadata().map_err(self.failed("ask for its size"))?;
        Ok((told.len(), told.blocks() * BLOCK))
    }

    /// Begins anew with mappings that are all there are, while everybody stands still: so `count` is what was done before in
    /// the address spaces that have them.
    ///
    /// # Errors
    /// If the kernel does not tell its size.
    pub fn settle_with(&mut self, mappings: Vec<Mapping>, (spaces, count): (BTreeSet<u64>, u64)) -> Result<()> {
        (self.mappings, self.spaces, self.count) = (mappings, spaces, count);
        (self.size, _) = self.measure()?;
        self.unknown.clear();
        let end = self.size.next_multiple_of(PAGE);
        self.store.forget((0, u64::MAX));
        if end > 0 {
            self.unknown.insert(0..end);
        }
        self.last_bytes = None;
        Ok(())
    }

    /// Whether nothing has been done to it that page tables do not tell, by the count now.
    #[must_use]
    pub fn is_settled(&self, count: u64) -> bool {
        self.count == count && self.measure().is_ok_and(|(size, _)| size == self.size)
    }

    /// Whether all of it is still to be copied.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.last_bytes.is_none()
    }

    /// Pages of it.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.size.div_ceil(PAGE)
    }

    /// Who has it mapped.
    pub fn mappers(&self) -> BTreeSet<i32> {
        self.mappings.iter().map(|mapping| mapping.pid).collect()
    }

    /// Whether we have registered a mapping of it, or had.
    #[must_use]
    pub fn has(&self, inode: u64, other: &Mapping) -> bool {
        inode == self.inode && self.mappings.iter().any(|one| one.pid == other.pid && one.within(other).is_some())
    }

    /// Copies what may have changed since the last round, with no more than a share of the processors if there is one.
    /// `false` if it cannot be told what has.
    ///
    /// # Errors
    /// If it cannot be read, or the file not be written.
    pub fn round(
        &mut self,
        mappers: &mut BTreeMap<i32, TrackedSpace>,
        maps: &BTreeMap<i32, Vec<Vma>>,
        share: Option<&mut Share>,
        round: &mut Round,
    ) -> Result<bool> {
        let looking = Instant::now();
        // In this order: what is written after the protection is found by the next round.
        let Some(changed) = self.changes(mappers, maps, true)? else { return Ok(false) };
        round.looking += looking.elapsed();
        let copying = Instant::now();
        let bytes = self.copy(&changed, share)?;
        round.pages += bytes / PAGE;
        round.copying += copying.elapsed();
        self.last_bytes = Some(bytes);
        Ok(true)
    }

    /// What may have been written to since the last look; from now on the next is noted, if it `protects`.
    /// `None` if it cannot be told.
    fn changes(
        &mut self,
        mappers: &mut BTreeMap<i32, TrackedSpace>,
        maps: &BTreeMap<i32, Vec<Vma>>,
        protects: bool,
    ) -> Result<Option<Changes>> {
        let mut changed = Changes { with_holes: std::mem::take(&mut self.unknown), ..Changes::default() };
        let before = self.mappers();
        self.mappings = self.still_there(maps, &mut changed.with_holes);
        for gone in before.difference(&self.mappers()) {
            // Who has it may go by another name now: others may have this address space, too (clone(2) with CLONE_VM).
            if mappers.get(gone).is_none_or(TrackedSpace::is_there) {
                return Ok(None);
            }
        }
        for mapping in &self.mappings {
            let Some(tracked) = mappers.get_mut(&mapping.pid) else { return Ok(None) };
            match look(tracked, mapping.range, protects) {
                Ok(runs) => changed.pages.extend(runs.iter().map(|run| mapping.shown(*run))),
                // What it has written is not to be had any more.
                Err(_) if !tracked.is_there() => changed.with_holes.insert(mapping.shown(mapping.range)),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(changed))
    }

    /// The mappings, as far as they are still there. What others showed may have been written to by them before they went.
    fn still_there(&self, maps: &BTreeMap<i32, Vec<Vma>>, changed: &mut RangeSet<u64>) -> Vec<Mapping> {
        let mut left = Vec::new();
        for mapping in &self.mappings {
            let of_process = maps.get(&mapping.pid).into_iter().flatten().filter(|vma| vma.inode == self.inode);
            let parts: Vec<Mapping> =
                of_process.filter_map(|vma| mapping.within(&Mapping::of(mapping.pid, vma))).collect();
            let there: Vec<Range> = parts.iter().map(|part| part.range).collect();
            let gone = ranges::without(&[mapping.range], &there);
            changed.extend(gone.iter().map(|part| mapping.shown(*part)));
            left.extend(parts);
        }
        left
    }

    /// Copies what has changed; how many bytes.
    fn copy(&mut self, changed: &Changes, mut share: Option<&mut Share>) -> Result<u64> {
        let mut bytes = 0;
        for range in changed.with_holes.iter() {
            bytes += self.copy_data((range.start, range.end), share.as_deref_mut())?;
        }
        for range in changed.pages.iter() {
            for page in changed.with_holes.gaps(range) {
                bytes += self.copy_pages((page.start, page.end), share.as_deref_mut())?;
            }
        }
        Ok(bytes + self.copy_new_room()?)
    }

    /// Copies what is in a range, which may have holes.
    fn copy_data(&mut self, range: Range, mut share: Option<&mut Share>) -> Result<u64> {
        let (mut bytes, mut at) = (0, range.0);
        while let Some((from, to)) = self.next_data((at, range.1))? {
            self.store.forget((at, from));
            bytes += self.copy_pages((from, to), share.as_deref_mut())?;
            at = to;
        }
        self.store.forget((at, range.1));
        Ok(bytes)
    }

    /// The first pages of a range that are no holes.
    fn next_data(&self, range: Range) -> Result<Option<Range>> {
        let found = next_data(&self.file, range.0, self.size.min(range.1), &self.object())?;
        Ok(found.map(|(data, hole)| ((data / PAGE * PAGE).max(range.0), hole.next_multiple_of(PAGE).min(range.1))))
    }

    /// Copies pages, as far as they are within its size.
    fn copy_pages(&mut self, range: Range, mut share: Option<&mut Share>) -> Result<u64> {
        let end = range.1.min(self.size.next_multiple_of(PAGE));
        self.progress.expect(end.saturating_sub(range.0));
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut at = range.0;
        while at < end {
            if let Some(share) = share.as_deref_mut() {
                share.keep();
            }
            let len = PIECE.min(end - at);
            buffer.resize(len as usize, 0);
            self.read(&mut buffer, at)?;
            self.store.put(at, &buffer)?;
            self.progress.advance(len);
            at += len;
        }
        self.buffer = buffer;
        Ok(end.saturating_sub(range.0))
    }

    /// Reads from an offset on; what is behind the end is zero.
    fn read(&self, into: &mut [u8], offset: u64) -> Result<()> {
        let mut filled = 0;
        while filled < into.len() {
            match self.file.read_at(&mut into[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed("read its contents")(e)),
            }
        }
        into[filled..].fill(0);
        Ok(())
    }

    /// Pages that have come without having been written to, as those of zeros that were read: they are no holes any more.
    /// How many bytes they have.
    fn copy_new_room(&mut self) -> Result<u64> {
        let slack = |segment: &Segment, room: u64| room as i64 - segment.store.present_len() as i64;
        let (_, room) = self.measure()?;
        if slack(self, room) == self.slack {
            return Ok(0);
        }
        let (mut bytes, mut at, end) = (0, 0, self.size.next_multiple_of(PAGE));
        while let Some((from, to)) = self.next_data((at, end))? {
            for new in self.store.absent_within(from..to) {
                bytes += self.copy_pages((new.start, new.end), None)?;
            }
            at = to;
        }
        self.slack = slack(self, room);
        Ok(bytes)
    }

    /// Gets ready for a freeze that leaves as much as the last round; twice of that, since it varies.
    pub fn prepare(&mut self) {
        self.store.prepare(2 * self.last_bytes.unwrap_or(0));
    }

    /// Whether it is.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.store.has_room(self.last_bytes.unwrap_or(0))
    }

    /// The last round, of the frozen tree: the image has it under `id`. `None` if it cannot be told what has changed.
    ///
    /// # Errors
    /// If it cannot be read, or the image not be written.
    pub fn finish(
        &mut self,
        mappers: &mut BTreeMap<i32, TrackedSpace>,
        maps: &BTreeMap<i32, Vec<Vma>>,
        images: &DumpDir,
        id: u64,
    ) -> Result<Option<PageCount>> {
        let Some(changed) = self.changes(mappers, maps, false)? else { return Ok(None) };
        self.store.keep_late();
        self.copy(&changed, None)?;
        let mut map = [PagemapWriter::create(images, ImageKind::ShmemPagemap, id, self.pages_id)?];
        self.store.write_map(&mut map)?;
        map.into_iter().try_for_each(|map| map.finish().map(drop))?;
        self.is_in_image = true;
        let written = self.store.present_len() / PAGE;
        Ok(Some(PageCount { scanned: written, written, ..PageCount::default() }))
    }

    /// Puts its file in order, with a share of the processors; it goes if the image does not name it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn settle(self, images: &DumpDir, share: &mut Share) -> Result<()> {
        let id = u64::from(self.pages_id);
        match self.is_in_image {
            true => self.store.settle(|| Ok(images.raw_file_anew(ImageKind::Pages, id)?), share),
            false => Ok(images.drop_raw_file(ImageKind::Pages, id)?),
        }
    }
}

/// The parts of a range that may have been written to since they were last protected; from now on they are, if it `protects`.
fn look(tracked: &mut TrackedSpace, range: Range, protects: bool) -> Result<Vec<Range>> {
    let mut changed: Vec<Range> = tracked.written(range)?.iter().map(PageRun::range).collect();
    if protects {
        let mut at = range.0;
        while at < range.1 {
            let end = range.1.min(at + PROTECTED_AT_ONCE);
            changed.extend(tracked.protect_shared((at, end))?.iter().map(PageRun::range));
            at = end;
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_mapping_show_their_part_of_the_segment() {
        let whole = Mapping { pid: 1, range: (0x1000, 0x9000), offset: 0x4000 };
        let part = Mapping { pid: 1, range: (0x3000, 0x5000), offset: 0x6000 };
        assert_eq!(whole.within(&part), Some(part));
        assert_eq!(part.within(&whole), Some(part));
        assert_eq!(whole.shown(part.range), 0x6000..0x8000);
        // The same addresses show something else.
        assert_eq!(whole.within(&Mapping { offset: 0x5000, ..part }), None);
        assert_eq!(whole.within(&Mapping { range: (0x9000, 0xa000), offset: 0xc000, ..part }), None);
    }
}
