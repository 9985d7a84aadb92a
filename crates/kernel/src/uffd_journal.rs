//! Events of userfaultfds, read into memory that outlives the reader.
//!
//! An event is told once: a reader that is killed behind read(2) would take it along, and with a fork's event the only
//! descriptor for the child's memory. So they are read into memory that another process shares. A process that is killed
//! within a system call finishes it first: an event is either in the queue still or in the journal. Descriptors are not
//! lost either, if that other process shares the reader's table of them ([`crate::sys::aside::split`]).

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap_anonymous, munmap};

use crate::sys::check;
use crate::uffd::{Event, MESSAGE, Uffd, event};

/// Messages that are read at once.
const AT_ONCE: usize = 8;
/// Bytes of a journal.
const LEN: usize = 128 << 10;
const SLOTS: usize = LEN / MESSAGE;

/// The first byte of a slot that is no message of the kernel's: whose messages follow, and that one has been given up.
const OF: u8 = 0xf0;
const CLOSED: u8 = 0xf1;
const QUIET: u8 = 0xf2;
const _: () = assert!(OF as u32 > linux_raw_sys::general::UFFD_EVENT_UNMAP);

/// What stands in a journal, with the number of the userfaultfd that it is about.
#[derive(Debug)]
pub enum Entry {
    /// An event; not faults, which are told again once their waiters are woken.
    Event(RawFd, Event),
    /// The userfaultfd is not used any more, and its number may be another's.
    Closed(RawFd),
    /// What the reader has noted of it.
    Quiet(RawFd),
}

/// A journal.
#[derive(Debug)]
pub struct Journal {
    /// `SLOTS` slots, shared with processes that are copies of this one. Those from `used` on are zero.
    base: NonNull<[u8; MESSAGE]>,
    used: usize,
}

impl Journal {
    /// An empty one, all of it in memory.
    pub fn new() -> Result<Self, Errno> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces none.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), LEN, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        // SAFETY: locking changes no contents. A limit may forbid it; then what is swapped out comes back.
        let _ = unsafe { mlock(base, LEN) };
        Ok(Journal { base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?, used: 0 })
    }

    /// Whether there is no room for what a read may bring.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.used + 1 + AT_ONCE > SLOTS
    }

    /// Reads events of a userfaultfd, and adds them to `events`. EAGAIN when there are none; ENOSPC when the journal is
    /// full.
    pub fn read(&mut self, uffd: &Uffd, events: &mut Vec<Event>) -> Result<(), Errno> {
        if self.is_full() {
            return Err(Errno::NOSPC);
        }
        let number = uffd.as_fd().as_raw_fd();
        self.write(self.used, OF, number);
        let room = self.slot(self.used + 1);
        // SAFETY: `AT_ONCE` slots behind the first are within the mapping, by the check above; nothing refers to them.
        let got = check(unsafe { libc::read(number, room.as_ptr().cast(), AT_ONCE * MESSAGE) })? as usize / MESSAGE;
        let before = events.len();
        events.extend((0..got).filter_map(|index| event(&self.message(self.used + 1 + index))));
        if events[before..].iter().all(|event| matches!(event, Event::Pagefault { .. })) {
            // Nothing has changed by them.
            (0..=got).rev().for_each(|index| self.clear(self.used + index));
        } else {
            self.used += 1 + got;
        }
        Ok(())
    }

    /// Notes that a userfaultfd is about to be closed.
    pub fn note_closed(&mut self, uffd: &Uffd) -> Result<(), Errno> {
        self.note(CLOSED, uffd)
    }

    /// Notes that all changes of its memory that have been begun have been told of.
    pub fn note_quiet(&mut self, uffd: &Uffd) -> Result<(), Errno> {
        self.note(QUIET, uffd)
    }

    fn note(&mut self, kind: u8, uffd: &Uffd) -> Result<(), Errno> {
        if self.is_full() {
            return Err(Errno::NOSPC);
        }
        self.write(self.used, kind, uffd.as_fd().as_raw_fd());
        self.used += 1;
        Ok(())
    }

    /// What another process has left in it by its end. The descriptors of forks are ours from then on.
    #[must_use]
    pub fn replay(&mut self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut of = -1;
        for index in 0..SLOTS {
            let message = self.message(index);
            let number = RawFd::from_ne_bytes([message[8], message[9], message[10], message[11]]);
            match message[0] {
                0 => break,
                OF => of = number,
                CLOSED => entries.push(Entry::Closed(number)),
                QUIET => entries.push(Entry::Quiet(number)),
                _ => match event(&message) {
                    None | Some(Event::Pagefault { .. }) => {}
                    Some(event) => entries.push(Entry::Event(of, event)),
                },
            }
        }
        entries
    }

    fn slot(&self, index: usize) -> NonNull<[u8; MESSAGE]> {
        assert!(index < SLOTS);
        // SAFETY: the index is within the mapping.
        unsafe { self.base.add(index) }
    }

    fn message(&self, index: usize) -> [u8; MESSAGE] {
        // SAFETY: the slot is within the mapping, and any bytes are a message. Who shares it writes only as long as we
        // do not read: see the module.
        unsafe { self.slot(index).read_volatile() }
    }

    fn clear(&mut self, index: usize) {
        // SAFETY: as above; nothing refers to it.
        unsafe { self.slot(index).write_volatile([0; MESSAGE]) };
    }

    fn write(&mut self, index: usize, kind: u8, number: RawFd) {
        let mut message = [0; MESSAGE];
        message[0] = kind;
        message[8..12].copy_from_slice(&number.to_ne_bytes());
        // SAFETY: as above.
        unsafe { self.slot(index).write_volatile(message) };
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing refers to it; failing, it only stays. Other processes have
        // it by a mapping of their own.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uffd::{Features, Mode};
    use rustix::mm::Advice;

    #[test]
    fn what_was_read_can_be_read_again() {
        // SAFETY: it is used on a mapping of the test's own, to which no reference exists.
        let Ok(uffd) = (unsafe { Uffd::create() }) else { return };
        if uffd.api(Features::EVENT_REMOVE | Features::EVENT_UNMAP).is_err() {
            return;
        }
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping replaces none.
        let area = unsafe { mmap_anonymous(std::ptr::null_mut(), 4 * 4096, prot, MapFlags::PRIVATE) }.unwrap() as u64;
        uffd.register(area, 4 * 4096, Mode::MISSING).unwrap();
        let number = uffd.as_fd().as_raw_fd();
        let mut journal = Journal::new().unwrap();
        let mut events = Vec::new();
        assert_eq!(journal.read(&uffd, &mut events), Err(Errno::AGAIN));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // SAFETY: nothing refers to the mapping.
                unsafe {
                    rustix::mm::madvise(area as *mut _, 4096, Advice::LinuxDontNeed).unwrap();
                    munmap(area as *mut _, 2 * 4096).unwrap();
                }
            });
            while events.len() < 2 {
                let _ = journal.read(&uffd, &mut events);
                std::thread::yield_now();
            }
        });
        journal.note_closed(&uffd).unwrap();
        let entries = journal.replay();
        let (remove, unmap) = (area..area + 4096, area..area + 2 * 4096);
        assert!(matches!(&entries[..], [
            Entry::Event(a, Event::Remove { start, end }), Entry::Event(b, Event::Unmap { start: from, end: to }),
            Entry::Closed(c),
        ] if [*a, *b, *c] == [number; 3] && (*start..*end, *from..*to) == (remove, unmap)));
    }
}
