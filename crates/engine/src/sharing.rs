//! Which processes share what: numbers for address spaces, descriptor tables,
//! file system contexts and signal actions, equal where the kernel says that
//! it is the same object (kcmp(2)).

use crate::freeze::{Process, pid_of};
use crate::{Error, Object, Result};
use cryonaut_image::records::TaskKobjIdsEntry;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::kcmp::{self, Shared};
use std::collections::HashMap;

/// Numbers given out so far.
#[derive(Debug, Default)]
pub struct Sharing {
    known: [Vec<(i32, u32)>; 4],
    namespaces: HashMap<u64, u32>,
}

const KINDS: [Shared; 4] = [Shared::Vm, Shared::Files, Shared::Fs, Shared::Sighand];

/// Index of address spaces in [`KINDS`].
const VM: usize = 0;

impl Sharing {
    /// The ids of a living process.
    pub fn ids(&mut self, process: &Process) -> Result<TaskKobjIdsEntry> {
        let mut ids = [0; 4];
        for (kind, id) in ids.iter_mut().enumerate() {
            *id = self.id(kind, process.pid)?;
        }
        let mut entry = self.namespaces_of(&process.task)?;
        [entry.vm_id, entry.files_id, entry.fs_id, entry.sighand_id] = ids;
        Ok(entry)
    }

    /// The id of a living process's address space alone.
    pub fn address_space(&mut self, pid: i32) -> Result<u32> {
        self.id(VM, pid)
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
