//! What can go wrong between the brain and a hand.

use rustix::io::Errno;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, with the process and what was tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A ptrace request failed.
    #[error("cannot {op} thread {tid}: {errno}")]
    Ptrace {
        /// The thread.
        tid: i32,
        /// What was tried, as a verb.
        op: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Reading or writing the target's memory failed.
    #[error("cannot {op} the memory of process {pid} at {at:#x}: {errno}")]
    Memory {
        /// The process.
        pid: i32,
        /// The address.
        at: u64,
        /// `read` or `write`.
        op: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A system call that ran inside the target failed.
    #[error("{call} inside process {pid}: {errno}")]
    Call {
        /// The process.
        pid: i32,
        /// The call's name.
        call: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The scratch mapping could not be made or removed.
    #[error("cannot map working memory into process {pid}: {errno}")]
    Scratch {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Some batch does not fit.
    #[error("a {what} for process {pid} is larger than its working memory")]
    TooLarge {
        /// The process.
        pid: i32,
        /// What does not fit.
        what: &'static str,
    },
    /// The thread ended while it was being worked on.
    #[error("thread {tid} ended ({how}) while it was held")]
    Died {
        /// The thread.
        tid: i32,
        /// Exit status or signal.
        how: String,
    },
    /// The thread did not stop in time.
    #[error("thread {tid} did not stop within {seconds} s: it is in state {state} in {place}; {}", wait_hint(.place))]
    WontStop {
        /// The thread.
        tid: i32,
        /// How long was waited.
        seconds: u64,
        /// State of /proc/PID/stat.
        state: String,
        /// Kernel function it waits in, if known.
        place: String,
    },
    /// Nowhere to enter the target from.
    #[error("process {pid} has no {what} from which it could be entered")]
    NoDoor {
        /// The process.
        pid: i32,
        /// What is missing.
        what: &'static str,
    },
    /// A process could not be created with its pid.
    #[error("cannot create process {pid}: {errno}{}", birth_hint(*.errno))]
    Birth {
        /// The pid asked for.
        pid: i32,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A call on our own side failed.
    #[error("cannot {what}: {errno}")]
    Own {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
}

fn birth_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EXIST => " (the pid is taken; wait until it is free, or restore into a pid namespace of its own)",
        Errno::PERM => " (choosing a pid needs CAP_CHECKPOINT_RESTORE)",
        _ => "",
    }
}

fn wait_hint(place: &str) -> &'static str {
    match place {
        "kernel_clone" | "wait_for_vfork_done" => {
            "it waits for the child of a vfork in progress: try again when that has called execve"
        }
        _ => "an uninterruptible wait must end first",
    }
}
