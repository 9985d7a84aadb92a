//! The kernel's description of its own types (BTF, Documentation/bpf/btf.rst): where a field stands in a structure, and
//! the number of a function's type.

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::collections::HashMap;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::{Mutex, OnceLock, PoisonError};

const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const KIND_POINTER: u32 = 2;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FUNC: u32 = 12;
/// Bytes of a record, at least.
const LEAST: usize = 12;
/// Structures inside of structures that are looked into: more than any has.
const DEPTH: u32 = 16;

/// The types of a kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Bytes,
    strings: usize,
    /// Where each type's record begins. Numbers begin with 1.
    types: Vec<u32>,
    /// Types that were looked for: there are a hundred thousand.
    found: Mutex<HashMap<(u32, String), Option<u32>>>,
}

/// The description, as the kernel gives it.
#[derive(Debug)]
enum Bytes {
    /// Linux 6.16.
    Mapped { start: *const u8, len: usize },
    /// A page at a time: some thousand system calls.
    Read(Vec<u8>),
}

// SAFETY: the mapping is private, read-only and never changes, and only `Drop` removes it.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    fn of_the_kernel() -> Result<Self, Errno> {
        let failed = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
        let file = std::fs::File::open(PATH).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len() as usize;
        // SAFETY: a new mapping at an address that the kernel chooses; the description of a running kernel stays as it is.
        match unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, file.as_fd(), 0) } {
            Ok(start) => Ok(Bytes::Mapped { start: start.cast(), len }),
            Err(_) => std::fs::read(PATH).map(Bytes::Read).map_err(failed),
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            // SAFETY: `len` bytes are mapped there until `Drop`, and the kernel has no others to show.
            Bytes::Mapped { start, len } => unsafe { std::slice::from_raw_parts(*start, *len) },
            Bytes::Read(bytes) => bytes,
        }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Bytes::Mapped { start, len } = *self {
            // SAFETY: our own mapping, to which nothing leads any more.
            let _ = unsafe { munmap(start.cast_mut().cast(), len) };
        }
    }
}

/// A type's record: offset of its name, kind and number of its parts.
struct Type {
    name: usize,
    kind: u32,
    parts: usize,
    /// Whether offsets of members hold sizes of bit fields too.
    sized: bool,
    /// Behind the record.
    body: usize,
}

/// A member of a structure.
#[derive(Clone, Copy)]
struct Member {
    /// Where it begins, in bits.
    bits: u32,
    /// Its type.
    kind: u32,
    /// Of a bit field, how many bits it has; else 0.
    size: u32,
}

impl Member {
    /// Where it begins, in bytes, if it is no bit field.
    fn whole(self) -> Option<u32> {
        (self.size == 0 && self.bits.is_multiple_of(8)).then_some(self.bits / 8)
    }
}

impl Btf {
    /// Of the running kernel, read once: its types do not change while we live. Fails as [`Btf::vmlinux`] does.
    pub fn running() -> Result<&'static Self, Errno> {
        static TYPES: OnceLock<Result<Btf, Errno>> = OnceLock::new();
        TYPES.get_or_init(Btf::vmlinux).as_ref().map_err(|e| *e)
    }

    /// Of the running kernel. ENOENT where it was built without, EINVAL for one that is not understood.
    pub fn vmlinux() -> Result<Self, Errno> {
        Self::parse(Bytes::of_the_kernel()?).ok_or(Errno::INVAL)
    }

    fn parse(bytes: Bytes) -> Option<Self> {
        // magic, version, flags; then the length of this header, and where types and names are behind it.
        if u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let mut btf = Btf { bytes, strings: 0, types: Vec::new(), found: Mutex::default() };
        let word = |at| btf.word(at).map(|w| w as usize);
        let header = word(4)?;
        let (begin, len) = (header + word(8)?, word(12)?);
        let strings = header + word(16)?;
        let mut at = begin;
        // Room for more than there are: what is not used costs nothing, to grow it does.
        let mut types = Vec::with_capacity(len / LEAST);
        while at < begin + len {
            types.push(u32::try_from(at).ok()?);
            let this = btf.record(at)?;
            at = this.body + trailer(this.kind, this.parts)?;
        }
        (btf.strings, btf.types) = (strings, types);
        Some(btf)
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes.get(at..at + 4)?.try_into().ok()?))
    }

    fn record(&self, at: usize) -> Option<Type> {
        let info = self.word(at + 4)?;
        Some(Type {
            name: self.word(at)? as usize,
            kind: info >> 24 & 0x1f,
            parts: (info & 0xffff) as usize,
            sized: info >> 31 != 0,
            body: at + 12,
        })
    }

    fn is_named(&self, name: usize, wanted: &str) -> bool {
        let at = self.strings + name;
        let end = at + wanted.len();
        self.bytes.get(at..end) == Some(wanted.as_bytes()) && self.bytes.get(end) == Some(&0)
    }

    fn find(&self, kind: u32, name: &str) -> Option<u32> {
        // Who panics while holding it has not left it half changed.
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        *found.entry((kind, name.to_owned())).or_insert_with(|| self.search(kind, name))
    }

    fn search(&self, kind: u32, name: &str) -> Option<u32> {
        let is = |at: usize| self.record(at).is_some_and(|t| t.kind == kind && self.is_named(t.name, name));
        self.types.iter().position(|&at| is(at as usize)).map(|index| index as u32 + 1)
    }

    /// Where the record of a type begins.
    fn place(&self, id: u32) -> Option<usize> {
        Some(*self.types.get((id as usize).checked_sub(1)?)? as usize)
    }

    /// The number of a function's type.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u32> {
        self.find(KIND_FUNC, name)
    }

    /// Bytes of a structure.
    #[must_use]
    pub fn size(&self, structure: &str) -> Option<u32> {
        self.word(self.place(self.find(KIND_STRUCT, structure)?)? + 8)
    }

    /// Where a field of a structure begins, in bytes; those of structures without a name count as the outer one's.
    /// `None` also for a bit field.
    #[must_use]
    pub fn field(&self, structure: &str, name: &str) -> Option<u32> {
        let member = self.member(self.find(KIND_STRUCT, structure)?, name, DEPTH)?;
        member.whole()
    }

    /// Where a bit field of a structure begins, in bits, and how many it has.
    #[must_use]
    pub fn bit_field(&self, structure: &str, name: &str) -> Option<(u32, u32)> {
        let member = self.member(self.find(KIND_STRUCT, structure)?, name, DEPTH)?;
        (member.size > 0).then_some((member.bits, member.size))
    }

    /// Whether a field of a structure is the address of something.
    #[must_use]
    pub fn is_pointer(&self, structure: &str, name: &str) -> bool {
        let member = self.find(KIND_STRUCT, structure).and_then(|id| self.member(id, name, DEPTH));
        let record = member.and_then(|member| self.record(self.place(member.kind)?));
        record.is_some_and(|record| record.kind == KIND_POINTER)
    }

    /// Where a field begins in a field, named or not by its type, of a structure.
    #[must_use]
    pub fn inner_field(&self, structure: &str, outer: &str, name: &str) -> Option<u32> {
        let outer = self.member(self.find(KIND_STRUCT, structure)?, outer, DEPTH)?;
        let inner = self.member(outer.kind, name, DEPTH)?;
        Member { bits: outer.bits + inner.bits, ..inner }.whole()
    }

    fn member(&self, id: u32, name: &str, depth: u32) -> Option<Member> {
        let this = self.record(self.place(id)?)?;
        if depth == 0 || !matches!(this.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        (0..this.parts).find_map(|part| {
            let at = this.body + 12 * part;
            let (its_name, its_type, place) = (self.word(at)? as usize, self.word(at + 4)?, self.word(at + 8)?);
            let (bits, size) = if this.sized { (place & 0xff_ffff, place >> 24) } else { (place, 0) };
            if its_name == 0 {
                let inner = self.member(its_type, name, depth - 1)?;
                return Some(Member { bits: bits + inner.bits, ..inner });
            }
            self.is_named(its_name, name).then_some(Member { bits, kind: its_type, size })
        })
    }
}

/// Bytes behind the record of a type, by its kind; `None` for a kind to come.
fn trailer(kind: u32, parts: usize) -> Option<usize> {
    Some(match kind {
        // Pointers, declarations, other names, qualifiers, functions, floats, tags of types.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, sections, 64-bit enumerations.
        4 | 5 | 15 | 19 => 12 * parts,
        // Enumerations, signatures.
        6 | 13 => 8 * parts,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_structures_without_a_name_as_well() {
        let Ok(btf) = Btf::vmlinux() else { return };
        assert!(btf.function("bpf_iter_task_file").is_some());
        assert_eq!(btf.field("list_head", "prev"), Some(8));
        assert_eq!(btf.field("list_head", "other"), None);
        assert!(btf.field("file", "private_data").is_some());
        assert!(btf.is_pointer("file", "private_data") && !btf.is_pointer("file", "f_flags"));
        assert!(btf.field("io_ring_ctx", "flags").is_some());
        assert_eq!(btf.bit_field("tcp_options_received", "snd_wscale").map(|(_, size)| size), Some(4));
        assert_eq!(btf.field("tcp_options_received", "snd_wscale"), None);
        let block = btf.field("restart_block", "nanosleep").unwrap();
        assert_eq!(btf.inner_field("restart_block", "nanosleep", "expires"), Some(block + 16));
        assert_eq!(btf.inner_field("restart_block", "nanosleep", "other"), None);
    }

    #[test]
    fn what_is_no_description_is_refused() {
        assert!(Btf::parse(Bytes::Read(vec![0; 64])).is_none());
        assert!(Btf::parse(Bytes::Read(MAGIC.to_le_bytes().to_vec())).is_none());
    }
}
