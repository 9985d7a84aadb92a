//! Filling an epoll set with watches under descriptor numbers of somebody else's.
//!
//! The kernel knows a watch by its open file description and the number under which it was added (epoll(7)), and
//! `EPOLL_CTL_DEL` wants that number again. So a watch is added where the number means the file: in a child with a
//! descriptor table of its own, in which any number can be given any meaning.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::event::EventfdFlags;
use rustix::io::Errno;

use super::process::{Spawn, spawn};
use super::wait::{WaitStatus, Who, wait};

/// Bits that say how to watch, not what for; all that is left of a one-shot watch that has fired.
const HOW: u32 = (libc::EPOLLET | libc::EPOLLONESHOT | libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE) as u32;

/// Events of which one is true of most files at most times.
const LIKELY: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP) as u32;

/// What an epoll set shall watch.
#[derive(Debug, Clone, Copy)]
pub struct Watch<'a> {
    /// The number under which it is added.
    pub number: i32,
    pub file: BorrowedFd<'a>,
    /// `EPOLL*`, as fdinfo shows them: only "how" bits for a one-shot watch that has fired.
    pub events: u32,
    pub data: u64,
}

impl Watch<'_> {
    fn has_fired(&self) -> bool {
        self.events & libc::EPOLLONESHOT as u32 != 0 && self.events & !HOW == 0
    }
}

/// A `struct epoll_event` as `epoll_ctl(2)` reads it.
#[must_use]
pub fn event(events: u32, data: u64) -> [u8; size_of::<libc::epoll_event>()] {
    const DATA: usize = std::mem::offset_of!(libc::epoll_event, u64);
    let mut bytes = [0; size_of::<libc::epoll_event>()];
    bytes[..4].copy_from_slice(&events.to_ne_bytes());
    bytes[DATA..DATA + 8].copy_from_slice(&data.to_ne_bytes());
    bytes
}

/// Adds watches to a set that has none. On failure tells which watch it was (`watches.len()`: none in particular).
///
/// A fired one-shot watch cannot be added as such: the kernel always adds errors and hang-ups. It is added and made to
/// fire where the file has any event at the moment, and otherwise fires once more on an error or a hang-up.
pub fn fill(epoll: BorrowedFd<'_>, watches: &[Watch<'_>]) -> Result<(), (usize, Errno)> {
    let none = watches.len();
    let general = |errno| (none, errno);
    let mut ordered: Vec<usize> = (0..watches.len()).collect();
    // Fired ones first: what a wait returns is then one of them.
    ordered.sort_by_key(|&at| !watches[at].has_fired());
    let top = watches.iter().map(|watch| watch.number).max().map_or(0, |number| number + 1);
    let mut high = vec![-1; watches.len()];
    let culprit = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(general)?;
    let (culprit_fd, epoll_fd) = (culprit.as_raw_fd(), epoll.as_raw_fd());
    // SAFETY: the body makes system calls and touches memory that was allocated before; it neither allocates nor
    // unwinds: `high` and `ordered` are as long as `watches`, and `ordered` holds indexes of it.
    let child = unsafe {
        spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
            child(epoll_fd, culprit_fd, top, watches, &ordered, &mut high)
        })
    }
    .map_err(general)?;
    let status = loop {
        match wait(Who::One(child.pid)) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(general(errno)),
            Ok((_, status)) => break status,
        }
    };
    match status {
        WaitStatus::Exited(0) => Ok(()),
        WaitStatus::Exited(errno) => {
            let mut at = [0; 8];
            let at = rustix::io::read(&culprit, &mut at).map_or(none, |_| u64::from_ne_bytes(at) as usize - 1);
            Err((at, Errno::from_raw_os_error(errno)))
        }
        _ => Err(general(Errno::CHILD)),
    }
}

/// Ends with an errno, or 0. Tells the index of the culprit, plus one, to the eventfd.
fn child(epoll: i32, culprit: i32, top: i32, watches: &[Watch<'_>], ordered: &[usize], high: &mut [i32]) -> i32 {
    raise_limit();
    let failed = |at: usize| {
        let errno = super::last_errno().raw_os_error();
        let at = (at as u64 + 1).to_ne_bytes();
        // SAFETY: writes 8 bytes of a local.
        unsafe { libc::write(culprit, at.as_ptr().cast(), at.len()) };
        errno
    };
    // Nothing may stand where a watch's number will be.
    // SAFETY: F_DUPFD takes an integer; the descriptors of this child are its own.
    let (epoll, culprit_copy) =
        unsafe { (libc::fcntl(epoll, libc::F_DUPFD, top), libc::fcntl(culprit, libc::F_DUPFD, top)) };
    if epoll < 0 || culprit_copy < 0 {
        return super::last_errno().raw_os_error();
    }
    for (at, watch) in watches.iter().enumerate() {
        // SAFETY: as above.
        high[at] = unsafe { libc::fcntl(watch.file.as_raw_fd(), libc::F_DUPFD, top) };
        if high[at] < 0 {
            return failed(at);
        }
    }
    let failed = |at: usize| {
        // SAFETY: as above; the number may be that of a watch by now.
        unsafe { libc::dup2(culprit_copy, culprit) };
        failed(at)
    };
    for &at in ordered {
        let watch = &watches[at];
        // SAFETY: as above.
        if unsafe { libc::dup2(high[at], watch.number) } < 0 || !add(epoll, watch) {
            return failed(at);
        }
    }
    0
}

fn add(epoll: i32, watch: &Watch<'_>) -> bool {
    let mut event = libc::epoll_event { events: watch.events, u64: watch.data };
    if !watch.has_fired() {
        // SAFETY: the kernel reads one epoll_event.
        return unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, watch.number, &raw mut event) } == 0;
    }
    event.events = watch.events | LIKELY;
    let mut fired = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the kernel reads one epoll_event and writes at most one.
    unsafe {
        if libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, watch.number, &raw mut event) != 0 {
            return false;
        }
        if libc::epoll_wait(epoll, &raw mut fired, 1, 0) == 1 {
            return true;
        }
        event.events = watch.events;
        libc::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, watch.number, &raw mut event) == 0
    }
}

/// The workload may have had higher numbers than we are allowed.
fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads and writes one rlimit each; the limit is that of this child.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::{Task, fdinfo::Details};
    use rustix::event::epoll;
    use std::os::fd::AsFd;

    #[test]
    fn watches_stand_under_the_numbers_told() {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let watch = |number, file, events: i32, data| Watch { number, file, events: events as u32, data };
        let watches = [
            watch(set.as_raw_fd(), reader.as_fd(), libc::EPOLLIN | libc::EPOLLET, 1),
            watch(5000, reader.as_fd(), libc::EPOLLIN | libc::EPOLLERR | libc::EPOLLHUP, u64::MAX),
            watch(5000, writer.as_fd(), libc::EPOLLONESHOT, 3),
            watch(writer.as_raw_fd(), reader.as_fd(), libc::EPOLLONESHOT, 4),
        ];
        fill(set.as_fd(), &watches).unwrap();
        let Details::Epoll(mut found) = Task::current().unwrap().fdinfo(set.as_raw_fd()).unwrap().details else {
            panic!("no epoll")
        };
        found.sort_by_key(|target| target.data);
        let always = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        let seen: Vec<_> = found.iter().map(|target| (target.fd, target.events, target.data)).collect();
        assert_eq!(seen[0], (set.as_raw_fd(), watches[0].events | always, 1));
        // The writer can be written to: it has fired. The reader cannot be read.
        assert_eq!(seen[1], (5000, libc::EPOLLONESHOT as u32, 3));
        assert_eq!(seen[2], (writer.as_raw_fd(), libc::EPOLLONESHOT as u32 | always, 4));
        assert_eq!(seen[3], (5000, watches[1].events, u64::MAX));
        let file = tempfile::tempfile().unwrap();
        let bad = [watch(77, file.as_fd(), libc::EPOLLIN, 0)];
        assert_eq!(fill(set.as_fd(), &bad), Err((0, Errno::PERM)));
    }
}
