//! Which open files processes have, and under which numbers: by a walk over the descriptor table of each, a loop of any length
//! (Linux 6.9). /proc and kcmp(2) tell the same of a descriptor at a time, in some ten calls.

use super::super::bpf_insn::{
    END, Insn, Jump, add, add_register, jump, jump_always, jump_by, load64, mov, mov_value, shift_left, shift_right,
    store_zero, store64, while_patient,
};
use super::super::bpf_iter::{read, tell};
use super::super::btf::Btf;
use super::{Kind, get, head};
use std::collections::BTreeMap;
use std::os::fd::RawFd;

/// Numbers of a table of which is told at most: of one process, some 32 KiB can be told.
const MOST: i32 = 512;
/// What is told of a descriptor, in words, and where on the program's stack that is.
const WORDS: usize = 5;
const HEAD: i16 = -40;
const FD: i16 = -32;
const FILE: i16 = -24;
const LOCKS: i16 = -16;
const ON_EXEC: i16 = -8;
/// Below it: how many numbers the table has, its bitmap of those that close on exec, its list of files; what is between.
const NUMBERS: i16 = -48;
const BITMAP: i16 = -56;
const LIST: i16 = -64;
const BETWEEN: i16 = -72;

/// A descriptor of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub fd: RawFd,
    /// The address of its open file description: equal where it is the same one, and good for nothing else.
    pub file: u64,
    /// FD_CLOEXEC.
    pub closes_on_exec: bool,
    /// Whether somebody has, or has had, a lock or lease of the file (flock(2), fcntl(2)).
    pub may_have_locks: bool,
}

/// Takes a descriptor off what was told; how many words it had.
pub(super) fn take(all: &mut BTreeMap<i32, Vec<Descriptor>>, pid: i32, words: &[u64]) -> Option<usize> {
    let [_, fd, file, locks, on_exec] = *words.first_chunk::<WORDS>()?;
    let closes_on_exec = on_exec >> (fd % 64) & 1 == 1;
    let descriptor = Descriptor { fd: fd as RawFd, file, closes_on_exec, may_have_locks: locks != 0 };
    all.entry(pid).or_default().push(descriptor);
    Some(WORDS)
}

/// [`super::Part`].
pub(super) fn part(btf: &Btf) -> Option<Vec<Insn>> {
    let mut part = head(btf, Kind::Descriptor, HEAD)?;
    part.extend(get(btf, ("task_struct", "files"), 8, BETWEEN)?);
    part.extend([load64(8, 10, BETWEEN), jump(Jump::Equal, 8, END, 0)]);
    part.extend(get(btf, ("files_struct", "fdt"), 8, BETWEEN)?);
    part.push(load64(8, 10, BETWEEN));
    part.extend(get(btf, ("fdtable", "max_fds"), 4, NUMBERS)?);
    part.extend([load64(1, 10, NUMBERS), jump(Jump::Above, 1, END, MOST)]);
    part.extend(get(btf, ("fdtable", "close_on_exec"), 8, BITMAP)?);
    part.extend(get(btf, ("fdtable", "fd"), 8, LIST)?);
    part.push(mov_value(6, 0));
    part.extend(each(btf)?);
    Some(part)
}

/// Walks the list of open files, from the number in register 6 on.
fn each(btf: &Btf) -> Option<Vec<Insn>> {
    let mut open = get(btf, ("file", "f_inode"), 8, BETWEEN)?;
    open.push(load64(8, 10, BETWEEN));
    open.extend(get(btf, ("inode", "i_flctx"), 8, LOCKS)?);
    // The word of the bitmap in which its bit is.
    open.extend([mov(8, 6), shift_right(8, 6), shift_left(8, 3), load64(1, 10, BITMAP), add_register(8, 1)]);
    open.push(store_zero(10, ON_EXEC));
    open.extend(read(ON_EXEC, 8, 0));
    open.push(store64(10, FD, 6));
    open.extend(tell(8 * WORDS as i16));

    let mut step = vec![while_patient(END), load64(1, 10, NUMBERS), jump_by(Jump::AtLeast, (6, 1), END)];
    step.extend([mov(8, 6), shift_left(8, 3), load64(1, 10, LIST), add_register(8, 1)]);
    step.push(store_zero(10, FILE));
    step.extend(read(FILE, 8, 0));
    step.extend([load64(8, 10, FILE), jump(Jump::Equal, 8, open.len() as i16, 0)]);
    step.extend(open);
    step.push(add(6, 1));
    step.push(jump_always(-(step.len() as i16) - 1));
    Some(step)
}

#[cfg(test)]
mod tests {
    use super::super::{Glance, of_traced};
    use super::*;
    use crate::sys::kcmp;
    use crate::sys::process::{Spawn, spawn_idle};
    use crate::sys::ptrace;
    use rustix::process::{Pid, Signal, kill_process};
    use std::os::fd::AsRawFd;

    #[test]
    fn they_are_those_of_the_traced() {
        let kept = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::empty()).unwrap();
        let high = rustix::io::fcntl_dupfd_cloexec(&kept, 200).unwrap();
        let child = spawn_idle(&Spawn::default()).unwrap();
        let pid = child.pid.as_raw_nonzero().get();
        ptrace::seize(child.pid, ptrace::Options::empty()).unwrap();
        let told = of_traced(usize::MAX >> 8);
        let listed = crate::proc::Task::open(child.pid).unwrap().fds().unwrap();
        let is_same = |one: RawFd, two: RawFd| kcmp::file(child.pid, one, child.pid, two).unwrap().is_eq();
        let same: Vec<bool> = listed.iter().map(|fd| is_same(*fd, kept.as_raw_fd())).collect();
        end(child.pid);
        let Ok(Glance { descriptors: told, .. }) = told else { return };
        let told = &told[&pid];
        assert_eq!(told.iter().map(|told| told.fd).collect::<Vec<_>>(), listed);
        let of = |fd: RawFd| *told.iter().find(|told| told.fd == fd).unwrap();
        let this = of(kept.as_raw_fd());
        assert!(!this.closes_on_exec && of(high.as_raw_fd()).closes_on_exec);
        assert_eq!(told.iter().map(|told| told.file == this.file).collect::<Vec<_>>(), same);
        assert!(same.iter().filter(|same| **same).count() >= 2);
    }

    #[test]
    fn a_lock_is_noticed() {
        let file = tempfile::tempfile().unwrap();
        let other = tempfile::tempfile().unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let child = spawn_idle(&Spawn::default()).unwrap();
        ptrace::seize(child.pid, ptrace::Options::empty()).unwrap();
        let told = of_traced(usize::MAX >> 8);
        end(child.pid);
        let Ok(Glance { descriptors: told, .. }) = told else { return };
        let told = &told[&child.pid.as_raw_nonzero().get()];
        let may = |fd: RawFd| told.iter().find(|told| told.fd == fd).unwrap().may_have_locks;
        assert!(may(file.as_raw_fd()) && !may(other.as_raw_fd()));
    }

    fn end(child: Pid) {
        kill_process(child, Signal::KILL).unwrap();
        crate::sys::wait::wait(crate::sys::wait::Who::One(child)).unwrap();
    }
}
