//! The capabilities that matter to checkpoint and restore, and what each is for.

use rustix::io::Errno;

/// One capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// Its number in linux/capability.h.
    pub number: u32,
    pub name: &'static str,
    /// What goes wrong without it.
    pub wanted_for: &'static str,
}

const fn capability(number: u32, name: &'static str, wanted_for: &'static str) -> Capability {
    Capability { number, name, wanted_for }
}

/// Those that any step asks for.
pub const CAPABILITIES: &[Capability] = &[
    capability(0, "CAP_CHOWN", "owners of deleted files that are written anew"),
    capability(1, "CAP_DAC_OVERRIDE", "reaching the files of other users' processes"),
    capability(2, "CAP_DAC_READ_SEARCH", "opening watched files by their handle"),
    capability(5, "CAP_KILL", "ending and stopping other users' processes"),
    capability(6, "CAP_SETGID", "group ids of restored processes"),
    capability(7, "CAP_SETUID", "user ids of restored processes"),
    capability(8, "CAP_SETPCAP", "capability sets of restored processes"),
    capability(12, "CAP_NET_ADMIN", "TCP connections, network namespaces and devices"),
    capability(13, "CAP_NET_RAW", "raw and packet sockets"),
    capability(14, "CAP_IPC_LOCK", "locked memory above the limit"),
    capability(18, "CAP_SYS_CHROOT", "root directories"),
    capability(19, "CAP_SYS_PTRACE", "freezing other users' processes"),
    capability(21, "CAP_SYS_ADMIN", "namespaces, mounts, seccomp filters"),
    capability(23, "CAP_SYS_NICE", "scheduling policies and priorities"),
    capability(24, "CAP_SYS_RESOURCE", "limits above the hard ones, large pipes, lowered oom_score_adj"),
    capability(28, "CAP_LEASE", "leases on other users' files"),
    capability(30, "CAP_AUDIT_CONTROL", "audit login uid"),
    capability(35, "CAP_WAKE_ALARM", "timers that wake the machine"),
    capability(38, "CAP_PERFMON", "BPF maps of some types"),
    capability(39, "CAP_BPF", "BPF maps"),
    capability(40, "CAP_CHECKPOINT_RESTORE", "pids of restored processes, where CAP_SYS_ADMIN is missing"),
];

/// The effective set of the calling thread; bit n for capability n.
pub fn effective_capabilities() -> Result<u64, Errno> {
    rustix::thread::capabilities(None).map(|sets| sets.effective.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_proc() {
        let status = crate::proc::Task::current().unwrap().status().unwrap();
        assert_eq!(effective_capabilities().unwrap(), status.caps.effective);
        assert!(CAPABILITIES.is_sorted_by_key(|capability| capability.number));
    }
}
