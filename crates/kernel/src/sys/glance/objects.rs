//! Which kernel objects processes have: kcmp(2) compares two at a time, and each namespace is a link in /proc.

use super::super::bpf_insn::{Insn, add_register, load64, mov, shift_left, store_value, store_zero, store64};
use super::super::bpf_iter::{read, tell};
use super::super::btf::Btf;
use super::{Kind, head};
use std::collections::BTreeMap;

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
    /// Whether its first thread has children, those that have ended included.
    pub has_children: bool,
}

/// A file, by the addresses of the mount by which it was found and of its entry there.
pub type Place = [u64; 2];

/// What a program tells of a task, in words: where each is.
mod at {
    pub const HEAD: usize = 0;
    pub const SHARED: usize = 1;
    pub const NAMESPACES: usize = 5;
    pub const CGROUPS: usize = 8;
    pub const SCORE: usize = 9;
    pub const LOGIN_UID: usize = 10;
    pub const TIMERS: usize = 11;
    pub const ROOT: usize = 12;
    pub const CWD: usize = 14;
    pub const EXE: usize = 16;
    pub const TASK: usize = 18;
    pub const FIRST_CHILD: usize = 19;
    pub const CHILDREN: usize = 20;
    /// For something in between.
    pub const BETWEEN: usize = 21;
}

const WORDS: usize = at::BETWEEN + 1;
/// In the place of a field that this kernel does not have.
const UNKNOWN: i32 = -1;
/// Takes what one process has off what was told; how many words it had.
pub(super) fn take(all: &mut BTreeMap<i32, Objects>, pid: i32, words: &[u64]) -> Option<usize> {
    all.insert(pid, objects(words.first_chunk()?));
    Some(WORDS)
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
        // The head of an empty list leads to itself.
        has_children: words[at::FIRST_CHILD] != words[at::TASK] + words[at::CHILDREN],
    }
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

/// [`super::Part`].
pub(super) fn part(btf: &Btf) -> Option<Vec<Insn>> {
    const TASK: &str = "task_struct";
    let mut r = Reader { btf, body: head(btf, Kind::Objects, place(at::HEAD))? };
    let children = btf.field(TASK, "children")?;
    r.body.extend([store64(10, place(at::TASK), 8), store_value(10, place(at::CHILDREN), children as i32)]);
    r.get_at(at::FIRST_CHILD, children, 8);
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
    use super::super::of_traced;
    use crate::sys::process::{Spawn, spawn_idle};
    use crate::sys::ptrace;
    use rustix::process::{Signal, kill_process};

    #[test]
    fn siblings_share_their_namespaces_alone() {
        let [child, sibling] = [(); 2].map(|()| spawn_idle(&Spawn::default()).unwrap());
        let [us, other] = [&child, &sibling].map(|child| child.pid.as_raw_nonzero().get());
        for child in [&child, &sibling] {
            ptrace::seize(child.pid, ptrace::Options::empty()).unwrap();
        }
        let told = of_traced(usize::MAX >> 8);
        let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let uid = std::fs::read_to_string("/proc/self/loginuid");
        for child in [child, sibling] {
            kill_process(child.pid, Signal::KILL).unwrap();
            crate::sys::wait::wait(crate::sys::wait::Who::One(child.pid)).unwrap();
        }
        let Ok(told) = told else { return };
        let (us, other) = (told.objects[&us], told.objects[&other]);
        assert_eq!((us.namespaces, us.cgroups), (other.namespaces, other.cgroups));
        assert!(us.namespaces.iter().all(|address| *address != 0));
        assert!(us.shared.iter().zip(other.shared).all(|(us, other)| *us != other));
        assert_eq!(score.trim(), us.oom_score_adj.to_string());
        if let (Ok(told), Some(uid)) = (uid, us.login_uid) {
            assert_eq!(told.trim(), uid.to_string());
        }
        assert_eq!((us.exe, us.cwd, us.root), (other.exe, other.cwd, other.root));
        assert!(us.exe != us.cwd && us.exe.iter().chain(&us.root).all(|address| *address != 0));
        assert!(!other.has_children);
    }
}
