//! `/proc/PID`: the kernel's own description of a process, as typed values.
//!
//! [`Task`] holds the directory of one process or thread open and reads files relative to it. When the
//! process dies every later read fails with ESRCH or ENOENT, also when its pid has been given to another:
//! what two reads of one `Task` say is always about the same process.
//!
//! Each file's format has a module of its own with a parser on bytes (`parse`, no I/O) and the types it fills.
//! Pids, tids and ids in the results are those of the pid and user namespace of the reader.

pub mod fdinfo;
pub mod locks;
pub mod maps;
pub mod mountinfo;
pub mod sockstat;
pub mod stat;
pub mod status;
mod text;
pub mod timers;
pub mod values;

use std::borrow::Cow;
use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::Pid;

pub use text::Malformed;

/// Why a file of /proc gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused. ESRCH or ENOENT mostly mean that the process has gone.
    #[error("cannot {action} {path}: {errno}")]
    Io { action: &'static str, path: String, errno: Errno },
    /// The file was read but not understood.
    #[error("{path}: {problem}")]
    Malformed { path: String, problem: Malformed },
}

impl Error {
    /// The kernel's answer, where it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { errno, .. } => Some(*errno),
            Self::Malformed { .. } => None,
        }
    }

    /// What the user can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Io { errno: Errno::SRCH | Errno::NOENT, .. } => {
                "the process has ended, or this kernel was built without this file"
            }
            Self::Io { errno: Errno::ACCESS | Errno::PERM, .. } => {
                "run as the owner of the process or with CAP_SYS_PTRACE (CAP_CHECKPOINT_RESTORE for some files)"
            }
            Self::Io { errno: Errno::MFILE | Errno::NFILE, .. } => "raise the limit of open files (ulimit -n)",
            Self::Io { .. } => "check that /proc is mounted and is that of this pid namespace",
            Self::Malformed { .. } => "this kernel writes the file in a form not known here: please report the line",
        }
    }
}

/// What reading a file of /proc answers.
pub type Result<T> = std::result::Result<T, Error>;

/// The root of the proc file system that is read in the place of `/proc`.
static ROOT: OnceLock<OwnedFd> = OnceLock::new();

/// From now on, everything here reads a proc file system of the pid namespace that this process is in, mounted nowhere:
/// `/proc` is that of whoever has mounted it. Once in the life of a process, before anything has been read that is to be
/// compared. Needs CAP_SYS_ADMIN.
pub fn read_own_namespace() -> std::result::Result<(), Errno> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let root = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    ROOT.set(root).map_err(|_| Errno::ALREADY)
}

/// Opens a file by its name below `/proc`, such as `1/oom_score_adj`; close-on-exec is added to `flags`. What begins
/// with `self`, `sys` or `net` may as well be opened by its whole path: it is the same in all.
pub fn open(name: &str, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    let opened = match ROOT.get() {
        Some(root) => rustix::fs::openat(root, name, flags, Mode::empty()),
        None => rustix::fs::open(format!("/proc/{name}"), flags, Mode::empty()),
    };
    opened.map_err(|errno| Error::Io { action: "open", path: format!("/proc/{name}"), errno })
}

/// The directory of one process (`/proc/PID`), held open, or of one of its threads below it
/// (`/proc/PID/task/TID`). A thread's id may be given to another thread of the same process.
#[derive(Debug, Clone)]
pub struct Task {
    dir: Arc<OwnedFd>,
    path: String,
    /// Where in `path` the names begin that are looked up below `dir`, if it is a thread's.
    below: Option<usize>,
}

impl Task {
    /// Opens `/proc/PID`. A thread that is not its group's leader can be opened this way as well.
    pub fn open(pid: Pid) -> Result<Self> {
        Self::open_path(&pid.as_raw_nonzero().to_string())
    }

    /// Opens the directory of the calling process.
    pub fn current() -> Result<Self> {
        Self::open_path("self")
    }

    /// The calling thread, which may be in other namespaces than the rest of this process.
    pub fn current_thread() -> Result<Self> {
        Self::open_path("thread-self")
    }

    fn open_path(name: &str) -> Result<Self> {
        let dir = open(name, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(Self { dir: Arc::new(dir), path: format!("/proc/{name}"), below: None })
    }

    /// One of this process' threads. Nothing is opened: a thread that is not there fails at the first reading.
    #[must_use]
    pub fn thread(&self, tid: Pid) -> Self {
        let path = format!("{}/task/{}", self.path, tid.as_raw_nonzero());
        Self { dir: self.dir.clone(), path, below: Some(self.path.len() + 1) }
    }

    /// The process' directory, for the `*at` calls (O_PATH).
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The directory's path, for messages only: it may by now name another process.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A file's name as it is looked up below `dir`.
    fn name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        match self.below {
            None => Cow::Borrowed(name),
            Some(skip) => Cow::Owned(format!("{}/{name}", &self.path[skip..])),
        }
    }

    fn io(&self, action: &'static str, name: &str, errno: Errno) -> Error {
        Error::Io { action, path: format!("{}/{name}", self.path), errno }
    }

    fn malformed(&self, name: &str, problem: Malformed) -> Error {
        Error::Malformed { path: format!("{}/{name}", self.path), problem }
    }

    /// Opens a file below the directory; close-on-exec is added to `flags`.
    pub fn open_file(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        rustix::fs::openat(&*self.dir, &*self.name(name), flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| self.io("open", name, errno))
    }

    /// Reads a whole file, until `is_end` says of a read with so much room that so much was all, or nothing came.
    fn read_until(&self, name: &str, is_end: impl Fn(usize, usize) -> bool) -> Result<Vec<u8>> {
        let file = self.open_file(name, OFlags::RDONLY)?;
        let mut buffer = Vec::new();
        loop {
            // Most files of /proc hand out a page at a time: less room than a page would cost extra calls.
            if buffer.capacity() - buffer.len() < 4096 {
                buffer.reserve(buffer.len().max(4096));
            }
            let room = buffer.capacity() - buffer.len();
            match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut buffer)) {
                Ok(0) => return Ok(buffer),
                Ok(got) if is_end(got, room) => return Ok(buffer),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(self.io("read", name, errno)),
            }
        }
    }

    /// Reads a whole file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        self.read_until(name, |_, _| false)
    }

    /// Reads a whole file that the kernel writes in one go (`single_open`, `simple_read_from_buffer`), not record by
    /// record: less than there was room for is all, and need not be asked for again.
    pub fn read_single(&self, name: &str) -> Result<Vec<u8>> {
        self.read_until(name, |got, room| got < room)
    }

    fn read_as<T>(&self, name: &str, parse: impl FnOnce(&[u8]) -> std::result::Result<T, Malformed>) -> Result<T> {
        let text = self.read(name)?;
        parse(&text).map_err(|problem| self.malformed(name, problem))
    }

    /// For a file that is written in one go, see [`Task::read_single`].
    fn single_as<T>(&self, name: &str, parse: impl FnOnce(&[u8]) -> std::result::Result<T, Malformed>) -> Result<T> {
        let text = self.read_single(name)?;
        parse(&text).map_err(|problem| self.malformed(name, problem))
    }

    /// The target of a link below the directory (`exe`, `cwd`, `root`, `fd/3`).
    pub fn link(&self, name: &str) -> Result<PathBuf> {
        let target = rustix::fs::readlinkat(&*self.dir, &*self.name(name), Vec::with_capacity(256))
            .map_err(|errno| self.io("read link", name, errno))?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// The numbers among the names in a directory below this one, in the kernel's order (ascending).
    fn numbers(&self, name: &str) -> Result<Vec<i32>> {
        let dir = self.open_file(name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut room = [MaybeUninit::<u8>::uninit(); 8192];
        let mut entries = RawDir::new(dir, &mut room);
        let mut found = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|errno| self.io("list", name, errno))?;
            found.extend(text::dec::<i32>(entry.file_name().to_bytes()));
        }
        Ok(found)
    }

    /// The thread ids of the process, its leader first.
    pub fn tids(&self) -> Result<Vec<Pid>> {
        Ok(self.numbers("task")?.into_iter().filter_map(Pid::from_raw).collect())
    }

    /// How many threads the process has, as the links of its directory of threads tell: those that
    /// `.` and `..` would count for, and one for each (`proc_task_getattr`, fs/proc/base.c). Cheaper than [`Task::stat`].
    pub fn thread_count(&self) -> Result<u64> {
        let stat = rustix::fs::statat(&*self.dir, &*self.name("task"), AtFlags::empty())
            .map_err(|errno| self.io("stat", "task", errno))?;
        Ok((stat.st_nlink as u64).saturating_sub(2))
    }

    /// The open descriptor numbers, ascending.
    pub fn fds(&self) -> Result<Vec<RawFd>> {
        self.numbers("fd")
    }

    /// How many descriptors are open (`proc_fd_getattr`, Linux 6.2); 0 on kernels before.
    pub fn fd_count(&self) -> Result<u64> {
        let stat = rustix::fs::statat(&*self.dir, &*self.name("fd"), AtFlags::empty())
            .map_err(|errno| self.io("stat", "fd", errno))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// The first descriptor that is as wanted. The kernel makes the name of each that is looked at: no more are than need
    /// be, some twenty at a time.
    pub fn find_fd(&self, mut is_wanted: impl FnMut(RawFd) -> bool) -> Result<Option<RawFd>> {
        let dir = self.open_file("fd", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut room = [MaybeUninit::<u8>::uninit(); 512];
        let mut entries = RawDir::new(dir, &mut room);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|errno| self.io("list", "fd", errno))?;
            if let Some(fd) = text::dec::<RawFd>(entry.file_name().to_bytes()).filter(|fd| is_wanted(*fd)) {
                return Ok(Some(fd));
            }
        }
        Ok(None)
    }

    /// Pids of the children that one of its threads has created and that still live (zombies too). For all
    /// children of a process, ask all its threads. Exact only while those children are stopped
    /// (proc_pid_task_children(5)).
    pub fn children(&self, tid: Pid) -> Result<Vec<Pid>> {
        let name = format!("task/{}/children", tid.as_raw_nonzero());
        self.read_as(&name, |text| {
            text::words(text)
                .map(|word| text::OrMalformed::or_malformed(text::dec(word).and_then(Pid::from_raw), "child pid", word))
                .collect()
        })
    }

    /// The same of all its threads, as far as it can be told.
    pub fn all_children(&self) -> Vec<Pid> {
        let tids = self.tids().unwrap_or_default();
        tids.into_iter().flat_map(|tid| self.children(tid).unwrap_or_default()).collect()
    }

    /// The memory mappings, without their flags: cheap, no page table is walked.
    pub fn maps(&self) -> Result<Vec<maps::Vma>> {
        self.read_as("maps", maps::parse)
    }

    /// The memory mappings with their flags from `smaps`. The kernel walks the page tables of each mapping
    /// for the counters that stand beside the flags: some 20 ms for a GiB of small pages. It takes the memory for
    /// reading only, so that the target may be made to copy its pages out at the same time.
    pub fn smaps(&self) -> Result<Vec<maps::FlaggedVma>> {
        self.read_as("smaps", maps::parse_smaps)
    }

    /// `stat`: of the whole group in a process' directory, of the thread in a thread's.
    pub fn stat(&self) -> Result<stat::Stat> {
        self.single_as("stat", stat::parse)
    }

    /// `status`.
    pub fn status(&self) -> Result<status::Status> {
        self.single_as("status", status::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_own_threads_and_descriptors() {
        let task = Task::current().unwrap();
        let tids = task.tids().unwrap();
        assert!(tids.contains(&rustix::thread::gettid()));
        assert!(task.thread_count().unwrap() > 0);
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        assert!(task.fds().unwrap().contains(&fd));
        assert_eq!(task.find_fd(|one| one == fd).unwrap(), Some(fd));
        assert_eq!(task.find_fd(|_| false).unwrap(), None);
        let count = task.fd_count().unwrap();
        assert!(count == 0 || count >= 4);
        assert_eq!(task.link(&format!("fd/{fd}")).unwrap(), PathBuf::from("/dev/null"));
    }

    #[test]
    fn a_dead_process_is_never_another() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        let task = Task::open(pid).unwrap();
        let parent = Task::current().unwrap();
        assert!(parent.children(rustix::thread::gettid()).unwrap().contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(task.thread_count().is_err());
        let error = task.stat().unwrap_err();
        assert!(matches!(error.errno(), Some(Errno::SRCH | Errno::NOENT)), "{error}");
        assert!(error.to_string().contains("/stat"));
    }
}
