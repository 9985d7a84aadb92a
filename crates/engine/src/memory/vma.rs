//! What a mapping is: the lines of smaps as records.

use super::{PAGE, aio, extras::Extras};
use crate::files::socket::packet;
use crate::files::{Collect, io_uring, regular, sysv};
use crate::freeze::Process;
use crate::{Error, Object, Result};
use cryonaut_image::records::VmaEntry;
use cryonaut_kernel::proc::maps::{FlaggedVma, Perms, VmFlags, Vma};
use cryonaut_kernel::sys::huge;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

/// Bits of `vma_entry.status`.
pub mod status {
    /// To be mapped and filled again.
    pub const REGULAR: u32 = 1 << 0;
    /// The vsyscall page, which every process has.
    pub const VSYSCALL: u32 = 1 << 2;
    /// The kernel's code page.
    pub const VDSO: u32 = 1 << 3;
    /// The heap that brk moves.
    pub const HEAP: u32 = 1 << 5;
    /// A file, privately.
    pub const FILE_PRIVATE: u32 = 1 << 6;
    /// A file, shared.
    pub const FILE_SHARED: u32 = 1 << 7;
    /// Shared anonymous memory.
    pub const ANON_SHARED: u32 = 1 << 8;
    /// Private anonymous memory.
    pub const ANON_PRIVATE: u32 = 1 << 9;
    /// A segment of System V memory.
    pub const SYSVIPC: u32 = 1 << 10;
    /// The rings of a packet socket.
    pub const SOCKET: u32 = 1 << 11;
    /// The kernel's data pages behind the vdso.
    pub const VVAR: u32 = 1 << 12;
    /// A ring of the AIO calls.
    pub const AIORING: u32 = 1 << 13;
    /// A memfd.
    pub const MEMFD: u32 = 1 << 14;
    /// A guard region, which is no mapping of its own.
    pub const GUARD: u32 = 1 << 16;
}

/// A private mapping whose pages the kernel may drop (mmap(2), Linux 6.11).
const MAP_DROPPABLE: i32 = 8;

/// Advice that a mapping's flags show, and its number for madvise(2).
const ADVICE: [(VmFlags, i32); 8] = [
    (VmFlags::RAND_READ, libc::MADV_RANDOM),
    (VmFlags::SEQ_READ, libc::MADV_SEQUENTIAL),
    (VmFlags::DONTCOPY, libc::MADV_DONTFORK),
    (VmFlags::MERGEABLE, libc::MADV_MERGEABLE),
    (VmFlags::HUGEPAGE, libc::MADV_HUGEPAGE),
    (VmFlags::NOHUGEPAGE, libc::MADV_NOHUGEPAGE),
    (VmFlags::DONTDUMP, libc::MADV_DONTDUMP),
    (VmFlags::WIPEONFORK, libc::MADV_WIPEONFORK),
];

/// The records of all mappings of a frozen process but those that hands have
/// made (`scratches`). Which files they are of, [`find_files`] says.
pub fn mappings(
    extras: &mut Extras,
    process: &Process,
    flagged: &[FlaggedVma],
    scratches: &[Range<u64>],
) -> Result<Vec<VmaEntry>> {
    let mut out = Vec::with_capacity(flagged.len());
    for vma in flagged {
        if scratches.iter().any(|s| s.contains(&vma.vma.start)) {
            extras.note_newest(vma);
            continue;
        }
        extras.note(vma);
        let entry = record(process, vma)?;
        // Newer kernels map the clock pages beside the other data pages; the format knows one area.
        match out.last_mut() {
            Some(last) if both_vvar(last, &entry) && last.end == entry.start => last.end = entry.end,
            _ => out.push(entry),
        }
    }
    Ok(out)
}

/// What `maps` alone tells of them, which is read without a look at every page:
/// where they are, and which can have pages of the process's own. None is
/// droppable by it.
pub fn mappings_without_flags(process: &Process) -> Result<Vec<VmaEntry>> {
    let unflagged = |vma: &Vma| FlaggedVma { vma: vma.clone(), flags: VmFlags::empty(), pkey: 0, page_size: PAGE };
    process.maps.iter().map(|vma| record(process, &unflagged(vma))).collect()
}

/// Adds guard regions, as records of their own behind those of the mappings in
/// which they lie.
pub fn add_guards(records: &mut Vec<VmaEntry>, guards: Vec<Range<u64>>) {
    let mut mappings = records.iter();
    let mut flags_of = |at: u64| mappings.find(|vma| vma.end > at).map_or(0, |vma| vma.flags);
    let record = |guard: Range<u64>| {
        let flags = flags_of(guard.start);
        VmaEntry { start: guard.start, end: guard.end, status: status::GUARD, fd: -1, flags, ..VmaEntry::default() }
    };
    let guards: Vec<VmaEntry> = guards.into_iter().map(record).collect();
    records.extend(guards);
}

/// Writes down the files of mappings, and which is whose. Before this is done for a
/// process, only those who look at its files have to wait for one another.
pub fn find_files(
    cx: &mut Collect<'_>,
    process: &Process,
    flagged: &[FlaggedVma],
    records: &mut [VmaEntry],
) -> Result<()> {
    let mut flagged = flagged.iter();
    let of_files = status::FILE_PRIVATE | status::FILE_SHARED | status::SOCKET | status::SYSVIPC;
    for entry in records.iter_mut().filter(|entry| entry.status & of_files != 0) {
        // Both ascend, and every record is of one of them.
        let Some(of) = flagged.find(|flagged| flagged.vma.start == entry.start) else { break };
        if io_uring::is_mapping(&of.vma) {
            entry.shmid = u64::from(io_uring::mapped(cx, || object(process, &of.vma), &of.vma)?);
            continue;
        }
        if entry.status & status::SOCKET != 0 {
            entry.shmid = u64::from(packet::mapped(cx, || object(process, &of.vma), &of.vma)?);
            continue;
        }
        if entry.status & status::SYSVIPC != 0 {
            let ids = process.ids.unwrap_or_default();
            sysv::collect(cx, &ids, object(process, &of.vma), of, entry)?;
            continue;
        }
        // A shared mapping that may be written, be it only after mprotect(2), needs its file open for writing.
        let writes = entry.status & status::FILE_SHARED != 0 && of.flags.contains(VmFlags::MAYWRITE);
        let flags = if writes { libc::O_RDWR } else { libc::O_RDONLY } as u32;
        let file = regular::collect_mapped(cx, &process.task, process.pid, &of.vma, flags)?;
        if file.memfd {
            entry.status |= status::MEMFD;
        }
        entry.shmid = u64::from(file.id);
        entry.fdflags = Some(flags);
    }
    Ok(())
}

fn both_vvar(a: &VmaEntry, b: &VmaEntry) -> bool {
    a.status & b.status & status::VVAR != 0
}

fn object(process: &Process, vma: &Vma) -> Object {
    Object::Mapping(process.pid, vma.start, vma.path.to_string_lossy().into_owned())
}

fn record(process: &Process, flagged: &FlaggedVma) -> Result<VmaEntry> {
    let vma = &flagged.vma;
    refuse(process, flagged)?;
    let kind = match vma.perms.contains(Perms::SHARED) {
        true => libc::MAP_SHARED,
        false if flagged.flags.contains(VmFlags::DROPPABLE) && !is_kernels(vma) => MAP_DROPPABLE,
        false => libc::MAP_PRIVATE,
    };
    let mut entry = VmaEntry {
        start: vma.start,
        end: vma.end,
        pgoff: vma.offset,
        shmid: 0,
        prot: protection(vma.perms),
        flags: kind as u32,
        status: 0,
        fd: -1,
        madv: Some(advice(flagged.flags)).filter(|m| *m != 0),
        fdflags: None,
    };
    for (flag, map) in [
        (VmFlags::GROWSDOWN, libc::MAP_GROWSDOWN),
        (VmFlags::LOCKED, libc::MAP_LOCKED),
        (VmFlags::NORESERVE, libc::MAP_NORESERVE),
        (VmFlags::HUGETLB, libc::MAP_HUGETLB),
    ] {
        if flagged.flags.contains(flag) {
            entry.flags |= map as u32;
        }
    }
    if flagged.flags.contains(VmFlags::HUGETLB) {
        entry.flags |= huge::flag_of(flagged.page_size);
    }
    match vma.special() {
        Some(b"vdso") => entry.status = status::REGULAR | status::VDSO | status::ANON_PRIVATE,
        Some(name) if name.starts_with(b"vvar") => entry.status = status::REGULAR | status::VVAR | status::ANON_PRIVATE,
        Some(b"vsyscall") => entry.status = status::VSYSCALL | status::ANON_PRIVATE,
        _ if aio::is_mapping(vma) => {
            entry.status = status::REGULAR | status::AIORING;
            entry.flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
        }
        _ if sysv::is_mapping(vma) => {
            // CRIU attaches what is anonymous and shared alone.
            entry.status = status::REGULAR | status::ANON_SHARED | status::SYSVIPC;
            entry.flags |= libc::MAP_ANONYMOUS as u32;
        }
        _ if packet::is_mapping(vma) => entry.status = status::REGULAR | status::SOCKET,
        _ if !vma.has_file() && !io_uring::is_mapping(vma) => anonymous(&mut entry, vma),
        _ => entry.status = status::REGULAR | status_with_file(vma),
    }
    if entry.status & status::ANON_PRIVATE != 0 {
        entry.flags |= libc::MAP_ANONYMOUS as u32;
        entry.pgoff = 0;
    }
    Ok(entry)
}

/// Kinds of mapping that cannot be carried, each with its reason.
fn refuse(process: &Process, flagged: &FlaggedVma) -> Result<()> {
    let vma = &flagged.vma;
    let path = vma.path.as_bytes();
    let flags = flagged.flags;
    let no = |reason: &str, remedy: &'static str| Err(Error::unsupported(object(process, vma), reason, remedy));
    if flags.intersects(VmFlags::UFFD_MISSING | VmFlags::UFFD_WP | VmFlags::UFFD_MINOR) {
        return no("the program watches it with userfaultfd", "let the program unregister it first");
    }
    if flags.contains(VmFlags::SHADOW_STACK) {
        return no("shadow stacks cannot be carried yet", "run the program without GLIBC_TUNABLES=glibc.cpu.x86_shstk");
    }
    if io_uring::is_mapping(vma) || packet::is_mapping(vma) {
        return Ok(());
    }
    if path.starts_with(b"anon_inode:") {
        return no("mappings of this kind of file cannot be carried", "unmap it before the checkpoint");
    }
    let device = flags.intersects(VmFlags::PFNMAP | VmFlags::IO | VmFlags::MIXEDMAP);
    if device && vma.special().is_none() {
        return no("device memory cannot be carried", "unmap it before the checkpoint");
    }
    Ok(())
}

/// Whether the kernel made a mapping of its own for the process.
pub fn is_kernels(vma: &Vma) -> bool {
    vma.special().is_some_and(|name| name == b"vdso" || name == b"vsyscall" || name.starts_with(b"vvar"))
}

fn anonymous(entry: &mut VmaEntry, vma: &Vma) {
    entry.status = status::REGULAR | status::ANON_PRIVATE;
    if vma.special() == Some(b"heap") {
        entry.status |= status::HEAP;
    }
}

fn status_with_file(vma: &Vma) -> u32 {
    match vma.perms.contains(Perms::SHARED) {
        true => status::FILE_SHARED,
        false if vma.path.as_bytes().starts_with(b"/anon_hugepage") => status::ANON_PRIVATE,
        false => status::FILE_PRIVATE,
    }
}

/// Whether it is of shared anonymous memory. Segments of System V memory are said to be that as well.
pub fn is_shared_anonymous(vma: &VmaEntry) -> bool {
    vma.status & (status::ANON_SHARED | status::SYSVIPC) == status::ANON_SHARED
}

/// Whether the kernel may drop a mapping's pages: they are no part of the state.
pub fn is_droppable(vma: &VmaEntry) -> bool {
    vma.flags & libc::MAP_TYPE as u32 == MAP_DROPPABLE as u32
}

/// Bytes of the pages of a mapping made with these flags of mmap(2).
#[must_use]
pub fn page_size(flags: u32) -> u64 {
    if flags & libc::MAP_HUGETLB as u32 == 0 { PAGE } else { huge::of_flags(flags) }
}

fn protection(perms: Perms) -> u32 {
    let mut prot = 0;
    for (perm, bit) in
        [(Perms::READ, libc::PROT_READ), (Perms::WRITE, libc::PROT_WRITE), (Perms::EXEC, libc::PROT_EXEC)]
    {
        if perms.contains(perm) {
            prot |= bit as u32;
        }
    }
    prot
}

fn advice(flags: VmFlags) -> u64 {
    ADVICE.iter().filter(|(flag, _)| flags.contains(*flag)).fold(0, |mask, (_, advice)| mask | 1 << advice)
}
