//! Which kernel objects tasks have, of many tasks at once, by a program of the kernel's own: kcmp(2) compares two tasks at
//! a time, and each namespace is a link in /proc.
//!
//! Whoever uses it had better compare some with kcmp.

use super::bpf_insn::{Insn, add_register, load64, mov, shift_left, store_value, store_zero};
use super::bpf_iter::{Visit, load, program, read, run_for_tasks, tell};
use super::btf::Btf;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

/// What a task has: addresses of objects, equal where it is the same object and good for nothing else, and what else takes a
/// file in /proc to learn.
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
    /// As `/proc/PID/loginuid` tells it to who is in the first user namespace; `None` if that has to be asked.
    pub login_uid: Option<u32>,
    /// Whether it may have timers of timer_create(2).
    pub may_have_timers: bool,
    /// Its root directory.
    pub root: Place,
    /// Its working directory.
    pub cwd: Place,
    /// Its program.
    pub exe: Place,
}

/// A file, by the addresses of the mount by which it was found and of its entry there.
pub type Place = [u64; 2];

/// What a program tells of a task, in words: where each is.
mod at {
    pub const PID: usize = 0;
    pub const SHARED: usize = 1;
    pub const NAMESPACES: usize = 5;
    pub const CGROUPS: usize = 8;
    pub const SCORE: usize = 9;
    pub const LOGIN_UID: usize = 10;
    pub const TIMERS: usize = 11;
    pub const ROOT: usize = 12;
    pub const CWD: usize = 14;
    pub const EXE: usize = 16;
    /// For something in between.
    pub const BETWEEN: usize = 18;
}

const WORDS: usize = at::BETWEEN + 1;
/// In the place of a field that this kernel does not have.
const UNKNOWN: i32 = -1;
/// Gets ready what takes longest, a program for the kernel: [`of_tasks`] does it if nobody has.
pub fn prepare() {
    let _ = ready();
}

/// The objects of these tasks, as far as they are there. ENOENT or ENOTSUP where the kernel does not describe its types, or
/// has others; EPERM without the right to look, E2BIG if there are far more tasks than those asked for.
pub fn of_tasks(tids: &[i32]) -> Result<BTreeMap<i32, Objects>, Errno> {
    let words = run_for_tasks(ready()?, tids.len())?;
    let all = words.as_chunks::<WORDS>().0.iter().map(|words| (words[at::PID] as i32, objects(words)));
    let wanted: std::collections::BTreeSet<i32> = tids.iter().copied().collect();
    Ok(all.filter(|(tid, _)| wanted.contains(tid)).collect())
}

fn objects(words: &[u64; WORDS]) -> Objects {
    let some = |from: usize| std::array::from_fn(|word| words[from + word]);
    let of = |from: usize| [words[from], words[from + 1]];
    Objects {
        shared: some(at::SHARED),
        namespaces: [words[at::NAMESPACES], words[at::NAMESPACES + 1], words[at::NAMESPACES + 2]],
        cgroups: words[at::CGROUPS],
        oom_score_adj: words[at::SCORE] as i16,
        login_uid: u32::try_from(words[at::LOGIN_UID]).ok(),
        may_have_timers: words[at::TIMERS] != 0,
        root: of(at::ROOT),
        cwd: of(at::CWD),
        exe: of(at::EXE),
    }
}

fn ready() -> Result<&'static OwnedFd, Errno> {
    static READY: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    let make = || {
        let btf = Btf::running()?;
        load(btf, Visit::AllTasks.target(), &program(Visit::AllTasks, &body(btf).ok_or(Errno::NOTSUP)?))
    };
    READY.get_or_init(make).as_ref().map_err(|e| *e)
}

/// Where a word is on the program's stack.
fn place(word: usize) -> i16 {
    8 * (word as i16 - WORDS as i16)
}

/// Takes what the kernel has at the address in register 8 into words of the stack.
struct Reader<'b> {
    btf: &'b Btf,
    body: Vec<Insn>,
}

impl Reader<'_> {
    fn get(&mut self, word: usize, structure: &str, name: &str, len: u8) -> Option<()> {
        self.get_at(word, self.btf.field(structure, name)?, len);
        Some(())
    }

    fn get_at(&mut self, word: usize, offset: u32, len: u8) {
        self.body.push(store_zero(10, place(word)));
        self.body.extend(read(place(word), len, offset));
    }

    /// A path of a structure.
    fn get_path(&mut self, word: usize, structure: &str, name: &str) -> Option<()> {
        let at = self.btf.field(structure, name)?;
        self.get_at(word, at + self.btf.field("path", "mnt")?, 8);
        self.get_at(word + 1, at + self.btf.field("path", "dentry")?, 8);
        Some(())
    }

    /// Goes where a word leads.
    fn follow(&mut self, word: usize) {
        self.body.push(load64(8, 10, place(word)));
    }
}

/// Finds the task in register 8.
fn body(btf: &Btf) -> Option<Vec<Insn>> {
    const TASK: &str = "task_struct";
    let mut r = Reader { btf, body: vec![mov(7, 8)] };
    r.get(at::PID, TASK, "pid", 4)?;
    for (kind, name) in ["mm", "files", "fs", "sighand"].into_iter().enumerate() {
        r.get(at::SHARED + kind, TASK, name, 8)?;
    }
    r.get(at::NAMESPACES, TASK, "nsproxy", 8)?;
    r.get(at::CGROUPS, TASK, "cgroups", 8)?;
    // Where nobody audits, there is none.
    match btf.field(TASK, "loginuid") {
        Some(offset) => r.get_at(at::LOGIN_UID, offset, 4),
        None => r.body.push(store_value(10, place(at::LOGIN_UID), UNKNOWN)),
    }
    r.get(at::BETWEEN, TASK, "real_cred", 8)?;
    r.follow(at::BETWEEN);
    r.get(at::NAMESPACES + 1, "cred", "user_ns", 8)?;
    r.body.push(mov(8, 7));
    r.get(at::BETWEEN, TASK, "signal", 8)?;
    r.follow(at::BETWEEN);
    r.get(at::SCORE, "signal_struct", "oom_score_adj", 2)?;
    // The first of a list: before Linux 6.13 one that ends with itself, and seems never to be empty.
    r.get(at::TIMERS, "signal_struct", "posix_timers", 8)?;
    r.follow(at::SHARED + 2);
    r.get_path(at::ROOT, "fs_struct", "root")?;
    r.get_path(at::CWD, "fs_struct", "pwd")?;
    r.follow(at::SHARED);
    r.get(at::BETWEEN, "mm_struct", "exe_file", 8)?;
    r.follow(at::BETWEEN);
    r.get_path(at::EXE, "file", "f_path")?;
    // Its pid namespace is that of the last of its numbers (ns_of_pid, include/linux/pid.h).
    r.body.push(mov(8, 7));
    r.get(at::BETWEEN, TASK, "thread_pid", 8)?;
    r.follow(at::BETWEEN);
    r.get(at::BETWEEN, "pid", "level", 4)?;
    let (upid, log2) = (btf.size("upid")?, btf.size("upid")?.trailing_zeros());
    if !upid.is_power_of_two() {
        return None;
    }
    r.body.extend([load64(6, 10, place(at::BETWEEN)), shift_left(6, log2 as i32), add_register(8, 6)]);
    r.get_at(at::NAMESPACES + 2, btf.field("pid", "numbers")? + btf.field("upid", "ns")?, 8);
    r.body.extend(tell(-place(0)));
    Some(r.body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bpf_iter::run;
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
            words.as_chunks::<WORDS>().0.iter().map(|words| (words[at::PID] as i32, objects(words))).collect();
        assert_eq!(all[&us].shared, all[&thread].shared);
        assert_eq!(all[&us].namespaces, all[&other].namespaces);
        assert!(all[&us].namespaces.iter().all(|address| *address != 0));
        assert!(all[&us].shared.iter().zip(all[&other].shared).all(|(us, other)| *us != other));
        let told = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        assert_eq!(told.trim(), all[&us].oom_score_adj.to_string());
        if let (Ok(told), Some(uid)) = (std::fs::read_to_string("/proc/self/loginuid"), all[&us].login_uid) {
            assert_eq!(told.trim(), uid.to_string());
        }
        assert_eq!((all[&us].exe, all[&us].cwd), (all[&other].exe, all[&other].cwd));
        assert!(all[&us].exe != all[&us].cwd && all[&us].exe.iter().chain(&all[&us].root).all(|address| *address != 0));
    }
}
