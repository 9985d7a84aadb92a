//! Descriptors of queues of messages of POSIX (mq_overview(7)), and who is to be told of the next message.
//!
//! The queues themselves are those of ipc namespaces ([`posix`]); one without a name is here, with what waits in it.
//! CRIU knows no such file: the record has the type of files that a plugin brings, and all else is in
//! `cryonaut-posix-queue-FILE.json`.

use super::{Build, Collect, FileKind, OpenFile, Settle, apply_status_flags};
use crate::namespaces::ipc::posix::{self, PosixQueue};
use crate::{Error, Object, Result};
use cryonaut_image::records::{ExtFileEntry, FdTypes, FileEntry, FownEntry};
use cryonaut_kernel::Errno;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace::within;
use cryonaut_kernel::sys::posix_queues;
use cryonaut_puppet::Batch;
use rustix::fs::{FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Descriptors of queues.
#[derive(Debug)]
pub struct Descriptor;

/// What the format has no place for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Record {
    /// The number of its ipc namespace.
    namespace: Option<u32>,
    /// Status flags of the open file.
    flags: u32,
    name: String,
    /// Which it is of those that have no name any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    removed: Option<u64>,
    /// Such a queue, where it comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<PosixQueue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    told: Option<Told>,
}

impl Record {
    /// Opens its queue by a name, by the calling thread, which is in the namespace.
    fn open(&self, name: &str) -> std::result::Result<OwnedFd, Errno> {
        let way = OFlags::from_bits_retain(self.flags) & OFlags::RWMODE;
        let opened = posix_queues::open(name, way | OFlags::NONBLOCK)?;
        // open(2) has a flag that mq_open(3) has not, and tells by which of them it was opened.
        if self.flags & LARGE == 0 { Ok(opened) } else { reopen(opened.as_fd(), way) }
    }
}

/// Who is told of a message that comes into the empty queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    pid: i32,
    /// `SIGEV_*`.
    how: i32,
    signal: i32,
    value: u64,
}

const DELETED: &[u8] = b" (deleted)";
/// O_LARGEFILE as the kernel has it, which libraries hide.
const LARGE: u32 = 0o100000;
/// For what kinds remember between files.
const KEY: &str = "posix queue";

fn json_name(id: u32) -> String {
    format!("posix-queue-{id}")
}

/// Its name, and whether it still has that. One that was opened by a mount of their file system has a longer path, and is
/// opened by that again.
fn name_of(link: &[u8]) -> Option<(String, bool)> {
    let name = link.strip_prefix(b"/")?;
    let (name, is_there) = name.strip_suffix(DELETED).map_or((name, true), |name| (name, false));
    (!name.is_empty() && !name.contains(&b'/')).then(|| (String::from_utf8_lossy(name).into_owned(), is_there))
}

impl FileKind for Descriptor {
    fn name(&self) -> &'static str {
        "queue of POSIX"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Ext
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        FileType::from_raw_mode(file.stat.st_mode) == FileType::RegularFile
            && name_of(file.link_bytes()).is_some()
            && rustix::fs::fstatfs(file.file).is_ok_and(|fs| fs.f_type as u64 == posix_queues::MAGIC)
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let (name, is_there) = name_of(file.link_bytes()).ok_or_else(|| file.unexpected(self.name()))?;
        let failed = |action: &'static str| move |e| Error::kernel(file.object(), action, e);
        let readable = reopen(file.file, OFlags::RDONLY).map_err(failed("open it for reading"))?;
        let namespace = namespace_of(cx, file)?;
        let (mut removed, mut queue) = (None, None);
        if !is_there {
            if namespace.is_none() {
                let reason = "it has no name any more, and its ipc namespace is not the tree's";
                return Err(Error::unsupported(file.object(), reason, "close it before the checkpoint"));
            }
            let inode = file.stat.st_ino;
            removed = Some(inode);
            if cx.notes.insert((KEY, inode), id).is_none() {
                let read = posix_queues::read(&name, readable.as_fd());
                queue = Some(read.map_err(|e| posix::why_unread(file.object(), e))?.into());
            }
        }
        let told = told(cx, file, readable.as_fd())?;
        let record = Record { namespace, flags: file.flags(), name, removed, queue, told };
        cx.images.write_json(&json_name(id), &record)?;
        let ext = ExtFileEntry { id, fown: file.owner()? };
        Ok(FileEntry { r#type: FdTypes::Ext as i32, id, ext: Some(ext), ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let record = recorded(cx.images, entry)?;
        let object = || Object::File(entry.id, format!("queue /{}", record.name));
        let failed = |action: &'static str| move |e| Error::kernel(object(), action, e);
        let file = match record.removed {
            None => {
                let opened = match record.namespace.and_then(|id| cx.namespaces.get(Namespace::Ipc, id)) {
                    Some(own) => {
                        within(&[own.file.as_fd()], || record.open(&record.name)).map_err(own.failed("enter it"))?
                    }
                    None => record.open(&record.name),
                };
                opened.map_err(failed("open it"))?
            }
            Some(inode) => {
                if !cx.kept.contains_key(&(KEY, entry.id.into())) {
                    make_removed(cx, inode)?;
                }
                let first = || Error::bad_image(json_name(entry.id), "the queue is not there of which it is");
                cx.kept.remove(&(KEY, entry.id.into())).ok_or_else(first)?
            }
        };
        apply_status_flags(file.as_fd(), entry.id, record.flags)?;
        Ok(file)
    }

    /// Namespaces of processes are made when those are born.
    fn needs_processes(&self, _entry: &FileEntry) -> bool {
        true
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.ext.as_ref().map(|ext| &ext.fown)
    }

    fn settle(&self, cx: &mut Settle<'_>, entry: &FileEntry, _file: BorrowedFd<'_>) -> Result<()> {
        let Some(told) = recorded(cx.images, entry)?.told else { return Ok(()) };
        let places = cx.places.get(&entry.id).into_iter().flatten();
        let Some(&(pid, number)) = places.into_iter().find(|(pid, _)| *pid == told.pid) else { return Ok(()) };
        let mut b = Batch::new();
        // struct sigevent: value, signo, notify.
        let mut event = [0u8; 64];
        event[..8].copy_from_slice(&told.value.to_le_bytes());
        event[8..12].copy_from_slice(&told.signal.to_le_bytes());
        event[12..16].copy_from_slice(&told.how.to_le_bytes());
        let event = b.bytes(&event);
        // By another descriptor it may have been asked for already, which is EBUSY.
        b.attempt(libc::SYS_mq_notify, [number.into(), event.into()]);
        cx.run_in(pid, &mut b)
    }
}

/// The same queue, opened once more.
fn reopen(queue: BorrowedFd<'_>, way: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let path = format!("/proc/thread-self/fd/{}", queue.as_raw_fd());
    rustix::fs::open(path, way | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

/// The number of the tree's ipc namespace that a queue is of; `None` for that of the surroundings.
fn namespace_of(cx: &Collect<'_>, file: &OpenFile<'_>) -> Result<Option<u32>> {
    for own in cx.namespaces.into_iter().flat_map(|owned| owned.iter()) {
        if own.kind.kind == Namespace::Ipc {
            let device = within(&[own.file.as_fd()], posix_queues::device).and_then(|device| device);
            if device.map_err(own.failed("find its queues of POSIX"))? == Some(file.stat.st_dev) {
                return Ok(Some(own.id));
            }
        }
    }
    let ours = posix_queues::device().map_err(|e| Error::kernel(file.object(), "find its ipc namespace", e))?;
    if ours == Some(file.stat.st_dev) {
        return Ok(None);
    }
    let reason = "its ipc namespace is neither the tree's nor that of this program";
    Err(Error::unsupported(file.object(), reason, "close it before the checkpoint"))
}

/// Who of the tree is told of the next message.
fn told(cx: &Collect<'_>, file: &OpenFile<'_>, readable: BorrowedFd<'_>) -> Result<Option<Told>> {
    let found = posix_queues::notification(readable);
    let found = found.map_err(|e| Error::kernel(file.object(), "ask who is told of messages", e))?;
    let Some(found) = found.filter(|found| cx.pids.contains(&found.pid)) else { return Ok(None) };
    let refused = |reason: &str, remedy| Err(Error::unsupported(file.object(), reason, remedy));
    if found.how == libc::SIGEV_THREAD {
        return refused("a thread is to be told of its next message (SIGEV_THREAD)", "let it be told by a signal");
    }
    match posix_queues::notified_value(readable) {
        Ok(value) => Ok(Some(Told { pid: found.pid, how: found.how, signal: found.signal, value })),
        Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => {
            refused("a process is to be told of its next message, and this kernel does not describe of what (BTF)", "")
        }
        Err(e) => Err(Error::kernel(file.object(), "read what is told with a message", e)),
    }
}

fn recorded(images: &cryonaut_image::ImageDir, entry: &FileEntry) -> Result<Record> {
    images.read_json(&json_name(entry.id))?.ok_or_else(|| Build::lacks(entry, "a queue of POSIX"))
}

/// Makes a queue without a name, and all descriptors of it, while it has one still: its own, which is told of them, if no
/// other has that.
fn make_removed(cx: &mut Build<'_>, inode: u64) -> Result<()> {
    let mut all = Vec::new();
    for entry in cx.records().values().filter(|entry| entry.ext.is_some()) {
        let record = recorded(cx.images, entry)?;
        if record.removed == Some(inode) {
            all.push((entry.id, record));
        }
    }
    let bad = || Error::bad_image("files.img", "a queue of POSIX without a name is not there");
    let (id, namespace, queue) =
        all.iter().find_map(|(id, one)| Some((*id, one.namespace?, one.queue.clone()?))).ok_or_else(bad)?;
    let own = cx.namespaces.get(Namespace::Ipc, namespace).ok_or_else(bad)?;
    let opened = within(&[own.file.as_fd()], || {
        let is_taken = posix_queues::open(queue.name(), OFlags::RDONLY | OFlags::NONBLOCK).is_ok();
        let queue = if is_taken { queue.named(&format!("cryonaut-{id}")) } else { queue };
        let failed = |action: &str| own.failed(format!("{action} the queue /{}", queue.name()));
        drop(posix::make(&queue, own.object())?);
        let open = |(id, record): &(u32, Record)| Ok((*id, record.open(queue.name()).map_err(failed("open"))?));
        let opened = all.iter().map(open).collect::<Result<Vec<_>>>();
        posix_queues::unlink(queue.name()).map_err(failed("take the name away of"))?;
        opened
    });
    let opened = opened.map_err(own.failed("enter it"))??;
    cx.kept.extend(opened.into_iter().map(|(id, file)| ((KEY, u64::from(id)), file)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_told_by_their_names() {
        assert_eq!(name_of(b"/one"), Some(("one".into(), true)));
        assert_eq!(name_of(b"/one (deleted)"), Some(("one".into(), false)));
        assert_eq!((name_of(b"/dev/mqueue/one"), name_of(b"/"), name_of(b"pipe:[1]")), (None, None, None));
    }
}
