//! Event polls (epoll(7)): what they watch, under which numbers.
//!
//! A watch belongs to an open file and to the number under which it was added.
//! The record has the number; usually the process has that very file under it.
//! Where the number was closed or reused since, the record alone would lead to
//! the wrong file or none: the place where a process of the tree still has the
//! right one is found by kcmp(2) and kept in `cryonaut-epoll-ID.json`.
//!
//! Watches are added when all files are built. What is ready then is reported
//! again: for edge-triggered watches once more than before, which epoll(7)
//! tells programs to expect.
//!
//! Any process can add them but those of signalfds: such a watch is woken by
//! the signals of the process that has added it (`signalfd_poll` in
//! fs/signalfd.c waits at `current->sighand`), so a process of the tree adds it
//! itself. Which one it was the kernel does not tell: it is taken to be the
//! first that has both files.

use super::{Build, Collect, FileKind, OpenFile, Settle};
use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::{EventpollFileEntry, EventpollTfdEntry, FdTypes, FileEntry, FownEntry};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::fdinfo::{Details, EpollTarget};
use cryonaut_kernel::sys::{epoll, kcmp};
use cryonaut_puppet::{Arg, Batch};
use rustix::event::epoll::CreateFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Event polls.
#[derive(Debug)]
pub struct Epoll;

/// Where a watched file is, if not under the number of its watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Elsewhere {
    /// Index of the watch in the record.
    watch: usize,
    /// A process as the image calls it, and its number for the file.
    pid: i32,
    fd: i32,
}

impl FileKind for Epoll {
    fn name(&self) -> &'static str {
        "eventpoll"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Eventpoll
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        file.anon_inode() == Some(b"eventpoll")
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let targets = match &file.info.details {
            Details::Epoll(targets) => targets.as_slice(),
            Details::None => &[],
            _ => return Err(file.unexpected(self.name())),
        };
        let mut elsewhere = Vec::new();
        let mut same_number: HashMap<i32, u32> = HashMap::new();
        for (watch, target) in targets.iter().enumerate() {
            let nth = same_number.entry(target.fd).or_default();
            if let Some((pid, fd)) = find(cx, file, target, *nth)? {
                elsewhere.push(Elsewhere { watch, pid, fd });
            }
            *nth += 1;
        }
        if !elsewhere.is_empty() {
            cx.images.write_json(&elsewhere_name(id), &elsewhere)?;
        }
        let tfd = targets.iter().map(|target| record(id, target)).collect();
        let epfd = EventpollFileEntry { id, flags: file.flags(), fown: file.owner()?, tfd };
        Ok(FileEntry { r#type: FdTypes::Eventpoll as i32, id, epfd: Some(epfd), ..FileEntry::default() })
    }

    fn build(&self, _cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let epfd = entry.epfd.as_ref().ok_or_else(|| Build::lacks(entry, self.name()))?;
        let file = rustix::event::epoll::create(CreateFlags::CLOEXEC)
            .map_err(|e| Error::kernel(object(entry.id), "make an event poll", e))?;
        super::apply_status_flags(file.as_fd(), entry.id, epfd.flags)?;
        Ok(file)
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.epfd.as_ref().map(|epfd| &epfd.fown)
    }

    fn settle(&self, cx: &mut Settle<'_>, entry: &FileEntry, file: BorrowedFd<'_>) -> Result<()> {
        let Some(epfd) = entry.epfd.as_ref().filter(|epfd| !epfd.tfd.is_empty()) else {
            return Ok(());
        };
        let elsewhere: Vec<Elsewhere> = cx.images.read_json(&elsewhere_name(entry.id))?.unwrap_or_default();
        let ids = watched(entry.id, &epfd.tfd, &elsewhere, cx.places)?;
        let mut watches = Vec::with_capacity(ids.len());
        let mut of_signals = Vec::new();
        for (tfd, id) in epfd.tfd.iter().zip(ids) {
            let file = cx.built.get(&id).ok_or_else(|| nowhere(entry.id, tfd))?.as_fd();
            if cx.records.get(&id).is_some_and(|record| record.sgfd.is_some()) {
                of_signals.push((tfd, id));
            } else {
                watches.push(epoll::Watch { number: tfd.tfd as i32, file, events: tfd.events, data: tfd.data });
            }
        }
        epoll::fill(file, &watches).map_err(|(at, errno)| {
            let what = watches.get(at).map_or("its files".into(), |watch| format!("descriptor {}", watch.number));
            Error::kernel(object(entry.id), format!("make it watch {what}"), errno)
        })?;
        of_signals.into_iter().try_for_each(|(tfd, id)| watch_signals(cx, entry.id, id, tfd))
    }
}

/// Lets a process of the tree add the watch of a signalfd to a set.
fn watch_signals(cx: &mut Settle<'_>, set: u32, signals: u32, tfd: &EventpollTfdEntry) -> Result<()> {
    let number = tfd.tfd as i32;
    let ((pid, set_number), source) = adder(cx.places, set, signals, number).ok_or_else(|| nowhere(set, tfd))?;
    let mut b = Batch::new();
    let event = b.bytes(&epoll::event(tfd.events, tfd.data));
    let add = |b: &mut Batch, set: Arg| {
        b.call(libc::SYS_epoll_ctl, [set, libc::EPOLL_CTL_ADD.into(), number.into(), event.into()]);
    };
    if source == (pid, number) {
        add(&mut b, set_number.into());
        return cx.run_in(pid, &mut b);
    }
    // All that is needed is taken above the number first, which then gets that meaning for a moment.
    let above =
        |b: &mut Batch, file: Arg| b.call(libc::SYS_fcntl, [file, libc::F_DUPFD_CLOEXEC.into(), (number + 1).into()]);
    let high_set = above(&mut b, set_number.into());
    let high_signals = if source.0 == pid {
        above(&mut b, source.1.into())
    } else {
        let process = b.call(libc::SYS_pidfd_open, [cx.numbers.seen_from(pid, source.0).into(), 0.into()]);
        let got = b.call(libc::SYS_pidfd_getfd, [process.into(), source.1.into(), 0.into()]);
        let high = above(&mut b, got.into());
        b.call(libc::SYS_close, [got.into()]);
        b.call(libc::SYS_close, [process.into()]);
        high
    };
    let taken = cx.places.values().flatten().any(|&place| place == (pid, number));
    let kept = taken.then(|| {
        let flags = b.call(libc::SYS_fcntl, [number.into(), libc::F_GETFD.into()]);
        (above(&mut b, number.into()), flags)
    });
    b.call(libc::SYS_dup3, [high_signals.into(), number.into(), 0.into()]);
    add(&mut b, high_set.into());
    if let Some((file, flags)) = kept {
        b.call(libc::SYS_dup3, [file.into(), number.into(), 0.into()]);
        b.call(libc::SYS_fcntl, [number.into(), libc::F_SETFD.into(), flags.into()]);
        b.call(libc::SYS_close, [file.into()]);
    } else {
        b.call(libc::SYS_close, [number.into()]);
    }
    b.call(libc::SYS_close, [high_signals.into()]);
    b.call(libc::SYS_close, [high_set.into()]);
    cx.run_in(pid, &mut b)
}

/// A process and its number for a file.
type Place = (i32, i32);

/// Who shall add the watch of a signalfd: where the set is, and where the signalfd; in one process if any has both, the
/// latter under the watch's number if any has it so.
fn adder(places: &HashMap<u32, Vec<Place>>, set: u32, signals: u32, number: i32) -> Option<(Place, Place)> {
    let (sets, signals) = (places.get(&set)?, places.get(&signals)?);
    let pairs = || sets.iter().flat_map(|set| signals.iter().map(move |signals| (*set, *signals)));
    let together = |pair: &(Place, Place)| pair.0.0 == pair.1.0;
    pairs()
        .filter(together)
        .find(|pair| pair.1.1 == number)
        .or_else(|| pairs().find(together))
        .or_else(|| pairs().next())
}

fn object(id: u32) -> Object {
    Object::File(id, "eventpoll".into())
}

fn elsewhere_name(id: u32) -> String {
    format!("epoll-{id}")
}

fn record(id: u32, target: &EpollTarget) -> EventpollTfdEntry {
    EventpollTfdEntry {
        id,
        tfd: target.fd as u32,
        events: target.events,
        data: target.data,
        dev: Some(target.sdev),
        inode: Some(target.ino),
        pos: Some(target.pos as u64),
    }
}

/// Finds the file that is watched under a number, the `nth` with it; `None` if
/// the process has it under that number, else which process has it where.
fn find(cx: &Collect<'_>, file: &OpenFile<'_>, target: &EpollTarget, nth: u32) -> Result<Option<(i32, i32)>> {
    let owner = pid_of(file.speaker)?;
    let is = |pid: i32, fd: i32| match kcmp::epoll_target(pid_of(cx.speaker(pid))?, fd, owner, file.fd, target.fd, nth)
    {
        Ok(order) => Ok(order.is_eq()),
        Err(Errno::BADF) => Ok(false),
        Err(e) => {
            Err(Error::kernel(file.object(), format!("see what it watches as descriptor {} (kcmp)", target.fd), e))
        }
    };
    // Numbers mean nothing where the set itself is but on its way.
    let holder = file.carrier.is_none().then_some(file.pid);
    if holder.map_or(Ok(false), |pid| is(pid, target.fd))? {
        return Ok(None);
    }
    let others = cx.pids.iter().copied().filter(|&pid| Some(pid) != holder);
    for pid in holder.into_iter().chain(others) {
        let task = Task::open(pid_of(cx.speaker(pid))?)?;
        for fd in task.fds()? {
            if is(pid, fd)? {
                let status = task.status()?;
                return Ok(Some((status.ns_tgid.last().copied().unwrap_or(pid), fd)));
            }
        }
    }
    Err(Error::unsupported(
        file.object(),
        format!("it watches a file, added as descriptor {}, that no process of the tree has open", target.fd),
        "let the workload remove it from the set, or keep it open",
    ))
}

fn nowhere(id: u32, tfd: &EventpollTfdEntry) -> Error {
    Error::bad_image("files.img", format!("event poll {id:#x} watches descriptor {}, which no process has", tfd.tfd))
}

/// The ids of the watched files, one for each watch. A number means what it
/// does in the first process that has the set; in CRIU's images, that was the
/// one it was collected from.
fn watched(
    id: u32,
    tfds: &[EventpollTfdEntry],
    elsewhere: &[Elsewhere],
    places: &HashMap<u32, Vec<(i32, i32)>>,
) -> Result<Vec<u32>> {
    let holders: Vec<i32> = places.get(&id).into_iter().flatten().map(|place| place.0).collect();
    let all: HashMap<(i32, i32), u32> =
        places.iter().flat_map(|(&id, at)| at.iter().map(move |&place| (place, id))).collect();
    let moved: HashMap<usize, (i32, i32)> = elsewhere.iter().map(|e| (e.watch, (e.pid, e.fd))).collect();
    let find = |(at, tfd): (usize, &EventpollTfdEntry)| {
        let found = match moved.get(&at) {
            Some(place) => all.get(place),
            None => holders.iter().find_map(|&pid| all.get(&(pid, tfd.tfd as i32))),
        };
        found.copied().ok_or_else(|| nowhere(id, tfd))
    };
    tfds.iter().enumerate().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;
    use rustix::event::epoll::{self, EventData, EventFlags};
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::AsRawFd;

    #[test]
    fn watches_come_back_under_their_numbers_wherever_their_file_is() {
        let set = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let outer = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let event = eventfd(1, EventfdFlags::empty()).unwrap();
        let moved = eventfd(0, EventfdFlags::empty()).unwrap();
        let twin = moved.try_clone().unwrap();
        epoll::add(&set, &event, EventData::new_u64(7), EventFlags::IN | EventFlags::ET).unwrap();
        epoll::add(&set, &twin, EventData::new_u64(8), EventFlags::IN).unwrap();
        epoll::add(&outer, &set, EventData::new_u64(9), EventFlags::IN).unwrap();
        let gone = twin.as_raw_fd();
        drop(twin);
        let originals: [&OwnedFd; 4] = [&event, &set, &moved, &outer];
        let carried = Carried::collect(&originals.map(|fd| fd as &dyn AsFd)).build(RestoreOptions::default());
        carried.settle(&originals.map(|fd| fd.as_raw_fd()));

        let targets = |fd: &OwnedFd| match Task::current().unwrap().fdinfo(fd.as_raw_fd()).unwrap().details {
            Details::Epoll(mut all) => {
                all.sort_by_key(|t| t.data);
                all.iter().map(|t| (t.fd, t.events, t.data)).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(targets(carried.file(1)), targets(&set));
        assert_eq!(targets(carried.file(3)), targets(&outer));
        assert_eq!(targets(&set).last().unwrap().0, gone);
        rustix::io::write(carried.file(2), &1u64.to_ne_bytes()).unwrap();
        let mut ready = Vec::with_capacity(8);
        epoll::wait(carried.file(1), rustix::buffer::spare_capacity(&mut ready), None).unwrap();
        let mut data: Vec<u64> = ready.iter().map(|e: &epoll::Event| e.data.u64()).collect();
        data.sort_unstable();
        assert_eq!(data, [7, 8]);
    }

    #[test]
    fn a_set_that_watches_a_file_of_nobody_is_refused() {
        let set = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let event = eventfd(1, EventfdFlags::empty()).unwrap();
        epoll::add(&set, &event, EventData::new_u64(7), EventFlags::IN).unwrap();
        // Kept alive by a message under way to ourselves alone.
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        let fds = [event.as_fd()];
        control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
        let io = [std::io::IoSlice::new(b"x")];
        rustix::net::sendmsg(&one, &io, &mut control, rustix::net::SendFlags::empty()).unwrap();
        drop(event);
        let error = Carried::try_collect(&[&set]).err().unwrap();
        assert!(error.to_string().contains("no process of the tree has open"), "{error}");
    }
}
