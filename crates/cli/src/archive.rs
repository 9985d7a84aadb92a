//! Archives of podman's that we pack and unpack in its place: it does so by a slower compressor, reads an archive twice, and
//! writes out what it holds before it calls criu.
//!
//! ```text
//!   criu: the pages ──────────┐
//!   podman ──tar──▶ pipe ──thread──▶ zstd, on all processors ──▶ FILE.part ──finish──▶ FILE
//!   FILE ──▶ memory ──▶ podman, as often as it likes
//!               └─────▶ criu: the pages
//! ```
//!
//! Podman is given the path of an open file of ours (`/proc/PID/fd/N`) in the place of the archive's.

mod apart;
pub mod aside;

use anyhow::{Context, Result, anyhow};
use aside::Aside;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::pipe::PipeFlags;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::{JoinHandle, available_parallelism};
use zstd::stream::{read::Decoder, write::Encoder};

/// How hard it is compressed: memory is either easy, or not worth the time.
const LEVEL: i32 = 1;
/// The first bytes of what zstd has made (RFC 8878, section 3.1.1).
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// So much is read, written and held by a pipe at a time: with less, two processes wake each other all the time.
const PIECE: usize = 1 << 20;
/// What part of the memory that is free an unpacked archive may take.
const SHARE: u64 = 4;

/// An archive that is being made. If it is dropped before it is finished, nothing is left of it.
pub struct Packing {
    archive: PathBuf,
    part: Part,
    into: OwnedFd,
    thread: JoinHandle<io::Result<()>>,
}

/// The file until it is complete.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // It has another name already if all went well.
        let _ = fs::remove_file(&self.0);
    }
}

impl Packing {
    /// Begins it. What comes through [`Packing::path`] is compressed, and with it pages that have been set aside, as the
    /// answer to `asked` says.
    pub fn begin(archive: &Path, asked: PathBuf) -> Result<Packing> {
        let named = || archive.display().to_string();
        let mut part = archive.as_os_str().to_owned();
        part.push(".part");
        let part = Part(part.into());
        // It has the memory of processes in it.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part.0);
        let file = file.with_context(named)?;
        file.set_permissions(fs::Permissions::from_mode(0o600)).with_context(named)?;
        let (from, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        // An unprivileged user may have to do with less.
        let _ = rustix::pipe::fcntl_setpipe_size(&into, PIECE);
        let mut encoder = Encoder::new(file, LEVEL).with_context(named)?;
        encoder.include_checksum(true).with_context(named)?;
        encoder.multithread(available_parallelism().map_or(1, |n| n.get() as u32)).with_context(named)?;
        let pack = move || {
            let aside = wait_for_pages(&from, &asked)?;
            let pages = aside.map_or_else(|| Ok(Vec::new()), |aside| aside.open())?;
            apart::join(pages, BufReader::with_capacity(PIECE, File::from(from)), &mut encoder)?;
            encoder.finish()?.sync_all()
        };
        let thread = std::thread::Builder::new().name("archive".into()).spawn(pack).context("cannot begin a thread")?;
        Ok(Packing { archive: archive.to_owned(), part, into, thread })
    }

    /// Where podman is to write it.
    pub fn path(&self) -> PathBuf {
        of_ours(&self.into)
    }

    /// Waits until all of it is there. Podman must have ended.
    pub fn finish(self) -> Result<()> {
        let Packing { archive, part, into, thread } = self;
        // The last end: the thread finds the end of the archive.
        drop(into);
        let packed = thread.join().map_err(|_| anyhow!("it was not packed"))?;
        packed.and_then(|()| fs::rename(&part.0, &archive)).with_context(|| archive.display().to_string())
    }
}

/// What has been set aside, as soon as it is known: at the latest when podman begins to write, or has ended without.
fn wait_for_pages(from: &OwnedFd, asked: &Path) -> io::Result<Option<Aside>> {
    const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
    loop {
        let begun = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&LOOK_AGAIN)).map(|ready| ready > 0);
        let begun = match begun {
            Err(rustix::io::Errno::INTR) => false,
            begun => begun?,
        };
        let aside = aside::answer(asked);
        if begun || aside.is_some() {
            return Ok(aside);
        }
    }
}

/// An archive that podman can read as often as it likes.
pub struct Unpacked {
    archive: File,
    /// To which it has links.
    _pages: Vec<File>,
}

impl Unpacked {
    /// Unpacks an archive into memory; `None` for one that is not packed by zstd, or that takes too much memory: both are for
    /// podman itself.
    pub fn new(archive: &Path) -> Result<Option<Unpacked>> {
        let named = || archive.display().to_string();
        let mut file = File::open(archive).with_context(named)?;
        let mut magic = [0; 4];
        if file.read_exact(&mut magic).is_err() || magic != MAGIC {
            return Ok(None);
        }
        file.rewind().with_context(named)?;
        let most = memory_available() / SHARE;
        let memory =
            rustix::fs::memfd_create("archive", MemfdFlags::CLOEXEC).context("cannot make a file in memory")?;
        let mut memory = File::from(memory);
        let decoder = Decoder::new(file).with_context(named)?.take(most + 1);
        let mut contents = BufReader::with_capacity(PIECE, decoder);
        let split = apart::split(&mut contents, &mut memory);
        // What is behind the end of the archive proves it whole.
        let split = split.and_then(|pages| io::copy(&mut contents, &mut io::sink()).map(|_| pages));
        if contents.get_ref().limit() == 0 {
            return Ok(None);
        }
        Ok(Some(Unpacked { archive: memory, _pages: split.with_context(named)? }))
    }

    /// Where podman finds it.
    pub fn path(&self) -> PathBuf {
        of_ours(&self.archive)
    }
}

/// An open file of ours, for another process.
fn of_ours(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// Bytes of `MemAvailable` (proc_meminfo(5)); nothing if it is not told.
fn memory_available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive as podman makes them, and what its last file holds.
    fn archive(pages: &[u8]) -> Vec<u8> {
        let mut made = tar::Builder::new(Vec::new());
        let long = format!("artifacts/{}", "n".repeat(200));
        let files: [(&str, &[u8]); 4] = [
            ("config.dump", b"config"),
            (&long, b"long"),
            ("checkpoint/mm-1.img", b""),
            ("checkpoint/pages-1.img", pages),
        ];
        for (name, contents) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(contents.len() as u64);
            header.set_mode(0o600);
            if header.set_path(name).is_err() {
                header = tar::Header::new_gnu();
                header.set_size(contents.len() as u64);
            }
            made.append_data(&mut header, name, contents).unwrap();
        }
        made.into_inner().unwrap()
    }

    #[test]
    fn what_was_packed_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar.zst");
        let pages: Vec<u8> = (0..3_000_001u32).map(|n| (n / 7) as u8).collect();
        let packing = Packing::begin(&path, PathBuf::new()).unwrap();
        fs::write(packing.path(), archive(&pages)).unwrap();
        packing.finish().unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 1_000_000);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let unpacked = Unpacked::new(&path).unwrap().unwrap();
        for turn in ["first", "second"] {
            let out = dir.path().join(turn);
            tar::Archive::new(File::open(unpacked.path()).unwrap()).unpack(&out).unwrap();
            let link = out.join("checkpoint/pages-1.img");
            assert!(link.is_symlink() && fs::read(link).unwrap() == pages);
            assert_eq!(fs::read(out.join("config.dump")).unwrap(), b"config");
            assert_eq!(fs::read_dir(out.join("artifacts")).unwrap().count(), 1);
            fs::remove_dir_all(out).unwrap();
        }
        drop(Packing::begin(&path, PathBuf::new()).unwrap());
        assert!(fs::read_dir(dir.path()).unwrap().count() == 1 && Unpacked::new(&path).unwrap().is_some());
    }

    #[test]
    fn what_was_cut_short_is_not_taken_for_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar.zst");
        let packed = zstd::encode_all(&archive(&[7; 5000])[..], LEVEL).unwrap();
        fs::write(&path, &packed[..packed.len() - 1]).unwrap();
        assert!(Unpacked::new(&path).is_err());
    }

    #[test]
    fn what_is_no_archive_of_ours_is_for_podman() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        fs::write(&path, "tar").unwrap();
        assert!(Unpacked::new(&path).unwrap().is_none());
        fs::write(&path, [&MAGIC[..], b"nothing of the kind"].concat()).unwrap();
        assert!(Unpacked::new(&path).is_err());
        assert!(Unpacked::new(&dir.path().join("none")).is_err());
    }
}
