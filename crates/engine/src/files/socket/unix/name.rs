//! Names of Unix sockets: abstract ones, and files of the file system, which
//! are made again with their owner and mode. A name may be relative to a
//! directory, or be deleted already; both still are what getsockname(2) tells.

use super::acting::Target;
use super::object;
use crate::files::{Build, Collect, OpenFile};
use crate::users;
use crate::{Error, Result};
use cryonaut_image::records::{FilePermsEntry, UnixSkEntry};
use cryonaut_kernel::sys::unix_diag::UnixSocket;
use cryonaut_kernel::sys::unix_name;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How a name is shown in messages.
pub fn shown(name: &[u8]) -> String {
    match name {
        [] => "without a name".into(),
        [0, rest @ ..] => format!("@{}", String::from_utf8_lossy(rest)),
        path => String::from_utf8_lossy(path_of(path)).into_owned(),
    }
}

/// A path without the zero at its end.
fn path_of(name: &[u8]) -> &[u8] {
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Whether it is a file.
pub fn is_path(name: &[u8]) -> bool {
    name.first().is_some_and(|byte| *byte != 0)
}

/// An address for bind(2) and connect(2).
pub fn address(name: &[u8]) -> std::result::Result<SocketAddrUnix, Errno> {
    match name {
        [0, rest @ ..] => SocketAddrUnix::new_abstract_name(rest),
        path => SocketAddrUnix::new(path_of(path)),
    }
}

/// Writes down the name, and of a file who may use it and where it is.
pub fn collect(cx: &Collect<'_>, file: &OpenFile<'_>, told: &UnixSocket, record: &mut UnixSkEntry) -> Result<()> {
    record.name = told.name.clone();
    if !is_path(&told.name) {
        return Ok(());
    }
    let failed = |e| Error::kernel(file.object(), "find the file of its name", e);
    let bound = unix_name::file_of(file.file).map_err(failed)?;
    let stat = rustix::fs::fstat(&bound).map_err(failed)?;
    let (uid, gid) = users::inside((stat.st_uid, stat.st_gid));
    record.file_perms = Some(FilePermsEntry { mode: stat.st_mode, uid, gid });
    record.mnt_id = Some(cx.mount_of(bound.as_fd()).map_err(failed)?).filter(|id| *id >= 0);
    let is_deleted = stat.st_nlink == 0;
    if is_deleted {
        record.deleted = Some(true);
    }
    let name = path_of(&told.name);
    if name.starts_with(b"/") {
        return Ok(());
    }
    let full = rustix::fs::readlink(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&bound)), Vec::new());
    let full = full.map_err(failed)?.into_bytes();
    let full = full.strip_suffix(b" (deleted)").filter(|_| is_deleted).unwrap_or(&full);
    let plain = name.strip_prefix(b"./").unwrap_or(name);
    let dir = match full.strip_suffix(plain).and_then(|dir| dir.strip_suffix(b"/")) {
        Some(b"") => b"/".to_vec(),
        Some(dir) => dir.to_vec(),
        None => directory_of(file, name, &stat)?,
    };
    record.name_dir = Some(dir);
    Ok(())
}

/// The working directory of the process, if the name leads to the file from there.
fn directory_of(file: &OpenFile<'_>, name: &[u8], stat: &rustix::fs::Stat) -> Result<Vec<u8>> {
    let dir = file.task.link("cwd")?;
    // As the process sees it, whatever its root.
    let way = Path::new("cwd").join(std::ffi::OsStr::from_bytes(name));
    let there = rustix::fs::statat(file.task.dir(), &way, AtFlags::SYMLINK_NOFOLLOW);
    if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)) {
        return Ok(dir.as_os_str().as_bytes().to_vec());
    }
    Err(Error::unsupported(
        file.object(),
        format!("its name {} is relative to a directory that cannot be found out", shown(name)),
        "let the program bind it to an absolute path",
    ))
}

/// Where names mean what they say.
#[derive(Debug)]
pub struct Places {
    /// The root of the tree's file system, if not ours.
    root: Option<OwnedFd>,
    /// Roots of mount namespaces, by the id of a recorded mount of theirs.
    roots: BTreeMap<i32, OwnedFd>,
    /// For names that are deleted, or belong to a socket that is not the one bound to the file.
    private: Option<OwnedFd>,
}

impl Places {
    /// For names of these records.
    pub fn new<'r>(cx: &Build<'_>, records: impl Iterator<Item = &'r UnixSkEntry>) -> Result<Places> {
        let root = cx.options.root.as_deref().filter(|_| cx.mounts.is_empty());
        let failed =
            |e| Error::kernel(crate::Object::Path(root.unwrap_or(Path::new("/")).display().to_string()), "open it", e);
        let mut roots = BTreeMap::new();
        for mnt_id in records.filter_map(|record| record.mnt_id) {
            if let Some(root) = cx.mounts.root_for(Some(mnt_id)) {
                roots.insert(mnt_id, rustix::io::fcntl_dupfd_cloexec(root, 0).map_err(failed)?);
            }
        }
        Ok(Places { root: root.map(unix_name::open_root).transpose().map_err(failed)?, roots, private: None })
    }

    /// Does something where the name of this record is in the tree's file system.
    fn there<T: Send>(
        &self,
        record: &UnixSkEntry,
        call: impl FnOnce() -> std::result::Result<T, Errno> + Send,
    ) -> std::result::Result<T, Errno> {
        let dir = record.name_dir.as_deref();
        let own = record.mnt_id.and_then(|mnt_id| self.roots.get(&mnt_id));
        unix_name::with_names_of(own.or(self.root.as_ref()).map(AsFd::as_fd), dir, call)
    }

    /// Does something where nobody else sees the names. What is there is gone in the end.
    /// `place` tells those of one name apart: files of several sockets may have had it, one after the other.
    pub fn apart<T: Send>(
        &mut self,
        place: u32,
        name: &[u8],
        call: impl FnOnce() -> std::result::Result<T, Errno> + Send,
    ) -> std::result::Result<T, Errno> {
        let root = match &self.private {
            Some(root) => root,
            None => self.private.insert(unix_name::private_root()?),
        };
        let own = place.to_string();
        match rustix::fs::mkdirat(root, &own, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(root, &own, flags, Mode::empty())?;
        // Relative names are so to the root, deep enough for those that go up.
        let dir = b"/a/b/c/d/e/f/g/h";
        let path = Path::new(std::ffi::OsStr::from_bytes(path_of(name)));
        unix_name::with_names_of(Some(root.as_fd()), None, || {
            let whole = Path::new(std::ffi::OsStr::from_bytes(dir)).join(path);
            std::fs::create_dir_all(whole.parent().unwrap_or(Path::new("/")))
                .map_err(|e| crate::error::errno_of(&e))?;
            std::fs::create_dir_all(std::ffi::OsStr::from_bytes(dir)).map_err(|e| crate::error::errno_of(&e))?;
            rustix::process::chdir(dir.as_slice())?;
            call()
        })
    }

    /// Binds it to its name.
    pub fn bind(&mut self, socket: BorrowedFd<'_>, record: &UnixSkEntry) -> Result<()> {
        let name = record.name.as_slice();
        let bound = if !is_path(name) {
            address(name).and_then(|address| rustix::net::bind(socket, &address))
        } else if record.deleted == Some(true) {
            self.apart(record.id, name, || bind_new(socket, record))
        } else {
            self.there(record, || bind_file(socket, record))
        };
        bound.map_err(|errno| Error::Kernel {
            object: object(record),
            action: "bind it to its name".into(),
            errno,
            remedy: match errno {
                Errno::ADDRINUSE => "another program here has the name: end that one",
                Errno::NOENT => "its directory is not here: make it",
                _ => "",
            },
        })
    }

    /// Connects to the name of a record.
    pub fn connect(&mut self, socket: BorrowedFd<'_>, to: &UnixSkEntry) -> std::result::Result<(), Errno> {
        self.reach(to, |address| rustix::net::connect(socket, address))
    }

    /// Does something with the address of a record, where it means that socket.
    pub fn reach<T: Send>(
        &mut self,
        to: &UnixSkEntry,
        call: impl FnOnce(&SocketAddrUnix) -> std::result::Result<T, Errno> + Send,
    ) -> std::result::Result<T, Errno> {
        let address = address(&to.name)?;
        match (is_path(&to.name), to.deleted == Some(true)) {
            (false, _) => call(&address),
            (true, true) => self.apart(to.id, &to.name, || call(&address)),
            (true, false) => self.there(to, || call(&address)),
        }
    }

    /// Where to connect to the socket of a record: where nobody else sees its name, if it is `apart` or deleted.
    pub fn target(&mut self, to: &UnixSkEntry, apart: bool) -> std::result::Result<Target, Errno> {
        if !is_path(&to.name) {
            return Ok(Target::new(&to.name, None));
        }
        let path = path_of(&to.name);
        let (dir, name) = path.split_at(path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1));
        let open = || {
            let dir = if dir.is_empty() { b".".as_slice() } else { dir };
            rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        };
        let opened = match apart || to.deleted == Some(true) {
            true => self.apart(to.id, &to.name, open),
            false => self.there(to, open),
        };
        Ok(Target::new(&[name, b"\0"].concat(), Some(opened?)))
    }

    /// Takes away what is to be without a file.
    pub fn delete(&mut self, record: &UnixSkEntry) -> std::result::Result<(), Errno> {
        self.apart(record.id, &record.name, || rustix::fs::unlink(path_of(&record.name)))
    }
}

fn bind_file(socket: BorrowedFd<'_>, record: &UnixSkEntry) -> std::result::Result<(), Errno> {
    remove_stale(path_of(&record.name), &address(&record.name)?, record.r#type)?;
    bind_new(socket, record)
}

/// Binds a socket to a name that makes a file, with the owner and mode of the record, where names mean what they say.
pub fn bind_new(socket: BorrowedFd<'_>, record: &UnixSkEntry) -> std::result::Result<(), Errno> {
    let address = address(&record.name)?;
    let Some(perms) = &record.file_perms else { return rustix::net::bind(socket, &address) };
    let mode = Mode::from_raw_mode(perms.mode & 0o7777);
    rustix::process::umask(Mode::from_raw_mode(0o777) - mode);
    rustix::net::bind(socket, &address)?;
    let file = unix_name::file_of(socket)?;
    let (uid, gid) = users::outside((perms.uid, perms.gid));
    unix_name::set_owner_and_mode(file.as_fd(), Uid::from_raw(uid), Gid::from_raw(gid), mode)
}

/// The file is there still, from before, unless somebody has it now: nobody can use it again.
fn remove_stale(path: &[u8], address: &SocketAddrUnix, kind: u32) -> std::result::Result<(), Errno> {
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {}
        Ok(_) => return Err(Errno::ADDRINUSE),
        Err(errno) => return Err(errno),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::from_raw(kind), flags, None)?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => rustix::fs::unlink(path),
        _ => Err(Errno::ADDRINUSE),
    }
}
