//! Reading open files: what a kind is given, and how descriptors that share
//! one open file description are found.

use super::ghost::NewLinks;
use super::socket::{Alike, Asked};
use super::{FileKind, KINDS, regular_path};
use crate::freeze::pid_of;
use crate::memory::PageCount;
use crate::namespaces::{Kind, Owned};
use crate::precopy::Precopied;
use crate::users;
use crate::{CheckpointOptions, Error, Object, Result};
use cryonaut_image::records::{FdTypes, FdinfoEntry, FileEntry, FownEntry, TaskKobjIdsEntry, UnixSkEntry};
use cryonaut_image::{DumpDir, ImageKind};
use cryonaut_kernel::guard::Guard;
use cryonaut_kernel::janitor::Janitor;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::proc::{self, fdinfo::FdInfo};
use cryonaut_kernel::sys::fcntl::{self, OwnerKind};
use cryonaut_kernel::sys::glance::Descriptor;
use cryonaut_kernel::sys::{kcmp, pidfd, unix_waiting};
use cryonaut_page_server::Sender;
use rustix::fs::{FileType, Stat};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// `pid_type` of an owner record: the kernel's `enum pid_type`.
pub(super) const PIDTYPE_PID: u32 = 0;
pub(super) const PIDTYPE_TGID: u32 = 1;
pub(super) const PIDTYPE_PGID: u32 = 2;

/// The number of the first file of pages.
pub const FIRST_PAGES: u32 = 1;

/// Gives out numbers for files of pages, to all who write some; or names the server to which these go instead.
#[derive(Debug, Clone)]
pub struct PagesIds {
    next: Arc<AtomicU32>,
    next_in_layers: Arc<AtomicU32>,
    server: Option<Arc<Sender>>,
}

impl Default for PagesIds {
    fn default() -> Self {
        let first = || Arc::new(AtomicU32::new(FIRST_PAGES));
        PagesIds { next: first(), next_in_layers: first(), server: None }
    }
}

impl PagesIds {
    /// For pages that go to a server, if there is one.
    pub fn with_server(server: Option<Arc<Sender>>) -> Self {
        PagesIds { server, ..PagesIds::default() }
    }

    /// A number that nobody has.
    pub fn new_id(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A number that nobody has in the image's layers (`memory/layers.rs`), which are directories of their own.
    pub fn new_id_in_layers(&self) -> u32 {
        self.next_in_layers.fetch_add(1, Ordering::Relaxed)
    }

    /// To whom the pages go.
    pub fn server(&self) -> Option<&Sender> {
        self.server.as_deref()
    }
}

/// An open file of a frozen process.
#[derive(Debug)]
pub struct OpenFile<'a> {
    /// The process that has it.
    pub pid: i32,
    /// The thread of it by whose id the kernel is asked: [`crate::freeze::Process::speaker`].
    pub speaker: i32,
    /// Its number there.
    pub fd: i32,
    /// Our own descriptor of the same open file description.
    pub file: BorrowedFd<'a>,
    /// `fstat` of it.
    pub stat: Stat,
    /// Where `/proc/PID/fd/N` points: a path, or `pipe:[...]`, `anon_inode:...`.
    pub link: OsString,
    /// `/proc/PID/fdinfo/N`.
    pub info: FdInfo,
    /// The process's directory in /proc.
    pub task: &'a proc::Task,
    /// What a socket has answered already.
    pub asked: Asked,
    /// The Unix socket to which it is on its way in a message, by inode number: the process that has it is ourselves.
    pub carrier: Option<u32>,
}

impl OpenFile<'_> {
    /// For messages.
    #[must_use]
    pub fn object(&self) -> Object {
        let link = self.link.to_string_lossy();
        match self.carrier {
            Some(inode) => Object::Other(format!("{link}, on its way to socket:[{inode}] in a message (SCM_RIGHTS)")),
            None => Object::Descriptor(self.pid, self.fd, link.into_owned()),
        }
    }

    /// The link as bytes.
    #[must_use]
    pub fn link_bytes(&self) -> &[u8] {
        std::os::unix::ffi::OsStrExt::as_bytes(self.link.as_os_str())
    }

    /// The name behind `anon_inode:`, without brackets.
    #[must_use]
    pub fn anon_inode(&self) -> Option<&[u8]> {
        let name = self.link_bytes().strip_prefix(b"anon_inode:")?;
        Some(name.strip_prefix(b"[").and_then(|n| n.strip_suffix(b"]")).unwrap_or(name))
    }

    /// Whether it is a socket: the name of one can be opened for its path alone.
    #[must_use]
    pub fn is_socket(&self) -> bool {
        is_socket(&self.stat, &self.info)
    }

    /// The open flags without close-on-exec, which belongs to the descriptor.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.info.flags & !(libc::O_CLOEXEC as u32)
    }

    /// For a file that turned out not to be of the kind that recognised it.
    #[must_use]
    pub(crate) fn unexpected(&self, kind: &str) -> Error {
        Error::unsupported(self.object(), format!("looked like {kind} and is none"), "")
    }

    /// Who gets the signals of this file, and which (`F_SETOWN`, `F_SETSIG`).
    /// Zeros if nobody.
    pub fn owner(&self) -> Result<FownEntry> {
        let failed = |errno| Error::kernel(self.object(), "read its signal owner", errno);
        // An O_PATH descriptor has no owner, and fcntl refuses to tell.
        if self.flags() & libc::O_PATH as u32 != 0 || self.asked.seen().is_some_and(|seen| !seen.may_have_owner()) {
            return Ok(FownEntry::default());
        }
        let owner = fcntl::getown_ex(self.file).map_err(failed)?;
        let mut entry = FownEntry { signum: fcntl::getsig(self.file).map_err(failed)? as u32, ..FownEntry::default() };
        if owner.pid != 0 {
            let (uid, euid) = fcntl::getowner_uids(self.file).map_err(failed)?;
            entry.uid = users::user_inside(uid);
            entry.euid = users::user_inside(euid);
            entry.pid_type = match owner.kind {
                OwnerKind::Thread => PIDTYPE_PID,
                OwnerKind::Process => PIDTYPE_TGID,
                OwnerKind::Group => PIDTYPE_PGID,
            };
            entry.pid = owner.pid as u32;
        }
        Ok(entry)
    }
}

fn is_socket(stat: &Stat, info: &FdInfo) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Socket && info.flags & libc::O_PATH as u32 == 0
}

/// A descriptor of a frozen process, and what can be said of it without knowing the others.
#[derive(Debug)]
pub struct HeldFile {
    fd: i32,
    file: OwnedFd,
    stat: Stat,
    info: FdInfo,
    asked: Asked,
    /// The address of its open file description, if it is known.
    address: Option<u64>,
}

impl HeldFile {
    /// Reads about `fd` of a process; `file` is our own descriptor of the same. `alike`: what was seen of the process.
    pub fn read(task: &proc::Task, pid: i32, fd: i32, file: OwnedFd, alike: Option<&Alike>) -> Result<HeldFile> {
        let stat = rustix::fs::fstat(&file)
            .map_err(|e| Error::kernel(Object::Descriptor(pid, fd, String::new()), "stat it", e))?;
        if let Some((info, asked)) = alike.and_then(|alike| alike.answers(fd)) {
            return Ok(HeldFile { fd, file, stat, info, asked, address: None });
        }
        let info = task.fdinfo(fd)?;
        let glance = || alike.and_then(|alike| alike.glance(fd));
        let asked = if is_socket(&stat, &info) { Asked::of(file.as_fd(), glance()) } else { Asked::default() };
        Ok(HeldFile { fd, file, stat, info, asked, address: None })
    }

    /// The same, with the address of its open file description.
    #[must_use]
    pub fn at(self, address: Option<u64>) -> HeldFile {
        HeldFile { address, ..self }
    }

    /// What it has answered, if it is a socket.
    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Our own descriptor of it.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn is_socket(&self) -> bool {
        is_socket(&self.stat, &self.info)
    }

    pub(super) fn inode(&self) -> u64 {
        self.stat.st_ino
    }
}

/// What collecting shares: the image, the ids given out, what was seen.
#[derive(Debug)]
pub struct Collect<'a> {
    /// Where records go.
    pub images: &'a DumpDir,
    /// What the user asked for.
    pub options: &'a CheckpointOptions,
    /// The pids of the frozen tree, ascending.
    pub pids: &'a [i32],
    /// Who removes what is made outside of the image, should we be killed.
    pub janitor: Option<&'a Janitor>,
    /// Who puts connections right, should we be killed.
    pub guard: Option<&'a Guard>,
    /// The ends of connections whose packets are seen to, if any are.
    pub locked: Option<&'a HashSet<(SocketAddr, SocketAddr)>>,
    /// The namespaces that we do not share with the tree.
    pub namespaces: Option<&'a Owned>,
    /// Whether sockets were met before, and what looks at many of them was got ready.
    pub has_sockets: bool,
    /// By whose id the kernel is asked about a process, where that is not its own.
    pub speakers: BTreeMap<i32, i32>,
    next_id: u32,
    /// Numbers for files of pages.
    pub pages_ids: PagesIds,
    /// What was copied while the tree ran.
    pub precopied: Option<&'a Precopied<'a>>,
    /// Records of Unix sockets, which are written in the end and the last first: of a pair that has duplicates, CRIU's
    /// restore needs to see the end with the higher number before the other.
    late: Vec<FileEntry>,
    seen: HashMap<(u64, u64, u64, u32), Vec<Seen>>,
    /// Those among them whose addresses are known.
    addresses: HashMap<u64, (u32, FdTypes)>,
    /// Files that no process has but for a message, which later ones are compared with.
    on_their_way: Vec<OwnedFd>,
    /// Everything that kinds remember between files, by their own key.
    pub notes: HashMap<(&'static str, u64), u32>,
    /// Files recorded by their path alone, and deleted ones.
    pub(super) regular: super::regular::Known,
    /// Memfds by device and inode number: their ids in memfd.img.
    pub(super) memfds: HashMap<(u64, u64), u32>,
    /// Pages of memfds and shared memory written.
    pub(super) shared_pages: PageCount,
    /// Locks written down.
    pub(super) locks: super::locks::Noted,
    /// Segments of System V memory.
    pub(super) sysv: super::sysv::Known,
    /// What is known of sockets.
    pub(super) sockets: super::socket::Known,
    /// The ids of namespaces that are not the tree's.
    pub surroundings: Option<TaskKobjIdsEntry>,
    /// Network namespaces.
    pub(super) networks: super::socket::Networks<'a>,
}

#[derive(Debug)]
struct Seen {
    speaker: i32,
    fd: i32,
    id: u32,
    fd_type: FdTypes,
    address: Option<u64>,
}

impl<'a> Collect<'a> {
    /// Starts with nothing seen.
    pub fn new(images: &'a DumpDir, options: &'a CheckpointOptions, pids: &'a [i32]) -> Self {
        Collect {
            images,
            options,
            pids,
            janitor: None,
            guard: None,
            locked: None,
            namespaces: None,
            has_sockets: false,
            speakers: BTreeMap::new(),
            next_id: 1,
            pages_ids: PagesIds::default(),
            precopied: None,
            late: Vec::new(),
            seen: HashMap::new(),
            addresses: HashMap::new(),
            on_their_way: Vec::new(),
            notes: HashMap::new(),
            regular: Default::default(),
            memfds: HashMap::new(),
            shared_pages: PageCount::default(),
            locks: Default::default(),
            sysv: Default::default(),
            sockets: Default::default(),
            surroundings: None,
            networks: Default::default(),
        }
    }

    /// The thread by whose id the kernel is asked about a process of the tree.
    #[must_use]
    pub fn speaker(&self, pid: i32) -> i32 {
        self.speakers.get(&pid).copied().unwrap_or(pid)
    }

    /// Takes note of what file systems a process sees: those below a root, or ours.
    pub fn tell_mounts(&mut self, task: &proc::Task, root: Option<Arc<OwnedFd>>) {
        self.regular.mounts.tell(task, root.map_or(regular_path::Seen::Ours, regular_path::Seen::Below));
    }

    /// The mount of an open file, if it is one of the tree's own namespaces; else -1.
    pub(super) fn mount_of(&self, file: BorrowedFd<'_>) -> std::result::Result<i32, rustix::io::Errno> {
        self.regular.mounts.id_of(file)
    }

    /// Takes note of the mounts of the tree's own namespaces, by their ids, with the root of the namespace of each.
    pub fn tell_mount_ids(&mut self, ids: BTreeMap<i32, Arc<OwnedFd>>) {
        self.regular.mounts.of_tree = ids;
    }

    /// Hands over the temporary names that deleted files were given.
    pub fn take_links(&mut self) -> NewLinks {
        self.regular.ghosts.take_links()
    }

    /// Hands over the connections that were written down.
    pub fn take_connections(&mut self) -> super::socket::Held {
        self.sockets.take_held()
    }

    /// Writes what was gathered from all files.
    pub fn finish(&mut self) -> Result<()> {
        super::sysv::finish(self)?;
        super::socket::finish_unix(self)?;
        let mut late = std::mem::take(&mut self.late);
        late.reverse();
        super::socket::sort_unix(&mut late);
        for entry in late {
            self.images.append(ImageKind::Files, None, &entry, None)?;
        }
        if let Some(owned) = self.namespaces {
            for own in self.networks.found() {
                crate::namespaces::net::dump_found(self.images, self.options, own, owned)?;
            }
        }
        self.sockets.write(self.images)
    }

    /// Changes the record of a Unix socket that was collected, by its inode number.
    pub(super) fn unix_record(&mut self, inode: u32, change: impl FnOnce(&mut UnixSkEntry)) {
        let mut records = self.late.iter_mut().filter_map(|entry| entry.usk.as_mut());
        if let Some(record) = records.find(|record| record.ino == inode) {
            change(record);
        }
    }

    /// Pages of memfds and shared memory written so far.
    pub fn shared_pages(&self) -> PageCount {
        self.shared_pages
    }

    /// A file id that nobody has.
    pub fn new_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Does for some descriptors at a time what takes less time so: [`Collect::descriptor`] of each is to follow.
    pub fn some(&mut self, held: &[HeldFile]) {
        super::socket::look_inside(self, held);
        super::socket::take_apart(self, held);
    }

    /// The line of a descriptor for the process's table if its file was collected before and there is no more to say of it.
    #[must_use]
    pub fn known(&self, descriptor: &Descriptor) -> Option<FdinfoEntry> {
        let known = self.addresses.get(&descriptor.file).filter(|_| !descriptor.may_have_locks)?;
        Some(line(descriptor.fd, *known, descriptor.closes_on_exec))
    }

    /// Collects one descriptor of a process and returns its line for the
    /// process's descriptor table.
    pub fn descriptor(&mut self, task: &proc::Task, pid: i32, held: HeldFile) -> Result<FdinfoEntry> {
        let HeldFile { fd, file, stat, info, asked, address } = held;
        let cloexec = info.flags & libc::O_CLOEXEC as u32 != 0;
        let (file, link, speaker) = (file.as_fd(), OsString::new(), self.speaker(pid));
        let mut open = OpenFile { pid, speaker, fd, file, stat, link, info, task, asked, carrier: None };
        Ok(line(fd, self.identify(&mut open, address)?, cloexec))
    }

    /// Collects a file that is on its way to a Unix socket, by our own duplicate of it; its id. To be called when those
    /// of all processes are known: it may be one of them.
    pub(super) fn on_its_way(&mut self, file: OwnedFd, carrier: u32) -> Result<u32> {
        let (task, pid) = (proc::Task::current()?, rustix::process::getpid().as_raw_nonzero().get());
        let HeldFile { fd, file, stat, info, asked, address } =
            HeldFile::read(&task, pid, file.as_raw_fd(), file, None)?;
        let (link, carrier) = (OsString::new(), Some(carrier));
        let known = self.next_id;
        let (speaker, own) = (pid, file.as_fd());
        let mut open = OpenFile { pid, speaker, fd, file: own, stat, link, info, task: &task, asked, carrier };
        let (id, _) = self.identify(&mut open, address)?;
        if id >= known {
            self.on_their_way.push(file);
        }
        Ok(id)
    }

    /// A duplicate of the open file at this address of the kernel, if a process that was looked at has it.
    pub(super) fn held_anywhere(&self, file: u64) -> Result<Option<OwnedFd>> {
        let what = || Object::Other("a descriptor that is on its way".into());
        let mut speakers: Vec<i32> = self.seen.values().flatten().map(|seen| seen.speaker).collect();
        speakers.sort_unstable();
        speakers.dedup();
        for speaker in speakers {
            let all = unix_waiting::holdings(speaker);
            let all = all.map_err(|e| Error::kernel(what(), "see who has it", e))?;
            if let Some((_, fd)) = all.into_iter().find(|(held, _)| *held == file) {
                let process = pidfd::open_thread(pid_of(speaker)?);
                let taken = process.and_then(|process| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()));
                return taken.map(Some).map_err(|e| Error::kernel(what(), "duplicate it", e));
            }
        }
        Ok(None)
    }

    /// The id of an open file, which is written down if it was not yet.
    fn identify(&mut self, open: &mut OpenFile<'_>, address: Option<u64>) -> Result<(u32, FdTypes)> {
        let seen = self.find_seen(open, address)?;
        if seen.is_none() || !open.info.locks.is_empty() {
            open.link = match open.is_socket() {
                true => format!("socket:[{}]", open.stat.st_ino).into(),
                false => open.task.link(&format!("fd/{}", open.fd))?.into_os_string(),
            };
        }
        let known = match seen {
            Some(known) => known,
            None => self.collect_new(open, address)?,
        };
        super::locks::collect(self, open, known.0)?;
        Ok(known)
    }

    fn key(open: &OpenFile<'_>) -> (u64, u64, u64, u32) {
        (open.stat.st_dev, open.stat.st_ino, open.info.pos as u64, open.flags())
    }

    /// Whether the same open file description was seen under another number
    /// or in another process: by its address, or else by kcmp(2).
    fn find_seen(&self, open: &OpenFile<'_>, address: Option<u64>) -> Result<Option<(u32, FdTypes)>> {
        if let Some(known) = address.and_then(|address| self.addresses.get(&address)) {
            return Ok(Some(*known));
        }
        let alike = self.seen.get(&Self::key(open)).into_iter().flatten();
        for seen in alike.filter(|seen| seen.address.is_none() || address.is_none()) {
            let order = kcmp::file(pid_of(seen.speaker)?, seen.fd, pid_of(open.speaker)?, open.fd)
                .map_err(|e| Error::kernel(open.object(), "compare it with other descriptors (kcmp)", e))?;
            if order.is_eq() {
                return Ok(Some((seen.id, seen.fd_type)));
            }
        }
        Ok(None)
    }

    /// Writes a file down; a socket in its own network namespace.
    fn collect_there(&mut self, kind: &dyn FileKind, open: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        if !open.is_socket() {
            return kind.collect(self, open, id);
        }
        let network = self.networks.of_socket(open)?;
        let visit = self.networks.visit(&mut self.sockets, network)?;
        let collected = kind.collect(self, open, id);
        self.networks.leave(&mut self.sockets, network, visit);
        let mut entry = collected?;
        if self.networks.has_others() {
            super::socket::tell_network(&mut entry, network.or(self.networks.own()));
        }
        Ok(entry)
    }

    /// The network namespace of a file of a tun device, by its number; `None` if all are in ours.
    pub fn network_of(&mut self, open: &OpenFile<'_>) -> Result<Option<u32>> {
        let network = self.networks.of_file(open)?;
        Ok(network.or(self.networks.own().filter(|_| self.networks.has_others())))
    }

    /// The number of the namespace that an open file is; `None` if it is neither one of the tree's nor ours.
    pub fn namespace_of(&mut self, kind: &Kind, open: &OpenFile<'_>) -> Result<Option<u32>> {
        let failed = |e| Error::kernel(open.object(), "compare it with those of the tree", e);
        let of_tree = self.namespaces.map(|owned| owned.with_inode(kind.kind, open.stat.st_ino)).transpose();
        if let Some(own) = of_tree.map_err(failed)?.flatten() {
            return Ok(Some(own.id));
        }
        let ours = proc::Task::current()?.namespace(kind.kind)?;
        if ours == Some(open.stat.st_ino) {
            return Ok(self.surroundings.and_then(|ids| (kind.id)(&ids)));
        }
        if kind.kind == Namespace::Net { self.networks.of_opened(open).map(Some) } else { Ok(None) }
    }

    /// Tells of the network namespaces of the tree.
    pub fn set_networks(&mut self, networks: super::socket::Networks<'a>) {
        self.networks = networks;
    }

    fn collect_new(&mut self, open: &OpenFile<'_>, address: Option<u64>) -> Result<(u32, FdTypes)> {
        let Some(kind) = KINDS.iter().copied().find(|k| k.recognises(open)) else {
            let unknown = || {
                let reason = "this kind of file cannot be carried";
                Error::unsupported(open.object(), reason, "close it before the checkpoint")
            };
            return Err(super::socket::refusal(open).unwrap_or_else(unknown));
        };
        let id = self.new_id();
        let entry = self.collect_there(kind, open, id)?;
        let fd_type = kind.fd_type();
        match fd_type {
            FdTypes::Unixsk => self.late.push(entry),
            _ => self.images.append(ImageKind::Files, None, &entry, None)?,
        }
        let seen = Seen { speaker: open.speaker, fd: open.fd, id, fd_type, address };
        self.seen.entry(Self::key(open)).or_default().push(seen);
        self.addresses.extend(address.map(|address| (address, (id, fd_type))));
        Ok((id, fd_type))
    }
}

/// A line of a descriptor table.
fn line(fd: RawFd, (id, fd_type): (u32, FdTypes), closes_on_exec: bool) -> FdinfoEntry {
    let (flags, r#type) = (u32::from(closes_on_exec), fd_type as i32);
    FdinfoEntry { id, flags, r#type, fd: fd as u32, xattr_security_selinux: None }
}
