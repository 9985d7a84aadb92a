//! Queues of messages of POSIX (mq_overview(7)) of the ipc namespace of the calling thread, found by a mount of their
//! file system that is nowhere.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, RawDir, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::check;

/// What a queue is, and how much is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name without the slash.
    pub name: String,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Most messages, and most bytes of one.
    pub most: i64,
    pub longest: i64,
    /// Messages in it.
    pub messages: i64,
}

/// All queues.
pub fn list() -> Result<Vec<Queue>, Errno> {
    let context = match rustix::mount::fsopen("mqueue", FsOpenFlags::FSOPEN_CLOEXEC) {
        // The kernel has no such queues.
        Err(Errno::NODEV) => return Ok(Vec::new()),
        context => context?,
    };
    rustix::mount::fsconfig_create(&context)?;
    let root = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let listing = rustix::fs::openat(&root, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut room = [MaybeUninit::<u8>::uninit(); 4096];
    let mut entries = RawDir::new(listing, &mut room);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(&root, name, rustix::fs::AtFlags::empty())?;
        // SAFETY: mq_open reads the name, a C string; the descriptor that it returns is nobody else's.
        let queue = unsafe {
            let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
            let number = check(libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0, 0))?;
            OwnedFd::from_raw_fd(number as i32)
        };
        // SAFETY: an mq_attr of zeros is a valid one, and the call writes one.
        let attributes = unsafe {
            let mut attributes: libc::mq_attr = std::mem::zeroed();
            check(libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), 0, &raw mut attributes))?;
            attributes
        };
        found.push(Queue {
            name: name.to_string_lossy().into_owned(),
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            most: attributes.mq_maxmsg,
            longest: attributes.mq_msgsize,
            messages: attributes.mq_curmsgs,
        });
    }
    Ok(found)
}

/// Makes a queue, with nothing in it.
pub fn make(queue: &Queue) -> Result<(), Errno> {
    let name = CString::new(queue.name.as_str()).map_err(|_| Errno::INVAL)?;
    // SAFETY: an mq_attr of zeros is a valid one. mq_open reads it and the name; the descriptor that it returns is nobody
    // else's.
    let made = unsafe {
        let mut attributes: libc::mq_attr = std::mem::zeroed();
        (attributes.mq_maxmsg, attributes.mq_msgsize) = (queue.most, queue.longest);
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_CREAT | libc::O_EXCL;
        let number = libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, queue.mode, &raw const attributes);
        OwnedFd::from_raw_fd(check(number)? as i32)
    };
    rustix::fs::fchown(&made, Some(Uid::from_raw(queue.owner.0)), Some(Gid::from_raw(queue.owner.1)))?;
    // Without what the umask takes.
    rustix::fs::fchmod(&made, Mode::from_raw_mode(queue.mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::values::Namespace;
    use crate::sys::namespace;
    use crate::sys::process::{CloneFlags, Spawn, spawn_idle};
    use crate::sys::wait::{Who, wait};
    use std::os::fd::AsFd;

    #[test]
    fn a_queue_is_found_as_it_was_made() {
        let Ok(child) = spawn_idle(&Spawn { flags: CloneFlags::NEWIPC, ..Spawn::default() }) else { return };
        let task = crate::proc::Task::open(child.pid).unwrap();
        let file = namespace::open(&task, Namespace::Ipc).unwrap();
        let queue = Queue { name: "kept".into(), mode: 0o622, owner: (1000, 5), most: 3, longest: 40, messages: 0 };
        let found = namespace::within(&[file.as_fd()], || make(&queue).and_then(|()| list())).unwrap();
        assert_eq!(found, Ok(vec![queue]));
        rustix::process::kill_process(child.pid, rustix::process::Signal::KILL).unwrap();
        wait(Who::One(child.pid)).unwrap();
    }
}
