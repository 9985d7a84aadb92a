//! What a program has registered with a ring: files, memory, an eventfd, a
//! clock.
//!
//! A registered file is one that some process of the tree has a descriptor of:
//! it is found by its address in the kernel. One whose descriptors are all
//! closed is out of reach, and refused. Registered memory is pinned, and stays
//! what it was when the program maps something else there: its first and last
//! page are compared with what the process has at the address, and what is not
//! the same is refused.
//!
//! Files and the eventfd are registered by us; memory by the process whose it
//! is. A ring of a single issuer is still disabled then, and takes all from
//! anybody.

use super::{CLOSE, object, silent};
use crate::files::{Collect, OpenFile, Settle};
use crate::freeze::pid_of;
use crate::{Error, Result};
use cryonaut_image::records::FileEntry;
use cryonaut_kernel::sys::io_uring::tables::{self as kernel, Descriptor, Pages, register};
use cryonaut_puppet::{Batch, Hand};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};

/// Buffers that one batch registers.
const AT_ONCE: usize = 32;

/// What is registered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tables {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    files: Option<Files>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    buffers: Option<Buffers>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eventfd: Option<EventFd>,
    /// The clock of its waits, if not the monotonic one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clock: Option<i32>,
}

/// A process of the tree, and its number for a file.
type Place = (i32, i32);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Files {
    slots: u32,
    /// The slots in which files go for which the program names none: from the first to before the second.
    allocation: (u32, u32),
    used: Vec<File>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    slot: u32,
    place: Place,
    #[serde(default, skip_serializing_if = "is_zero")]
    tag: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Buffers {
    /// Whose memory it is.
    pid: i32,
    slots: u32,
    used: Vec<Buffer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Buffer {
    slot: u32,
    address: u64,
    len: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    tag: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct EventFd {
    place: Place,
    /// It is told only of what did not complete at once.
    asynchronous: bool,
}

fn is_zero(tag: &u64) -> bool {
    *tag == 0
}

impl Tables {
    /// Of a ring of the tree that has this clock.
    pub(super) fn read(cx: &Collect<'_>, file: &OpenFile<'_>, clock: Option<i32>) -> Result<Tables> {
        let all = kernel::of_ring(file.speaker, file.fd).map_err(|e| silent(file, e))?;
        let mut whose = Whose { cx, file, known: None };
        let mut used = Vec::with_capacity(all.files.len());
        for one in &all.files {
            let what = || format!("the file in slot {} of its registered files", one.slot);
            let place = whose.find(|descriptor| descriptor.file == one.file, what)?;
            used.push(File { slot: one.slot, place, tag: one.tag });
        }
        let files = Files { slots: all.file_slots, allocation: all.allocation, used };
        let eventfd = match all.eventfd {
            Some((context, asynchronous)) => {
                let place =
                    whose.find(|d| d.behind == context, || "the eventfd that it tells of completions".into())?;
                Some(EventFd { place, asynchronous })
            }
            None => None,
        };
        Ok(Tables {
            files: Some(files).filter(|files| files.slots > 0),
            buffers: Some(buffers(file, &all)?).filter(|buffers| buffers.slots > 0),
            eventfd,
            clock: clock.filter(|clock| *clock != libc::CLOCK_MONOTONIC),
        })
    }

    /// Registers with a new ring what needs no process, when all files are built.
    pub(super) fn build(&self, cx: &Settle<'_>, entry: &FileEntry, ring: BorrowedFd<'_>) -> Result<()> {
        let failed = |what: &'static str| move |e| Error::kernel(object(entry.id), what, e);
        if let Some(files) = &self.files {
            let mut used = Vec::with_capacity(files.used.len());
            for one in &files.used {
                used.push((one.slot, at(cx, entry.id, one.place)?, one.tag));
            }
            kernel::register_files(ring, files.slots, &used, files.allocation)
                .map_err(failed("register its files with it"))?;
        }
        if let Some(eventfd) = &self.eventfd {
            kernel::register_eventfd(ring, at(cx, entry.id, eventfd.place)?, eventfd.asynchronous)
                .map_err(failed("register its eventfd with it"))?;
        }
        let clock = self.clock.map(|clock| kernel::register_clock(ring, clock));
        clock.transpose().map_err(failed("set the clock of its waits")).map(drop)
    }

    /// Registers memory of a process with its ring, if it is this one's; `number` is that of the ring there.
    pub(super) fn pin(&self, hand: &mut Hand, number: i32) -> Result<()> {
        let Some(buffers) = self.buffers.as_ref().filter(|buffers| buffers.pid == hand.pid()) else { return Ok(()) };
        let mut b = Batch::new();
        let words = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let table: Vec<u8> = kernel::sparse(buffers.slots).iter().flat_map(|w| w.to_le_bytes()).collect();
        let (len, table) = (table.len(), b.bytes(&table));
        let request = |what: u32| [number.into(), what.into()];
        let [ring, what] = request(register::BUFFERS2);
        b.call(libc::SYS_io_uring_register, [ring, what, table.into(), len.into()]);
        hand.run(&mut b)?;
        for some in buffers.used.chunks(AT_ONCE) {
            let mut b = Batch::new();
            for one in some {
                let (vector, tag) = (b.bytes(&words(&[one.address, one.len.into()])), b.bytes(&words(&[one.tag])));
                let update = words(&kernel::update(one.slot, 0, 0, 1));
                let (len, update) = (update.len(), b.bytes(&update));
                b.point(update.at(8), vector);
                b.point(update.at(16), tag);
                let [ring, what] = request(register::BUFFERS_UPDATE);
                b.call(libc::SYS_io_uring_register, [ring, what, update.into(), len.into()]);
            }
            hand.run(&mut b)?;
        }
        Ok(())
    }
}

/// The built file that a process has under a number.
fn at<'a>(cx: &Settle<'a>, ring: u32, place: Place) -> Result<BorrowedFd<'a>> {
    let id = cx.places.iter().find(|(_, places)| places.contains(&place)).map(|(id, _)| id);
    let file = id.and_then(|id| cx.built.get(id));
    let none =
        || Error::bad_image(super::json_name(ring), format!("process {} has no descriptor {}", place.0, place.1));
    Ok(file.ok_or_else(none)?.as_fd())
}

/// Finds who has a file.
struct Whose<'c, 'a> {
    cx: &'c Collect<'a>,
    file: &'c OpenFile<'c>,
    /// The descriptors of all processes of the tree, the ring's own first.
    known: Option<Vec<(i32, Descriptor)>>,
}

impl Whose<'_, '_> {
    fn find(&mut self, is: impl Fn(&Descriptor) -> bool, what: impl Fn() -> String) -> Result<Place> {
        if self.known.is_none() {
            let mut known = Vec::new();
            let others = self.cx.pids.iter().copied().filter(|pid| *pid != self.file.pid);
            for pid in std::iter::once(self.file.pid).chain(others) {
                let all = kernel::descriptors(self.cx.speaker(pid)).map_err(|e| silent(self.file, e))?;
                known.extend(all.into_iter().map(|descriptor| (pid, descriptor)));
            }
            self.known = Some(known);
        }
        let found = self.known.iter().flatten().find(|(_, descriptor)| is(descriptor));
        found.map(|(pid, descriptor)| (*pid, descriptor.fd)).ok_or_else(|| {
            let reason = format!("{} has no descriptor in the tree, and cannot be reached", what());
            Error::unsupported(self.file.object(), reason, "let the program keep the descriptor open, or unregister it")
        })
    }
}

fn buffers(file: &OpenFile<'_>, all: &kernel::Tables) -> Result<Buffers> {
    let no = |reason: String| Err(Error::unsupported(file.object(), reason, CLOSE));
    let tid = pid_of(file.speaker)?;
    let failed = |e: Errno| Error::kernel(file.object(), "compare its registered memory with that of the process", e);
    let pages = if all.buffers.is_empty() { None } else { Some(Pages::find().map_err(failed)?) };
    let mut used = Vec::with_capacity(all.buffers.len());
    for one in &all.buffers {
        if one.is_kernels {
            return no(format!("registered buffer {} is memory of the kernel", one.slot));
        }
        let last = one.address + u64::from(one.len).saturating_sub(1);
        for (page, address) in [(one.pages.0, one.address), (one.pages.1, last)] {
            let same = pages.as_ref().map_or(Ok(true), |pages| pages.is_at(page, tid, address)).map_err(failed)?;
            if !same {
                return no(format!(
                    "registered buffer {} is memory that process {} no longer has at {:#x}",
                    one.slot, file.pid, one.address
                ));
            }
        }
        used.push(Buffer { slot: one.slot, address: one.address, len: one.len, tag: one.tag });
    }
    Ok(Buffers { pid: file.pid, slots: all.buffer_slots, used })
}
