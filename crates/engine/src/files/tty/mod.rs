//! Terminals: both ends of pseudo-terminals (pts(4)), `/dev/tty` (tty(4)), the
//! console, virtual consoles and serial lines.
//!
//! Each open file has a record, and each terminal that it leads to another
//! one, `TtyInfoEntry`, with the terminal's state: the master and the slave of
//! a pty have one each. What a terminal is to sessions is in [`session`].

mod build;
mod data;
mod info;
mod orphan;
mod session;
#[cfg(test)]
mod tests;

pub(crate) use session::give_terminal;

use super::{Build, Collect, FileKind, OpenFile, Settle};
use crate::Result;
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, TtyFileEntry};
use rustix::fs::FileType;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Terminals.
#[derive(Debug)]
pub struct Tty;

impl FileKind for Tty {
    fn name(&self) -> &'static str {
        "terminal"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Tty
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        FileType::from_raw_mode(file.stat.st_mode) == FileType::CharacterDevice
            && !super::regular::is_path_only(file.flags())
            && info::Device::of(file.stat.st_rdev).is_some()
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let tty_info_id = info::collect(cx, file)?;
        let regf_id = Some(info::collect_path(cx, file)?);
        let tty = TtyFileEntry { id, tty_info_id, flags: file.flags(), fown: file.owner()?, regf_id };
        Ok(FileEntry { r#type: FdTypes::Tty as i32, id, tty: Some(tty), ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        build::build(cx, part(entry)?)
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.tty.as_ref().map(|tty| &tty.fown)
    }

    fn settle(&self, cx: &mut Settle<'_>, entry: &FileEntry, file: BorrowedFd<'_>) -> Result<()> {
        session::settle(cx, part(entry)?, file)
    }
}

fn part(entry: &FileEntry) -> Result<&TtyFileEntry> {
    entry.tty.as_ref().ok_or_else(|| Build::lacks(entry, "a terminal"))
}
