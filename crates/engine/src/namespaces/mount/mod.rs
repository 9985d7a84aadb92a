//! Mount namespaces (mount_namespaces(7)): their mounts as `mountpoints-ID.img`, what is in file systems in memory, and
//! all of it again.
//!
//! The first namespace of a tree gets the directory that the caller names (`--root`) as its root; everything else is made
//! anew, cloned from what is there, or named by the caller ([`external`]).

pub mod bound;
mod build;
mod built;
mod contents;
mod external;
mod filesystem;
mod make;
mod paths;
mod plan;
mod reveal;
mod table;

pub use build::build;
pub use built::Built;

use super::{Dumping, Halves, Own};
use crate::freeze::Process;
use crate::users;
use crate::{Error, Object, Result, parallel};
use cryonaut_image::records::MntEntry;
use cryonaut_image::{DumpDir, ImageKind};
use cryonaut_kernel::Errno;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::mountinfo::{self, MountInfo};
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::mount::IdMap;
use cryonaut_kernel::sys::namespace::within;
use external::Externals;
use filesystem::Making;
use plan::{Origin, Plan};
use rustix::fs::{FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub const HALVES: Halves = Halves { dump, build, at_birth: true };

/// What the format has no place for: `cryonaut-mounts-ID.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Beside {
    /// By which maps mounts show owners, by mount id.
    id_maps: BTreeMap<u32, (IdMap, IdMap)>,
    /// Roots that have been removed, by mount id.
    removed: BTreeMap<u32, Removed>,
    /// Where the checkpoint saw the root of the namespace, if it did.
    root: Option<String>,
    /// By device: the pid namespace that a proc file system is of, if that is not the one of who has the mounts.
    #[serde(default)]
    pids: BTreeMap<u32, u32>,
    /// Whether no process is in the namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    without_processes: bool,
    /// What mounts of namespaces show, by mount id: the kind, as clone(2) has it, and the number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    namespaces: BTreeMap<u32, (u32, u32)>,
}

impl Beside {
    fn name(namespace: u32) -> String {
        format!("mounts-{namespace}")
    }
}

/// A file or directory that has been removed and is still mounted.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Removed {
    mode: u32,
    uid: u32,
    gid: u32,
}

/// What was read in a namespace.
struct Told {
    mounts: Vec<MountInfo>,
    beside: Beside,
    /// Devices of proc file systems, and the inodes of their pid namespaces.
    procs: BTreeMap<u32, u64>,
}

/// Writes down all mount namespaces, when it comes to the first of them: which mounts are parts of others, only all tell.
fn dump(cx: &mut Dumping<'_>, own: &Own) -> Result<()> {
    let all: Vec<&Own> = cx.owned.iter().filter(|one| one.kind.kind == Namespace::Mnt).collect();
    if all.first().is_none_or(|first| first.id != own.id) {
        return Ok(());
    }
    let ours = Task::current()?.mountinfo()?;
    let externals = Externals::of(&cx.options.external);
    let mut tables: Vec<(u32, Vec<MntEntry>)> = Vec::new();
    for own in &all {
        let mut told = read(cx, own, &ours)?;
        table::leave_out(&mut told.mounts, &cx.options.skip_mounts);
        let mut entries = table::record_all(&told.mounts, &ours, &externals)?;
        if let Some((_, first)) = tables.first() {
            table::forget_namesakes(&mut entries, first);
        }
        let task = Task::open(crate::freeze::pid_of(own.pid)?)?;
        table::tell_owners_from_inside(&mut entries, &task.uid_map()?, &task.gid_map()?);
        let seen = told.mounts.iter().find(|mount| paths::of(&mount.mount_point) == b"/");
        let root = seen.and_then(|mount| external::seen_by_us(mount, &ours)).map(|(path, _)| path);
        let root = root.and_then(|path| String::from_utf8(path).ok()).filter(|path| path != "/");
        let namespaces = bound::numbers(&entries, cx.owned, cx.surroundings)?;
        let is_in_it = |process: &Process| process.ids.and_then(|ids| ids.mnt_ns_id) == Some(own.id);
        let without_processes = !cx.processes.iter().any(is_in_it);
        let pids = pids_of(cx, own, &told.procs)?;
        let beside = Beside { root, pids, namespaces, without_processes, ..told.beside };
        cx.images.write_json(&Beside::name(own.id), &beside)?;
        for entry in &entries {
            cx.images.append(ImageKind::Mnts, u64::from(own.id), entry, None)?;
        }
        cx.mount_ids.extend(entries.iter().map(|entry| (entry.mnt_id.cast_signed(), own.id)));
        tables.push((own.id, entries));
    }
    let plan = Plan::of(tables, None)?;
    refuse_outsiders(&plan, &ours)?;
    for (index, own) in all.iter().enumerate() {
        let within = view_of(cx, own).into_iter().map(|file| rustix::io::fcntl_dupfd_cloexec(file, 0));
        let within = within.collect::<std::result::Result<_, _>>().map_err(own.failed("duplicate its file"))?;
        cx.contents.of.push((own.object(), within, held(&plan, index)));
    }
    Ok(())
}

/// What is in file systems in memory. It is written when all files have been: they may have got temporary names there.
#[derive(Debug, Default)]
pub struct Contents {
    /// By namespace: what it is, the namespaces in which to look, and the file systems.
    of: Vec<(Object, Vec<OwnedFd>, BTreeSet<u32>)>,
}

impl Contents {
    /// Writes it.
    pub fn write(self, images: &DumpDir) -> Result<()> {
        for (object, files, devs) in self.of.into_iter().filter(|(.., devs)| !devs.is_empty()) {
            let me = Task::current()?;
            let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
            // The last of them is the mount namespace.
            let Some(namespace) = files.last() else { continue };
            let shown = within(&files, || reveal::tops(me.dir().as_fd(), *namespace, &devs)).and_then(|shown| shown);
            let shown = shown.map_err(|e| Error::kernel(object, "see what its file systems in memory hold", e))?;
            let written = parallel::map(shown.iter().collect(), |(dev, tops)| contents::write(images, *dev, tops));
            parallel::aside(|| drop(shown));
            written.into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }
}

/// The root of a mount namespace.
pub fn root_of(own: &Own) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = within(&[own.file.as_fd()], || rustix::fs::open("/", flags, Mode::empty()));
    root.and_then(|root| root).map_err(own.failed("open its root"))
}

/// Mounts of the caller's thread; `proc` is the directory of this process in /proc, for that of the caller may be another.
fn mounts_here(proc: BorrowedFd<'_>) -> std::result::Result<Vec<MountInfo>, Errno> {
    let tid = rustix::thread::gettid().as_raw_nonzero();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, format!("task/{tid}/mountinfo"), flags, Mode::empty())?;
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut text).map_err(|e| crate::error::errno_of(&e))?;
    mountinfo::parse(&text).map_err(|_| Errno::INVAL)
}

/// The namespaces in which the paths and roots of mounts are as the tree sees them.
fn view_of<'a>(cx: &'a Dumping<'_>, own: &'a Own) -> Vec<BorrowedFd<'a>> {
    let ids = cx.processes.iter().find(|process| process.pid == own.pid).and_then(|process| process.ids.as_ref());
    let cgroup = ids.map(|ids| cx.owned.files_of(ids, &[Namespace::Cgroup])).unwrap_or_default();
    // The other one first: files of namespaces are not found any more when we are in another mount namespace.
    cgroup.into_iter().chain([own.file.as_fd()]).collect()
}

fn read(cx: &Dumping<'_>, own: &Own, ours: &[MountInfo]) -> Result<Told> {
    let me = Task::current()?;
    let told = within(&view_of(cx, own), || -> std::result::Result<Told, Errno> {
        let mounts = mounts_here(me.dir().as_fd())?;
        let (mut beside, mut procs) = (Beside::default(), BTreeMap::new());
        let is_ours = |mount: &MountInfo| ours.iter().any(|one| one.dev == mount.dev);
        for mount in &mounts {
            let idmapped = reveal::is_idmapped(mount);
            let removed = paths::of(&mount.root).ends_with(table::DELETED);
            if mount.fs_type == b"proc" && !is_ours(mount) {
                procs.extend(pid_namespace(mount)?.map(|inode| (table::kernel_dev(mount.dev), inode)));
            }
            if !idmapped && !removed {
                continue;
            }
            let open = rustix::fs::open(&mount.mount_point, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            if idmapped && !is_ours(mount) {
                let maps = cryonaut_kernel::sys::mount::id_maps(open.as_fd())?;
                beside.id_maps.insert(mount.id.cast_unsigned(), maps);
            }
            if removed {
                let stat = rustix::fs::fstat(&open)?;
                let (uid, gid) = users::inside((stat.st_uid, stat.st_gid));
                let told = Removed { mode: stat.st_mode, uid, gid };
                let full = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size != 0;
                beside.removed.insert(mount.id.cast_unsigned(), told);
                if full {
                    return Err(Errno::NOTSUP);
                }
            }
        }
        Ok(Told { mounts, beside, procs })
    });
    told.and_then(|told| told).map_err(own.failed("read its mounts"))
}

/// The pid namespace that a proc file system is of, by the mount that is seen in its place; its inode, if that shows it
/// whole, and if the namespace has an init.
fn pid_namespace(mount: &MountInfo) -> std::result::Result<Option<u64>, Errno> {
    let top = rustix::fs::open(&mount.mount_point, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let top = match top {
        // It is hidden below others.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        top => top?,
    };
    let dev = rustix::fs::fstat(&top)?.st_dev;
    if (rustix::fs::major(dev), rustix::fs::minor(dev)) != mount.dev || paths::of(&mount.root) != b"/" {
        return Ok(None);
    }
    let link = match rustix::fs::readlinkat(&top, c"1/ns/pid", Vec::new()) {
        // Or it is one whose init we may not look at, of the surroundings.
        Err(Errno::NOENT | Errno::ACCESS) => return Ok(None),
        link => link?,
    };
    let number = link.to_str().ok().and_then(|link| link.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok());
    number.map(Some).ok_or(Errno::BADMSG)
}

/// The numbers of the pid namespaces of proc file systems, but for that of who has the mounts.
fn pids_of(cx: &Dumping<'_>, own: &Own, procs: &BTreeMap<u32, u64>) -> Result<BTreeMap<u32, u32>> {
    if procs.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids = cx.processes.iter().filter_map(|process| Some((process.namespaces.pid()?, process.ids?.pid_ns_id?)));
    let known: BTreeMap<u64, u32> = ids.collect();
    let of_maker = Task::open(crate::freeze::pid_of(own.pid)?)?.namespace(Namespace::Pid)?;
    let others = procs.iter().filter(|(_, inode)| Some(**inode) != of_maker);
    Ok(others.filter_map(|(dev, inode)| Some((*dev, *known.get(inode)?))).collect())
}

/// What sends mounts to us, or gets them from us, and is not said to be from outside: it would be on its own afterwards.
fn refuse_outsiders(plan: &Plan, ours: &[MountInfo]) -> Result<()> {
    let shares = |entry: &&MntEntry| {
        entry.shared_id() != 0
            && entry.ext_key.is_none()
            && ours.iter().any(|one| one.shared == Some(entry.shared_id()))
    };
    match plan.entries.iter().find(shares) {
        None => Ok(()),
        Some(entry) => Err(Error::unsupported(
            table::object(entry),
            "it shares what is mounted on it with our own mount namespace, and is none that comes from there",
            "name it with --external mnt[MOUNTPOINT]:NAME, or let such be found out with --external mnt[]:s",
        )),
    }
}

/// The file systems in memory that come from this namespace.
fn held(plan: &Plan, index: usize) -> BTreeSet<u32> {
    let is_held = |provider: &&plan::Provider| {
        let Origin::New(entry) = provider.origin else { return false };
        provider.with == index && plan::type_of(&plan.entries[entry]).is_some_and(|fs| fs.making == Making::Filled)
    };
    plan.providers.iter().filter(is_held).map(|provider| provider.dev).collect()
}
