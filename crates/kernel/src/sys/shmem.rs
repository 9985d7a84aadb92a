//! Shared anonymous memory as a file.

use std::os::fd::OwnedFd;

use super::huge;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// A new segment of shared anonymous memory of `size` bytes, as an open file: what `mmap(MAP_SHARED |
/// MAP_ANONYMOUS)` makes, under the name that the kernel gives such memory (`/dev/zero (deleted)`). Needs
/// CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the first user namespace, to open an entry of map_files.
///
/// `page` is the size in bytes of its pages, a power of two: more than 4096 for huge pages (MAP_HUGETLB), of which
/// none is reserved by this.
pub fn anonymous(size: u64, page: u64) -> Result<OwnedFd, Errno> {
    let page = usize::try_from(page).map_err(|_| Errno::NOMEM)?;
    let len = usize::try_from(size.max(1)).map_err(|_| Errno::NOMEM)?.next_multiple_of(page);
    let mut flags = MapFlags::SHARED | MapFlags::NORESERVE;
    if page > 4096 {
        flags |= MapFlags::from_bits_retain(MapFlags::HUGETLB.bits() | huge::flag_of(page as u64));
    }
    // SAFETY: a new mapping at an address of the kernel's choice replaces none.
    let at = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
    let name = format!("/proc/self/map_files/{:x}-{:x}", at as usize, at as usize + len);
    let file = rustix::fs::open(name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    // SAFETY: exactly the mapping made above, to which nothing refers.
    unsafe { munmap(at, len) }?;
    file
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_segment_has_its_size_and_keeps_what_is_written() {
        let file = std::fs::File::from(super::anonymous(10_000, 4096).unwrap());
        std::os::unix::fs::FileExt::write_all_at(&file, b"kept", 8192).unwrap();
        let mut back = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut back, 8192).unwrap();
        assert_eq!(&back, b"kept");
    }
}
