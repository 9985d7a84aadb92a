//! What a caller may ask of a checkpoint and of a restore.

use crate::cgroups::CgroupOptions;
use crate::lazy::{Lazy, PageService};
use crate::tcp_policy::TcpPolicies;
use crate::{Custody, Hook, Progress};
use cryonaut_image::Codec;
use cryonaut_page_server::Sender;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What becomes of the workload after a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Afterwards {
    /// It is ended: the image is now the workload.
    #[default]
    Kill,
    /// It goes on.
    LeaveRunning,
    /// It stays stopped (SIGSTOP).
    LeaveStopped,
}

/// By what the packets of connections are dropped while these are away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LockMethod {
    /// By a table of nftables, which needs no program.
    #[default]
    Nftables,
    /// By rules of iptables(8).
    Iptables,
    /// By nothing: the caller sees to that.
    Skip,
}

/// Whether memory is copied while the tree runs, before it is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrecopyMode {
    /// Never.
    #[default]
    Never,
    /// If the tree has enough of it for that to be worth it.
    Auto,
    /// Always.
    Always,
}

/// What [`PrecopyOptions::max_pause`] means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pause {
    /// What to aim at: if it cannot be reached, the tree is frozen for longer.
    #[default]
    Aim,
    /// If it cannot be reached, there is no checkpoint.
    AtMost,
}

/// How memory is copied while the tree runs.
#[derive(Debug, Clone)]
pub struct PrecopyOptions {
    /// Whether it is.
    pub mode: PrecopyMode,
    /// How long the freeze may last.
    pub max_pause: Duration,
    /// Whether it must not last longer.
    pub pause: Pause,
    /// When the tree is frozen in any case.
    pub limit: Duration,
}

impl Default for PrecopyOptions {
    fn default() -> Self {
        PrecopyOptions {
            mode: PrecopyMode::default(),
            max_pause: Duration::from_millis(20),
            pause: Pause::default(),
            limit: Duration::from_secs(60),
        }
    }
}

/// What a caller may ask of a checkpoint.
#[derive(Debug, Clone)]
pub struct CheckpointOptions {
    /// What becomes of the workload.
    pub afterwards: Afterwards,
    /// Carry file locks and leases (otherwise they are refused).
    pub file_locks: bool,
    /// The tree belongs to a terminal session outside of it (`--shell-job`).
    pub shell_job: bool,
    /// Give deleted files that other names still lead to a temporary name
    /// (`--link-remap`).
    pub link_remap: bool,
    /// Largest deleted file to carry, in bytes; `None` for any size.
    pub ghost_limit: Option<u64>,
    /// What becomes of connections of TCP.
    pub tcp: TcpPolicies,
    /// Connections that are not established, or wait to be accepted, are lost (`--skip-in-flight`).
    pub skip_in_flight: bool,
    /// By what their packets are dropped meanwhile (`--network-lock`).
    pub network_lock: LockMethod,
    /// How long to wait for the tree to stop.
    pub timeout: Duration,
    /// What the restoring side will provide: keys such as `tty[rdev:dev]` or `file[mnt:inode]`; `unix[inode]` lets a peer
    /// of a Unix socket be outside of the tree; `mnt[MOUNTPOINT]:NAME`, `mnt[]:ms` and `dev[MAJOR/MINOR]:NAME` are of
    /// mounts.
    pub external: Vec<String>,
    /// Mountpoints: what is mounted there, and upon that, is left out, and the tree comes back without (`--skip-mnt`).
    pub skip_mounts: Vec<String>,
    /// Network namespaces of the tree come back empty, for the caller to fill (`--empty-ns net`).
    pub empty_network: bool,
    /// Peers of Unix sockets may be outside of the tree (`--ext-unix-sk`).
    pub ext_unix_sockets: bool,
    /// The masters of terminals may be outside of the tree (`--orphan-pts-master`).
    pub orphan_terminals: bool,
    /// Takes the pages of memory in the place of files (`--page-server`).
    pub page_server: Option<Arc<Sender>>,
    /// Serves the pages that may come later, which the image then leaves out, until whoever restores has them
    /// (`--lazy-pages`). For a tree that ends with the checkpoint.
    pub lazy_pages: Option<Arc<PageService>>,
    /// Store pages files compressed, which CRIU cannot read.
    pub compress: Option<Codec>,
    /// Wait until the image is on stable storage.
    pub sync: bool,
    /// What is done about cgroups.
    pub cgroups: CgroupOptions,
    /// What the caller does at certain moments.
    pub hook: Hook,
    /// How far the memory is.
    pub progress: Progress,
    /// How memory is copied while the tree runs.
    pub precopy: PrecopyOptions,
    /// An image of the same tree, made before: what it has and has not changed is left to it (`--prev-images-dir`). A
    /// relative path counts from the directory of the image.
    pub parent: Option<PathBuf>,
    /// Writes are noted on, for the next image of the tree, which goes on (`--track-mem`).
    pub keep_tracking: bool,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        CheckpointOptions {
            afterwards: Afterwards::Kill,
            file_locks: false,
            shell_job: false,
            link_remap: false,
            ghost_limit: None,
            tcp: TcpPolicies::default(),
            skip_in_flight: false,
            network_lock: LockMethod::Nftables,
            timeout: Duration::from_secs(10),
            external: Vec::new(),
            skip_mounts: Vec::new(),
            empty_network: false,
            ext_unix_sockets: false,
            orphan_terminals: false,
            page_server: None,
            lazy_pages: None,
            compress: None,
            sync: false,
            cgroups: CgroupOptions::default(),
            hook: Hook::default(),
            progress: Progress::default(),
            precopy: PrecopyOptions::default(),
            parent: None,
            keep_tracking: false,
        }
    }
}

/// What a caller may ask of a restore.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// The terminal of the caller becomes that of the tree (`--shell-job`).
    pub shell_job: bool,
    /// Leave the tree stopped (SIGSTOP) instead of letting it run.
    pub leave_stopped: bool,
    /// The root process becomes a child of the caller's parent.
    pub sibling: bool,
    /// Descriptors of ours that take the place of files of the image: number
    /// and key, such as `pipe:[1234]`.
    pub inherit_fds: Vec<(i32, String)>,
    /// Resources that the caller provides: `KIND[KEY]:VALUE`, such as `mnt[KEY]:/path` or `veth[INSIDE]:OUTSIDE`.
    pub external: Vec<String>,
    /// Terminals whose masters were outside of the tree are made anew, and their masters given to the caller
    /// ([`crate::Moment::OrphanPtsMaster`]).
    pub orphan_terminals: bool,
    /// Network namespaces come back empty, for the caller to fill (`--empty-ns net`).
    pub empty_network: bool,
    /// Namespaces that the root enters instead of its own (`--join-ns`): kind (`net`), and a path or a pid.
    pub join: Vec<(String, String)>,
    /// Restore file locks.
    pub file_locks: bool,
    /// Connections of TCP that are not to be kept come back as ones that have ended.
    pub tcp: TcpPolicies,
    /// By what their packets are dropped meanwhile (`--network-lock`).
    pub network_lock: LockMethod,
    /// Whether memory comes when the tree runs already (`--lazy`, `--lazy-pages`).
    pub lazy: Lazy,
    /// A directory that is the root of the tree's file system.
    pub root: Option<PathBuf>,
    /// What is done about cgroups.
    pub cgroups: CgroupOptions,
    /// What the caller does at certain moments.
    pub hook: Hook,
    /// How far the memory is.
    pub progress: Progress,
    /// Who ends the tree if we end before the caller has been told that it runs; `None`: it is nobody's but its own.
    pub custody: Option<Custody>,
}
