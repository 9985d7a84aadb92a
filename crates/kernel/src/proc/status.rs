//! `/proc/PID/status`: credentials, signal sets and confinement of a task (proc_pid_status(5)).

use super::stat::State;
use super::text::{self, Malformed, OrMalformed};

/// Real, effective, saved and file-system id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ids {
    pub real: u32,
    pub effective: u32,
    pub saved: u32,
    pub fs: u32,
}

/// Capability sets, bit n for capability n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    pub inheritable: u64,
    pub permitted: u64,
    pub effective: u64,
    pub bounding: u64,
    pub ambient: u64,
}

/// What seccomp does to the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Seccomp {
    #[default]
    Disabled,
    Strict,
    Filter,
}

/// The lines of `status` that describe the task's state. Signal sets have bit n-1 for signal n.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// At most 15 bytes, escapes undone.
    pub name: Vec<u8>,
    /// `None` for a zombie, which has no file-system context any more.
    pub umask: Option<u32>,
    pub state: State,
    pub tgid: i32,
    pub pid: i32,
    pub ppid: i32,
    /// 0 without a tracer.
    pub tracer_pid: i32,
    pub uid: Ids,
    pub gid: Ids,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The pid in each pid namespace from the reader's to the task's own.
    pub ns_pid: Vec<i32>,
    pub ns_tgid: Vec<i32>,
    pub ns_pgid: Vec<i32>,
    pub ns_sid: Vec<i32>,
    pub kernel_thread: bool,
    pub threads: u32,
    /// Signals queued for the user, and the limit.
    pub queued_signals: (u64, u64),
    /// Pending for this thread.
    pub sig_pending: u64,
    /// Pending for the process.
    pub shared_pending: u64,
    pub sig_blocked: u64,
    pub sig_ignored: u64,
    pub sig_caught: u64,
    pub caps: Capabilities,
    pub no_new_privs: bool,
    pub seccomp: Seccomp,
    /// `None` before Linux 5.9.
    pub seccomp_filters: Option<u32>,
    /// `shstk`, `wrss`: bit 0 and 1. Linux 6.6, x86.
    pub x86_thread_features: u32,
    pub x86_thread_features_locked: u32,
    /// The core dump of this process is being written.
    pub core_dumping: bool,
    /// KiB; 0 for a task without memory.
    pub vm_size_kib: u64,
    pub vm_rss_kib: u64,
    /// Of that, pages that are no file's.
    pub rss_anon_kib: u64,
    /// Of it, pages of shared memory and of files in memory.
    pub rss_shmem_kib: u64,
    pub vm_locked_kib: u64,
    pub huge_tlb_kib: u64,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            name: Vec::new(),
            umask: None,
            state: State::Other(0),
            tgid: 0,
            pid: 0,
            ppid: 0,
            tracer_pid: 0,
            uid: Ids::default(),
            gid: Ids::default(),
            groups: Vec::new(),
            ns_pid: Vec::new(),
            ns_tgid: Vec::new(),
            ns_pgid: Vec::new(),
            ns_sid: Vec::new(),
            kernel_thread: false,
            threads: 0,
            queued_signals: (0, 0),
            sig_pending: 0,
            shared_pending: 0,
            sig_blocked: 0,
            sig_ignored: 0,
            sig_caught: 0,
            caps: Capabilities::default(),
            no_new_privs: false,
            seccomp: Seccomp::default(),
            seccomp_filters: None,
            x86_thread_features: 0,
            x86_thread_features_locked: 0,
            core_dumping: false,
            vm_size_kib: 0,
            vm_rss_kib: 0,
            rss_anon_kib: 0,
            rss_shmem_kib: 0,
            vm_locked_kib: 0,
            huge_tlb_kib: 0,
        }
    }
}

/// Parses `status`. Lines that are not known are passed over, those that are must be whole; a file without
/// `Pid:` is refused.
pub fn parse(text: &[u8]) -> Result<Status, Malformed> {
    let mut status = Status::default();
    for line in text::lines(text) {
        let (key, value) = text::cut(line, b':').or_malformed("key", line)?;
        take(&mut status, key, value.strip_prefix(b"\t").unwrap_or(value)).or_malformed("value", line)?;
    }
    if status.pid == 0 {
        return Err(Malformed::new("Pid line", text));
    }
    Ok(status)
}

/// Keeps one line; `None` when its value is not what it should be.
fn take(status: &mut Status, key: &[u8], value: &[u8]) -> Option<()> {
    let word = || text::words(value).next();
    match key {
        b"Name" => status.name = text::unescape(value),
        b"Umask" => status.umask = Some(text::oct(value)?),
        b"State" => status.state = State::from_letter(*value.first()?),
        b"Tgid" => status.tgid = text::dec(value)?,
        b"Pid" => status.pid = text::dec(value)?,
        b"PPid" => status.ppid = text::dec(value)?,
        b"TracerPid" => status.tracer_pid = text::dec(value)?,
        b"Uid" => status.uid = ids(value)?,
        b"Gid" => status.gid = ids(value)?,
        b"Groups" => status.groups = text::words(value).map(text::dec).collect::<Option<_>>()?,
        b"NSpid" => status.ns_pid = pids(value)?,
        b"NStgid" => status.ns_tgid = pids(value)?,
        b"NSpgid" => status.ns_pgid = pids(value)?,
        b"NSsid" => status.ns_sid = pids(value)?,
        b"Kthread" => status.kernel_thread = value == b"1",
        b"Threads" => status.threads = text::dec(value)?,
        b"SigQ" => {
            let (queued, limit) = text::cut(value, b'/')?;
            status.queued_signals = (text::dec(queued)?, text::dec(limit)?);
        }
        b"SigPnd" => status.sig_pending = text::hex(value)?,
        b"ShdPnd" => status.shared_pending = text::hex(value)?,
        b"SigBlk" => status.sig_blocked = text::hex(value)?,
        b"SigIgn" => status.sig_ignored = text::hex(value)?,
        b"SigCgt" => status.sig_caught = text::hex(value)?,
        b"CapInh" => status.caps.inheritable = text::hex(value)?,
        b"CapPrm" => status.caps.permitted = text::hex(value)?,
        b"CapEff" => status.caps.effective = text::hex(value)?,
        b"CapBnd" => status.caps.bounding = text::hex(value)?,
        b"CapAmb" => status.caps.ambient = text::hex(value)?,
        b"NoNewPrivs" => status.no_new_privs = value == b"1",
        b"Seccomp" => {
            status.seccomp = match value {
                b"0" => Seccomp::Disabled,
                b"1" => Seccomp::Strict,
                b"2" => Seccomp::Filter,
                _ => return None,
            }
        }
        b"Seccomp_filters" => status.seccomp_filters = Some(text::dec(value)?),
        b"x86_Thread_features" => status.x86_thread_features = x86_features(value),
        b"x86_Thread_features_locked" => status.x86_thread_features_locked = x86_features(value),
        b"CoreDumping" => status.core_dumping = value == b"1",
        b"VmSize" => status.vm_size_kib = text::dec(word()?)?,
        b"VmRSS" => status.vm_rss_kib = text::dec(word()?)?,
        b"RssAnon" => status.rss_anon_kib = text::dec(word()?)?,
        b"RssShmem" => status.rss_shmem_kib = text::dec(word()?)?,
        b"VmLck" => status.vm_locked_kib = text::dec(word()?)?,
        b"HugetlbPages" => status.huge_tlb_kib = text::dec(word()?)?,
        _ => {}
    }
    Some(())
}

fn ids(value: &[u8]) -> Option<Ids> {
    let mut words = text::words(value).map(text::dec);
    let mut next = || words.next()?;
    Some(Ids { real: next()?, effective: next()?, saved: next()?, fs: next()? })
}

fn pids(value: &[u8]) -> Option<Vec<i32>> {
    text::words(value).map(text::dec).collect()
}

fn x86_features(value: &[u8]) -> u32 {
    text::words(value).fold(0, |bits, word| match word {
        b"shstk" => bits | 1,
        b"wrss" => bits | 2,
        _ => bits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Task;

    #[test]
    fn reads_every_kind_of_line() {
        let text = b"Name:\ta\\nb\\\\c\nUmask:\t0022\nState:\tT (stopped)\nTgid:\t10\nPid:\t12\nPPid:\t1\n\
            TracerPid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t4294967295\nFDSize:\t256\nGroups:\t0 10 20 \n\
            NStgid:\t10\t1\nNSpid:\t12\t3\nNSpgid:\t10\t0\nNSsid:\t4\t0\nKthread:\t0\nVmLck:\t      12 kB\n\
            Threads:\t3\nSigQ:\t1/96364\nSigPnd:\t0000000000000200\nShdPnd:\t8000000000000000\n\
            SigBlk:\t0000000000000001\nSigIgn:\t0000000000000002\nSigCgt:\t0000000000000004\n\
            CapInh:\t0000000000000000\nCapPrm:\t000001fffeffffff\nCapEff:\t0000000000000003\n\
            CapBnd:\t0000000000000005\nCapAmb:\t0000000000000006\nNoNewPrivs:\t1\nSeccomp:\t2\n\
            Seccomp_filters:\t4\nx86_Thread_features:\tshstk wrss \nx86_Thread_features_locked:\tshstk \n";
        let status = parse(text).unwrap();
        assert_eq!(status.name, b"a\nb\\c");
        assert_eq!((status.umask, status.state, status.tgid, status.pid), (Some(0o22), State::Stopped, 10, 12));
        assert_eq!(status.uid, Ids { real: 1, effective: 2, saved: 3, fs: 4 });
        assert_eq!(status.gid.fs, u32::MAX);
        assert_eq!((status.groups, status.ns_pid), (vec![0, 10, 20], vec![12, 3]));
        assert_eq!((status.threads, status.queued_signals, status.vm_locked_kib), (3, (1, 96364), 12));
        assert_eq!((status.sig_pending, status.shared_pending), (1 << 9, 1 << 63));
        assert_eq!((status.sig_blocked, status.sig_ignored, status.sig_caught), (1, 2, 4));
        assert_eq!(status.caps.permitted, 0x1fffeffffff);
        assert_eq!((status.caps.effective, status.caps.bounding, status.caps.ambient), (3, 5, 6));
        assert_eq!((status.no_new_privs, status.seccomp, status.seccomp_filters), (true, Seccomp::Filter, Some(4)));
        assert_eq!((status.x86_thread_features, status.x86_thread_features_locked), (3, 1));
    }

    #[test]
    fn refuses_half_a_line() {
        assert_eq!(parse(b"Pid:\t1\nUid:\t1\t2\t3\n").unwrap_err().what, "value");
        assert_eq!(parse(b"Name:\tx\n").unwrap_err().what, "Pid line");
    }

    #[test]
    fn live() {
        let task = Task::current().unwrap();
        let status = task.status().unwrap();
        assert_eq!(status.pid, std::process::id() as i32);
        assert!(status.threads >= 1); // how many is up to the other tests
        assert_eq!(status.uid.real, rustix::process::getuid().as_raw());
        assert_eq!(status.ns_pid.last(), Some(&status.pid));
    }
}
