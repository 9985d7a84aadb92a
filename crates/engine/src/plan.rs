//! The plan of a restore: everything that the image says about the tree, and
//! in which order its processes are created. Data only; nothing is touched.

use crate::{Error, Result};
use cryonaut_image::records::{
    CoreEntry, FdinfoEntry, FileEntry, FsEntry, MmEntry, PstreeEntry, SeccompEntry, TaskKobjIdsEntry,
};
use cryonaut_image::{ImageDir, ImageKind};
use std::collections::{BTreeMap, BTreeSet};

use crate::attributes::extras::{self, Extras};
use crate::attributes::task;

/// One process of the tree.
#[derive(Debug)]
pub struct ProcessPlan {
    /// Ids and threads.
    pub tree: PstreeEntry,
    /// The leader's record.
    pub core: CoreEntry,
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

    /// The signal that stopped it, if job control had.
    #[must_use]
    pub fn job_stop(&self) -> Option<i32> {
        let tc = self.core.tc.as_ref().filter(|tc| tc.task_state == task::STOPPED)?;
        Some(tc.stop_signo.map_or(libc::SIGSTOP, |s| s as i32))
    }
}

/// How one process comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    /// The process.
    pub pid: i32,
    /// Who executes the clone; 0 for the restorer.
    pub creator: i32,
    /// The child becomes the creator's sibling (CLONE_PARENT).
    pub sibling: bool,
    /// It exists only to give others its session or process group.
    pub helper: bool,
}

/// One step of making the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Create a process.
    Create(Birth),
    /// A process becomes the leader of a new session.
    NewSession(i32),
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
    /// Seccomp filters.
    pub seccomp: SeccompEntry,
    /// How the tree is made.
    pub steps: Vec<Step>,
    /// Processes that exist only during the restore: pid and the parent that
    /// has to reap them.
    pub helpers: Vec<(i32, i32)>,
}

impl Plan {
    /// Reads an image.
    pub fn read(images: &ImageDir) -> Result<Plan> {
        images.inventory()?;
        let tree: Vec<PstreeEntry> = images.read_all(ImageKind::Pstree, None)?;
        let root = tree.first().map(|t| t.pid as i32).ok_or_else(|| bad("pstree.img", "it has no process"))?;
        let mut processes = BTreeMap::new();
        for entry in tree {
            let pid = entry.pid as i32;
            let duplicate = processes.insert(pid, read_process(images, entry)?);
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
        let files = files.into_iter().map(|f| (f.id, f)).collect();
        let seccomp = images.read_optional(ImageKind::Seccomp, None)?.unwrap_or_default();
        let mut plan = Plan {
            processes,
            root,
            files,
            tables,
            seccomp,
            extras: extras::load(images)?,
            steps: Vec::new(),
            helpers: Vec::new(),
        };
        plan.check_parents()?;
        plan.arrange()?;
        Ok(plan)
    }

    fn check_parents(&self) -> Result<()> {
        for process in self.processes.values() {
            let (pid, ppid) = (process.pid(), process.tree.ppid as i32);
            if pid != self.root && (ppid == pid || !self.processes.contains_key(&ppid)) {
                return Err(bad("pstree.img", &format!("process {pid} has a parent {ppid} that is not in the tree")));
            }
        }
        // Every chain of parents must end at the root.
        for start in self.processes.keys() {
            let (mut pid, mut steps) = (*start, 0);
            while pid != self.root {
                pid = self.processes[&pid].tree.ppid as i32;
                steps += 1;
                if steps > self.processes.len() {
                    return Err(bad("pstree.img", &format!("process {start} is its own ancestor")));
                }
            }
        }
        Ok(())
    }

    fn children(&self, pid: i32) -> Vec<i32> {
        let is_child = |p: &&ProcessPlan| p.pid() != self.root && p.tree.ppid as i32 == pid;
        self.processes.values().filter(is_child).map(ProcessPlan::pid).collect()
    }

    fn sid(&self, pid: i32) -> i32 {
        self.processes[&pid].tree.sid as i32
    }

    /// The session in which a process has to be born, if it matters.
    fn birth_session(&self, pid: i32) -> Option<i32> {
        if self.sid(pid) != pid {
            return Some(self.sid(pid));
        }
        self.children(pid).into_iter().filter_map(|c| self.birth_session(c)).find(|s| *s != pid)
    }

    /// Finds the order of creation: a process has children before it becomes
    /// a session leader if they belong to the session it was born in.
    fn arrange(&mut self) -> Result<()> {
        let root = self.root;
        let outside = self.sid(root);
        self.steps.push(Step::Create(Birth { pid: root, creator: 0, sibling: false, helper: false }));
        self.arrange_children(root, outside)
    }

    fn arrange_children(&mut self, pid: i32, born_in: i32) -> Result<()> {
        let leads = self.sid(pid) == pid;
        let children = self.children(pid);
        let (early, late): (Vec<i32>, Vec<i32>) = children
            .into_iter()
            .partition(|c| leads && self.birth_session(*c).is_some_and(|s| s == born_in && s != pid));
        for child in early {
            self.create(child, pid, false);
            self.arrange_children(child, born_in)?;
        }
        if leads {
            self.steps.push(Step::NewSession(pid));
        }
        let session = if leads { pid } else { born_in };
        let mut strays: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for child in late {
            match self.birth_session(child) {
                Some(s) if s != session => strays.entry(s).or_default().push(child),
                _ => {
                    self.create(child, pid, false);
                    self.arrange_children(child, session)?;
                }
            }
        }
        for (lost, children) in strays {
            self.adopt_strays(pid, lost, &children)?;
        }
        Ok(())
    }

    /// Children of `parent` in a session that it was never in: its leader has
    /// ended, so a helper takes the leader's id for a while, or the living
    /// leader is a sibling of theirs.
    fn adopt_strays(&mut self, parent: i32, session: i32, children: &[i32]) -> Result<()> {
        match self.processes.get(&session) {
            None => {
                self.steps.push(Step::Create(Birth { pid: session, creator: parent, sibling: false, helper: true }));
                self.steps.push(Step::NewSession(session));
                self.helpers.push((session, parent));
            }
            Some(leader) if leader.tree.ppid as i32 == parent && !leader.is_zombie() => {}
            Some(_) => {
                return Err(bad(
                    "pstree.img",
                    &format!("process {} is in session {session}, of which its parent was never a member", children[0]),
                ));
            }
        }
        for child in children {
            self.create(*child, session, true);
            self.arrange_children(*child, session)?;
        }
        Ok(())
    }

    fn create(&mut self, pid: i32, creator: i32, sibling: bool) {
        self.steps.push(Step::Create(Birth { pid, creator, sibling, helper: false }));
    }

    /// Process groups whose leader is not in the tree, with the member in
    /// whose session a helper has to stand in for it.
    #[must_use]
    pub fn leaderless_groups(&self) -> Vec<(i32, i32)> {
        let outside = self.processes[&self.root].tree.pgid as i32;
        let mut seen = BTreeSet::new();
        let mut out = Vec::new();
        for p in self.processes.values() {
            let group = p.tree.pgid as i32;
            let helped = self.helpers.iter().any(|h| h.0 == group);
            if group == outside && self.sid(self.root) != self.root {
                continue;
            }
            if !self.processes.contains_key(&group) && !helped && !p.is_zombie() && seen.insert(group) {
                out.push((group, p.pid()));
            }
        }
        out
    }
}

fn bad(file: &str, problem: &str) -> Error {
    Error::bad_image(file, problem)
}

fn read_process(images: &ImageDir, tree: PstreeEntry) -> Result<ProcessPlan> {
    let pid = u64::from(tree.pid);
    let core: CoreEntry = images.read_one(ImageKind::Core, pid)?;
    let Some(tc) = &core.tc else {
        return Err(bad(&format!("core-{pid}.img"), "it is not that of a process"));
    };
    if tc.task_state == task::DEAD {
        return Ok(ProcessPlan { tree, core, threads: Vec::new(), mm: None, fs: None, ids: None });
    }
    let mut threads = Vec::new();
    for tid in tree.threads.iter().filter(|t| **t != tree.pid) {
        threads.push((*tid as i32, images.read_one(ImageKind::Core, u64::from(*tid))?));
    }
    let ids = match core.ids {
        Some(ids) => ids,
        None => images.read_one(ImageKind::Ids, pid)?,
    };
    Ok(ProcessPlan {
        mm: Some(images.read_one(ImageKind::Mm, pid)?),
        fs: Some(images.read_one(ImageKind::Fs, pid)?),
        ids: Some(ids),
        tree,
        core,
        threads,
    })
}
