//! Whether an address space may have got, or given to another, a mapping of shared memory that it had mapped already, or
//! made a hole in that: counted by a program of ours in the kernel, where it takes the lock of an address space (BPF, at a
//! raw tracepoint; Linux 5.15). Nobody waits for it, and it goes with the last of its descriptors.
//!
//! Counted are fork(2) and its like, mremap(2), remap_file_pages(2), and madvise(2) with MADV_REMOVE, each as it begins: who
//! wants to conclude from a count that has not changed has to know that nothing was under way when he first read it. Not
//! counted is what needs a descriptor: mmap(2), write(2), ftruncate(2), fallocate(2).
//!
//! That the kernel passes the tracepoint in each of these calls is tried out.

use super::bpf::{Map, MapSpec, adopt, bpf};
use super::bpf_insn::{Insn, add, call, load64, mov, mov_value, store_zero, store64};
use super::bpf_iter::{self, CALL_TASK_PT_REGS};
use super::bpf_iter::{Base, Field, load_as, read};
use super::btf::Btf;
use super::check;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap, munmap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const BPF_MAP_TYPE_HASH: u32 = 1;
const CALL_MAP_LOOKUP: i32 = 1;
const CALL_CURRENT_TASK_BTF: i32 = 158;
/// `src` of a load of 64 bits whose value is a map (BPF_PSEUDO_MAP_FD).
const MAP: u8 = 1;
/// Where an address space has been locked; its address is the first argument in all versions.
const TRACEPOINT: &std::ffi::CStr = c"mmap_lock_acquire_returned";
/// Address spaces that can be watched.
pub const MOST: usize = 4096;
const PAGE: usize = 4096;

/// Those that are counted if their third argument is MADV_REMOVE: madvise(2) of 64 and of 32 bits.
const ADVICE: [i32; 2] = [libc::SYS_madvise as i32, 219];
/// The numbers of the calls that are counted. Of programs of 32 bits as well: as 64-bit calls those of their numbers that
/// change mappings are the same, or harmless.
const CALLS: [i32; 13] = [
    libc::SYS_clone as i32,
    libc::SYS_fork as i32,
    libc::SYS_vfork as i32,
    libc::SYS_clone3 as i32,
    libc::SYS_mremap as i32,
    libc::SYS_remap_file_pages as i32,
    // Of its own memory it may ask for the same as madvise(2).
    libc::SYS_process_madvise as i32,
    // fork, clone, vfork, mremap, remap_file_pages, ipc (arch/x86/entry/syscalls/syscall_32.tbl).
    2,
    120,
    190,
    163,
    257,
    117,
];

/// The beginning of `union bpf_attr` for BPF_RAW_TRACEPOINT_OPEN (linux/bpf.h).
#[repr(C)]
struct OpenAttr {
    name: u64,
    prog_fd: u32,
    _pad: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_prog_info`, as far as it is wanted: the number of calls that were not counted since another was under way
/// on that processor. Linux 5.12.
#[repr(C)]
struct ProgramInfo {
    before: [u64; 26],
    missed: u64,
}

/// The program.
#[derive(Debug)]
pub struct MappingWatch {
    counts: Map,
    program: OwnedFd,
    _link: OwnedFd,
}

impl MappingWatch {
    /// Begins to count. ENOENT or ENOTSUP where the kernel does not describe its types, has no such tracepoint, or does not
    /// count what it should; EPERM without the right to look.
    pub fn begin() -> Result<MappingWatch, Errno> {
        let btf = Btf::running()?;
        let counts = Map::create(&MapSpec {
            map_type: BPF_MAP_TYPE_HASH,
            key_size: 8,
            value_size: 8,
            max_entries: MOST as u32,
            ..MapSpec::default()
        })?;
        let register = |name| btf.field("pt_regs", name).ok_or(Errno::NOTSUP);
        let space = btf.field("task_struct", "mm").ok_or(Errno::NOTSUP)?;
        let body = body(space, (register("orig_ax")?, register("dx")?), counts.as_fd().as_raw_fd());
        let program = load_as(BPF_PROG_TYPE_RAW_TRACEPOINT, (0, 0), &body)?;
        let mut attr = OpenAttr { name: TRACEPOINT.as_ptr() as u64, prog_fd: program.as_raw_fd() as u32, _pad: 0 };
        // SAFETY: OpenAttr is BPF_RAW_TRACEPOINT_OPEN's part of bpf_attr; the name is a string that stays.
        let link = adopt(unsafe { bpf(BPF_RAW_TRACEPOINT_OPEN, &mut attr) }?);
        let watch = MappingWatch { counts, program, _link: link };
        watch.try_out()?;
        Ok(watch)
    }

    /// Counts for an address space from now on, by its address in the kernel. E2BIG for too many.
    pub fn add(&self, space: u64) -> Result<(), Errno> {
        match self.counts.update(&space.to_ne_bytes(), &0u64.to_ne_bytes(), 1) {
            Err(Errno::EXIST) => Ok(()),
            added => added,
        }
    }

    /// How often it was done since then, or may have been. ENOENT for one that is not watched.
    pub fn count(&self, space: u64) -> Result<u64, Errno> {
        let mut value = [0; 8];
        self.counts.lookup(&space.to_ne_bytes(), &mut value)?;
        // What was not counted may have been of any.
        Ok(missed(&self.program)? + u64::from_ne_bytes(value))
    }

    /// Does what is to be counted ourselves.
    fn try_out(&self) -> Result<(), Errno> {
        let own = space_of(rustix::process::getpid().as_raw_nonzero().get())?;
        self.add(own)?;
        let mut before = self.count(own)?;
        let mut counts = |done: Result<(), Errno>| {
            done?;
            let now = self.count(own)?;
            if now > std::mem::replace(&mut before, now) { Ok(()) } else { Err(Errno::NOTSUP) }
        };
        counts(fork())?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: new memory at an address of the kernel's choice, to which nothing refers.
        let at = unsafe { mmap_anonymous(std::ptr::null_mut(), 2 * PAGE, prot, flags) }?;
        // SAFETY: the memory made above.
        let hole = counts(unsafe { madvise(at, 2 * PAGE, Advice::LinuxRemove) });
        // SAFETY: the memory made above, half of which goes.
        let shrunk = counts(unsafe { mremap(at, 2 * PAGE, PAGE, MremapFlags::empty()) }.map(drop));
        // SAFETY: what is left of it.
        unsafe { munmap(at, PAGE) }?;
        hole.and(shrunk)
    }
}

/// The address of the address space of a thread, in the kernel. ENOENT if it has ended.
pub fn space_of(tid: i32) -> Result<u64, Errno> {
    let btf = Btf::running()?;
    let field = Field { offset: btf.field("task_struct", "mm").ok_or(Errno::NOTSUP)?, len: 8 };
    match bpf_iter::task_fields(btf, tid, Base::Task, &[field])?.last() {
        None | Some(0) => Err(Errno::NOENT),
        Some(at) => Ok(*at),
    }
}

/// Has a process that ends at once.
fn fork() -> Result<(), Errno> {
    // SAFETY: the child does nothing but end, by a system call.
    let child = check(unsafe { libc::syscall(libc::SYS_fork) })?;
    if child == 0 {
        // SAFETY: it ends.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: our own child, and an int of ours.
    check(unsafe { libc::waitpid(child as i32, &raw mut status, 0) }).map(drop)
}

fn missed(program: &OwnedFd) -> Result<u64, Errno> {
    let mut info = ProgramInfo { before: [0; 26], missed: 0 };
    let info_len = size_of::<ProgramInfo>() as u32;
    let mut attr = InfoAttr { fd: program.as_raw_fd() as u32, info_len, info: &raw mut info as u64 };
    // SAFETY: InfoAttr is BPF_OBJ_GET_INFO_BY_FD's part of bpf_attr. The kernel writes at most info_len bytes to `info`,
    // and nothing to addresses that stand in it: their numbers of elements are zero.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info.missed)
}

/// Counts for the address space that is the first argument, if it is watched and its own task is in one of the calls: others
/// only look. Where in a task its address space stands, the first says; where in its registers the number of its call and
/// the third argument of that, the others.
fn body(space: u32, (number, third): (u32, u32), counts: i32) -> Vec<Insn> {
    let jump = |code, dst, off: usize, imm| Insn { code, dst, src: 0, off: off as i16, imm };
    let mut ask = vec![mov(1, 6), call(CALL_TASK_PT_REGS), mov(8, 0)];
    for (place, register) in [(-16, number), (-24, third)] {
        ask.push(store_zero(10, place));
        ask.extend(read(place, 8, register));
    }
    ask.extend([load64(1, 10, -16), load64(2, 10, -24)]);
    // Behind them stand the way out, and the question for the third argument.
    const TO_COUNT: usize = 2;
    for (at, number) in CALLS.iter().enumerate() {
        ask.push(jump(0x15, 1, CALLS.len() - 1 - at + ADVICE.len() + TO_COUNT, *number));
    }
    for (at, number) in ADVICE.iter().enumerate() {
        ask.push(jump(0x15, 1, ADVICE.len() - at, *number));
    }
    // lock *(u64 *)(r7) += r1
    let count = [mov_value(1, 1), Insn { code: 0xdb, dst: 7, src: 1, off: 0, imm: 0 }];
    ask.push(jump(0x05, 0, 1 + count.len(), 0));
    ask.push(jump(0x55, 2, count.len(), libc::MADV_REMOVE));
    ask.extend(count);
    let mut is_own = vec![mov(7, 0), call(CALL_CURRENT_TASK_BTF), mov(6, 0), mov(8, 0), store_zero(10, -16)];
    is_own.extend(read(-16, 8, space));
    is_own.extend([load64(1, 10, -16), load64(2, 10, -8)]);
    // if r1 != r2
    is_own.push(Insn { code: 0x5d, dst: 1, src: 2, off: ask.len() as i16, imm: 0 });
    let mut all = vec![
        load64(8, 1, 0),
        store64(10, -8, 8),
        Insn { code: 0x18, dst: 1, src: MAP, off: 0, imm: counts },
        Insn { code: 0, dst: 0, src: 0, off: 0, imm: 0 },
        mov(2, 10),
        add(2, -8),
        call(CALL_MAP_LOOKUP),
        jump(0x15, 0, is_own.len() + ask.len(), 0),
    ];
    all.extend(is_own);
    all.extend(ask);
    all.extend([mov_value(0, 0), jump(0x95, 0, 0, 0)]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Task;
    use crate::proc::values::Syscall;
    use rustix::process::Pid;

    #[test]
    fn forks_and_moves_are_counted_and_nothing_else() {
        let watch = match MappingWatch::begin() {
            Ok(watch) => watch,
            Err(errno) => return assert!(matches!(errno, Errno::NOENT | Errno::NOTSUP), "{errno}"),
        };
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let thread = Task::open(pid).unwrap().thread(pid);
        // Until then it loads its program, and a fault of openat(2) would be counted: it has the number of another call.
        while !matches!(thread.syscall(), Ok(Syscall::In { number: libc::SYS_clock_nanosleep, .. })) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let space = space_of(child.id() as i32).unwrap();
        watch.add(space).unwrap();
        watch.add(space).unwrap();
        fork().unwrap();
        // Who looks from outside takes the same lock.
        for name in ["maps", "smaps"] {
            std::fs::read(format!("/proc/{}/{name}", child.id())).unwrap();
        }
        let mut counted = [1; 8];
        let looked = watch.counts.lookup(&space.to_ne_bytes(), &mut counted);
        child.kill().unwrap();
        child.wait().unwrap();
        // That a busy machine missed a call counts for all, and would be told beside it.
        assert_eq!((looked, u64::from_ne_bytes(counted)), (Ok(()), 0));
        assert_eq!(watch.count(1), Err(Errno::NOENT));
    }
}
