//! Signals read from a file (signalfd(2)). The signals themselves are pending
//! at the process; the file has a mask alone.

use super::{Build, Collect, FileKind, OpenFile, apply_status_flags};
use crate::{Error, Object, Result};
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, SignalfdEntry};
use cryonaut_kernel::proc::fdinfo::Details;
use cryonaut_kernel::sys::signal;
use std::os::fd::{AsFd, OwnedFd};

/// Files of signals.
#[derive(Debug)]
pub struct SignalFd;

impl FileKind for SignalFd {
    fn name(&self) -> &'static str {
        "signalfd"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Signalfd
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        matches!(file.info.details, Details::SignalFd { .. })
    }

    fn collect(&self, _cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let Details::SignalFd { mask } = file.info.details else {
            return Err(file.unexpected(self.name()));
        };
        let sgfd = SignalfdEntry { id, flags: file.flags(), fown: file.owner()?, sigmask: mask };
        Ok(FileEntry { r#type: FdTypes::Signalfd as i32, id, sgfd: Some(sgfd), ..FileEntry::default() })
    }

    fn build(&self, _cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let sgfd = entry.sgfd.ok_or_else(|| Build::lacks(entry, self.name()))?;
        let file = signal::signalfd(sgfd.sigmask)
            .map_err(|e| Error::kernel(Object::File(entry.id, "signalfd".into()), "make a signalfd", e))?;
        apply_status_flags(file.as_fd(), entry.id, sgfd.flags)?;
        Ok(file)
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.sgfd.as_ref().map(|sgfd| &sgfd.fown)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;
    use cryonaut_kernel::proc::Task;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_mask_comes_back() {
        let mask = 1 << (libc::SIGUSR1 - 1) | 1 << (libc::SIGRTMIN() - 1);
        let file = signal::signalfd(mask).unwrap();
        let carried = Carried::collect(&[&file]).build(RestoreOptions::default());
        let info = |fd: &OwnedFd| Task::current().unwrap().fdinfo(fd.as_raw_fd()).unwrap();
        assert_eq!(info(carried.file(0)).details, Details::SignalFd { mask });
        assert_eq!(info(carried.file(0)).flags, info(&file).flags);
    }
}
