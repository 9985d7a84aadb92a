//! Building open files: what a kind is given when it builds, and what when
//! every process has its descriptors.

use super::ghost::UsedLinks;
use super::socket::{Actors, half_open};
use super::{FileKind, kind_of};
use crate::namespaces::{Mounts, Owned};
use crate::{Error, Object, RestoreOptions, Result};
use cryonaut_image::ImageDir;
use cryonaut_image::records::FileEntry;
use cryonaut_kernel::sys::namespace::{NetworkVisit, visit_network};
use cryonaut_puppet::{Batch, Hand};
use rustix::fs::OFlags;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What building shares: the image, the records, and the files already built.
#[derive(Debug)]
pub struct Build<'a> {
    /// The image.
    pub images: &'a ImageDir,
    /// What the user asked for.
    pub options: &'a RestoreOptions,
    /// Namespaces of the tree that are there already.
    pub namespaces: Owned,
    /// The cgroups of the tree.
    pub cgroups: crate::cgroups::Restoring,
    /// The root process of the tree; 0 before that is known.
    pub root_pid: i32,
    /// The mounts of the tree, where it has namespaces of its own for them.
    pub mounts: Mounts,
    records: &'a BTreeMap<u32, FileEntry>,
    built: HashMap<u32, OwnedFd>,
    underway: Vec<u32>,
    /// What kinds keep between files, by their own key.
    pub kept: HashMap<(&'static str, u64), OwnedFd>,
    /// The inodes of memfds.
    pub memfds: super::memfd::Inodes,
    /// Deleted files that were made again.
    pub(super) ghosts: super::ghost::Haunted,
    /// Segments of System V memory.
    pub(super) sysv: super::sysv::Segments,
    sockets: Option<super::socket::Beside>,
    /// Network namespaces, when they are filled.
    pub networks: crate::namespaces::net::Networks,
    /// Unix sockets that are made and not complete.
    pub(super) unix: Option<super::socket::UnixMaking<'a>>,
    /// Connections of TCP that do not speak yet, by file id.
    pub(super) connections: BTreeMap<u32, super::socket::Connection>,
}

impl<'a> Build<'a> {
    /// Starts with nothing built.
    pub fn new(images: &'a ImageDir, options: &'a RestoreOptions, records: &'a BTreeMap<u32, FileEntry>) -> Self {
        Build {
            images,
            options,
            namespaces: Owned::default(),
            cgroups: Default::default(),
            root_pid: 0,
            mounts: Mounts::default(),
            records,
            built: HashMap::new(),
            underway: Vec::new(),
            kept: HashMap::new(),
            memfds: Default::default(),
            ghosts: Default::default(),
            sysv: Default::default(),
            sockets: None,
            networks: Default::default(),
            unix: None,
            connections: BTreeMap::new(),
        }
    }

    /// The record with this id.
    pub fn record(&self, id: u32) -> Result<&'a FileEntry> {
        self.records.get(&id).ok_or_else(|| Error::bad_image("files.img", format!("no file has the id {id:#x}")))
    }

    /// What is beside the records of sockets; read once.
    pub(super) fn sockets(&mut self) -> Result<&super::socket::Beside> {
        match &mut self.sockets {
            Some(read) => Ok(read),
            unread => Ok(unread.insert(super::socket::Beside::read(self.images)?)),
        }
    }

    /// All records, by id.
    #[must_use]
    pub fn records(&self) -> &'a BTreeMap<u32, FileEntry> {
        self.records
    }

    /// The kind of a record.
    pub fn kind(entry: &FileEntry) -> Result<&'static dyn FileKind> {
        kind_of(entry).ok_or_else(|| {
            Error::unsupported(
                Object::File(entry.id, format!("type {}", entry.r#type)),
                "files of this type cannot be built",
                "",
            )
        })
    }

    /// The open file with this id, built now if it was not yet.
    pub fn file(&mut self, id: u32) -> Result<BorrowedFd<'_>> {
        if !self.built.contains_key(&id) {
            let entry = self.record(id)?;
            if self.underway.contains(&id) {
                return Err(Error::bad_image("files.img", format!("file {id:#x} needs itself to be built")));
            }
            self.underway.push(id);
            let there = self.visit_network(entry)?;
            let file = Self::kind(entry)?.build(self, entry);
            drop(there);
            let file = file?;
            self.underway.pop();
            self.built.insert(id, file);
        }
        Ok(self.built[&id].as_fd())
    }

    /// Goes where a socket is to be made, if that is not where we are.
    pub fn visit_network(&self, entry: &FileEntry) -> Result<Option<NetworkVisit>> {
        let network = match &entry.tunf {
            Some(tun) => tun.ns_id,
            None if super::socket::is_record(entry) => super::socket::recorded_network(entry),
            None => return Ok(None),
        };
        self.visit(network)
    }

    /// Goes to a network namespace of the image, if that is not where we are.
    pub(super) fn visit(&self, network: Option<u32>) -> Result<Option<NetworkVisit>> {
        let Some(there) = self.networks.of(&self.namespaces, network) else { return Ok(None) };
        let failed = |e| Error::kernel(Object::Other("the network namespace of a socket".into()), "enter it", e);
        visit_network(there).map(Some).map_err(failed)
    }

    /// The file with this id opened once more, for a mapping that asks for
    /// other rights than its record has: CRIU writes one record for all the
    /// mappings of a file. `None` if the file itself will do.
    pub fn opened_again(&mut self, id: u32, flags: u32) -> Result<Option<OwnedFd>> {
        let rights = OFlags::RWMODE & OFlags::from_bits_retain(flags);
        let file = self.file(id)?;
        let object = || Object::File(id, "mapped".into());
        let has = rustix::fs::fcntl_getfl(file).map_err(|e| Error::kernel(object(), "ask how it is open", e))?;
        if has & OFlags::RWMODE == rights {
            return Ok(None);
        }
        let first = self.record(id)?.memfd.as_ref().and_then(|memfd| super::memfd::first(self, memfd));
        let again = match first.filter(|_| rights == OFlags::RDWR) {
            Some(first) => first.try_clone_to_owned().map_err(|e| crate::error::errno_of(&e)),
            None => super::regular_path::reopen(self.file(id)?, rights),
        };
        again.map(Some).map_err(|e| Error::kernel(object(), "open it again with the rights of its mapping", e))
    }

    /// All processes exist: what they must make themselves.
    pub fn begin(&mut self, actors: &mut Actors<'_>) -> Result<()> {
        if self.records.values().any(|entry| entry.usk.is_some()) {
            let made = super::socket::make_unix(self, actors)?;
            self.built.extend(made);
        }
        Ok(())
    }

    /// Everything that a process has is built: what needs that.
    pub fn complete(&mut self, actors: &mut Actors<'_>) -> Result<()> {
        super::socket::complete_unix(self, actors)
    }

    /// Puts in a file that another way has built (the other end of a pipe, an
    /// inherited descriptor).
    pub fn put(&mut self, id: u32, file: OwnedFd) {
        self.built.insert(id, file);
    }

    /// For a record without what its type calls for.
    pub(crate) fn lacks(entry: &FileEntry, kind: &str) -> Error {
        Error::bad_image("files.img", format!("file {:#x} is said to be {kind} and has no record of one", entry.id))
    }

    /// The descriptor of ours that the user named for a key such as
    /// `pipe:[1234]`, duplicated; `None` if there is none.
    pub fn inherited(&self, key: &str) -> Result<Option<OwnedFd>> {
        let Some((number, _)) = self.options.inherit_fds.iter().find(|(_, name)| name == key) else {
            return Ok(None);
        };
        let failed = |e| Error::kernel(Object::Other(key.into()), format!("take descriptor {number} in its place"), e);
        let me = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).map_err(failed)?;
        rustix::process::pidfd_getfd(&me, *number, PidfdGetfdFlags::empty()).map(Some).map_err(failed)
    }

    /// The built files, for keeps. What kinds have kept is closed.
    #[must_use]
    pub fn into_built(self) -> HashMap<u32, OwnedFd> {
        self.built
    }

    /// Lets connections speak again.
    pub fn release_connections(&self) -> Result<()> {
        let sockets = self.records.values().filter_map(|entry| entry.isk.as_ref());
        let half_open = if self.connections.is_empty() { HashSet::new() } else { half_open(self.images, sockets)? };
        for (id, connection) in &self.connections {
            if let Some(file) = self.built.get(id) {
                let _there = self.visit_network(self.record(*id)?)?;
                connection.release(file.as_fd(), &half_open)?;
            }
        }
        Ok(())
    }

    /// Everything has its files: what was made only for building goes, but for
    /// links that the image needs until the tree is safe.
    pub fn finish(mut self) -> UsedLinks {
        self.sysv.keep();
        self.ghosts.bury_all();
        self.take_links()
    }

    pub(super) fn take_links(&mut self) -> UsedLinks {
        self.ghosts.take_links()
    }

    /// The built files.
    #[must_use]
    pub fn built(&self) -> &HashMap<u32, OwnedFd> {
        &self.built
    }
}

/// Every process exists and has its descriptors: what a kind may do now.
#[derive(Debug)]
pub struct Settle<'a> {
    /// By which numbers processes know one another in deeper pid namespaces.
    pub numbers: &'a crate::namespaces::pid::Numbers,
    /// What the user asked for.
    pub options: &'a RestoreOptions,
    /// The image.
    pub images: &'a ImageDir,
    /// The hands of all processes, by pid.
    pub hands: &'a mut BTreeMap<i32, Hand>,
    /// Which processes have which file under which number.
    pub places: &'a HashMap<u32, Vec<(i32, i32)>>,
    /// All records.
    pub records: &'a BTreeMap<u32, FileEntry>,
    /// The built files.
    pub built: &'a HashMap<u32, OwnedFd>,
    /// The inodes of memfds.
    pub memfds: &'a super::memfd::Inodes,
}

impl Settle<'_> {
    /// A process that has the file, and its number there.
    #[must_use]
    pub fn holder(&self, id: u32) -> Option<(i32, i32)> {
        self.places.get(&id)?.first().copied()
    }

    /// Runs a batch in a process.
    pub fn run_in(&mut self, pid: i32, batch: &mut Batch) -> Result<()> {
        let hand = self
            .hands
            .get_mut(&pid)
            .ok_or_else(|| Error::bad_image("pstree.img", format!("no process {pid} in the image")))?;
        Ok(hand.run(batch)?)
    }
}

/// Status flags that `F_SETFL` can change (fcntl(2)); the rest is settled at `open`.
const SETTABLE: OFlags = OFlags::APPEND.union(OFlags::NONBLOCK).union(OFlags::DIRECT).union(OFlags::NOATIME);

/// Gives a built file the status flags of its record. `O_ASYNC` is not set
/// here: it needs the owner first.
pub fn apply_status_flags(file: BorrowedFd<'_>, id: u32, flags: u32) -> Result<()> {
    let wanted = OFlags::from_bits_retain(flags) & SETTABLE;
    let failed = |e| Error::kernel(Object::File(id, "status flags".into()), "set its status flags", e);
    let has = rustix::fs::fcntl_getfl(file).map_err(failed)?;
    if has & SETTABLE != wanted {
        rustix::fs::fcntl_setfl(file, (has - SETTABLE) | wanted).map_err(failed)?;
    }
    Ok(())
}
