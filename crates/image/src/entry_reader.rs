//! Reading one file of messages, and the data between them.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{CUT_SHORT, DAMAGED, Error, NOT_CRIU, Result};
use crate::kind::{COMMON_MAGIC, Header, ImageKind, SERVICE_MAGIC};
use crate::shape::{self, Record, Shape};
use crate::tail::Tailed;

/// A message has at most this many bytes on disk.
pub(crate) const MAX_ENTRY: u64 = 64 << 20;

/// Data read into memory in one piece have at most this many bytes.
pub(crate) const MAX_TAIL: u64 = 256 << 20;

/// Reads a file's messages in their order, and data between them.
///
/// Never holds more than one message or one piece of data, and never allocates
/// for more bytes than the file still has.
#[derive(Debug)]
pub struct EntryReader {
    kind: ImageKind,
    path: PathBuf,
    file: BufReader<File>,
    size: u64,
    pos: u64,
}

impl EntryReader {
    /// Begins at the start of `file`, of `size` bytes, and checks the header.
    pub(crate) fn new(kind: ImageKind, path: PathBuf, file: File, size: u64) -> Result<Self> {
        let file = BufReader::with_capacity(size.clamp(1 << 10, 64 << 10) as usize, file);
        let mut reader = Self { kind, path, file, size, pos: 0 };
        reader.header()?;
        Ok(reader)
    }

    fn header(&mut self) -> Result<()> {
        let header = self.kind.header();
        for (index, want) in header.words().into_iter().enumerate() {
            let at = self.pos;
            let found = self.word("a magic number")?;
            if found == want {
                continue;
            }
            let (expected, remedy) = match (index, header, found) {
                (0, Header::Common(_), SERVICE_MAGIC) | (0, Header::Service(_), COMMON_MAGIC) => {
                    ("the other sort of image file", DAMAGED)
                }
                (0, ..) => ("an image file", NOT_CRIU),
                _ => ("this kind of image file", DAMAGED),
            };
            let expected = format!("magic number {want:#010x} of {expected}");
            return Err(Error::corrupt(&self.path, at, expected, format!("{found:#010x}"), remedy));
        }
        Ok(())
    }

    /// The file's path, for errors about what it says.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next message or data begin, in bytes from the file's start.
    pub fn position(&self) -> u64 {
        self.pos
    }

    /// Bytes that the file still has.
    pub fn remaining(&self) -> u64 {
        self.size - self.pos
    }

    /// The file itself, for reading data at [`EntryReader::position`] with
    /// `pread` or handing it to another process. Its own offset means nothing.
    pub fn file(&self) -> &File {
        self.file.get_ref()
    }

    /// An error that says what is wrong at `offset` of this file, for readers
    /// who check more than this crate does.
    pub fn corrupt(&self, offset: u64, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::corrupt(&self.path, offset, expected, found, DAMAGED)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact(buffer);
        read.map_err(|source| Error::io("read", &self.path, source))?;
        self.pos += buffer.len() as u64;
        Ok(())
    }

    fn need(&self, bytes: u64, expected: &str) -> Result<()> {
        let left = self.remaining();
        if left < bytes {
            let expected = format!("{expected} of {bytes} bytes");
            return Err(Error::corrupt(&self.path, self.pos, expected, format!("{left} bytes"), CUT_SHORT));
        }
        Ok(())
    }

    fn word(&mut self, expected: &str) -> Result<u32> {
        self.need(4, expected)?;
        let mut word = [0; 4];
        self.fill(&mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    /// Reads the bytes of the next message; `None` at the file's end.
    fn message(&mut self, shape: &'static Shape) -> Result<Option<(Vec<u8>, u64)>> {
        self.kind.expect_record(&self.path, shape)?;
        if self.remaining() == 0 {
            return Ok(None);
        }
        let at = self.pos;
        let len = u64::from(self.word("the length of a message")?);
        if len > MAX_ENTRY {
            let expected = format!("a {} of at most {MAX_ENTRY} bytes", shape.name());
            return Err(self.corrupt(at, expected, format!("a length of {len}")));
        }
        self.need(len, shape.name())?;
        let start = self.pos;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        Ok(Some((bytes, start)))
    }

    fn wire(&self, start: u64, fault: shape::WireFault) -> Error {
        self.corrupt(start + fault.offset as u64, fault.expected, fault.found)
    }

    /// Reads the next message; `None` at the file's end.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is no such message, [`Error::Io`], and
    /// [`Error::Misuse`] if files of this kind hold no such message.
    pub fn next_record<M: Record>(&mut self) -> Result<Option<M>> {
        let Some((bytes, start)) = self.message(M::SHAPE)? else {
            return Ok(None);
        };
        shape::decode(&bytes).map(Some).map_err(|fault| self.wire(start, fault))
    }

    /// Reads a message that must be there.
    ///
    /// # Errors
    /// As for [`EntryReader::next_record`]; the file's end is [`Error::Corrupt`].
    pub fn require<M: Record>(&mut self) -> Result<M> {
        match self.next_record()? {
            Some(message) => Ok(message),
            None => {
                let expected = format!("one {}", M::SHAPE.name());
                Err(Error::corrupt(&self.path, self.pos, expected, "the file's end", CUT_SHORT))
            }
        }
    }

    /// Checks the next message without decoding it; false at the file's end.
    pub(crate) fn check(&mut self, shape: &'static Shape) -> Result<bool> {
        let Some((bytes, start)) = self.message(shape)? else {
            return Ok(false);
        };
        shape::check(&bytes, shape).map_err(|fault| self.wire(start, fault))?;
        Ok(true)
    }

    /// The messages that are left, each with the position where it begins (its
    /// length word). Ends after the first error.
    pub fn records<M: Record>(mut self) -> impl Iterator<Item = Result<(M, u64)>> {
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let at = self.position();
            let item = self.next_record().transpose()?.map(|message| (message, at));
            failed = item.is_err();
            Some(item)
        })
    }

    /// Reads `len` bytes of data.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the file has fewer, or `len` is over 256 MiB (use
    /// [`EntryReader::copy_to`] for such); [`Error::Io`].
    pub fn data(&mut self, len: u64) -> Result<Vec<u8>> {
        self.need(len, "data")?;
        if len > MAX_TAIL {
            return Err(self.corrupt(self.pos, format!("data of at most {MAX_TAIL} bytes"), format!("{len}")));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Copies `len` bytes of data.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the file has fewer; [`Error::Io`], also for `to`.
    pub fn copy_to(&mut self, len: u64, to: &mut impl Write) -> Result<()> {
        self.need(len, "data")?;
        let copied = io::copy(&mut self.file.by_ref().take(len), to)
            .map_err(|source| Error::io("copy the data of", &self.path, source))?;
        self.pos += copied;
        match copied == len {
            true => Ok(()),
            false => Err(Error::io("read", &self.path, io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Steps over `len` bytes of data.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the file has fewer; [`Error::Io`].
    pub fn skip(&mut self, len: u64) -> Result<()> {
        self.need(len, "data")?;
        self.pos += len;
        let sought = self.file.seek(SeekFrom::Start(self.pos));
        sought.map(drop).map_err(|source| Error::io("read", &self.path, source))
    }

    /// Reads the next message and the data that belong to it; `None` at the end.
    ///
    /// # Errors
    /// As for [`EntryReader::next_record`] and [`EntryReader::data`].
    pub fn next_tailed<M: Tailed>(&mut self) -> Result<Option<(M, Vec<u8>)>> {
        let Some(message) = self.next_record::<M>()? else {
            return Ok(None);
        };
        let data = self.data(message.tail_len())?;
        self.skip(message.padding())?;
        Ok(Some((message, data)))
    }

    /// Like [`EntryReader::next_tailed`], but steps over the data; false at the end.
    pub(crate) fn check_tailed<M: Tailed>(&mut self) -> Result<bool> {
        let Some(message) = self.next_record::<M>()? else {
            return Ok(false);
        };
        self.skip(message.tail_len())?;
        self.skip(message.padding())?;
        Ok(true)
    }
}
