//! Pages that are sent to a page server as they are copied. It takes a pagemap from its beginning to its end, so they come in
//! the order of their addresses, and between them what is left to the parent.
//!
//! ```text
//!   nothing sent ──put──▶ has the connection ──put──▶ ... ──finish──▶ sent
//! ```

use crate::Result;
use crate::memory::{PAGE, pages_failed as failed};
use cryonaut_image::PageFlags;
use cryonaut_page_server::send::Upload;
use cryonaut_page_server::{Sender, Target};
use rangemap::RangeSet;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;

/// The pages of a process on their way.
#[derive(Debug)]
pub struct Sending {
    server: Arc<Sender>,
    target: Target,
    /// With the pipe for the pages.
    under_way: Option<(Upload, File)>,
    /// All below this address has been told of.
    told: u64,
}

impl Sending {
    /// Those of the process `pid`.
    pub fn of(pid: i32, server: Arc<Sender>) -> Sending {
        Sending { server, target: Target::Process(pid as u64), under_way: None, told: 0 }
    }

    /// Sends pages that follow one another, behind what is in the parent below them.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn put(&mut self, start: u64, bytes: &[u8], in_parent: &RangeSet<u64>) -> Result<()> {
        self.tell_of_parent(start, in_parent)?;
        let (upload, pages) = self.begun()?;
        upload.push(start, bytes.len() as u64 / PAGE, PageFlags::PRESENT);
        pages.write_all(bytes).map_err(|e| failed(&e))?;
        self.told = start + bytes.len() as u64;
        Ok(())
    }

    /// Sends the rest of what is in the parent; the server has the pagemap then.
    ///
    /// # Errors
    /// If it is gone.
    pub fn finish(&mut self, in_parent: &RangeSet<u64>) -> Result<()> {
        self.tell_of_parent(u64::MAX, in_parent)?;
        self.begun()?;
        let Some((upload, pages)) = self.under_way.take() else { return Ok(()) };
        // The upload ends with the last of the pipe's ends.
        drop(pages);
        Ok(upload.finish()?)
    }

    fn tell_of_parent(&mut self, end: u64, in_parent: &RangeSet<u64>) -> Result<()> {
        let told = self.told;
        for run in in_parent.overlapping(&(told..end)) {
            let (from, to) = (run.start.max(told), run.end.min(end));
            self.begun()?.0.push(from, (to - from) / PAGE, PageFlags::PARENT);
        }
        Ok(())
    }

    fn begun(&mut self) -> Result<&mut (Upload, File)> {
        let begun = match self.under_way.take() {
            Some(begun) => begun,
            None => {
                let upload = self.server.begin(self.target)?;
                let pages = upload.pages().map_err(|e| failed(&e))?;
                (upload, pages)
            }
        };
        Ok(self.under_way.insert(begun))
    }
}
