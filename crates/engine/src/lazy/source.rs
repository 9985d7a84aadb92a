//! Where missing pages are to be had.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Something that has pages. A filler that takes the other's place uses its copy.
pub trait Source: Debug {
    /// Fills `room` with what is there from `offset` on.
    ///
    /// # Errors
    /// When it cannot be had, now or any more: nobody gets anything else in its place.
    fn read(&mut self, offset: u64, room: &mut [u8]) -> io::Result<()>;

    /// The file that has its pages where [`Source::read`] is told to look, if one has.
    fn file(&self) -> Option<&Arc<File>> {
        None
    }

    /// Another process has used it until now, and may have been in the middle of something.
    ///
    /// # Errors
    /// When it cannot be used again.
    fn take_over(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Whether nothing comes from it any more: then the tree cannot go on.
    fn is_lost(&self) -> bool {
        false
    }

    /// Nothing is wanted any more.
    ///
    /// # Errors
    /// When that cannot be said to whoever should know.
    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pages file.
impl Source for Arc<File> {
    fn read(&mut self, offset: u64, room: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(room, offset)
    }

    fn file(&self) -> Option<&Arc<File>> {
        Some(self)
    }
}
