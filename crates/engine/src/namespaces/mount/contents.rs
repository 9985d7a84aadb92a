//! What a file system in memory holds, as `tmpfs-dev-DEV.tar.gz.img`: a compressed archive of tar(1), with names from
//! the root of the file system on (`./a/b`).
//!
//! It is read and written through a descriptor of a mount that shows all of it, which stands nowhere or where nothing is
//! mounted upon it: so what other mounts hide is there as well.

use crate::users;
use crate::{Error, Object, Result};
use cryonaut_image::{DumpDir, ImageDir, ImageKind};
use cryonaut_kernel::sys::creds::FilesOf;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tar::{Archive, Builder, Entry, EntryType, Header};

/// How pax headers name an extended attribute.
const XATTR: &str = "SCHILY.xattr.";

/// For messages.
fn object(dev: u32) -> Object {
    Object::Other(format!("file system in memory {}:{}", dev >> 20, dev & 0xf_ffff))
}

/// Writes down what the file system `dev` holds; `tops` are mounts of it, each with the path of the directory (or file)
/// that it shows.
pub fn write(images: &DumpDir, dev: u32, tops: &[(Vec<u8>, OwnedFd)]) -> Result<()> {
    let file = images.raw_file(ImageKind::TmpfsDev, u64::from(dev))?;
    let packer = GzEncoder::new(BufWriter::new(file), Compression::fast());
    let mut archive = Packing { archive: Builder::new(packer), links: HashMap::new() };
    let written = tops.iter().try_for_each(|(top, mount)| {
        let name = Path::new(".").join(OsStr::from_bytes(top.strip_prefix(b"/").unwrap_or(top)));
        archive.add(mount.as_fd(), &name)
    });
    let finished = written.and_then(|()| archive.archive.into_inner()?.finish()?.into_inner()?.flush());
    finished.map_err(|e| Error::kernel(object(dev), "write down what it holds", crate::error::errno_of(&e)))
}

struct Packing<W: Write> {
    archive: Builder<W>,
    /// Files of several names, by inode: the first of them.
    links: HashMap<u64, PathBuf>,
}

impl<W: Write> Packing<W> {
    /// Adds a file that is open (`O_PATH` will do), and what is below it.
    fn add(&mut self, file: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
        let stat = rustix::fs::fstat(file)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut header = header_of(&stat);
        // A name of a socket is made again with the socket.
        if kind == FileType::Socket {
            return Ok(());
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.archive.append_link(&mut header, name, first.clone());
            }
            self.links.insert(stat.st_ino, name.to_owned());
        }
        self.extras(file, &stat, kind)?;
        match kind {
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                self.archive.append_data(&mut header, name.join(""), io::empty())?;
                self.add_below(file, name)
            }
            FileType::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                let target = rustix::fs::readlinkat(file, c"", Vec::new())?;
                self.archive.append_link(&mut header, name, OsStr::from_bytes(target.to_bytes()))
            }
            FileType::RegularFile => {
                let mut open = File::from(reopen(file, OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK)?);
                if !users::are_mapped() {
                    return self.archive.append_file(name, &mut open);
                }
                // That would tell its owner as we see it.
                header.set_entry_type(EntryType::Regular);
                header.set_size(stat.st_size.cast_unsigned());
                self.archive.append_data(&mut header, name, open.take(stat.st_size.cast_unsigned()))
            }
            other => {
                header.set_entry_type(match other {
                    FileType::Fifo => EntryType::Fifo,
                    FileType::CharacterDevice => EntryType::Char,
                    _ => EntryType::Block,
                });
                header.set_device_major(rustix::fs::major(stat.st_rdev))?;
                header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
                self.archive.append_data(&mut header, name, io::empty())
            }
        }
    }

    fn add_below(&mut self, directory: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
        let listed = reopen(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME)?;
        for entry in Dir::new(listed)? {
            let entry = entry?;
            let child = entry.file_name();
            if child == c"." || child == c".." {
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(directory, child, flags, Mode::empty())?;
            self.add(file.as_fd(), &name.join(OsStr::from_bytes(child.to_bytes())))?;
        }
        Ok(())
    }

    /// What a header of tar has no place for: extended attributes, and parts of a second.
    fn extras(&mut self, file: BorrowedFd<'_>, stat: &Stat, kind: FileType) -> io::Result<()> {
        let mut extras: Vec<(String, Vec<u8>)> = Vec::new();
        if stat.st_mtime_nsec != 0 && stat.st_mtime >= 0 {
            extras.push(("mtime".into(), format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec).into_bytes()));
        }
        if matches!(kind, FileType::Directory | FileType::RegularFile) {
            let way = way_to(file);
            let names = sized(|room| rustix::fs::listxattr(&way, room))?;
            for attribute in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                let value = sized(|room| rustix::fs::getxattr(&way, attribute, room))?;
                extras.push((format!("{XATTR}{}", String::from_utf8_lossy(attribute)), value));
            }
        }
        if extras.is_empty() {
            return Ok(());
        }
        self.archive.append_pax_extensions(extras.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }
}

/// An answer of unknown length, asked for until it fits. None where there are no extended attributes.
fn sized(ask: impl Fn(&mut [u8]) -> std::result::Result<usize, Errno>) -> io::Result<Vec<u8>> {
    loop {
        let len = match ask(&mut []) {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            answer => answer?,
        };
        let mut room = vec![0; len];
        match ask(&mut room) {
            Err(Errno::RANGE) => {}
            answer => {
                room.truncate(answer?);
                return Ok(room);
            }
        }
    }
}

fn header_of(stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    let (uid, gid) = users::inside((stat.st_uid, stat.st_gid));
    header.set_uid(uid.into());
    header.set_gid(gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

/// A path by which calls that want one reach an open file.
fn way_to(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn reopen(file: BorrowedFd<'_>, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::open(way_to(file), flags | OFlags::CLOEXEC, Mode::empty())
}

/// Fills the file system `dev`, which is new; `top` is its root. Nothing happens if the image has nothing of it.
pub fn fill(images: &ImageDir, dev: u32, top: BorrowedFd<'_>) -> Result<()> {
    let Some(file) = images.open_raw_optional(ImageKind::TmpfsDev, u64::from(dev))? else {
        return Ok(());
    };
    let failed = |errno| Error::kernel(object(dev), "bring back what it held", errno);
    let stat = rustix::fs::fstat(top).map_err(failed)?;
    // The root of its user namespace.
    let is_others = (stat.st_uid, stat.st_gid) != (0, 0);
    let _owner = is_others.then(|| FilesOf::new(stat.st_uid, stat.st_gid)).transpose().map_err(failed)?;
    unpack(file, top).map_err(|e| failed(crate::error::errno_of(&e)))
}

fn unpack(file: impl Read, top: BorrowedFd<'_>) -> io::Result<()> {
    let mut archive = Archive::new(MultiGzDecoder::new(file));
    archive.set_ignore_zeros(false);
    // Times of directories change with what is made in them.
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = inside(&entry.path_bytes())?;
        let times = make(&mut entry, &name, top)?;
        if entry.header().entry_type() == EntryType::Directory {
            directories.push((name, times));
        }
    }
    for (name, times) in directories.into_iter().rev() {
        let open = open_in(top, &name, OFlags::PATH | OFlags::DIRECTORY)?;
        rustix::fs::utimensat(rustix::fs::CWD, way_to(open.as_fd()), &times, AtFlags::empty())?;
    }
    Ok(())
}

/// The parts of a name of the archive that lie below its top.
fn inside(name: &[u8]) -> io::Result<Vec<u8>> {
    let parts: Vec<&[u8]> = name.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) {
        return Err(io::Error::from(Errno::INVAL));
    }
    Ok(parts.join(&b'/'))
}

fn open_in(top: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let name = if name.is_empty() { b"." } else { name };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(top, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// The directory in which a name is, made if it is not there, and the name in it.
fn parent_of<'n>(top: BorrowedFd<'_>, name: &'n [u8]) -> io::Result<(OwnedFd, &'n [u8])> {
    let Some(at) = name.iter().rposition(|byte| *byte == b'/') else {
        return Ok((open_in(top, b".", OFlags::PATH | OFlags::DIRECTORY)?, name));
    };
    let (above, last) = (&name[..at], &name[at + 1..]);
    let open = || open_in(top, above, OFlags::PATH | OFlags::DIRECTORY);
    let directory = match open() {
        Err(Errno::NOENT) => {
            let (directory, last) = parent_of(top, above)?;
            rustix::fs::mkdirat(&directory, last, Mode::from_raw_mode(0o755))?;
            open()?
        }
        found => found?,
    };
    Ok((directory, last))
}

/// Makes one file of the archive; the times that it had.
fn make<R: Read>(entry: &mut Entry<'_, R>, name: &[u8], top: BorrowedFd<'_>) -> io::Result<Timestamps> {
    let header = entry.header().clone();
    let kind = header.entry_type();
    let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
    let (mut seconds, mut nanos) = (header.mtime()? as i64, 0);
    let mut attributes = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let key = extension.key_bytes();
        if key == b"mtime" {
            (seconds, nanos) = time_of(extension.value_bytes()).unwrap_or((seconds, nanos));
        } else if let Some(attribute) = key.strip_prefix(XATTR.as_bytes()) {
            attributes.push((attribute.to_vec(), extension.value_bytes().to_vec()));
        }
    }
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    let private = Mode::from_raw_mode(0o600);
    if name.is_empty() {
        settle(open_in(top, b"", OFlags::PATH)?.as_fd(), &header, mode, &times, &attributes)?;
        return Ok(times);
    }
    let (directory, last) = parent_of(top, name)?;
    let at = |flags| rustix::fs::openat(&directory, last, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, private);
    match kind {
        EntryType::Directory => match rustix::fs::mkdirat(&directory, last, mode) {
            Err(Errno::EXIST) => {}
            made => made?,
        },
        EntryType::Symlink => {
            let target = entry.link_name_bytes().unwrap_or_default();
            rustix::fs::symlinkat(target.as_ref(), &directory, last)?;
        }
        EntryType::Link => {
            let first = inside(&entry.link_name_bytes().unwrap_or_default())?;
            let (there, other) = parent_of(top, &first)?;
            rustix::fs::linkat(&there, other, &directory, last, AtFlags::empty())?;
            return Ok(times);
        }
        EntryType::Fifo => rustix::fs::mknodat(&directory, last, FileType::Fifo, private, 0)?,
        EntryType::Char | EntryType::Block => {
            let number = |part: io::Result<Option<u32>>| Ok::<_, io::Error>(part?.unwrap_or(0));
            let dev = rustix::fs::makedev(number(header.device_major())?, number(header.device_minor())?);
            let kind = if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
            rustix::fs::mknodat(&directory, last, kind, private, dev)?;
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let file = File::from(at(OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY)?);
            copy_sparsely(entry, file)?;
        }
        // Volume names and the like.
        _ => return Ok(times),
    }
    settle(at(OFlags::PATH)?.as_fd(), &header, mode, &times, &attributes)?;
    Ok(times)
}

/// Gives a file its owner, attributes, mode and times.
fn settle(
    file: BorrowedFd<'_>,
    header: &Header,
    mode: Mode,
    times: &Timestamps,
    attributes: &[(Vec<u8>, Vec<u8>)],
) -> io::Result<()> {
    let (uid, gid) = users::outside((header.uid()? as u32, header.gid()? as u32));
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(file, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    if header.entry_type() == EntryType::Symlink {
        return Ok(rustix::fs::utimensat(file, c"", times, AtFlags::EMPTY_PATH)?);
    }
    let way = way_to(file);
    for (name, value) in attributes {
        let name = CString::new(name.as_slice()).map_err(|_| Errno::INVAL)?;
        if let Err(errno) = rustix::fs::setxattr(&way, name.as_c_str(), value, XattrFlags::empty()) {
            tracing::warn!("cannot set the attribute {name:?} of a file: {errno}");
        }
    }
    rustix::fs::chmod(&way, mode)?;
    Ok(rustix::fs::utimensat(rustix::fs::CWD, &way, times, AtFlags::empty())?)
}

/// Seconds and nanoseconds of a decimal fraction.
fn time_of(text: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some((seconds.parse().ok()?, digits.parse().ok()?))
}

/// Copies all, and leaves holes where there are only zeros: a file system in memory need not keep them.
fn copy_sparsely(from: &mut impl Read, mut to: File) -> io::Result<()> {
    let mut buffer = vec![0u8; 1 << 16];
    let mut len = 0;
    loop {
        let mut have = 0;
        while have < buffer.len() {
            match from.read(&mut buffer[have..])? {
                0 => break,
                some => have += some,
            }
        }
        if have == 0 {
            break;
        }
        if buffer[..have].iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Current(have as i64))?;
        } else {
            to.write_all(&buffer[..have])?;
        }
        len += have as u64;
    }
    to.set_len(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

    fn pack(from: &Path) -> Vec<u8> {
        let top = rustix::fs::open(from, OFlags::PATH, Mode::empty()).unwrap();
        let mut packing =
            Packing { archive: Builder::new(GzEncoder::new(Vec::new(), Compression::fast())), links: HashMap::new() };
        packing.add(top.as_fd(), Path::new(".")).unwrap();
        packing.archive.into_inner().unwrap().finish().unwrap()
    }

    fn unpack_to(bytes: &[u8], to: &Path) {
        let top = rustix::fs::open(to, OFlags::PATH, Mode::empty()).unwrap();
        unpack(bytes, top.as_fd()).unwrap();
    }

    #[test]
    fn files_of_all_kinds_come_back() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = |name: &str| from.path().join(name);
        std::fs::create_dir_all(path("deep/er")).unwrap();
        std::fs::write(path("deep/file"), b"contents").unwrap();
        std::fs::hard_link(path("deep/file"), path("second")).unwrap();
        std::fs::set_permissions(path("second"), std::fs::Permissions::from_mode(0o4751)).unwrap();
        symlink("deep/nowhere", path("link")).unwrap();
        let long = "n".repeat(200);
        std::fs::write(path(&long), b"").unwrap();
        let sparse = File::create(path("sparse")).unwrap();
        sparse.write_at(b"end", 10 << 20).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: old, last_modification: old };
        rustix::fs::utimensat(rustix::fs::CWD, path("deep"), &times, AtFlags::empty()).unwrap();

        unpack_to(&pack(from.path()), to.path());
        let meta = |name: &str| std::fs::symlink_metadata(to.path().join(name)).unwrap();
        assert_eq!(std::fs::read(to.path().join("deep/file")).unwrap(), b"contents");
        assert_eq!(meta("deep/file").ino(), meta("second").ino());
        assert_eq!(meta("second").mode() & 0o7777, 0o4751);
        assert_eq!(std::fs::read_link(to.path().join("link")).unwrap(), Path::new("deep/nowhere"));
        assert_eq!((meta(&long).len(), meta("sparse").len()), (0, (10 << 20) + 3));
        assert!(meta("sparse").blocks() < 1000 && meta("fifo").mode() & libc::S_IFMT == libc::S_IFIFO);
        assert_eq!((meta("deep").mtime(), meta("deep").mtime_nsec()), (1_000_000_000, 123_456_789));
        assert!(meta("deep/er").is_dir());
    }

    #[test]
    fn nothing_leaves_the_top() {
        assert_eq!(inside(b"./a//b/").unwrap(), b"a/b");
        assert!(inside(b"../a").is_err() && inside(b"a/../../b").is_err());
        let to = tempfile::tempdir().unwrap();
        symlink("/tmp", to.path().join("out")).unwrap();
        let top = rustix::fs::open(to.path(), OFlags::PATH, Mode::empty()).unwrap();
        assert!(parent_of(top.as_fd(), b"out/file").is_err());
    }
}
