//! Which processes share what: numbers for address spaces, descriptor tables,
//! file system contexts and signal actions, equal where the kernel says that
//! it is the same object (kcmp(2)).

use crate::freeze::{Process, pid_of};
use crate::lineage::Inborn;
use crate::{Error, Object, Result};
use cryonaut_image::records::TaskKobjIdsEntry;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::kcmp::{self, Shared};
use cryonaut_puppet::Hand;
use std::collections::HashMap;
use std::ops::Range;

/// Numbers given out so far.
#[derive(Debug, Default)]
pub struct Sharing {
    known: [Vec<(i32, u32)>; 4],
    namespaces: HashMap<u64, u32>,
}

/// In the order of the ids.
const KINDS: [Shared; 4] = [Shared::Vm, Shared::Files, Shared::Fs, Shared::Sighand];

impl Sharing {
    /// The ids of a living process.
    pub fn ids(&mut self, process: &Process) -> Result<TaskKobjIdsEntry> {
        let mut entry = self.namespaces_of(&process.task)?;
        entry.vm_id = self.id(0, process.pid)?;
        entry.files_id = self.id(1, process.pid)?;
        entry.fs_id = self.id(2, process.pid)?;
        entry.sighand_id = self.id(3, process.pid)?;
        Ok(entry)
    }

    fn id(&mut self, kind: usize, pid: i32) -> Result<u32> {
        // Sorted by the kernel's own order, so that many processes cost few comparisons.
        let (mut low, mut high) = (0, self.known[kind].len());
        while low < high {
            let middle = usize::midpoint(low, high);
            let (other, id) = self.known[kind][middle];
            let order = kcmp::resource(pid_of(pid)?, pid_of(other)?, KINDS[kind])
                .map_err(|e| Error::kernel(Object::Process(pid), "compare it with others (kcmp)", e))?;
            match order {
                std::cmp::Ordering::Equal => return Ok(id),
                std::cmp::Ordering::Less => high = middle,
                std::cmp::Ordering::Greater => low = middle + 1,
            }
        }
        // Number 1 is the dumper's own in the format.
        let id = self.known[kind].len() as u32 + 2;
        self.known[kind].insert(low, (pid, id));
        Ok(id)
    }

    /// The namespace ids of a process; the four others are 1.
    pub fn namespaces_of(&mut self, task: &Task) -> Result<TaskKobjIdsEntry> {
        let mut id = |kind: Namespace| -> Result<Option<u32>> {
            let Some(inode) = task.namespace(kind)? else {
                return Ok(None);
            };
            let next = self.namespaces.len() as u32 + 1;
            Ok(Some(*self.namespaces.entry(inode).or_insert(next)))
        };
        Ok(TaskKobjIdsEntry {
            vm_id: 1,
            files_id: 1,
            fs_id: 1,
            sighand_id: 1,
            pid_ns_id: id(Namespace::Pid)?,
            net_ns_id: id(Namespace::Net)?,
            ipc_ns_id: id(Namespace::Ipc)?,
            uts_ns_id: id(Namespace::Uts)?,
            mnt_ns_id: id(Namespace::Mnt)?,
            user_ns_id: id(Namespace::User)?,
            cgroup_ns_id: id(Namespace::Cgroup)?,
            time_ns_id: id(Namespace::Time)?,
        })
    }
}

/// What a process may share with others, of which it must then be born.
pub fn inborn(ids: &TaskKobjIdsEntry) -> Inborn {
    [
        ("its memory", ids.vm_id),
        ("its table of descriptors", ids.files_id),
        ("its working directory", ids.fs_id),
        ("its signal actions", ids.sighand_id),
    ]
}

/// An address space, and who is in it.
#[derive(Debug, Default)]
pub struct SharedSpace {
    /// The processes.
    pub pids: Vec<i32>,
    /// The scratch mappings of their hands.
    pub scratches: Vec<Range<u64>>,
}

/// The address spaces of a tree that are still to be written.
#[derive(Debug)]
pub struct Spaces(HashMap<u32, SharedSpace>);

impl Spaces {
    /// Of entered processes.
    pub fn of(processes: &[Process]) -> Spaces {
        let mut spaces: HashMap<u32, SharedSpace> = HashMap::new();
        for process in processes.iter().filter(|p| !p.is_zombie()) {
            let space = spaces.entry(process.space()).or_default();
            space.pids.push(process.pid);
            space.scratches.extend(process.hand.as_ref().map(Hand::scratch));
        }
        Spaces(spaces)
    }

    /// Tells of an address space, once.
    pub fn take(&mut self, id: u32) -> Option<SharedSpace> {
        self.0.remove(&id)
    }
}
