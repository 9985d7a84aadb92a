//! What this kernel can do, for `cryonaut check`, and under CRIU's names for `criu check --feature`. The probes are the
//! kernel crate's.

use cryonaut_kernel::Errno;
use cryonaut_kernel::features::{self, Answer, CAPABILITIES, Id, Need, Report};
use cryonaut_kernel::sys::nf_tables;
use serde::Serialize;
use std::path::Path;

/// One thing that a kernel may be able to do, or a capability of the caller.
#[derive(Debug, Serialize)]
pub struct Feature {
    /// Short name.
    pub name: &'static str,
    /// Whether it is there for this caller.
    pub present: bool,
    /// Whether nothing works without it.
    pub required: bool,
    /// What is lost without it.
    pub lost: &'static str,
    /// What is done instead; empty for nothing.
    pub instead: &'static str,
    /// Why it is not there; empty if it is.
    pub reason: String,
}

/// Everything that is probed.
#[derive(Debug, Serialize)]
pub struct Found {
    /// `uname -r`.
    pub kernel: String,
    /// The kernel's features.
    pub features: Vec<Feature>,
    /// The caller's capabilities.
    pub capabilities: Vec<Feature>,
}

impl Found {
    /// The names of what nothing works without, and is not there.
    pub fn lacking(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.features.iter().filter(|feature| feature.required && !feature.present).map(|feature| feature.name)
    }
}

/// Asks the kernel for everything; some 15 ms.
///
/// # Errors
/// When it does not tell the caller's capabilities.
pub fn probe_all() -> Result<Found, Errno> {
    let report = Report::new()?;
    let features = report.iter().map(|(feature, answer)| Feature {
        name: feature.name,
        present: answer == Answer::Present,
        required: feature.need == Need::Required,
        lost: feature.lost,
        instead: feature.fallback,
        reason: match answer {
            Answer::Present => String::new(),
            Answer::Absent(errno) => format!("not in this kernel ({errno})"),
            Answer::Denied(errno) => format!("not for this caller ({errno})"),
        },
    });
    let capabilities = CAPABILITIES.iter().map(|capability| Feature {
        name: capability.name,
        present: report.may(capability.number),
        required: false,
        lost: capability.wanted_for,
        instead: "",
        reason: if report.may(capability.number) { String::new() } else { "not in the effective set".into() },
    });
    Ok(Found { features: features.collect(), capabilities: capabilities.collect(), kernel: report.release.clone() })
}

/// An answer to `criu check --feature`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CriuAnswer {
    /// It is there.
    Present,
    /// The kernel lacks it, or keeps it from the caller.
    Absent,
    /// The kernel may have it, but this program does not use it.
    NotInThisBuild,
    /// CRIU has no feature of this name.
    Unknown,
}

/// A feature by CRIU's name for it.
pub fn criu_feature(name: &str) -> CriuAnswer {
    let has = |id| features::probe(id) == Answer::Present;
    let answer = match name {
        "userns" => has(Id::UserNamespace),
        "timens" => has(Id::TimeNamespace),
        "cgroupns" => Path::new("/proc/self/ns/cgroup").exists(),
        "mnt_id" => has(Id::FdinfoMntId),
        "fdinfo_lock" => has(Id::FdinfoLock),
        "get_rseq_conf" => has(Id::PtraceRseq),
        "kcmp_epoll" => has(Id::KcmpEpoll),
        "loginuid" => has(Id::Loginuid),
        "memfd_hugetlb" => has(Id::MemfdHugetlb),
        "move_mount_set_group" => has(Id::MoveMountSetGroup),
        "pagemap_scan_guard_pages" => has(Id::PagemapScanGuard),
        "seccomp_filters" => has(Id::SeccompGetFilter),
        "seccomp_suspend" => has(Id::SuspendSeccomp),
        "timerfd" => has(Id::TimerfdTicks),
        "ns_pid" => file_contains("/proc/self/status", "\nNSpid:"),
        "apparmor_stacking" => file_contains("/sys/kernel/security/apparmor/features/domain/stack", "yes"),
        "autofs" => file_contains("/proc/filesystems", "\tautofs\n"),
        "has_ipt_legacy" => Path::new("/usr/sbin/iptables-legacy-save").exists(),
        "nftables" | "network_lock_nftables" => nf_tables::has_table("cryonaut").is_ok(),
        "tun" | "tun_ns" => file_contains("/proc/misc", " tun\n"),
        // In every kernel that this program runs on.
        "aio_remap" | "tcp_half_closed" | "ipv6_freebind" | "link_nsid" | "net_diag_raw" | "newifindex"
        | "sk_unix_file" | "sockopt_buf_lock" => true,
        "mem_dirty_track" => has(Id::UffdWpAsync) && has(Id::PagemapScan) || has(Id::SoftDirty),
        "uffd" => has(Id::Uffd),
        "uffd-noncoop" => has(Id::UffdEvents),
        // Not here yet, whatever the kernel can.
        "pidfd_store" => return CriuAnswer::NotInThisBuild,
        _ => return CriuAnswer::Unknown,
    };
    if answer { CriuAnswer::Present } else { CriuAnswer::Absent }
}

fn file_contains(path: &str, what: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.contains(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_nobody_knows_is_unknown() {
        assert_eq!(criu_feature("warp_drive"), CriuAnswer::Unknown);
        assert_eq!(criu_feature("pidfd_store"), CriuAnswer::NotInThisBuild);
    }

    #[test]
    fn what_is_not_there_says_why() {
        let found = probe_all().expect("the kernel tells our capabilities");
        for feature in found.features.iter().chain(&found.capabilities) {
            assert_eq!(feature.present, feature.reason.is_empty(), "{}", feature.name);
            assert!(!feature.lost.is_empty(), "{}", feature.name);
        }
    }
}
