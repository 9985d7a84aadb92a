//! Acting inside of other namespaces: setns(2) by a thread that ends with what it did there.

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::check;
use crate::proc::values::Namespace;
use crate::proc::{self, Task};

/// The flag of clone(2), unshare(2) and setns(2) that stands for a kind.
#[must_use]
pub fn flag(kind: Namespace) -> i32 {
    match kind {
        Namespace::Cgroup => libc::CLONE_NEWCGROUP,
        Namespace::Ipc => libc::CLONE_NEWIPC,
        Namespace::Mnt => libc::CLONE_NEWNS,
        Namespace::Net => libc::CLONE_NEWNET,
        Namespace::Pid | Namespace::PidForChildren => libc::CLONE_NEWPID,
        Namespace::Time | Namespace::TimeForChildren => CLONE_NEWTIME,
        Namespace::User => libc::CLONE_NEWUSER,
        Namespace::Uts => libc::CLONE_NEWUTS,
    }
}

/// `CLONE_NEWTIME` (linux/sched.h). For clone(2) it is a bit of the exit signal: clone3(2) and unshare(2) alone take it.
pub const CLONE_NEWTIME: i32 = 0x80;

/// Opens a namespace that a process is in: by this file it is entered, and lives as long as the file is open.
pub fn open(task: &Task, kind: Namespace) -> proc::Result<OwnedFd> {
    task.open_file(kind.link(), OFlags::RDONLY)
}

/// The inode number of a namespace's file, which identifies the namespace while it lives.
pub fn inode(file: BorrowedFd<'_>) -> Result<u64, Errno> {
    Ok(rustix::fs::fstat(file)?.st_ino)
}

/// The user namespace to which another belongs (ioctl_ns(2)). EPERM if that is above ours.
pub fn owner(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: this request takes no argument and returns a new descriptor.
    let fd = check(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs `act` on a thread of its own that has entered these namespaces, in this order, and waits for it. Nothing else in
/// this process is moved. What the thread opens or makes there can be used everywhere; paths are those of the mount
/// namespace, from its root.
///
/// Needs CAP_SYS_ADMIN over each. Not for time and user namespaces, which no thread beside others may enter (EUSERS,
/// EINVAL); a pid namespace would be that of the thread's children only.
pub fn within<T: Send>(namespaces: &[BorrowedFd<'_>], act: impl FnOnce() -> T + Send) -> Result<T, Errno> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("within".into()).spawn_scoped(scope, || {
            // Who shares its directories with other threads may not enter a mount namespace.
            // SAFETY: unshare(CLONE_FS) gives this thread a copy of its working directory, root and umask.
            check(unsafe { libc::unshare(libc::CLONE_FS) })?;
            for namespace in namespaces {
                enter(*namespace, 0)?;
            }
            Ok(act())
        });
        let thread = thread.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::AGAIN))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The calling thread enters a namespace, of any kind for `kind` 0 (setns(2)).
pub(crate) fn enter(namespace: BorrowedFd<'_>, kind: i32) -> Result<(), Errno> {
    // SAFETY: setns takes two numbers; what it changes is this thread's view of the system, no memory.
    check(unsafe { libc::setns(namespace.as_raw_fd(), kind) }).map(drop)
}

/// While this is there, the calling thread is in another network namespace: what it asks of netlink, the sockets that it
/// makes and `/proc/thread-self/net` are of that one. For many short visits, for which a thread each would take long.
#[derive(Debug)]
pub struct NetworkVisit {
    home: OwnedFd,
    /// Of the thread that has begun it.
    _here: PhantomData<*const ()>,
}

/// The calling thread goes to another network namespace. Needs CAP_SYS_ADMIN there.
pub fn visit_network(network: BorrowedFd<'_>) -> Result<NetworkVisit, Errno> {
    let home = rustix::fs::open(OWN_NETWORK, OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    enter(network, libc::CLONE_NEWNET)?;
    Ok(NetworkVisit { home, _here: PhantomData })
}

/// The network namespace of the calling thread.
pub const OWN_NETWORK: &str = "/proc/thread-self/ns/net";

impl Drop for NetworkVisit {
    fn drop(&mut self) {
        if let Err(errno) = enter(self.home.as_fd(), libc::CLONE_NEWNET) {
            // Everything that this thread does later would be done in a network that is another's.
            panic!("a thread cannot go back to its network namespace: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{CloneFlags, Spawn, spawn_idle};
    use crate::sys::wait::{Who, wait};

    #[test]
    fn a_thread_acts_in_namespaces_of_another_process() {
        let flags = CloneFlags::NEWUTS | CloneFlags::NEWNS;
        let Ok(child) = spawn_idle(&Spawn { flags, ..Spawn::default() }) else { return };
        let task = Task::open(child.pid).unwrap();
        let files = [Namespace::Uts, Namespace::Mnt].map(|kind| open(&task, kind).unwrap());
        assert_eq!(Some(inode(files[0].as_fd()).unwrap()), task.namespace(Namespace::Uts).unwrap());
        let before = rustix::system::uname().nodename().to_owned();
        let name = within(&files.each_ref().map(AsFd::as_fd), || {
            rustix::system::sethostname(b"within").unwrap();
            rustix::system::uname().nodename().to_owned()
        });
        assert_eq!(name.unwrap(), c"within".to_owned());
        assert_eq!(rustix::system::uname().nodename().to_owned(), before);
        rustix::process::kill_process(child.pid, rustix::process::Signal::KILL).unwrap();
        wait(Who::One(child.pid)).unwrap();
    }

    #[test]
    fn a_thread_comes_back_from_a_visit() {
        let Ok(child) = spawn_idle(&Spawn { flags: CloneFlags::NEWNET, ..Spawn::default() }) else { return };
        let other = open(&Task::open(child.pid).unwrap(), Namespace::Net).unwrap();
        let here = || std::fs::read_link(OWN_NETWORK).unwrap();
        let before = here();
        let visit = visit_network(other.as_fd()).unwrap();
        assert_ne!(here(), before);
        drop(visit);
        assert_eq!(here(), before);
        rustix::process::kill_process(child.pid, rustix::process::Signal::KILL).unwrap();
        wait(Who::One(child.pid)).unwrap();
    }
}
