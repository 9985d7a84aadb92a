//! `/proc/PID/maps` and `/proc/PID/smaps`: the mappings of an address space.
//!
//! maps is cheap. Only smaps has the `VmFlags` line, and for the counters around it the kernel walks every
//! page table. There is no third source: `PROCMAP_QUERY` (6.11) tells protection and sharing only. It is
//! offered as [`query`] for the case where one address is asked for.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use bitflags::bitflags;
use rustix::io::Errno;

use super::text::{self, Malformed, OrMalformed};

bitflags! {
    /// The protection and sharing of a mapping.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Perms: u8 {
        const READ = 1;
        const WRITE = 2;
        const EXEC = 4;
        const SHARED = 8;
    }
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    pub perms: Perms,
    /// Offset into the file in bytes; 0 for private anonymous memory.
    pub offset: u64,
    /// Major and minor number of the device of the file's superblock; (0, 0) without a file. On btrfs and
    /// overlayfs not what `stat` of the file tells.
    pub dev: (u32, u32),
    /// Inode number; 0 without a file.
    pub inode: u64,
    /// Path of the file, or the kernel's name for the area (`[heap]`, `[anon:NAME]`); empty for anonymous
    /// memory. The kernel writes a newline in a path as `\012` and leaves a backslash alone: a path that
    /// holds these four characters cannot be told from one with a newline.
    pub path: OsString,
    /// The file has no name any more. A file whose name truly ends in ` (deleted)` looks the same: where it
    /// matters, compare with a stat through `map_files`.
    pub deleted: bool,
}

impl Vma {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Never true for a mapping that the kernel reported.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether a file (also a deleted one, a memfd, shared anonymous memory) is behind it.
    pub fn has_file(&self) -> bool {
        self.inode != 0 || self.dev != (0, 0)
    }

    /// The kernel's name of a special area, without the brackets: `heap`, `stack`, `vdso`, `vvar`,
    /// `vvar_vclock`, `vsyscall`, `uprobes`, `anon:NAME`, `anon_shmem:NAME`.
    pub fn special(&self) -> Option<&[u8]> {
        self.path.as_bytes().strip_prefix(b"[")?.strip_suffix(b"]")
    }

    /// The name of its entry in `/proc/PID/map_files`.
    pub fn map_files_name(&self) -> String {
        format!("map_files/{:x}-{:x}", self.start, self.end)
    }
}

bitflags! {
    /// The flags of a mapping, as the two-letter codes of smaps (fs/proc/task_mmu.c, `show_smap_vma_flags`).
    /// The bits are our own numbering.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct VmFlags: u64 {
        /// `rd`, `wr`, `ex`, `sh`: readable, writable, executable, shared.
        const READ = 1 << 0;
        const WRITE = 1 << 1;
        const EXEC = 1 << 2;
        const SHARED = 1 << 3;
        /// `mr`, `mw`, `me`, `ms`: may be made so.
        const MAYREAD = 1 << 4;
        const MAYWRITE = 1 << 5;
        const MAYEXEC = 1 << 6;
        const MAYSHARE = 1 << 7;
        /// `gd`: grows downwards.
        const GROWSDOWN = 1 << 8;
        /// `pf`: page frame numbers without struct page.
        const PFNMAP = 1 << 9;
        /// `lo`: mlocked.
        const LOCKED = 1 << 10;
        /// `lf`: locked on fault.
        const LOCKONFAULT = 1 << 11;
        /// `io`: device memory.
        const IO = 1 << 12;
        /// `sr`: MADV_SEQUENTIAL.
        const SEQ_READ = 1 << 13;
        /// `rr`: MADV_RANDOM.
        const RAND_READ = 1 << 14;
        /// `dc`: MADV_DONTFORK.
        const DONTCOPY = 1 << 15;
        /// `de`: may not be grown by mremap.
        const DONTEXPAND = 1 << 16;
        /// `ac`: counted against the commit limit.
        const ACCOUNT = 1 << 17;
        /// `nr`: MAP_NORESERVE.
        const NORESERVE = 1 << 18;
        /// `ht`: hugetlb.
        const HUGETLB = 1 << 19;
        /// `sf`: synchronous page faults (DAX).
        const SYNC = 1 << 20;
        /// `ar`: architecture's own.
        const ARCH_1 = 1 << 21;
        /// `wf`: MADV_WIPEONFORK.
        const WIPEONFORK = 1 << 22;
        /// `dd`: MADV_DONTDUMP.
        const DONTDUMP = 1 << 23;
        /// `sd`: soft-dirty.
        const SOFTDIRTY = 1 << 24;
        /// `mm`: mixed map.
        const MIXEDMAP = 1 << 25;
        /// `hg`: MADV_HUGEPAGE.
        const HUGEPAGE = 1 << 26;
        /// `nh`: MADV_NOHUGEPAGE.
        const NOHUGEPAGE = 1 << 27;
        /// `mg`: MADV_MERGEABLE.
        const MERGEABLE = 1 << 28;
        /// `um`: userfaultfd, missing pages.
        const UFFD_MISSING = 1 << 29;
        /// `uw`: userfaultfd, write-protected pages.
        const UFFD_WP = 1 << 30;
        /// `ui`: userfaultfd, minor faults.
        const UFFD_MINOR = 1 << 31;
        /// `ss`: shadow stack.
        const SHADOW_STACK = 1 << 32;
        /// `sl`: sealed by mseal.
        const SEALED = 1 << 33;
        /// `dp`: MAP_DROPPABLE.
        const DROPPABLE = 1 << 34;
        /// `mt`: arm64 memory tagging.
        const MTE = 1 << 35;
        /// `bt`: arm64 branch target identification.
        const BTI = 1 << 36;
        /// `gu`: has guard regions, or may have (6.19).
        const MAYBE_GUARD = 1 << 37;
        /// A code that is not known here; also set for what the kernel itself shows as `??`.
        const UNKNOWN = 1 << 63;
    }
}

impl VmFlags {
    /// The flag of a two-letter code; `None` for the codes that say nothing about how to build the area
    /// again, such as those of the protection keys.
    fn from_code(code: &[u8]) -> Self {
        match code {
            b"rd" => Self::READ,
            b"wr" => Self::WRITE,
            b"ex" => Self::EXEC,
            b"sh" => Self::SHARED,
            b"mr" => Self::MAYREAD,
            b"mw" => Self::MAYWRITE,
            b"me" => Self::MAYEXEC,
            b"ms" => Self::MAYSHARE,
            b"gd" => Self::GROWSDOWN,
            b"pf" => Self::PFNMAP,
            b"lo" => Self::LOCKED,
            b"lf" => Self::LOCKONFAULT,
            b"io" => Self::IO,
            b"sr" => Self::SEQ_READ,
            b"rr" => Self::RAND_READ,
            b"dc" => Self::DONTCOPY,
            b"de" => Self::DONTEXPAND,
            b"ac" => Self::ACCOUNT,
            b"nr" => Self::NORESERVE,
            b"ht" => Self::HUGETLB,
            b"sf" => Self::SYNC,
            b"ar" => Self::ARCH_1,
            b"wf" => Self::WIPEONFORK,
            b"dd" => Self::DONTDUMP,
            b"sd" => Self::SOFTDIRTY,
            b"mm" => Self::MIXEDMAP,
            b"hg" => Self::HUGEPAGE,
            b"nh" => Self::NOHUGEPAGE,
            b"mg" => Self::MERGEABLE,
            b"um" => Self::UFFD_MISSING,
            b"uw" => Self::UFFD_WP,
            b"ui" => Self::UFFD_MINOR,
            b"ss" => Self::SHADOW_STACK,
            b"sl" => Self::SEALED,
            b"dp" => Self::DROPPABLE,
            b"mt" => Self::MTE,
            b"bt" => Self::BTI,
            b"gu" => Self::MAYBE_GUARD,
            _ => Self::UNKNOWN,
        }
    }
}

/// A mapping with what smaps knows of it beyond maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlaggedVma {
    pub vma: Vma,
    pub flags: VmFlags,
    /// Memory protection key (pkeys(7)); 0 where there are none.
    pub pkey: u32,
    /// Bytes of the pages the mapping is made of: more than 4096 for hugetlb.
    pub page_size: u64,
}

const DELETED: &[u8] = b" (deleted)";

/// Parses `maps`.
pub fn parse(text: &[u8]) -> Result<Vec<Vma>, Malformed> {
    // A line is some 80 bytes long.
    let mut vmas = Vec::with_capacity(text.len() / 72 + 1);
    for line in text::lines(text) {
        vmas.push(parse_line(line).or_malformed("mapping", line)?);
    }
    Ok(vmas)
}

fn parse_line(line: &[u8]) -> Option<Vma> {
    let (range, rest) = text::word(line)?;
    let (start, end) = text::cut(range, b'-')?;
    let (perms, rest) = text::word(rest)?;
    let (offset, rest) = text::word(rest)?;
    let (dev, rest) = text::word(rest)?;
    let (major, minor) = text::cut(dev, b':')?;
    let (inode, rest) = text::word(rest)?;
    let shown = text::trim_start(rest);
    let inode = text::dec(inode)?;
    let (path, deleted) = match shown.strip_suffix(DELETED) {
        Some(path) if inode != 0 || dev != b"00:00" => (path, true),
        _ => (shown, false),
    };
    let path = if path.contains(&b'\\') { unescape_newlines(path) } else { path.to_vec() };
    let (start, end) = (text::hex(start)?, text::hex(end)?);
    (start < end).then_some(())?;
    Some(Vma {
        start,
        end,
        perms: parse_perms(perms)?,
        offset: text::hex(offset)?,
        dev: (text::hex(major)?, text::hex(minor)?),
        inode,
        path: OsString::from_vec(path),
        deleted,
    })
}

fn parse_perms(text: &[u8]) -> Option<Perms> {
    let &[r, w, x, s] = text else { return None };
    let mut perms = Perms::empty();
    perms.set(Perms::READ, r == b'r');
    perms.set(Perms::WRITE, w == b'w');
    perms.set(Perms::EXEC, x == b'x');
    perms.set(Perms::SHARED, s == b's');
    Some(perms)
}

/// maps escapes newlines and nothing else (`seq_path(m, path, "\n")`).
fn unescape_newlines(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        match rest.strip_prefix(br"\012") {
            Some(tail) => {
                plain.push(b'\n');
                rest = tail;
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

/// Parses `smaps`: each mapping's line is followed by `Key: value` lines, of which three are kept.
pub fn parse_smaps(text: &[u8]) -> Result<Vec<FlaggedVma>, Malformed> {
    let mut vmas: Vec<FlaggedVma> = Vec::with_capacity(text.len() / 700 + 1);
    for line in text::lines(text) {
        // Keys begin with a capital, the addresses of a mapping's line with a hexadecimal digit in lower case.
        if !line.first().is_some_and(u8::is_ascii_uppercase) {
            let vma = parse_line(line).or_malformed("mapping", line)?;
            vmas.push(FlaggedVma { vma, flags: VmFlags::empty(), pkey: 0, page_size: 4096 });
            continue;
        }
        let Some(last) = vmas.last_mut() else {
            return Err(Malformed::new("mapping before its counters", line));
        };
        if let Some(codes) = line.strip_prefix(b"VmFlags:") {
            last.flags = text::words(codes).map(VmFlags::from_code).collect();
        } else if let Some(size) = line.strip_prefix(b"KernelPageSize:") {
            let kib: u64 = text::words(size).next().and_then(text::dec).or_malformed("page size", line)?;
            last.page_size = kib * 1024;
        } else if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
            last.pkey = text::words(key).next().and_then(text::dec).or_malformed("protection key", line)?;
        }
    }
    Ok(vmas)
}

/// `struct procmap_query` of linux/fs.h (6.11).
#[repr(C)]
#[derive(Debug, Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const PROCMAP_QUERY: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<ProcmapQuery>(b'f', 17);
const PROCMAP_QUERY_COVERING_OR_NEXT_VMA: u64 = 0x10;
const _: () = assert!(size_of::<ProcmapQuery>() == 104 && PROCMAP_QUERY == 0xc068_6611);

/// Asks an open `/proc/PID/maps` for the mapping that covers `address`, or else the next one above it;
/// `None` when there is neither. Linux 6.11; ENOTTY before.
///
/// One call per mapping: for a whole address space [`parse`] is cheaper.
pub fn query(maps: impl AsFd, address: u64) -> Result<Option<Vma>, Errno> {
    let mut name = [0u8; 4096];
    let mut query = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_flags: PROCMAP_QUERY_COVERING_OR_NEXT_VMA,
        query_addr: address,
        vma_name_size: name.len() as u32,
        vma_name_addr: name.as_mut_ptr() as u64,
        ..ProcmapQuery::default()
    };
    // SAFETY: PROCMAP_QUERY reads and writes one ProcmapQuery, whose size its `size` field tells, and writes at
    // most `vma_name_size` bytes to `vma_name_addr`; both outlive the call.
    let answer = unsafe {
        let call = rustix::ioctl::Updater::<PROCMAP_QUERY, ProcmapQuery>::new(&mut query);
        rustix::ioctl::ioctl(maps, call)
    };
    match answer {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    // The size counts the terminating zero; 0 means no name.
    let shown = &name[..(query.vma_name_size as usize).saturating_sub(1)];
    let (path, deleted) = match shown.strip_suffix(DELETED) {
        Some(path) if query.inode != 0 => (path, true),
        _ => (shown, false),
    };
    Ok(Some(Vma {
        start: query.vma_start,
        end: query.vma_end,
        perms: Perms::from_bits_truncate(query.vma_flags as u8),
        offset: query.vma_offset,
        dev: (query.dev_major, query.dev_minor),
        inode: query.inode,
        path: OsString::from_vec(path.to_vec()),
        deleted,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Task;
    use rustix::fs::OFlags;

    const SAMPLE: &[u8] = b"\
5623bb998000-5623bb99a000 r--p 00001000 fe:00 247030                     /usr/bin/cat
7f0000000000-7f0000001000 rw-s 00000000 00:01 1024                       /dev/zero (deleted)
7f0000001000-7f0000002000 rw-s 00000000 00:01 0                          /SYSV0055a191 (deleted)
7f0000002000-7f0000003000 rwxp 00000000 00:00 0                          [anon:a name]
7f0000004000-7f0000005000 ---p 00000000 00:00 0 
7f0000006000-7f0000007000 r-xp 00000000 fe:00 5                          /a\\012b c
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn reads_every_kind_of_line() {
        let vmas = parse(SAMPLE).unwrap();
        assert_eq!(vmas.len(), 7);
        assert_eq!((vmas[0].start, vmas[0].end, vmas[0].offset), (0x5623bb998000, 0x5623bb99a000, 0x1000));
        assert_eq!((vmas[0].dev, vmas[0].inode), ((0xfe, 0), 247030));
        assert_eq!(vmas[0].perms, Perms::READ);
        assert_eq!((vmas[1].path.as_bytes(), vmas[1].deleted), (&b"/dev/zero"[..], true));
        assert_eq!(vmas[1].perms, Perms::READ | Perms::WRITE | Perms::SHARED);
        assert_eq!(vmas[3].special(), Some(&b"anon:a name"[..]));
        // The first segment of System V memory of an ipc namespace.
        assert_eq!((vmas[2].path.as_bytes(), vmas[2].deleted), (&b"/SYSV0055a191"[..], true));
        assert!(vmas[4].path.is_empty() && vmas[4].perms.is_empty() && !vmas[4].has_file());
        assert_eq!(vmas[5].path.as_bytes(), b"/a\nb c");
        assert_eq!(vmas[6].end, 0xffff_ffff_ff60_1000);
        assert_eq!(vmas[0].map_files_name(), "map_files/5623bb998000-5623bb99a000");
    }

    #[test]
    fn refuses_what_is_no_mapping() {
        for line in [&b"7f00-7e00 rw-p 0 00:00 0"[..], b"x", b"7f00-8f00 rw-p 0 00 0", b"7f00-8f00 rw 0 0:0 0"] {
            assert!(parse(line).is_err(), "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn reads_flags_from_smaps() {
        let text = b"\
7f0000002000-7f0000003000 rw-p 00000000 00:00 0 
Size:                  4 kB
KernelPageSize:     2048 kB
Rss:                   0 kB
ProtectionKey:         3
VmFlags: rd wr mr mw me gd ac zz 
";
        let vmas = parse_smaps(text).unwrap();
        let flags = VmFlags::READ | VmFlags::WRITE | VmFlags::MAYREAD | VmFlags::MAYWRITE | VmFlags::MAYEXEC;
        assert_eq!(vmas[0].flags, flags | VmFlags::GROWSDOWN | VmFlags::ACCOUNT | VmFlags::UNKNOWN);
        assert_eq!((vmas[0].pkey, vmas[0].page_size), (3, 2 << 20));
        assert!(parse_smaps(b"VmFlags: rd\n").is_err());
    }

    #[test]
    fn live_maps_smaps_and_query_agree() {
        let task = Task::current().unwrap();
        let local = 0u8;
        let address = &raw const local as u64;
        let of = |vmas: &[Vma]| vmas.iter().find(|vma| vma.start <= address && address < vma.end).cloned();
        let vma = of(&task.maps().unwrap()).unwrap();
        assert!(vma.perms.contains(Perms::READ | Perms::WRITE));
        let smaps = task.smaps().unwrap();
        let flagged = smaps.iter().find(|flagged| flagged.vma.start == vma.start).unwrap();
        assert!(flagged.flags.contains(VmFlags::READ | VmFlags::WRITE | VmFlags::MAYEXEC));
        for flagged in &smaps {
            assert!(!flagged.flags.contains(VmFlags::UNKNOWN), "{flagged:?}");
        }
        let maps = task.open_file("maps", OFlags::RDONLY).unwrap();
        match query(&maps, address) {
            Ok(found) => {
                assert_eq!(found, Some(vma));
                assert_eq!(query(&maps, u64::MAX - 4095), Ok(None));
            }
            Err(errno) => assert_eq!(errno, Errno::NOTTY),
        }
    }
}
