//! What a caller hears of a run while it goes on: moments at which it may act, and how much is done.

use crate::{Error, Result};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A moment of a run. The first two are of a checkpoint, the others of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing has been touched yet.
    PreDump,
    /// The image is complete, the tree is still frozen.
    PostDump,
    /// Nothing has been made yet.
    PreRestore,
    /// The tree is complete, none of it runs.
    PostRestore,
    /// The last moment before it runs.
    PreResume,
    /// It runs.
    PostResume,
}

impl Moment {
    /// The name that CRIU's action scripts know it by (criu(8), `--action-script`).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Moment::PreDump => "pre-dump",
            Moment::PostDump => "post-dump",
            Moment::PreRestore => "pre-restore",
            Moment::PostRestore => "post-restore",
            Moment::PreResume => "pre-resume",
            Moment::PostResume => "post-resume",
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

type Action = dyn Fn(Moment, i32) -> std::result::Result<(), String> + Send + Sync;

/// What the caller does at each moment: given the moment and the root's pid, it says why the run must not go on.
#[derive(Clone, Default)]
pub struct Hook(Option<Arc<Action>>);

impl Hook {
    /// A hook that does this.
    pub fn new(action: impl Fn(Moment, i32) -> std::result::Result<(), String> + Send + Sync + 'static) -> Self {
        Hook(Some(Arc::new(action)))
    }

    /// Lets the caller act.
    ///
    /// # Errors
    /// [`Error::Caller`] when the run must not go on.
    pub fn call(&self, moment: Moment, root_pid: i32) -> Result<()> {
        let Some(action) = &self.0 else { return Ok(()) };
        action(moment, root_pid).map_err(|problem| Error::Caller { moment, problem })
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Hook(set)" } else { "Hook(none)" })
    }
}

/// How many bytes of memory are done, and of how many. Shared: the caller reads it from another thread.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// There are so many bytes more to do.
    pub fn expect(&self, bytes: u64) {
        self.0.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes done and bytes in all, as far as known.
    #[must_use]
    pub fn get(&self) -> (u64, u64) {
        (self.0.done.load(Ordering::Relaxed), self.0.total.load(Ordering::Relaxed))
    }
}
