//! Hierarchies, reached by the mounts that the host has, or else by mounts without a place.
//!
//! One of version 2 that is mounted once more takes the options of that mount, such as `nsdelegate`, and those it had are
//! gone (kernel/cgroup/cgroup.c, apply_cgroup_root_flags); to change `favordynmods` takes a grace period of RCU as well.

use super::CgroupOptions;
use crate::{Error, Object, Result};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::mountinfo::MountInfo;
use rustix::fs::{Mode, OFlags, fstat, major, minor, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What marks the name of a hierarchy without controllers.
const NAMED: &str = "name=";

/// A hierarchy by which directories can be reached.
#[derive(Debug)]
pub struct Hierarchy {
    /// As /proc/PID/cgroup has it: controllers, `name=NAME`, or nothing for version 2.
    pub name: String,
    top: PathBuf,
    _mount: Option<OwnedFd>,
}

impl Hierarchy {
    fn open(name: &str, options: &CgroupOptions, mounts: &[MountInfo]) -> Result<Self> {
        let failed = |e| Error::kernel(Object::Other(described(name)), "reach it (fsopen, fsmount)", e);
        if let Some(yard) = &options.yard {
            let place = if name.is_empty() { "unified" } else { name.strip_prefix(NAMED).unwrap_or(name) };
            return Ok(Hierarchy { name: name.into(), top: yard.join(place), _mount: None });
        }
        let mount = mounted(name, mounts).map_or_else(|| mount(name), Ok).map_err(failed)?;
        let top = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        Ok(Hierarchy { name: name.into(), top, _mount: Some(mount) })
    }

    /// Whether it is that of version 2.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.name.is_empty()
    }

    /// A directory of it, by its path from the top.
    #[must_use]
    pub fn directory(&self, path: &str) -> PathBuf {
        self.top.join(path.trim_start_matches('/'))
    }

    /// The file that takes a process, or one thread of it.
    #[must_use]
    pub fn entrance(&self, path: &str, of_thread: bool) -> PathBuf {
        let file = match (of_thread, self.is_unified()) {
            (false, _) => "cgroup.procs",
            (true, true) => "cgroup.threads",
            (true, false) => "tasks",
        };
        self.directory(path).join(file)
    }
}

/// For messages.
pub fn described(name: &str) -> String {
    if name.is_empty() { "cgroups of version 2".into() } else { format!("cgroups of {name}") }
}

/// The top of one where the host has mounted it.
fn mounted(name: &str, mounts: &[MountInfo]) -> Option<OwnedFd> {
    let here = mounts.iter().filter(|mount| mount.root == Path::new("/") && is_of(mount, name));
    // Another may stand over it.
    here.filter_map(|mount| {
        let top = open(&mount.mount_point, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let stat = fstat(&top).ok()?;
        ((major(stat.st_dev), minor(stat.st_dev)) == mount.dev).then_some(top)
    })
    .next()
}

/// Whether it is a mount of the hierarchy of this name.
fn is_of(mount: &MountInfo, name: &str) -> bool {
    if name.is_empty() {
        return mount.fs_type == b"cgroup2";
    }
    let has = |part: &str| mount.super_options.split(|byte| *byte == b',').any(|option| option == part.as_bytes());
    mount.fs_type == b"cgroup" && name.split(',').all(has)
}

fn mount(name: &str) -> std::result::Result<OwnedFd, Errno> {
    let kind = if name.is_empty() { "cgroup2" } else { "cgroup" };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    match name.strip_prefix(NAMED) {
        _ if name.is_empty() => {}
        Some(named) => {
            fsconfig_set_flag(&context, "none")?;
            fsconfig_set_string(&context, "name", named)?;
        }
        None => name.split(',').try_for_each(|controller| match controller.strip_prefix(NAMED) {
            // One with controllers may have a name as well.
            Some(named) => fsconfig_set_string(&context, "name", named),
            None => fsconfig_set_flag(&context, controller),
        })?,
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Those that have been opened.
#[derive(Debug, Default)]
pub struct Hierarchies {
    open: BTreeMap<String, Hierarchy>,
    /// Mounts of the host, read when the first one is opened.
    mounts: Option<Vec<MountInfo>>,
}

impl Hierarchies {
    /// One by its name.
    pub fn get(&mut self, name: &str, options: &CgroupOptions) -> Result<&Hierarchy> {
        if !self.open.contains_key(name) {
            let read = || Task::current().and_then(|us| us.mountinfo()).unwrap_or_default();
            let hierarchy = Hierarchy::open(name, options, self.mounts.get_or_insert_with(read))?;
            self.open.insert(name.to_owned(), hierarchy);
        }
        Ok(&self.open[name])
    }
}
