//! Segments of System V shared memory (sysvipc(7)) of our ipc namespace.

use std::os::fd::OwnedFd;

use super::{check, huge};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Bits of the mode beside the permissions (linux/shm.h).
pub const REMOVED: u32 = 0o1000;
pub const LOCKED: u32 = 0o2000;
/// Where the kernel is told the id of the next segment that is made.
const NEXT_ID: &str = "/proc/sys/kernel/shm_next_id";

/// What a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// By which others find it; 0 for none.
    pub key: i32,
    /// Bytes, as they were asked for.
    pub size: u64,
    pub uid: u32,
    pub gid: u32,
    /// Permissions, [`REMOVED`], [`LOCKED`].
    pub mode: u32,
    /// How many mappings there are of it.
    pub attached: u64,
}

fn no_status() -> libc::shmid_ds {
    // SAFETY: a shmid_ds of zeros is a valid one.
    unsafe { std::mem::zeroed() }
}

/// What a segment is. EINVAL or EIDRM if there is none with this id.
pub fn status(id: i32) -> Result<Status, Errno> {
    let mut told = no_status();
    // SAFETY: IPC_STAT writes one shmid_ds.
    check(unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut told) })?;
    let perm = told.shm_perm;
    Ok(Status {
        key: perm.__key,
        size: told.shm_segsz as u64,
        uid: perm.uid,
        gid: perm.gid,
        mode: u32::from(perm.mode),
        attached: told.shm_nattch,
    })
}

/// Makes a segment with this id, of huge pages of so many bytes or of usual ones. EEXIST if its key is another's, EBUSY if
/// its id is, ENOMEM if too few huge pages are free. Needs CAP_CHECKPOINT_RESTORE.
pub fn create(id: i32, key: i32, size: u64, mode: u32, huge: Option<u64>) -> Result<(), Errno> {
    std::fs::write(NEXT_ID, id.to_string()).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    make(id, key, size, mode, huge)
}

/// The same when its id was chosen before ([`super::sysv_queues::choose_id`]).
pub fn make(id: i32, key: i32, size: u64, mode: u32, huge: Option<u64>) -> Result<(), Errno> {
    let size = usize::try_from(size).map_err(|_| Errno::NOMEM)?;
    let huge = huge.map_or(0, |page| libc::SHM_HUGETLB | huge::flag_of(page) as i32);
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | huge | (mode & 0o777) as i32;
    // SAFETY: shmget takes numbers alone.
    let made = check(unsafe { libc::shmget(key, size, flags) })?;
    if made == id {
        return Ok(());
    }
    remove(made)?;
    Err(Errno::BUSY)
}

/// Gives a segment its owner and permissions.
pub fn set_owner(id: i32, uid: u32, gid: u32, mode: u32) -> Result<(), Errno> {
    let mut wanted = no_status();
    (wanted.shm_perm.uid, wanted.shm_perm.gid) = (uid, gid);
    wanted.shm_perm.mode = (mode & 0o777) as _;
    // SAFETY: IPC_SET reads one shmid_ds.
    check(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut wanted) }).map(drop)
}

/// Keeps a segment in memory.
pub fn lock(id: i32) -> Result<(), Errno> {
    // SAFETY: SHM_LOCK takes no argument.
    check(unsafe { libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()) }).map(drop)
}

/// Removes a segment: it ends with its last mapping.
pub fn remove(id: i32) -> Result<(), Errno> {
    // SAFETY: IPC_RMID takes no argument.
    check(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// A segment without a key, removed already: others of our ipc namespace can attach it by its id as long as we have, and
/// it ends with the last mapping. Done to the end though we be killed, so that none is left to nobody.
pub fn nameless(size: usize, mode: u32) -> Result<(i32, Attached), Errno> {
    let make = || {
        // SAFETY: shmget takes numbers alone.
        let id = check(unsafe { libc::shmget(libc::IPC_PRIVATE, size, libc::IPC_CREAT | (mode & 0o777) as i32) })?;
        let attached = Attached::new(id, size as u64);
        remove(id)?;
        Ok((id, attached?))
    };
    // SAFETY: four system calls and arithmetic.
    unsafe { crate::errand::run(make) }
}

/// A mapping of ours, by which a segment is there.
#[derive(Debug)]
pub struct Attached {
    at: *mut libc::c_void,
    /// As asked for.
    len: usize,
}

// SAFETY: the mapping is the process's, not a thread's; nothing is read or written through the address.
unsafe impl Send for Attached {}
// SAFETY: as above.
unsafe impl Sync for Attached {}

impl Attached {
    /// Attaches a segment of so many bytes.
    pub fn new(id: i32, size: u64) -> Result<Self, Errno> {
        let len = usize::try_from(size).map_err(|_| Errno::NOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choice replaces none.
        let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        if at as isize == -1 { Err(super::last_errno()) } else { Ok(Self { at, len }) }
    }

    /// Where it is, readable and writable until this is dropped; page-aligned, of the segment's size.
    #[must_use]
    pub fn as_ptr(&self) -> *mut libc::c_void {
        self.at
    }

    /// Its memory as an open file. Needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the first user namespace.
    pub fn file(&self) -> Result<OwnedFd, Errno> {
        /// The mapping ends with a page, of whatever size that is: usual ones and huge ones of x86.
        const PAGES: [usize; 3] = [4096, 2 << 20, 1 << 30];
        let at = self.at as usize;
        let mut opened = Err(Errno::NOENT);
        for page in PAGES {
            let name = format!("/proc/self/map_files/{at:x}-{:x}", at + self.len.next_multiple_of(page));
            opened = opened.or_else(|_| rustix::fs::open(name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()));
        }
        opened
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`, to which nothing refers.
        let _ = unsafe { libc::shmdt(self.at) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_nameless_segment_is_there_for_whoever_has_its_id() {
        let (id, first) = nameless(4096, 0o644).unwrap();
        assert_eq!(status(id).unwrap().mode & (0o777 | REMOVED), 0o644 | REMOVED);
        let second = Attached::new(id, 4096).unwrap();
        drop(first);
        assert_eq!(status(id).unwrap().attached, 1);
        drop(second);
        assert!(status(id).is_err());
    }

    #[test]
    fn a_segment_comes_back_under_its_id() {
        // SAFETY: shmget takes numbers alone.
        let id = check(unsafe { libc::shmget(libc::IPC_PRIVATE, 5000, libc::IPC_CREAT | 0o640) }).unwrap();
        let told = status(id).unwrap();
        assert_eq!((told.key, told.size, told.mode, told.attached), (0, 5000, 0o640, 0));
        remove(id).unwrap();
        assert!(status(id).is_err());
        match create(id, 0, 5000, 0o640, None) {
            // Without CAP_CHECKPOINT_RESTORE.
            Err(Errno::ACCESS | Errno::PERM) => return,
            made => made.unwrap(),
        }
        let attached = Attached::new(id, 5000).unwrap();
        let file = std::fs::File::from(attached.file().unwrap());
        file.write_all_at(b"kept", 4000).unwrap();
        assert_eq!(status(id).unwrap().attached, 1);
        remove(id).unwrap();
        assert_eq!(status(id).unwrap().mode, 0o640 | REMOVED);
        drop(attached);
        assert!(status(id).is_err());
    }
}
