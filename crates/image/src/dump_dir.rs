//! Writing an image directory that is complete or absent.
//!
//! [`DumpDir::commit`] makes the image visible, `inventory.img` last: an image
//! without an inventory is none. Files of others in the target stay.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::dir::{self, Dir};
use crate::entry_writer::EntryWriter;
use crate::error::{Error, Result};
use crate::finisher::Finisher;
use crate::kind::ImageKind;
use crate::manifest::{FileSum, JSON_LIMIT, MANIFEST_NAME, Manifest, Provenance, json_name};
use crate::shape::Record;
use crate::staging::{PREFIX, Staging, belongs_to_image};

/// What survives a crash of the machine right after the commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// The kernel writes the files out in its own time. A crash of the tool
    /// loses nothing, a crash of the machine may.
    Relaxed,
    /// Every file is on stable storage before the image becomes visible.
    #[default]
    Synced,
}

/// How to commit.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    pub durability: Durability,
    /// Put BLAKE3 sums of the pages files into the manifest too. That means
    /// reading them once: some 0.3 s for each GiB on one core.
    pub sum_pages: bool,
    /// For the manifest.
    pub provenance: Provenance,
}

/// An image directory being written. All methods may be called from several
/// threads. Dropped without [`DumpDir::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct DumpDir {
    /// Dropped first: it must not write any more when the files are removed.
    finisher: Finisher,
    staging: Staging,
    files: Mutex<BTreeMap<String, Content>>,
}

#[derive(Debug)]
enum Content {
    Entries(EntryWriter),
    Raw { pages: bool },
    Done(FileSum),
    Link,
}

/// What a committed dump has still to clear away. Dropping it does, which may
/// take longer than the commit itself.
#[derive(Debug)]
pub struct Remains {
    _finisher: Finisher,
    _staging: Staging,
}

/// What a dump by this process into a directory would leave there if it were
/// killed, for somebody who clears up behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leavings {
    /// How the names of its hidden directories begin.
    pub hidden: String,
    /// The file that makes the image one.
    pub inventory: String,
    /// Whether files are written under their own names before there is an
    /// image: those that [`is_part_of_an_image`] would be of this dump alone.
    pub visible: bool,
    /// Whether the directory itself would be of this dump.
    pub directory: bool,
}

impl Leavings {
    /// Looks at the directory before [`DumpDir::create`].
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let there = match Dir::open(path) {
            Ok(dir) => Some(dir.names()?),
            Err(_) if !path.exists() => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            hidden: format!("{PREFIX}{}-", std::process::id()),
            inventory: ImageKind::Inventory.file_name(None)?,
            visible: there.iter().flatten().all(|name| !belongs_to_image(name)),
            directory: there.is_none(),
        })
    }
}

/// Whether a file of this name is part of an image. Does not allocate.
pub fn is_part_of_an_image(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(belongs_to_image)
}

/// Name of the link to the image that this one builds on.
pub(crate) const PARENT: &str = "parent";

impl DumpDir {
    /// Opens `path` for a new image, making the directory if it does not exist
    /// (its parent must). An image already there stays until the commit.
    ///
    /// Leftovers of dumps whose process was killed are removed.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be opened, made, or written to.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let made = match std::fs::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(source) => return Err(Error::io("create the directory", path, source)),
        };
        let staging = Staging::create(Dir::open(path)?, made)?;
        Ok(Self { staging, files: Mutex::default(), finisher: Finisher::new() })
    }

    /// The directory as it was named to [`DumpDir::create`].
    pub fn path(&self) -> &Path {
        self.staging.target().path()
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Content>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the file will be after the commit.
    fn path_of(&self, name: &str) -> PathBuf {
        self.staging.target().path_of(name)
    }

    /// Takes a name for a new file.
    fn claim(&self, name: &str, content: Content) -> Result<()> {
        let mut files = self.files();
        if files.contains_key(name) {
            return Err(Error::misuse(self.path_of(name), "written twice"));
        }
        files.insert(name.to_owned(), content);
        Ok(())
    }

    /// The writer of a file of messages; the same one for the same file.
    /// The file will exist even if nothing is appended.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the kind holds no messages, or does not go with `id`.
    pub fn entry_file(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<EntryWriter> {
        self.entry_file_named(kind, kind.file_name(id)?)
    }

    fn entry_file_named(&self, kind: ImageKind, name: String) -> Result<EntryWriter> {
        let path = self.path_of(&name);
        if kind.records().is_empty() || kind.is_service() {
            return Err(Error::misuse(path, "not a file of an image's messages"));
        }
        let mut files = self.files();
        if let Some(content) = files.get(&name) {
            return match content {
                Content::Entries(writer) => Ok(writer.clone()),
                _ => Err(Error::misuse(path, "written twice")),
            };
        }
        let writer = EntryWriter::new(kind, self.staging.dir_of(&name).clone(), name.clone(), path);
        files.insert(name, Content::Entries(writer.clone()));
        Ok(writer)
    }

    /// Appends a message, and raw bytes behind it, to a file that others may be
    /// appending to as well.
    ///
    /// # Errors
    /// As for [`DumpDir::entry_file`] and [`EntryWriter::append`].
    pub fn append<M: Record>(
        &self,
        kind: ImageKind,
        id: impl Into<Option<u64>>,
        message: &M,
        raw: Option<&[u8]>,
    ) -> Result<()> {
        self.entry_file(kind, id)?.append_with(message, raw.unwrap_or_default())
    }

    /// Writes a file that holds one message.
    ///
    /// # Errors
    /// As for [`DumpDir::append`]; also if the file has been written already.
    pub fn write_one<M: Record>(&self, kind: ImageKind, id: impl Into<Option<u64>>, message: &M) -> Result<()> {
        self.complete(self.begin(kind, id, message)?);
        Ok(())
    }

    /// Begins a file with its first message.
    pub(crate) fn begin<M: Record>(
        &self,
        kind: ImageKind,
        id: impl Into<Option<u64>>,
        message: &M,
    ) -> Result<EntryWriter> {
        let name = kind.file_name(id.into())?;
        if self.files().contains_key(&name) {
            return Err(Error::misuse(self.path_of(&name), "written twice"));
        }
        let writer = self.entry_file_named(kind, name)?;
        writer.append(message)?;
        Ok(writer)
    }

    /// Says that a file is whole. A thread of our own puts it on the file system
    /// meanwhile; should that fail, the commit tells.
    pub fn complete(&self, file: EntryWriter) {
        self.finisher.take(file);
    }

    /// Makes a file of raw data, open for reading and writing. It may be handed
    /// to other processes; they must be done with it before the commit.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Misuse`] if the kind is not raw, does not go
    /// with `id`, or the file exists.
    pub fn raw_file(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<File> {
        let name = kind.file_name(id)?;
        if !kind.is_raw() {
            return Err(Error::misuse(self.path_of(&name), "not a file of raw data"));
        }
        self.claim(&name, Content::Raw { pages: kind.is_pages() })?;
        self.staging.dir_of(&name).create_file(&name)
    }

    /// Writes a record that CRIU's format has no place for, as
    /// `cryonaut-NAME.json`. Others ignore it.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Misuse`] if the name is not of a-z, 0-9 and
    /// dashes, the file exists, or the value is no JSON or over 16 MiB.
    pub fn write_json(&self, name: &str, value: &(impl Serialize + ?Sized)) -> Result<()> {
        let name = json_name(name)?;
        let path = self.path_of(&name);
        let mut text = serde_json::to_vec_pretty(value).map_err(|error| Error::misuse(&path, error.to_string()))?;
        text.push(b'\n');
        if text.len() as u64 > JSON_LIMIT {
            let reason = format!("{} bytes, over {JSON_LIMIT}", text.len());
            return Err(Error::misuse(path, reason));
        }
        let sum = FileSum::new(text.len() as u64, Some(blake3::hash(&text)));
        self.claim(&name, Content::Done(sum))?;
        self.write_whole(&name, &text)
    }

    fn write_whole(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.staging.dir_of(name).create_file(name)?;
        file.write_all(bytes).map_err(|source| Error::io("write", self.path_of(name), source))
    }

    /// Names the image that pages marked as the parent's lie in. A relative
    /// path counts from this directory.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Misuse`] if called twice.
    pub fn set_parent(&self, path: impl AsRef<Path>) -> Result<()> {
        self.claim(PARENT, Content::Link)?;
        self.staging.dir_of(PARENT).create_link(PARENT, path.as_ref())
    }

    /// Makes the image visible, in the place of one that was there before. What
    /// is left to clear away goes when [`Remains`] are dropped, or with the next
    /// dump into the directory.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Misuse`] if there is no inventory or an earlier
    /// write failed. Then nothing remains of this image, and one that was there
    /// before is there still.
    pub fn commit(mut self, options: CommitOptions) -> Result<Remains> {
        let contents = std::mem::take(&mut *self.files());
        let inventory = ImageKind::Inventory.file_name(None)?;
        if !contents.contains_key(&inventory) {
            return Err(Error::misuse(self.path_of(&inventory), "an image needs an inventory"));
        }

        self.finisher.finish();
        let mut sums = BTreeMap::new();
        let mut names: Vec<String> = contents.keys().cloned().collect();
        for (name, content) in contents {
            let sum = match content {
                Content::Entries(writer) => writer.close()?,
                Content::Raw { pages } => self.sum_raw(&name, !pages || options.sum_pages)?,
                Content::Done(sum) => sum,
                Content::Link => continue,
            };
            sums.insert(name, sum);
        }

        let text = Manifest::new(options.provenance, sums)
            .to_text()
            .map_err(|error| Error::misuse(self.path_of(MANIFEST_NAME), error.to_string()))?;
        self.write_whole(MANIFEST_NAME, text.as_bytes())?;
        names.push(MANIFEST_NAME.to_owned());

        self.staging.install(names, options.durability == Durability::Synced)?;
        Ok(Remains { _finisher: self.finisher, _staging: self.staging })
    }

    fn sum_raw(&self, name: &str, hash: bool) -> Result<FileSum> {
        let Some((file, size)) = self.staging.dir_of(name).open_file(name)? else {
            return Err(Error::Missing { path: self.path_of(name) });
        };
        let hash = match hash {
            true => Some(dir::hash(file).map_err(|source| Error::io("read", self.path_of(name), source))?),
            false => None,
        };
        Ok(FileSum::new(size, hash))
    }
}
