//! What `/proc/PID/task/TID/syscall` and `children` tell, of all threads of a process at once, read by a program of the
//! kernel's own: the kernel takes some 30 us to make the files of a thread that nobody has looked at before, and again to
//! take them away when it ends.
//!
//! Whoever uses it had better look at one thread in /proc as well, and compare.

use super::bpf_insn::{Insn, call, mov, store_zero, store64};
use super::bpf_iter::{CALL_TASK_PT_REGS, Field, Visit, load, program, read, run, tell};
use super::btf::Btf;
use crate::proc::values::Syscall;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

/// What is read of the task, and of its registers.
const OF_TASK: usize = 4;
const OF_REGISTERS: usize = 9;
/// Those, and the task's address before them.
const WORDS: usize = 1 + OF_TASK + OF_REGISTERS;

/// A thread at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    /// The call that it is in.
    pub call: Syscall,
    /// Whether it has children, those that have ended included.
    pub has_children: bool,
}

/// Gets ready what takes longest, a program for the kernel: [`of_threads`] does it if nobody has.
pub fn prepare() {
    let _ = ready();
}

/// All threads of a process, by tid. ENOENT or ENOTSUP where the kernel does not describe its types, or has others; EPERM
/// without the right to look.
pub fn of_threads(pid: i32) -> Result<BTreeMap<i32, Glance>, Errno> {
    let ready = ready()?;
    let words = run(&ready.program, Visit::Threads(pid))?;
    Ok(words.chunks_exact(WORDS).map(|words| glance(words, ready.children)).collect())
}

/// The program, and where a task has its children.
struct Ready {
    program: OwnedFd,
    children: u64,
}

fn ready() -> Result<&'static Ready, Errno> {
    static READY: OnceLock<Result<Ready, Errno>> = OnceLock::new();
    let make = || {
        let btf = Btf::running()?;
        let (task, registers) = fields(btf).ok_or(Errno::NOTSUP)?;
        let visit = Visit::Threads(0);
        let program = load(btf, visit.target(), &program(visit, &body(&task, &registers)))?;
        Ok(Ready { program, children: task[3].offset.into() })
    };
    READY.get_or_init(make).as_ref().map_err(|e| *e)
}

/// In the order of [`glance`].
fn fields(btf: &Btf) -> Option<([Field; OF_TASK], [Field; OF_REGISTERS])> {
    let of_task = |name, len| Some(Field { offset: btf.field("task_struct", name)?, len });
    let register = |name| Some(Field { offset: btf.field("pt_regs", name)?, len: 8 });
    // On x86_64, in the order of a call's arguments.
    Some((
        [of_task("pid", 4)?, of_task("__state", 4)?, of_task("on_cpu", 4)?, of_task("children", 8)?],
        [
            register("orig_ax")?,
            register("di")?,
            register("si")?,
            register("dx")?,
            register("r10")?,
            register("r8")?,
            register("r9")?,
            register("sp")?,
            register("ip")?,
        ],
    ))
}

/// Finds the task in register 8.
fn body(task: &[Field], registers: &[Field]) -> Vec<Insn> {
    const LEN: i16 = 8 * WORDS as i16;
    let mut body = vec![store64(10, -LEN, 8)];
    let mut place = 8 - LEN;
    let mut fill = |body: &mut Vec<Insn>, fields: &[Field]| {
        for field in fields {
            body.push(store_zero(10, place));
            body.extend(read(place, field.len, field.offset));
            place += 8;
        }
    };
    fill(&mut body, task);
    body.extend([mov(1, 8), call(CALL_TASK_PT_REGS), mov(8, 0)]);
    fill(&mut body, registers);
    body.extend(tell(LEN));
    body
}

fn glance(words: &[u64], children: u64) -> (i32, Glance) {
    let (state, on_cpu, first_child) = (words[2], words[3], words[4]);
    let number = words[5] as i64;
    let (sp, pc) = (words[12], words[13]);
    let mut args = [0; 6];
    args.copy_from_slice(&words[6..12]);
    let call = match number {
        _ if state == 0 || on_cpu != 0 => Syscall::Running,
        -1 => Syscall::Blocked { sp, pc },
        _ => Syscall::In { number, args, sp, pc },
    };
    // The head of an empty list leads to itself.
    (words[1] as i32, Glance { call, has_children: first_child != words[0] + children })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Task;
    use rustix::thread::gettid;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn threads_are_in_the_calls_that_proc_tells() {
        if ready().is_err() {
            return;
        }
        let (tid, told) = channel();
        let (end, wait) = channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tid.send(gettid()).unwrap();
            let _ = wait.recv();
        });
        let tid = told.recv().unwrap();
        let in_proc = Task::current().unwrap().thread(tid);
        while !matches!(in_proc.syscall().unwrap(), Syscall::In { number: libc::SYS_futex, .. }) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = std::process::id() as i32;
        let all = of_threads(pid).unwrap();
        let one = all[&tid.as_raw_nonzero().get()];
        assert_eq!(one, Glance { call: in_proc.syscall().unwrap(), has_children: false });
        assert_eq!(all[&gettid().as_raw_nonzero().get()].call, Syscall::Running);
        drop(end);
        sleeper.join().unwrap();

        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(of_threads(pid).unwrap()[&gettid().as_raw_nonzero().get()].has_children);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
