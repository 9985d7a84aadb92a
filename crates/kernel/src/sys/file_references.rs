//! Who refers to an open file, and how many files are open on its inode: read from the kernel's own counts, so that who
//! looks at some processes can tell whether they are all who have it.

use super::bpf_memory::words;
use super::btf::Btf;
use rustix::io::Errno;

/// What the kernel counts for an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct References {
    /// Descriptors, mappings, and whatever else refers to the open file, as messages and system calls under way do.
    pub to_file: u64,
    /// The number of its inode.
    pub inode: u64,
    /// The address of its name (struct dentry).
    pub name: u64,
    /// What refers to that: of a file without a name in a directory, the open files on it, each once.
    pub to_name: u64,
}

/// Where the counts stand.
#[derive(Debug, Clone, Copy)]
struct Fields {
    references: u32,
    /// What a file has that nobody else refers to.
    one: u64,
    inode: u32,
    dentry: u32,
    number: u32,
    count: u32,
}

impl Fields {
    fn of(btf: &Btf) -> Option<Fields> {
        // Linux 6.13 counts from zero (include/linux/file_ref.h).
        let (references, one) = match btf.field("file", "f_ref") {
            Some(at) => (at, 0),
            None => (btf.field("file", "f_count")?, 1),
        };
        Some(Fields {
            references,
            one,
            inode: btf.field("file", "f_inode")?,
            // Linux 6.18 has it under two names, of which the usual one is not to be written to.
            dentry: btf.field("file", "f_path")? + btf.field("path", "dentry")?,
            number: btf.field("inode", "i_ino")?,
            count: btf.inner_field("dentry", "d_lockref", "count")?,
        })
    }
}

/// The counts of open files by their addresses, as [`mapping_flags`](super::mapping_flags) and
/// [`bpf_iter::descriptors`](super::bpf_iter::descriptors) tell them: they must be held by somebody who stands still.
/// ENOENT or ENOTSUP where the kernel does not describe its types, or has others; EPERM without the right to look.
pub fn of_files(files: &[u64]) -> Result<Vec<References>, Errno> {
    let btf = Btf::running()?;
    let fields = Fields::of(btf).ok_or(Errno::NOTSUP)?;
    let us = rustix::process::getpid().as_raw_nonzero().get();
    let at = |base: u64, field: u32| (base + u64::from(field), 1);
    let asked = files.iter().flat_map(|file| [fields.references, fields.inode, fields.dentry].map(|f| at(*file, f)));
    let told = words(btf, us, &asked.collect::<Vec<_>>())?;
    let told: Vec<[u64; 3]> = told.chunks_exact(3).map(|file| [file[0][0], file[1][0], file[2][0]]).collect();
    let asked = told.iter().flat_map(|[_, inode, dentry]| [at(*inode, fields.number), at(*dentry, fields.count)]);
    let behind = words(btf, us, &asked.collect::<Vec<_>>())?;
    let one = |(file, behind): (&[u64; 3], &[Vec<u64>])| References {
        to_file: file[0] + 1 - fields.one,
        inode: behind[0][0],
        name: file[2],
        // An int.
        to_name: u64::from(behind[1][0] as u32),
    };
    Ok(told.iter().zip(behind.chunks_exact(2)).map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::super::{bpf_iter, mapping_flags};
    use super::*;
    use rustix::fs::{MemfdFlags, Mode, OFlags, fstat, ftruncate, memfd_create, open};
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn descriptors_mappings_and_open_files_are_counted() {
        let Ok(btf) = Btf::running() else { return };
        let memfd = memfd_create("counted", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memfd, 8192).unwrap();
        let us = std::process::id() as i32;
        let Ok(all) = bpf_iter::descriptors(btf, us) else { return };
        let file = all.iter().find(|one| one.fd == memfd.as_raw_fd()).unwrap().file;
        let count = || of_files(&[file]).unwrap()[0];
        let ino = fstat(&memfd).unwrap().st_ino;
        assert_eq!((count().to_file, count().to_name, count().inode), (1, 1, ino));
        let (prot, flags) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice, to which nothing refers.
        let at = unsafe { mmap(std::ptr::null_mut(), 8192, prot, flags, memfd.as_fd(), 0) }.unwrap();
        let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
        let (twice, again) = (memfd.try_clone().unwrap(), open(path, OFlags::RDONLY, Mode::empty()).unwrap());
        assert_eq!((count().to_file, count().to_name), (3, 2));
        let mappings = mapping_flags::of_task(us).unwrap();
        assert_eq!(mappings.iter().find(|one| one.start == at as u64).unwrap().file, file);
        drop((twice, again));
        // SAFETY: made above, and nothing refers to it.
        unsafe { munmap(at, 8192) }.unwrap();
        assert_eq!((count().to_file, count().to_name), (1, 1));
    }
}
