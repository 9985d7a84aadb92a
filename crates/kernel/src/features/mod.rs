//! What this kernel can do, and what the caller may do with it: each feature is probed by using it, never by the
//! kernel's version (distributions move features between versions, sandboxes take them away).
//!
//! The probes leave nothing behind: what they make, they make in memory of their own or in children of their own, which
//! they reap. (Only [`Id::Loginuid`] shows: where auditing is on, the kernel records that a login uid was set.) All of
//! them together take some 15 ms, a third of it for a user namespace; most of them a few microseconds, see [`probe`].
//! Keeping the answer is the caller's affair: it holds for one boot ([`boot_id`]), one set of capabilities and one set
//! of namespaces.

mod capabilities;
mod files;
mod memory;
mod mounts;
mod tasks;

use rustix::io::Errno;

pub use capabilities::{CAPABILITIES, Capability, effective_capabilities};

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    Present,
    /// This kernel does not have it.
    Absent(Errno),
    /// The kernel may have it, but not for this caller: a capability, a sysctl or a seccomp filter stands before it.
    Denied(Errno),
}

impl From<Result<(), Errno>> for Answer {
    fn from(result: Result<(), Errno>) -> Self {
        match result {
            Ok(()) => Self::Present,
            Err(errno @ (Errno::PERM | Errno::ACCESS)) => Self::Denied(errno),
            Err(errno) => Self::Absent(errno),
        }
    }
}

/// How much hangs on a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing goes without it.
    Required,
    /// Some kind of object cannot be carried without it.
    Carries,
    /// Things are slower, or a fallback does the work.
    Betters,
}

/// A thing that kernels have or lack.
#[derive(Debug)]
pub struct Feature {
    /// Names it in code and in output; stable.
    pub id: Id,
    pub name: &'static str,
    pub need: Need,
    /// What is lost where it is missing.
    pub lost: &'static str,
    /// What is done instead; empty for nothing.
    pub fallback: &'static str,
    probe: fn() -> Result<(), Errno>,
}

impl Feature {
    /// Tries it.
    pub fn probe(&self) -> Answer {
        (self.probe)().into()
    }
}

macro_rules! features {
    ($($id:ident $name:literal $need:ident, $lost:literal, $fallback:literal, $probe:path;)*) => {
        /// Every feature that is probed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Id { $($id),* }

        /// The features, by area.
        pub static FEATURES: &[Feature] = &[$(Feature {
            id: Id::$id,
            name: $name,
            need: Need::$need,
            lost: $lost,
            fallback: $fallback,
            probe: $probe,
        }),*];
    };
}

features! {
    // Reading and making processes.
    Clone3SetTid "clone3-set-tid" Required,
        "processes cannot get their pids back",
        "", tasks::clone3_set_tid;
    NsLastPid "ns-last-pid" Betters,
        "a second way to choose pids",
        "clone3 with set_tid", tasks::ns_last_pid;
    PtraceSeize "ptrace-seize" Required,
        "no process can be frozen or rebuilt",
        "", tasks::ptrace_seize;
    PidfdGetfd "pidfd-getfd" Required,
        "open files cannot be looked into",
        "", tasks::pidfd_getfd;
    PidfdThread "pidfd-thread" Carries,
        "processes whose first thread has ended while others go on",
        "they are refused", tasks::pidfd_thread;
    Kcmp "kcmp" Required,
        "what processes share cannot be told from what they have twice",
        "", tasks::kcmp;
    KcmpEpoll "kcmp-epoll" Carries,
        "epolls that watch a closed or reused number",
        "targets are taken by their number", tasks::kcmp_epoll;
    ProcessVm "process-vm-readv" Betters,
        "the fastest way to read a few bytes of a process",
        "/proc/PID/mem", tasks::process_vm;
    TaskChildren "task-children" Betters,
        "the tree is found more slowly",
        "parents of all processes", tasks::children;
    PtraceRseq "ptrace-rseq" Carries,
        "restartable sequences (glibc 2.35 and later use them)",
        "", tasks::ptrace_rseq;
    PtraceSud "ptrace-syscall-user-dispatch" Carries,
        "syscall user dispatch (Wine)",
        "", tasks::ptrace_sud;
    SeccompGetFilter "seccomp-get-filter" Carries,
        "processes with seccomp filters",
        "", tasks::seccomp_get_filter;
    SuspendSeccomp "seccomp-suspend" Carries,
        "processes with seccomp filters",
        "", tasks::suspend_seccomp;
    SetMmMap "prctl-set-mm-map" Required,
        "heap, arguments and environment cannot be put back where they were",
        "", tasks::set_mm_map;
    PosixTimers "proc-timers" Carries,
        "POSIX timers",
        "", tasks::posix_timers;
    TimerOverruns "timer-overruns" Carries,
        "expirations of POSIX timers whose signals wait, which are counted by a BPF program",
        "they are lost", tasks::timer_overruns;
    RestartBlock "restart-block" Carries,
        "how long a sleep, poll or futex wait had lasted that was continued once already, as a BPF program reads it",
        "it may last longer, by as much", tasks::restart_block;
    TimerRestoreIds "timer-restore-ids" Betters,
        "timers with high ids take long to restore",
        "timers are made and deleted up to the id", tasks::timer_restore_ids;
    Loginuid "loginuid-writable" Carries,
        "audit login uid",
        "it is left unset", tasks::loginuid;
    TimeNamespace "time-namespace" Carries,
        "clocks that go on where they stood, on another host",
        "clocks jump", tasks::time_namespace;
    UserNamespace "user-namespace" Carries,
        "processes in user namespaces",
        "", tasks::user_namespace;
    PidfdGetInfo "pidfd-get-info" Betters,
        "the exit status of reaped processes",
        "", tasks::pidfd_get_info;

    // Memory.
    PagemapScan "pagemap-scan" Betters,
        "finding the pages of sparse mappings takes longer",
        "/proc/PID/pagemap", memory::pagemap_scan;
    ProcmapQuery "procmap-query" Betters,
        "asking for one mapping without reading all",
        "/proc/PID/maps", memory::procmap_query;
    MapFiles "map-files" Carries,
        "deleted files that are only mapped",
        "", memory::map_files;
    SoftDirty "soft-dirty" Betters,
        "incremental dumps by soft-dirty",
        "userfaultfd in asynchronous mode", memory::soft_dirty;
    Uffd "userfaultfd" Betters,
        "memory filled on demand; write tracking",
        "memory is copied before the start", memory::uffd;
    UffdWp "userfaultfd-wp" Betters,
        "write tracking by userfaultfd",
        "soft-dirty", memory::uffd_wp;
    UffdWpUnpopulated "userfaultfd-wp-unpopulated" Betters,
        "never touched pages are told as written",
        "pages without contents are left out", memory::uffd_wp_unpopulated;
    UffdWpShmem "userfaultfd-wp-shmem" Betters,
        "write tracking of shared memory",
        "shared memory is copied while frozen", memory::uffd_wp_shmem;
    UffdWpAsync "userfaultfd-wp-async" Betters,
        "copying memory while the workload runs",
        "soft-dirty, else memory is copied while frozen", memory::uffd_wp_async;
    UffdMissingShmem "userfaultfd-missing-shmem" Betters,
        "filling shared memory on demand",
        "it is copied before the start", memory::uffd_missing_shmem;
    UffdEvents "userfaultfd-events" Betters,
        "filling memory on demand of a process that forks or unmaps",
        "memory is copied before the start", memory::uffd_events;
    UffdMove "userfaultfd-move" Betters,
        "filling memory on demand without a copy",
        "UFFDIO_COPY", memory::uffd_move;
    GuardRegions "guard-regions" Carries,
        "processes that come from a kernel where they had guard regions",
        "", memory::guard_regions;
    PagemapScanGuard "pagemap-scan-guard" Betters,
        "finding guard regions takes longer",
        "/proc/PID/pagemap", memory::pagemap_scan_guard;
    PagemapGuard "pagemap-guard" Carries,
        "guard regions",
        "", memory::pagemap_guard;
    MemfdHugetlb "memfd-hugetlb" Carries,
        "memfds on huge pages",
        "", memory::memfd_hugetlb;

    // Open files.
    FdinfoMntId "fdinfo-mnt-id" Required,
        "the mount of an open file cannot be told",
        "", files::fdinfo_mnt_id;
    FdinfoIno "fdinfo-ino" Betters,
        "one call more for each open file",
        "fstat", files::fdinfo_ino;
    FdinfoLock "fdinfo-lock" Carries,
        "file locks",
        "", files::fdinfo_lock;
    EventfdSemaphore "fdinfo-eventfd-semaphore" Carries,
        "semaphore mode of eventfds",
        "one is read to find out", files::eventfd_semaphore;
    TimerfdTicks "timerfd-ticks" Carries,
        "expirations of timerfds that were not read yet",
        "they are lost", files::timerfd_ticks;
    OwnerUids "fcntl-owner-uids" Carries,
        "by whose right a file's signals are sent",
        "", files::owner_uids;
    Fanotify "fanotify" Carries,
        "fanotify groups",
        "", files::fanotify;
    FileHandles "open-by-handle" Carries,
        "inotify and fanotify on files whose path is not found",
        "the path is searched for", files::file_handles;
    BpfMaps "bpf-maps" Carries,
        "BPF maps",
        "", files::bpf_maps;
    IoUring "io-uring-inside" Carries,
        "io_uring instances, which are looked into by a BPF program",
        "", files::io_uring;
    SockBufLock "so-buf-lock" Carries,
        "whether a socket's buffer sizes were set by the program",
        "they count as set", files::sock_buf_lock;
    TcpRepair "tcp-repair" Carries,
        "TCP connections",
        "", files::tcp_repair;
    TcpRepairHalfClosed "tcp-repair-half-closed" Carries,
        "TCP connections closed on one side",
        "", files::tcp_half_closed;

    // Mounts.
    MountApi "mount-api" Carries,
        "mount namespaces",
        "mount(2) does most", mounts::open_tree;
    MountSetattr "mount-setattr" Betters,
        "changing the flags of a mount before it is seen",
        "mount(2) with MS_REMOUNT", mounts::mount_setattr;
    MoveMountSetGroup "move-mount-set-group" Carries,
        "mount namespaces with shared mounts",
        "", mounts::set_group;
    ListMount "listmount" Betters,
        "listing mounts without parsing text",
        "/proc/PID/mountinfo", mounts::list_mount;
    StatMount "statmount" Betters,
        "asking for one mount without reading all",
        "/proc/PID/mountinfo", mounts::stat_mount;
}

/// Tries one feature.
pub fn probe(id: Id) -> Answer {
    FEATURES[id as usize].probe()
}

/// The answers to all probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `uname -r`.
    pub release: String,
    /// One for each of [`FEATURES`], in its order.
    pub answers: Vec<Answer>,
    /// Bit n for capability n.
    pub capabilities: u64,
}

impl Report {
    /// Probes everything.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            release: release(),
            answers: FEATURES.iter().map(Feature::probe).collect(),
            capabilities: effective_capabilities()?,
        })
    }

    pub fn answer(&self, id: Id) -> Answer {
        self.answers[id as usize]
    }

    pub fn has(&self, id: Id) -> bool {
        self.answer(id) == Answer::Present
    }

    /// The features with their answers.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Feature, Answer)> {
        FEATURES.iter().zip(self.answers.iter().copied())
    }

    /// Whether the caller has capability `number` in its effective set.
    pub fn may(&self, number: u32) -> bool {
        self.capabilities & (1 << number) != 0
    }
}

/// `uname -r`.
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The kernel's name for this boot: 36 characters, new with each.
pub fn boot_id() -> Result<String, Errno> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim_end().to_owned()).map_err(errno)
}

/// The errno of a failed call of std.
fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// The errno of a failed read of /proc; a file that is not understood counts as one that is not there.
fn proc_errno(error: crate::proc::Error) -> Errno {
    error.errno().unwrap_or(Errno::NOENT)
}

/// Turns "the kernel did it, but the answer is not there" into an errno.
fn present(found: bool) -> Result<(), Errno> {
    found.then_some(()).ok_or(Errno::NOTSUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_answers_and_leaves_nothing_behind() {
        let me = crate::proc::Task::current().unwrap();
        let report = Report::new().unwrap();
        for (index, (feature, answer)) in report.iter().enumerate() {
            assert_eq!(feature.id as usize, index);
            assert_eq!(feature.probe(), answer, "{} does not answer the same twice", feature.name);
        }
        let mine = me.children(rustix::thread::gettid()).unwrap();
        assert!(mine.is_empty(), "{mine:?}");
        assert_eq!(boot_id().unwrap().len(), 36);
    }

    #[test]
    fn refusals_for_want_of_right_are_told_apart() {
        assert_eq!(Answer::from(Err(Errno::PERM)), Answer::Denied(Errno::PERM));
        assert_eq!(Answer::from(Err(Errno::NOSYS)), Answer::Absent(Errno::NOSYS));
        assert_eq!(Answer::from(Ok(())), Answer::Present);
    }

    #[test]
    fn names_are_unique_and_losses_told() {
        assert!(FEATURES.iter().all(|feature| !feature.lost.is_empty()));
        let names: std::collections::HashSet<_> = FEATURES.iter().map(|feature| feature.name).collect();
        assert_eq!(names.len(), FEATURES.len());
    }
}
