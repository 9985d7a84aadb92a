//! Which threads of a process are in the same cgroups, read from the kernel's own structures, of all at once: to make the
//! file of each in /proc takes far longer.

use super::bpf_insn::store_zero;
use super::bpf_iter::{Field, Visit, load, program, read, run, tell};
use super::btf::Btf;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

/// What is read of a task: its id, and the address of its set of cgroups (struct css_set).
const WORDS: usize = 2;

/// A number for the cgroups of every thread of a process, by tid; equal for threads that are in the same ones. ENOENT or
/// ENOTSUP where the kernel does not describe its types, or has others; EPERM without the right to look.
pub fn of_threads(pid: i32) -> Result<BTreeMap<i32, u64>, Errno> {
    static READY: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    let program = READY.get_or_init(ready).as_ref().map_err(|e| *e)?;
    let words = run(program, Visit::Threads(pid))?;
    Ok(words.chunks_exact(WORDS).map(|words| (words[0] as i32, words[1])).collect())
}

fn ready() -> Result<OwnedFd, Errno> {
    const LEN: i16 = 8 * WORDS as i16;
    let btf = Btf::running()?;
    let field = |name, len| Some(Field { offset: btf.field("task_struct", name)?, len });
    let fields = [field("pid", 4), field("cgroups", 8)];
    let mut body = Vec::new();
    for (at, field) in fields.into_iter().enumerate() {
        let field = field.ok_or(Errno::NOTSUP)?;
        let place = 8 * at as i16 - LEN;
        body.push(store_zero(10, place));
        body.extend(read(place, field.len, field.offset));
    }
    body.extend(tell(LEN));
    let visit = Visit::Threads(0);
    load(btf, visit.target(), &program(visit, &body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::gettid;

    #[test]
    fn threads_of_this_process_are_in_the_same_cgroups() {
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let (tid, told) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            tid.send(gettid()).unwrap();
            let _ = wait.recv();
        });
        let other_tid = told.recv().unwrap();
        if let Ok(all) = of_threads(std::process::id() as i32) {
            let of = |tid: rustix::thread::Pid| all[&tid.as_raw_nonzero().get()];
            assert_ne!(of(gettid()), 0);
            assert_eq!(of(gettid()), of(other_tid));
        }
        drop(end);
        other.join().unwrap();
    }
}
