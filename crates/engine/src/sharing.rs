//! Which processes share what: numbers for address spaces, descriptor tables,
//! file system contexts and signal actions, equal where the kernel says that
//! it is the same object (kcmp(2)).

use crate::freeze::{Process, pid_of};
use crate::lineage::Inborn;
use crate::memory::Common;
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
    /// The same where addresses of the objects are known.
    addresses: [HashMap<u64, u32>; 4],
    namespaces: HashMap<u64, u32>,
}

/// The first number. 1 is the dumper's own in the format.
pub const FIRST_ID: u32 = 2;

/// In the order of the ids.
pub(crate) const KINDS: [Shared; 4] = [Shared::Vm, Shared::Files, Shared::Fs, Shared::Sighand];

impl Sharing {
    /// The ids of a living process.
    pub fn ids(&mut self, process: &Process) -> Result<TaskKobjIdsEntry> {
        let mut entry = self.numbers_of(&process.namespaces);
        entry.vm_id = self.id(0, process)?;
        entry.files_id = self.id(1, process)?;
        entry.fs_id = self.id(2, process)?;
        entry.sighand_id = self.id(3, process)?;
        Ok(entry)
    }

    /// The number of the address space of a living process, before it has [ids](Sharing::ids).
    pub fn space_of(&mut self, process: &Process) -> Result<u32> {
        self.id(0, process)
    }

    fn id(&mut self, kind: usize, process: &Process) -> Result<u32> {
        // Known of all or of none.
        if let Some(objects) = process.objects {
            let next = self.addresses[kind].len() as u32 + FIRST_ID;
            return Ok(*self.addresses[kind].entry(objects.shared[kind]).or_insert(next));
        }
        let tid = process.speaker();
        // Sorted by the kernel's own order, so that many processes cost few comparisons.
        let (mut low, mut high) = (0, self.known[kind].len());
        while low < high {
            let middle = usize::midpoint(low, high);
            let (other, id) = self.known[kind][middle];
            let order = kcmp::resource(pid_of(tid)?, pid_of(other)?, KINDS[kind])
                .map_err(|e| Error::kernel(Object::Process(process.pid), "compare it with others (kcmp)", e))?;
            match order {
                std::cmp::Ordering::Equal => return Ok(id),
                std::cmp::Ordering::Less => high = middle,
                std::cmp::Ordering::Greater => low = middle + 1,
            }
        }
        let id = self.known[kind].len() as u32 + FIRST_ID;
        self.known[kind].insert(low, (tid, id));
        Ok(id)
    }

    /// The ids of namespaces; the four others are 1.
    pub fn numbers_of(&mut self, namespaces: &Namespaces) -> TaskKobjIdsEntry {
        let mut id = |inode: Option<u64>| {
            let next = self.namespaces.len() as u32 + 1;
            inode.map(|inode| *self.namespaces.entry(inode).or_insert(next))
        };
        let [pid, net, ipc, uts, mnt, user, cgroup, time] = namespaces.0;
        TaskKobjIdsEntry {
            vm_id: 1,
            files_id: 1,
            fs_id: 1,
            sighand_id: 1,
            pid_ns_id: id(pid),
            net_ns_id: id(net),
            ipc_ns_id: id(ipc),
            uts_ns_id: id(uts),
            mnt_ns_id: id(mnt),
            user_ns_id: id(user),
            cgroup_ns_id: id(cgroup),
            time_ns_id: id(time),
        }
    }
}

/// The inode numbers of a process's namespaces, in the order of [`NAMESPACES`].
#[derive(Debug, Default, Clone, Copy)]
pub struct Namespaces([Option<u64>; NAMESPACES.len()]);

/// The kinds of namespace that the format has ids for.
const NAMESPACES: [Namespace; 8] = [
    Namespace::Pid,
    Namespace::Net,
    Namespace::Ipc,
    Namespace::Uts,
    Namespace::Mnt,
    Namespace::User,
    Namespace::Cgroup,
    Namespace::Time,
];

impl Namespaces {
    /// That of pids.
    #[must_use]
    pub fn pid(&self) -> Option<u64> {
        self.0[0]
    }

    /// Of a process.
    pub fn read(task: &Task) -> Result<Namespaces> {
        let mut found = Namespaces::default();
        for (inode, kind) in found.0.iter_mut().zip(NAMESPACES) {
            *inode = task.namespace(kind)?;
        }
        Ok(found)
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
    /// What it has in common with others.
    pub common: Common,
}

/// The address spaces of a tree that are still to be written.
#[derive(Debug)]
pub struct UnwrittenSpaces(HashMap<u32, SharedSpace>);

impl UnwrittenSpaces {
    /// Of entered processes.
    pub fn of(processes: &[Process]) -> UnwrittenSpaces {
        let mut spaces: HashMap<u32, SharedSpace> = HashMap::new();
        for process in processes.iter().filter(|p| !p.is_zombie()) {
            let space = spaces.entry(process.space()).or_default();
            space.pids.push(process.pid);
            space.scratches.extend(process.hand.as_ref().map(Hand::scratch));
        }
        UnwrittenSpaces(spaces)
    }

    /// An address space that is still to be written.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut SharedSpace> {
        self.0.get_mut(&id)
    }

    /// Tells of an address space, once.
    pub fn take(&mut self, id: u32) -> Option<SharedSpace> {
        self.0.remove(&id)
    }
}
