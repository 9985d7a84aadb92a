//! Huge pages (hugetlbfs): files of them, which write(2) does not know, and how their size is said.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Where the logarithm of their size stands in the flags of mmap(2), memfd_create(2) and shmget(2).
const SHIFT: u32 = libc::MAP_HUGE_SHIFT as u32;
const MASK: u32 = libc::MAP_HUGE_MASK as u32;
/// Of whoever does not say.
const USUAL: u64 = 2 << 20;

/// The size of a file's huge pages in bytes; `None` if they are not huge.
pub fn page_of(file: impl AsFd) -> Result<Option<u64>, Errno> {
    let fs = rustix::fs::fstatfs(file)?;
    Ok((fs.f_type == libc::HUGETLBFS_MAGIC).then_some(fs.f_bsize as u64))
}

/// A size of huge pages (a power of two) in the flags of system calls.
#[must_use]
pub fn flag_of(page: u64) -> u32 {
    page.trailing_zeros() << SHIFT
}

/// The size that flags of such calls say of huge pages.
#[must_use]
pub fn of_flags(flags: u32) -> u64 {
    match flags >> SHIFT & MASK {
        0 => USUAL,
        log => 1 << log,
    }
}

/// Writes `bytes` at `at` of a file whose pages have `page` bytes (a power of two), by mapping it for the moment.
/// ENOMEM when too few huge pages are free.
pub fn write(file: impl AsFd, page: u64, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    let start = at & !(page - 1);
    let inside = at - start;
    let len = usize::try_from((inside + bytes.len() as u64).next_multiple_of(page)).map_err(|_| Errno::NOMEM)?;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice replaces none.
    let address = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, file, start) }?;
    // Through /proc, so that a page that cannot be had is an error and no SIGBUS.
    let written = File::options().write(true).open("/proc/self/mem");
    let written = written.and_then(|memory| memory.write_all_at(bytes, address as u64 + inside));
    // SAFETY: exactly the mapping made above, to which nothing refers.
    unsafe { munmap(address, len) }?;
    written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_file_that_can_be_mapped_takes_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * 4096).unwrap();
        super::write(&file, 4096, 4090, b"0123456789").unwrap();
        let mut back = [0; 12];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut back, 4089).unwrap();
        assert_eq!(&back, b"\x000123456789\0");
    }
}
