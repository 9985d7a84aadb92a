//! The mounts of a restored tree, by descriptors, and what is done to them when all files are open.

use super::external::Externals;
use super::filesystem::Making;
use super::plan::{Master, Origin, Plan, type_of};
use super::{Beside, make, paths, table};
use crate::namespaces::Own;
use crate::{Error, RestoreOptions, Result};
use cryonaut_image::{ImageDir, ImageKind};
use cryonaut_kernel::Errno;
use cryonaut_kernel::sys::mount::{self, Change, Propagation};
use cryonaut_kernel::sys::namespace::within;
use cryonaut_puppet::Hand;
use rustix::mount::FsPickFlags;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What there is of the mount namespaces of a tree that is built.
#[derive(Debug, Default)]
pub struct Built {
    pub(super) plan: Plan,
    /// By namespace, as index into the plan's.
    pub(super) beside: Vec<Beside>,
    /// By provider: a mount of it that stands nowhere, for namespaces that are made later.
    pub(super) spares: Vec<Option<OwnedFd>>,
    /// By group: a mount that stands nowhere, through which the members get to be peers.
    pub(super) leaders: Vec<Option<OwnedFd>>,
    /// By place.
    pub(super) places: Vec<Option<OwnedFd>>,
    /// By namespace: it itself, and its root.
    pub(super) namespaces: Vec<Option<(OwnedFd, OwnedFd)>>,
    /// Masters of terminals whose names are mounted somewhere, and so have to be there before: by provider and number.
    pub(super) terminals: Vec<(usize, u32, OwnedFd)>,
    /// File systems that others have made than who has the mounts, by provider.
    pub(super) lent: BTreeMap<usize, OwnedFd>,
    /// Namespaces without processes, which are there and still have no mounts of their own.
    pub pinned: Vec<Own>,
    /// Namespaces whose mounts are to be made when there are the pid namespaces that they show, with who has them.
    pub later: VecDeque<(i32, u32)>,
    by_id: BTreeMap<u32, usize>,
}

/// Where to begin with a recorded path.
#[derive(Debug)]
pub struct View<'b, 'n> {
    /// The directory from which on it leads, which is its root for links on the way.
    pub root: BorrowedFd<'b>,
    /// The path, relative to it; empty for the directory itself.
    pub name: &'n [u8],
    /// Whether it stays on one mount, which `root` is the top of.
    pub on_one_mount: bool,
}

impl Built {
    /// Reads all tables of an image, if that has not been done; the first namespace is this.
    pub(super) fn read(&mut self, images: &ImageDir, options: &RestoreOptions, first: u32) -> Result<()> {
        if !self.plan.namespaces.is_empty() {
            return Ok(());
        }
        let mut numbers: Vec<u32> = images.ids(ImageKind::Mnts)?.into_iter().map(|id| id as u32).collect();
        numbers.sort_by_key(|number| (*number != first, *number));
        let mut tables = Vec::new();
        for number in numbers {
            tables.push((number, images.read_all(ImageKind::Mnts, u64::from(number))?));
            self.beside.push(images.read_json(&Beside::name(number))?.unwrap_or_default());
        }
        self.plan = Plan::of(tables, Some(&Externals::of(&options.external)))?;
        let empty = |count: usize| (0..count).map(|_| None).collect::<Vec<Option<OwnedFd>>>();
        self.spares = empty(self.plan.providers.len());
        self.leaders = empty(self.plan.groups.len());
        self.places = empty(self.plan.places.len());
        self.namespaces = (0..self.plan.namespaces.len()).map(|_| None).collect();
        let ids = (0..self.plan.places.len()).map(|at| (self.plan.entry(at).mnt_id, at));
        self.by_id = ids.collect();
        Ok(())
    }

    /// The proc file systems, as providers, that a namespace has of other pid namespaces than that of who has its mounts.
    #[must_use]
    pub fn procs_of_others(&self, number: u32) -> Vec<(usize, u32)> {
        let Some(this) = self.plan.namespaces.iter().position(|known| *known == number) else { return Vec::new() };
        let of = |dev: u32| self.beside.iter().find_map(|beside| beside.pids.get(&dev)).copied();
        let made = self.plan.providers.iter().enumerate().filter(|(_, provider)| provider.with == this);
        made.filter_map(|(at, provider)| Some((at, of(provider.dev)?))).collect()
    }

    /// Whether the mounts of a namespace cannot be made yet; they are taken note of then. `first` is as for reading.
    pub fn has_to_wait(&mut self, images: &ImageDir, options: &RestoreOptions, of: (i32, u32)) -> Result<bool> {
        self.read(images, options, of.1)?;
        // In their order: what one has is shown by later ones.
        let waits = !self.later.is_empty() || !self.procs_of_others(of.1).is_empty();
        self.later.extend(waits.then_some(of));
        Ok(waits)
    }

    /// Makes a proc file system: by a process of the pid namespace, or by ourselves for our own.
    pub fn make_proc(&mut self, provider: usize, by: Option<&mut Hand>) -> Result<()> {
        let Origin::New(entry) = self.plan.providers[provider].origin else { return Ok(()) };
        let entry = &self.plan.entries[entry];
        let Some(fs) = type_of(entry) else { return Ok(()) };
        let made = match by {
            Some(hand) => make::by_hand(hand, &[(entry, fs)])?.pop(),
            None => {
                let made = make::by_us(fs.name, &make::settings(entry, fs));
                Some(made.map_err(|e| Error::kernel(table::object(entry), "make its file system", e))?)
            }
        };
        self.lent.extend(made.map(|made| (provider, made)));
        Ok(())
    }

    /// Whether the tree has no mount namespace of its own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// The numbers of namespaces in which no process is.
    pub fn without_processes(&self) -> Vec<u32> {
        let all = self.plan.namespaces.iter().zip(&self.beside);
        all.filter(|(_, beside)| beside.without_processes).map(|(number, _)| *number).collect()
    }

    /// Where to begin with a path that was recorded with the id of its mount; `None` if that is none of the tree's own: then
    /// it is one of ours, or of the directory that the caller has given for the root.
    #[must_use]
    pub fn view<'b, 'n>(&'b self, mnt_id: Option<i32>, name: &'n [u8]) -> Option<View<'b, 'n>> {
        let place = self.by_id.get(&mnt_id?.cast_unsigned()).copied()?;
        let mount = self.places[place].as_ref()?;
        match paths::below(name, &self.plan.entry(place).mountpoint) {
            Some(below) => Some(View { root: mount.as_fd(), name: below, on_one_mount: true }),
            None => {
                let root = self.root(self.plan.places[place].namespace)?;
                let name = name.strip_prefix(b"/").unwrap_or(name);
                Some(View { root, name, on_one_mount: false })
            }
        }
    }

    /// Where new terminals come from that are of the file system (devpts) of a mount, by its recorded id: the path, and the
    /// mount of that.
    #[must_use]
    pub fn ptmx(&self, mnt_id: Option<i32>) -> Option<(Vec<u8>, i32)> {
        let place = &self.plan.places[self.by_id.get(&mnt_id?.cast_unsigned()).copied()?];
        let whole = |other: &&super::plan::Place| {
            (other.namespace, other.provider) == (place.namespace, place.provider) && other.below.is_empty()
        };
        let entry = &self.plan.entries[self.plan.places.iter().find(whole)?.entry];
        Some((paths::join(&entry.mountpoint, b"ptmx"), entry.mnt_id.cast_signed()))
    }

    /// The master of the terminal with this number in the file system of a mount, if it had to be made before.
    pub fn take_terminal(&mut self, mnt_id: Option<i32>, number: u32) -> Option<OwnedFd> {
        let place = self.by_id.get(&mnt_id?.cast_unsigned()).copied()?;
        let provider = self.plan.places[place].provider;
        let at = self.terminals.iter().position(|(of, known, _)| (*of, *known) == (provider, number))?;
        Some(self.terminals.swap_remove(at).2)
    }

    /// The root of the namespace, by index.
    fn root(&self, namespace: usize) -> Option<BorrowedFd<'_>> {
        self.namespaces.get(namespace)?.as_ref().map(|(_, root)| root.as_fd())
    }

    /// The root of the mount namespace with this number in the image.
    #[must_use]
    pub fn root_of(&self, number: u32) -> Option<BorrowedFd<'_>> {
        self.root(self.plan.namespaces.iter().position(|known| *known == number)?)
    }

    /// The root of the namespace that a mount, by its recorded id, stands in.
    #[must_use]
    pub fn root_for(&self, mnt_id: Option<i32>) -> Option<BorrowedFd<'_>> {
        let place = self.by_id.get(&mnt_id?.cast_unsigned()).copied()?;
        self.root(self.plan.places[place].namespace)
    }

    /// All files are open: mounts become what they were where that would have been in the way.
    pub fn finish(&mut self) -> Result<()> {
        for (namespace, there) in self.namespaces.iter().enumerate() {
            if let Some((file, _)) = there {
                let set = within(&[file.as_fd()], || self.set_last_flags(namespace));
                let set = set.map_err(|errno| (0, errno)).and_then(|set| set);
                set.map_err(|(place, errno)| self.failed(place, "give it its flags", errno))?;
            }
        }
        for at in 0..self.plan.places.len() {
            self.set_read_only(at).map_err(|errno| self.failed(at, "make its file system read-only", errno))?;
        }
        for at in 0..self.plan.groups.len() {
            let first = self.plan.groups[at].members[0];
            self.join(at).map_err(|errno| self.failed(first, "let it share mounts as it did", errno))?;
        }
        self.leaders.iter_mut().chain(&mut self.spares).for_each(|mount| *mount = None);
        Ok(())
    }

    pub(super) fn failed(&self, place: usize, action: &'static str, errno: Errno) -> Error {
        Error::kernel(table::object(self.plan.entry(place)), action, errno)
    }

    /// What would have kept files from being made. In the namespace.
    fn set_last_flags(&self, namespace: usize) -> std::result::Result<(), (usize, Errno)> {
        for (at, place) in self.plan.places.iter().enumerate().filter(|(_, place)| place.namespace == namespace) {
            let flags = u64::from(self.plan.entries[place.entry].flags);
            let set = if flags & libc::MS_RDONLY != 0 { libc::MOUNT_ATTR_RDONLY } else { 0 };
            let unbindable = flags & libc::MS_UNBINDABLE != 0 && flags & (libc::MS_SHARED | libc::MS_SLAVE) == 0;
            let propagation = unbindable.then_some(Propagation::Unbindable);
            let Some(mount) = self.places[at].as_ref().filter(|_| set != 0 || unbindable) else { continue };
            mount::change(mount.as_fd(), false, Change { set, propagation, ..Change::default() })
                .map_err(|e| (at, e))?;
        }
        Ok(())
    }

    /// Makes a file system that we have filled read-only, if it was.
    fn set_read_only(&self, at: usize) -> std::result::Result<(), Errno> {
        let place = &self.plan.places[at];
        let Origin::New(first) = self.plan.providers[place.provider].origin else { return Ok(()) };
        let entry = &self.plan.entries[first];
        let filled = type_of(entry).is_some_and(|fs| fs.making == Making::Filled);
        let read_only = u64::from(entry.sb_flags()) & libc::MS_RDONLY != 0;
        let (true, true, Some(mount)) = (filled && first == place.entry, read_only, &self.places[at]) else {
            return Ok(());
        };
        let context = rustix::mount::fspick(mount, c"", FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC)?;
        rustix::mount::fsconfig_set_flag(&context, c"ro")?;
        rustix::mount::fsconfig_reconfigure(&context)
    }

    /// Makes the members of a group peers.
    fn join(&self, at: usize) -> std::result::Result<(), Errno> {
        let group = &self.plan.groups[at];
        let Some(leader) = &self.leaders[at] else { return Ok(()) };
        let becomes = |propagation| {
            mount::change(leader.as_fd(), false, Change { propagation: Some(propagation), ..Change::default() })
        };
        match group.master {
            Master::None => {}
            Master::Outside => becomes(Propagation::Slave)?,
            Master::Group(master) => {
                if let Some(master) = &self.leaders[master] {
                    mount::join_group(master.as_fd(), leader.as_fd())?;
                    becomes(Propagation::Slave)?;
                }
            }
        }
        if group.shared {
            becomes(Propagation::Shared)?;
        }
        for member in &group.members {
            let Some(mount) = &self.places[*member] else { continue };
            match mount::join_group(leader.as_fd(), mount.as_fd()) {
                // What it comes from now shares with nobody.
                Err(Errno::INVAL) if group.master == Master::Outside && !group.shared => {
                    let place = String::from_utf8_lossy(&self.plan.entry(*member).mountpoint);
                    tracing::warn!("{place}: what is mounted outside is not seen below it any more");
                }
                joined => joined?,
            }
        }
        Ok(())
    }
}
