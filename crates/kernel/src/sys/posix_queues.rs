//! Queues of messages of POSIX (mq_overview(7)) of the ipc namespace of the calling thread, found by a mount of their
//! file system that is nowhere.
//!
//! No call shows a message without taking it away: those that wait are read from the kernel's memory (struct
//! mqueue_inode_info, ipc/mqueue.c), and so is what a process that asked to be told of the next one gave along.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, RawDir, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::bpf_iter;
use super::check;
use super::unix_memory::Reader;

/// `MQUEUE_MAGIC` (linux/magic.h): the type of their file system.
pub const MAGIC: u64 = 0x1980_0202;
/// What the kernel allots for a part of a message (DATALEN_MSG, ipc/msgutil.c).
const PART: u64 = 4096;

/// What a queue is, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name without the slash.
    pub name: String,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Most messages, and most bytes of one.
    pub most: i64,
    pub longest: i64,
    /// What waits in it, as it would be received.
    pub messages: Vec<Message>,
}

/// A message that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub priority: u32,
    pub text: Vec<u8>,
}

/// A process that is to be told of the next message that comes into an empty queue (mq_notify(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    pub pid: i32,
    /// `SIGEV_*`.
    pub how: i32,
    pub signal: i32,
}

/// The file system of the namespace; `None` if the kernel has no such queues.
fn root() -> Result<Option<OwnedFd>, Errno> {
    let context = match rustix::mount::fsopen("mqueue", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NODEV) => return Ok(None),
        context => context?,
    };
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(Some)
}

/// The number of the device on which the queues of the namespace are.
pub fn device() -> Result<Option<u64>, Errno> {
    root()?.map(|root| rustix::fs::fstat(root).map(|stat| stat.st_dev)).transpose()
}

/// All queues that have a name, and the mount by which they were found: its end takes until RCU has come round, so whoever
/// is in a hurry has another thread close it. EILSEQ if one of the names is no text.
pub fn list() -> Result<(Vec<Queue>, Option<OwnedFd>), Errno> {
    let Some(root) = root()? else { return Ok((Vec::new(), None)) };
    let listing = rustix::fs::openat(&root, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut room = [MaybeUninit::<u8>::uninit(); 4096];
    let mut entries = RawDir::new(listing, &mut room);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            let text = name.to_str().map_err(|_| Errno::ILSEQ)?;
            found.push(read(text, open_named(name, OFlags::RDONLY | OFlags::NONBLOCK)?.as_fd())?);
        }
    }
    Ok((found, Some(root)))
}

/// What is to be told of an open queue.
pub fn read(name: &str, queue: BorrowedFd<'_>) -> Result<Queue, Errno> {
    let stat = rustix::fs::fstat(queue)?;
    // SAFETY: an mq_attr of zeros is a valid one, and the call writes one.
    let attributes = unsafe {
        let mut attributes: libc::mq_attr = std::mem::zeroed();
        check(libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), 0, &raw mut attributes))?;
        attributes
    };
    let messages = if attributes.mq_curmsgs == 0 { Vec::new() } else { Inside::of(queue)?.messages()? };
    if messages.len() as i64 != attributes.mq_curmsgs {
        return Err(Errno::NOTSUP);
    }
    Ok(Queue {
        name: name.to_owned(),
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        most: attributes.mq_maxmsg,
        longest: attributes.mq_msgsize,
        messages,
    })
}

/// Who is to be told of the next message; the queue is open for reading. The pid is that of our pid namespace.
pub fn notification(queue: BorrowedFd<'_>) -> Result<Option<Notification>, Errno> {
    let mut room = [0; 256];
    let len = rustix::io::pread(queue, &mut room, 0)?;
    let text = String::from_utf8_lossy(&room[..len]).into_owned();
    let value = |key: &str| -> Option<i32> {
        let (_, rest) = text.split_once(key)?;
        rest.split_ascii_whitespace().next()?.parse().ok()
    };
    let told = (value("NOTIFY_PID:"), value("NOTIFY:"), value("SIGNO:"));
    let (Some(pid), Some(how), Some(signal)) = told else { return Err(Errno::BADMSG) };
    Ok((pid != 0).then_some(Notification { pid, how, signal }))
}

/// What the process that is to be told gave along (`sigev_value`).
pub fn notified_value(queue: BorrowedFd<'_>) -> Result<u64, Errno> {
    Inside::of(queue)?.notified_value()
}

/// What the kernel has of an open queue.
struct Inside {
    reader: Reader,
    /// Where its struct mqueue_inode_info is.
    at: u64,
}

impl Inside {
    /// ENOENT or ENOTSUP where the kernel does not describe its types, or has others; EPERM without the right to look.
    fn of(queue: BorrowedFd<'_>) -> Result<Inside, Errno> {
        let reader = Reader::new()?;
        let all = bpf_iter::descriptors(reader.btf, reader.own)?;
        let file = all.iter().find(|one| one.fd == queue.as_raw_fd()).ok_or(Errno::BADF)?.file;
        let inode = reader.value(file, "file", "f_inode", 8)?;
        let at = inode - u64::from(reader.field("mqueue_inode_info", "vfs_inode", 8)?.offset);
        Ok(Inside { reader, at })
    }

    fn notified_value(&self) -> Result<u64, Errno> {
        self.reader.value(self.at, "mqueue_inode_info", "notify", 8)
    }

    /// They are in a tree by their priorities, first come first in each.
    fn messages(&self) -> Result<Vec<Message>, Errno> {
        let reader = &self.reader;
        let root = reader.inner(("mqueue_inode_info", "msg_tree", "rb_root", "rb_node"), 8)?;
        let link = u64::from(reader.field("posix_msg_tree_node", "rb_node", 8)?.offset);
        let list = reader.field("posix_msg_tree_node", "msg_list", 8)?;
        let fields = [
            reader.inner(("posix_msg_tree_node", "rb_node", "rb_node", "rb_left"), 8)?,
            reader.inner(("posix_msg_tree_node", "rb_node", "rb_node", "rb_right"), 8)?,
            list,
            reader.field("posix_msg_tree_node", "priority", 4)?,
        ];
        let mut level = reader.values(self.at, &[root])?;
        let mut nodes = Vec::new();
        loop {
            let bases: Vec<u64> = level.iter().filter(|node| **node != 0).map(|node| node - link).collect();
            if bases.is_empty() {
                break;
            }
            let told = reader.read(&bases, &fields)?;
            level = told.iter().flat_map(|node| [node[0], node[1]]).collect();
            nodes.extend(
                bases.iter().zip(&told).map(|(base, node)| (node[3] as u32, base + u64::from(list.offset), node[2])),
            );
        }
        nodes.sort_by_key(|(priority, ..)| std::cmp::Reverse(*priority));
        let mut all = Vec::new();
        for (priority, head, first) in nodes {
            let texts = self.texts(head, first)?;
            all.extend(texts.into_iter().map(|text| Message { priority, text }));
        }
        Ok(all)
    }

    /// The messages of a list, which begins with `first` and ends at its head.
    fn texts(&self, head: u64, first: u64) -> Result<Vec<Vec<u8>>, Errno> {
        let reader = &self.reader;
        let link = reader.field("msg_msg", "m_list", 8)?;
        let (len, next) = (reader.field("msg_msg", "m_ts", 8)?, reader.field("msg_msg", "next", 8)?);
        let (size, part) = (reader.size("msg_msg")?, reader.size("msg_msgseg")?);
        let mut all = Vec::new();
        for block in bpf_iter::blocks(reader.btf, reader.own, (first, head), link.offset, size as usize)? {
            let value = |field| block.value(field).ok_or(Errno::NOTSUP);
            let (len, mut next) = (value(len)?, value(next)?);
            let mut places = vec![(block.address + size, len.min(PART - size) as usize)];
            let mut left = len.saturating_sub(PART - size);
            while left > 0 {
                if next == 0 {
                    return Err(Errno::NOTSUP);
                }
                let here = left.min(PART - part);
                places.push((next + part, here as usize));
                left -= here;
                next = reader.value(next, "msg_msgseg", "next", 8)?;
            }
            all.push(reader.pieces(&places)?);
        }
        Ok(all)
    }
}

fn open_named(name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = (flags | OFlags::CLOEXEC).bits();
    // SAFETY: mq_open reads the name, a C string; the descriptor that it returns is nobody else's.
    unsafe {
        let number = check(libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0, 0))?;
        Ok(OwnedFd::from_raw_fd(number as i32))
    }
}

/// Opens a queue by its name without the slash.
pub fn open(name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_named(&CString::new(name).map_err(|_| Errno::INVAL)?, flags)
}

/// Takes the name of a queue away.
pub fn unlink(name: &str) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    // SAFETY: mq_unlink reads the name, a C string.
    check(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}

/// Makes a queue, with what is in it; a descriptor of it.
pub fn make(queue: &Queue) -> Result<OwnedFd, Errno> {
    let name = CString::new(queue.name.as_str()).map_err(|_| Errno::INVAL)?;
    // SAFETY: an mq_attr of zeros is a valid one. mq_open reads it and the name; the descriptor that it returns is nobody
    // else's.
    let made = unsafe {
        let mut attributes: libc::mq_attr = std::mem::zeroed();
        (attributes.mq_maxmsg, attributes.mq_msgsize) = (queue.most, queue.longest);
        let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_CREAT | libc::O_EXCL;
        let number = libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, queue.mode, &raw const attributes);
        OwnedFd::from_raw_fd(check(number)? as i32)
    };
    for Message { priority, text } in &queue.messages {
        // SAFETY: the kernel reads as many bytes of the text as it has, and no time limit.
        check(unsafe {
            libc::syscall(libc::SYS_mq_timedsend, made.as_raw_fd(), text.as_ptr(), text.len(), *priority, 0)
        })?;
    }
    rustix::fs::fchown(&made, Some(Uid::from_raw(queue.owner.0)), Some(Gid::from_raw(queue.owner.1)))?;
    // Without what the umask takes.
    rustix::fs::fchmod(&made, Mode::from_raw_mode(queue.mode))?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::values::Namespace;
    use crate::sys::namespace;
    use crate::sys::process::{CloneFlags, Spawn, spawn_idle};
    use crate::sys::wait::{Who, wait};

    #[test]
    fn a_queue_is_found_as_it_was_made() {
        let Ok(child) = spawn_idle(&Spawn { flags: CloneFlags::NEWIPC, ..Spawn::default() }) else { return };
        let task = crate::proc::Task::open(child.pid).unwrap();
        let file = namespace::open(&task, Namespace::Ipc).unwrap();
        let message = |priority, text: &[u8]| Message { priority, text: text.to_vec() };
        let found_here = || list().map(|(found, _)| found);
        let mut queue =
            Queue { name: "kept".into(), mode: 0o622, owner: (1000, 5), most: 5, longest: 8192, messages: Vec::new() };
        let found = namespace::within(&[file.as_fd()], || {
            drop(make(&queue)?);
            let empty = found_here()?;
            unlink("kept")?;
            Ok::<_, Errno>((empty, found_here()?))
        });
        assert_eq!(found.unwrap(), Ok((vec![queue.clone()], Vec::new())));
        // As they are received, not as they were sent.
        let long: Vec<u8> = (0..8192u32).map(|n| (n / 7) as u8).collect();
        queue.messages =
            vec![message(9, b"urgent"), message(3, b"one"), message(3, &long), message(3, b""), message(0, b"last")];
        let sent =
            Queue { messages: [4, 1, 0, 2, 3].map(|at: usize| queue.messages[at].clone()).to_vec(), ..queue.clone() };
        let found = namespace::within(&[file.as_fd()], || {
            drop(make(&sent)?);
            found_here()
        });
        match found.unwrap() {
            // The kernel does not describe its types, or we may not look.
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => {}
            found => assert_eq!(found, Ok(vec![queue])),
        }
        rustix::process::kill_process(child.pid, rustix::process::Signal::KILL).unwrap();
        wait(Who::One(child.pid)).unwrap();
    }
}
