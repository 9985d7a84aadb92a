//! Building an address space: everything that the hand had from us goes, then
//! the mappings of the record are made and filled.

use super::contents::{Contents, Piece, Store};
use super::extras::Extras;
use super::vma::{is_shared_anonymous, status};
use super::{SharedBuild, aio, fill, inherit::Inheritance, vdso};
use crate::files::{Build, io_uring, sysv};
use crate::restore::{Gift, Work};
use crate::{Error, Object, Progress, Result};
use cryonaut_image::records::{MmEntry, VmaEntry};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::maps::Vma;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace;
use cryonaut_puppet::{Arg, Batch};
use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsFd;

/// Addresses above which x86_64 user space has nothing.
const TASK_END: u64 = 0x7fff_ffff_f000;
/// Lowest address that may be mapped here (vm.mmap_min_addr).
const LOWEST: u64 = 0x1_0000;
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

/// Gives the process of a hand the mappings of its record and their contents.
/// What [`finish`] does is left, so that children can still be born with it.
pub fn begin(
    work: &mut Work<'_>,
    files: &mut Build<'_>,
    tree: &mut Tree<'_>,
    mm: &MmEntry,
    space: Space<'_>,
) -> Result<()> {
    let vdso = space.contents.vdso(&mut tree.store, &mm.vmas)?;
    let specials = clear(work, space)?;
    make_ready(work, mm, space, &specials, vdso.as_deref(), tree.detour)?;
    // First, while there is little else: see there.
    let (rings, others): (Vec<&VmaEntry>, Vec<&VmaEntry>) =
        mm.vmas.iter().partition(|vma| io_uring::is_recorded(files, vma));
    for ring in rings {
        work.flush()?;
        io_uring::map(work.hand, work.service, files, ring)?;
    }
    let lent = lend_files(work, files, &mut tree.shared, &others, space.inherited)?;
    let (segments, others): (Vec<&VmaEntry>, Vec<&VmaEntry>) =
        others.into_iter().partition(|vma| vma.status & status::SYSVIPC != 0);
    map_segments(work, files, &segments)?;
    map_all(work, &others, &lent, space)?;
    tree.pages_filled += fill::fill(work, &mut tree.store, space.now.to_vec(), &tree.progress)?;
    part_from_files(work, &space.contents.extras)?;
    aio::build(work, &mm.vmas)
}

/// Makes pages the process's own, as if it had written to them: what becomes of their file is nothing to them any more.
/// It must be as it was, though: they are in no other place.
fn part_from_files(work: &mut Work<'_>, extras: &Extras) -> Result<()> {
    for &(start, end) in &extras.like_file {
        let args = [start.into(), (end - start).into(), libc::MADV_POPULATE_WRITE.into()];
        work.batch.call(libc::SYS_madvise, args);
        work.spill()?;
    }
    let Some(expected) = extras.like_file_sum.as_ref().filter(|_| !extras.like_file.is_empty()) else { return Ok(()) };
    work.flush()?;
    let pid = work.hand.pid();
    let mut sum = blake3::Hasher::new();
    let mut page = [0; super::PAGE as usize];
    for at in extras.like_file.iter().flat_map(|(start, end)| (*start..*end).step_by(super::PAGE as usize)) {
        let mapping = || Object::Mapping(pid, at, "memory".into());
        cryonaut_puppet::memory::read(pid, at, &mut page)
            .map_err(|e| Error::kernel(mapping(), "read its contents", e))?;
        sum.update(&page);
    }
    if sum.finalize().to_hex().as_str() == expected {
        return Ok(());
    }
    let reason = "it had pages that were as in files which it maps, and these files have changed since the checkpoint";
    Err(Error::unsupported(Object::Process(pid), reason, "bring the files back as they were"))
}

/// What all address spaces of a tree are built with.
#[derive(Debug)]
pub struct Tree<'i> {
    /// The image.
    pub store: Store<'i>,
    /// Shared memory.
    pub shared: SharedBuild,
    /// Where mappings can be put that stand in the way of themselves.
    pub detour: u64,
    /// Private pages that have been read into place.
    pub pages_filled: u64,
    /// Who is told of them as they are read.
    pub progress: Progress,
}

/// What one is built of.
#[derive(Debug, Clone, Copy)]
pub struct Space<'a> {
    /// Its pages.
    pub contents: &'a Contents,
    /// Those of them that are read into place.
    pub now: &'a [Piece],
    /// What is there from birth.
    pub inherited: &'a Inheritance,
    /// Where the hands in it have their scratch mappings.
    pub scratches: &'a Range<u64>,
}

impl Space<'_> {
    /// The protection of a mapping until [`finish`].
    pub fn protection(&self, vma: &VmaEntry) -> u32 {
        let new = if self.contents.fill(vma) { vma.prot | READ_WRITE } else { vma.prot };
        self.inherited.protection(vma).unwrap_or(new)
    }
}

/// What of the addresses for mappings is not among these.
pub fn free_besides(mut taken: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    taken.sort_unstable();
    super::ranges::without(&[(LOWEST, TASK_END)], &taken)
}

/// Unmaps all that the hand inherited from us, or from a process of the tree and is not to keep. Where the kernel's own
/// mappings are.
pub fn clear(work: &mut Work<'_>, space: Space<'_>) -> Result<Vec<(u64, u64)>> {
    let task = Task::open(crate::freeze::pid_of(work.hand.pid())?)?;
    let specials = vdso::specials(&task.maps()?);
    let mut keep: Vec<(u64, u64)> = specials.clone();
    keep.push((space.scratches.start, space.scratches.end));
    keep.extend(space.inherited.areas());
    for (start, end) in free_besides(keep) {
        work.batch.call(libc::SYS_munmap, [start.into(), (end - start).into()]);
        work.spill()?;
    }
    Ok(specials)
}

/// Gives back what was inherited beyond what is to be there, and moves the vdso, which stands at `now`, in its place.
fn make_ready(
    work: &mut Work<'_>,
    mm: &MmEntry,
    space: Space<'_>,
    now: &[(u64, u64)],
    code: Option<&[u8]>,
    free: u64,
) -> Result<()> {
    for &(start, end) in &space.inherited.surplus {
        work.batch.call(libc::SYS_madvise, [start.into(), (end - start).into(), libc::MADV_DONTNEED.into()]);
        work.spill()?;
    }
    vdso::place(work, now, &mm.vmas, code, free)
}

/// Which file stands behind a mapping: a file record, with the flags to open it
/// with if the mapping says so, or a shared segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Backing {
    File(u32, Option<u32>),
    Segment(u64),
}

fn backing(vma: &VmaEntry) -> Option<Backing> {
    if vma.status & status::AIORING != 0 {
        None
    } else if vma.status & (status::FILE_PRIVATE | status::FILE_SHARED | status::SOCKET) != 0 {
        Some(Backing::File(vma.shmid as u32, vma.fdflags))
    } else if is_shared_anonymous(vma) {
        Some(Backing::Segment(vma.shmid))
    } else {
        None
    }
}

/// Files that a process has been lent for its mappings, and which of them is which.
#[derive(Debug)]
struct Lent {
    gifts: Vec<Gift>,
    order: HashMap<Backing, usize>,
}

impl Lent {
    /// Files of one gift: as many as a message takes.
    const AT_ONCE: usize = 250;

    fn number(&self, work: &Work<'_>, index: usize) -> Arg {
        work.number(self.gifts[index / Self::AT_ONCE], index % Self::AT_ONCE)
    }
}

/// Gives the process the files behind its mappings.
fn lend_files(
    work: &mut Work<'_>,
    files: &mut Build<'_>,
    shared: &mut SharedBuild,
    vmas: &[&VmaEntry],
    inherited: &Inheritance,
) -> Result<Lent> {
    let mut order: Vec<Backing> = Vec::new();
    for vma in vmas.iter().filter(|v| !inherited.has(v)) {
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
    let gifts = open.chunks(Lent::AT_ONCE).map(|some| work.give(some)).collect::<Result<_>>()?;
    Ok(Lent { gifts, order: order.into_iter().zip(0..).collect() })
}

fn is_mapped_here(vma: &VmaEntry) -> bool {
    vma.status & (status::VDSO | status::VVAR | status::VSYSCALL | status::GUARD) == 0
}

fn map_segments(work: &mut Work<'_>, files: &mut Build<'_>, segments: &[&VmaEntry]) -> Result<()> {
    if segments.is_empty() {
        return Ok(());
    }
    // Those of an ipc namespace of the tree's own are there already.
    let task = Task::open(crate::freeze::pid_of(work.hand.pid())?)?;
    let is_own = task.namespace(Namespace::Ipc)? != Task::current()?.namespace(Namespace::Ipc)?;
    let in_own = is_own.then(|| namespace::open(&task, Namespace::Ipc)).transpose()?;
    for vma in segments {
        sysv::map(files, work, vma, in_own.as_ref().map(AsFd::as_fd))?;
        work.spill()?;
    }
    Ok(())
}

fn map_all(work: &mut Work<'_>, vmas: &[&VmaEntry], lent: &Lent, space: Space<'_>) -> Result<()> {
    for vma in vmas.iter().filter(|v| is_mapped_here(v) && !space.inherited.has(v)) {
        let file = backing(vma).map(|back| lent.number(work, lent.order[&back]));
        let prot = space.protection(vma);
        // Locked memory is locked at the end, when it is filled; a file stands for shared memory here.
        // The place of a ring is held until there is one (see `aio`).
        let ring = vma.status & status::AIORING != 0;
        let kind = if ring { (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32 } else { vma.flags };
        let mut flags = kind & !(libc::MAP_LOCKED as u32) | libc::MAP_FIXED_NOREPLACE as u32;
        if file.is_some() {
            flags &= !(libc::MAP_ANONYMOUS as u32);
        }
        let number = file.unwrap_or(Arg::Val(u64::MAX));
        let (start, len) = (vma.start, vma.end - vma.start);
        let args = [start.into(), len.into(), prot.into(), flags.into(), number, vma.pgoff.into()];
        work.batch.call(libc::SYS_mmap, args);
        work.spill()?;
    }
    for index in 0..lent.order.len() {
        let number = lent.number(work, index);
        work.batch.call(libc::SYS_close, [number]);
        work.spill()?;
    }
    Ok(())
}

/// Completes an address space that was begun.
pub fn finish(work: &mut Work<'_>, files: &mut Build<'_>, mm: &MmEntry, space: Space<'_>) -> Result<()> {
    let exe = work.give(&[files.file(mm.exe_file_id)?])?;
    finish_mappings(work, &mm.vmas, space)?;
    // Under a number that is known, since it stands in a structure.
    let (number, known) = (work.number(exe, 0), work.service.above());
    work.batch.call(libc::SYS_dup3, [number, known.into(), libc::O_CLOEXEC.into()]);
    work.batch.call(libc::SYS_close, [number]);
    set_fields(&mut work.batch, known, mm);
    Ok(())
}

/// Final protection, advice, locks and guard regions; seals last of all.
fn finish_mappings(work: &mut Work<'_>, vmas: &[VmaEntry], space: Space<'_>) -> Result<()> {
    const MADV_GUARD_INSTALL: i32 = 102;
    let extras = &space.contents.extras;
    extras.build_merging(&mut work.batch);
    for vma in vmas {
        let b = &mut work.batch;
        let (start, len) = (vma.start, vma.end - vma.start);
        if vma.status & status::GUARD != 0 {
            b.call(libc::SYS_madvise, [start.into(), len.into(), MADV_GUARD_INSTALL.into()]);
        } else if is_mapped_here(vma) {
            if space.protection(vma) != vma.prot {
                if space.contents.was_emptied(vma) {
                    // Only who has been written to counts against the commit limit when it no longer can be.
                    b.attempt(libc::SYS_madvise, [start.into(), super::PAGE.into(), libc::MADV_POPULATE_WRITE.into()]);
                    b.attempt(libc::SYS_madvise, [start.into(), len.into(), libc::MADV_DONTNEED.into()]);
                }
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
                extras.build_lock(b, start, len);
            }
        }
        work.spill()?;
    }
    extras.build_future(&mut work.batch);
    for vma in vmas.iter().filter(|v| is_mapped_here(v)) {
        extras.build_seal(&mut work.batch, vma.start, vma.end - vma.start);
        work.spill()?;
    }
    Ok(())
}

/// The fields of the address space, `exe` being the number of its executable, which is closed.
fn set_fields(b: &mut Batch, exe: i32, mm: &MmEntry) {
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
}
