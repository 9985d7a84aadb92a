//! Making the mounts of a namespace again.
//!
//! A process is born with a copy of our own mount namespace. A thread of ours enters it, puts every provider of mounts
//! into a yard (a directory in memory where each stands by itself), clones the mounts of the tree from there, and makes
//! that of the root the root: with that everything else that was there goes. Then the others are attached. What happens
//! in the copy is heard nowhere, and goes with the process if we are killed.

use super::built::Built;
use super::filesystem::{FsType, Making};
use super::plan::{Group, Master, Origin, type_of};
use super::table::{NOSYMFOLLOW, object};
use super::{Beside, contents, make, paths};
use crate::namespaces::{Building, Own, Owned, pinned};
use crate::{Error, Result};
use cryonaut_image::records::MntEntry;
use cryonaut_kernel::Errno;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::mountinfo::MountInfo;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::mount::{self, Change, IdMap, Propagation};
use cryonaut_kernel::sys::namespace::{self, within};
use cryonaut_kernel::sys::process::{CloneFlags, Spawn, spawn_idle};
use cryonaut_kernel::sys::tty;
use cryonaut_kernel::sys::wait::{Who, wait};
use cryonaut_kernel::temporary_name::{KeptName, TemporaryName, Thing};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A step that the kernel refused: at which place (0 is the root), what, and why.
type Failed = (usize, &'static str, Errno);

/// Fills a mount namespace that a process was born with.
pub fn build(cx: &mut Building<'_>, own: &Own) -> Result<()> {
    cx.mounts.read(cx.images, cx.options, own.id)?;
    let Some(this) = cx.mounts.plan.namespaces.iter().position(|number| *number == own.id) else {
        return Err(Error::bad_image(format!("mountpoints-{}.img", own.id), "it is not there"));
    };
    let ours = Task::current()?.mountinfo()?;
    let mut stock = from_outside(cx, this)?;
    make_new(cx, own, this, &ours, &mut stock)?;
    fill(cx, this, &stock)?;
    let removed = make_removed(cx.mounts, this, &stock)?;
    let id_maps = id_maps(cx.mounts, this)?;
    let built = &mut *cx.mounts;
    let mut yard = Yard { built, this, stock, id_maps, removed };
    let done = within(&[own.file.as_fd()], || yard.assemble());
    let done = done.map_err(own.failed("enter it"))?;
    let Yard { removed, .. } = yard;
    let root = done.map_err(|(place, action, errno)| cx.mounts.refused(place, action, errno))?;
    removed
        .into_iter()
        .try_for_each(|(place, made)| made.remove().map_err(|e| cx.mounts.failed(place, "remove its root again", e)))?;
    let file =
        own.file.try_clone().map_err(|e| crate::error::errno_of(&e)).map_err(own.failed("duplicate its file"))?;
    cx.mounts.namespaces[this] = Some((file, root));
    if this == 0 { pinned::make(cx) } else { Ok(()) }
}

impl Built {
    fn refused(&self, place: usize, action: &'static str, errno: Errno) -> Error {
        let remedy = match errno {
            Errno::NOENT | Errno::NOTDIR if action == ATTACH => "make the file or directory on which it is mounted",
            _ => "",
        };
        Error::Kernel { object: object(self.plan.entry(place)), action: action.into(), errno, remedy }
    }
}

const ATTACH: &str = "mount it";

/// Providers that come from our own mount namespace, by index.
fn from_outside(cx: &Building<'_>, this: usize) -> Result<BTreeMap<usize, OwnedFd>> {
    let mut stock = BTreeMap::new();
    let plan = &cx.mounts.plan;
    for (at, provider) in plan.providers.iter().enumerate().filter(|(_, provider)| provider.with == this) {
        let (path, made) = match &provider.origin {
            Origin::Root => {
                let root = root_path(cx, this);
                let made = mount::clone_path(&root);
                (root, made)
            }
            Origin::Outside(path) => (path.clone(), mount::clone_path(path)),
            Origin::Device(entry, device) => (device.clone(), make::of_device(&plan.entries[*entry], device)),
            Origin::New(_) | Origin::Namespace => continue,
        };
        let made = made.map_err(|errno| Error::Kernel {
            object: crate::Object::Path(String::from_utf8_lossy(&path).into_owned()),
            action: "mount it in the tree".into(),
            errno,
            remedy: if errno == Errno::NOENT { "name another with --root or --external" } else { "" },
        })?;
        stock.insert(at, made);
    }
    Ok(stock)
}

/// What becomes the root of the first namespace: what the caller says, or else where the checkpoint saw it.
fn root_path(cx: &Building<'_>, this: usize) -> Vec<u8> {
    if let Some(root) = &cx.options.root {
        return paths::of(root).to_vec();
    }
    let seen = cx.mounts.beside.get(this).and_then(|beside: &Beside| beside.root.as_deref());
    seen.unwrap_or("/").as_bytes().to_vec()
}

/// Has the hand make the new file systems of this namespace.
fn make_new(
    cx: &mut Building<'_>,
    own: &Own,
    this: usize,
    ours: &[MountInfo],
    stock: &mut BTreeMap<usize, OwnedFd>,
) -> Result<()> {
    stock.append(&mut cx.mounts.lent);
    let plan = &cx.mounts.plan;
    let task = Task::open(crate::freeze::pid_of(own.pid)?)?;
    let own_cgroups = task.namespace(Namespace::Cgroup)? != Task::current()?.namespace(Namespace::Cgroup)?;
    let (mut wanted, mut numbers) = (Vec::new(), Vec::new());
    for (at, provider) in plan.providers.iter().enumerate().filter(|(_, provider)| provider.with == this) {
        let Origin::New(entry) = provider.origin else { continue };
        let entry = &plan.entries[entry];
        let Some(fs) = type_of(entry).filter(|_| !stock.contains_key(&at)) else { continue };
        match fs.making {
            Making::Layers | Making::Never | Making::Namespace => continue,
            // A new mount of a hierarchy would change its options for all.
            Making::Cgroups if !own_cgroups => {
                if let Some(clone) = hierarchy(entry, fs, ours) {
                    stock.insert(at, clone);
                    continue;
                }
            }
            _ => {}
        }
        wanted.push((entry, fs));
        numbers.push(at);
    }
    let made = make::by_hand(cx.hand, &wanted)?;
    stock.extend(numbers.into_iter().zip(made));
    Ok(())
}

/// A clone of our own mount of the same hierarchy of cgroups.
fn hierarchy(entry: &MntEntry, fs: &FsType, ours: &[MountInfo]) -> Option<OwnedFd> {
    let words = |text: &[u8]| {
        let one =
            |word: &&[u8]| !word.is_empty() && *word != b"rw" && *word != b"ro" && !word.starts_with(b"release_agent=");
        let mut all: Vec<Vec<u8>> = text.split(|byte| *byte == b',').filter(one).map(<[u8]>::to_vec).collect();
        all.sort();
        all
    };
    let same = |mount: &&MountInfo| {
        let whole = mount.fs_type == fs.name && paths::of(&mount.root) == b"/";
        whole && (fs.name == b"cgroup2" || words(&mount.super_options) == words(&entry.options))
    };
    ours.iter().filter(same).find_map(|mount| mount::clone_path(paths::of(&mount.mount_point)).ok())
}

/// Brings back what file systems in memory held.
fn fill(cx: &Building<'_>, this: usize, stock: &BTreeMap<usize, OwnedFd>) -> Result<()> {
    let plan = &cx.mounts.plan;
    for (at, provider) in plan.providers.iter().enumerate().filter(|(_, provider)| provider.with == this) {
        let Origin::New(entry) = provider.origin else { continue };
        let filled = type_of(&plan.entries[entry]).is_some_and(|fs| fs.making == Making::Filled);
        if let Some(mount) = stock.get(&at).filter(|_| filled) {
            contents::fill(cx.images, provider.dev, mount.as_fd())?;
        }
    }
    Ok(())
}

/// Makes what mounts show that has been removed.
fn make_removed(built: &Built, this: usize, stock: &BTreeMap<usize, OwnedFd>) -> Result<Vec<(usize, KeptName)>> {
    let (mut all, mut known) = (Vec::new(), BTreeSet::new());
    for (at, place) in built.plan.places.iter().enumerate().filter(|(_, place)| place.namespace == this) {
        let entry = &built.plan.entries[place.entry];
        let provider = stock.get(&place.provider).or(built.spares[place.provider].as_ref());
        let (true, None, Some(provider)) = (entry.deleted(), &entry.ext_key, provider) else { continue };
        if !known.insert((place.provider, &place.below)) {
            continue;
        }
        // The image of another tool does not say what it was: that upon which it is mounted tells.
        let below = || {
            let parent = &built.plan.places[place.parent?];
            let mount = stock.get(&parent.provider)?;
            let path = paths::join(&parent.below, place.at.as_slice());
            let path = path.strip_prefix(b"/").unwrap_or(&path);
            rustix::fs::statat(mount, path, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| (stat.st_mode, (0, 0)))
        };
        let told = built.beside[this].removed.get(&entry.mnt_id);
        let told = told.map(|one| (one.mode, crate::users::outside((one.uid, one.gid))));
        let (mode, owner) = told.or_else(below).unwrap_or((libc::S_IFDIR | 0o755, (0, 0)));
        let made = keep_removed(provider.as_fd(), &place.below, mode, owner);
        all.push((at, made.map_err(|e| built.failed(at, "make what it shows, which has been removed", e))?));
    }
    Ok(all)
}

fn keep_removed(
    top: BorrowedFd<'_>,
    path: &[u8],
    mode: u32,
    (uid, gid): (u32, u32),
) -> std::result::Result<KeptName, Errno> {
    let path = Path::new(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)));
    let thing = Thing::File(FileType::from_raw_mode(mode), Mode::from_raw_mode(mode & 0o7777), 0);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    for above in path.ancestors().skip(1) {
        let part = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        match rustix::fs::openat2(top, part, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
            Ok(directory) => {
                let rest = path.strip_prefix(above).unwrap_or(path);
                let name = TemporaryName::new(directory.as_fd(), rest)?;
                return name.keep(&thing, (Uid::from_raw(uid), Gid::from_raw(gid)));
            }
        }
    }
    Err(Errno::INVAL)
}

/// User namespaces with the maps by which mounts show owners, by mount id.
fn id_maps(built: &Built, this: usize) -> Result<BTreeMap<u32, OwnedFd>> {
    let mut all = BTreeMap::new();
    for (mnt_id, maps) in &built.beside[this].id_maps {
        let made = user_namespace(maps);
        let made = made.map_err(|e| {
            Error::kernel(
                crate::Object::Other(format!("mount {mnt_id}")),
                "make a user namespace with its maps of owners",
                e,
            )
        })?;
        all.insert(*mnt_id, made);
    }
    Ok(all)
}

fn user_namespace((uids, gids): &(IdMap, IdMap)) -> std::result::Result<OwnedFd, Errno> {
    let child = spawn_idle(&Spawn { flags: CloneFlags::NEWUSER, exit_signal: 0, ..Spawn::default() })?;
    let made = (|| {
        let task = Task::open(child.pid).map_err(|e| e.errno().unwrap_or(Errno::SRCH))?;
        for (name, map) in [("uid_map", uids), ("gid_map", gids)] {
            let lines: String =
                map.iter().map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect();
            let file = rustix::fs::openat(task.dir(), name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&file, lines.as_bytes())?;
        }
        namespace::open(&task, Namespace::User).map_err(|e| e.errno().unwrap_or(Errno::SRCH))
    })();
    let _ = rustix::process::pidfd_send_signal(&child.pidfd, rustix::process::Signal::KILL);
    let _ = wait(Who::One(child.pid));
    made
}

/// What the thread in the namespace works with.
struct Yard<'a> {
    built: &'a mut Built,
    /// Which namespace, as index.
    this: usize,
    /// Providers that are made with this namespace.
    stock: BTreeMap<usize, OwnedFd>,
    id_maps: BTreeMap<u32, OwnedFd>,
    removed: Vec<(usize, KeptName)>,
}

/// Says at which place something failed, and what.
fn at(place: usize, action: &'static str) -> impl Fn(Errno) -> Failed {
    move |errno| (place, action, errno)
}

fn private(mount: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    mount::change(mount, false, Change { propagation: Some(Propagation::Private), ..Change::default() })
}

impl Yard<'_> {
    /// Makes everything; the root.
    fn assemble(&mut self) -> std::result::Result<OwnedFd, Failed> {
        let root_place = self.places().next().ok_or((0, "find its root", Errno::NOENT))?;
        let yard = self.open_yard().map_err(at(root_place, "make room for its mounts"))?;
        self.put_providers(&yard)?;
        // Whole file systems first: a terminal is made through the mount that shows its devpts.
        let is_part = |place: &usize| !self.built.plan.places[*place].below.is_empty();
        let (parts, whole): (Vec<usize>, Vec<usize>) = self.places().partition(is_part);
        for place in whole.into_iter().chain(parts) {
            self.clone_place(place)?;
        }
        self.become_root(root_place, &yard).map_err(at(root_place, "make it the root"))?;
        for place in self.places().skip(1).filter(|place| !self.built.plan.waits(*place)).collect::<Vec<_>>() {
            self.attach(place)?;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open("/", flags, Mode::empty()).map_err(at(root_place, "open the root"))
    }

    /// The places of this namespace, in order.
    fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let mine = |(at, place): (usize, &super::plan::Place)| (place.namespace == self.this).then_some(at);
        self.built.plan.places.iter().enumerate().filter_map(mine).collect::<Vec<_>>().into_iter()
    }

    /// Where the root is seen whose directory is in the yard of the calling thread.
    fn open_yard(&self) -> std::result::Result<OwnedFd, Errno> {
        mount::keep_to_itself()?;
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let yard = make::in_memory()?;
        mount::attach(yard.as_fd(), root.as_fd())?;
        Ok(yard)
    }

    /// Attaches every provider that is needed here to a directory (or file) of its own.
    fn put_providers(&mut self, yard: &OwnedFd) -> std::result::Result<(), Failed> {
        let here: Vec<usize> = self.places().map(|place| self.built.plan.places[place].provider).collect();
        let first_of =
            |provider: usize| self.built.plan.places.iter().position(|p| p.provider == provider).unwrap_or(0);
        let placed: Vec<(usize, usize)> = (0..self.built.plan.providers.len()).map(|p| (p, first_of(p))).collect();
        for (provider, place) in placed {
            if !self.stock.contains_key(&provider) {
                if !here.contains(&provider) {
                    continue;
                }
                match self.built.spares[provider].take() {
                    Some(spare) => drop(self.stock.insert(provider, spare)),
                    // Of layers, which are to be there before.
                    None => continue,
                }
            }
            self.put_one(yard, provider).map_err(at(place, "prepare what it shows"))?;
        }
        Ok(())
    }

    fn put_one(&mut self, yard: &OwnedFd, provider: usize) -> std::result::Result<(), Errno> {
        let mount = self.stock[&provider].as_fd();
        let name = format!("{provider}");
        attach_in(yard, &name, mount)?;
        let groups = self.built.plan.groups.iter().enumerate();
        let groups: Vec<(usize, bool)> = groups
            .filter(|(at, group)| group.provider == provider && self.built.leaders[*at].is_none())
            .map(|(at, group)| (at, is_kin_outside(group)))
            .collect();
        let clone = || mount::clone_at(mount, b"");
        // Peers of what is outside, before the provider is that no more.
        for (at, _) in groups.iter().filter(|(_, kin)| *kin) {
            self.built.leaders[*at] = Some(clone()?);
        }
        private(mount)?;
        for (at, _) in groups.iter().filter(|(_, kin)| !*kin) {
            self.built.leaders[*at] = Some(clone()?);
        }
        let later = |place: &super::plan::Place| place.namespace > self.this && place.provider == provider;
        if self.built.plan.places.iter().any(later) {
            self.built.spares[provider] = Some(clone()?);
        }
        Ok(())
    }

    /// Clones a mount from its provider, with its flags but for those that would keep us from making files.
    fn clone_place(&mut self, place: usize) -> std::result::Result<(), Failed> {
        self.make_terminal(place).map_err(at(place, "make the terminal that it shows"))?;
        let planned = &self.built.plan.places[place];
        let Some(provider) = self.stock.get(&planned.provider) else { return Ok(()) };
        let clone = mount::clone_at(provider.as_fd(), &planned.below).map_err(at(place, "find what it shows"))?;
        self.set_flags(place, &clone).map_err(at(place, "give it its flags"))?;
        self.built.places[place] = Some(clone);
        Ok(())
    }

    /// If a mount shows a terminal (as /dev/console of a container does): makes that, for the name goes with its master.
    fn make_terminal(&mut self, place: usize) -> std::result::Result<(), Errno> {
        let planned = &self.built.plan.places[place];
        let (entry, provider) = (self.built.plan.entry(place), planned.provider);
        let is_devpts = type_of(entry).is_some_and(|fs| fs.name == b"devpts") && entry.ext_key.is_none();
        let number = std::str::from_utf8(&planned.below).ok().and_then(|name| name.parse::<u32>().ok());
        let (true, Some(number), Some(stock)) = (is_devpts, number, self.stock.get(&provider)) else { return Ok(()) };
        if self.built.terminals.iter().any(|(of, known, _)| (*of, *known) == (provider, number)) {
            return Ok(());
        }
        // Through the mount by which the tree has it, if that is there already: its path is shown to programs.
        let mut others = self.built.plan.places.iter().zip(&self.built.places);
        let whole = others.find(|(other, mount)| {
            other.provider == provider && other.namespace == self.this && other.below.is_empty() && mount.is_some()
        });
        let devpts = whole.and_then(|(_, mount)| mount.as_ref()).unwrap_or(stock);
        let mut below = Vec::new();
        loop {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let master = rustix::fs::openat(devpts, c"ptmx", flags, Mode::empty())?;
            match tty::pty_number(&master)? {
                lower if lower < number => below.push(master),
                same if same == number => {
                    self.built.terminals.push((provider, number, master));
                    return Ok(());
                }
                _ => return Err(Errno::BUSY),
            }
        }
    }

    /// The flags of a mount that could not be made with the others.
    fn set_flags_late(&self, place: usize) -> std::result::Result<(), Failed> {
        let mount = self.built.places[place].as_ref().ok_or((place, ATTACH, Errno::NOENT))?;
        private(mount.as_fd()).and_then(|()| self.set_flags(place, mount)).map_err(at(place, "give it its flags"))
    }

    fn set_flags(&self, place: usize, mount: &OwnedFd) -> std::result::Result<(), Errno> {
        let entry = self.built.plan.entry(place);
        let id_map = self.id_maps.get(&entry.mnt_id).map(AsFd::as_fd);
        let change = Change { set: attributes(entry.flags), clear: ALL_ATTRIBUTES, id_map, ..Change::default() };
        mount::change(mount.as_fd(), false, change)
    }

    /// The first mount becomes the root of this namespace, and what was there goes, the yard too.
    fn become_root(&self, place: usize, yard: &OwnedFd) -> std::result::Result<(), Errno> {
        let mount = self.built.places[place].as_ref().ok_or(Errno::NOENT)?;
        attach_in(yard, "root", mount.as_fd())?;
        // The yard stands upon the old one.
        mount::become_root(mount.as_fd(), 1)
    }

    /// Attaches a mount to where it belongs.
    fn attach(&mut self, place: usize) -> std::result::Result<(), Failed> {
        let planned = self.built.plan.places[place].clone();
        let parent = planned.parent.and_then(|parent| self.built.places[parent].as_ref());
        let parent = parent.ok_or((place, ATTACH, Errno::NOENT))?;
        let target = target(parent, &planned.at).map_err(at(place, ATTACH))?;
        if self.built.places[place].is_none() {
            let made = self.make_layers(place, &target).map_err(at(place, "put its layers together"))?;
            self.built.places[place] = Some(made);
        }
        let Some(mount) = &self.built.places[place] else { return Err((place, ATTACH, Errno::NOENT)) };
        mount::attach(mount.as_fd(), target.as_fd()).map_err(at(place, ATTACH))?;
        self.lead_layers(place).map_err(at(place, "clone it"))
    }

    /// An overlay of directories that are there by now.
    fn make_layers(&self, place: usize, target: &OwnedFd) -> std::result::Result<OwnedFd, Errno> {
        let planned = &self.built.plan.places[place];
        let others = self.built.plan.places.iter().zip(&self.built.places);
        let there = others.filter(|(other, _)| other.provider == planned.provider && other.below.is_empty());
        let there = there.filter_map(|(other, mount)| mount.as_ref().filter(|_| other.namespace == self.this));
        let made = match there.into_iter().next() {
            Some(mount) => mount::clone_at(mount.as_fd(), &planned.below)?,
            None if planned.below.is_empty() => {
                let Origin::New(entry) = self.built.plan.providers[planned.provider].origin else {
                    return Err(Errno::NOENT);
                };
                let entry = &self.built.plan.entries[entry];
                let fs = type_of(entry).ok_or(Errno::NODEV)?;
                make::overlay(entry, fs, target)?
            }
            None => return Err(Errno::NOTSUP),
        };
        private(made.as_fd())?;
        self.set_flags(place, &made)?;
        Ok(made)
    }

    /// What leads the groups of an overlay, and is spare for later namespaces.
    fn lead_layers(&mut self, place: usize) -> std::result::Result<(), Errno> {
        let provider = self.built.plan.places[place].provider;
        if self.stock.contains_key(&provider) || !self.built.plan.places[place].below.is_empty() {
            return Ok(());
        }
        let Some(mount) = &self.built.places[place] else { return Ok(()) };
        for (at, group) in self.built.plan.groups.iter().enumerate() {
            if group.provider == provider && self.built.leaders[at].is_none() {
                self.built.leaders[at] = Some(mount::clone_at(mount.as_fd(), b"")?);
            }
        }
        let later = |other: &super::plan::Place| other.namespace > self.this && other.provider == provider;
        if self.built.spares[provider].is_none() && self.built.plan.places.iter().any(later) {
            self.built.spares[provider] = Some(mount::clone_at(mount.as_fd(), b"")?);
        }
        Ok(())
    }
}

impl Built {
    /// Mounts namespaces, which are there by now, and what stands upon those.
    pub fn attach_namespaces(&mut self, owned: &Owned) -> Result<()> {
        for this in 0..self.namespaces.len() {
            let waits = |at: &usize| self.plan.places[*at].namespace == this && self.plan.waits(*at);
            let places: Vec<usize> = (0..self.plan.places.len()).filter(waits).collect();
            let Some((file, _)) = self.namespaces[this].as_ref().filter(|_| !places.is_empty()) else { continue };
            let file = file.try_clone().map_err(|e| self.refused(places[0], ATTACH, crate::error::errno_of(&e)))?;
            for &place in &places {
                if self.plan.providers[self.plan.places[place].provider].origin == Origin::Namespace {
                    self.places[place] = Some(self.mount_of_namespace(place, owned)?);
                }
            }
            let (stock, id_maps) = (BTreeMap::new(), BTreeMap::new());
            let mut yard = Yard { built: self, this, stock, id_maps, removed: Vec::new() };
            let attached = within(&[file.as_fd()], || {
                places.into_iter().try_for_each(|place| yard.set_flags_late(place).and_then(|()| yard.attach(place)))
            });
            let attached = attached.map_err(|errno| (0, ATTACH, errno)).and_then(|attached| attached);
            attached.map_err(|(place, action, errno)| self.refused(place, action, errno))?;
        }
        Ok(())
    }

    /// A mount of the namespace that a place shows.
    fn mount_of_namespace(&self, place: usize, owned: &Owned) -> Result<OwnedFd> {
        let (entry, this) = (self.plan.entry(place), self.plan.places[place].namespace);
        let file = super::bound::file(owned, self.beside[this].namespaces.get(&entry.mnt_id), entry)?;
        mount::clone_at(file.as_fd(), b"").map_err(|e| self.failed(place, "mount the namespace", e))
    }
}

/// Whether a group has to do with one outside of the tree.
fn is_kin_outside(group: &Group) -> bool {
    group.master == Master::Outside || group.with_outside
}

/// Attaches a mount to a new file or directory.
fn attach_in(yard: &OwnedFd, name: &str, mount: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(mount)?.st_mode);
    if kind == FileType::Directory {
        rustix::fs::mkdirat(yard, name, Mode::RWXU)?;
    } else {
        rustix::fs::mknodat(yard, name, FileType::RegularFile, Mode::RUSR, 0)?;
    }
    let place = rustix::fs::openat(yard, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    mount::attach(mount, place.as_fd())
}

/// Upon what a mount is to stand: below the top of its parent, on no other mount.
fn target(parent: &OwnedFd, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    if path.is_empty() {
        return rustix::io::fcntl_dupfd_cloexec(parent, 0);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(parent, path, flags, Mode::empty(), resolve) {
        // Something is mounted there already that belongs deeper: upon that.
        Err(Errno::XDEV) => rustix::fs::openat2(parent, path, flags, Mode::empty(), resolve - ResolveFlags::NO_XDEV),
        target => target,
    }
}

/// All attributes that a recorded mount tells of.
const ALL_ATTRIBUTES: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR__ATIME
    | libc::MOUNT_ATTR_NODIRATIME
    | libc::MOUNT_ATTR_NOSYMFOLLOW;

/// Those of recorded `MS_*`, but for read-only.
fn attributes(flags: u32) -> u64 {
    let flags = u64::from(flags);
    let pairs = [
        (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV),
        (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (libc::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
        (libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
        (NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW),
    ];
    let set = pairs.iter().filter(|(flag, _)| flags & flag != 0).fold(0, |all, (_, attribute)| all | attribute);
    let strict = flags & (libc::MS_NOATIME | libc::MS_RELATIME) == 0;
    if strict { set | libc::MOUNT_ATTR_STRICTATIME } else { set }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_those_of_the_record() {
        let all = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_RELATIME;
        assert_eq!(attributes(all as u32), libc::MOUNT_ATTR_NOSUID);
        assert_eq!(attributes(libc::MS_NODEV as u32), libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_STRICTATIME);
        assert_eq!(
            attributes((libc::MS_NOATIME | NOSYMFOLLOW) as u32),
            libc::MOUNT_ATTR_NOATIME | libc::MOUNT_ATTR_NOSYMFOLLOW
        );
    }
}
