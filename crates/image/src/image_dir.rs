//! Reading an image directory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;

use crate::dir::{self, Dir};
use crate::dump_dir::{DumpDir, PARENT, is_layer_name};
use crate::entry_reader::EntryReader;
use crate::error::{Error, Result};
use crate::frames::{Frames, frames_name, is_frames_name};
use crate::kind::ImageKind;
use crate::manifest::{FileSum, JSON_LIMIT, MANIFEST_NAME, Manifest, from_json, json_name};
use crate::records::InventoryEntry;
use crate::shape::Record;
use crate::staging::{is_memory, is_part_of_an_image};
use crate::tail::Tailed;

/// All the records that one file decodes to may occupy this many bytes; those
/// who expect more read them one at a time.
const MAX_RECORDS: usize = 2 << 30;

/// An image directory open for reading, ours or CRIU's.
///
/// Where the image has a manifest, a file's size and sum are compared before
/// anything is read from it; the sums of pages files by
/// [`ImageDir::verify`] alone.
#[derive(Debug)]
pub struct ImageDir {
    dir: Dir,
    manifest: Option<Manifest>,
    /// Compressed pages files that have been asked for, unpacked.
    unpacked: Mutex<BTreeMap<u64, File>>,
}

impl ImageDir {
    /// Opens a directory and reads the manifest if there is one.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Corrupt`] and [`Error::Altered`] for the
    /// manifest. A directory without an image is no error here: see
    /// [`ImageDir::inventory`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_dir(Dir::open(path.as_ref())?)
    }

    pub(crate) fn from_dir(dir: Dir) -> Result<Self> {
        let manifest = match dir.read_small(MANIFEST_NAME, JSON_LIMIT)? {
            Some(text) => Some(Manifest::from_text(&dir.path_of(MANIFEST_NAME), text)?),
            None => None,
        };
        Ok(Self { dir, manifest, unpacked: Mutex::default() })
    }

    /// The directory as it was named to [`ImageDir::open`].
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The manifest, if the image has one; CRIU's own images have none.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The image's inventory, without which there is no image.
    ///
    /// # Errors
    /// As for [`ImageDir::read_one`].
    pub fn inventory(&self) -> Result<InventoryEntry> {
        self.read_one(ImageKind::Inventory, None)
    }

    /// Where a file would be.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the kind does not go with `id`.
    pub fn path_of(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<PathBuf> {
        Ok(self.dir.path_of(&kind.file_name(id)?))
    }

    /// The image files in the directory, ascending by kind and number.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn files(&self) -> Result<Vec<(ImageKind, Option<u64>)>> {
        let names = self.dir.names()?;
        let mut files: Vec<_> = names.iter().filter_map(|name| ImageKind::from_file_name(name)).collect();
        files.sort_unstable();
        Ok(files)
    }

    /// The numbers of the files of one kind, ascending.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn ids(&self, kind: ImageKind) -> Result<Vec<u64>> {
        let files = self.files()?;
        Ok(files.into_iter().filter_map(|(k, id)| id.filter(|_| k == kind)).collect())
    }

    /// The image that pages marked as the parent's lie in, if there is one.
    ///
    /// # Errors
    /// As for [`ImageDir::open`]; a link that leads nowhere is an error.
    pub fn parent(&self) -> Result<Option<Self>> {
        match self.dir.names()?.iter().any(|name| name == PARENT) {
            true => {
                let is_gone = |error: &Error| error.errno() == Some(rustix::io::Errno::NOENT.raw_os_error());
                let parent = self.dir.subdir(PARENT).map_err(|error| match is_gone(&error) {
                    true => Error::parent(self.dir.path_of(PARENT), "leads to a directory that is not there"),
                    false => error,
                })?;
                let parent = Self::from_dir(parent)?;
                self.check_parent(&parent)?;
                Ok(Some(parent))
            }
            false => Ok(None),
        }
    }

    /// Whether the parent is the one that this image was made upon, as far as both say.
    fn check_parent(&self, parent: &Self) -> Result<()> {
        let expected = self.manifest.as_ref().and_then(|manifest| manifest.parent.as_deref());
        match (expected, parent.manifest.as_ref().map(Manifest::seal)) {
            (Some(expected), Some(found)) if expected != found => {
                let problem = format!("is another image (BLAKE3 {found}) than the one this was made upon ({expected})");
                Err(Error::parent(parent.path(), problem))
            }
            _ => Ok(()),
        }
    }

    /// The images that were written below this one, inside of it.
    pub(crate) fn layers(&self) -> Result<Vec<Self>> {
        let names = self.dir.names()?;
        let ours = names.iter().filter(|name| is_layer_name(name) && self.dir.is_dir(name));
        ours.map(|name| Self::from_dir(self.dir.subdir(name)?)).collect()
    }

    /// Opens a file and compares it with the manifest.
    fn open_name(&self, name: &str, compare: Compare) -> Result<Option<(File, u64)>> {
        let Some((file, size)) = self.dir.open_file(name)? else {
            return Ok(None);
        };
        let Some(manifest) = &self.manifest else {
            return Ok(Some((file, size)));
        };
        let path = self.dir.path_of(name);
        let Some(sum) = manifest.files.get(name) else {
            if manifest.memory_elsewhere && is_memory(name) {
                return Ok(Some((file, size)));
            }
            let (expected, found) = ("no such file".to_owned(), "one".to_owned());
            return Err(Error::Altered { path, expected, found });
        };
        compare_sum(sum, &file, size, compare, path)?;
        Ok(Some((file, size)))
    }

    fn missing(&self, name: &str) -> Error {
        Error::Missing { path: self.dir.path_of(name) }
    }

    /// Opens a file of messages; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Altered`]; [`Error::Corrupt`] if the header is
    /// not this kind's; [`Error::Misuse`].
    pub fn entries_optional(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<Option<EntryReader>> {
        let name = kind.file_name(id)?;
        match self.open_name(&name, Compare::All)? {
            Some((file, size)) => EntryReader::new(kind, self.dir.path_of(&name), file, size).map(Some),
            None => Ok(None),
        }
    }

    /// Opens a file of messages.
    ///
    /// # Errors
    /// As for [`ImageDir::entries_optional`], and [`Error::Missing`].
    pub fn entries(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<EntryReader> {
        let id = id.into();
        match self.entries_optional(kind, id)? {
            Some(reader) => Ok(reader),
            None => Err(self.missing(&kind.file_name(id)?)),
        }
    }

    /// Reads a file that holds one message; `None` if there is no such file.
    ///
    /// # Errors
    /// As for [`ImageDir::entries_optional`]; also [`Error::Corrupt`] if the file
    /// holds no message or more than one.
    pub fn read_optional<M: Record>(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<Option<M>> {
        let Some(mut reader) = self.entries_optional(kind, id)? else {
            return Ok(None);
        };
        let message = reader.require()?;
        if reader.remaining() > 0 {
            let found = format!("{} bytes more", reader.remaining());
            return Err(reader.corrupt(reader.position(), "the file's end", found));
        }
        Ok(Some(message))
    }

    /// Reads a file that holds one message.
    ///
    /// # Errors
    /// As for [`ImageDir::read_optional`], and [`Error::Missing`].
    pub fn read_one<M: Record>(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<M> {
        let id = id.into();
        match self.read_optional(kind, id)? {
            Some(message) => Ok(message),
            None => Err(self.missing(&kind.file_name(id)?)),
        }
    }

    /// Reads all messages of a file; none if there is no such file, since CRIU
    /// leaves out many a file that would be empty.
    ///
    /// # Errors
    /// As for [`ImageDir::entries_optional`]; also [`Error::Corrupt`] if the
    /// messages would occupy more than 2 GiB of memory.
    pub fn read_all_optional<M: Record>(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<Vec<M>> {
        match self.entries_optional(kind, id)? {
            Some(reader) => collect(reader, EntryReader::next_record::<M>),
            None => Ok(vec![]),
        }
    }

    /// Reads all messages of a file.
    ///
    /// # Errors
    /// As for [`ImageDir::read_all_optional`], and [`Error::Missing`].
    pub fn read_all<M: Record>(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<Vec<M>> {
        collect(self.entries(kind, id)?, EntryReader::next_record::<M>)
    }

    /// Reads all messages of a file with the data behind each; none if there is
    /// no such file.
    ///
    /// # Errors
    /// As for [`ImageDir::read_all_optional`].
    pub fn read_tailed<M: Tailed>(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<Vec<(M, Vec<u8>)>> {
        match self.entries_optional(kind, id)? {
            Some(reader) => collect(reader, EntryReader::next_tailed::<M>),
            None => Ok(vec![]),
        }
    }

    /// Opens a file of raw data; `None` if there is no such file.
    ///
    /// Its size, and unless it holds pages its sum, are as in the manifest.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Altered`]; [`Error::Misuse`] if the kind is not raw.
    pub fn open_raw_optional(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<Option<File>> {
        let id = id.into();
        let name = kind.file_name(id)?;
        if !kind.is_raw() {
            return Err(Error::misuse(self.dir.path_of(&name), "not a file of raw data"));
        }
        let compare = if kind.is_pages() { Compare::Size } else { Compare::All };
        match (self.open_name(&name, compare)?, kind, id) {
            (Some((file, _)), ..) => Ok(Some(file)),
            (None, ImageKind::Pages, Some(id)) => self.unpacked(id),
            _ => Ok(None),
        }
    }

    /// A pages file that is stored compressed, unpacked into memory, where it stays as long as this image is open.
    fn unpacked(&self, id: u64) -> Result<Option<File>> {
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.path_of(&frames_name(id));
        let file = match unpacked.entry(id) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(room) => match self.frames(id)? {
                Some(frames) => room.insert(frames.unpack(&path)?),
                None => return Ok(None),
            },
        };
        // By its own name, so that nobody shares its position.
        let by_number = format!("/proc/self/fd/{}", file.as_raw_fd());
        File::open(by_number).map(Some).map_err(|source| Error::io("open", path, source))
    }

    fn frames(&self, id: u64) -> Result<Option<Frames>> {
        let name = frames_name(id);
        let Some((file, len)) = self.open_name(&name, Compare::Size)? else { return Ok(None) };
        Frames::open(file, len, &self.dir.path_of(&name)).map(Some)
    }

    /// Bytes of a pages file, or of what is in a compressed one; `None` if there is neither.
    pub(crate) fn pages_len(&self, id: u64) -> Result<Option<u64>> {
        match self.open_name(&ImageKind::Pages.file_name(id)?, Compare::Size)? {
            Some((_, size)) => Ok(Some(size)),
            None => Ok(self.frames(id)?.map(|frames| frames.size())),
        }
    }

    /// Opens a file of raw data.
    ///
    /// # Errors
    /// As for [`ImageDir::open_raw_optional`], and [`Error::Missing`].
    pub fn open_raw(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<File> {
        let id = id.into();
        match self.open_raw_optional(kind, id)? {
            Some(file) => Ok(file),
            None => Err(self.missing(&kind.file_name(id)?)),
        }
    }

    /// Puts everything into another image but pagemaps, pages, the manifest and the way to parents.
    pub(crate) fn copy_all_but_memory(&self, to: &DumpDir) -> Result<()> {
        for name in self.dir.names()? {
            let is_ours = is_part_of_an_image(&name, self.dir.is_dir(&name)) && !self.dir.is_dir(&name);
            if !is_ours || is_memory(&name) || name == PARENT || name == MANIFEST_NAME {
                continue;
            }
            let (file, _) = self.open_name(&name, Compare::All)?.ok_or_else(|| self.missing(&name))?;
            to.copy_file(&name, file)?;
        }
        Ok(())
    }

    /// Opens a pages file for making holes in it.
    pub(crate) fn open_pages_to_change(&self, pages_id: u32) -> Result<File> {
        if self.frames(u64::from(pages_id))?.is_some() {
            let problem = "is compressed, and cannot have holes (`cryonaut export` undoes that)";
            return Err(Error::parent(self.dir.path_of(&frames_name(u64::from(pages_id))), problem));
        }
        self.dir.open_to_change(&ImageKind::Pages.file_name(u64::from(pages_id))?)
    }

    /// Reads `cryonaut-NAME.json`; `None` if there is no such file, as in images
    /// of CRIU's.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Altered`], [`Error::Corrupt`], [`Error::Misuse`].
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let name = json_name(name)?;
        if self.open_name(&name, Compare::All)?.is_none() {
            return Ok(None);
        }
        let text = self.dir.read_small(&name, JSON_LIMIT)?.ok_or_else(|| self.missing(&name))?;
        from_json(&self.dir.path_of(&name), &text).map(Some)
    }

    /// Compares one file of the manifest, pages too if `pages`.
    pub(crate) fn compare(&self, name: &str, pages: bool) -> Result<()> {
        let is_pages = is_frames_name(name) || ImageKind::from_file_name(name).is_some_and(|(kind, _)| kind.is_pages());
        let compare = if is_pages && !pages { Compare::Size } else { Compare::All };
        match self.open_name(name, compare)? {
            Some(_) => Ok(()),
            None => Err(self.missing(name)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compare {
    Size,
    /// Size and, where the manifest has it, sum.
    All,
}

fn compare_sum(sum: &FileSum, mut file: &File, size: u64, compare: Compare, path: PathBuf) -> Result<()> {
    if size != sum.size {
        let (expected, found) = (format!("{} bytes", sum.size), format!("{size}"));
        return Err(Error::Altered { path, expected, found });
    }
    let Some(expected) = sum.blake3.as_ref().filter(|_| compare == Compare::All) else {
        return Ok(());
    };
    let hashed = dir::hash(file, size).and_then(|hash| file.seek(SeekFrom::Start(0)).map(|_| hash));
    let found = match hashed {
        Ok(hash) => hash.to_hex(),
        Err(source) => return Err(Error::io("read", path, source)),
    };
    if found.as_str() != expected {
        let expected = format!("BLAKE3 {}", expected.escape_debug());
        return Err(Error::Altered { path, expected, found: found.to_string() });
    }
    Ok(())
}

fn collect<T>(mut reader: EntryReader, mut next: impl FnMut(&mut EntryReader) -> Result<Option<T>>) -> Result<Vec<T>> {
    let mut items = Vec::new();
    let mut bytes = 0_usize;
    let mut at = reader.position();
    while let Some(item) = next(&mut reader)? {
        // Data between the messages are no larger in memory than in the file.
        bytes += size_of::<T>();
        if bytes > MAX_RECORDS {
            let expected = format!("records that fit into {MAX_RECORDS} bytes");
            return Err(reader.corrupt(at, expected, "more"));
        }
        items.push(item);
        at = reader.position();
    }
    Ok(items)
}
