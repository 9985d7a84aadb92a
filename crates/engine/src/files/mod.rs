//! Open files: one room per kind, each with its two halves side by side.
//!
//! A *kind* recognises an open file of a frozen process, collects it into the
//! image's record, and builds it again from that record. A new kind is one
//! module here and one line in [`KINDS`].
//!
//! The brain holds a duplicate of every descriptor that it looks at
//! (`pidfd_getfd`), so collecting needs no code in the target; and it builds
//! every open file once, then hands it to all processes that have it. What
//! must be done from inside a process, or needs that all processes exist, is
//! done in [`FileKind::settle`].

#[cfg(test)]
mod bench;
mod bpfmap;
mod build;
mod collect;
mod epoll;
mod eventfd;
mod fanotify;
mod fifo;
mod ghost;
mod ghost_build;
mod inotify;
pub mod io_uring;
mod lines;
pub mod locks;
pub mod memfd;
mod pidfd;
mod pipe;
mod pipe_data;
mod posix_queue;
pub mod regular;
mod regular_path;
pub mod shared_pages;
mod signalfd;
pub mod signals;
pub mod socket;
pub mod sysv;
#[cfg(test)]
mod testing;
mod timerfd;
pub(crate) mod tty;
mod watched;

pub use build::{Build, Settle, apply_status_flags};
pub use collect::{Collect, FIRST_PAGES, HeldFile, OpenFile, PagesIds};
pub use ghost::NewLinks;

use crate::Result;
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry};
use std::os::fd::{BorrowedFd, OwnedFd};

/// When an open file is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Round {
    /// With all others.
    First,
    /// When all others are there: it watches files, and would see them being made.
    Watchers,
    /// When everything else is: it is what /proc tells of another descriptor.
    Last,
}

/// One kind of open file.
pub trait FileKind: Sync {
    /// How it is called in messages.
    fn name(&self) -> &'static str;

    /// Its type in the image.
    fn fd_type(&self) -> FdTypes;

    /// Whether this open file is of this kind. Kinds are asked in the order of
    /// [`KINDS`]; the first that says yes has it.
    fn recognises(&self, file: &OpenFile<'_>) -> bool;

    /// Writes down the open file under `id`. What cannot be carried is an
    /// error here, and nothing has been changed yet.
    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry>;

    /// Builds the open file. Called once per record.
    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd>;

    /// Whether building needs that all processes exist (files of /proc/PID, pidfds).
    fn needs_processes(&self, _entry: &FileEntry) -> bool {
        false
    }

    /// In which round it is built and given to the processes.
    fn round(&self, _entry: &FileEntry) -> Round {
        Round::First
    }

    /// The owner that was set for its signals, from the record.
    fn owner<'e>(&self, _entry: &'e FileEntry) -> Option<&'e FownEntry> {
        None
    }

    /// What remains to be done once every process has all its descriptors.
    fn settle(&self, _cx: &mut Settle<'_>, _entry: &FileEntry, _file: BorrowedFd<'_>) -> Result<()> {
        Ok(())
    }
}

/// Every kind, in the order in which they are asked.
pub static KINDS: &[&dyn FileKind] = &[
    &pipe::Pipe,
    &fifo::Fifo,
    &eventfd::EventFd,
    &epoll::Epoll,
    &signalfd::SignalFd,
    &timerfd::TimerFd,
    &tty::Tty,
    &inotify::Inotify,
    &memfd::Memfd,
    &fanotify::Fanotify,
    &pidfd::PidFd,
    &bpfmap::BpfMap,
    &io_uring::IoUring,
    &socket::Inet,
    &socket::Unix,
    &socket::Netlink,
    &socket::Packet,
    &posix_queue::Descriptor,
    &crate::namespaces::file::NamespaceFile,
    &crate::namespaces::net::tun::TunFile,
    &regular::Regular,
];

/// The kind of a record.
pub fn kind_of(entry: &FileEntry) -> Option<&'static dyn FileKind> {
    KINDS.iter().copied().find(|k| k.fd_type() as i32 == entry.r#type)
}
