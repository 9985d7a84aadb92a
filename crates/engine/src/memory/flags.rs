//! The flags of a frozen process's mappings, without the look at every page that smaps costs.
//!
//! Beforehand, smaps is read and what the kernel keeps of each mapping ([`mapping_flags`]). What the bits of that mean is
//! known (include/linux/mm.h), and found confirmed by what smaps calls them; those from the 32nd on differ from one kernel
//! to the next, and are known as far as they were met: in this process, and if the other has more, in that while it runs.
//! Once it stands still the kernel's own numbers are enough. Anything that was not met before has smaps read again.

use super::WORTH_IT;
use crate::freeze::{MANY_PROCESSES, Process};
use crate::parallel;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::maps::{FlaggedVma, Perms, VmFlags, Vma};
use cryonaut_kernel::sys::mapping_flags::{self, RawFlags};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

/// The lower 32 bits of `vm_flags`, from the lowest on; `None` for bits that smaps does not name.
const NAMES: [Option<VmFlags>; 32] = [
    Some(VmFlags::READ),
    Some(VmFlags::WRITE),
    Some(VmFlags::EXEC),
    Some(VmFlags::SHARED),
    Some(VmFlags::MAYREAD),
    Some(VmFlags::MAYWRITE),
    Some(VmFlags::MAYEXEC),
    Some(VmFlags::MAYSHARE),
    Some(VmFlags::GROWSDOWN),
    Some(VmFlags::UFFD_MISSING),
    Some(VmFlags::PFNMAP),
    None,
    Some(VmFlags::UFFD_WP),
    Some(VmFlags::LOCKED),
    Some(VmFlags::IO),
    Some(VmFlags::SEQ_READ),
    Some(VmFlags::RAND_READ),
    Some(VmFlags::DONTCOPY),
    Some(VmFlags::DONTEXPAND),
    Some(VmFlags::LOCKONFAULT),
    Some(VmFlags::ACCOUNT),
    Some(VmFlags::NORESERVE),
    Some(VmFlags::HUGETLB),
    Some(VmFlags::SYNC),
    Some(VmFlags::ARCH_1),
    Some(VmFlags::WIPEONFORK),
    Some(VmFlags::DONTDUMP),
    Some(VmFlags::SOFTDIRTY),
    Some(VmFlags::MIXEDMAP),
    Some(VmFlags::HUGEPAGE),
    Some(VmFlags::NOHUGEPAGE),
    Some(VmFlags::MERGEABLE),
];

/// What our own mappings have told.
static OURS: OnceLock<Option<KnownFlags>> = OnceLock::new();

/// What is known of a process's flags.
#[derive(Debug, Clone)]
pub struct KnownFlags {
    /// What the upper half of the kernel's number means: flags and the key of protection.
    upper: BTreeMap<u64, (VmFlags, u32)>,
    /// The mapping that all have in common ([`Vma::special`], `vsyscall`), of which the kernel keeps nothing.
    vsyscall: Option<FlaggedVma>,
}

fn lower(raw: u64) -> VmFlags {
    let named = NAMES.iter().zip(0..).filter(|(_, bit)| raw >> bit & 1 == 1).filter_map(|(name, _)| *name);
    named.fold(VmFlags::empty(), |all, flag| all | flag)
}

fn all_lower() -> VmFlags {
    NAMES.iter().flatten().fold(VmFlags::empty(), |all, flag| all | *flag)
}

/// Whether a mapping of a process, which may be running, has a flag, one of the lower half.
pub fn has_flag(task: &Task, tid: i32, flag: VmFlags) -> bool {
    match mapping_flags::of_task(tid) {
        Ok(raw) => raw.iter().any(|raw| lower(raw.flags).contains(flag)),
        Err(_) => task.smaps().is_ok_and(|all| all.iter().any(|vma| vma.flags.contains(flag))),
    }
}

fn is_vsyscall(vma: &Vma) -> bool {
    vma.special() == Some(b"vsyscall")
}

impl KnownFlags {
    /// Learns those of a process that may be running. `None` if it changes too much meanwhile, or the kernel does not tell.
    pub fn learn(task: &Task, tid: i32) -> Option<KnownFlags> {
        Self::of_ourselves().filter(|ours| ours.cover(tid)).cloned().or_else(|| Self::of_running(task, tid))
    }

    /// Has another thread learn those of our own mappings, if smaps would take long: of a process with much memory, or of
    /// many. For who is not frozen yet.
    pub fn prepare(root: &Task, children: usize) {
        let is_large = || root.status().is_ok_and(|status| status.vm_rss_kib << 10 >= WORTH_IT);
        if children >= MANY_PROCESSES || is_large() {
            parallel::aside(|| {
                let _ = Self::of_ourselves();
            });
        }
    }

    /// Those of our own mappings, if they have been learnt.
    pub fn prepared() -> Option<&'static KnownFlags> {
        OURS.get()?.as_ref()
    }

    /// Those of our own mappings, which are few and small, but other threads of ours may just be making some.
    fn of_ourselves() -> Option<&'static KnownFlags> {
        const TRIES: usize = 8;
        let try_to = || KnownFlags::of_running(&Task::current().ok()?, std::process::id() as i32);
        let learn = || std::iter::repeat_with(try_to).take(TRIES).flatten().next();
        OURS.get_or_init(learn).as_ref()
    }

    /// Whether everything that a process has was met.
    fn cover(&self, tid: i32) -> bool {
        let raw = mapping_flags::of_task(tid);
        raw.is_ok_and(|raw| raw.iter().all(|raw| self.upper.contains_key(&(raw.flags >> 32))))
    }

    fn of_running(task: &Task, tid: i32) -> Option<KnownFlags> {
        let raw = mapping_flags::of_task(tid).ok()?;
        let named = task.smaps().ok()?;
        if mapping_flags::of_task(tid).ok()? != raw {
            return None;
        }
        Self::compare(&raw, named)
    }

    fn compare(raw: &[RawFlags], named: Vec<FlaggedVma>) -> Option<KnownFlags> {
        let (vsyscall, named): (Vec<_>, Vec<_>) = named.into_iter().partition(|named| is_vsyscall(&named.vma));
        let mut known = KnownFlags { upper: BTreeMap::new(), vsyscall: vsyscall.into_iter().next() };
        if raw.len() != named.len() {
            return None;
        }
        for (raw, named) in raw.iter().zip(&named) {
            let same_place = (raw.start, raw.end) == (named.vma.start, named.vma.end);
            if !same_place || lower(raw.flags) != named.flags & all_lower() {
                return None;
            }
            let meaning = (named.flags - all_lower(), named.pkey);
            if *known.upper.entry(raw.flags >> 32).or_insert(meaning) != meaning {
                return None;
            }
        }
        Some(known)
    }

    /// The mappings of a frozen process, those of its hands (`scratches`) included. `None` if smaps has to be asked.
    pub fn of_frozen(&self, process: &Process, scratches: &[Range<u64>]) -> Option<Vec<FlaggedVma>> {
        let raw = mapping_flags::of_task(process.speaker()).ok()?;
        self.flagged(&raw, &process.maps, scratches)
    }

    fn flagged(&self, raw: &[RawFlags], maps: &[Vma], scratches: &[Range<u64>]) -> Option<Vec<FlaggedVma>> {
        let has_vsyscall = maps.iter().any(is_vsyscall);
        let mut maps = maps.iter().filter(|vma| !is_vsyscall(vma));
        let mut all = Vec::with_capacity(raw.len() + 1);
        for raw in raw {
            let vma = match scratches.iter().any(|scratch| scratch.contains(&raw.start)) {
                true => scratch(raw),
                false => maps.next().filter(|vma| (vma.start, vma.end) == (raw.start, raw.end))?.clone(),
            };
            let (upper, pkey) = self.upper.get(&(raw.flags >> 32))?;
            let flags = lower(raw.flags) | *upper;
            // How large its pages are is not among the flags.
            if flags.contains(VmFlags::HUGETLB) {
                return None;
            }
            all.push(FlaggedVma { vma, flags, pkey: *pkey, page_size: super::PAGE });
        }
        if maps.next().is_some() {
            return None;
        }
        match (has_vsyscall, &self.vsyscall) {
            (false, _) => {}
            (true, Some(vsyscall)) => all.push(vsyscall.clone()),
            (true, None) => return None,
        }
        Some(all)
    }
}

/// The mapping of a hand, which was not there when the process's mappings were read.
fn scratch(raw: &RawFlags) -> Vma {
    let (start, end, perms) = (raw.start, raw.end, Perms::READ | Perms::WRITE | Perms::EXEC);
    Vma { start, end, perms, offset: 0, dev: (0, 0), inode: 0, path: std::ffi::OsString::new(), deleted: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn they_are_those_of_smaps() {
        if mapping_flags::of_task(rustix::process::getpid().as_raw_nonzero().get()).is_err() {
            return;
        }
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let tid = child.id() as i32;
        let task = Task::open(rustix::process::Pid::from_child(&child)).unwrap();
        // Until it is in the call in which it stays.
        while task.thread(rustix::process::Pid::from_child(&child)).read("wchan").unwrap() == b"0" {
            std::thread::yield_now();
        }
        let known = loop {
            if let Some(known) = KnownFlags::learn(&task, tid) {
                break known;
            }
        };
        let (named, raw) = (task.smaps().unwrap(), mapping_flags::of_task(tid).unwrap());
        let maps = task.maps().unwrap();
        assert_eq!(known.flagged(&raw, &maps, &[]), Some(named));
        // What was not met before, or is somewhere else, is not made up.
        let mut changed = raw.clone();
        changed[0].flags |= 1 << 60;
        assert_eq!(known.flagged(&changed, &maps, &[]), None);
        assert_eq!(known.flagged(&raw[1..], &maps, &[]), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
