//! Archives of podman's that we pack and unpack in its place: it does so by a slower compressor, and reads an archive twice.
//!
//! ```text
//!   podman ──tar──▶ pipe ──thread──▶ zstd, on all processors ──▶ FILE.part ──finish──▶ FILE
//!   FILE ──▶ memory ──▶ podman, as often as it likes
//! ```
//!
//! Podman is given the path of an open file of ours (`/proc/PID/fd/N`) in the place of the archive's.

use anyhow::{Context, Result, anyhow};
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
    /// Begins it. What comes through [`Packing::path`] is compressed.
    pub fn begin(archive: &Path) -> Result<Packing> {
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
            io::copy(&mut BufReader::with_capacity(PIECE, File::from(from)), &mut encoder)?;
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

/// An archive that podman can read as often as it likes.
pub struct Unpacked(File);

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
        let len = io::copy(&mut contents, &mut memory).with_context(named)?;
        Ok((len <= most).then_some(Unpacked(memory)))
    }

    /// Where podman finds it.
    pub fn path(&self) -> PathBuf {
        of_ours(&self.0)
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

    #[test]
    fn what_was_packed_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a.tar.zst");
        let contents: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
        let packing = Packing::begin(&archive).unwrap();
        fs::write(packing.path(), &contents).unwrap();
        packing.finish().unwrap();
        assert!(fs::metadata(&archive).unwrap().len() < 1_000_000);
        assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
        let unpacked = Unpacked::new(&archive).unwrap().unwrap();
        for _ in 0..2 {
            assert!(fs::read(unpacked.path()).unwrap() == contents);
        }
        drop(Packing::begin(&archive).unwrap());
        assert!(fs::read_dir(dir.path()).unwrap().count() == 1 && Unpacked::new(&archive).unwrap().is_some());
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
