//! Which kernel objects tasks have, of many tasks at once, by a program of the kernel's own: kcmp(2) compares two tasks at
//! a time, and each namespace is a link in /proc.
//!
//! Whoever uses it had better compare some with kcmp.

use super::bpf_insn::{Insn, add_register, load64, mov, shift_left, store_zero};
use super::bpf_iter::{Field, Visit, load, program, read, run, tell};
use super::btf::Btf;
use super::process::loadavg;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

/// Addresses of a task's objects: equal where it is the same object, and good for nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Objects {
    /// Address space, descriptor table, directories, signal actions: in the order in which kcmp(2)
    /// has them.
    pub shared: [u64; 4],
    /// Together its namespaces: the set of those that are its own (struct nsproxy), that of its user and of its pid.
    pub namespaces: [u64; 3],
    /// The set of its cgroups (struct css_set).
    pub cgroups: u64,
    /// As `/proc/PID/oom_score_adj` tells it.
    pub oom_score_adj: i16,
}

/// What a program tells of a task, in words; the last has room for something in between as well.
const WORDS: usize = 10;
/// Tasks of others for each that is asked for, up to which it is worth it: all are visited.
const OTHERS: u64 = 20;

/// Gets ready what takes longest, a program for the kernel: [`of_tasks`] does it if nobody has.
pub fn prepare() {
    let _ = ready();
}

/// The objects of these tasks, as far as they are there. ENOENT or ENOTSUP where the kernel does not describe its types, or
/// has others; EPERM without the right to look, E2BIG if there are far more tasks than those asked for.
pub fn of_tasks(tids: &[i32]) -> Result<BTreeMap<i32, Objects>, Errno> {
    if all_tasks() > OTHERS * tids.len() as u64 {
        return Err(Errno::TOOBIG);
    }
    let words = run(ready()?, Visit::AllTasks)?;
    let all = words.chunks_exact(WORDS).map(|words| (words[0] as i32, objects(words)));
    let wanted: std::collections::BTreeSet<i32> = tids.iter().copied().collect();
    Ok(all.filter(|(tid, _)| wanted.contains(tid)).collect())
}

/// How many tasks there are: the fourth field of /proc/loadavg (proc(5)).
fn all_tasks() -> u64 {
    let count = loadavg(3).and_then(|tasks| tasks.split_once('/')?.1.parse().ok());
    count.unwrap_or(u64::MAX)
}

fn objects(words: &[u64]) -> Objects {
    let mut found = Objects {
        shared: [0; 4],
        namespaces: [words[5], words[7], words[8]],
        cgroups: words[6],
        oom_score_adj: words[9] as i16,
    };
    found.shared.copy_from_slice(&words[1..5]);
    found
}

fn ready() -> Result<&'static OwnedFd, Errno> {
    static READY: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    let make = || {
        let btf = Btf::running()?;
        load(btf, Visit::AllTasks.target(), &program(Visit::AllTasks, &body(btf).ok_or(Errno::NOTSUP)?))
    };
    READY.get_or_init(make).as_ref().map_err(|e| *e)
}

/// Finds the task in register 8.
fn body(btf: &Btf) -> Option<Vec<Insn>> {
    const LEN: i16 = 8 * WORDS as i16;
    let place = |word: usize| 8 * word as i16 - LEN;
    let field = |structure, name, len| Some(Field { offset: btf.field(structure, name)?, len });
    let of_task = |name, len| field("task_struct", name, len);
    let mut body = vec![mov(7, 8)];
    let get = |body: &mut Vec<Insn>, word: usize, field: Field| {
        body.push(store_zero(10, place(word)));
        body.extend(read(place(word), field.len, field.offset));
    };
    let own = [
        of_task("pid", 4)?,
        of_task("mm", 8)?,
        of_task("files", 8)?,
        of_task("fs", 8)?,
        of_task("sighand", 8)?,
        of_task("nsproxy", 8)?,
        of_task("cgroups", 8)?,
        of_task("real_cred", 8)?,
        of_task("thread_pid", 8)?,
    ];
    own.into_iter().enumerate().for_each(|(word, field)| get(&mut body, word, field));
    body.push(load64(8, 10, place(7)));
    get(&mut body, 7, field("cred", "user_ns", 8)?);
    // Its pid namespace is that of the last of its numbers (ns_of_pid, include/linux/pid.h).
    body.push(load64(8, 10, place(8)));
    get(&mut body, 9, field("pid", "level", 4)?);
    let (upid, log2) = (btf.size("upid")?, btf.size("upid")?.trailing_zeros());
    if !upid.is_power_of_two() {
        return None;
    }
    body.extend([load64(6, 10, place(9)), shift_left(6, log2 as i32), add_register(8, 6)]);
    let namespace = btf.field("pid", "numbers")? + btf.field("upid", "ns")?;
    get(&mut body, 8, Field { offset: namespace, len: 8 });
    body.push(mov(8, 7));
    get(&mut body, 9, of_task("signal", 8)?);
    body.push(load64(8, 10, place(9)));
    get(&mut body, 9, field("signal_struct", "oom_score_adj", 2)?);
    body.extend(tell(LEN));
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Spawn, spawn_idle};
    use rustix::process::{Signal, kill_process};

    #[test]
    fn a_thread_shares_all_and_a_child_its_namespaces_alone() {
        let child = spawn_idle(&Spawn::default()).unwrap();
        let (tid, told) = std::sync::mpsc::channel();
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tid.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            let _ = wait.recv();
        });
        let thread = told.recv().unwrap();
        let (us, other) = (std::process::id() as i32, child.pid.as_raw_nonzero().get());
        let words = ready().and_then(|program| run(program, Visit::AllTasks));
        kill_process(child.pid, Signal::KILL).unwrap();
        crate::sys::wait::wait(crate::sys::wait::Who::One(child.pid)).unwrap();
        drop(end);
        sleeper.join().unwrap();
        let Ok(words) = words else { return };
        let all: BTreeMap<i32, Objects> =
            words.chunks_exact(WORDS).map(|words| (words[0] as i32, objects(words))).collect();
        assert_eq!(all[&us].shared, all[&thread].shared);
        assert_eq!(all[&us].namespaces, all[&other].namespaces);
        assert!(all[&us].namespaces.iter().all(|address| *address != 0));
        assert!(all[&us].shared.iter().zip(all[&other].shared).all(|(us, other)| *us != other));
        let told = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        assert_eq!(told.trim(), all[&us].oom_score_adj.to_string());
    }
}
