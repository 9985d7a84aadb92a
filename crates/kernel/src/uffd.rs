//! userfaultfd(2): telling who writes to memory, and filling it on demand.
//!
//! A userfaultfd acts on the address space that it was made in. The brain takes the one that a target made for itself
//! (pidfd_getfd) and works on the target's memory from outside. That is what the safe functions of [`Uffd`] are for:
//! on one's own memory they would be as far out of Rust's sight as a write to `/proc/self/mem`.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use bitflags::bitflags;
use linux_raw_sys::general as uapi;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;

/// The ioctl numbers and structs, for the calls that a target makes itself.
pub mod raw {
    use super::{Opcode, opcode, uapi};
    pub use uapi::{
        uffdio_api, uffdio_copy, uffdio_move, uffdio_poison, uffdio_range, uffdio_register, uffdio_writeprotect,
        uffdio_zeropage,
    };

    pub const UFFDIO_API: Opcode = opcode::read_write::<uffdio_api>(0xaa, 0x3f);
    pub const UFFDIO_REGISTER: Opcode = opcode::read_write::<uffdio_register>(0xaa, 0);
    pub const UFFDIO_UNREGISTER: Opcode = opcode::read::<uffdio_range>(0xaa, 1);
    pub const UFFDIO_WAKE: Opcode = opcode::read::<uffdio_range>(0xaa, 2);
    pub const UFFDIO_COPY: Opcode = opcode::read_write::<uffdio_copy>(0xaa, 3);
    pub const UFFDIO_ZEROPAGE: Opcode = opcode::read_write::<uffdio_zeropage>(0xaa, 4);
    /// Moves pages within one address space: the kernel lets only its own process ask. Linux 6.8.
    pub const UFFDIO_MOVE: Opcode = opcode::read_write::<uffdio_move>(0xaa, 5);
    pub const UFFDIO_WRITEPROTECT: Opcode = opcode::read_write::<uffdio_writeprotect>(0xaa, 6);
    /// Linux 6.6.
    pub const UFFDIO_POISON: Opcode = opcode::read_write::<uffdio_poison>(0xaa, 8);
    /// Of `/dev/userfaultfd`: a new userfaultfd of the caller's. Linux 6.1.
    pub const USERFAULTFD_IOC_NEW: Opcode = opcode::none(0xaa, 0);

    const _: () = assert!(UFFDIO_API == 0xc018_aa3f && UFFDIO_REGISTER == 0xc020_aa00);
    const _: () = assert!(UFFDIO_UNREGISTER == 0x8010_aa01 && UFFDIO_WAKE == 0x8010_aa02);
    const _: () = assert!(UFFDIO_COPY == 0xc028_aa03 && UFFDIO_ZEROPAGE == 0xc020_aa04);
    const _: () = assert!(UFFDIO_MOVE == 0xc028_aa05 && UFFDIO_WRITEPROTECT == 0xc018_aa06);
    const _: () = assert!(UFFDIO_POISON == 0xc020_aa08 && USERFAULTFD_IOC_NEW == 0xaa00);
}

bitflags! {
    /// `UFFD_FEATURE_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Features: u64 {
        /// Write protection of anonymous memory. Linux 5.7.
        const PAGEFAULT_FLAG_WP = uapi::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64;
        /// An event, with a new userfaultfd, when the process forks. Needs CAP_SYS_PTRACE.
        const EVENT_FORK = uapi::UFFD_FEATURE_EVENT_FORK as u64;
        const EVENT_REMAP = uapi::UFFD_FEATURE_EVENT_REMAP as u64;
        const EVENT_REMOVE = uapi::UFFD_FEATURE_EVENT_REMOVE as u64;
        const MISSING_HUGETLBFS = uapi::UFFD_FEATURE_MISSING_HUGETLBFS as u64;
        const MISSING_SHMEM = uapi::UFFD_FEATURE_MISSING_SHMEM as u64;
        const EVENT_UNMAP = uapi::UFFD_FEATURE_EVENT_UNMAP as u64;
        const SIGBUS = uapi::UFFD_FEATURE_SIGBUS as u64;
        const THREAD_ID = uapi::UFFD_FEATURE_THREAD_ID as u64;
        const MINOR_HUGETLBFS = uapi::UFFD_FEATURE_MINOR_HUGETLBFS as u64;
        const MINOR_SHMEM = uapi::UFFD_FEATURE_MINOR_SHMEM as u64;
        const EXACT_ADDRESS = uapi::UFFD_FEATURE_EXACT_ADDRESS as u64;
        /// Linux 5.19.
        const WP_HUGETLBFS_SHMEM = uapi::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64;
        /// Pages that do not exist yet can be protected. Linux 6.4.
        const WP_UNPOPULATED = uapi::UFFD_FEATURE_WP_UNPOPULATED as u64;
        const POISON = uapi::UFFD_FEATURE_POISON as u64;
        /// A write to a protected page is let through at once and only noted, for PAGEMAP_SCAN to tell. Linux 6.7.
        const WP_ASYNC = uapi::UFFD_FEATURE_WP_ASYNC as u64;
        /// UFFDIO_MOVE. Linux 6.8.
        const MOVE = uapi::UFFD_FEATURE_MOVE as u64;
        /// Known or not: what the kernel told.
        const _ = !0;
    }
}

bitflags! {
    /// `UFFDIO_REGISTER_MODE_*`: which faults of a range are told.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Mode: u64 {
        const MISSING = uapi::UFFDIO_REGISTER_MODE_MISSING as u64;
        const WP = uapi::UFFDIO_REGISTER_MODE_WP as u64;
        const MINOR = uapi::UFFDIO_REGISTER_MODE_MINOR as u64;
    }
}

bitflags! {
    /// `UFFDIO_COPY_MODE_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct CopyMode: u64 {
        /// Leaves who waits for the page asleep.
        const DONTWAKE = uapi::UFFDIO_COPY_MODE_DONTWAKE as u64;
        /// Write-protects the new page.
        const WP = uapi::UFFDIO_COPY_MODE_WP as u64;
    }
}

/// What the kernel tells through a userfaultfd.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for a page.
    Pagefault {
        /// The address, rounded down to its page unless `EXACT_ADDRESS`.
        address: u64,
        write: bool,
        /// It wrote to a protected page.
        protected: bool,
        minor: bool,
        /// With `THREAD_ID` only: its tid in the namespace of whoever made the userfaultfd.
        thread: u32,
    },
    /// The process forked; this one acts on the child's memory.
    Fork(Uffd),
    Remap {
        from: u64,
        to: u64,
        len: u64,
    },
    /// Pages were dropped (MADV_DONTNEED and kin): they read as new again.
    Remove {
        start: u64,
        end: u64,
    },
    Unmap {
        start: u64,
        end: u64,
    },
}

/// A userfaultfd. Addresses are page-aligned and of its own address space.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

impl Uffd {
    /// Takes a userfaultfd that another process has made, API handshake included or not.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Makes one for the calling process' own memory, by the system call or, where `vm.unprivileged_userfaultfd` and
    /// missing CAP_SYS_PTRACE forbid that, by `/dev/userfaultfd` (Linux 6.1). Close-on-exec and non-blocking.
    ///
    /// # Safety
    /// What is done through it must not change memory that Rust code holds references to.
    pub unsafe fn create() -> Result<Self, Errno> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: the new descriptor changes nothing by itself; its use is bound by this function's contract.
        match unsafe { rustix::mm::userfaultfd(flags) } {
            Ok(fd) => Ok(Self { fd }),
            Err(Errno::PERM) => create_by_device().map(|fd| Self { fd }),
            Err(errno) => Err(errno),
        }
    }

    /// The handshake that must come first and only once: asks for `wanted`, answers with what the kernel can do.
    /// EINVAL when it cannot do all that is wanted.
    pub fn api(&self, wanted: Features) -> Result<Features, Errno> {
        let mut arg = uapi::uffdio_api { api: u64::from(uapi::UFFD_API), features: wanted.bits(), ioctls: 0 };
        // SAFETY: UFFDIO_API reads and writes one uffdio_api.
        unsafe { ioctl(&self.fd, Updater::<{ raw::UFFDIO_API }, _>::new(&mut arg)) }?;
        Ok(Features::from_bits_retain(arg.features))
    }

    /// Registers a range. Answers with the ioctls that its memory allows: bit n for the one numbered n.
    pub fn register(&self, start: u64, len: u64, mode: Mode) -> Result<u64, Errno> {
        let range = uapi::uffdio_range { start, len };
        let mut arg = uapi::uffdio_register { range, mode: mode.bits(), ioctls: 0 };
        // SAFETY: UFFDIO_REGISTER reads and writes one uffdio_register; what it does to the range is this type's
        // contract.
        unsafe { ioctl(&self.fd, Updater::<{ raw::UFFDIO_REGISTER }, _>::new(&mut arg)) }?;
        Ok(arg.ioctls)
    }

    /// Ends a registration: protection is lifted and waiters are woken.
    pub fn unregister(&self, start: u64, len: u64) -> Result<(), Errno> {
        let range = uapi::uffdio_range { start, len };
        // SAFETY: UFFDIO_UNREGISTER reads one uffdio_range.
        unsafe { ioctl(&self.fd, Setter::<{ raw::UFFDIO_UNREGISTER }, _>::new(range)) }
    }

    /// Wakes who waits for pages of a range.
    pub fn wake(&self, start: u64, len: u64) -> Result<(), Errno> {
        let range = uapi::uffdio_range { start, len };
        // SAFETY: UFFDIO_WAKE reads one uffdio_range.
        unsafe { ioctl(&self.fd, Setter::<{ raw::UFFDIO_WAKE }, _>::new(range)) }
    }

    /// Write-protects a range, or lifts it and wakes the waiters. ENOENT where it is not registered for it.
    pub fn write_protect(&self, start: u64, len: u64, protect: bool) -> Result<(), Errno> {
        let range = uapi::uffdio_range { start, len };
        let mut arg = uapi::uffdio_writeprotect { range, mode: u64::from(protect) };
        // SAFETY: UFFDIO_WRITEPROTECT reads one uffdio_writeprotect; it takes access away or gives it back, contents
        // stay.
        unsafe { ioctl(&self.fd, Updater::<{ raw::UFFDIO_WRITEPROTECT }, _>::new(&mut arg)) }
    }

    /// Puts pages that do not exist yet at `target`, with contents from the caller's memory. Returns the bytes done,
    /// which may be less than asked for when the address space changes meanwhile; EEXIST when the first page is there,
    /// ENOENT when it is not registered (any more), ESRCH when the process has gone.
    pub fn copy(&self, target: u64, from: &[u8], mode: CopyMode) -> Result<usize, Errno> {
        let mut arg = uapi::uffdio_copy {
            dst: target,
            src: from.as_ptr() as u64,
            len: from.len() as u64,
            mode: mode.bits(),
            copy: 0,
        };
        // SAFETY: UFFDIO_COPY reads and writes one uffdio_copy and reads `len` bytes at `src` in the caller's memory,
        // which is all of `from`.
        let answer = unsafe { ioctl(&self.fd, Updater::<{ raw::UFFDIO_COPY }, _>::new(&mut arg)) };
        done(answer, arg.copy)
    }

    /// Puts pages of zeros that do not exist yet; as [`Uffd::copy`].
    pub fn zeropage(&self, start: u64, len: u64, wake: bool) -> Result<usize, Errno> {
        let range = uapi::uffdio_range { start, len };
        let mode = if wake { 0 } else { u64::from(uapi::UFFDIO_ZEROPAGE_MODE_DONTWAKE) };
        let mut arg = uapi::uffdio_zeropage { range, mode, zeropage: 0 };
        // SAFETY: UFFDIO_ZEROPAGE reads and writes one uffdio_zeropage.
        let answer = unsafe { ioctl(&self.fd, Updater::<{ raw::UFFDIO_ZEROPAGE }, _>::new(&mut arg)) };
        done(answer, arg.zeropage)
    }

    /// Has whoever touches a page that does not exist yet be told of a failed memory (SIGBUS), instead of giving it one.
    /// Linux 6.6; otherwise as [`Uffd::copy`].
    pub fn poison(&self, start: u64, len: u64) -> Result<usize, Errno> {
        let range = uapi::uffdio_range { start, len };
        let mut arg = uapi::uffdio_poison { range, mode: 0, updated: 0 };
        // SAFETY: UFFDIO_POISON reads and writes one uffdio_poison.
        let answer = unsafe { ioctl(&self.fd, Updater::<{ raw::UFFDIO_POISON }, _>::new(&mut arg)) };
        done(answer, arg.updated)
    }

    /// Reads events that have come, at most 16, and adds them to `events`. EAGAIN when there is none and the descriptor
    /// does not block.
    pub fn read_events(&self, events: &mut Vec<Event>) -> Result<(), Errno> {
        let mut messages = [0u8; 16 * MESSAGE];
        let count = rustix::io::read(&self.fd, &mut messages)?;
        for message in messages[..count].as_chunks::<MESSAGE>().0 {
            events.extend(event(message));
        }
        Ok(())
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What this kernel's userfaultfd can do for the caller. EPERM without the right to make one, ENOSYS without the call.
pub fn features() -> Result<Features, Errno> {
    // SAFETY: nothing is registered with it.
    unsafe { Uffd::create() }?.api(Features::empty())
}

fn create_by_device() -> Result<OwnedFd, Errno> {
    use rustix::fs::{Mode, OFlags};
    let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| if errno == Errno::NOENT { Errno::PERM } else { errno })?;
    let flags = (OFlags::CLOEXEC | OFlags::NONBLOCK).bits();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
    // SAFETY: USERFAULTFD_IOC_NEW takes an integer and returns a descriptor.
    let new = crate::sys::check(unsafe { libc::ioctl(fd, u64::from(raw::USERFAULTFD_IOC_NEW), u64::from(flags)) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// These ioctls fail with EAGAIN after having done a part, and tell in a field how much (or the errno, negated).
fn done(answer: Result<(), Errno>, count: i64) -> Result<usize, Errno> {
    match answer {
        Err(Errno::AGAIN) if count > 0 => Ok(count as usize),
        Err(errno) => Err(errno),
        Ok(()) => Ok(count as usize),
    }
}

/// Bytes of a `struct uffd_msg`.
pub(crate) const MESSAGE: usize = 32;
const _: () = assert!(size_of::<uapi::uffd_msg>() == MESSAGE);

/// One message; `None` for an event of a newer kernel, which none gets without asking for it.
pub(crate) fn event(message: &[u8; MESSAGE]) -> Option<Event> {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    let half = |at: usize| {
        let mut half = [0; 4];
        half.copy_from_slice(&message[at..at + 4]);
        u32::from_ne_bytes(half)
    };
    Some(match u32::from(message[0]) {
        uapi::UFFD_EVENT_PAGEFAULT => {
            let has = |flag: u32| word(8) & u64::from(flag) != 0;
            Event::Pagefault {
                address: word(16),
                write: has(uapi::UFFD_PAGEFAULT_FLAG_WRITE),
                protected: has(uapi::UFFD_PAGEFAULT_FLAG_WP),
                minor: has(uapi::UFFD_PAGEFAULT_FLAG_MINOR),
                thread: half(24),
            }
        }
        uapi::UFFD_EVENT_FORK => {
            // SAFETY: with the event the kernel has put this new descriptor into the reader's table; it is told once.
            let fd = unsafe { OwnedFd::from_raw_fd(half(8) as i32) };
            Event::Fork(Uffd { fd })
        }
        uapi::UFFD_EVENT_REMAP => Event::Remap { from: word(8), to: word(16), len: word(24) },
        uapi::UFFD_EVENT_REMOVE => Event::Remove { start: word(8), end: word(16) },
        uapi::UFFD_EVENT_UNMAP => Event::Unmap { start: word(8), end: word(16) },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagemap::{Categories, PAGE_SIZE, PageRuns, Query, ScanFlags};
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    struct Area {
        base: *mut u8,
        len: usize,
    }

    impl Area {
        fn new(pages: u64) -> Self {
            let len = (pages * PAGE_SIZE) as usize;
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping at the kernel's choice of address overlaps nothing of ours.
            let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE) }.unwrap();
            Self { base: base.cast(), len }
        }

        fn start(&self) -> u64 {
            self.base as u64
        }

        fn write(&self, page: usize, value: u8) {
            assert!(page * (PAGE_SIZE as usize) < self.len);
            // SAFETY: the page lies in the mapping, to which no reference exists.
            unsafe { self.base.add(page * PAGE_SIZE as usize).write_volatile(value) }
        }

        fn read(&self, page: usize) -> u8 {
            assert!(page * (PAGE_SIZE as usize) < self.len);
            // SAFETY: the page lies in the mapping, to which no reference exists.
            unsafe { self.base.add(page * PAGE_SIZE as usize).read_volatile() }
        }
    }

    impl Drop for Area {
        fn drop(&mut self) {
            // SAFETY: the mapping was made by `new` and is used no more.
            unsafe { munmap(self.base.cast(), self.len) }.unwrap();
        }
    }

    /// `None` where the caller may not, or the kernel cannot.
    fn uffd(wanted: Features) -> Option<Uffd> {
        // SAFETY: the tests use it on mappings of their own, to which no references exist.
        let uffd = unsafe { Uffd::create() }.ok()?;
        uffd.api(wanted).ok()?;
        Some(uffd)
    }

    #[test]
    fn missing_pages_are_filled() {
        let Some(uffd) = uffd(Features::empty()) else {
            return;
        };
        let area = Area::new(4);
        uffd.register(area.start(), area.len as u64, Mode::MISSING).unwrap();
        let page = [7u8; PAGE_SIZE as usize];
        assert_eq!(uffd.copy(area.start(), &page, CopyMode::empty()), Ok(page.len()));
        assert_eq!(uffd.copy(area.start(), &page, CopyMode::empty()), Err(Errno::EXIST));
        assert_eq!(uffd.zeropage(area.start() + PAGE_SIZE, PAGE_SIZE, true), Ok(page.len()));
        assert_eq!((area.read(0), area.read(1)), (7, 0));
        let mut events = Vec::new();
        assert_eq!(uffd.read_events(&mut events), Err(Errno::AGAIN));
        std::thread::scope(|scope| {
            let address = area.start() + 2 * PAGE_SIZE;
            // SAFETY: the address lies in the mapping, to which no reference exists.
            let reader = scope.spawn(move || unsafe { (address as *const u8).read_volatile() });
            while uffd.read_events(&mut events).is_err() {
                std::thread::yield_now();
            }
            assert!(matches!(events[0], Event::Pagefault { address: at, write: false, .. } if at == address));
            uffd.copy(address, &[9; PAGE_SIZE as usize], CopyMode::empty()).unwrap();
            assert_eq!(reader.join().unwrap(), 9);
        });
        uffd.unregister(area.start(), area.len as u64).unwrap();
        assert_eq!(area.read(3), 0);
    }

    #[test]
    fn asynchronous_protection_tells_the_written_pages() {
        let Some(uffd) = uffd(Features::WP_ASYNC | Features::WP_UNPOPULATED) else {
            return;
        };
        let area = Area::new(64);
        (0..32).for_each(|page| area.write(page, 1));
        uffd.register(area.start(), area.len as u64, Mode::WP).unwrap();
        uffd.write_protect(area.start(), area.len as u64, true).unwrap();
        area.write(3, 2);
        area.write(40, 2);
        let pagemap = crate::proc::Task::current().unwrap().open_file("pagemap", rustix::fs::OFlags::RDONLY).unwrap();
        let query = Query {
            start: area.start(),
            end: area.start() + area.len as u64,
            all: Categories::WRITTEN,
            tell: Categories::WRITTEN,
            flags: ScanFlags::WP_MATCHING | ScanFlags::CHECK_WPASYNC,
            ..Query::default()
        };
        let written = || {
            let runs = PageRuns::scan(pagemap.as_fd(), query).map(Result::unwrap);
            runs.map(|run| (run.start - query.start) / PAGE_SIZE).collect::<Vec<_>>()
        };
        assert_eq!(written(), [3, 40]);
        assert_eq!(written(), []);
        area.write(5, 2);
        assert_eq!(written(), [5]);
    }

    #[test]
    fn messages_are_decoded() {
        let mut message = [0u8; MESSAGE];
        message[0] = uapi::UFFD_EVENT_REMAP as u8;
        message[8] = 1;
        message[16] = 2;
        message[24] = 3;
        assert!(matches!(event(&message), Some(Event::Remap { from: 1, to: 2, len: 3 })));
        message[0] = uapi::UFFD_EVENT_PAGEFAULT as u8;
        message[8] = (uapi::UFFD_PAGEFAULT_FLAG_WP | uapi::UFFD_PAGEFAULT_FLAG_WRITE) as u8;
        let fault = Event::Pagefault { address: 2, write: true, protected: true, minor: false, thread: 3 };
        assert_eq!(format!("{:?}", event(&message).unwrap()), format!("{fault:?}"));
        message[0] = 99;
        assert!(event(&message).is_none());
    }
}
