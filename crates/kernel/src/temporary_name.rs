//! Names of files that are there for a moment: what is made under one, its maker has, and nobody finds it any more.
//!
//! Should we be killed in that moment, the name goes nonetheless: all the calls are made by an [`errand`](crate::errand),
//! or where the moment is long, by a process that waits for our end. So whoever takes a name away is who has made it, and
//! does so by the directory in which he has made it: nobody has to find out later whose it is, and where.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::errand;
use crate::sys::process::{Child, Spawn, close_all_but, spawn};
use crate::sys::signal;
use crate::sys::wait::{WaitStatus, Who, wait};

/// A name that nobody has, for the moment.
#[derive(Debug, Clone)]
pub struct TemporaryName<'a> {
    /// To which the paths are relative.
    directory: BorrowedFd<'a>,
    /// Directories that have to be made for it, each before those in it.
    missing: Vec<CString>,
    path: CString,
}

/// What is made under a name.
#[derive(Debug, Clone)]
pub enum Thing {
    Symlink(CString),
    /// Anything else, and of which device it is.
    File(FileType, Mode, u64),
    /// Another name of the file that has this path.
    Link(CString),
}

impl<'a> TemporaryName<'a> {
    /// Looks which directories of the path are missing.
    pub fn new(directory: BorrowedFd<'a>, path: &Path) -> Result<Self, Errno> {
        let c_string = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL);
        let is_missing = |above: &&Path| {
            !above.as_os_str().is_empty() && rustix::fs::statat(directory, *above, AtFlags::empty()).is_err()
        };
        let mut missing =
            path.ancestors().skip(1).take_while(is_missing).map(c_string).collect::<Result<Vec<_>, _>>()?;
        missing.reverse();
        Ok(Self { directory, missing, path: c_string(path)? })
    }

    /// Makes the thing, and keeps it: what is made as a regular file is open for reading and writing, the others are
    /// `O_PATH`. EEXIST if the name is somebody else's.
    pub fn open(&self, thing: &Thing) -> Result<OwnedFd, Errno> {
        // SAFETY: calls of rustix with C strings, which are handed to the kernel as they are.
        unsafe {
            errand::run(|| {
                self.while_made(|| {
                    if let Thing::File(FileType::RegularFile, mode, _) = thing {
                        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                        let file = rustix::fs::openat(self.directory, &*self.path, flags, *mode)?;
                        return self.removed(thing, Ok(file));
                    }
                    self.make(thing)?;
                    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    self.removed(thing, rustix::fs::openat(self.directory, &*self.path, flags, Mode::empty()))
                })
            })
        }
    }

    /// Makes the thing for a user, and has a process keep the name until it is told, or we have ended.
    pub fn keep(&self, thing: &Thing, owner: (Uid, Gid)) -> Result<KeptName, Errno> {
        let [(answers, answer), (end, pipe)] = [pipe_with(PipeFlags::CLOEXEC)?, pipe_with(PipeFlags::CLOEXEC)?];
        // SAFETY: the body makes system calls alone, by wrappers that neither allocate nor touch anything of libc's.
        let child = unsafe {
            spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
                signal::block_all();
                close_all_but(&[self.directory, answer.as_fd()], end.as_fd());
                let done = self.while_made(|| self.serve(thing, owner, &answer, &end));
                let errno = done.err().map_or(0, Errno::raw_os_error);
                // Whoever has read one is told nothing more: the exit code says the rest.
                let _ = rustix::io::write(&answer, &errno.to_ne_bytes());
                errno
            })
        }?;
        drop((answer, end));
        let kept = KeptName { pipe: Some(pipe), child };
        let mut told = [0; size_of::<i32>()];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&answers, &mut told))?;
        match i32::from_ne_bytes(told) {
            0 if length == told.len() => Ok(kept),
            0 => Err(Errno::CHILD),
            errno => Err(Errno::from_raw_os_error(errno)),
        }
    }

    fn serve(&self, thing: &Thing, (uid, gid): (Uid, Gid), answer: &OwnedFd, end: &OwnedFd) -> Result<(), Errno> {
        self.make(thing)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let owned = rustix::fs::chownat(self.directory, &*self.path, Some(uid), Some(gid), flags);
        let made = owned.and_then(|()| rustix::fs::statat(self.directory, &*self.path, flags));
        if made.is_ok() {
            // Nobody reads it if we have been deserted already.
            let _ = rustix::io::write(answer, &0i32.to_ne_bytes());
            while rustix::io::read(end, &mut [0]) == Err(Errno::INTR) {}
            // Held by the mounts that show it, or nobody's: else it would not be ours any more.
            let now = rustix::fs::statat(self.directory, &*self.path, flags)?;
            if made.is_ok_and(|made| (made.st_dev, made.st_ino) != (now.st_dev, now.st_ino)) {
                return Ok(());
            }
        }
        rustix::fs::unlinkat(self.directory, &*self.path, thing.removal())?;
        made.map(drop)
    }

    fn make(&self, thing: &Thing) -> Result<(), Errno> {
        match thing {
            Thing::Symlink(target) => rustix::fs::symlinkat(&**target, self.directory, &*self.path),
            Thing::File(FileType::Directory, mode, _) => rustix::fs::mkdirat(self.directory, &*self.path, *mode),
            Thing::File(kind, mode, dev) => rustix::fs::mknodat(self.directory, &*self.path, *kind, *mode, *dev),
            Thing::Link(from) => rustix::fs::linkat(CWD, &**from, self.directory, &*self.path, AtFlags::empty()),
        }
    }

    /// The thing has been made, and `held` is how it is kept.
    fn removed(&self, thing: &Thing, held: Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
        rustix::fs::unlinkat(self.directory, &*self.path, thing.removal())?;
        held
    }

    /// Does something while the missing directories are there.
    fn while_made<T>(&self, act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let mut count = 0;
        let mut all = Ok(());
        while let (Ok(()), Some(directory)) = (all, self.missing.get(count)) {
            all = rustix::fs::mkdirat(self.directory, &**directory, Mode::RWXU);
            count += usize::from(all.is_ok());
        }
        let done = all.and_then(|()| act());
        for directory in self.missing[..count].iter().rev() {
            // If somebody has put a file there, it is his.
            let _ = rustix::fs::unlinkat(self.directory, &**directory, AtFlags::REMOVEDIR);
        }
        done
    }
}

impl Thing {
    /// How its name is taken away.
    fn removal(&self) -> AtFlags {
        match self {
            Thing::File(FileType::Directory, ..) => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        }
    }
}

/// A name that is there until this is dropped, or we have ended.
#[derive(Debug)]
pub struct KeptName {
    /// `None` once it is to go.
    pipe: Option<OwnedFd>,
    child: Child,
}

impl KeptName {
    /// Takes the name away.
    pub fn remove(mut self) -> Result<(), Errno> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Errno> {
        if self.pipe.take().is_none() {
            return Ok(());
        }
        match wait(Who::One(self.child.pid))?.1 {
            WaitStatus::Exited(0) => Ok(()),
            WaitStatus::Exited(errno) => Err(Errno::from_raw_os_error(errno)),
            _ => Err(Errno::CHILD),
        }
    }
}

impl Drop for KeptName {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::{fs, io::Write};

    fn file() -> Thing {
        Thing::File(FileType::RegularFile, Mode::RUSR | Mode::WUSR, 0)
    }

    fn shown(file: &OwnedFd) -> String {
        fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap().to_string_lossy().into_owned()
    }

    #[test]
    fn nothing_is_left_but_what_is_held() {
        let room = tempfile::tempdir().unwrap();
        let link = CString::new(room.path().join("linked").into_os_string().into_encoded_bytes()).unwrap();
        fs::write(room.path().join("linked"), "").unwrap();
        let directory = Thing::File(FileType::Directory, Mode::RWXU, 0);
        let pipe = Thing::File(FileType::Fifo, Mode::RUSR, 0);
        for thing in [file(), directory, pipe, Thing::Symlink(c"nowhere".to_owned()), Thing::Link(link)] {
            let path = room.path().join("a/b/name");
            let name = TemporaryName::new(CWD, &path).unwrap();
            assert_eq!(name.missing.len(), 2);
            let held = name.open(&thing).unwrap();
            assert_eq!(shown(&held), format!("{} (deleted)", path.display()), "{thing:?}");
            assert_eq!(fs::read_dir(room.path()).unwrap().count(), 1, "{thing:?}");
        }
    }

    #[test]
    fn a_regular_file_can_be_written() {
        let room = tempfile::tempdir().unwrap();
        let top = fs::File::open(room.path()).unwrap();
        let held = TemporaryName::new(top.as_fd(), Path::new("name")).unwrap().open(&file()).unwrap();
        let mut held = fs::File::from(held);
        held.write_all(b"contents").unwrap();
        let now = held.metadata().unwrap();
        assert_eq!((now.size(), now.nlink()), (8, 0));
    }

    #[test]
    fn what_others_have_stays() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("name");
        fs::write(&path, "theirs").unwrap();
        let name = TemporaryName::new(CWD, &path).unwrap();
        for thing in [file(), Thing::File(FileType::Directory, Mode::RWXU, 0), Thing::Symlink(c"x".to_owned())] {
            assert_eq!(name.open(&thing).unwrap_err(), Errno::EXIST);
        }
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        // One directory that was missing has come meanwhile.
        let below = TemporaryName::new(CWD, &room.path().join("a/b/name")).unwrap();
        fs::create_dir_all(room.path().join("a/b")).unwrap();
        assert_eq!(below.open(&file()).unwrap_err(), Errno::EXIST);
        assert!(room.path().join("a/b").exists());
    }

    #[test]
    fn a_name_is_kept_until_it_is_told() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("a/name");
        let name = TemporaryName::new(CWD, &path).unwrap();
        let directory = Thing::File(FileType::Directory, Mode::RWXU, 0);
        let owner = (Uid::from_raw(0), Gid::from_raw(0));
        if !rustix::process::getuid().is_root() {
            return;
        }
        let kept = name.keep(&directory, owner).unwrap();
        assert!(path.is_dir());
        let again = TemporaryName::new(CWD, &path).unwrap().keep(&directory, owner);
        assert_eq!(again.unwrap_err(), Errno::EXIST);
        kept.remove().unwrap();
        assert!(!room.path().join("a").exists());
        // Somebody else has taken it meanwhile.
        let kept = name.keep(&file(), owner).unwrap();
        fs::rename(&path, room.path().join("moved")).unwrap();
        fs::write(&path, "theirs").unwrap();
        kept.remove().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
    }

    #[test]
    fn a_kept_name_goes_with_its_maker() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("name");
        let name = TemporaryName::new(CWD, &path).unwrap();
        let owner = (rustix::process::getuid(), rustix::process::getgid());
        let thing = file();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        // SAFETY: `keep` makes system calls alone.
        let maker = unsafe {
            spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
                let kept = name.keep(&thing, owner);
                let _ = rustix::io::write(&writer, &[u8::from(kept.is_ok())]);
                loop {
                    let _ = rustix::thread::nanosleep(&rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 });
                }
            })
        };
        let (maker, mut told) = (maker.unwrap(), [0]);
        assert_eq!((rustix::io::read(&reader, &mut told), told), (Ok(1), [1]));
        assert!(path.exists());
        rustix::process::kill_process(maker.pid, rustix::process::Signal::KILL).unwrap();
        let begun = std::time::Instant::now();
        while path.exists() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "the name stays");
            std::thread::yield_now();
        }
        wait(Who::One(maker.pid)).unwrap();
    }
}
