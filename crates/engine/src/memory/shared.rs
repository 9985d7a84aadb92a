//! Shared memory that an image has by the mappings alone, without a file
//! (older CRIU): built once, however many processes map it. Ours has a memfd
//! for each segment; see [`memfd`].

use super::{PAGE, vma::page_size};
use crate::files::{memfd, shared_pages};
use crate::{Error, Object, Result};
use cryonaut_image::ImageDir;
use cryonaut_image::records::VmaEntry;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of a segment, and of its pages.
#[derive(Debug, Clone, Copy)]
struct Size {
    len: u64,
    page: u64,
}

/// The segments built for a restore.
#[derive(Debug, Default)]
pub struct SharedBuild {
    sizes: HashMap<u64, Size>,
    built: HashMap<u64, OwnedFd>,
}

impl SharedBuild {
    /// Takes note of a mapping, so that its segment becomes large enough.
    pub fn note(&mut self, vma: &VmaEntry) {
        let size = self.sizes.entry(vma.shmid).or_insert(Size { len: 0, page: page_size(vma.flags) });
        size.len = size.len.max(vma.pgoff + (vma.end - vma.start));
    }

    /// A segment that was built.
    pub fn get(&self, id: u64) -> Result<BorrowedFd<'_>> {
        let built = self.built.get(&id).map(AsFd::as_fd);
        built.ok_or_else(|| Error::bad_image(format!("pagemap-shmem-{id}.img"), "no mapping tells its size"))
    }

    /// The segment, built now if it was not yet: a file of /dev/zero's kind,
    /// so that it looks as it did.
    pub fn segment(&mut self, images: &ImageDir, id: u64) -> Result<BorrowedFd<'_>> {
        if !self.built.contains_key(&id) {
            let size = self.sizes.get(&id).copied().unwrap_or(Size { len: 0, page: PAGE });
            let object = Object::Other(format!("shared memory {id}"));
            let file = File::from(memfd::anonymous(size.len, size.page, &object)?);
            shared_pages::read(images, id, &file, size.len, size.page, &object)?;
            self.built.insert(id, file.into());
        }
        Ok(self.built[&id].as_fd())
    }
}
