//! What this kernel can do, asked of the kernel itself: for `cryonaut check`, and under CRIU's names for
//! `criu check --feature`.

use cryonaut_kernel::sys::kcmp::{self, Shared};
use rustix::fs::MemfdFlags;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use rustix::time::{TimerfdClockId, TimerfdFlags};
use serde::Serialize;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

/// One thing that a kernel may be able to do.
#[derive(Debug, Serialize)]
pub struct Feature {
    /// Short name.
    pub name: &'static str,
    /// Whether this kernel can.
    pub present: bool,
    /// Whether nothing works without it.
    pub required: bool,
    /// What it is used for, and so what is lost without it.
    pub gives: &'static str,
}

/// An answer to `criu check --feature`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is there.
    Present,
    /// The kernel lacks it.
    Absent,
    /// The kernel may have it, but this program does not use it.
    NotInThisBuild,
    /// CRIU has no feature of this name.
    Unknown,
}

type Row = (&'static str, bool, fn() -> bool, &'static str);

const ROWS: &[Row] = &[
    ("checkpoint_restore", true, has_checkpoint_restore, "choosing pids, reading what a process does not show (CONFIG_CHECKPOINT_RESTORE)"),
    ("cap_checkpoint", true, has_capability, "making processes under chosen pids (CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN)"),
    ("kcmp", true, has_kcmp, "telling shared descriptors, memory and tables from copies (CONFIG_KCMP)"),
    ("pidfd_getfd", true, has_pidfd_getfd, "asking the open files of a frozen process themselves"),
    ("get_rseq_conf", true, has_rseq, "restartable sequences, which every program with glibc 2.35 or newer uses"),
    ("children", false, has_children, "finding the processes of a tree fast (CONFIG_PROC_CHILDREN)"),
    ("pagemap_scan", false, has_pagemap_scan, "finding the pages to write fast; the pagemap file is read instead"),
    ("guard_pages", false, has_guard_pages, "guard regions in memory"),
    ("timerfd", false, has_timerfd, "timerfd descriptors"),
    ("memfd_hugetlb", false, has_memfd_hugetlb, "memfd of huge pages"),
    ("seccomp", false, has_seccomp, "seccomp filters"),
    ("userfaultfd", false, has_userfaultfd, "nothing yet: memory on demand is not in this build"),
];

/// Every feature of the kernel that this program uses.
pub fn probe_all() -> Vec<Feature> {
    ROWS.iter().map(|&(name, required, probe, gives)| Feature { name, present: probe(), required, gives }).collect()
}

/// A feature by CRIU's name for it.
pub fn criu_feature(name: &str) -> Answer {
    let answer = match name {
        "userns" => has_namespace("user"),
        "cgroupns" => has_namespace("cgroup"),
        "timens" => has_namespace("time"),
        "mnt_id" => fdinfo_of_null().contains("mnt_id:"),
        // Both are older than the oldest kernel that we run on.
        "fdinfo_lock" | "aio_remap" => is_at_least(5, 15),
        "get_rseq_conf" => has_rseq(),
        "kcmp_epoll" => has_kcmp(),
        "loginuid" => Path::new("/proc/self/loginuid").exists(),
        "memfd_hugetlb" => has_memfd_hugetlb(),
        "move_mount_set_group" => is_at_least(5, 15),
        "ns_pid" => fs::read_to_string("/proc/self/status").is_ok_and(|text| text.contains("\nNSpid:")),
        "pagemap_scan_guard_pages" => has_guard_pages(),
        "seccomp_filters" => has_seccomp(),
        "seccomp_suspend" => has_seccomp() && has_checkpoint_restore(),
        "timerfd" => has_timerfd(),
        "apparmor_stacking" => {
            fs::read_to_string("/sys/kernel/security/apparmor/features/domain/stack").is_ok_and(|text| text.trim() == "yes")
        }
        "autofs" => fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.contains("\tautofs\n")),
        "has_ipt_legacy" => ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join("iptables-legacy-save").exists()),
        // Changes of memory, memory on demand, sockets, devices of the network and the RPC: not here yet.
        "mem_dirty_track" | "uffd" | "uffd-noncoop" | "tcp_half_closed" | "network_lock_nftables" | "nftables"
        | "ipv6_freebind" | "tun" | "tun_ns" | "link_nsid" | "net_diag_raw" | "newifindex" | "sk_unix_file"
        | "sockopt_buf_lock" | "pidfd_store" => return Answer::NotInThisBuild,
        _ => return Answer::Unknown,
    };
    if answer { Answer::Present } else { Answer::Absent }
}

/// The kernel's release, as `uname -r` tells it.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn is_at_least(major: u32, minor: u32) -> bool {
    let release = kernel_release();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0u32));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// This file exists with that option only.
fn has_checkpoint_restore() -> bool {
    Path::new("/proc/sys/kernel/ns_last_pid").exists()
}

fn has_capability() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    const CHECKPOINT_RESTORE: u64 = 1 << 40;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (SYS_ADMIN | CHECKPOINT_RESTORE) != 0)
}

fn has_kcmp() -> bool {
    kcmp::resource(getpid(), getpid(), Shared::Vm).is_ok()
}

fn has_pidfd_getfd() -> bool {
    let Ok(null) = fs::File::open("/dev/null") else { return false };
    pidfd_open(getpid(), PidfdFlags::empty())
        .and_then(|own| pidfd_getfd(own, null.as_raw_fd(), PidfdGetfdFlags::empty()))
        .is_ok()
}

/// PTRACE_GET_RSEQ_CONFIGURATION came with Linux 5.13 (ptrace(2)).
fn has_rseq() -> bool {
    is_at_least(5, 13)
}

fn has_children() -> bool {
    Path::new("/proc/thread-self/children").exists()
}

fn has_pagemap_scan() -> bool {
    use cryonaut_kernel::pagemap::{PageRun, Query, scan};
    let Ok(pagemap) = fs::File::open("/proc/self/pagemap") else { return false };
    scan(pagemap, &Query::populated(0x1000, 0x2000), &mut [PageRun::default()]).is_ok()
}

/// PAGEMAP_SCAN tells guard regions since Linux 6.15 (Documentation/admin-guide/mm/pagemap.rst).
fn has_guard_pages() -> bool {
    is_at_least(6, 15) && has_pagemap_scan()
}

fn has_timerfd() -> bool {
    let Ok(timer) = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC) else {
        return false;
    };
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", timer.as_raw_fd()));
    told.is_ok_and(|text| text.contains("clockid:"))
}

fn has_memfd_hugetlb() -> bool {
    rustix::fs::memfd_create(c"probe", MemfdFlags::HUGETLB | MemfdFlags::CLOEXEC).is_ok()
}

fn has_seccomp() -> bool {
    fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").is_ok_and(|text| text.contains("allow"))
}

fn has_userfaultfd() -> bool {
    ["/dev/userfaultfd", "/proc/sys/vm/unprivileged_userfaultfd"].iter().any(|path| Path::new(path).exists())
}

fn has_namespace(name: &str) -> bool {
    Path::new("/proc/self/ns").join(name).exists()
}

fn fdinfo_of_null() -> String {
    let told = fs::File::open("/dev/null")
        .and_then(|null| fs::read_to_string(format!("/proc/self/fdinfo/{}", null.as_raw_fd())));
    told.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(is_at_least(2, 100));
        assert!(!is_at_least(1000, 0));
    }

    #[test]
    fn a_name_nobody_knows_is_unknown() {
        assert_eq!(criu_feature("warp_drive"), Answer::Unknown);
        assert_eq!(criu_feature("mem_dirty_track"), Answer::NotInThisBuild);
    }

    #[test]
    fn every_feature_says_what_it_gives() {
        for feature in probe_all() {
            assert!(!feature.gives.is_empty(), "{}", feature.name);
        }
    }
}
