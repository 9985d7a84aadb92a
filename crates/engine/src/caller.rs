//! What a caller hears of a run while it goes on: moments at which it may act, and how much is done.

use crate::{Error, Object, Result};
use cryonaut_kernel::warden::Warden;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A moment of a run: first those of a checkpoint, in their order, then those of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing has been touched yet.
    PreDump,
    /// The tree stands still and has a network namespace of its own: its packets are to be dropped.
    NetworkLock,
    /// Which resources of the tree the restoring side will provide may still be said.
    QueryExtFiles,
    /// The image is complete, the tree is still frozen.
    PostDump,
    /// The tree's own network is to work again.
    NetworkUnlock,
    /// Who fetches the memory may begin to.
    StatusReady,
    /// Nothing has been made yet.
    PreRestore,
    /// The root process is there, in its namespaces, which are empty yet.
    SetupNamespaces,
    /// The namespaces have what they had.
    PostSetupNamespaces,
    /// The tree's terminal had its master outside: here is that of the new one.
    OrphanPtsMaster,
    /// The tree is complete, none of it runs.
    PostRestore,
    /// The last moment before it runs.
    PreResume,
    /// It runs.
    PostResume,
}

impl Moment {
    /// All of them.
    const ALL: [Moment; 13] = [
        Moment::PreDump,
        Moment::NetworkLock,
        Moment::QueryExtFiles,
        Moment::PostDump,
        Moment::NetworkUnlock,
        Moment::StatusReady,
        Moment::PreRestore,
        Moment::SetupNamespaces,
        Moment::PostSetupNamespaces,
        Moment::OrphanPtsMaster,
        Moment::PostRestore,
        Moment::PreResume,
        Moment::PostResume,
    ];

    /// The name that CRIU's action scripts know it by (criu(8), `--action-script`).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Moment::PreDump => "pre-dump",
            Moment::NetworkLock => "network-lock",
            Moment::QueryExtFiles => "query-ext-files",
            Moment::PostDump => "post-dump",
            Moment::NetworkUnlock => "network-unlock",
            Moment::StatusReady => "status-ready",
            Moment::PreRestore => "pre-restore",
            Moment::SetupNamespaces => "setup-namespaces",
            Moment::PostSetupNamespaces => "post-setup-namespaces",
            Moment::OrphanPtsMaster => "orphan-pts-master",
            Moment::PostRestore => "post-restore",
            Moment::PreResume => "pre-resume",
            Moment::PostResume => "post-resume",
        }
    }

    /// That of this name.
    pub(crate) fn named(name: &str) -> Option<Moment> {
        Self::ALL.into_iter().find(|moment| moment.name() == name)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Of whoever cannot know that a restored tree runs unless we tell: until it is [released](Self::release), the tree ends
/// with us, or when this is dropped.
#[derive(Debug, Clone, Default)]
pub struct Custody(Arc<Mutex<Option<Warden>>>);

impl Custody {
    /// Holds these processes.
    ///
    /// # Errors
    /// Of the system, that no process can be had for it.
    pub(crate) fn hold(&self, processes: &[BorrowedFd<'_>]) -> Result<()> {
        let warden = Warden::hire(processes)
            .map_err(|e| Error::kernel(Object::Other("the restored tree".into()), "have somebody watch over it", e))?;
        *self.held() = Some(warden);
        Ok(())
    }

    /// The caller knows: the tree is his. If there is one, the next thing to do is to end ([`Warden::dismiss`]).
    pub fn release(&self) {
        let held = self.held().take();
        held.into_iter().for_each(Warden::dismiss);
    }

    fn held(&self) -> MutexGuard<'_, Option<Warden>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an action is told.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// When it is.
    pub moment: Moment,
    /// The pid of the tree's root, as the caller knows it.
    pub root_pid: i32,
    /// The master of a terminal, at [`Moment::OrphanPtsMaster`].
    pub terminal: Option<BorrowedFd<'a>>,
}

/// What an action may answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Further resources that are to be external, at [`Moment::QueryExtFiles`].
    pub external: Vec<String>,
}

type Action = dyn Fn(&Event<'_>) -> std::result::Result<Answer, String> + Send + Sync;

/// What the caller does at each moment; an action that fails says why the run must not go on.
#[derive(Clone, Default)]
pub struct Hook(Option<Arc<Action>>);

impl Hook {
    /// A hook that does this.
    pub fn new(action: impl Fn(&Event<'_>) -> std::result::Result<Answer, String> + Send + Sync + 'static) -> Self {
        Hook(Some(Arc::new(action)))
    }

    /// Does what this one does, then what the other does.
    #[must_use]
    pub fn and(self, other: Hook) -> Hook {
        let (Some(first), Some(second)) = (&self.0, &other.0) else {
            return if self.0.is_some() { self } else { other };
        };
        let (first, second) = (Arc::clone(first), Arc::clone(second));
        Hook::new(move |event| {
            let mut answer = first(event)?;
            answer.external.extend(second(event)?.external);
            Ok(answer)
        })
    }

    /// Lets the caller act.
    ///
    /// # Errors
    /// [`Error::Caller`] when the run must not go on.
    pub fn call(&self, moment: Moment, root_pid: i32) -> Result<()> {
        self.ask(&Event { moment, root_pid, terminal: None }).map(drop)
    }

    /// Lets the caller act, and answer.
    ///
    /// # Errors
    /// [`Error::Caller`] when the run must not go on.
    pub fn ask(&self, event: &Event<'_>) -> Result<Answer> {
        self.run(event).map_err(|problem| Error::Caller { moment: event.moment, problem })
    }

    /// The same; why the run must not go on.
    pub(crate) fn run(&self, event: &Event<'_>) -> std::result::Result<Answer, String> {
        self.0.as_ref().map_or_else(|| Ok(Answer::default()), |action| action(event))
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Hook(set)" } else { "Hook(none)" })
    }
}

/// A network that the caller has been told to lock. Unless that is done before, he is told to unlock it when this is
/// dropped: a failed checkpoint leaves everything as it was.
#[derive(Debug)]
pub(crate) struct ToldToLock<'h>(Option<(&'h Hook, i32)>);

impl<'h> ToldToLock<'h> {
    /// Tells him, if the tree has a network of its own.
    ///
    /// # Errors
    /// When he does not want that.
    pub fn new(hook: &'h Hook, root_pid: i32, has_own_network: bool) -> Result<Self> {
        if !has_own_network {
            return Ok(ToldToLock(None));
        }
        hook.call(Moment::NetworkLock, root_pid)?;
        Ok(ToldToLock(Some((hook, root_pid))))
    }

    /// Tells him to unlock it.
    ///
    /// # Errors
    /// When he does not want that.
    pub fn unlock(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |(hook, pid)| hook.call(Moment::NetworkUnlock, pid))
    }

    /// It stays locked: the tree has ended.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for ToldToLock<'_> {
    fn drop(&mut self) {
        if let Some((hook, pid)) = self.0.take()
            && let Err(error) = hook.call(Moment::NetworkUnlock, pid)
        {
            tracing::warn!("{error}");
        }
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
