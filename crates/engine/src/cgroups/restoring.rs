//! Cgroups at a restore: what is missing is made, and tasks are moved where they were.

use super::directories::{self, Made};
use super::hierarchy::{Hierarchies, described};
use super::{CgroupMode, CgroupOptions, is_within, membership, trimmed};
use crate::error::errno_of;
use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::{CgControllerEntry, CgMemberEntry, CgroupEntry, CoreEntry};
use cryonaut_image::{ImageDir, ImageKind};
use cryonaut_kernel::proc::Task;
use cryonaut_puppet::{Batch, Hand};
use std::collections::BTreeMap;
use std::fs;

/// Most tasks that a restore has of its own at a time: its processes, their threads, the janitors of what they make.
const OUR_TASKS: usize = 48;

/// One cgroup of a set, under its path here; how much of it is above a cgroup namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    name: String,
    path: String,
    prefix: usize,
}

/// The cgroups of a tree that is built.
#[derive(Debug, Default)]
pub struct Restoring {
    options: CgroupOptions,
    sets: BTreeMap<u32, Vec<Member>>,
    /// Where we are ourselves, and everything that is born of us.
    ours: BTreeMap<String, String>,
    hierarchies: Hierarchies,
    /// Whether processes have been moved before others were born of them.
    moved_early: bool,
}

impl Restoring {
    /// Reads what the image says, and makes directories that are missing. They go again unless they are [kept](Made::keep).
    /// So many tasks are to be.
    pub fn prepare(images: &ImageDir, options: &CgroupOptions, tasks: usize) -> Result<(Restoring, Made)> {
        let mut made = Made::default();
        let mut restoring = Restoring { options: options.clone(), ..Restoring::default() };
        if options.mode == CgroupMode::Ignore {
            return Ok((restoring, made));
        }
        let Some(record) = images.read_all_optional::<CgroupEntry>(ImageKind::Cgroup, None)?.pop() else {
            return Ok((restoring, made));
        };
        restoring.ours = membership::read(&Task::current()?)?.into_iter().map(|(name, path, _)| (name, path)).collect();
        let tops = restoring.make(record.controllers, &mut made)?;
        for set in &record.sets {
            let members = set.ctls.iter().map(|member| place(member, &tops)).collect::<Result<_>>()?;
            restoring.sets.insert(set.id, members);
        }
        if let Some(caller) = options.beside {
            restoring.go_beside(caller, &tops, tasks)?;
        }
        Ok((restoring, made))
    }

    /// Goes ourselves to where another process is, in the hierarchies where the tree has its places anyhow and we would take
    /// its room: back from there to its place every process has to be moved, which takes a grace period of RCU.
    fn go_beside(&mut self, caller: i32, tops: &Tops, tasks: usize) -> Result<()> {
        // It has called and waits for us; if it does not, nobody has.
        let Ok(task) = Task::open(pid_of(caller)?) else { return Ok(()) };
        let own = rustix::process::getpid().as_raw_nonzero().get();
        for (name, path, prefix) in membership::read(&task)? {
            if !tops.contains_key(&name) || self.ours.get(&name) == Some(&path) {
                continue;
            }
            if self.has_room(&name, tasks)? {
                continue;
            }
            let there = Member { name, path: path.clone(), prefix: prefix as usize };
            match self.enter(&there, &path, own, false) {
                Ok(()) => drop(self.ours.insert(there.name, path)),
                Err(e) => tracing::debug!("the limits of the tree hold for its restore as well: {e}"),
            }
        }
        Ok(())
    }

    /// Whether there is room for a tree and for us where we are (pids.max).
    fn has_room(&mut self, name: &str, tasks: usize) -> Result<bool> {
        let Some(path) = self.ours.get(name) else { return Ok(true) };
        let directory = self.hierarchies.get(name, &self.options)?.directory(path);
        let number = |file| fs::read_to_string(directory.join(file)).ok()?.trim().parse::<usize>().ok();
        // There is no such file where processes are not counted, and no number without a limit.
        let Some(most) = number("pids.max") else { return Ok(true) };
        Ok(number("pids.current").unwrap_or(most) + tasks + OUR_TASKS <= most)
    }

    /// Makes the recorded directories; tells where the top of each is now, by hierarchy: (recorded, here).
    fn make(&mut self, controllers: Vec<CgControllerEntry>, made: &mut Made) -> Result<Tops> {
        let mut tops = Tops::new();
        for controller in controllers {
            let name = controller.cnames.join(",");
            let hierarchy = self.hierarchies.get(&name, &self.options)?;
            for (at, mut dir) in controller.dirs.into_iter().enumerate() {
                let recorded = String::from_utf8_lossy(&dir.dir_name).into_owned();
                // The first is that of the root process; others lie beside it.
                let root = self.options.root_of(&name).filter(|_| at == 0);
                let here = root.map_or_else(|| recorded.clone(), str::to_owned);
                let here = format!("/{}", here.trim_matches('/'));
                dir.dir_name = here.clone().into_bytes();
                directories::make(hierarchy, "", &dir, self.options.mode, made)?;
                tops.entry(name.clone()).or_default().push((format!("/{}", recorded.trim_matches('/')), here));
            }
        }
        Ok(tops)
    }

    /// Puts a process that is about to make its cgroup namespace where the top of that is to be, and has it made.
    pub fn make_namespace(&mut self, hand: &mut Hand, core: &CoreEntry) -> Result<()> {
        let set = self.set_of(core)?;
        for member in set.iter().filter(|member| member.prefix != 0) {
            self.enter(member, &member.path[..member.prefix], hand.pid(), false)?;
        }
        self.moved_early = true;
        let mut batch = Batch::new();
        batch.call(libc::SYS_unshare, [libc::CLONE_NEWCGROUP.into()]);
        Ok(hand.run(&mut batch)?)
    }

    /// Moves a process, which has one thread yet.
    pub fn move_process(&mut self, pid: i32, core: &CoreEntry) -> Result<()> {
        for member in self.set_of(core)? {
            if self.moved_early || self.ours.get(&member.name) != Some(&member.path) {
                self.enter(&member, &member.path, pid, false)?;
            }
        }
        Ok(())
    }

    /// Moves a thread to where it is apart from the first of its process.
    pub fn move_thread(&mut self, tid: i32, core: &CoreEntry, first: &CoreEntry) -> Result<()> {
        if number_of(core) == number_of(first) {
            return Ok(());
        }
        let others = self.set_of(first)?;
        for member in self.set_of(core)?.iter().filter(|member| !others.contains(member)) {
            self.enter(member, &member.path, tid, true)?;
        }
        Ok(())
    }

    fn set_of(&self, core: &CoreEntry) -> Result<Vec<Member>> {
        let Some(number) = number_of(core).filter(|_| !self.sets.is_empty()) else { return Ok(Vec::new()) };
        let unknown = || Error::bad_image("cgroup.img", format!("there is no set {number}"));
        self.sets.get(&number).cloned().ok_or_else(unknown)
    }

    fn enter(&mut self, member: &Member, path: &str, tid: i32, alone: bool) -> Result<()> {
        let entrance = self.hierarchies.get(&member.name, &self.options)?.entrance(path, alone);
        fs::write(entrance, tid.to_string()).map_err(|error| Error::Kernel {
            object: Object::Thread(tid),
            action: format!("move it to {path} among the {}", described(&member.name)),
            errno: errno_of(&error),
            remedy: "--manage-cgroups=ignore leaves the tree in the cgroups of the caller",
        })
    }
}

/// The tops of hierarchies, as recorded and here.
type Tops = BTreeMap<String, Vec<(String, String)>>;

/// Where a member is here.
fn place(member: &CgMemberEntry, tops: &Tops) -> Result<Member> {
    let recorded = String::from_utf8_lossy(&member.path).into_owned();
    let prefix = member.cgns_prefix.unwrap_or_default() as usize;
    if prefix > recorded.len() || !recorded.is_char_boundary(prefix) || recorded.split('/').any(|part| part == "..") {
        return Err(Error::bad_image("cgroup.img", format!("'{recorded}' is no cgroup of a set")));
    }
    let known = tops.get(&member.name).into_iter().flatten().find(|(top, _)| is_within(&recorded, top));
    let moved = |path: &str| match known {
        Some((top, here)) if is_within(path, top) => format!("{}{}", trimmed(here), &path[trimmed(top).len()..]),
        _ => path.to_owned(),
    };
    let path = moved(&recorded);
    let prefix = if prefix == 0 { 0 } else { moved(&recorded[..prefix]).len() };
    Ok(Member { name: member.name.clone(), path, prefix })
}

/// The number of a thread's set. Older versions of the format have it with the process.
fn number_of(core: &CoreEntry) -> Option<u32> {
    core.thread_core.as_ref().and_then(|t| t.cg_set).or_else(|| core.tc.as_ref().and_then(|tc| tc.cg_set))
}
