//! Copying the contents of a frozen process's private memory into the image.
//!
//! PAGEMAP_SCAN says which pages the process has of its own: in memory or in
//! swap, not the page of zeros, not merely the file's.

use super::PAGE;
use super::ranges;
use super::{
    absent::Absent,
    common::{Common, Held},
    page_writer::{How, PageCount, PageWriter, PagesPlace},
    vma::{is_droppable, status},
    way::WORTH_IT,
};
use crate::freeze::Process;
use crate::lazy::comes_later;
use crate::precopy::Space;
use crate::sharing::SharedSpace;
use crate::tracking::own_pages;
use crate::{Error, Object, Result};
use cryonaut_image::records::VmaEntry;
use cryonaut_image::{DumpDir, ImageKind};
use cryonaut_kernel::pagemap::{Categories, PageRun, Query, can_scan, scan_or_read};
use cryonaut_puppet::Hand;
use rustix::fs::OFlags;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Bytes of memory from which on it takes longer to look at them than to begin a thread.
const WORTH_TWO: u64 = 64 << 20;

/// Pages that are looked for at a time, while those found before are written.
const PAGES_AT_ONCE: u64 = 8192;

/// What is found where pages are looked for, and is none of those that are stored.
#[derive(Debug, Default)]
pub struct Beside {
    /// Guard regions.
    pub guards: Vec<Range<u64>>,
    /// Pages of the process's own that are as their file has them.
    pub like_file: Vec<ranges::Range>,
    /// BLAKE3 of what is in them.
    pub like_file_sum: Option<String>,
}

/// Writes the pages that the process has of its own, and those with whom it
/// shares its memory (`space`): what it holds for others to a layer, the rest
/// here. What else is found on the way comes back.
///
/// Unless the process is alone, it may share pages with others until one of
/// them writes. process_vm_readv(2) would end that: it pins what it reads, and
/// a page that is to be pinned is made the process's own. The pipes do not.
pub fn dump_private(
    place: PagesPlace<'_>,
    process: &Process,
    mut hand: Option<&mut Hand>,
    space: &SharedSpace,
    vmas: &[VmaEntry],
) -> Result<(PageCount, Beside)> {
    if let Some(mut copied) = place.precopied.and_then(|precopied| precopied.of(&space.pids)) {
        return finish_precopied(place.images, &space.pids, &mut copied, vmas);
    }
    let ids: Vec<u64> = space.pids.iter().map(|pid| *pid as u64).collect();
    let mem = File::from(process.task.open_file("mem", OFlags::RDONLY)?);
    let out = PageWriter::shared(place, ImageKind::Pagemap, &ids)?;
    let source = Source { process, mem: &mem, place };
    let mut written = 0;
    if let Some(held) = &space.common.held {
        written = write_held(held, source, hand.as_deref_mut(), vmas)?;
    }
    let (mut count, beside) = write_private(out, source, hand, vmas, &space.common)?;
    // Looked at once, with all others.
    count.written += written;
    Ok((count, beside))
}

/// The same of a process that was copied while it ran: what it has written to since then.
fn finish_precopied(
    images: &DumpDir,
    pids: &[i32],
    copied: &mut Space,
    vmas: &[VmaEntry],
) -> Result<(PageCount, Beside)> {
    let mut maps = copied.maps(images, pids)?;
    let (mut kept, mut beside) = (Vec::new(), Beside::default());
    // There may be room between neighbours.
    vmas.iter().filter(|vma| holds_pages(vma)).for_each(|vma| ranges::push(&mut kept, (vma.start, vma.end)));
    copied.keep_only(&kept);
    copied.stand_still()?;
    for neighbours in vmas.chunk_by(are_scanned_at_once) {
        let first = &neighbours[0];
        if !holds_pages(first) {
            continue;
        }
        if is_whole(first) {
            copied.copy(&[(first.start, first.end)], false)?;
            continue;
        }
        for same in neighbours.chunk_by(|a, b| is_anonymous(a) == is_anonymous(b)) {
            let (range, is_anonymous) = ((same[0].start, same[same.len() - 1].end), is_anonymous(&same[0]));
            let (of_guards, changed): (Vec<PageRun>, Vec<PageRun>) = copied
                .last_changes(range, is_anonymous, middle_of(same))?
                .into_iter()
                .filter(|run| !run.categories.contains(Categories::FILE))
                .partition(|run| run.categories.contains(Categories::GUARD));
            beside.guards.extend(of_guards.iter().map(|run| run.start..run.end));
            // What lies between them is not the program's: its hand's.
            let changed = ranges::union(changed.iter().map(PageRun::range).collect());
            copied.copy(&ranges::common(&changed, &kept), is_anonymous)?;
        }
    }
    copied.write_map(&mut maps)?;
    maps.into_iter().try_for_each(|map| map.finish().map(drop))?;
    Ok((copied.count(), beside))
}

/// Where so much memory is to be cut that two processors have as much to look at; none if it is not worth that.
fn middle_of(vmas: &[VmaEntry]) -> Option<u64> {
    let all: u64 = vmas.iter().map(|vma| vma.end - vma.start).sum();
    let mut left = (all >= WORTH_TWO).then_some(all / 2)?;
    let cut = vmas.iter().find_map(|vma| {
        let len = vma.end - vma.start;
        let is_here = left < len;
        left -= if is_here { 0 } else { len };
        is_here.then_some((vma.start + left) / PAGE * PAGE)
    });
    // All to the one is right as well.
    cut.filter(|cut| *cut > vmas[0].start)
}

/// A process whose pages are written.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    process: &'a Process,
    /// Its /proc/PID/mem.
    mem: &'a File,
    place: PagesPlace<'a>,
}

impl Source<'_> {
    /// Adds pages of one mapping, whichever way they can come.
    fn add(&self, out: &mut PageWriter<'_>, vma: &VmaEntry, run: &PageRun) -> Result<()> {
        let may_read = vma.prot & libc::PROT_READ as u32 != 0;
        match self.absent(vma) {
            absent @ Absent::File(..) => self.through_file(out, run, &absent),
            absent if (self.place.alone || out.way.is_some()) && may_read => {
                let how = if matches!(absent, Absent::Zeros) { How::UnlessZero } else { How::Stored };
                out.remote(self.process.speaker(), run.start, run.end - run.start, how)
            }
            absent => self.through_file(out, run, &absent),
        }
    }

    /// What is in a mapping where it has no pages.
    fn absent(&self, vma: &VmaEntry) -> Absent {
        let Some(files) = self.place.files else { return Absent::Unknown };
        if is_anonymous(vma) {
            return Absent::Zeros;
        }
        let maps = &self.process.maps;
        let found = maps.get(maps.partition_point(|one| one.end <= vma.start));
        found.map_or(Absent::Unknown, |found| files.absent(&self.process.task, found))
    }

    /// Memory that the process itself may not read, or shares: through /proc/PID/mem, which asks no leave of the protection
    /// and pins nothing.
    fn through_file(&self, out: &mut PageWriter<'_>, run: &PageRun, absent: &Absent) -> Result<()> {
        if run.start == run.end {
            return Ok(());
        }
        out.fetch(self.process.speaker())?;
        out.read(run.start, run.end - run.start, absent, |offset, room| {
            let at = run.start + offset;
            self.mem.read_exact_at(room, at).map_err(|e| {
                let errno = crate::error::errno_of(&e);
                Error::kernel(Object::Mapping(self.process.pid, at, "memory".into()), "read its contents", errno)
            })
        })
    }
}

/// Writes the pages that a process holds for itself and others; how many there are.
fn write_held(held: &Held, source: Source<'_>, hand: Option<&mut Hand>, vmas: &[VmaEntry]) -> Result<u64> {
    // The file must have all of them, whatever they are; others have them, too.
    let (images, pages_id) = (&held.images, held.pages_id);
    let place = PagesPlace { images, pages_id, server: None, alone: false, lazily: false, files: None, ..source.place };
    let source = Source { place, ..source };
    let mut out = PageWriter::shared(place, ImageKind::Pagemap, &[])?;
    if held.pages.iter().map(|(start, end)| end - start).sum::<u64>() >= WORTH_IT {
        hand.map_or(Ok(()), |hand| out.open_way(source.process, hand, source.mem, false))?;
    }
    let mut rest = vmas;
    for (start, end) in &held.pages {
        let run = PageRun { start: *start, end: *end, categories: Categories::empty() };
        let mut at = run.start;
        in_each(&mut rest, &run, |vma, part| {
            // Whatever the records say.
            source.through_file(&mut out, &PageRun { start: at, end: part.start, ..run }, &Absent::Unknown)?;
            at = part.end;
            source.add(&mut out, vma, part)
        })?;
        source.through_file(&mut out, &PageRun { start: at, ..run }, &Absent::Unknown)?;
    }
    out.fetch(source.process.speaker())?;
    Ok(out.finish()?.written)
}

fn write_private<'a>(
    mut out: PageWriter<'a>,
    source: Source<'_>,
    mut hand: Option<&'a mut Hand>,
    vmas: &[VmaEntry],
    common: &Common,
) -> Result<(PageCount, Beside)> {
    let Source { process, mem, .. } = source;
    let speaker = process.speaker();
    let pagemap = process.task.open_file("pagemap", OFlags::RDONLY)?;
    let mut private = 0;
    let mut guards = Vec::new();
    for neighbours in vmas.chunk_by(are_scanned_at_once) {
        let (first, last) = (&neighbours[0], &neighbours[neighbours.len() - 1]);
        if is_whole(first) {
            out.remote(speaker, first.start, first.end - first.start, How::Stored)?;
            continue;
        }
        if !is_scanned(first) {
            continue;
        }
        let query = Query { most: PAGES_AT_ONCE, ..own_pages((first.start, last.end)) };
        let mut rest = neighbours;
        each_run(process, &pagemap, query, |run| {
            in_each(&mut rest, run, |vma, run| {
                if run.categories.contains(Categories::GUARD) {
                    guards.push(run.start..run.end);
                    return Ok(());
                }
                if run.categories.contains(Categories::FILE) {
                    return Ok(());
                }
                if source.place.lazily && comes_later(vma) {
                    return out.elsewhere(speaker, run.start, run.end - run.start, How::Left);
                }
                common.cut(run, |run, elsewhere| {
                    let len = run.end - run.start;
                    if elsewhere {
                        return out.elsewhere(speaker, run.start, len, How::InParent);
                    }
                    private += len;
                    if let Some(hand) = hand.take_if(|_| private >= WORTH_IT) {
                        out.open_way(process, hand, mem, source.place.alone)?;
                    }
                    source.add(&mut out, vma, run)
                })
            })
        })?;
    }
    out.fetch(speaker)?;
    let like_file = std::mem::take(&mut out.like_file);
    let like_file_sum = (!like_file.is_empty()).then(|| out.like_file_sum.finalize().to_hex().to_string());
    Ok((out.finish()?, Beside { guards, like_file, like_file_sum }))
}

/// Mappings without another between them, of which the kernel is asked at once. Without a way to scan them, the room
/// between them would be read page by page.
fn are_scanned_at_once(a: &VmaEntry, b: &VmaEntry) -> bool {
    is_scanned(a) && is_scanned(b) && (a.end == b.start || can_scan())
}

/// Whether the kernel is asked which pages of it there are.
fn is_scanned(vma: &VmaEntry) -> bool {
    holds_pages(vma) && !is_whole(vma)
}

/// Whether memory of it without pages holds zeros.
fn is_anonymous(vma: &VmaEntry) -> bool {
    vma.status & status::ANON_PRIVATE != 0 && vma.flags & libc::MAP_HUGETLB as u32 == 0
}

/// Whether every page of it is written: of the kernel's code, since a reader on
/// another kernel has to look into it, and of a ring, whose pages are the kernel's.
fn is_whole(vma: &VmaEntry) -> bool {
    holds_pages(vma) && vma.status & (status::VDSO | status::AIORING) != 0
}

/// Gives `each` the part of a run that lies in each mapping. `rest` begins with
/// the first mapping that runs may still lie in.
fn in_each(
    rest: &mut &[VmaEntry],
    run: &PageRun,
    mut each: impl FnMut(&VmaEntry, &PageRun) -> Result<()>,
) -> Result<()> {
    while let Some(vma) = rest.first().filter(|vma| vma.start < run.end) {
        let part = PageRun { start: run.start.max(vma.start), end: run.end.min(vma.end), ..*run };
        if part.start < part.end {
            each(vma, &part)?;
        }
        if run.end < vma.end {
            return Ok(());
        }
        *rest = &rest[1..];
    }
    Ok(())
}

/// Whether a mapping can have pages that are the process's own.
fn holds_pages(vma: &VmaEntry) -> bool {
    let private = vma.status & (status::ANON_PRIVATE | status::FILE_PRIVATE) != 0;
    let ring = vma.status & status::AIORING != 0;
    (private || ring) && !is_droppable(vma) && vma.status & status::REGULAR != 0 && vma.status & status::VVAR == 0
}

fn each_run(
    process: &Process,
    pagemap: &std::os::fd::OwnedFd,
    mut query: Query,
    mut each: impl FnMut(&PageRun) -> Result<()>,
) -> Result<()> {
    let mut runs = [PageRun::default(); 512];
    while query.start < query.end {
        let (count, stopped) = scan_or_read(pagemap.as_fd(), &query, &mut runs).map_err(|errno| {
            let object = Object::Mapping(process.pid, query.start, "memory".into());
            Error::kernel(object, "ask which pages it has", errno)
        })?;
        for run in &runs[..count] {
            each(run)?;
        }
        query.start = stopped;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_cut_where_half_of_it_is() {
        let vma = |start: u64, len: u64| VmaEntry { start, end: start + len, ..VmaEntry::default() };
        let half = WORTH_TWO / 2;
        assert_eq!(middle_of(&[vma(PAGE, WORTH_TWO - PAGE)]), None);
        assert_eq!(middle_of(&[vma(PAGE, WORTH_TWO)]), Some(PAGE + half));
        // There is nothing between two mappings.
        assert_eq!(middle_of(&[vma(PAGE, PAGE), vma(1 << 40, WORTH_TWO)]), Some((1 << 40) + half - PAGE));
        assert_eq!(middle_of(&[vma(PAGE, half), vma(1 << 40, half)]), Some(1 << 40));
    }
}
