//! Building an address space: everything that the hand had from us goes, then
//! the mappings of the record are made and filled.

use super::vma::status;
use super::{SharedBuild, extras::Extras, vdso};
use crate::files::Build;
use crate::{Error, Object, Result};
use cryonaut_image::records::{MmEntry, VmaEntry};
use cryonaut_image::{ImageDir, ImageKind, Pagemap};
use cryonaut_kernel::proc::maps::Vma;
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Batch, Hand};
use std::collections::HashMap;
use std::os::fd::AsFd;

/// Addresses above which x86_64 user space has nothing.
const TASK_END: u64 = 0x7fff_ffff_f000;
/// Lowest address that may be mapped here (vm.mmap_min_addr).
const LOWEST: u64 = 0x1_0000;
/// Calls that one batch is filled with.
const FULL: usize = 200;
/// Runs of pages of one preadv.
const IOVECS: usize = 512;
/// What a mapping must allow while pages are read into it.
const READ_WRITE: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;
/// struct prctl_mm_map (linux/prctl.h), in 64-bit words.
const MM_MAP_WORDS: usize = 13;

/// Where the processes of a tree have their mappings, so that a place for the
/// scratch mapping is found that suits all.
#[derive(Debug, Default)]
pub struct Shape {
    taken: Vec<(u64, u64)>,
}

impl Shape {
    /// Takes note of a process.
    pub fn add(&mut self, vmas: &[VmaEntry]) {
        self.taken.extend(vmas.iter().map(|v| (v.start, v.end)));
    }

    /// Takes note of addresses that we use ourselves.
    pub fn add_maps(&mut self, maps: &[Vma]) {
        self.taken.extend(maps.iter().map(|v| (v.start, v.end)));
    }

    /// The lowest address from which `len` bytes are free everywhere.
    #[must_use]
    pub fn free(&mut self, len: u64) -> Option<u64> {
        self.taken.sort_unstable();
        let mut low = 1 << 28;
        for &(start, end) in &self.taken {
            if start >= low + len {
                break;
            }
            low = low.max(end.next_multiple_of(super::PAGE));
        }
        (low + len < TASK_END).then_some(low)
    }
}

/// Runs what a batch holds when it is nearly full, and starts a new one.
fn spill(hand: &mut Hand, b: &mut Batch) -> Result<()> {
    if b.len() >= FULL {
        hand.run(b)?;
        *b = Batch::new();
    }
    Ok(())
}

/// Gives the process of `hand` the address space of the record.
pub fn build(
    hand: &mut Hand,
    service: &Service,
    files: &mut Build<'_>,
    shared: &mut SharedBuild,
    mm: &MmEntry,
    extras: Extras,
    free: u64,
) -> Result<()> {
    clear(hand, mm, free)?;
    let numbers = lend_files(hand, service, files, shared, &mm.vmas)?;
    let contents = Contents::read(files.images, hand.pid(), &mm.vmas, extras)?;
    map_all(hand, &mm.vmas, &numbers, &contents)?;
    fill(hand, service, files, &contents)?;
    finish(hand, &mm.vmas, &contents)?;
    set_fields(hand, service, files, mm)?;
    Ok(())
}

/// Unmaps all that the hand inherited from us and moves the vdso in place.
fn clear(hand: &mut Hand, mm: &MmEntry, free: u64) -> Result<()> {
    let task = cryonaut_kernel::proc::Task::open(crate::freeze::pid_of(hand.pid())?)?;
    let specials = vdso::specials(&task.maps()?);
    let scratch = hand.scratch();
    let mut keep: Vec<(u64, u64)> = specials.clone();
    keep.push((scratch.start, scratch.end));
    keep.sort_unstable();
    let mut b = Batch::new();
    let mut low = LOWEST;
    for (start, end) in keep.into_iter().chain([(TASK_END, TASK_END)]) {
        if start > low {
            b.call(libc::SYS_munmap, [low.into(), (start - low).into()]);
        }
        low = end;
    }
    vdso::relocate(hand.pid(), &mut b, &specials, &mm.vmas, free)?;
    Ok(hand.run(&mut b)?)
}

/// Which file stands behind a mapping: a file record, with the flags to open it
/// with if the mapping says so, or a shared segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Backing {
    File(u32, Option<u32>),
    Segment(u64),
}

fn backing(vma: &VmaEntry) -> Option<Backing> {
    if vma.status & (status::FILE_PRIVATE | status::FILE_SHARED) != 0 {
        Some(Backing::File(vma.shmid as u32, vma.fdflags))
    } else if vma.status & status::ANON_SHARED != 0 {
        Some(Backing::Segment(vma.shmid))
    } else {
        None
    }
}

/// Gives the process the files behind its mappings; returns their numbers.
fn lend_files(
    hand: &mut Hand,
    service: &Service,
    files: &mut Build<'_>,
    shared: &mut SharedBuild,
    vmas: &[VmaEntry],
) -> Result<HashMap<Backing, i32>> {
    let mut order: Vec<Backing> = Vec::new();
    for vma in vmas {
        if let Some(b) = backing(vma).filter(|b| !order.contains(b)) {
            order.push(b);
        }
    }
    let mut again = HashMap::new();
    for b in &order {
        match *b {
            Backing::File(id, None) => drop(files.file(id)?),
            Backing::File(id, Some(flags)) => again.extend(files.opened_again(id, flags)?.map(|file| (*b, file))),
            Backing::Segment(id) => drop(shared.segment(files.images, id)?),
        }
    }
    let mut open = Vec::with_capacity(order.len());
    for b in &order {
        open.push(match *b {
            Backing::File(id, _) => again.get(b).map_or_else(|| files.built()[&id].as_fd(), AsFd::as_fd),
            Backing::Segment(id) => shared.get(id)?,
        });
    }
    let numbers = service.give(hand, &open)?;
    Ok(order.into_iter().zip(numbers).collect())
}

/// The private pages that the image has for a process.
#[derive(Debug)]
struct Contents {
    pages_id: u32,
    /// Address, bytes, offset in the file of pages; ascending by address.
    runs: Vec<(u64, u64, u64)>,
    extras: Extras,
}

impl Contents {
    fn read(images: &ImageDir, pid: i32, vmas: &[VmaEntry], extras: Extras) -> Result<Self> {
        let map = Pagemap::read(images, ImageKind::Pagemap, pid as u64)?;
        let there = map.runs().iter().filter_map(|r| Some((r.vaddr, r.len(), r.offset?)));
        // The vdso's pages are in the image for a reader that has to patch; ours is the kernel's own.
        let vdso = vmas.iter().find(|v| v.status & status::VDSO != 0).map_or((0, 0), |v| (v.start, v.end));
        let mut runs: Vec<_> = there.flat_map(|run| without(run, vdso)).collect();
        runs.sort_unstable();
        Ok(Contents { pages_id: map.pages_id(), runs, extras })
    }

    /// Whether pages have to be written into a mapping before it gets its
    /// final protection. One that could be written is counted against the
    /// commit limit for good (VM_ACCOUNT), and merges with no neighbour that
    /// is not: so none may be writable that has no need of it.
    fn fill(&self, vma: &VmaEntry) -> bool {
        let private = vma.status & (status::ANON_PRIVATE | status::FILE_PRIVATE) != 0;
        let next = self.runs.partition_point(|r| r.0 + r.1 <= vma.start);
        let has_pages = self.runs.get(next).is_some_and(|r| r.0 < vma.end);
        vma.status & status::REGULAR != 0 && private && (has_pages || self.extras.was_writable(vma.start))
    }
}

/// What is left of a run of pages before and behind the area `out`.
fn without((start, len, offset): (u64, u64, u64), out: (u64, u64)) -> impl Iterator<Item = (u64, u64, u64)> {
    let end = start + len;
    let before = (start, end.min(out.0).saturating_sub(start));
    let behind = (start.max(out.1), end.saturating_sub(start.max(out.1)));
    let parts = if out.0 < end && start < out.1 { [before, behind] } else { [(start, len), (end, 0)] };
    parts.into_iter().filter(|p| p.1 > 0).map(move |p| (p.0, p.1, offset + (p.0 - start)))
}

fn is_mapped_here(vma: &VmaEntry) -> bool {
    vma.status & (status::VDSO | status::VVAR | status::VSYSCALL | status::GUARD) == 0
}

fn map_all(hand: &mut Hand, vmas: &[VmaEntry], numbers: &HashMap<Backing, i32>, contents: &Contents) -> Result<()> {
    let mut b = Batch::new();
    for vma in vmas.iter().filter(|v| is_mapped_here(v)) {
        if vma.status & status::AIORING != 0 {
            return Err(Error::unsupported(
                Object::Mapping(hand.pid(), vma.start, "AIO ring".into()),
                "AIO rings cannot be built yet",
                "",
            ));
        }
        let number = match backing(vma) {
            Some(back) => i64::from(numbers[&back]),
            None => -1,
        };
        let prot = if contents.fill(vma) { vma.prot | READ_WRITE } else { vma.prot };
        // Locked memory is locked at the end, when it is filled; a file stands for shared memory here.
        let mut flags = vma.flags & !(libc::MAP_LOCKED as u32) | libc::MAP_FIXED_NOREPLACE as u32;
        if number >= 0 {
            flags &= !(libc::MAP_ANONYMOUS as u32);
        }
        b.call(
            libc::SYS_mmap,
            [
                vma.start.into(),
                (vma.end - vma.start).into(),
                prot.into(),
                flags.into(),
                cryonaut_puppet::Arg::Val(number as u64),
                vma.pgoff.into(),
            ],
        );
        spill(hand, &mut b)?;
    }
    for number in numbers.values() {
        b.call(libc::SYS_close, [(*number).into()]);
        spill(hand, &mut b)?;
    }
    Ok(hand.run(&mut b)?)
}

/// Reads the private pages into place, by the process itself: one copy, out of
/// the page cache.
fn fill(hand: &mut Hand, service: &Service, files: &Build<'_>, contents: &Contents) -> Result<()> {
    if contents.runs.is_empty() {
        return Ok(());
    }
    let pages = files.images.open_raw(ImageKind::Pages, u64::from(contents.pages_id))?;
    let number = service.give(hand, &[pages.as_fd()])?[0];
    let mut b = Batch::new();
    let mut expected = Vec::new();
    let mut rest = contents.runs.as_slice();
    while let Some(&(_, _, offset)) = rest.first() {
        // Runs that lie one behind the other in the file go into one call.
        let (mut count, mut total) = (0, 0);
        while count < rest.len() && count < IOVECS && rest[count].2 == offset + total && total < 1 << 30 {
            total += rest[count].1;
            count += 1;
        }
        let iov: Vec<u8> = rest[..count].iter().flat_map(|r| [r.0, r.1]).flat_map(u64::to_le_bytes).collect();
        let at = b.bytes(&iov);
        let call = b.call(libc::SYS_preadv, [number.into(), at.into(), count.into(), offset.into()]);
        expected.push((call, total));
        rest = &rest[count..];
        if b.data_len() + IOVECS * 16 > cryonaut_puppet::scratch::DATA_LEN || b.len() >= FULL {
            run_reads(hand, &mut b, &mut expected)?;
        }
    }
    b.call(libc::SYS_close, [number.into()]);
    run_reads(hand, &mut b, &mut expected)
}

fn run_reads(hand: &mut Hand, b: &mut Batch, expected: &mut Vec<(cryonaut_puppet::Call, u64)>) -> Result<()> {
    hand.run(b)?;
    for (call, total) in expected.drain(..) {
        let got = b.result(call).unwrap_or(0);
        if got != total {
            return Err(Error::bad_image(
                format!("pagemap-{}.img", hand.pid()),
                format!("{total} bytes of pages do not fit its mappings ({got} were taken)"),
            ));
        }
    }
    *b = Batch::new();
    Ok(())
}

/// Final protection, advice, locks and guard regions; seals last of all.
fn finish(hand: &mut Hand, vmas: &[VmaEntry], contents: &Contents) -> Result<()> {
    const MADV_GUARD_INSTALL: i32 = 102;
    let extras = &contents.extras;
    let mut b = Batch::new();
    extras.build_merging(&mut b);
    for vma in vmas {
        let (start, len) = (vma.start, vma.end - vma.start);
        if vma.status & status::GUARD != 0 {
            b.call(libc::SYS_madvise, [start.into(), len.into(), MADV_GUARD_INSTALL.into()]);
        } else if is_mapped_here(vma) {
            if contents.fill(vma) && vma.prot & READ_WRITE != READ_WRITE {
                b.call(libc::SYS_mprotect, [start.into(), len.into(), vma.prot.into()]);
            }
            if extras.merges_any() && vma.madv.unwrap_or(0) & 1 << libc::MADV_MERGEABLE == 0 {
                b.attempt(libc::SYS_madvise, [start.into(), len.into(), libc::MADV_UNMERGEABLE.into()]);
            }
            for advice in (0..64).filter(|a| vma.madv.unwrap_or(0) & 1 << a != 0) {
                // A kernel without the feature does not know its advice.
                b.attempt(libc::SYS_madvise, [start.into(), len.into(), advice.into()]);
            }
            if vma.flags & libc::MAP_LOCKED as u32 != 0 {
                extras.build_lock(&mut b, start, len);
            }
        }
        spill(hand, &mut b)?;
    }
    extras.build_future(&mut b);
    for vma in vmas.iter().filter(|v| is_mapped_here(v)) {
        extras.build_seal(&mut b, vma.start, vma.end - vma.start);
        spill(hand, &mut b)?;
    }
    Ok(hand.run(&mut b)?)
}

fn set_fields(hand: &mut Hand, service: &Service, files: &mut Build<'_>, mm: &MmEntry) -> Result<()> {
    let exe = service.give(hand, &[files.file(mm.exe_file_id)?])?[0];
    let mut b = Batch::new();
    let auxv: Vec<u8> = mm.mm_saved_auxv.iter().flat_map(|w| w.to_le_bytes()).collect();
    let auxv = b.bytes(&auxv);
    let words: [u64; MM_MAP_WORDS] = [
        mm.mm_start_code,
        mm.mm_end_code,
        mm.mm_start_data,
        mm.mm_end_data,
        mm.mm_start_brk,
        mm.mm_brk,
        mm.mm_start_stack,
        mm.mm_arg_start,
        mm.mm_arg_end,
        mm.mm_env_start,
        mm.mm_env_end,
        0,
        auxv.len() as u64 | (exe as u64) << 32,
    ];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let map = b.bytes(&bytes);
    b.point(map.at(88), auxv);
    const PR_SET_MM_MAP: i32 = 14;
    b.call(libc::SYS_prctl, [libc::PR_SET_MM.into(), PR_SET_MM_MAP.into(), map.into(), bytes.len().into(), 0.into()]);
    b.call(libc::SYS_close, [exe.into()]);
    if let Some(disabled) = mm.thp_disabled.filter(|d| *d) {
        b.call(
            libc::SYS_prctl,
            [libc::PR_SET_THP_DISABLE.into(), u64::from(disabled).into(), 0.into(), 0.into(), 0.into()],
        );
    }
    Ok(hand.run(&mut b)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_around_an_area_remain() {
        let left = |run, out| without(run, out).collect::<Vec<_>>();
        assert_eq!(left((0x1000, 0x4000, 0), (0x2000, 0x4000)), [(0x1000, 0x1000, 0), (0x4000, 0x1000, 0x3000)]);
        assert_eq!(left((0x2000, 0x3000, 8), (0x2000, 0x4000)), [(0x4000, 0x1000, 0x2008)]);
        assert_eq!(left((0x2000, 0x1000, 8), (0x2000, 0x4000)), []);
        assert_eq!(left((0x5000, 0x1000, 8), (0x2000, 0x4000)), [(0x5000, 0x1000, 8)]);
        assert_eq!(left((0x5000, 0x1000, 8), (0, 0)), [(0x5000, 0x1000, 8)]);
    }
}
