//! Which cgroups the tasks of a frozen tree are in: the *sets*, each of one cgroup in every hierarchy that matters.

use super::hierarchy::Hierarchies;
use super::{CgroupMode, CgroupOptions, directories, is_within, trimmed};
use crate::freeze::{Process, pid_of};
use crate::namespaces::Owned;
use crate::{Error, Object, Result, parallel};
use cryonaut_image::records::{CgControllerEntry, CgMemberEntry, CgSetEntry, CgroupEntry, TaskKobjIdsEntry};
use cryonaut_image::{DumpDir, ImageKind};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace::within;
use cryonaut_kernel::sys::thread_cgroups;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

/// One cgroup of a set: hierarchy, path, and how much of the path is above the top of the task's cgroup namespace.
pub(super) type Member = (String, String, u32);

/// What is known of the cgroups of a tree.
#[derive(Debug, Default)]
pub struct Membership {
    /// Those of hierarchies that matter; the number of a set is its place here and one more.
    sets: Vec<Vec<Member>>,
    /// Of the root process.
    root: Option<u32>,
    /// Directories to be written down, by hierarchy: first that of the root process.
    tops: BTreeMap<String, Vec<String>>,
}

impl Membership {
    /// Of a frozen tree; each thread is told its set. Ours is that of hierarchies where nobody is elsewhere.
    pub fn find(
        processes: &mut [Process],
        (surroundings, owned): (&TaskKobjIdsEntry, &Owned),
        options: &CgroupOptions,
    ) -> Result<Membership> {
        if options.mode == CgroupMode::Ignore {
            return Ok(Membership::default());
        }
        let ours = read(&Task::current()?)?;
        let living: Vec<&Process> = processes.iter().filter(|p| !p.is_zombie()).collect();
        let known = one_for_each_set(&living)?;
        let read_process = |process: &Process| of_process(process, &known, (surroundings, owned));
        let found = parallel::map(living, read_process).into_iter().collect::<Result<Vec<_>>>()?;
        let elsewhere = elsewhere(&ours, found.iter().flatten().map(|(_, set)| set), options);
        if elsewhere.is_empty() {
            return Ok(Membership::default());
        }
        let mut membership = Membership::default();
        let mut numbers = BTreeMap::new();
        for (tid, set) in found.into_iter().flatten() {
            let set = set.into_iter().filter(|(name, ..)| elsewhere.contains(name)).collect();
            numbers.insert(tid, membership.number(set));
        }
        for process in processes.iter_mut() {
            for thread in &mut process.threads {
                thread.cg_set = numbers.get(&thread.tid).copied();
            }
        }
        membership.root = processes.first().and_then(|root| root.threads.first()?.cg_set);
        membership.find_tops(&ours, options);
        Ok(membership)
    }

    /// The number of the root process's set, for the inventory.
    #[must_use]
    pub fn root(&self) -> Option<u32> {
        self.root
    }

    fn number(&mut self, set: Vec<Member>) -> u32 {
        let known = self.sets.iter().position(|known| *known == set).unwrap_or_else(|| {
            self.sets.push(set);
            self.sets.len() - 1
        });
        known as u32 + 1
    }

    /// The directories that are the tree's: that of its root process, and those that are not below it.
    fn find_tops(&mut self, ours: &[Member], options: &CgroupOptions) {
        let own = |name: &str| ours.iter().find(|(known, ..)| known == name).map(|(_, path, _)| path.as_str());
        let root = self.root.and_then(|root| self.sets.get(root as usize - 1)).cloned().unwrap_or_default();
        let first = root.iter().chain(self.sets.iter().flatten());
        for (name, path, _) in first.filter(|(name, path, _)| own(name) != Some(path) && !trimmed(path).is_empty()) {
            // Paths above our own top cannot be reached.
            if path.starts_with("/..") {
                continue;
            }
            let path = options.root_of(name).filter(|root| is_within(path, root)).unwrap_or(path);
            let tops = self.tops.entry(name.clone()).or_default();
            if !tops.iter().any(|top| is_within(path, top)) {
                tops.retain(|top| !is_within(top, path));
                tops.push(path.to_owned());
            }
        }
    }

    /// Writes down sets and directories; nothing if there are none.
    pub fn write(&self, images: &DumpDir, options: &CgroupOptions) -> Result<()> {
        if self.sets.is_empty() {
            return Ok(());
        }
        let mut hierarchies = Hierarchies::default();
        let mut controllers = Vec::new();
        for (name, tops) in &self.tops {
            let hierarchy = hierarchies.get(name, options)?;
            let read = |top: &String| directories::read(hierarchy, top, trimmed(top), options, 0);
            let dirs = tops.iter().map(read).collect::<Result<Vec<_>>>()?;
            let type_of =
                |path: &String| std::fs::read(hierarchy.directory(path).join("cgroup.type")).unwrap_or_default();
            let is_threaded = hierarchy.is_unified() && tops.iter().any(|top| type_of(top).starts_with(b"threaded"));
            let cnames = name.split(',').map(str::to_owned).collect();
            controllers.push(CgControllerEntry { cnames, dirs, is_threaded: Some(is_threaded) });
        }
        let member = |(name, path, prefix): &Member| CgMemberEntry {
            name: name.clone(),
            path: path.clone().into_bytes(),
            cgns_prefix: (*prefix != 0).then_some(*prefix),
        };
        let record =
            |(at, set): (usize, &Vec<Member>)| CgSetEntry { id: at as u32 + 1, ctls: set.iter().map(member).collect() };
        let sets = self.sets.iter().enumerate().map(record).collect();
        Ok(images.write_one(ImageKind::Cgroup, None, &CgroupEntry { sets, controllers })?)
    }
}

/// The hierarchies in which somebody of the tree is not where we are, or is at the top of a cgroup namespace below ours.
fn elsewhere<'s>(
    ours: &[Member],
    sets: impl Iterator<Item = &'s Vec<Member>>,
    options: &CgroupOptions,
) -> BTreeSet<String> {
    let differs = |(name, path, prefix): &&Member| {
        *prefix != 0 || !ours.iter().any(|(known, own, _)| known == name && own == path)
    };
    sets.flatten().filter(differs).map(|(name, ..)| name.clone()).filter(|name| options.wants(name)).collect()
}

/// What one process of each set of cgroups tells, by the address of the set, where addresses are known.
fn one_for_each_set(processes: &[&Process]) -> Result<BTreeMap<u64, Vec<Member>>> {
    let mut known = BTreeMap::new();
    for (process, objects) in processes.iter().filter_map(|process| Some((process, process.objects?))) {
        if let Entry::Vacant(unknown) = known.entry(objects.cgroups) {
            unknown.insert(read(&process.task)?);
        }
    }
    Ok(known)
}

/// The set of every thread of a process.
fn of_process(
    process: &Process,
    known: &BTreeMap<u64, Vec<Member>>,
    namespaces: (&TaskKobjIdsEntry, &Owned),
) -> Result<Vec<(i32, Vec<Member>)>> {
    let known = process.objects.and_then(|objects| known.get(&objects.cgroups).cloned());
    let mut first = known.map_or_else(|| read(&process.task), Ok)?;
    add_prefixes(process, namespaces, &mut first)?;
    let speaker = process.speaker();
    let mut sets = Vec::with_capacity(process.threads.len());
    let apart = threads_apart(process, speaker);
    for thread in &process.threads {
        let mut set = first.clone();
        if apart.contains(&thread.tid) {
            let own = read(&process.task.thread(pid_of(thread.tid)?))?;
            for ((_, path, _), (_, own, _)) in set.iter_mut().zip(own) {
                *path = own;
            }
        }
        sets.push((thread.tid, set));
    }
    Ok(sets)
}

/// The threads that may be in other cgroups than the one that speaks for their process. To look at each takes long, so the
/// kernel's own structures are asked where there are many.
fn threads_apart(process: &Process, speaker: i32) -> BTreeSet<i32> {
    const FEW: usize = 8;
    let others = || process.threads.iter().map(|thread| thread.tid).filter(|tid| *tid != speaker);
    if process.threads.len() <= FEW {
        return others().collect();
    }
    match thread_cgroups::of_threads(process.pid) {
        Ok(all) => others().filter(|tid| all.get(tid) != all.get(&speaker)).collect(),
        Err(_) => others().collect(),
    }
}

/// How much of each path is above the top of the process's cgroup namespace: what it sees itself lacks that.
fn add_prefixes(
    process: &Process,
    (surroundings, owned): (&TaskKobjIdsEntry, &Owned),
    set: &mut [Member],
) -> Result<()> {
    let Some(ids) = process.ids.filter(|ids| ids.cgroup_ns_id != surroundings.cgroup_ns_id) else { return Ok(()) };
    let Some(own) = owned.of(&ids, Namespace::Cgroup) else { return Ok(()) };
    let failed = own.failed("read the cgroups of its process");
    let seen = within(&[own.file.as_fd()], || read(&process.task)).map_err(failed)??;
    for ((name, path, prefix), (_, seen, _)) in set.iter_mut().zip(seen) {
        let above = trimmed(path).strip_suffix(trimmed(&seen));
        let above = above.filter(|_| !seen.starts_with("/..")).ok_or_else(|| {
            Error::unsupported(
                Object::Process(process.pid),
                format!("its cgroup namespace begins beside its cgroup {path} of {name}"),
                "",
            )
        })?;
        *prefix = above.len() as u32;
    }
    Ok(())
}

/// The cgroups of a task, sorted by hierarchy.
pub(super) fn read(task: &Task) -> Result<Vec<Member>> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let mut set: Vec<Member> =
        task.cgroups()?.into_iter().map(|one| (text(&one.controllers), path(&one.path), 0)).collect();
    set.sort();
    Ok(set)
}
