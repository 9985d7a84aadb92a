//! Which open files the processes have that we trace, and under which numbers: of all at once, by a program of the kernel's
//! own (an iterator over `task`, Linux 5.8, with a loop of any length, Linux 6.9).
//!
//! /proc and kcmp(2) tell the same of a descriptor at a time, in some ten calls. Whoever uses this had better compare some
//! with them.

use super::bpf_insn::{
    END, Insn, Jump, add, add_register, jump, jump_always, jump_by, load64, mov, mov_value, shift_left, shift_right,
    store_zero, store64, to_end, while_patient,
};
use super::bpf_iter::{Visit, load, program, read, run_for_tasks, tell};
use super::btf::Btf;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::OnceLock;

/// What is told of a descriptor, in words.
const WORDS: usize = 5;

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

/// Gets ready what takes longest, a program for the kernel: [`of_traced`] does it if nobody has.
pub fn prepare() {
    let _ = ready();
}

/// The descriptors, ascending, of the processes whose first threads are traced by a thread of ours, by their pids. Those
/// without any are not there; `traced` is how many there are. ENOENT or ENOTSUP where the kernel does not describe its types,
/// has others, or does not take such a program; EPERM without the right to look, E2BIG if there are far more tasks than
/// those.
pub fn of_traced(traced: usize) -> Result<BTreeMap<i32, Vec<Descriptor>>, Errno> {
    let words = run_for_tasks(ready()?, traced)?;
    let mut all: BTreeMap<i32, Vec<Descriptor>> = BTreeMap::new();
    for words in words.as_chunks::<WORDS>().0 {
        let [pid, fd, file, locks, on_exec] = *words;
        let closes_on_exec = on_exec >> (fd % 64) & 1 == 1;
        let descriptor = Descriptor { fd: fd as RawFd, file, closes_on_exec, may_have_locks: locks != 0 };
        all.entry(pid as i32).or_default().push(descriptor);
    }
    Ok(all)
}

fn ready() -> Result<&'static OwnedFd, Errno> {
    static READY: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    let make = || {
        let btf = Btf::running()?;
        let body = body(btf, std::process::id() as i32).ok_or(Errno::NOTSUP)?;
        load(btf, Visit::AllTasks.target(), &program(Visit::AllTasks, &body))
    };
    READY.get_or_init(make).as_ref().map_err(|e| *e)
}

/// What is told, in the order of [`of_traced`]: places on the program's stack.
const PID: i16 = -40;
const FD: i16 = -32;
const FILE: i16 = -24;
const LOCKS: i16 = -16;
const ON_EXEC: i16 = -8;
/// Below it: how many numbers the table has, its bitmap of those that close on exec, and what is between.
const NUMBERS: i16 = -48;
const BITMAP: i16 = -56;
const BETWEEN: i16 = -64;

/// The field of a structure whose address is in register 8, into a place on the stack.
fn get(btf: &Btf, (structure, name): (&str, &str), len: u8, place: i16) -> Option<Vec<Insn>> {
    let mut all = vec![store_zero(10, place)];
    all.extend(read(place, len, btf.field(structure, name)?));
    Some(all)
}

/// Finds a task in register 8. `own`: by which number the kernel knows us.
fn body(btf: &Btf, own: i32) -> Option<Vec<Insn>> {
    let of_task = |name, len, place| get(btf, ("task_struct", name), len, place);
    let mut body = vec![mov(7, 8)];
    body.extend(of_task("ptrace", 4, BETWEEN)?);
    body.extend([load64(1, 10, BETWEEN), jump(Jump::Equal, 1, END, 0)]);
    body.extend(of_task("parent", 8, BETWEEN)?);
    body.push(load64(8, 10, BETWEEN));
    body.extend(of_task("tgid", 4, BETWEEN)?);
    body.extend([load64(1, 10, BETWEEN), jump(Jump::Unequal, 1, END, own), mov(8, 7)]);
    body.extend(of_task("tgid", 4, BETWEEN)?);
    body.extend(of_task("pid", 4, PID)?);
    body.extend([load64(1, 10, BETWEEN), load64(2, 10, PID), jump_by(Jump::Unequal, (1, 2), END)]);
    body.extend(of_task("files", 8, BETWEEN)?);
    body.extend([load64(8, 10, BETWEEN), jump(Jump::Equal, 8, END, 0)]);
    body.extend(get(btf, ("files_struct", "fdt"), 8, BETWEEN)?);
    body.push(load64(8, 10, BETWEEN));
    body.extend(get(btf, ("fdtable", "max_fds"), 4, NUMBERS)?);
    body.extend(get(btf, ("fdtable", "close_on_exec"), 8, BITMAP)?);
    body.extend(get(btf, ("fdtable", "fd"), 8, BETWEEN)?);
    body.extend([load64(7, 10, BETWEEN), mov_value(6, 0)]);
    body.extend(each(btf)?);
    Some(to_end(body))
}

/// Walks the list of open files at register 7, from the number in register 6 on.
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
    step.extend([mov(8, 6), shift_left(8, 3), add_register(8, 7), store_zero(10, FILE)]);
    step.extend(read(FILE, 8, 0));
    step.extend([load64(8, 10, FILE), jump(Jump::Equal, 8, open.len() as i16, 0)]);
    step.extend(open);
    step.push(add(6, 1));
    step.push(jump_always(-(step.len() as i16) - 1));
    Some(step)
}

#[cfg(test)]
mod tests {
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
        let Ok(told) = told else { return };
        assert!(!told.contains_key(&(std::process::id() as i32)), "only of the traced: {told:?}");
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
        let Ok(told) = told else { return };
        let told = &told[&child.pid.as_raw_nonzero().get()];
        let may = |fd: RawFd| told.iter().find(|told| told.fd == fd).unwrap().may_have_locks;
        assert!(may(file.as_raw_fd()) && !may(other.as_raw_fd()));
    }

    fn end(child: Pid) {
        kill_process(child, Signal::KILL).unwrap();
        crate::sys::wait::wait(crate::sys::wait::Who::One(child)).unwrap();
    }
}
