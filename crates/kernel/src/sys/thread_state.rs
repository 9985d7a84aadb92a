//! What threads have of their own and would tell if each was made to ask (sigaltstack(2), prctl(2), capget(2)), read for
//! all threads of a process at once from their `task_struct` (include/linux/sched.h), whose layout the kernel describes
//! itself. To wake a thread for its answers takes a hundred times longer.
//!
//! Whoever uses it had better ask one thread, and compare: a kernel may begin to mean something else by a field.

use super::bpf_iter::{Field, Program};
use super::btf::Btf;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Bit of `atomic_flags`: execve(2) grants no privileges (PFA_NO_NEW_PRIVS, include/linux/sched.h).
const NO_NEW_PRIVS: u64 = 1 << 0;
/// `TASK_COMM_LEN`.
const COMM_LEN: usize = 16;
/// Of the flags of an alternate stack, the one that is a setting (SS_AUTODISARM, linux/signal.h).
const AUTODISARM: u64 = 1 << 31;
/// That there is no alternate stack (SS_DISABLE).
const DISABLE: u32 = 2;

/// What one thread has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadState {
    /// Which credentials it has: the same number for threads that share them. It means nothing else.
    pub credentials: u64,
    /// Address, flags and size of its alternate stack, as sigaltstack(2) tells them of a thread that is not on it.
    pub altstack: (u64, u32, u64),
    /// Where zero is written when it ends (set_tid_address(2)).
    pub tid_address: u64,
    /// Sent when its parent ends, or 0.
    pub pdeath_signal: u32,
    /// Its name, without the terminating zero.
    pub comm: Vec<u8>,
    pub timer_slack_ns: u64,
    /// As PR_GET_SECCOMP tells it.
    pub seccomp_mode: u64,
    pub no_new_privs: bool,
}

/// Gets ready what takes longest, a program for the kernel: [`of_threads`] does it if nobody has.
pub fn prepare() {
    let _ = program();
}

/// That of all threads of a process, by tid. ENOENT or ENOTSUP where the kernel does not describe its types, or has
/// others; EPERM without the right to look.
pub fn of_threads(pid: i32) -> Result<BTreeMap<i32, ThreadState>, Errno> {
    Ok(program()?.of_threads(pid)?.iter().map(|words| state(words)).collect())
}

fn program() -> Result<&'static Program, Errno> {
    static PROGRAM: OnceLock<Result<Program, Errno>> = OnceLock::new();
    let load = || {
        let btf = Btf::running()?;
        Program::for_threads(btf, &fields(btf).ok_or(Errno::NOTSUP)?)
    };
    PROGRAM.get_or_init(load).as_ref().map_err(|e| *e)
}

/// In the order of [`state`].
fn fields(btf: &Btf) -> Option<[Field; 12]> {
    let field = |name, len| Some(Field { offset: btf.field("task_struct", name)?, len });
    let comm = field("comm", 8)?;
    Some([
        field("pid", 4)?,
        field("cred", 8)?,
        field("sas_ss_sp", 8)?,
        field("sas_ss_flags", 4)?,
        field("sas_ss_size", 8)?,
        field("clear_child_tid", 8)?,
        field("pdeath_signal", 4)?,
        comm,
        Field { offset: comm.offset + 8, len: 8 },
        field("timer_slack_ns", 8)?,
        Field { offset: btf.inner_field("task_struct", "seccomp", "mode")?, len: 4 },
        field("atomic_flags", 8)?,
    ])
}

fn state(words: &[u64]) -> (i32, ThreadState) {
    let mut comm: Vec<u8> = words[7..9].iter().flat_map(|word| word.to_le_bytes()).collect();
    comm.truncate(comm.iter().position(|byte| *byte == 0).unwrap_or(COMM_LEN));
    let (size, flags) = (words[4], (words[3] & AUTODISARM) as u32);
    let state = ThreadState {
        credentials: words[1],
        altstack: (words[2], if size == 0 { flags | DISABLE } else { flags }, size),
        tid_address: words[5],
        pdeath_signal: words[6] as u32,
        comm,
        timer_slack_ns: words[9],
        seccomp_mode: words[10],
        no_new_privs: words[11] & NO_NEW_PRIVS != 0,
    };
    (words[0] as i32, state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{gettid, set_name};

    #[test]
    fn threads_are_as_they_made_themselves() {
        if program().is_err() {
            return;
        }
        let here = move || {
            set_name(c"of sixteen bytes").unwrap();
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::USR1)).unwrap();
            rustix::thread::set_current_timer_slack(Some(777.try_into().unwrap())).unwrap();
            let tid = gettid().as_raw_nonzero().get();
            (tid, of_threads(std::process::id() as i32).unwrap())
        };
        let (tid, all) = std::thread::spawn(here).join().unwrap();
        let this = &all[&tid];
        // Fifteen bytes of a name are kept.
        assert_eq!(this.comm, b"of sixteen byte");
        assert_eq!((this.pdeath_signal, this.timer_slack_ns), (libc::SIGUSR1 as u32, 777));
        assert_eq!((this.seccomp_mode, this.no_new_privs), (0, false));
        // Rust gives each thread a stack for its signals, and the C library an address for its end.
        assert!(this.altstack.0 != 0 && this.altstack.1 == 0 && this.altstack.2 != 0 && this.tid_address != 0);
        let first = &all[&(std::process::id() as i32)];
        assert_eq!((first.credentials, first.pdeath_signal), (this.credentials, 0));
    }
}
