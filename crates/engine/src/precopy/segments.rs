//! Shared memory that is copied while the tree runs: shared anonymous memory, and memfds of which nobody has a descriptor any
//! more.
//!
//! Protection is noted in page tables, each mapping's own. So a segment is copied so only if all that write to it are known
//! ([`is_the_trees`]): while the tree stands still, the mappings that its processes have must be all that the kernel counts,
//! and each that can be written to is registered. What write(2), ftruncate(2) and fallocate(2) do no page table notes, nor
//! would a time of the file tell it (each first write to a page that was protected changes that, too); so nobody may have a
//! descriptor, unless seals forbid all of it (fcntl(2)). From then on a program of ours in the kernel ([`MappingWatch`])
//! counts what else page tables do not tell: mappings that others get, or that are made once more, be they gone again at the
//! next look; and holes. If that count has changed, nothing is known any more until the tree stands still once more, and in
//! the freeze the segment is copied as a whole. Mappings that go take what they noted with them: all that they showed counts
//! as written.
//!
//! ```text
//!   settled (a short stop) ──round──▶ ... ──▶ the freeze: finish ──▶ settle
//!      ▲                        │ the count has changed     │ the same
//!      └────────────────────────┘                           └──▶ copied as a whole
//! ```

use super::direct_io;
use super::processor::{Share, ahead_of_others};
use super::segment::{Mapping, Segment, UNSETTLED};
use super::space::Round;
use crate::files::PagesIds;
use crate::freeze::{Frozen, Process};
use crate::memory::{PAGE, PageCount};
use crate::report::Untracked;
use crate::sharing::Sharing;
use crate::tracking::TrackedSpace;
use crate::{Error, Object, Progress, Result};
use cryonaut_image::records::TaskKobjIdsEntry;
use cryonaut_image::{DumpDir, ImageKind};
use cryonaut_kernel::proc::maps::{Perms, Vma};
use cryonaut_kernel::sys::btf::Btf;
use cryonaut_kernel::sys::mapping_watch::{MOST, MappingWatch, space_of};
use cryonaut_kernel::sys::{absent_pages, bpf_iter, file_references, mapping_flags};
use rustix::fs::{MemfdFlags, OFlags, SealFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

/// How often a segment may be mapped: each mapping gets page tables for all that it shows.
const MOST_TIMES: u64 = 64;

/// The segments of a tree.
#[derive(Debug)]
pub struct Segments {
    watch: MappingWatch,
    /// The device of the kernel's own file system for shared memory.
    device: u64,
    /// Userfaultfds for shared memory alone, by pid.
    mappers: BTreeMap<i32, TrackedSpace>,
    /// By inode.
    segments: BTreeMap<u64, Segment>,
    /// Those that are copied in the freeze.
    left_out: BTreeSet<u64>,
    untracked: Vec<Untracked>,
    /// The mappings of the frozen tree.
    maps: BTreeMap<i32, Vec<Vma>>,
}

/// A segment that may be copied while the tree runs.
#[derive(Debug)]
pub struct Candidate {
    inode: u64,
    name: String,
    file: Option<File>,
    mappings: Vec<Mapping>,
}

/// Whether a mapping is of memory that is no file's, but for its name.
fn is_segment(vma: &Vma) -> bool {
    let name = vma.path.as_bytes();
    vma.perms.contains(Perms::SHARED) && vma.deleted && (name == b"/dev/zero" || name.starts_with(b"/memfd:"))
}

fn device_of(vma: &Vma) -> u64 {
    rustix::fs::makedev(vma.dev.0, vma.dev.1)
}

impl Segments {
    /// Before any is known.
    ///
    /// # Errors
    /// If the kernel does not tell what is done to shared memory.
    pub fn new() -> std::result::Result<Segments, Errno> {
        if !absent_pages::are_told()? {
            return Err(Errno::NOTSUP);
        }
        let own = rustix::fs::memfd_create("device", MemfdFlags::CLOEXEC)?;
        Ok(Segments {
            watch: MappingWatch::begin()?,
            device: rustix::fs::fstat(own)?.st_dev,
            mappers: BTreeMap::new(),
            segments: BTreeMap::new(),
            left_out: BTreeSet::new(),
            untracked: Vec::new(),
            maps: BTreeMap::new(),
        })
    }

    /// Those of a frozen tree that have at least so many bytes, and of which it is not known who may write to them.
    pub fn candidates(&self, processes: &[Process], least: u64) -> Vec<Candidate> {
        let mut found: BTreeMap<u64, Candidate> = BTreeMap::new();
        let mut small = BTreeSet::new();
        for process in processes.iter().filter(|p| !p.is_zombie()) {
            for vma in process.maps.iter().filter(|vma| is_segment(vma) && device_of(vma) == self.device) {
                let is_known = self.segments.get(&vma.inode).is_some_and(|segment| self.is_settled(segment));
                if is_known || self.left_out.contains(&vma.inode) || small.contains(&vma.inode) {
                    continue;
                }
                let mapping = Mapping::of(process.pid, vma);
                if let Some(candidate) = found.get_mut(&vma.inode) {
                    candidate.mappings.push(mapping);
                    continue;
                }
                let open = || process.task.open_file(&vma.map_files_name(), OFlags::RDONLY).ok().map(File::from);
                let file = if self.segments.contains_key(&vma.inode) { None } else { open() };
                let is_large = |file: &File| file.metadata().is_ok_and(|told| told.blocks() * 512 >= least.max(1));
                if !self.segments.contains_key(&vma.inode) && !file.as_ref().is_some_and(is_large) {
                    small.insert(vma.inode);
                    continue;
                }
                let name = String::from_utf8_lossy(vma.path.as_bytes()).into_owned();
                found.insert(vma.inode, Candidate { inode: vma.inode, name, file, mappings: vec![mapping] });
            }
        }
        found.into_values().collect()
    }

    fn is_settled(&self, segment: &Segment) -> bool {
        self.count(&segment.spaces).is_ok_and(|count| segment.is_settled(count))
    }

    /// What was done in some address spaces, that no page table tells.
    fn count(&self, spaces: &BTreeSet<u64>) -> std::result::Result<u64, Errno> {
        spaces.iter().map(|space| self.watch.count(*space)).sum()
    }

    /// Which of the processes have to be entered for these segments.
    pub fn to_enter(&self, candidates: &[Candidate]) -> BTreeSet<i32> {
        let pids = candidates.iter().flat_map(|one| one.mappings.iter().map(|mapping| mapping.pid));
        pids.filter(|pid| !self.mappers.get(pid).is_some_and(TrackedSpace::is_there)).collect()
    }

    /// Has segments of the frozen tree tracked, as far as it can be.
    ///
    /// # Errors
    /// If a hand cannot be driven any more, or the image not be written.
    pub fn track(
        &mut self,
        processes: &mut [Process],
        candidates: Vec<Candidate>,
        (images, pages_ids, progress): (&DumpDir, &PagesIds, &Progress),
    ) -> Result<()> {
        if candidates.is_empty() {
            return Ok(());
        }
        let mut sharing = Sharing::default();
        let living = || processes.iter().filter(|p| !p.is_zombie());
        let ids = living().map(|p| Ok((p.pid, sharing.ids(p)?))).collect::<Result<BTreeMap<_, _>>>()?;
        let spaces = ids.values().map(|ids| ids.vm_id).collect::<BTreeSet<_>>().len();
        for mut candidate in candidates {
            let inode = candidate.inode;
            if let Some(file) = candidate.file.take() {
                let pages_id = pages_ids.new_id();
                let into = images.raw_file(ImageKind::Pages, u64::from(pages_id))?;
                let segment = Segment::new((candidate.name.clone(), inode), file, (into, pages_id), progress);
                self.segments.insert(inode, segment);
            }
            let reason = match spaces == ids.len() {
                true => self.settle_one(processes, &candidate, &ids)?,
                // Where the one is not, the other may go on with it.
                false => Some("processes of the tree share their memory without being threads".into()),
            };
            if let Some(reason) = reason {
                self.leave_out(inode, candidate.mappings[0].pid, &reason, images)?;
            }
        }
        Ok(())
    }

    /// Begins anew with a segment, of which all mappings are known; why not.
    fn settle_one(
        &mut self,
        processes: &mut [Process],
        candidate: &Candidate,
        ids: &BTreeMap<i32, TaskKobjIdsEntry>,
    ) -> Result<Option<String>> {
        let inode = candidate.inode;
        let too_many = self.segments.len() > MOST;
        let Some(segment) = self.segments.get_mut(&inode) else { return Ok(None) };
        let mapped: u64 = candidate.mappings.iter().map(|mapping| mapping.range.1 - mapping.range.0).sum();
        let size = segment.file.metadata().map_or(0, |told| told.len());
        if mapped > size.max(PAGE).saturating_mul(MOST_TIMES) || too_many {
            return Ok(Some("it is mapped too often, or there are too many".into()));
        }
        if !rustix::fs::fstatfs(&segment.file).is_ok_and(|fs| fs.f_type == libc::TMPFS_MAGIC) {
            return Ok(Some("its writes cannot be noted".into()));
        }
        match is_the_trees((inode, self.device), processes, ids) {
            Ok(Holders::Mappings) => {}
            Ok(Holders::Descriptors) if is_sealed(&segment.file) => {}
            Ok(Holders::Descriptors) => {
                return Ok(Some("there are descriptors of it, by which it may be written to unnoticed".into()));
            }
            Ok(Holders::Others) => {
                return Ok(Some("somebody else has it as well, outside of the tree or on the way".into()));
            }
            Err(e) => return Ok(Some(format!("the kernel does not tell who has it ({e})"))),
        }
        let mut mappings = Vec::new();
        for mapping in &candidate.mappings {
            let tracked = match self.mappers.get(&mapping.pid) {
                Some(tracked) if tracked.is_there() => tracked,
                _ => {
                    let Some(process) = processes.iter_mut().find(|p| p.pid == mapping.pid) else { continue };
                    match TrackedSpace::begin_for(process, is_segment)? {
                        Ok(tracked) => self.mappers.insert(mapping.pid, tracked),
                        Err(reason) => return Ok(Some(reason.0)),
                    };
                    &self.mappers[&mapping.pid]
                }
            };
            match tracked.register_one(mapping.range) {
                Ok(true) => mappings.push(*mapping),
                // Nothing to note.
                Ok(false) => {}
                Err(Errno::BUSY) => return Ok(Some("a userfaultfd of the program's watches it".into())),
                Err(e) => return Ok(Some(format!("its writes cannot be noted ({e})"))),
            }
        }
        let pids: BTreeSet<i32> = mappings.iter().map(|mapping| mapping.pid).collect();
        let its = processes.iter().filter(|p| pids.contains(&p.pid));
        let spaces: std::result::Result<BTreeSet<u64>, Errno> = its.map(|p| space_of(p.speaker())).collect();
        // Nothing is under way: nobody has it who does not stand still.
        let counted = spaces.and_then(|spaces| {
            spaces.iter().try_for_each(|space| self.watch.add(*space))?;
            let count = spaces.iter().map(|space| self.watch.count(*space)).sum::<std::result::Result<u64, Errno>>()?;
            Ok((spaces, count))
        });
        match counted {
            Ok(counted) => segment.settle_with(mappings, counted).map(|()| None),
            Err(e) => Ok(Some(format!("what is done to it cannot be counted ({e})"))),
        }
    }

    /// It will be copied in the freeze, with a word about why.
    fn leave_out(&mut self, inode: u64, pid: i32, reason: &str, images: &DumpDir) -> Result<()> {
        let Some(segment) = self.segments.remove(&inode) else { return Ok(()) };
        let reason = format!("shared memory {}: {reason}", segment.name);
        self.untracked.push(Untracked { pid, reason });
        self.left_out.insert(inode);
        segment.settle(images, &mut Share::new(None))
    }

    /// What was left out, and why.
    pub fn take_untracked(&mut self) -> Vec<Untracked> {
        std::mem::take(&mut self.untracked)
    }

    /// What somebody may write to past the page tables is copied in the freeze.
    ///
    /// # Errors
    /// If the image cannot be written.
    pub fn refuse_direct_io(&mut self, images: &DumpDir) -> Result<()> {
        let reasons = self.mappers.iter().filter_map(|(pid, mapper)| Some((*pid, direct_io::reason(mapper.task())?)));
        for (pid, reason) in reasons.collect::<Vec<_>>() {
            let its =
                self.segments.iter().filter(|(_, segment)| segment.mappers().contains(&pid)).map(|(inode, _)| *inode);
            its.collect::<Vec<_>>().into_iter().try_for_each(|inode| self.leave_out(inode, pid, reason, images))?;
        }
        Ok(())
    }

    /// Copies what may have changed since the last round. Pages of segments that are to be looked at while the tree stands
    /// still count as untracked.
    ///
    /// # Errors
    /// If a segment cannot be read, or the image not be written.
    pub fn round(&mut self, share: &mut Share) -> Result<Round> {
        let mut round = Round::default();
        // Before anything is looked at.
        let settled: BTreeSet<u64> =
            self.segments.iter().filter(|(_, segment)| self.is_settled(segment)).map(|(inode, _)| *inode).collect();
        let told = |(pid, mapper): (&i32, &TrackedSpace)| Some((*pid, mapper.task().maps().ok()?));
        let maps: BTreeMap<i32, Vec<Vma>> = self.mappers.iter().filter_map(told).collect();
        for (inode, segment) in &mut self.segments {
            let mappers = &mut self.mappers;
            let copied = settled.contains(inode)
                && match segment.is_new() {
                    true => segment.round(mappers, &maps, Some(share), &mut round)?,
                    false => ahead_of_others(|| segment.round(mappers, &maps, None, &mut round))?,
                };
            if !copied {
                round.untracked += segment.pages();
            }
        }
        Ok(round)
    }

    /// Gets ready for the freeze.
    pub fn prepare(&mut self) {
        self.segments.values_mut().for_each(Segment::prepare);
    }

    /// Whether all is ready for it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.segments.values().all(Segment::is_ready)
    }

    /// The tree stands still for the last round.
    pub fn stand_still(&mut self, frozen: &Frozen) {
        let mappers = frozen.processes.iter().filter(|p| self.mappers.contains_key(&p.pid));
        self.maps = mappers.map(|p| (p.pid, p.maps.clone())).collect();
    }

    /// Whether the protection of a mapping of the frozen tree is of our doing.
    #[must_use]
    pub fn has(&self, pid: i32, vma: &Vma) -> bool {
        self.mappers.contains_key(&pid) && is_segment(vma) && device_of(vma) == self.device && {
            let mapping = Mapping::of(pid, vma);
            self.segments.values().any(|segment| segment.has(vma.inode, &mapping))
        }
    }

    /// The last round of a segment, which the image has under `id`; `None` if it is to be copied as a whole.
    ///
    /// # Errors
    /// If it cannot be read, or the image not be written.
    pub fn finish(&mut self, (device, inode): (u64, u64), images: &DumpDir, id: u64) -> Result<Option<PageCount>> {
        let is_settled = self.segments.get(&inode).is_some_and(|one| self.is_settled(one) && !one.is_new());
        let Some(segment) = self.segments.get_mut(&inode).filter(|_| device == self.device) else { return Ok(None) };
        let done = if is_settled { segment.finish(&mut self.mappers, &self.maps, images, id)? } else { None };
        if done.is_none() {
            let pid = segment.mappers().first().copied().unwrap_or_default();
            let reason = format!("shared memory {}: {UNSETTLED}", segment.name);
            self.untracked.push(Untracked { pid, reason });
        }
        Ok(done)
    }

    /// Ends it: files of pages are in order, and nothing of it is left in the processes.
    ///
    /// # Errors
    /// If the image cannot be written.
    pub fn settle(self, images: &DumpDir, share: &mut Share) -> Result<()> {
        self.mappers.into_values().for_each(TrackedSpace::lift);
        self.segments.into_values().try_for_each(|segment| segment.settle(images, share))
    }
}

/// Whether no system call can change a file's contents.
fn is_sealed(file: &File) -> bool {
    let forbid = SealFlags::WRITE | SealFlags::FUTURE_WRITE;
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.intersects(forbid) && seals.contains(SealFlags::SHRINK))
}

/// What refers to a segment, beside our own open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holders {
    /// Mappings of the tree's processes alone.
    Mappings,
    /// Mappings and descriptors of the tree's processes.
    Descriptors,
    /// Somebody else, too.
    Others,
}

/// Who has a segment, by what the kernel counts, while the tree stands still. If the tree's processes are all, nobody else
/// can write to it, nor is anybody in the middle of it.
fn is_the_trees(
    (inode, device): (u64, u64),
    processes: &[Process],
    ids: &BTreeMap<i32, TaskKobjIdsEntry>,
) -> std::result::Result<Holders, Errno> {
    let mut of_tree: BTreeMap<u64, u64> = BTreeMap::new();
    let is_its = |vma: &&Vma| vma.inode == inode && device_of(vma) == device;
    for process in processes.iter().filter(|p| p.maps.iter().any(|vma| is_its(&vma))) {
        let raw = mapping_flags::of_task(process.speaker())?;
        for vma in process.maps.iter().filter(is_its) {
            let found = raw.iter().find(|raw| raw.start == vma.start).ok_or(Errno::AGAIN)?;
            *of_tree.entry(found.file).or_default() += 1;
        }
    }
    if counts_are(&of_tree, inode)? {
        return Ok(Holders::Mappings);
    }
    // Descriptors, of each table once.
    let mut tables = BTreeSet::new();
    let btf = Btf::running()?;
    for process in processes.iter() {
        if !ids.get(&process.pid).is_some_and(|ids| tables.insert(ids.files_id)) {
            continue;
        }
        for descriptor in bpf_iter::descriptors(btf, process.speaker())? {
            let link = process.task.link(&format!("fd/{}", descriptor.fd));
            let may_be = |link: &std::path::Path| {
                link.as_os_str().as_bytes().starts_with(b"/memfd:") || link.starts_with("/dev/zero (deleted)")
            };
            if of_tree.contains_key(&descriptor.file) || link.is_ok_and(|link| may_be(&link)) {
                *of_tree.entry(descriptor.file).or_default() += 1;
            }
        }
    }
    Ok(if counts_are(&of_tree, inode)? { Holders::Descriptors } else { Holders::Others })
}

/// Whether open files of an inode are referred to so often, and are all there are beside one of our own.
fn counts_are(of_tree: &BTreeMap<u64, u64>, inode: u64) -> std::result::Result<bool, Errno> {
    let files: Vec<u64> = of_tree.keys().copied().collect();
    let told = file_references::of_files(&files)?;
    let its: Vec<_> = told.iter().zip(of_tree.values()).filter(|(told, _)| told.inode == inode).collect();
    Ok(its.iter().all(|(told, known)| told.to_file == **known && told.to_name == its.len() as u64 + 1))
}

/// Why nothing of this can be had, as it is told.
pub fn unavailable(errno: Errno) -> Error {
    Error::kernel(Object::Other("shared memory".into()), "count what is done to it", errno)
}
