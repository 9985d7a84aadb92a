//! A process that clears up after another one that is killed in the middle of writing a directory.
//!
//! It is a child that waits for the end of its maker on a pipe. Told that all went well, it just ends. It shares nothing
//! with its maker, blocks all signals, and runs in a copy of memory in which other threads may have held any lock: so it
//! makes system calls and nothing else.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::sys::process::{Child, Spawn, spawn};
use crate::sys::wait::{Who, wait};

/// What is to be cleared up.
#[derive(Debug, Clone)]
pub struct Duty {
    /// The directory, by an absolute path; it need not be there yet.
    pub directory: CString,
    /// Files and directories in it whose names begin so go in any case, with what the latter hold: files, and directories of
    /// files.
    pub hidden: CString,
    /// The file that is there once the work is complete: then nothing else goes.
    pub mark: CString,
    /// Else these of its files go, and of its directories: told a name, and whether it is that of a directory. Must
    /// neither allocate nor take a lock.
    pub ours: fn(&[u8], bool) -> bool,
    /// And the directory itself if that leaves it empty.
    pub whole: bool,
}

/// A janitor at its post. Dropped, it is dismissed: there is nothing to clear up.
#[derive(Debug)]
pub struct Janitor {
    pipe: OwnedFd,
    child: Child,
    /// Bytes of notes sent.
    sent: AtomicUsize,
}

/// Most bytes of notes, each path with its zero; and the dismissal.
const NOTES: usize = 16 << 10;
/// No absolute path begins so.
const DISMISSED: u8 = b'!';

impl Janitor {
    /// Makes one.
    pub fn hire(duty: &Duty) -> Result<Self, Errno> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // SAFETY: the body makes system calls alone: rustix's wrappers of them neither allocate nor touch anything of
        // libc's, paths are C strings already, buffers are on the stack, and `ours` is bound to the same by its contract.
        let child = unsafe {
            spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
                serve(duty, &reader);
                0
            })
        }?;
        Ok(Self { pipe: writer, child, sent: AtomicUsize::new(0) })
    }

    /// A file elsewhere that we have made, by its absolute path: it goes too if the work is not complete. Says whether
    /// there was still room for it.
    pub fn note(&self, path: &CStr) -> bool {
        let bytes = path.to_bytes_with_nul();
        let sent = self.sent.load(Ordering::Relaxed) + bytes.len();
        if sent >= NOTES || !path.to_bytes().starts_with(b"/") {
            return false;
        }
        self.sent.store(sent, Ordering::Relaxed);
        rustix::io::write(&self.pipe, bytes) == Ok(bytes.len())
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        // Fails only if somebody has ended it.
        let _ = rustix::io::write(&self.pipe, &[DISMISSED]);
        let _ = wait(Who::One(self.child.pid));
    }
}

fn serve(duty: &Duty, reader: &OwnedFd) {
    crate::sys::signal::block_all();
    let keep = reader.as_raw_fd() as u32;
    // SAFETY: closing every descriptor but `reader` leaves others without
    // theirs, but nothing in this process uses or drops them: it ends with _exit.
    unsafe {
        if keep > 0 {
            libc::syscall(libc::SYS_close_range, 0, keep - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, keep + 1, u32::MAX, 0);
    }
    let (mut notes, mut used) = ([0u8; NOTES], 0);
    loop {
        match rustix::io::read(reader, &mut notes[used..]) {
            Ok(0) => return clear_up(duty, &notes[..used]),
            Ok(got) => used += got,
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
        if let Some(&DISMISSED) = notes[..used].rsplit(|byte| *byte == 0).next().and_then(|rest| rest.first()) {
            return;
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn clear_up(duty: &Duty, notes: &[u8]) {
    let Ok(directory) = fs::open(&*duty.directory, DIRECTORY, Mode::empty()) else { return };
    // Whoever writes there now comes first; then there is nothing of ours left, or it is told from theirs by its name.
    let _ = fs::flock(&directory, FlockOperation::LockExclusive);
    let complete = fs::statat(&directory, &*duty.mark, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    sweep(directory.as_fd(), 3, &|name, is_directory| {
        name.starts_with(duty.hidden.as_bytes()) || (!complete && (duty.ours)(name, is_directory))
    });
    // What follows the last zero was cut short.
    for path in notes.split_inclusive(|byte| *byte == 0).filter_map(|note| CStr::from_bytes_with_nul(note).ok()) {
        if !complete {
            let _ = fs::unlinkat(fs::CWD, path, AtFlags::empty());
        }
    }
    if !complete && duty.whole {
        let _ = fs::unlinkat(fs::CWD, &*duty.directory, AtFlags::REMOVEDIR);
    }
}

/// Removes what `goes`, directories with all that they hold, down to `depth`.
fn sweep(directory: BorrowedFd<'_>, depth: u32, goes: &dyn Fn(&[u8], bool) -> bool) {
    let mut room = [MaybeUninit::uninit(); 4096];
    // A reading of its own, whatever has been read through the other.
    let Ok(listing) = fs::openat(directory, c".", DIRECTORY, Mode::empty()) else { return };
    let mut entries = RawDir::new(&listing, &mut room);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_directory = entry.file_type() == FileType::Directory;
        if !goes(name.to_bytes(), is_directory) {
            continue;
        }
        if !is_directory {
            let _ = fs::unlinkat(directory, name, AtFlags::empty());
            continue;
        }
        if let (true, Ok(inner)) = (depth > 0, fs::openat(directory, name, DIRECTORY, Mode::empty())) {
            sweep(inner.as_fd(), depth - 1, &|_, _| true);
        }
        let _ = fs::unlinkat(directory, name, AtFlags::REMOVEDIR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs as std_fs;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::time::{Duration, Instant};

    fn duty(directory: &Path) -> Duty {
        Duty {
            directory: CString::new(directory.as_os_str().as_bytes()).unwrap(),
            hidden: c".hidden-".to_owned(),
            mark: c"mark".to_owned(),
            ours: |name, is_directory| if is_directory { name == b"layer" } else { name.ends_with(b".img") },
            whole: true,
        }
    }

    fn fill(directory: &Path) {
        for name in [".hidden-1/old/layer", "layer"] {
            std_fs::create_dir_all(directory.join(name)).unwrap();
        }
        for name in
            ["a.img", "b.img", "layer/e", ".hidden-1/c", ".hidden-1-mark", ".hidden-1/old/d", ".hidden-1/old/layer/f"]
        {
            std_fs::write(directory.join(name), name).unwrap();
        }
    }

    /// As if we had been killed: the pipe closes without a word.
    fn desert(janitor: Janitor) {
        let janitor = std::mem::ManuallyDrop::new(janitor);
        // SAFETY: `janitor` is never used again, and never dropped.
        drop(unsafe { std::ptr::read(&raw const janitor.pipe) });
        wait(Who::One(janitor.child.pid)).unwrap();
    }

    #[test]
    fn what_is_incomplete_goes() {
        let room = tempfile::tempdir().unwrap();
        let directory = room.path().join("image");
        let janitor = Janitor::hire(&duty(&directory)).unwrap();
        fill(&directory);
        desert(janitor);
        assert!(!directory.exists());
    }

    #[test]
    fn what_belongs_to_others_stays() {
        let room = tempfile::tempdir().unwrap();
        let directory = room.path().join("image");
        fill(&directory);
        std_fs::write(directory.join("log"), "").unwrap();
        std_fs::create_dir(directory.join("c.img")).unwrap();
        desert(Janitor::hire(&duty(&directory)).unwrap());
        let mut left: Vec<_> = std_fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["c.img", "log"]);
    }

    #[test]
    fn what_was_noted_goes_too() {
        let room = tempfile::tempdir().unwrap();
        let noted = room.path().join("noted");
        let path = CString::new(noted.as_os_str().as_bytes()).unwrap();
        for (complete, there) in [(true, true), (false, false)] {
            let directory = room.path().join(format!("image{complete}"));
            std_fs::create_dir(&directory).unwrap();
            std_fs::write(&noted, "").unwrap();
            let janitor = Janitor::hire(&duty(&directory)).unwrap();
            assert!(janitor.note(&path) && !janitor.note(c"relative"));
            if complete {
                std_fs::write(directory.join("mark"), "").unwrap();
            }
            desert(janitor);
            assert_eq!(noted.exists(), there);
        }
        std_fs::write(&noted, "").unwrap();
        let janitor = Janitor::hire(&duty(room.path())).unwrap();
        assert!(janitor.note(&path));
        drop(janitor);
        assert!(noted.exists());
    }

    #[test]
    fn what_is_complete_stays() {
        let room = tempfile::tempdir().unwrap();
        fill(room.path());
        std_fs::write(room.path().join("mark"), "").unwrap();
        desert(Janitor::hire(&duty(room.path())).unwrap());
        assert!(room.path().join("a.img").exists() && !room.path().join(".hidden-1").exists());
    }

    #[test]
    fn who_is_dismissed_does_nothing() {
        let room = tempfile::tempdir().unwrap();
        fill(room.path());
        let begun = Instant::now();
        drop(Janitor::hire(&duty(room.path())).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(room.path().join("a.img").exists() && room.path().join(".hidden-1/old/d").exists());
    }
}
