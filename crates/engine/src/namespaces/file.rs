//! Namespaces that a process has open (`/proc/PID/ns/KIND`): each is one of the tree's, or of the surroundings.

use super::KINDS;
use super::pinned::named;
use crate::files::{Build, Collect, FileKind, OpenFile};
use crate::{Error, Object, Result};
use cryonaut_image::records::{FdTypes, FileEntry, NsFileEntry};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::namespace;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsRawFd, OwnedFd};

/// An open namespace.
#[derive(Debug)]
pub struct NamespaceFile;

impl FileKind for NamespaceFile {
    fn name(&self) -> &'static str {
        "a namespace"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Ns
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        named(file.link_bytes()).is_some()
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let (kind, _) = named(file.link_bytes()).ok_or_else(|| file.unexpected("a namespace"))?;
        let number = match cx.namespace_of(kind, file)? {
            Some(number) => number,
            None => {
                let reason =
                    format!("it is a {} namespace in which no process of the tree is, nor this program", kind.name);
                let remedy = "close it before the checkpoint";
                return Err(Error::unsupported(file.object(), reason, remedy));
            }
        };
        let record =
            NsFileEntry { id, ns_id: number, ns_cflag: namespace::flag(kind.kind) as u32, flags: file.flags() };
        Ok(FileEntry { r#type: FdTypes::Ns.into(), id, nsf: Some(record), ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let record = entry.nsf.as_ref().ok_or_else(|| Build::lacks(entry, self.name()))?;
        let kind = KINDS.iter().find(|kind| namespace::flag(kind.kind) as u32 == record.ns_cflag);
        let kind = kind
            .ok_or_else(|| Error::bad_image("files.img", format!("file {:#x} is of no kind of namespace", entry.id)))?;
        let object = || Object::File(entry.id, format!("{} namespace {}", kind.name, record.ns_id));
        let flags = OFlags::from_bits_retain(record.flags) & OFlags::NONBLOCK | OFlags::RDONLY | OFlags::CLOEXEC;
        match cx.namespaces.get(kind.kind, record.ns_id) {
            // Opened once more: an open file of its own.
            Some(own) => {
                rustix::fs::open(format!("/proc/thread-self/fd/{}", own.file.as_raw_fd()), flags, Mode::empty())
                    .map_err(|e| Error::kernel(object(), "open it", e))
            }
            None => Ok(namespace::open(&Task::current()?, kind.kind)?),
        }
    }

    /// Those of a process are made when it is born.
    fn needs_processes(&self, _entry: &FileEntry) -> bool {
        true
    }
}
