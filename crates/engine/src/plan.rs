//! The plan of a restore: everything that the image says about the tree, and
//! in which order its processes are created. Data only; nothing is touched.

use crate::lineage::{Birth, Kin, Lineage, Step, means_something};
use crate::namespaces::{Arranged, ipc, pid, time, user};
use crate::parallel;
use crate::{Error, Result};
use cryonaut_image::records::{
    CoreEntry, FdinfoEntry, FileEntry, FsEntry, MmEntry, PstreeEntry, SeccompEntry, TaskKobjIdsEntry,
};
use cryonaut_image::{ImageDir, ImageKind};
use cryonaut_kernel::sys::process::free_numbers;
use std::collections::BTreeMap;

use crate::attributes::cpu_timers::{self, AllOwners};
use crate::attributes::extras::{self, Extras};
use crate::attributes::overruns::{self, AllOverruns};
use crate::attributes::{leader, task};
use crate::sharing;

/// One process of the tree.
#[derive(Debug)]
pub struct ProcessPlan {
    /// Ids and threads.
    pub tree: PstreeEntry,
    /// The record of the process and its first thread: its leader, or if that has ended, another.
    pub core: CoreEntry,
    /// That thread.
    pub first: i32,
    /// The record of its leader, if that has ended before others.
    pub ended: Option<CoreEntry>,
    /// The records of the other threads, by tid.
    pub threads: Vec<(i32, CoreEntry)>,
    /// Address space; none for a zombie.
    pub mm: Option<MmEntry>,
    /// Directories; none for a zombie.
    pub fs: Option<FsEntry>,
    /// What it shares with others; none for a zombie.
    pub ids: Option<TaskKobjIdsEntry>,
}

impl ProcessPlan {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.tree.pid as i32
    }

    /// Whether it has ended and waits for its parent.
    #[must_use]
    pub fn is_zombie(&self) -> bool {
        self.core.tc.as_ref().is_some_and(|tc| tc.task_state == task::DEAD)
    }

    /// Its threads that live, the first of them first, with their records.
    pub fn cores(&self) -> impl Iterator<Item = (i32, &CoreEntry)> {
        std::iter::once((self.first, &self.core)).chain(self.threads.iter().map(|(tid, core)| (*tid, core)))
    }

    fn kin(&self) -> Kin {
        let tree = &self.tree;
        Kin { parent: tree.ppid as i32, group: tree.pgid as i32, session: tree.sid as i32 }
    }

    /// The signal that stopped it, if job control had.
    #[must_use]
    pub fn job_stop(&self) -> Option<i32> {
        let tc = self.core.tc.as_ref()?;
        match tc.task_state {
            task::STOPPED => Some(tc.stop_signo.map_or(libc::SIGSTOP, |s| s as i32)),
            task::FIRST_ENDED => tc.stop_signo.map(|s| s as i32),
            _ => None,
        }
    }
}

/// The whole plan.
#[derive(Debug)]
pub struct Plan {
    /// The processes by pid.
    pub processes: BTreeMap<i32, ProcessPlan>,
    /// The root's pid.
    pub root: i32,
    /// Open files by id.
    pub files: BTreeMap<u32, FileEntry>,
    /// Descriptor tables by id.
    pub tables: BTreeMap<u32, Vec<FdinfoEntry>>,
    /// What CRIU's format has no place for.
    pub extras: Extras,
    /// Whose time timers on a thread's clock count.
    pub timer_owners: AllOwners,
    /// Timers whose signals wait.
    pub overruns: AllOverruns,
    /// Seccomp filters.
    pub seccomp: SeccompEntry,
    /// How the tree is made.
    pub lineage: Lineage,
    /// Who shares its memory with whom.
    pub spaces: SharedSpaces,
    /// Who is born with which namespaces.
    pub namespaces: Arranged,
    /// The groups that processes enter user namespaces with.
    pub born: user::Born,
    /// Semaphores that processes are to give back.
    pub debts: ipc::undo::Debts,
    /// Numbers in deeper pid namespaces.
    pub numbers: pid::Numbers,
}

/// Which processes share an address space. Of those that do, the first to be
/// born is the *owner*.
#[derive(Debug, Default)]
pub struct SharedSpaces {
    /// Owner, and which in the order of birth.
    places: BTreeMap<i32, (i32, usize)>,
    /// How many there are, by owner.
    counts: BTreeMap<i32, usize>,
}

impl SharedSpaces {
    fn find(processes: &BTreeMap<i32, ProcessPlan>, lineage: &Lineage) -> Self {
        let mut owners: BTreeMap<u32, i32> = BTreeMap::new();
        let mut spaces = SharedSpaces::default();
        for step in &lineage.steps {
            let Step::Create(Birth { pid, .. }) = *step else { continue };
            let Some(ids) = processes.get(&pid).and_then(|p| p.ids.as_ref()) else { continue };
            let owner = *owners.entry(ids.vm_id).or_insert(pid);
            let count = spaces.counts.entry(owner).or_default();
            spaces.places.insert(pid, (owner, *count));
            *count += 1;
        }
        spaces
    }

    /// The owner of a process's memory: itself, if it shares none.
    #[must_use]
    pub fn owner(&self, pid: i32) -> i32 {
        self.places.get(&pid).map_or(pid, |(owner, _)| *owner)
    }

    /// Which of those that share its memory a process is, from 0.
    #[must_use]
    pub fn place(&self, pid: i32) -> usize {
        self.places.get(&pid).map_or(0, |(_, place)| *place)
    }

    /// How many have this process's memory.
    #[must_use]
    pub fn count(&self, pid: i32) -> usize {
        self.counts.get(&self.owner(pid)).copied().unwrap_or(1)
    }

    /// The most that have the same.
    #[must_use]
    pub fn most(&self) -> usize {
        self.counts.values().copied().max().unwrap_or(1)
    }
}

impl Plan {
    /// Reads an image.
    pub fn read(images: &ImageDir) -> Result<Plan> {
        let inventory = images.inventory()?;
        let tree: Vec<PstreeEntry> = images.read_all(ImageKind::Pstree, None)?;
        let root = tree.first().map(|t| t.pid as i32).ok_or_else(|| bad("pstree.img", "it has no process"))?;
        let mut processes = BTreeMap::new();
        for process in parallel::map(tree, |entry| read_process(images, entry)) {
            let process = process?;
            let pid = process.tree.pid as i32;
            let duplicate = processes.insert(pid, process);
            if pid <= 0 || duplicate.is_some() {
                return Err(bad("pstree.img", &format!("process {pid} is there twice or has no valid id")));
            }
        }
        let mut tables = BTreeMap::new();
        for process in processes.values() {
            if let Some(id) = process.ids.as_ref().map(|i| i.files_id).filter(|id| !tables.contains_key(id)) {
                tables.insert(id, images.read_all(ImageKind::Fdinfo, u64::from(id))?);
            }
        }
        let files: Vec<FileEntry> = images.read_all(ImageKind::Files, None)?;
        let files = by_id(files);
        let seccomp = images.read_optional(ImageKind::Seccomp, None)?.unwrap_or_default();
        let kin = processes.iter().map(|(pid, p)| (*pid, p.kin())).collect();
        let numbers = pid::Numbers::read(images)?;
        let lineage =
            Lineage::arrange(root, &kin).and_then(|lineage| lineage.in_deeper_namespaces(root, &kin, &numbers));
        let mut lineage = lineage.map_err(|e| bad("pstree.img", &format!("process {} {}", e.pid, e.what)))?;
        // Those of others are not free; if the tree has numbers of its own, these will do as well.
        let free = lineage.midwife.map(|_| free_numbers()).into_iter().flatten();
        lineage.give_midwife(free, |free| !numbers.is_taken(free) && !means_something(&kin, free));
        let of_root = processes.get(&root).and_then(|process| process.ids.as_ref());
        user::take_note_of(images, of_root, &inventory.root_ids.unwrap_or_default())?;
        let inborn = |pid: i32| processes.get(&pid)?.ids.as_ref().map(sharing::inborn);
        lineage.check_inborn(inborn).map_err(|e| bad(&format!("ids-{}.img", e.pid), &format!("it {}", e.what)))?;
        let spaces = SharedSpaces::find(&processes, &lineage);
        check_same_memory(&processes, &spaces)?;
        let ids = |pid: i32| match pid {
            0 => inventory.root_ids,
            pid => processes.get(&pid)?.ids,
        };
        let mut namespaces = Arranged::arrange(&lineage, ids, |pid| numbers.namespace(pid));
        if time::would_go_back(images)? {
            namespaces.keep_clocks(root);
        }
        Ok(Plan {
            processes,
            root,
            files,
            tables,
            seccomp,
            extras: extras::load(images)?,
            timer_owners: cpu_timers::load(images)?,
            overruns: overruns::load(images)?,
            lineage,
            spaces,
            namespaces,
            debts: ipc::undo::Debts::read(images)?,
            born: user::Born::read(images)?,
            numbers,
        })
    }

    /// The pids that are wanted, those of helpers included.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        let helpers = self.lineage.helpers.iter().chain(&self.lineage.leaderless).map(|(pid, _)| *pid);
        self.processes.keys().copied().chain(helpers).chain(self.lineage.midwife)
    }

    /// How many threads of processes there are to be.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.pids().count() + self.processes.values().map(|process| process.threads.len()).sum::<usize>()
    }

    /// A number that nobody of the tree has and that is none of `others`, and a good many behind it neither, if there are
    /// such.
    #[must_use]
    pub fn free_pid(&self, others: &[i32]) -> i32 {
        /// Below, no pid is given out a second time (RESERVED_PIDS, kernel/pid.c).
        const LOWEST: i32 = 300;
        /// As many as every kernel has.
        const HIGHEST: i32 = 32768;
        let threads = self.processes.values().flat_map(|p| p.tree.threads.iter().map(|tid| *tid as i32));
        let mut taken: Vec<i32> =
            self.pids().chain(threads).chain(others.iter().copied()).chain([LOWEST - 1, HIGHEST]).collect();
        taken.sort_unstable();
        let widest = taken.windows(2).filter(|w| w[0] >= LOWEST - 1 && w[1] <= HIGHEST).max_by_key(|w| w[1] - w[0]);
        widest.map_or(HIGHEST - 1, |w| w[0] + 1)
    }

    /// The processes, parents before children.
    pub fn by_birth(&self) -> impl Iterator<Item = &ProcessPlan> {
        let born = |step: &Step| if let Step::Create(birth) = step { self.processes.get(&birth.pid) } else { None };
        self.lineage.steps.iter().filter_map(born)
    }

    /// The network namespaces of processes, by pid.
    #[must_use]
    pub fn networks(&self) -> BTreeMap<i32, u32> {
        let network = |process: &ProcessPlan| process.ids.as_ref()?.net_ns_id;
        self.processes.iter().filter_map(|(pid, process)| Some((*pid, network(process)?))).collect()
    }

    /// From whose memory each process is born, in the order of birth: its
    /// creator's, or if that has none of its own in the image, its creator's
    /// creator's. Shared memory is its owner's, who alone is born into it.
    #[must_use]
    pub fn origins(&self) -> Vec<(i32, i32)> {
        let (mut origins, mut order) = (BTreeMap::new(), Vec::new());
        for step in &self.lineage.steps {
            if let Step::Create(Birth { pid, creator, .. }) = *step {
                let has_own = self.processes.get(&creator).is_some_and(|p| p.mm.is_some());
                let origin = if has_own { Some(creator) } else { origins.get(&creator).copied() };
                origins.extend(origin.map(|origin| (pid, origin)));
                let first = self.spaces.owner(pid) == pid;
                order.extend(origin.filter(|_| first).map(|origin| (pid, self.spaces.owner(origin))));
            }
        }
        order
    }
}

/// Files by their ids. One of a tun device has two records, of which the first says how it was opened.
fn by_id(files: Vec<FileEntry>) -> BTreeMap<u32, FileEntry> {
    let mut all: BTreeMap<u32, FileEntry> = BTreeMap::new();
    for mut file in files {
        if file.tunf.is_some() {
            file.reg = all.remove(&file.id).and_then(|opened| opened.reg);
        }
        all.insert(file.id, file);
    }
    all
}

fn bad(file: &str, problem: &str) -> Error {
    Error::bad_image(file, problem)
}

/// Those that are said to share their memory must have the same records of it.
fn check_same_memory(processes: &BTreeMap<i32, ProcessPlan>, spaces: &SharedSpaces) -> Result<()> {
    for (pid, process) in processes {
        let owner = spaces.owner(*pid);
        if owner != *pid && processes.get(&owner).is_none_or(|owner| owner.mm != process.mm) {
            let problem = format!("it is to have the memory of process {owner}, whose record is another");
            return Err(bad(&format!("mm-{pid}.img"), &problem));
        }
    }
    Ok(())
}

fn read_process(images: &ImageDir, tree: PstreeEntry) -> Result<ProcessPlan> {
    let pid = u64::from(tree.pid);
    let core: CoreEntry = images.read_one(ImageKind::Core, pid)?;
    let Some(tc) = &core.tc else {
        return Err(bad(&format!("core-{pid}.img"), "it is not that of a process"));
    };
    if tc.task_state == task::DEAD {
        let (first, threads) = (tree.pid as i32, Vec::new());
        return Ok(ProcessPlan { tree, core, first, ended: None, threads, mm: None, fs: None, ids: None });
    }
    let others = tree.threads.iter().copied().filter(|tid| *tid != tree.pid).collect();
    let read = |tid: u32| Ok((tid as i32, images.read_one(ImageKind::Core, u64::from(tid))?));
    let mut threads: Vec<(i32, CoreEntry)> = parallel::map(others, read).into_iter().collect::<Result<_>>()?;
    let ids = match core.ids {
        Some(ids) => ids,
        None => images.read_one(ImageKind::Ids, pid)?,
    };
    let (mut core, mut first, mut ended) = (core, tree.pid as i32, None);
    if core.tc.as_ref().is_some_and(|tc| tc.task_state == task::FIRST_ENDED) {
        let problem = |problem: &str| bad(&format!("core-{pid}.img"), problem);
        leader::check(&core).map_err(problem)?;
        if threads.is_empty() {
            return Err(problem("it is to go on without its first thread, and has no other"));
        }
        let (tid, of_first) = threads.remove(0);
        let whole = CoreEntry { tc: core.tc.clone(), ..of_first };
        (first, ended) = (tid, Some(std::mem::replace(&mut core, whole)));
    }
    Ok(ProcessPlan {
        mm: Some(images.read_one(ImageKind::Mm, pid)?),
        fs: Some(images.read_one(ImageKind::Fs, pid)?),
        ids: Some(ids),
        tree,
        core,
        first,
        ended,
        threads,
    })
}
