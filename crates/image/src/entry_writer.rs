//! Writing one file of messages.
//!
//! A writer keeps no descriptor open but that of a file which was expected: a
//! dump of a thousand processes has many thousands of files, most of them small.
//! Bytes gather in memory and are appended when there are enough of them, and at
//! commit.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::dir::Dir;
use crate::entry_reader::MAX_ENTRY;
use crate::error::{Error, Result};
use crate::kind::ImageKind;
use crate::manifest::FileSum;
use crate::shape::{Record, Shape};
use crate::tail::Tailed;

/// Bytes to gather before they are written out.
const SPILL: usize = 256 << 10;

/// A file of messages being written. Clones write to the same file; each call
/// is whole, also when several threads call.
#[derive(Debug, Clone)]
pub struct EntryWriter {
    kind: ImageKind,
    dir: Arc<Dir>,
    file: Arc<Mutex<EntryFile>>,
}

#[derive(Debug)]
struct EntryFile {
    name: String,
    /// The file, if it was made before.
    made: Option<File>,
    /// As the user will know it, for errors.
    path: PathBuf,
    pending: Vec<u8>,
    /// Bytes in the file, without those pending.
    written: u64,
    hasher: Box<blake3::Hasher>,
    /// Why the file can take nothing more, if so.
    closed: Option<&'static str>,
    /// Once it is whole.
    sum: Option<FileSum>,
    /// Why it could not be completed, until that is told.
    failed: Option<Error>,
}

impl EntryWriter {
    /// Begins a file; `path` is where it will be after the commit.
    pub(crate) fn new(kind: ImageKind, dir: Arc<Dir>, name: String, path: PathBuf, made: Option<File>) -> Self {
        let file = EntryFile {
            name,
            made,
            path,
            pending: kind.header().bytes(),
            written: 0,
            hasher: Box::default(),
            closed: None,
            sum: None,
            failed: None,
        };
        Self { kind, dir, file: Arc::new(Mutex::new(file)) }
    }

    fn lock(&self) -> MutexGuard<'_, EntryFile> {
        // A panic between two appends leaves a file that is whole as far as it goes.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a message.
    ///
    /// # Errors
    /// [`Error::Io`] if earlier bytes cannot be written out, [`Error::Misuse`]
    /// if files of this kind hold no such message, the message has more than
    /// 64 MiB, or the image was committed.
    pub fn append<M: Record>(&self, message: &M) -> Result<()> {
        self.append_with(message, &[])
    }

    /// Appends a message and raw bytes right behind it, in one piece.
    ///
    /// # Errors
    /// As for [`EntryWriter::append`].
    pub fn append_with<M: Record>(&self, message: &M, raw: &[u8]) -> Result<()> {
        let mut file = self.lock();
        file.check_open()?;
        file.put_message(self.kind, M::SHAPE, &message.encode_to_vec())?;
        file.put(&self.dir, raw)
    }

    /// Appends a message, the data that belong to it, and the filling.
    ///
    /// # Errors
    /// As for [`EntryWriter::append`]; also if the message announces another
    /// number of bytes than `data` has.
    pub fn append_tailed<M: Tailed>(&self, message: &M, data: &[u8]) -> Result<()> {
        let mut file = self.lock();
        file.check_open()?;
        if message.tail_len() != data.len() as u64 {
            let announced = message.tail_len();
            let reason = format!("{} bytes of data, but {announced} announced", data.len());
            return Err(Error::misuse(&file.path, reason));
        }
        file.put_message(self.kind, M::SHAPE, &message.encode_to_vec())?;
        file.put(&self.dir, data)?;
        file.put(&self.dir, &[0; 8][..message.padding() as usize])
    }

    /// Appends raw bytes.
    ///
    /// # Errors
    /// As for [`EntryWriter::append`].
    pub fn append_raw(&self, bytes: &[u8]) -> Result<()> {
        let mut file = self.lock();
        file.check_open()?;
        file.put(&self.dir, bytes)
    }

    /// Appends exactly `len` bytes from a reader.
    ///
    /// # Errors
    /// As for [`EntryWriter::append`]; also [`Error::Io`] if the reader fails or
    /// has fewer bytes. The file is then useless and the commit will fail.
    pub fn append_from(&self, mut reader: impl Read, len: u64) -> Result<()> {
        let mut file = self.lock();
        file.check_open()?;
        let mut left = len;
        while left > 0 {
            let chunk = left.min(SPILL as u64) as usize;
            let start = file.pending.len();
            file.pending.resize(start + chunk, 0);
            if let Err(source) = reader.read_exact(&mut file.pending[start..]) {
                file.closed = Some("reading what belongs into it failed");
                return Err(Error::io("read the data for", &file.path, source));
            }
            file.spill_if_full(&self.dir)?;
            left -= chunk as u64;
        }
        Ok(())
    }

    /// Bytes in the file so far: where the next message will begin.
    pub fn position(&self) -> u64 {
        let file = self.lock();
        file.written + file.pending.len() as u64
    }

    /// Writes out all there is and takes nothing more. Asked again, it answers
    /// the same.
    pub(crate) fn close(&self) -> Result<FileSum> {
        let mut file = self.lock();
        match file.failed.take() {
            None => file.complete(&self.dir),
            Some(error) => Err(error),
        }
    }

    /// The same, for a caller that has nobody to tell of a failure: the next
    /// [`EntryWriter::close`] tells it.
    pub(crate) fn close_early(&self) {
        let mut file = self.lock();
        file.failed = file.complete(&self.dir).err();
    }
}

impl EntryFile {
    fn check_open(&self) -> Result<()> {
        match self.closed {
            None => Ok(()),
            Some(why) => Err(Error::misuse(&self.path, format!("cannot take more: {why}"))),
        }
    }

    fn complete(&mut self, dir: &Dir) -> Result<FileSum> {
        if let Some(sum) = &self.sum {
            return Ok(sum.clone());
        }
        self.check_open()?;
        self.spill(dir)?;
        self.pending = Vec::new();
        self.closed = Some("it is complete");
        let sum = FileSum::new(self.written, Some(self.hasher.finalize()));
        self.sum = Some(sum.clone());
        Ok(sum)
    }

    fn put_message(&mut self, kind: ImageKind, shape: &Shape, bytes: &[u8]) -> Result<()> {
        kind.expect_record(&self.path, shape)?;
        let len = u32::try_from(bytes.len()).ok().filter(|&len| u64::from(len) <= MAX_ENTRY);
        let Some(len) = len else {
            let reason = format!("a {} of {} bytes, over {MAX_ENTRY}", shape.name(), bytes.len());
            return Err(Error::misuse(&self.path, reason));
        };
        self.pending.extend_from_slice(&len.to_le_bytes());
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    fn put(&mut self, dir: &Dir, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(SPILL) {
            self.pending.extend_from_slice(chunk);
            self.spill_if_full(dir)?;
        }
        self.spill_if_full(dir)
    }

    fn spill_if_full(&mut self, dir: &Dir) -> Result<()> {
        match self.pending.len() < SPILL {
            true => Ok(()),
            false => self.spill(dir),
        }
    }

    fn spill(&mut self, dir: &Dir) -> Result<()> {
        let opened;
        let mut file = match &self.made {
            Some(made) => made,
            None => {
                opened = dir.append_file(&self.name)?;
                &opened
            }
        };
        if let Err(source) = file.write_all(&self.pending) {
            // Part of it may have been written: what follows would not fit on.
            self.closed = Some("writing to it failed");
            return Err(Error::io("write", &self.path, source));
        }
        self.hasher.update(&self.pending);
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }
}
