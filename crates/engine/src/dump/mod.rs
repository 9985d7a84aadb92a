//! Writing down a frozen tree: of each process its descriptors, then its
//! threads, attributes and memory.
//!
//! Only the thread that holds the tree can ask its hands and read what ptrace
//! tells. It does so for one process after the other; the rest of a process,
//! which needs nothing but /proc and what was told, is done by further threads
//! at the same time; of a process that is alone its files, of many all files,
//! while they are still being asked. What finds out which files processes have
//! in common is one for all: they take turns.

mod address_space;
mod descriptors;
mod threads;
mod tree;

use crate::attributes::clocks::Clocks;
use crate::attributes::extras;
use crate::cgroups::Membership;
use crate::files::socket::Held;
use crate::files::socket::Networks;
use crate::files::{Collect, FIRST_PAGES, NewLinks, PagesIds};
use crate::freeze::Frozen;
use crate::memory::{self, MappedFiles, PageCount};
use crate::namespaces::{self, Contents, Dumping, Owned};
use crate::network_lock::{NetworkLocks, translated};
use crate::precopy::Precopied;
use crate::report::CheckpointReport;
use crate::sharing;
use crate::{CheckpointOptions, Result, parallel};
use cryonaut_image::records::{InventoryEntry, TaskKobjIdsEntry};
use cryonaut_image::{DumpDir, ImageKind};
use cryonaut_kernel::janitor::Janitor;
use cryonaut_kernel::proc::values::Namespace;
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tree::Tree;

/// The image version of the format (a fact of it).
const IMAGE_VERSION: u32 = 2;
/// The files of the tree, which belong to one process after the other.
type Files<'c, 'a> = &'c Mutex<Collect<'a>>;

fn lock<'g, 'a>(files: Files<'g, 'a>) -> MutexGuard<'g, Collect<'a>> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the inventory says besides.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// What we share with others, which of the tree's is the same.
    pub own: TaskKobjIdsEntry,
    /// The namespaces that we do not share.
    pub owned: &'a Owned,
    /// The cgroups that are not ours.
    pub cgroups: &'a Membership,
    /// How its connections are locked.
    pub network: &'a NetworkLocks,
    /// Whether sockets were met before.
    pub has_sockets: bool,
    /// What was copied while the tree ran.
    pub precopied: Option<&'a Precopied<'a>>,
}

/// Makes the files that every image has, and those of its root, before anybody
/// stands still: on some file systems that takes longer than to write them.
/// Not those of memory that is sent away: a server may make them there.
pub fn expect_files(images: &DumpDir, root: i32, has_memory: bool) -> Result<()> {
    for kind in [ImageKind::Core, ImageKind::Mm, ImageKind::Ids, ImageKind::Fs] {
        images.expect(kind, root as u64)?;
    }
    for kind in [ImageKind::Inventory, ImageKind::Pstree, ImageKind::Files, ImageKind::Seccomp] {
        images.expect(kind, None)?;
    }
    // The first number that is given out of each kind.
    images.expect(ImageKind::Fdinfo, u64::from(sharing::FIRST_ID))?;
    if has_memory {
        images.expect(ImageKind::Pagemap, root as u64)?;
        images.expect(ImageKind::Pages, u64::from(FIRST_PAGES))?;
    }
    images.expect(ImageKind::Timens, 0)?;
    images.expect_manifest()?;
    [memory::EXTRAS, extras::NAME].into_iter().try_for_each(|name| images.expect_json(name))?;
    Ok(())
}

/// Writes everything about a frozen tree. What is to be kept until it has ended
/// comes back: temporary names of deleted files, and connections.
pub fn dump(
    frozen: &mut Frozen,
    images: &DumpDir,
    options: &CheckpointOptions,
    about: About<'_>,
    report: &mut CheckpointReport,
    janitor: Option<&Janitor>,
) -> Result<(NewLinks, Held)> {
    about.precopied.iter().for_each(|precopied| precopied.stand_still(frozen));
    let (processes, owned) = (&mut frozen.processes, about.owned);
    let server = || PagesIds::with_server(options.page_server.clone());
    let pages_ids = about.precopied.map_or_else(server, |precopied| precopied.pages_ids.clone());
    let (ids, mount_ids, contents) = (pages_ids.clone(), BTreeMap::new(), Contents::default());
    let shared_pages = PageCount::default();
    let surroundings = &about.own;
    let mut dumping =
        Dumping { images, options, processes, owned, surroundings, mount_ids, contents, pages_ids: ids, shared_pages };
    // What cgroups tell comes from files that take their time; of connections it is one question for each.
    let aside = || {
        about.cgroups.write(images, &options.cgroups)?;
        translated::write(images, about.network)
    };
    let (told, dumped) = parallel::both(aside, || namespaces::dump(&mut dumping));
    dumped.and(told)?;
    let (mount_ids, contents, of_namespaces) = (dumping.mount_ids, dumping.contents, dumping.shared_pages);
    let mut pids: Vec<i32> = frozen.processes.iter().map(|p| p.pid).collect();
    pids.sort_unstable();
    let with = (pids.as_slice(), pages_ids.clone(), mount_ids, janitor);
    let files = Mutex::new(collector(frozen, images, options, about, with)?);
    let mapped = MappedFiles::default();
    let clocks = Clocks::new(images, about.own.time_ns_id)?;
    let tree = Tree::new((images, &files), options, about, (clocks, pages_ids, &mapped));
    let gathered = tree.write_all(frozen, report)?;
    contents.write(images)?;
    gathered.write(images)?;
    // Readers expect this one even when no file was open.
    images.entry_file(ImageKind::Files, None)?;
    images.write_one(ImageKind::Inventory, None, &inventory(about))?;
    let mut cx = lock(&files);
    cx.finish()?;
    report.shared_pages_scanned = cx.shared_pages().scanned + of_namespaces.scanned;
    report.shared_pages_written = cx.shared_pages().written + of_namespaces.written;
    Ok((cx.take_links(), cx.take_connections()))
}

/// What collects the files of the tree: of processes with these pids, in order; with numbers for their pages, and by the ids
/// of mounts the mount namespaces that they are in.
fn collector<'a>(
    frozen: &Frozen,
    images: &'a DumpDir,
    options: &'a CheckpointOptions,
    about: About<'a>,
    (pids, pages_ids, mount_ids, janitor): (&'a [i32], PagesIds, BTreeMap<i32, u32>, Option<&'a Janitor>),
) -> Result<Collect<'a>> {
    let mut cx = Collect::new(images, options, pids);
    cx.namespaces = Some(about.owned);
    cx.pages_ids = pages_ids;
    cx.precopied = about.precopied;
    cx.surroundings = Some(about.own);
    let free = about.owned.free_number(&frozen.processes, &about.own);
    cx.set_networks(Networks::new(about.owned, about.own.net_ns_id, free));
    cx.janitor = janitor;
    let spoken_for = frozen.processes.iter().filter(|p| p.speaker() != p.pid);
    cx.speakers = spoken_for.map(|p| (p.pid, p.speaker())).collect();
    let mut roots: BTreeMap<u32, Arc<OwnedFd>> = BTreeMap::new();
    for own in about.owned.iter().filter(|own| own.kind.kind == Namespace::Mnt) {
        roots.insert(own.id, Arc::new(namespaces::mount_root(own)?));
    }
    for process in &frozen.processes {
        let Some(ids) = process.ids else { continue };
        let own = about.owned.of(&ids, Namespace::Mnt);
        cx.tell_mounts(&process.task, own.and_then(|own| roots.get(&own.id)).cloned());
    }
    let known = mount_ids.into_iter().filter_map(|(id, number)| Some((id, roots.get(&number)?.clone())));
    cx.tell_mount_ids(known.collect());
    cx.has_sockets = about.has_sockets;
    cx.guard = about.network.guard();
    cx.locked = about.network.ends();
    Ok(cx)
}

fn inventory(about: About<'_>) -> InventoryEntry {
    let mut inventory = InventoryEntry {
        img_version: IMAGE_VERSION,
        fdinfo_per_id: Some(true),
        root_ids: Some(about.own),
        ns_per_id: Some(true),
        root_cg_set: about.cgroups.root(),
        lsmtype: Some(0),
        dump_uptime: Some(uptime_ticks()),
        ..InventoryEntry::default()
    };
    about.network.tell(&mut inventory);
    inventory
}

/// That of an image of memory alone.
pub fn inventory_of_pre_dump() -> InventoryEntry {
    InventoryEntry {
        img_version: IMAGE_VERSION,
        fdinfo_per_id: Some(true),
        ns_per_id: Some(true),
        lsmtype: Some(0),
        dump_uptime: Some(uptime_ticks()),
        ..InventoryEntry::default()
    }
}

/// Time since boot in clock ticks, as /proc/PID/stat counts start times.
fn uptime_ticks() -> u64 {
    let t = clock_gettime(ClockId::Boottime);
    let per_second = rustix::param::clock_ticks_per_second();
    t.tv_sec as u64 * per_second + t.tv_nsec as u64 * per_second / 1_000_000_000
}
