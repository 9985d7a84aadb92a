//! A pages file that is written while the next pages are read.
//!
//! ```text
//!   direct ──enough for a thread to be worth it──▶ behind
//!      ▲                                             │
//!      └────────────────── finish ───────────────────┘
//! ```
//!
//! At most [`AHEAD`] pieces wait to be written, so the checkpointer's memory
//! does not grow with the process.

use crate::{Error, Object, Result};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes that are written before a thread is begun for the others.
const DIRECT: u64 = 8 << 20;
/// Pieces that may wait.
const AHEAD: usize = 2;

/// The file.
#[derive(Debug)]
pub struct WriteBehind {
    file: File,
    behind: Option<Behind>,
    /// Since the last time that all was written.
    written: u64,
}

#[derive(Debug)]
struct Behind {
    pieces: SyncSender<Vec<u8>>,
    spare: Receiver<Vec<u8>>,
    thread: JoinHandle<io::Result<()>>,
}

impl WriteBehind {
    /// Writes to the end of `file`.
    pub fn new(file: File) -> Self {
        WriteBehind { file, behind: None, written: 0 }
    }

    /// Appends a piece; returns room for another, whose contents are of no use.
    pub fn append(&mut self, piece: Vec<u8>) -> Result<Vec<u8>> {
        self.written += piece.len() as u64;
        let Some(Behind { pieces, spare, .. }) = &self.behind else {
            self.file.write_all(&piece).map_err(|e| failed(&e))?;
            if self.written >= DIRECT {
                self.begin_thread();
            }
            return Ok(piece);
        };
        if pieces.send(piece).is_err() {
            // It has ended early, so it has an error to tell.
            self.finish()?;
            return Err(failed(&Errno::PIPE.into()));
        }
        Ok(spare.try_recv().unwrap_or_default())
    }

    /// From here on a thread writes; where none is to be had, all stays as it is.
    fn begin_thread(&mut self) {
        let (pieces, to_write) = sync_channel::<Vec<u8>>(AHEAD);
        let (give_back, spare) = sync_channel(AHEAD + 1);
        let Ok(mut own) = self.file.try_clone() else { return };
        let run = move || {
            for piece in to_write {
                own.write_all(&piece)?;
                // Nobody takes it any more at the end.
                let _ = give_back.try_send(piece);
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("pages writer".into()).spawn(run);
        self.behind = thread.ok().map(|thread| Behind { pieces, spare, thread });
    }

    /// The file, for somebody else to write to its end: all is written.
    pub fn direct(&mut self) -> Result<&File> {
        self.finish()?;
        Ok(&self.file)
    }

    /// Waits until all is written.
    pub fn finish(&mut self) -> Result<()> {
        self.written = 0;
        let Some(Behind { pieces, thread, .. }) = self.behind.take() else { return Ok(()) };
        drop(pieces);
        match thread.join() {
            Ok(result) => result.map_err(|e| failed(&e)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        // The error that led here is the one to tell.
        let _ = self.finish();
    }
}

/// The error of a pages file that cannot be written.
pub fn failed(error: &io::Error) -> Error {
    let errno = crate::error::errno_of(error);
    Error::Kernel {
        object: Object::Other("pages image".into()),
        action: "write it".into(),
        errno,
        remedy: if errno == Errno::NOSPC { "free some space on its file system" } else { "" },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn pieces_stay_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        let mut out = WriteBehind::new(file.try_clone().unwrap());
        let mut room = Vec::new();
        for n in 0..40u8 {
            room.clear();
            room.resize(1 << 19, n);
            room = out.append(room).unwrap();
        }
        assert!(out.behind.is_some());
        out.finish().unwrap();
        file.rewind().unwrap();
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        assert!(all.chunks(1 << 19).enumerate().all(|(n, piece)| piece.iter().all(|b| usize::from(*b) == n)));
        assert_eq!(all.len(), 40 << 19);
    }

    #[test]
    fn an_error_of_the_thread_is_told() {
        let file = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut out = WriteBehind::new(file);
        out.begin_thread();
        let told = (0..10).try_for_each(|_| out.append(vec![0; 4096]).map(drop)).and_then(|()| out.finish());
        let error = told.unwrap_err().to_string();
        assert!(error.contains("No space left") && error.contains("free some space"), "{error}");
    }
}
