//! The flags of the mappings of a process as the kernel has them, read by a program of its own (an iterator over
//! `task_vma`, Linux 5.13; over one task alone, Linux 6.1).
//!
//! `/proc/PID/smaps` tells them by name, but looks at every page for the numbers that it tells beside them: 9 ms for
//! each GiB in pages of 4 KiB. Whoever uses this had better compare with smaps, at a time when nobody waits.

use super::bpf_insn::{Insn, store_zero};
use super::bpf_iter::{Field, Visit, begin, load, program, read, tell, words};
use super::btf::Btf;
use rustix::io::Errno;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

/// Words that are told of each mapping.
const WORDS: usize = 4;
/// Bytes that are read at a time.
const PIECE: usize = 4096;

/// A mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawFlags {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `vm_flags` (include/linux/mm.h).
    pub flags: u64,
    /// The address of the open file that is mapped; 0 without one.
    pub file: u64,
}

/// The mappings of a task, ascending, without what the kernel shows of itself (`[vsyscall]`). ENOENT or ENOTSUP where the
/// kernel does not describe its types, or has others; EPERM without the right to look.
pub fn of_task(tid: i32) -> Result<Vec<RawFlags>, Errno> {
    let mut told = begin(ready()?, Visit::Mappings(tid))?;
    let mut all: Vec<RawFlags> = Vec::new();
    let (mut bytes, mut filled) = (vec![0; PIECE], 0);
    loop {
        if filled == bytes.len() {
            bytes.resize(2 * filled, 0);
        }
        let count = told.read(&mut bytes[filled..]).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        filled += count;
        let first = all.len() * WORDS * 8;
        for words in words(&bytes[first..filled]).collect::<Vec<_>>().chunks_exact(WORDS) {
            let [start, end, flags, file] = *words else { continue };
            // It begins again and again.
            if all.last().is_some_and(|last| start <= last.start) {
                return Ok(all);
            }
            all.push(RawFlags { start, end, flags, file });
        }
        if count == 0 {
            return Ok(all);
        }
    }
}

fn ready() -> Result<&'static OwnedFd, Errno> {
    static READY: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    let make = || {
        let btf = Btf::running()?;
        let visit = Visit::Mappings(0);
        load(btf, visit.target(), &program(visit, &body(&fields(btf).ok_or(Errno::NOTSUP)?)))
    };
    READY.get_or_init(make).as_ref().map_err(|e| *e)
}

/// In the order of [`RawFlags`].
fn fields(btf: &Btf) -> Option<[Field; WORDS]> {
    let field = |name| Some(Field { offset: btf.field("vm_area_struct", name)?, len: 8 });
    Some([field("vm_start")?, field("vm_end")?, field("vm_flags")?, field("vm_file")?])
}

/// Finds the mapping in register 8.
fn body(fields: &[Field]) -> Vec<Insn> {
    const LEN: i16 = 8 * WORDS as i16;
    let mut body = Vec::new();
    for (field, place) in fields.iter().zip((-LEN..0).step_by(8)) {
        body.push(store_zero(10, place));
        body.extend(read(place, field.len, field.offset));
    }
    body.extend(tell(LEN));
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Task;
    use crate::proc::maps::Vma;

    #[test]
    fn they_are_those_of_maps() {
        if ready().is_err() {
            return;
        }
        let task = Task::open(rustix::process::getpid()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let other = Task::open(rustix::process::Pid::from_child(&child)).unwrap();
        assert!(!task.maps().unwrap().is_empty());
        std::thread::sleep(std::time::Duration::from_millis(50));
        let all = of_task(child.id() as i32).unwrap();
        let maps: Vec<Vma> = other.maps().unwrap().into_iter().filter(|v| v.special() != Some(b"vsyscall")).collect();
        assert_eq!(
            all.iter().map(|f| (f.start, f.end)).collect::<Vec<_>>(),
            maps.iter().map(|v| (v.start, v.end)).collect::<Vec<_>>()
        );
        for (flags, vma) in all.iter().zip(&maps) {
            // VM_READ, VM_WRITE, VM_EXEC.
            assert_eq!(flags.flags & 7, u64::from(vma.perms.bits()) & 7, "{vma:?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
