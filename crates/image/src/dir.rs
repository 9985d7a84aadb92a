//! A directory held open, and the few file operations that images need.
//!
//! Everything goes through the descriptor, so the directory may be renamed, or
//! be named by a path such as `/proc/self/fd/7` that means something else later.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};

use crate::error::{DAMAGED, Error, Result};

/// Images hold the memory of processes: nobody but the owner may read them.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIR_MODE: Mode = Mode::RWXU;

#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    /// Stands before the names of its files, which grow [hidden](Dir::hiding).
    prefix: String,
}

impl Dir {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_at(fs::CWD, path, path.to_owned())
    }

    fn open_at(at: BorrowedFd<'_>, name: &Path, path: PathBuf) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match fs::openat(at, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path, prefix: String::new() }),
            Err(errno) => Err(Error::io("open the directory", path, errno.into())),
        }
    }

    /// Opens a directory inside of this one; symbolic links are followed.
    pub(crate) fn subdir(&self, name: &str) -> Result<Self> {
        Self::open_at(self.as_fd(), Path::new(name), self.path.join(name))
    }

    /// The same directory once more, whose files have names that begin so until they are [moved](Dir::move_to).
    pub(crate) fn hiding(&self, prefix: String) -> Result<Self> {
        match rustix::io::fcntl_dupfd_cloexec(&self.fd, 0) {
            Ok(fd) => Ok(Self { fd, path: self.path.clone(), prefix }),
            Err(errno) => Err(Error::io("open the directory", &self.path, errno.into())),
        }
    }

    /// What a file is called in the directory.
    fn there<'n>(&self, name: &'n str) -> Cow<'n, str> {
        if self.prefix.is_empty() { name.into() } else { format!("{}{name}", self.prefix).into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn wrap<T>(&self, action: &'static str, name: &str, result: rustix::io::Result<T>) -> Result<T> {
        result.map_err(|errno| Error::io(action, self.path_of(name), errno.into()))
    }

    /// Opens a regular file for reading; `None` if there is no such name.
    /// Returns its size in bytes as well.
    pub(crate) fn open_file(&self, name: &str) -> Result<Option<(File, u64)>> {
        // Not to hang on a fifo that someone put there.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match fs::openat(&self.fd, &*self.there(name), flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            other => self.wrap("open", name, other)?,
        };
        let stat = self.wrap("stat", name, fs::fstat(&fd))?;
        Ok(Some((File::from(fd), self.size_of_regular(name, &stat)?)))
    }

    /// The size of a regular file; `None` if there is no such name.
    pub(crate) fn file_size(&self, name: &str) -> Result<Option<u64>> {
        match fs::statat(&self.fd, &*self.there(name), AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => Ok(None),
            other => self.size_of_regular(name, &self.wrap("stat", name, other)?).map(Some),
        }
    }

    fn size_of_regular(&self, name: &str, stat: &fs::Stat) -> Result<u64> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            let found = format!("{kind:?}");
            return Err(Error::corrupt(&self.path_of(name), 0, "a regular file", found, DAMAGED));
        }
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Reads a whole small file; `None` if there is no such name.
    pub(crate) fn read_small(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some((file, size)) = self.open_file(name)? else {
            return Ok(None);
        };
        let path = self.path_of(name);
        if size > limit {
            let expected = format!("a file of at most {limit} bytes");
            return Err(Error::corrupt(&path, 0, expected, format!("{size}"), DAMAGED));
        }
        let mut bytes = Vec::new();
        let read = file.take(limit).read_to_end(&mut bytes);
        read.map_err(|source| Error::io("read", path, source))?;
        Ok(Some(bytes))
    }

    /// Makes a new file, open for reading and writing.
    pub(crate) fn create_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        self.wrap("create", name, fs::openat(&self.fd, &*self.there(name), flags, FILE_MODE)).map(File::from)
    }

    /// Opens a file for appending, making it if need be.
    pub(crate) fn append_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
        self.wrap("write", name, fs::openat(&self.fd, &*self.there(name), flags, FILE_MODE)).map(File::from)
    }

    /// Opens a file that is there for writing into it.
    pub(crate) fn open_to_change(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        self.wrap("open for writing", name, fs::openat(&self.fd, &*self.there(name), flags, Mode::empty()))
            .map(File::from)
    }

    /// Makes a directory; `false` if the name is taken.
    pub(crate) fn create_dir(&self, name: &str) -> Result<bool> {
        match fs::mkdirat(&self.fd, name, DIR_MODE) {
            Err(rustix::io::Errno::EXIST) => Ok(false),
            other => self.wrap("create the directory", name, other).map(|()| true),
        }
    }

    pub(crate) fn create_link(&self, name: &str, target: &Path) -> Result<()> {
        self.wrap("create the link", name, fs::symlinkat(target, &self.fd, name))
    }

    /// Moves `name` from this directory into another one on the same filesystem.
    pub(crate) fn move_to(&self, name: &str, to: &Dir) -> Result<()> {
        to.wrap("move a file to", name, fs::renameat(&self.fd, &*self.there(name), &to.fd, &*to.there(name)))
    }

    /// Renames within this directory, over what has the new name.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.wrap("rename a file to", to, fs::renameat(&self.fd, from, &self.fd, to))
    }

    pub(crate) fn remove_file(&self, name: &str) -> Result<()> {
        self.wrap("remove", name, fs::unlinkat(&self.fd, &*self.there(name), AtFlags::empty()))
    }

    /// Names in the directory. Those that are not UTF-8 are not ours; left out.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let list = || -> rustix::io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::Dir::read_from(&self.fd)? {
                let entry = entry?;
                match entry.file_name().to_str() {
                    Ok("." | "..") | Err(_) => {}
                    Ok(name) => names.push(name.to_owned()),
                }
            }
            names.sort_unstable();
            Ok(names)
        };
        list().map_err(|errno| Error::io("list", &self.path, errno.into()))
    }

    /// Brings the directory's own entries to stable storage.
    pub(crate) fn sync(&self) -> Result<()> {
        fs::fsync(&self.fd).map_err(|errno| Error::io("sync", &self.path, errno.into()))
    }

    /// Brings one file's contents to stable storage.
    pub(crate) fn sync_file(&self, name: &str) -> Result<()> {
        let file = self.wrap(
            "open",
            name,
            fs::openat(
                &self.fd,
                &*self.there(name),
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            ),
        )?;
        self.wrap("sync", name, fs::fsync(&file))
    }

    /// Takes the directory's lock without waiting.
    pub(crate) fn try_lock(&self) -> Lock {
        match fs::flock(&self.fd, fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Lock::Taken,
            Err(rustix::io::Errno::WOULDBLOCK) => Lock::HeldByAnother,
            Err(_) => Lock::Unsupported,
        }
    }

    /// Whether the name is that of a directory; links are not followed.
    pub(crate) fn is_dir(&self, name: &str) -> bool {
        fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Whether the directory has been removed while we held it open.
    pub(crate) fn is_removed(&self) -> bool {
        fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Removes a directory inside of this one with all it holds, as far as that
    /// goes; used where no one is left to hear about a failure.
    pub(crate) fn remove_tree(&self, name: &OsStr) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(fd) = fs::openat(&self.fd, name, flags, Mode::empty()) {
            let inner = Self { fd, path: self.path.join(name), prefix: String::new() };
            for entry in fs::Dir::read_from(&inner.fd).into_iter().flatten().flatten() {
                let entry = OsStr::from_bytes(entry.file_name().to_bytes());
                if entry == "." || entry == ".." {
                    continue;
                }
                if fs::unlinkat(&inner.fd, entry, AtFlags::empty()).is_err() {
                    inner.remove_tree(entry);
                }
            }
        }
        let _ = fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR);
    }
}

/// Answer of [`Dir::try_lock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    Taken,
    HeldByAnother,
    /// The filesystem knows no locks.
    Unsupported,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Hashes what is left of a reader, about `size` bytes.
pub(crate) fn hash(mut reader: impl Read, size: u64) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    // Most files are small, and there may be thousands of them.
    let mut buffer = vec![0; (size as usize).clamp(1, 256 << 10)];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
    }
}
