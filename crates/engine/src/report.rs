//! What a checkpoint or a restore did, in numbers.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Of a checkpoint. Times in microseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// The root process.
    pub root_pid: i32,
    /// Processes, zombies included.
    pub processes: usize,
    /// Threads.
    pub threads: usize,
    /// Pages looked at, private and shared.
    pub pages_scanned: u64,
    /// Private pages in the image.
    pub pages_written: u64,
    /// Private pages that are left to the image before.
    #[serde(default)]
    pub pages_in_parent: u64,
    /// Private pages that were left to whoever restores.
    #[serde(default)]
    pub pages_lazy: u64,
    /// Shared pages looked at.
    pub shared_pages_scanned: u64,
    /// Shared pages in the image.
    pub shared_pages_written: u64,
    /// From the first attempt to stop until everything stood still.
    pub freeze_us: u64,
    /// From then until the tree went on or was told to end, as CRIU counts it.
    pub frozen_us: u64,
    /// Of it, entering the processes.
    pub enter_us: u64,
    /// Of it, threads, attributes and memory.
    pub memory_us: u64,
    /// Making the image visible, within the frozen time or behind it.
    pub commit_us: u64,
    /// Letting the tree go or ending it.
    pub end_us: u64,
    /// The whole call.
    pub total_us: u64,
    /// Of memory that was copied while the tree ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precopy: Option<PrecopyReport>,
}

/// Of a precopy. Times in microseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PrecopyReport {
    /// How long the tree stood still each time to have its writes tracked: at the beginning, and when it had got much
    /// new memory.
    pub stops_us: Vec<u64>,
    /// The rounds.
    pub rounds: Vec<RoundReport>,
    /// How many pages the tree wrote to in a second, as the last round saw it.
    pub written_pages_per_second: u64,
    /// How long the freeze was expected to last.
    pub expected_pause_us: u64,
    /// Large processes whose memory was copied in the freeze after all.
    pub untracked: Vec<Untracked>,
}

/// Of a round of a precopy.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RoundReport {
    /// Pages that were copied.
    pub pages: u64,
    /// How long it took.
    pub us: u64,
}

/// A process whose writes were not tracked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Untracked {
    /// The process.
    pub pid: i32,
    /// Why not.
    pub reason: String,
}

/// Of a restore. Times in microseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The root process.
    pub root_pid: i32,
    /// Processes, zombies included.
    pub processes: usize,
    /// Threads.
    pub threads: usize,
    /// Private pages filled from the image; not those kept from a parent.
    pub pages_restored: u64,
    /// Private pages that come when the tree runs.
    #[serde(default)]
    pub pages_lazy: u64,
    /// Creating the processes.
    pub forking_us: u64,
    /// The whole call.
    pub total_us: u64,
}

/// Whole microseconds.
pub(crate) fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
