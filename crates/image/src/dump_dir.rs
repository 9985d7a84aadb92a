//! Writing an image directory that is complete or absent.
//!
//! [`DumpDir::commit`] makes the image visible, `inventory.img` last: an image
//! without an inventory is none. Files of others in the target stay.

mod layers;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::dir::{self, Dir};
use crate::entry_writer::EntryWriter;
use crate::error::{Error, Result};
use crate::finisher::Finisher;
use crate::frames::{self, Codec};
use crate::image_dir::ImageDir;
use crate::kind::ImageKind;
use crate::manifest::{FileSum, JSON_LIMIT, MANIFEST_NAME, Manifest, Provenance, json_name};
use crate::shape::Record;
use crate::staging::{self, PREFIX, Scope, Staging, belongs_to_image};
pub(crate) use layers::is_layer_name;
use layers::layer_name;

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
    /// Store pages files compressed, which CRIU cannot read. Takes room for both meanwhile.
    pub compress: Option<Codec>,
    /// For the manifest.
    pub provenance: Provenance,
}

/// An image directory being written. All methods may be called from several
/// threads. Dropped without [`DumpDir::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct DumpDir {
    /// Dropped first: it must not write any more when the files are removed.
    finisher: Finisher,
    home: Home,
    files: Mutex<BTreeMap<String, Content>>,
    /// Files that were made before it was known whether they would be written, open until they are.
    expected: Mutex<BTreeMap<String, Option<File>>>,
    layers: Mutex<Vec<Arc<DumpDir>>>,
    /// Whether memory goes to a page server, which may write to the same directory.
    memory_elsewhere: AtomicBool,
}

/// Where the files grow.
#[derive(Debug)]
enum Home {
    Image(Staging),
    /// A layer of an image.
    Layer(Arc<Dir>),
}

impl Home {
    /// The directory in which the file of this name grows.
    fn dir_of(&self, name: &str) -> &Arc<Dir> {
        match self {
            Home::Image(staging) => staging.dir_of(name),
            Home::Layer(dir) => dir,
        }
    }

    fn target(&self) -> &Dir {
        match self {
            Home::Image(staging) => staging.target(),
            Home::Layer(dir) => dir,
        }
    }
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
    _home: Home,
}

/// What a dump by this process into a directory would leave there if it were
/// killed, for somebody who clears up behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leavings {
    /// How the names of its hidden files and directories begin.
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

/// Whether a file of this name, or a directory, is part of an image. Does not allocate.
pub fn is_part_of_an_image(name: &[u8], is_directory: bool) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| staging::is_part_of_an_image(name, is_directory))
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
        Ok(Self::at(Home::Image(staging)))
    }

    fn at(home: Home) -> Self {
        let (files, expected, layers, memory_elsewhere) = Default::default();
        Self { finisher: Finisher::new(), home, files, expected, layers, memory_elsewhere }
    }

    /// Opens `path` for pagemaps and pages alone, which somebody else's dump sends: he may be writing the rest of his
    /// image to the same directory.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be opened or written to.
    pub fn for_pages(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::at(Home::Image(Staging::beside(Dir::open(path.as_ref())?)?)))
    }

    /// Says that this image's memory goes to a page server.
    pub fn leave_memory_out(&self) {
        self.memory_elsewhere.store(true, Ordering::Relaxed);
    }

    fn is_without_memory(&self) -> bool {
        self.memory_elsewhere.load(Ordering::Relaxed)
    }

    /// Makes a file that will probably be written, empty: now, when nobody waits
    /// for it. If it is not written it goes with the commit.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Misuse`] if the kind does not go with `id`.
    pub fn expect(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<()> {
        self.expect_file(kind.file_name(id)?)
    }

    /// The same of a file that [`DumpDir::write_json`] writes.
    ///
    /// # Errors
    /// As there.
    pub fn expect_json(&self, name: &str) -> Result<()> {
        self.expect_file(json_name(name)?)
    }

    /// The same of the manifest, which every image gets.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn expect_manifest(&self) -> Result<()> {
        self.expect_file(MANIFEST_NAME.to_owned())
    }

    fn expect_file(&self, name: String) -> Result<()> {
        let file = self.home.dir_of(&name).create_file(&name)?;
        self.expected().insert(name, Some(file));
        Ok(())
    }

    fn expected(&self) -> MutexGuard<'_, BTreeMap<String, Option<File>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, still empty, if it was expected.
    fn take_expected(&self, name: &str) -> Option<File> {
        self.expected().get_mut(name).and_then(Option::take)
    }

    /// Makes a file that may have been expected.
    fn create_file(&self, name: &str) -> Result<File> {
        self.take_expected(name).map_or_else(|| self.home.dir_of(name).create_file(name), Ok)
    }

    /// The directory as it was named to [`DumpDir::create`].
    pub fn path(&self) -> &Path {
        self.home.target().path()
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Content>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the file will be after the commit.
    fn path_of(&self, name: &str) -> PathBuf {
        self.home.target().path_of(name)
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
        let made = self.take_expected(&name);
        let writer = EntryWriter::new(kind, self.home.dir_of(&name).clone(), name.clone(), path, made);
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
        self.create_file(&name)
    }

    /// Makes a file of raw data that was made already once more, empty.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Misuse`] if there is none.
    pub fn raw_file_anew(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<File> {
        let name = kind.file_name(id)?;
        self.forget_raw(&name)?;
        self.claim(&name, Content::Raw { pages: kind.is_pages() })?;
        self.create_file(&name)
    }

    /// Removes a file of raw data that the image will not have.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Misuse`] if there is none.
    pub fn drop_raw_file(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<()> {
        self.forget_raw(&kind.file_name(id)?)
    }

    fn forget_raw(&self, name: &str) -> Result<()> {
        if !matches!(self.files().remove(name), Some(Content::Raw { .. })) {
            return Err(Error::misuse(self.path_of(name), "not a file of raw data that was made"));
        }
        // Nor is it to be cleared away.
        self.expected().remove(name);
        self.home.dir_of(name).remove_file(name)
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

    /// Takes over a file of another image as it is.
    pub(crate) fn copy_file(&self, name: &str, mut from: File) -> Result<()> {
        let failed = |source| Error::io("write", self.path_of(name), source);
        let mut to = self.create_file(name)?;
        let size = io::copy(&mut from, &mut to).map_err(failed)?;
        to.seek(SeekFrom::Start(0)).map_err(failed)?;
        let hash = dir::hash(to, size).map_err(failed)?;
        self.claim(name, Content::Done(FileSum::new(size, Some(hash))))
    }

    fn write_whole(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.create_file(name)?;
        file.write_all(bytes).map_err(|source| Error::io("write", self.path_of(name), source))
    }

    /// Names the image that pages marked as the parent's lie in. A relative
    /// path counts from this directory.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Misuse`] if called twice.
    pub fn set_parent(&self, path: impl AsRef<Path>) -> Result<()> {
        self.claim(PARENT, Content::Link)?;
        self.home.dir_of(PARENT).create_link(PARENT, path.as_ref())
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
        let inventory = ImageKind::Inventory.file_name(None)?;
        if !self.files().contains_key(&inventory) {
            return Err(Error::misuse(self.path_of(&inventory), "an image needs an inventory"));
        }
        let sync = options.durability == Durability::Synced;
        let mut names = Vec::new();
        let layers = std::mem::take(self.layers.get_mut().unwrap_or_else(PoisonError::into_inner));
        // The farthest first: who builds on it names its manifest.
        for (number, layer) in (1..).zip(layers).collect::<Vec<_>>().into_iter().rev() {
            let name = layer_name(number);
            let layer = Arc::into_inner(layer).ok_or_else(|| Error::misuse(self.path_of(&name), "still in use"))?;
            layer.complete_layer(&options)?;
            names.push(name);
        }
        names.extend(self.close_files(&options)?);
        let scope = if self.is_without_memory() { Scope::WithoutMemory } else { Scope::Whole };
        match &mut self.home {
            Home::Image(staging) => staging.install(names, scope, sync)?,
            Home::Layer(dir) => return Err(Error::misuse(dir.path(), "a layer is committed with its image")),
        }
        Ok(Remains { _finisher: self.finisher, _home: self.home })
    }

    /// Makes pagemaps and pages visible that were begun by [`DumpDir::for_pages`], in the place of those that were there.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Misuse`] if an earlier write failed. Then what was there before is there still.
    pub fn commit_pages(mut self) -> Result<()> {
        let (names, _) = self.end_files(&CommitOptions::default())?;
        match &mut self.home {
            Home::Image(staging) => staging.install(names, Scope::Memory, false),
            Home::Layer(dir) => Err(Error::misuse(dir.path(), "a layer is committed with its image")),
        }
    }

    /// Ends all files and writes the manifest; returns the names of all.
    fn close_files(&self, options: &CommitOptions) -> Result<Vec<String>> {
        let (mut names, sums) = self.end_files(options)?;
        let mut manifest = Manifest::new(options.provenance.clone(), sums);
        manifest.memory_elsewhere = self.is_without_memory();
        manifest.compression = options.compress.map(|codec| codec.name().to_owned());
        if names.iter().any(|name| name == PARENT) {
            manifest.parent = self.seal_of_parent();
        }
        let text = manifest.to_text().map_err(|error| Error::misuse(self.path_of(MANIFEST_NAME), error.to_string()))?;
        self.write_whole(MANIFEST_NAME, text.as_bytes())?;
        names.push(MANIFEST_NAME.to_owned());
        Ok(names)
    }

    /// By which the parent is known again; only ours can be.
    fn seal_of_parent(&self) -> Option<String> {
        let parent = ImageDir::from_dir(self.home.dir_of(PARENT).subdir(PARENT).ok()?).ok()?;
        parent.manifest().map(|manifest| manifest.seal().to_owned())
    }

    /// Ends all files; returns the names of all, and the sums of those that have some.
    fn end_files(&self, options: &CommitOptions) -> Result<(Vec<String>, BTreeMap<String, FileSum>)> {
        let contents = std::mem::take(&mut *self.files());
        let mut sums = BTreeMap::new();
        for name in self.expected().keys().filter(|name| !contents.contains_key(*name) && *name != MANIFEST_NAME) {
            self.home.dir_of(name).remove_file(name)?;
        }
        let mut names = Vec::with_capacity(contents.len());
        for (mut name, content) in contents {
            let sum = match content {
                // The thread of the finisher may be at the same, and nobody has to wait for its end.
                Content::Entries(writer) => writer.close()?,
                Content::Raw { pages } => {
                    let codec = options.compress.filter(|_| pages);
                    let packed = codec.map(|codec| self.compress(&name, codec)).transpose()?.flatten();
                    let is_summed = !pages || options.sum_pages || packed.is_some();
                    name = packed.unwrap_or(name);
                    self.sum_raw(&name, is_summed)?
                }
                Content::Done(sum) => sum,
                Content::Link => {
                    names.push(name);
                    continue;
                }
            };
            names.push(name.clone());
            sums.insert(name, sum);
        }
        Ok((names, sums))
    }

    /// Puts a compressed file in the place of a pages file that is not empty; its name.
    fn compress(&self, name: &str, codec: Codec) -> Result<Option<String>> {
        let dir = self.home.dir_of(name);
        let (pages, size) = dir.open_file(name)?.ok_or_else(|| Error::Missing { path: self.path_of(name) })?;
        let Some((ImageKind::Pages, Some(id))) = ImageKind::from_file_name(name).filter(|_| size > 0) else {
            return Ok(None);
        };
        let packed = frames::frames_name(id);
        let mut out = dir.create_file(&packed)?;
        frames::pack(&pages, size, codec, &mut out)
            .map_err(|source| Error::io("write", self.path_of(&packed), source))?;
        dir.remove_file(name)?;
        Ok(Some(packed))
    }

    fn sum_raw(&self, name: &str, hash: bool) -> Result<FileSum> {
        let missing = || Error::Missing { path: self.path_of(name) };
        let dir = self.home.dir_of(name);
        if !hash {
            return Ok(FileSum::new(dir.file_size(name)?.ok_or_else(missing)?, None));
        }
        let (file, size) = dir.open_file(name)?.ok_or_else(missing)?;
        let hash = dir::hash(file, size).map_err(|source| Error::io("read", self.path_of(name), source))?;
        Ok(FileSum::new(size, Some(hash)))
    }
}
