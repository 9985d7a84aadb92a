//! What the processes have that we trace, all at once: by a program of the kernel's own that visits all
//! tasks (an iterator over `task`, Linux 5.8). To make a program costs as much as reading a hundred files in /proc does, so it
//! is one, put together from what each part of this module wants told.
//!
//! Whoever uses it had better compare some of it with /proc and kcmp(2).

mod descriptors;
mod objects;

pub use descriptors::Descriptor;
pub use objects::{Objects, Place};

use super::bpf_insn::{END, Insn, Jump, jump, jump_by, load64, mov, store_half, store_zero, to_end};
use super::bpf_iter::{Visit, load, program, read, run_for_tasks};
use super::btf::Btf;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

/// By the pids of processes. Only of those whose first thread lives.
#[derive(Debug, Default)]
pub struct Glance {
    /// What each of them has.
    pub objects: BTreeMap<i32, Objects>,
    /// Their descriptors, ascending; without those of processes that have none or many.
    pub descriptors: BTreeMap<i32, Vec<Descriptor>>,
}

/// What the program tells of.
#[derive(Clone, Copy)]
enum Kind {
    Objects = 1,
    Descriptor,
}

/// Makes the part of the program that tells of one kind. It finds the task in registers 7, where it stays, and 8, and the
/// seq_file in 9; the others and the stack are its own.
type Part = fn(&Btf) -> Option<Vec<Insn>>;

/// All parts; the first is enough where the kernel does not take the others.
const PARTS: [Part; 2] = [objects::part, descriptors::part];

/// Gets ready what takes longest, the program: [`of_traced`] does it if nobody has.
pub fn prepare() {
    let _ = ready();
}

/// Of the processes whose first threads are traced by a thread of ours; `traced` is how many there are.
/// ENOENT or ENOTSUP where the kernel does not describe its types, has others, or does not take such a program; EPERM
/// without the right to look, E2BIG if there are far more tasks than those.
pub fn of_traced(traced: usize) -> Result<Glance, Errno> {
    let words = run_for_tasks(ready()?, traced)?;
    let (mut glance, mut rest) = (Glance::default(), words.as_slice());
    while let Some(head) = rest.first() {
        let pid = *head as u32 as i32;
        let len = match head >> 32 {
            kind if kind == Kind::Objects as u64 => objects::take(&mut glance.objects, pid, rest),
            kind if kind == Kind::Descriptor as u64 => descriptors::take(&mut glance.descriptors, pid, rest),
            _ => None,
        };
        rest = &rest[len.ok_or(Errno::BADMSG)?..];
    }
    Ok(glance)
}

fn ready() -> Result<&'static OwnedFd, Errno> {
    static READY: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    let make = || {
        let btf = Btf::running()?;
        let with = |parts: &[Part]| {
            let body = body(btf, parts).ok_or(Errno::NOTSUP)?;
            load(btf, Visit::AllTasks.target(), &program(Visit::AllTasks, &body))
        };
        // Loops came later than the rest: Linux 6.9.
        with(&PARTS).or_else(|_| with(&PARTS[..1]))
    };
    READY.get_or_init(make).as_ref().map_err(|e| *e)
}

/// Finds a task in register 8.
fn body(btf: &Btf, parts: &[Part]) -> Option<Vec<Insn>> {
    let mut body = only_traced(btf)?;
    for part in parts {
        body.push(mov(8, 7));
        body.extend(to_end(part(btf)?));
    }
    Some(to_end(body))
}

/// Jumps to the end unless it is the first thread of a process, and a thread of ours traces it; leaves it in register 7.
fn only_traced(btf: &Btf) -> Option<Vec<Insn>> {
    const PID: i16 = -8;
    const OTHER: i16 = -16;
    let own = std::process::id() as i32;
    let of_task = |name, len, place| get(btf, ("task_struct", name), len, place);
    let mut body = vec![mov(7, 8)];
    body.extend(of_task("pid", 4, PID)?);
    body.extend(of_task("tgid", 4, OTHER)?);
    body.extend([load64(1, 10, OTHER), load64(2, 10, PID), jump_by(Jump::Unequal, (1, 2), END)]);
    body.extend(of_task("ptrace", 4, OTHER)?);
    body.extend([load64(1, 10, OTHER), jump(Jump::Equal, 1, END, 0)]);
    // Who is traced has its tracer for a parent (ptrace_link, kernel/ptrace.c).
    body.extend(of_task("parent", 8, OTHER)?);
    body.push(load64(8, 10, OTHER));
    body.extend(of_task("tgid", 4, OTHER)?);
    body.extend([load64(1, 10, OTHER), jump(Jump::Unequal, 1, END, own)]);
    Some(body)
}

/// The field of a structure whose address is in register 8, into a place on the program's stack.
fn get(btf: &Btf, (structure, name): (&str, &str), len: u8, place: i16) -> Option<Vec<Insn>> {
    let mut all = vec![store_zero(10, place)];
    all.extend(read(place, len, btf.field(structure, name)?));
    Some(all)
}

/// The word with which what is told of a task in register 8 begins: its pid, and of which kind it is.
fn head(btf: &Btf, kind: Kind, place: i16) -> Option<Vec<Insn>> {
    let mut all = get(btf, ("task_struct", "pid"), 4, place)?;
    all.push(store_half(10, place + 4, kind as i32));
    Some(all)
}
