//! The processes that belong to one test, found by a mark in their environment, and their end.
//!
//! The mark survives `fork`, `exec`, `setsid` and reparenting, and a checkpoint with its restore; a process that belongs
//! to somebody else cannot carry it, since it holds the name of the test's own temporary directory.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

use crate::fingerprint::speaker;

/// The environment variable that every process of a test carries.
pub(crate) const MARK: &str = "CRYONAUT_WORKLOAD";

/// The processes whose environment names one directory.
#[derive(Debug, Clone)]
pub struct Family {
    mark: Vec<u8>,
}

impl Family {
    /// The family of the test that works in `directory`.
    pub fn of(directory: &Path) -> Self {
        let mut mark = format!("{MARK}={}", directory.display()).into_bytes();
        mark.push(0);
        Self { mark }
    }

    /// The living members; zombies have no environment and are not among them.
    pub fn members(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter_map(Pid::from_raw).filter(|pid| self.has_member(*pid)).collect()
    }

    /// The members and all that descend from them: they may be zombies, or have written a title over their environment.
    pub(crate) fn members_and_zombies(&self) -> Vec<Pid> {
        let mut all = self.members();
        let mut seen = 0;
        while let Some(parent) = all.get(seen) {
            seen += 1;
            let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero())) else {
                continue;
            };
            for task in tasks.flatten() {
                let listed = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                for child in listed.split_whitespace().filter_map(parse_pid) {
                    if !all.contains(&child) {
                        all.push(child);
                    }
                }
            }
        }
        all.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
        all.dedup();
        all
    }

    fn has_member(&self, pid: Pid) -> bool {
        let environment = |pid: Pid| fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()));
        let mut text = environment(pid).unwrap_or_default();
        if text.is_empty() {
            // The first thread may have ended before others, which have it still.
            text = environment(speaker(pid)).unwrap_or_default();
        }
        text.windows(self.mark.len()).any(|window| window == self.mark)
    }

    /// Kills every member, also those that are being forked meanwhile, and collects those that have come to us.
    pub fn kill(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut zombies = Vec::new();
        loop {
            let members = self.members();
            if members.is_empty() || Instant::now() > deadline {
                break;
            }
            let all = self.members_and_zombies();
            // Who is known by descent alone is pinned before their ancestors end.
            let strangers = all.iter().filter(|pid| !members.contains(pid));
            let handles: Vec<_> = strangers.filter_map(|pid| pidfd_open(*pid, PidfdFlags::empty()).ok()).collect();
            for pid in members {
                self.kill_one(pid);
            }
            for handle in handles {
                // Fails only if it has ended by itself.
                let _ = pidfd_send_signal(&handle, Signal::KILL);
            }
            zombies.extend(all);
            sleep(Duration::from_millis(2));
        }
        zombies.into_iter().for_each(collect);
    }

    /// The descriptor pins the process: if the pid was reused since it was listed, the second look sees a stranger.
    fn kill_one(&self, pid: Pid) {
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        if self.has_member(pid) {
            // Fails only if it has ended by itself.
            let _ = pidfd_send_signal(&handle, Signal::KILL);
        }
    }
}

fn parse_pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}

/// Whatever is in the session of `leader`, zombies included.
pub(crate) fn session_members(leader: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let session = leader.as_raw_nonzero().to_string();
    let in_session = |pid: &Pid| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        // The fields behind the name: state, parent, group, session.
        let stat = stat.unwrap_or_default();
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        fields.split(' ').nth(3) == Some(session.as_str())
    };
    let pids = entries.filter_map(|entry| parse_pid(entry.ok()?.file_name().to_str()?));
    pids.filter(in_session).collect()
}

/// Makes this process the parent of what its descendants leave behind, restored trees among them: pid 1 of the machine
/// may take its time to collect the dead, and a pid is free only then. Such children are collected one by one with
/// [`collect`]; nothing here may wait for just any child.
pub(crate) fn adopt_orphans() {
    // Supported since Linux 3.4; without it everything works, but slowly.
    let _ = rustix::process::set_child_subreaper(Pid::from_raw(1));
}

/// Collects a child of ours that has ended; anything else is left alone.
pub(crate) fn collect(pid: Pid) {
    let _ = waitpid(Some(pid), WaitOptions::NOHANG);
}

/// Waits until none of `pids` exists, not even as a zombie. Returns those that still do after `limit`.
pub(crate) fn wait_gone(pids: &[Pid], limit: Duration) -> Vec<Pid> {
    let deadline = Instant::now() + limit;
    loop {
        pids.iter().copied().for_each(collect);
        let left: Vec<Pid> = pids.iter().copied().filter(|pid| exists(*pid)).collect();
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        sleep(Duration::from_millis(2));
    }
}

fn exists(pid: Pid) -> bool {
    rustix::process::test_kill_process(pid) != Err(Errno::SRCH)
}
