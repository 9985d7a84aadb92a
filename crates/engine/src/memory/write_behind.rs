//! A pages file that is written while the next pages are fetched.
//!
//! ```text
//!   direct ──enough for a thread to be worth it──▶ behind ──finish──▶ direct
//! ```
//!
//! Where another writes to the file as well, at positions of his own, it stays direct, and what we write is put where the
//! file has its end by then.
//!
//! At most [`AHEAD`] pieces wait to be written, so the checkpointer's memory
//! does not grow with the process.

use crate::{Error, Object, Result};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes that are written before a thread is begun for the others.
const DIRECT: u64 = 8 << 20;
/// Pieces that may wait.
const AHEAD: usize = 4;

/// The file.
#[derive(Debug)]
pub struct WriteBehind {
    file: File,
    behind: Option<Behind>,
    /// With what waits to be written.
    len: u64,
    /// No thread is begun.
    stays_direct: bool,
}

#[derive(Debug)]
struct Behind {
    pieces: SyncSender<Piece>,
    spare: Receiver<Vec<u8>>,
    thread: JoinHandle<Result<()>>,
}

enum Piece {
    Bytes(Vec<u8>),
    Work(Work),
}

/// Appends something to the file.
pub type Work = Box<dyn FnOnce(&File) -> Result<()> + Send>;

impl WriteBehind {
    /// Writes to the end of `file`.
    pub fn new(file: File) -> Self {
        WriteBehind { file, behind: None, len: 0, stays_direct: false }
    }

    /// Bytes that have been appended.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether it is one, and not a pipe in the place of one.
    pub fn is_regular(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.is_file())
    }

    /// From here on, what is appended is in the file at once.
    pub fn stay_direct(&mut self) -> Result<()> {
        self.stays_direct = true;
        self.finish()
    }

    /// Somebody else appends so many bytes.
    pub fn has_grown(&mut self, len: u64) {
        self.len += len;
    }

    /// Appends a piece; returns room for another, whose contents are of no use.
    pub fn append(&mut self, piece: Vec<u8>) -> Result<Vec<u8>> {
        if self.stays_direct {
            self.file.write_all_at(&piece, self.len).map_err(|e| failed(&e))?;
            self.len += piece.len() as u64;
            return Ok(piece);
        }
        self.len += piece.len() as u64;
        if self.behind.is_none() {
            self.file.write_all(&piece).map_err(|e| failed(&e))?;
            if self.len >= DIRECT {
                self.begin_thread();
            }
            return Ok(piece);
        }
        self.send(Piece::Bytes(piece))?;
        Ok(self.behind.as_ref().and_then(|behind| behind.spare.try_recv().ok()).unwrap_or_default())
    }

    /// Appends `len` bytes by `work`.
    pub fn append_by(&mut self, len: u64, work: Work) -> Result<()> {
        self.len += len;
        if self.behind.is_none() {
            self.begin_thread();
        }
        if self.behind.is_none() { work(&self.file) } else { self.send(Piece::Work(work)) }
    }

    fn send(&mut self, piece: Piece) -> Result<()> {
        let sent = self.behind.as_ref().is_some_and(|behind| behind.pieces.send(piece).is_ok());
        if sent { Ok(()) } else { self.why_it_ended() }
    }

    /// The error of the thread, which has ended early.
    pub fn why_it_ended(&mut self) -> Result<()> {
        self.finish()?;
        Err(failed(&Errno::PIPE.into()))
    }

    /// From here on a thread writes; where none is to be had, all stays as it is.
    fn begin_thread(&mut self) {
        let (pieces, to_write) = sync_channel(AHEAD);
        let (give_back, spare) = sync_channel(AHEAD + 1);
        let Ok(mut own) = self.file.try_clone() else { return };
        let run = move || {
            for piece in to_write {
                match piece {
                    Piece::Work(work) => work(&own)?,
                    Piece::Bytes(bytes) => {
                        own.write_all(&bytes).map_err(|e| failed(&e))?;
                        // Nobody takes it any more at the end.
                        let _ = give_back.try_send(bytes);
                    }
                }
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("pages writer".into()).spawn(run);
        self.behind = thread.ok().map(|thread| Behind { pieces, spare, thread });
    }

    /// Waits until all is written.
    pub fn finish(&mut self) -> Result<()> {
        let Some(Behind { pieces, thread, .. }) = self.behind.take() else { return Ok(()) };
        drop(pieces);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
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
            if n % 8 == 7 {
                let bytes = vec![n; 1 << 19];
                out.append_by(1 << 19, Box::new(move |mut file| file.write_all(&bytes).map_err(|e| failed(&e))))
                    .unwrap();
                continue;
            }
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
