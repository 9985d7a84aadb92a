//! What a process has in its memory that CRIU's record of an address space has
//! no place for: kept beside it in `cryonaut-memory.json`, by pid. A mapping
//! is named by its first address.
//!
//! The mapping that the hand made for itself shows what the process has asked
//! for all its future mappings (mlockall(2), MCL_FUTURE).

use super::ranges::Range;
use crate::Result;
use cryonaut_image::{DumpDir, ImageDir};
use cryonaut_kernel::proc::maps::{FlaggedVma, Perms, VmFlags};
use cryonaut_puppet::{Batch, Call};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The file's name, short of what all such files have in theirs.
pub const NAME: &str = "memory";
/// prctl(2), Linux 6.4: all that can be merged may be (KSM).
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;
/// mseal(2), Linux 6.10.
const SYS_MSEAL: i64 = 462;
/// mlock2(2): lock pages as they are touched.
const MLOCK_ONFAULT: u32 = 1;

/// The flags of mlockall(2) that hold for future mappings; 0 for none.
type LockFuture = u32;

/// What is kept of one process.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Extras {
    /// All its memory may be merged with equal pages elsewhere.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    merge_any: bool,
    /// Flags of mlockall(2) for mappings to come.
    #[serde(skip_serializing_if = "is_zero")]
    lock_future: LockFuture,
    /// Mappings that are locked page by page, as each is touched.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    locked_on_fault: BTreeSet<u64>,
    /// Mappings sealed by mseal(2).
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    sealed: BTreeSet<u64>,
    /// Private mappings counted against the commit limit (VM_ACCOUNT)
    /// although they cannot be written now: once they could be.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    counted: BTreeSet<u64>,
    /// Pages of its own that were as their file has them, and are not stored: first addresses and ends.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub like_file: Vec<Range>,
    /// BLAKE3 of what is in these, one behind the other: their files may be others by the time of a restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub like_file_sum: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_zero(flags: &LockFuture) -> bool {
    *flags == 0
}

impl Extras {
    /// Takes note of one of the process's own mappings.
    pub fn note(&mut self, mapping: &FlaggedVma) {
        let (start, flags, perms) = (mapping.vma.start, mapping.flags, mapping.vma.perms);
        if flags.contains(VmFlags::LOCKONFAULT) {
            self.locked_on_fault.insert(start);
        }
        // The kernel's own mappings are as this kernel makes them.
        if flags.contains(VmFlags::SEALED) && !super::vma::is_kernels(&mapping.vma) {
            self.sealed.insert(start);
        }
        if flags.contains(VmFlags::ACCOUNT) && !perms.intersects(Perms::SHARED | Perms::WRITE) {
            self.counted.insert(start);
        }
    }

    /// Takes note of the hand's mapping, which was made as any would be now.
    pub fn note_newest(&mut self, mapping: &FlaggedVma) {
        if mapping.flags.contains(VmFlags::LOCKED) {
            self.lock_future |= libc::MCL_FUTURE as u32;
        }
        if mapping.flags.contains(VmFlags::LOCKONFAULT) {
            self.lock_future |= libc::MCL_ONFAULT as u32;
        }
    }

    /// Whether a mapping was writable when it was made, as far as is known
    /// beyond what its pages tell.
    pub fn was_writable(&self, start: u64) -> bool {
        self.counted.contains(&start)
    }

    /// Whether all memory may be merged.
    pub fn merges_any(&self) -> bool {
        self.merge_any
    }

    /// Asks for merging of all memory; what is not to be merged is advised so
    /// afterwards.
    pub fn build_merging(&self, b: &mut Batch) {
        if self.merge_any {
            b.call(libc::SYS_prctl, [PR_SET_MEMORY_MERGE.into(), 1.into(), 0.into(), 0.into(), 0.into()]);
        }
    }

    /// Locks a mapping that was.
    pub fn build_lock(&self, b: &mut Batch, start: u64, len: u64) {
        if self.locked_on_fault.contains(&start) {
            b.call(libc::SYS_mlock2, [start.into(), len.into(), MLOCK_ONFAULT.into()]);
        } else {
            b.call(libc::SYS_mlock, [start.into(), len.into()]);
        }
    }

    /// Seals a mapping that was: nothing about it can be changed afterwards.
    pub fn build_seal(&self, b: &mut Batch, start: u64, len: u64) {
        if self.sealed.contains(&start) {
            b.call(SYS_MSEAL, [start.into(), len.into(), 0.into()]);
        }
    }

    /// What holds for mappings to come; when all are made.
    pub fn build_future(&self, b: &mut Batch) {
        if self.lock_future != 0 {
            b.call(libc::SYS_mlockall, [self.lock_future.into()]);
        }
    }
}

/// What only the process itself can tell.
#[derive(Debug)]
pub struct ExtrasAsk {
    merge_any: Call,
}

impl ExtrasAsk {
    /// Adds the questions to a batch for the process.
    pub fn new(b: &mut Batch) -> Self {
        // A kernel without it merges nothing unasked.
        let merge_any =
            b.attempt(libc::SYS_prctl, [PR_GET_MEMORY_MERGE.into(), 0.into(), 0.into(), 0.into(), 0.into()]);
        ExtrasAsk { merge_any }
    }

    /// What is known of the process so far.
    pub fn answer(&self, answers: &Batch) -> Extras {
        Extras { merge_any: answers.result(self.merge_any).unwrap_or(0) == 1, ..Extras::default() }
    }
}

/// What is kept of all processes of a tree.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AllExtras(BTreeMap<i32, Extras>);

impl AllExtras {
    /// Takes what the processes of an address space have, if they have any.
    pub fn add(&mut self, pids: &[i32], extras: &Extras) {
        if *extras != Extras::default() {
            self.0.extend(pids.iter().map(|pid| (*pid, extras.clone())));
        }
    }

    /// Writes the file, unless there is nothing to say.
    pub fn write(&self, images: &DumpDir) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        Ok(images.write_json(NAME, self)?)
    }

    /// Reads the file; images of other writers have none.
    pub fn read(images: &ImageDir) -> Result<Self> {
        Ok(images.read_json(NAME)?.unwrap_or_default())
    }

    /// What a process has.
    pub fn of(&self, pid: i32) -> Extras {
        self.0.get(&pid).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_written() {
        let extras = Extras { merge_any: true, sealed: [4096].into(), ..Extras::default() };
        let all = AllExtras([(7, extras.clone())].into());
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(text, r#"{"7":{"merge-any":true,"sealed":[4096]}}"#);
        let back: AllExtras = serde_json::from_str(&text).unwrap();
        assert_eq!((back.of(7), back.of(8)), (extras, Extras::default()));
    }
}
