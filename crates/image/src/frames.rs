//! Pages files that are stored compressed: frames that are packed one by one, so that several threads can, and an index.
//!
//! ```text
//!   frame 0 | frame 1 | ... | packed length of each, 32 bits | trailer
//! ```
//!
//! Every frame but the last holds [`FRAME`] bytes of pages. The trailer is, all little-endian: bytes of pages (64 bits),
//! frames, bytes of a frame, the codec (32 bits each), and [`MAGIC`]. A frame that does not become smaller is stored as
//! it is. CRIU does not find the file that it would look for, and so cannot take this one for it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{CUT_SHORT, DAMAGED, Error, Result};

/// Bytes of pages in a frame.
pub const FRAME: usize = 1 << 20;
const MAGIC: [u8; 8] = *b"CRYOFRM1";
const TRAILER: usize = 28;
/// Bytes of a frame that any writer may choose.
const LARGEST_FRAME: usize = 64 << 20;

/// How pages are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Fast.
    Lz4,
    /// Smaller.
    Zstd,
}

impl Codec {
    /// As the command line and the manifest have it.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }

    /// The codec of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Codec::Lz4, Codec::Zstd].into_iter().find(|codec| codec.name() == name)
    }

    fn number(self) -> u32 {
        match self {
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        [Codec::Lz4, Codec::Zstd].into_iter().find(|codec| codec.number() == number)
    }

    fn pack(self, pages: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Codec::Lz4 => Ok(lz4_flex::block::compress(pages)),
            Codec::Zstd => zstd::bulk::compress(pages, ZSTD_LEVEL),
        }
    }

    /// The bytes unpacked, if they are as many as there is room for.
    fn unpack(self, packed: &[u8], room: &mut [u8]) -> Option<()> {
        let len = match self {
            Codec::Lz4 => lz4_flex::block::decompress_into(packed, room).ok()?,
            Codec::Zstd => zstd::bulk::decompress_to_buffer(packed, room).ok()?,
        };
        (len == room.len()).then_some(())
    }
}

/// What memory is packed with in little time.
const ZSTD_LEVEL: i32 = 1;

/// The name of the file that stands in the place of `pages-N.img`.
pub(crate) fn frames_name(pages_id: u64) -> String {
    format!("{HEAD}{pages_id}{TAIL}")
}

const HEAD: &str = "cryonaut-pages-";
const TAIL: &str = ".frames";

/// Whether a file name is that of a compressed pages file. Does not allocate.
pub(crate) fn is_frames_name(name: &str) -> bool {
    let number = name.strip_prefix(HEAD).and_then(|name| name.strip_suffix(TAIL)).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, Into::into)
}

/// Packs `size` bytes of pages into another file.
pub(crate) fn pack(pages: &File, size: u64, codec: Codec, out: &mut File) -> io::Result<()> {
    let frames = size.div_ceil(FRAME as u64) as usize;
    let mut index = Vec::with_capacity(frames * 4);
    let one = |frame: usize| -> io::Result<Vec<u8>> {
        let at = (frame * FRAME) as u64;
        let mut bytes = vec![0; FRAME.min((size - at) as usize)];
        pages.read_exact_at(&mut bytes, at)?;
        let packed = codec.pack(&bytes)?;
        Ok(if packed.len() < bytes.len() { packed } else { bytes })
    };
    // As many at a time as there are threads, so that memory does not grow with the file.
    for first in (0..frames).step_by(threads()) {
        let last = frames.min(first + threads());
        let packed: Vec<io::Result<Vec<u8>>> = thread::scope(|scope| {
            let running: Vec<_> = (first..last).map(|frame| scope.spawn(move || one(frame))).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            running.into_iter().map(join).collect()
        });
        for frame in packed {
            let frame = frame?;
            index.extend((frame.len() as u32).to_le_bytes());
            out.write_all(&frame)?;
        }
    }
    index.extend(size.to_le_bytes());
    for word in [frames as u32, FRAME as u32, codec.number()] {
        index.extend(word.to_le_bytes());
    }
    index.extend(MAGIC);
    out.write_all(&index)
}

/// A compressed pages file.
#[derive(Debug)]
pub(crate) struct Frames {
    file: File,
    codec: Codec,
    /// Bytes of pages, and of a frame of them.
    size: u64,
    frame: usize,
    /// Where each frame lies, and its packed length.
    places: Vec<(u64, usize)>,
}

impl Frames {
    /// Reads the index of a file of `len` bytes.
    pub(crate) fn open(file: File, len: u64, path: &Path) -> Result<Self> {
        let corrupt = |expected: &str, remedy| Error::corrupt(path, len, expected, "other bytes", remedy);
        let read =
            |bytes: &mut [u8], at: u64| file.read_exact_at(bytes, at).map_err(|source| Error::io("read", path, source));
        let index_end = len.checked_sub(TRAILER as u64).ok_or_else(|| corrupt("a trailer", CUT_SHORT))?;
        let mut trailer = [0; TRAILER];
        read(&mut trailer, index_end)?;
        let word = |at: usize| u32::from_le_bytes([trailer[at], trailer[at + 1], trailer[at + 2], trailer[at + 3]]);
        if trailer[20..] != MAGIC {
            return Err(corrupt("the trailer of compressed pages", CUT_SHORT));
        }
        let size = u64::from(word(0)) | u64::from(word(4)) << 32;
        let (count, frame) = (word(8) as usize, word(12) as usize);
        let codec = Codec::from_number(word(16)).ok_or_else(|| corrupt("a codec that is known", DAMAGED))?;
        let index_len = count as u64 * 4;
        let fits = frame > 0 && frame <= LARGEST_FRAME && size.div_ceil(frame.max(1) as u64) == count as u64;
        let index_start = index_end.checked_sub(index_len).filter(|_| fits);
        let index_start = index_start.ok_or_else(|| corrupt("as many frames as the pages need", DAMAGED))?;
        let mut index = vec![0; index_len as usize];
        read(&mut index, index_start)?;
        let mut at = 0;
        let places: Vec<(u64, usize)> = index
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| {
                let place = (at, u32::from_le_bytes(*bytes) as usize);
                at += place.1 as u64;
                place
            })
            .collect();
        if at != index_start || places.iter().any(|(_, len)| *len > frame) {
            return Err(corrupt("frames that add up to the file", DAMAGED));
        }
        Ok(Frames { file, codec, size, frame, places })
    }

    /// Bytes of pages.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The pages as a file in memory, unpacked by all processors.
    pub(crate) fn unpack(&self, path: &Path) -> Result<File> {
        let made = memfd_create("cryonaut pages", MemfdFlags::CLOEXEC).map_err(io::Error::from);
        let out = made.map(File::from).map_err(|source| Error::io("unpack in memory", path, source))?;
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let (mut packed, mut pages) = (Vec::new(), Vec::new());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some((at, len)) = self.places.get(number) else { return Ok(()) };
                let start = (number * self.frame) as u64;
                packed.resize(*len, 0);
                pages.resize(self.frame.min((self.size - start) as usize), 0);
                self.file.read_exact_at(&mut packed, *at).map_err(|source| Error::io("read", path, source))?;
                // One that could not be made smaller.
                let is_plain = packed.len() == pages.len();
                if !is_plain && self.codec.unpack(&packed, &mut pages).is_none() {
                    let expected = format!("a frame of {}", self.codec.name());
                    return Err(Error::corrupt(path, *at, expected, "other bytes", DAMAGED));
                }
                let bytes = if is_plain { &packed } else { &pages };
                out.write_all_at(bytes, start).map_err(|source| Error::io("unpack in memory", path, source))?;
            }
        };
        thread::scope(|scope| {
            let running: Vec<_> = (0..threads().min(self.places.len())).map(|_| scope.spawn(work)).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            // All of them, whatever one has met.
            running.into_iter().map(join).collect::<Vec<Result<()>>>().into_iter().collect::<Result<()>>()
        })?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of which some can be packed well and some not at all.
    fn pages(len: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252_u64;
        let mut noise = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..len).map(|at| if (at / (FRAME / 2)).is_multiple_of(3) { noise() } else { (at / 4096) as u8 }).collect()
    }

    fn packed(pages: &[u8], codec: Codec) -> (File, u64) {
        let mut raw = tempfile::tempfile().unwrap();
        raw.write_all(pages).unwrap();
        let mut out = tempfile::tempfile().unwrap();
        pack(&raw, pages.len() as u64, codec, &mut out).unwrap();
        let len = out.metadata().unwrap().len();
        (out, len)
    }

    #[test]
    fn what_was_packed_comes_out() {
        for codec in [Codec::Lz4, Codec::Zstd] {
            for len in [4096, FRAME, FRAME * 5 + 4096 * 3] {
                let pages = pages(len);
                let (file, packed_len) = packed(&pages, codec);
                let frames = Frames::open(file, packed_len, Path::new("f")).unwrap();
                assert_eq!(frames.size(), len as u64);
                let mut back = vec![0; len];
                let out = frames.unpack(Path::new("f")).unwrap();
                out.read_exact_at(&mut back, 0).unwrap();
                assert!(back == pages && out.metadata().unwrap().len() == len as u64, "{codec:?} {len}");
                assert!(len <= FRAME || packed_len < len as u64 * 3 / 4);
            }
        }
    }

    #[test]
    fn damage_is_told() {
        let (file, len) = packed(&pages(FRAME * 2), Codec::Zstd);
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let open = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            Frames::open(file, bytes.len() as u64, Path::new("f")).and_then(|frames| frames.unpack(Path::new("f")))
        };
        for cut in [0, 10, TRAILER, bytes.len() - 1] {
            assert!(open(&bytes[..cut]).is_err(), "{cut}");
        }
        for place in 1..=TRAILER + 8 {
            let mut other = bytes.clone();
            let at = other.len() - place;
            other[at] ^= 0x80;
            assert!(open(&other).is_err(), "byte {place} from the end");
        }
    }

    #[test]
    fn names_are_known_again() {
        assert!(is_frames_name(&frames_name(12)) && !is_frames_name("cryonaut-pages-x.frames"));
        assert!(!is_frames_name("cryonaut-pages-.frames"));
    }
}
