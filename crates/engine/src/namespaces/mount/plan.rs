//! How the mounts of the image are made again, as data: of what each shows a part, in which order they are attached, and
//! which share events.
//!
//! A *provider* is a mount that stands apart from the tree and of which others are clones: a new file system, the
//! directory that becomes the tree's root, or something from outside. So the mounts of one file system, in whatever
//! namespaces, come from one.

use super::external::{DEVICE, Externals, FOUND_OUT};
use super::filesystem::{self, FsType, Making, NAMED};
use super::paths;
use super::table::{is_root, object};
use crate::{Error, Result};
use cryonaut_image::records::MntEntry;
use std::collections::{BTreeMap, BTreeSet};

/// Where a provider comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The directory that the caller has given for the root.
    Root,
    /// A path of the caller's mount namespace.
    Outside(Vec<u8>),
    /// A new file system of the type, source, options and flags that this entry tells.
    New(usize),
    /// The device by this path, of which this entry tells the rest.
    Device(usize, Vec<u8>),
    /// The file of a namespace.
    Namespace,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Of which file system: the recorded device number.
    pub dev: u32,
    /// The directory of it that the provider shows.
    pub top: Vec<u8>,
    /// Where it comes from.
    pub origin: Origin,
    /// The namespace, as index, with which it is made.
    pub with: usize,
}

/// A mount, and what is done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The index of its record.
    pub entry: usize,
    /// The namespace, as index.
    pub namespace: usize,
    /// On which mount it stands, as index into [`Plan::places`]; that is before it. `None` for the root.
    pub parent: Option<usize>,
    /// Where on that, from its root on.
    pub at: Vec<u8>,
    /// Of which provider it is a clone.
    pub provider: usize,
    /// Which part of that it shows.
    pub below: Vec<u8>,
}

/// Of which group a group receives events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Master {
    /// Of none.
    None,
    /// Of another, as index into [`Plan::groups`], which is before it.
    Group(usize),
    /// Of that outside of which the provider is a peer.
    Outside,
}

/// Mounts that share events with one another, or have only the same master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Whether they send events to one another.
    pub shared: bool,
    /// Whether these go to what shows the same outside as well.
    pub with_outside: bool,
    /// Of which they receive events.
    pub master: Master,
    /// A provider that shows all that any of them does.
    pub provider: usize,
    /// Who they are, as indices into [`Plan::places`].
    pub members: Vec<usize>,
}

/// The mounts of all namespaces of a tree.
#[derive(Debug, Default)]
pub struct Plan {
    /// The records, and the number of the namespace of each.
    pub entries: Vec<MntEntry>,
    /// The numbers of the namespaces; the first has the tree's root.
    pub namespaces: Vec<u32>,
    /// What mounts are clones of.
    pub providers: Vec<Provider>,
    /// Mounts in the order in which they are attached.
    pub places: Vec<Place>,
    /// Groups, masters first.
    pub groups: Vec<Group>,
}

/// What is made of an entry's file system by us, if anything.
pub fn type_of(entry: &MntEntry) -> Option<&'static FsType> {
    filesystem::by_number(entry.fstype, entry.fsname())
}

impl Plan {
    /// Of the mounts of these namespaces, by their numbers.
    pub fn of(namespaces: Vec<(u32, Vec<MntEntry>)>, externals: Option<&Externals>) -> Result<Plan> {
        let mut plan = Plan::default();
        let mut owner = Vec::new();
        for (index, (number, entries)) in namespaces.into_iter().enumerate() {
            plan.namespaces.push(number);
            owner.extend(entries.iter().map(|_| index));
            plan.entries.extend(entries);
        }
        for namespace in 0..plan.namespaces.len() {
            plan.arrange(&owner, namespace)?;
        }
        let sources = Sources::find(&plan, &owner, externals)?;
        for place in &mut plan.places {
            (place.provider, place.below) = sources.of[&place.entry].clone();
        }
        plan.providers = sources.providers;
        plan.groups = groups(&plan)?;
        Ok(plan)
    }

    /// Puts the mounts of a namespace into their order: parents first; of those upon the same, what lies deeper first, for
    /// the others may hide it; overlays last. Ids tell no order: the kernel gives those again that were given back.
    fn arrange(&mut self, owner: &[usize], namespace: usize) -> Result<()> {
        let all: Vec<usize> = (0..self.entries.len()).filter(|at| owner[*at] == namespace).collect();
        let by_id: BTreeMap<u32, usize> = all.iter().map(|at| (self.entries[*at].mnt_id, *at)).collect();
        let number = self.namespaces[namespace];
        let bad = |problem: String| Error::bad_image(format!("mountpoints-{number}.img"), problem);
        let mut children: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut roots = Vec::new();
        for &at in &all {
            let entry = &self.entries[at];
            match by_id.get(&entry.parent_mnt_id).filter(|parent| **parent != at) {
                Some(parent) => children.entry(*parent).or_default().push(at),
                None => roots.push(at),
            }
        }
        let [root] = roots[..] else {
            return Err(bad(format!("it has {} mounts that stand upon none", roots.len())));
        };
        let place = |at: &usize| &self.entries[*at].mountpoint[..];
        for list in children.values_mut() {
            // An overlay comes after others, which may show its layers, but for those that hide it.
            let hides = |one: &usize, other: &usize| {
                place(one) != place(other) && paths::below(place(one), place(other)).is_some()
            };
            let layers = |at: &usize| type_of(&self.entries[*at]).is_some_and(|fs| fs.making == Making::Layers);
            let late: BTreeSet<usize> =
                list.iter().copied().filter(|at| layers(at) && !list.iter().any(|other| hides(at, other))).collect();
            let depth = |at: &usize| std::cmp::Reverse(paths::depth(place(at)));
            list.sort_by_key(|at| (late.contains(at), depth(at), self.entries[*at].mnt_id));
        }
        let mut open = vec![(root, None)];
        let mut placed = 0;
        while let Some((at, parent)) = open.pop() {
            let entry = &self.entries[at];
            let above = parent.map(|parent: usize| &self.entries[self.places[parent].entry].mountpoint[..]);
            let within = paths::below(&entry.mountpoint, above.unwrap_or(b"/"))
                .ok_or_else(|| bad(format!("mount {} does not lie where it stands", entry.mnt_id)))?;
            let place = Place { entry: at, namespace, parent, at: within.to_vec(), provider: 0, below: Vec::new() };
            self.places.push(place);
            let this = self.places.len() - 1;
            // Taken from the end: the first is to come first.
            open.extend(children.remove(&at).unwrap_or_default().into_iter().rev().map(|child| (child, Some(this))));
            placed += 1;
        }
        if placed == all.len() { Ok(()) } else { Err(bad("some of its mounts stand upon one another".into())) }
    }

    /// Whether a place has to wait for a namespace, of which it is a mount or upon which it stands.
    pub fn waits(&self, place: usize) -> bool {
        let mut line = std::iter::successors(Some(place), |place| self.places[*place].parent);
        line.any(|place| self.providers[self.places[place].provider].origin == Origin::Namespace)
    }

    /// The record of a place.
    pub fn entry(&self, place: usize) -> &MntEntry {
        &self.entries[self.places[place].entry]
    }
}

/// Of what each mount shows a part.
struct Sources {
    providers: Vec<Provider>,
    /// By the index of the record.
    of: BTreeMap<usize, (usize, Vec<u8>)>,
}

impl Sources {
    fn find(plan: &Plan, owner: &[usize], externals: Option<&Externals>) -> Result<Sources> {
        let mut sources = Sources { providers: Vec::new(), of: BTreeMap::new() };
        // What comes from outside first: others may show parts of it.
        for (at, entry) in plan.entries.iter().enumerate() {
            let root_of_all =
                owner[at] == 0 && is_root(entry) && plan.places.iter().any(|p| p.entry == at && p.parent.is_none());
            let origin = match (&entry.ext_key, entry.ext_mount()) {
                (None, false) if root_of_all => Origin::Root,
                (None, false) => continue,
                (Some(key), _) if key == DEVICE => Origin::Device(at, outside(entry, key, externals)?),
                (Some(key), _) => Origin::Outside(outside(entry, key, externals)?),
                // An older way of recording it: the key in the place of the root.
                (None, true) => Origin::Outside(outside(entry, &String::from_utf8_lossy(&entry.root), externals)?),
            };
            let provider = Provider { dev: entry.root_dev, top: entry.root.clone(), origin, with: owner[at] };
            sources.of.insert(at, (sources.providers.len(), Vec::new()));
            sources.providers.push(provider);
        }
        for (at, entry) in plan.entries.iter().enumerate() {
            if sources.of.contains_key(&at) {
                continue;
            }
            let found = sources.showing(entry);
            let (provider, below) = match found {
                Some(found) => found,
                None => {
                    if let Some(provider) = namespace(entry, owner[at]) {
                        sources.of.insert(at, (sources.providers.len(), Vec::new()));
                        sources.providers.push(provider);
                        continue;
                    }
                    let makes = type_of(entry).filter(|known| known.making != Making::Never);
                    let leaves = entry.root.split(|byte| *byte == b'/').any(|part| part == b"..");
                    if makes.is_none() || entry.fstype == NAMED || !entry.root.starts_with(b"/") || leaves {
                        return Err(strange(entry));
                    }
                    let top = b"/".to_vec();
                    sources.providers.push(Provider {
                        dev: entry.root_dev,
                        top,
                        origin: Origin::New(at),
                        with: owner[at],
                    });
                    (sources.providers.len() - 1, paths::below(&entry.root, b"/").unwrap_or_default().to_vec())
                }
            };
            sources.of.insert(at, (provider, below));
        }
        Ok(sources)
    }

    /// A provider that shows at least what an entry does.
    fn showing(&self, entry: &MntEntry) -> Option<(usize, Vec<u8>)> {
        let same = self.providers.iter().enumerate().filter(|(_, one)| one.dev == entry.root_dev);
        same.filter_map(|(at, one)| Some((at, paths::below(&entry.root, &one.top)?.to_vec()))).next()
    }
}

/// What a mount shows that is of a namespace.
fn namespace(entry: &MntEntry, with: usize) -> Option<Provider> {
    let is_one = type_of(entry).is_some_and(|fs| fs.making == Making::Namespace);
    let provider = || Provider { dev: entry.root_dev, top: entry.root.clone(), origin: Origin::Namespace, with };
    is_one.then(provider)
}

/// The path of something from outside. Without externals (at a checkpoint) any will do.
fn outside(entry: &MntEntry, key: &str, externals: Option<&Externals>) -> Result<Vec<u8>> {
    let Some(externals) = externals else { return Ok(Vec::new()) };
    let found = match key {
        FOUND_OUT => Some(paths::join(b"/", entry.source.strip_prefix(b"/").unwrap_or(&entry.source))),
        DEVICE => {
            let source = String::from_utf8_lossy(&entry.source);
            let name = source.strip_prefix("dev[").and_then(|name| name.strip_suffix(']')).unwrap_or(&source);
            externals.device(name).map(|path| path.as_bytes().to_vec())
        }
        // From our root on, also without a slash in front.
        key => externals.value(key.as_bytes()).map(|path| paths::join(b"/", path.trim_start_matches('/').as_bytes())),
    };
    found.ok_or_else(|| {
        Error::unsupported(
            object(entry),
            format!("it comes from outside, and nothing is named for {key}"),
            "name it with --external mnt[NAME]:PATH (or dev[NAME]:DEVICE)",
        )
    })
}

/// A mount of which we do not know what it is.
fn strange(entry: &MntEntry) -> Error {
    Error::unsupported(
        object(entry),
        "what it shows is neither below the root of the tree nor made by us",
        "name it with --external mnt[MOUNTPOINT]:NAME, or let all such be found out with --external mnt[]:ms",
    )
}

/// Who shares events with whom.
fn groups(plan: &Plan) -> Result<Vec<Group>> {
    let mut shared: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let mut slaves: BTreeMap<(u32, usize), Vec<usize>> = BTreeMap::new();
    for at in 0..plan.places.len() {
        let entry = plan.entry(at);
        match (entry.shared_id(), entry.master_id()) {
            (0, 0) => {}
            (0, master) => slaves.entry((master, plan.places[at].provider)).or_default().push(at),
            (id, _) => shared.entry(id).or_default().push(at),
        }
    }
    let known: BTreeSet<u32> = shared.keys().copied().collect();
    let mut made: BTreeMap<u32, usize> = BTreeMap::new();
    let mut groups = Vec::new();
    // Masters first; a circle cannot be.
    let mut left: Vec<(u32, Vec<usize>)> = shared.into_iter().collect();
    while !left.is_empty() {
        let before = left.len();
        let mut later = Vec::new();
        for (id, members) in left {
            let master = plan.entry(members[0]).master_id();
            if known.contains(&master) && !made.contains_key(&master) {
                later.push((id, members));
                continue;
            }
            made.insert(id, groups.len());
            groups.push(group(plan, true, made.get(&master).copied(), members)?);
        }
        if later.len() == before {
            let place = plan.entry(later[0].1[0]);
            return Err(Error::bad_image(
                "mountpoints",
                format!("the masters of mount {} go in a circle", place.mnt_id),
            ));
        }
        left = later;
    }
    for ((master, _), members) in slaves {
        groups.push(group(plan, false, made.get(&master).copied(), members)?);
    }
    Ok(groups)
}

fn group(plan: &Plan, shared: bool, master: Option<usize>, members: Vec<usize>) -> Result<Group> {
    let first = plan.entry(members[0]);
    let provider = plan.places[members[0]].provider;
    let covers = |at: &usize| {
        let one = &plan.providers[*at];
        let shows = |member: &usize| paths::below(&plan.entry(*member).root, &one.top).is_some();
        one.dev == first.root_dev && members.iter().all(shows)
    };
    let widest = (0..plan.providers.len()).filter(covers).min_by_key(|at| plan.providers[*at].top.len());
    let widest = widest.unwrap_or(provider);
    let from_outside = matches!(plan.providers[widest].origin, Origin::Root | Origin::Outside(_));
    if let Some(odd) = members.iter().find(|at| plan.entry(**at).root_dev != first.root_dev) {
        return Err(Error::bad_image(
            "mountpoints",
            format!("mounts {} and {} share no file system", first.mnt_id, plan.entry(*odd).mnt_id),
        ));
    }
    let is_master_outside = master.is_none() && first.master_id() != 0;
    if is_master_outside && !from_outside {
        return Err(Error::unsupported(
            object(first),
            "it receives mounts from a mount outside of the tree, and is none that comes from there",
            "name it with --external mnt[MOUNTPOINT]:NAME, or let such be found out with --external mnt[]:m",
        ));
    }
    let with_outside = members.iter().any(|at| {
        let entry = plan.entry(*at);
        shared && entry.ext_key.is_some() && !entry.internal_sharing()
    });
    let master = match master {
        Some(master) => Master::Group(master),
        None if is_master_outside => Master::Outside,
        None => Master::None,
    };
    Ok(Group { shared, with_outside: with_outside && master == Master::None, master, provider: widest, members })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
