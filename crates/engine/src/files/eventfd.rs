//! Event counters (eventfd(2)).
//!
//! CRIU's record has no place for semaphore mode. Bit 0 of its `flags`, which
//! no eventfd has since it is always open for reading and writing, stands for
//! it; CRIU ignores that bit.

use super::{Build, Collect, FileKind, OpenFile, apply_status_flags};
use crate::{Error, Object, Result};
use cryonaut_image::records::{EventfdFileEntry, FdTypes, FileEntry, FownEntry};
use cryonaut_kernel::proc::fdinfo::Details;
use rustix::event::EventfdFlags;
use std::os::fd::{AsFd, OwnedFd};

/// Event counters.
#[derive(Debug)]
pub struct EventFd;

/// `EFD_SEMAPHORE` in a record's flags.
const SEMAPHORE: u32 = EventfdFlags::SEMAPHORE.bits();

/// The highest count that can be written (eventfd(2)).
const MAX_COUNT: u64 = u64::MAX - 1;

impl FileKind for EventFd {
    fn name(&self) -> &'static str {
        "eventfd"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Eventfd
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        matches!(file.info.details, Details::EventFd { .. })
    }

    fn collect(&self, _cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let Details::EventFd { count, semaphore, .. } = file.info.details else {
            return Err(file.unexpected(self.name()));
        };
        if semaphore.is_none() {
            tracing::warn!(
                "{}: this kernel does not tell (since Linux 6.5) whether it is a semaphore; taken as none",
                file.object()
            );
        }
        let mode = if semaphore == Some(true) { SEMAPHORE } else { 0 };
        let efd = EventfdFileEntry { id, flags: file.flags() | mode, fown: file.owner()?, counter: count };
        Ok(FileEntry { r#type: FdTypes::Eventfd as i32, id, efd: Some(efd), ..FileEntry::default() })
    }

    fn build(&self, _cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let efd = entry.efd.ok_or_else(|| Build::lacks(entry, self.name()))?;
        let failed = |action: &str, errno| Error::kernel(Object::File(entry.id, "eventfd".into()), action, errno);
        let mode = EventfdFlags::from_bits_retain(efd.flags & SEMAPHORE);
        let file = rustix::event::eventfd(0, mode | EventfdFlags::CLOEXEC).map_err(|e| failed("make an eventfd", e))?;
        if efd.counter > 0 {
            let count = efd.counter.min(MAX_COUNT);
            rustix::io::write(&file, &count.to_ne_bytes()).map_err(|e| failed("set its count", e))?;
        }
        apply_status_flags(file.as_fd(), entry.id, efd.flags)?;
        Ok(file)
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.efd.as_ref().map(|efd| &efd.fown)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;

    #[test]
    fn count_mode_and_flags_come_back() {
        let plain = rustix::event::eventfd(7, EventfdFlags::NONBLOCK).unwrap();
        let semaphore = rustix::event::eventfd(2, EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK).unwrap();
        let full = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&full, &MAX_COUNT.to_ne_bytes()).unwrap();
        let carried = Carried::collect(&[&plain, &semaphore, &full]).build(RestoreOptions::default());
        let read = |n: usize| {
            let mut count = [0; 8];
            rustix::io::read(carried.file(n), &mut count).map(|_| u64::from_ne_bytes(count))
        };
        assert_eq!((read(0), read(0)), (Ok(7), Err(rustix::io::Errno::AGAIN)));
        assert_eq!((read(1), read(1), read(1)), (Ok(1), Ok(1), Err(rustix::io::Errno::AGAIN)));
        assert_eq!(read(2), Ok(MAX_COUNT));
        assert!(!rustix::fs::fcntl_getfl(carried.file(2)).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    }
}
