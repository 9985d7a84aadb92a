//! Freezing a process tree, and letting it go.
//!
//! A process is frozen thread by thread with ptrace; new threads and children
//! that appear meanwhile are found by looking again until nothing new is
//! there. [`Frozen`] lets everything go when it is dropped, whatever happened
//! in between.

mod calls;
mod descriptors;
mod glance;
mod objects;
mod process;

pub use process::{Ended, Process, Thread};

use crate::attributes::extras::Restart;
use crate::attributes::{filter, restart, thread};
use crate::cgroups::Thawed;
use crate::memory::KnownFlags;
use crate::namespaces::{inner, pid};
use crate::{Error, Object, Result, parallel};
use calls::{CALLS_AT_ONCE, call_but_vfork, calls_of, glance_at, is_kernels, is_programs};
use cryonaut_kernel::proc::status::{Seccomp, Status};
use cryonaut_kernel::proc::{Task, stat::State};
use cryonaut_kernel::sys::pidfd::release_memory;
use cryonaut_kernel::sys::signal::tgkill;
use cryonaut_kernel::sys::thread_calls::Glance;
use cryonaut_kernel::{Errno, Pid};
use cryonaut_puppet::stops;
use cryonaut_puppet::{DoorMaps, Verdict, trace};
use descriptors::KnownDescriptors;
pub use glance::MANY_PROCESSES;
use glance::Seen;
use objects::KnownObjects;
use process::Space;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How long the end of the init of a pid namespace is waited for, once everybody in it that is the tree's has ended: then
/// it has no memory any more, and waits for whoever is to take the ends of those that had a parent outside.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// How long a thread may take to stop that is to be let go.
const STOPS_WITHIN: Duration = Duration::from_secs(1);

/// Kernel pid from the number that records use.
pub fn pid_of(number: i32) -> Result<Pid> {
    Pid::from_raw(number)
        .filter(|_| number > 0)
        .ok_or_else(|| Error::kernel(Object::Process(number), "find it", Errno::SRCH))
}

/// A frozen tree, root first, parents before children.
#[derive(Debug)]
pub struct Frozen {
    /// The processes.
    pub processes: Vec<Process>,
    /// Process and thread, in the order in which they were taken.
    seized: Vec<(i32, i32)>,
    /// Threads that are held, but have not come to a stop when their process is looked into; in which calls they slept.
    ahead: BTreeMap<i32, Option<Restart>>,
    doors: DoorMaps,
    verdict: Option<Verdict>,
}

/// Gets ready what processes with many threads or much memory want, or many processes, before they stand still.
pub fn prepare(root: i32) {
    let Some((pid, task)) = pid_of(root).ok().and_then(|pid| Some((pid, Task::open(pid).ok()?))) else { return };
    thread::prepare(task.thread_count().unwrap_or_default() as usize);
    // To ask all threads takes longer than it could save.
    let children = task.children(pid).map_or(0, |children| children.len());
    glance::prepare(children);
    KnownFlags::prepare(&task, children);
}

impl Frozen {
    /// Freezes `root` and everything below it. Waits at most `limit` for each
    /// thread. A closed freezer in which the tree stands is opened as soon as
    /// all of it is held.
    pub fn freeze(root: i32, limit: Duration, freezer: Option<&Thawed>) -> Result<Frozen> {
        let mut frozen = Frozen {
            processes: Vec::new(),
            seized: Vec::new(),
            ahead: BTreeMap::new(),
            doors: DoorMaps::default(),
            verdict: None,
        };
        if let Some(freezer) = freezer {
            frozen.hold_standing(root)?;
            freezer.open()?;
        }
        let mut held = vec![frozen.take((root, 0), open_task(root)?, limit)?];
        let (mut at, mut seen) = (0, Seen::default());
        // Until a whole pass over the tree finds no child that is not held.
        loop {
            let before = held.len();
            while at < held.len() {
                let children = children_of(&mut held, at, &mut seen)?;
                at = held.len();
                let is_new = |(child, _): &(i32, i32)| !held.iter().any(|p| p.pid == *child);
                let new: Vec<(i32, i32)> = children.into_iter().filter(is_new).collect();
                for (child, task) in frozen.hold_first(new)? {
                    held.push(frozen.take(child, task, limit)?);
                }
            }
            if held.len() == before {
                break;
            }
            at = 0;
        }
        let known = match seen.last(held.len()) {
            Some(seen) => (KnownObjects::of(&held, &seen)?, KnownDescriptors::of(&held, seen)),
            None => Default::default(),
        };
        let survey = |held: Held| held.survey(&known);
        frozen.processes = parallel::map(held, survey).into_iter().collect::<Result<_>>()?;
        frozen.processes.sort_by_key(|p| p.pid);
        frozen.order();
        Ok(frozen)
    }

    /// Begins to hold a tree that stands in a freezer, where nobody comes to a stop.
    fn hold_standing(&mut self, root: i32) -> Result<()> {
        let mut pids = vec![root];
        while let Some(pid) = pids.pop() {
            let Ok(task) = Task::open(pid_of(pid)?) else { continue };
            for tid in task.tids()? {
                let number = tid.as_raw_nonzero().get();
                let call = task.thread(tid).syscall().ok();
                let asleep = restart::asleep(&task, number, call);
                if stops::seize(number, stops::VISIT).map_err(|e| explain_seize(pid, number, &task, e))? {
                    self.seized.push((pid, number));
                    self.ahead.insert(number, asleep);
                }
                pids.extend(
                    task.children(tid).unwrap_or_default().into_iter().map(|child| child.as_raw_nonzero().get()),
                );
            }
        }
        Ok(())
    }

    /// Begins to hold the leaders of processes, each with its parent: while one is looked into, the others come to a stop.
    fn hold_first(&mut self, processes: Vec<(i32, i32)>) -> Result<Vec<((i32, i32), Task)>> {
        let mut all = Vec::with_capacity(processes.len());
        for (pid, parent) in processes {
            let task = open_task(pid)?;
            let call = task.thread(pid_of(pid)?).syscall().ok();
            // One that stood in a freezer is held; who is in vfork may have to be waited for.
            if !self.ahead.contains_key(&pid) && !call.is_some_and(|call| calls::is_vfork(pid, call)) {
                let asleep = restart::asleep(&task, pid, call);
                if stops::seize(pid, stops::VISIT).map_err(|e| explain_seize(pid, pid, &task, e))? {
                    self.seized.push((pid, pid));
                    self.ahead.insert(pid, asleep);
                }
            }
            all.push(((pid, parent), task));
        }
        Ok(all)
    }

    /// Holds all threads of one process, which is given with its parent.
    fn take(&mut self, (pid, ppid): (i32, i32), task: Task, limit: Duration) -> Result<Held> {
        let mut threads: Vec<Thread> = Vec::new();
        let mut not_suspended = None;
        // Most processes have one thread, which needs no looking for.
        let (mut tids, mut listed, mut seen, mut rounds) = (vec![pid], false, None, 0);
        // Threads may create threads until all are held.
        loop {
            let before = threads.len();
            for (tid, asleep) in self.seize_others(pid, &task, (&tids, seen.take()), &threads, limit)? {
                if let Some(stopped) = stops::wait_stopped(tid, limit)? {
                    threads.push(Thread::read(tid, stopped, asleep)?);
                    let suspended = trace::set_options(tid, stops::VISIT | stops::SUSPEND_SECCOMP);
                    not_suspended = not_suspended.or(suspended.err());
                } else {
                    self.seized.retain(|&(_, t)| t != tid);
                }
            }
            let count = task.thread_count().map_err(|e| gone(pid, &e))? as usize;
            if listed && threads.len() == before || threads.len() == count {
                break;
            }
            thread::prepare(count);
            rounds += 1;
            seen = if rounds > 1 { None } else { glance_at(&task, pid, count) };
            if let Some(seen) = &seen {
                tids = seen.keys().copied().collect();
            } else {
                tids = task.tids()?.into_iter().map(|tid| tid.as_raw_nonzero().get()).collect();
                listed = true;
            }
        }
        threads.sort_by_key(|t| (t.tid != pid, t.tid));
        Ok(Held { pid, ppid, task, threads, is_childless: false, not_suspended })
    }

    /// Begins to hold those of the threads `tids` that are not held yet: their
    /// ids, and the calls that they slept in, which may have been `seen` already.
    fn seize_others(
        &mut self,
        pid: i32,
        task: &Task,
        (tids, seen): (&[i32], Option<BTreeMap<i32, Glance>>),
        held: &[Thread],
        limit: Duration,
    ) -> Result<Vec<(i32, Option<Restart>)>> {
        let mut taken = Vec::new();
        let known: BTreeSet<i32> = held.iter().map(|known| known.tid).collect();
        let new: Vec<i32> = tids.iter().copied().filter(|tid| !known.contains(tid)).collect();
        if !self.ahead.is_empty() {
            let ahead: Vec<_> = new.iter().filter_map(|tid| self.ahead.remove_entry(tid)).collect();
            taken.extend(ahead);
        }
        let new: Vec<i32> = new.into_iter().filter(|tid| !taken.iter().any(|(held, _)| held == tid)).collect();
        for (tid, call) in new.chunks(CALLS_AT_ONCE).flat_map(|some| calls_of(task, some, seen.as_ref())) {
            let call = match call {
                Some(call) => Some(call),
                None => call_but_vfork(task, pid, tid, limit)?,
            };
            let asleep = restart::asleep(task, tid, call);
            if tid != pid && !is_programs(call) && is_kernels(task, tid) {
                continue;
            }
            if stops::seize(tid, stops::VISIT).map_err(|e| explain_seize(pid, tid, task, e))? {
                self.seized.push((pid, tid));
                taken.push((tid, asleep));
            }
        }
        Ok(taken)
    }

    /// Root first and parents before children.
    fn order(&mut self) {
        let parents: BTreeMap<i32, i32> = self.processes.iter().map(|p| (p.pid, p.ppid)).collect();
        let depth = |mut pid: i32| {
            let mut n = 0;
            while let Some(&up) = parents.get(&pid).filter(|&&up| up != 0 && n < 1 << 16) {
                pid = up;
                n += 1;
            }
            n
        };
        self.processes.sort_by_cached_key(|p| (depth(p.pid), p.pid));
    }

    /// Makes a hand of every living process; all are on their way at once.
    /// Those that share their memory have a scratch mapping each in it, and a
    /// chain of frames each on its stack.
    pub fn enter_all(&mut self) -> Result<()> {
        self.enter(|_| true)
    }

    /// The same of some of them.
    pub fn enter(&mut self, which: impl Fn(&Process) -> bool) -> Result<()> {
        let mut spaces: BTreeMap<u32, Space> = BTreeMap::new();
        for process in &self.processes {
            let space = spaces.entry(process.space()).or_default();
            space.pointers.extend(process.threads.iter().map(|t| t.context.regs.rsp));
        }
        let Frozen { processes, doors, .. } = self;
        let mut entering = Vec::with_capacity(processes.len());
        // Who is on the way gets there whatever happens to others, for only from there is there a way back.
        let mut result = Ok(());
        for process in processes.iter_mut().filter(|p| !p.is_zombie() && which(p)) {
            match process.enter(doors, spaces.entry(process.space()).or_default()) {
                Ok(hand) => entering.push((process, hand)),
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
        }
        entering.retain(|(_, hand)| hand.go_on().map_err(|e| result = Err(e.into())).is_ok());
        for (process, hand) in entering {
            match hand.finish() {
                Ok(mut hand) => {
                    if !filter::lets_go_home(hand.tid(), process.status.seccomp) {
                        hand.be_restless();
                    }
                    process.hand = Some(hand);
                }
                Err(e) => result = Err(e.into()),
            }
        }
        result
    }

    /// Begins to prepare the end of the tree: [`Frozen::kill`] will be one store for all processes. Hands may take it from
    /// here on. One process needs no preparation.
    pub fn make_verdict(&mut self) -> Result<()> {
        if self.processes.iter().filter(|p| p.hand.is_some()).count() > 1 {
            self.verdict = Some(Verdict::new()?);
        }
        Ok(())
    }

    /// Gives it to those that have not taken it.
    pub fn share_verdict(&mut self) {
        let Some(verdict) = &self.verdict else { return };
        for (pid, e) in verdict.give(self.processes.iter_mut().filter_map(|p| p.hand.as_mut()).collect()) {
            // Without a free descriptor, for example. It can be ended like the others while we live.
            tracing::warn!("process {pid} would survive if we were killed while ending the tree: {e}");
        }
    }

    /// The processes, and what decides about all of them.
    pub fn parts(&mut self) -> (&mut [Process], Option<&Verdict>) {
        (&mut self.processes, self.verdict.as_ref())
    }

    /// Lets the whole tree go on as it was.
    pub fn release(mut self) -> Result<()> {
        self.let_go()
    }

    /// The same; what was known of the processes comes back.
    pub fn release_and_tell(mut self) -> Result<Vec<Process>> {
        self.let_go()?;
        Ok(std::mem::take(&mut self.processes))
    }

    /// Makes the tree stay stopped (SIGSTOP) when it is let go.
    pub fn stop(&mut self) -> Result<()> {
        for process in self.processes.iter().filter(|p| !p.is_zombie()) {
            let failed = |e| Error::kernel(Object::Process(process.pid), "stop it", e);
            inner::signal(process.pid, rustix::process::Signal::STOP).map_err(failed)?;
        }
        Ok(())
    }

    /// Ends the whole tree, also if we are killed after the first step: each
    /// hand then finds itself alone and obeys. The second step is for what a
    /// hand does not stop at once: other threads of its process, and all of a
    /// process that job control has stopped and whose hand does not run. The
    /// kernel ends their process before it lets the first of them go.
    ///
    /// Killed between the two, a microsecond apart for each such process, other
    /// threads run until their hand is scheduled, and a stopped process stays.
    pub fn kill(mut self) -> Result<()> {
        self.condemn();
        // Opened before, because a killed process gives its memory up within microseconds: to itself alone, then.
        let large: Vec<OwnedFd> = self.processes.iter().filter_map(Process::if_large).collect();
        let zombies_last = self.processes.iter().rev().filter(|p| !p.is_zombie());
        for process in zombies_last {
            let _ = rustix::process::kill_process(pid_of(process.pid)?, rustix::process::Signal::KILL);
        }
        for process in large {
            // It fails on older kernels, and when the process was faster: then there is nothing to do but to wait.
            let _ = release_memory(process);
        }
        self.reap_all();
        self.seized.clear();
        for process in &mut self.processes {
            process.hand = None;
        }
        Ok(())
    }

    /// Takes the ends of all from the kernel.
    fn reap_all(&self) {
        let living = || self.processes.iter().filter(|p| !p.is_zombie());
        let followers = |p: &Process| {
            let others = p.threads.iter().map(|t| t.tid).filter(|tid| *tid != p.pid);
            others.rev().collect::<Vec<_>>()
        };
        let depth = |pid: i32| living().find(|p| p.pid == pid)?.depth_as_init();
        let (first, inits) = match living().any(|p| p.depth_as_init().is_some()) {
            true => pid::by_end(living().map(|p| p.pid), depth),
            false => (living().map(|p| p.pid).collect(), Vec::new()),
        };
        // Not only the tracer itself, any of our threads may take their ends. Once the last to end has ended, nobody has to
        // be waited for.
        let is_first = |p: &&Process| inits.is_empty() || !inits.contains(&p.pid);
        parallel::map(living().filter(is_first).rev().flat_map(followers).collect(), stops::reap);
        // A leader's end is not told before that of all other threads.
        parallel::map(first, stops::reap);
        for init in inits.into_iter().filter_map(|pid| living().find(|p| p.pid == pid)) {
            for tid in followers(init).into_iter().chain([init.pid]) {
                if !stops::reap_within(tid, ENDS_WITHIN) {
                    tracing::warn!("process {} waits for others in its pid namespace: its end was not seen", init.pid);
                    break;
                }
            }
        }
    }

    /// The verdict: from here on, the tree dies without us.
    pub fn condemn(&mut self) {
        let Some(verdict) = &self.verdict else { return };
        verdict.die();
        for process in self.processes.iter().filter(|p| p.threads.len() > 1 || p.job_stop().is_some()) {
            // The kernel lets go in the reverse order of taking.
            let last = self.seized.iter().rev().find(|(pid, _)| *pid == process.pid);
            if let Some(&(_, tid)) = last {
                // It fails only if the thread has been killed already.
                let _ = trace::set_options(tid, stops::VISIT | stops::DIES_WITH_US);
            }
        }
    }

    fn let_go(&mut self) -> Result<()> {
        let mut first_error = None;
        let mut stops_again = Vec::new();
        for process in &mut self.processes {
            if let Some(mut hand) = process.hand.take() {
                if hand.stop_seen() {
                    stops_again.push((process.pid, hand.tid()));
                }
                if let Err(e) = hand.leave() {
                    first_error.get_or_insert(e);
                }
            }
        }
        for tid in std::mem::take(&mut self.ahead).into_keys() {
            // Nobody lets go of one that has not come to its stop.
            let _ = stops::wait_stopped(tid, STOPS_WITHIN);
        }
        for &(_, tid) in &self.seized {
            if let Err(e) = trace::detach(tid) {
                first_error.get_or_insert(e);
            }
        }
        self.seized.clear();
        for (pid, tid) in stops_again {
            let _ = tgkill(pid_of(pid)?, pid_of(tid)?, libc::SIGSTOP);
        }
        first_error.map_or(Ok(()), |e| Err(e.into()))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(e) = self.let_go() {
            tracing::warn!("letting the tree go: {e}");
        }
    }
}

/// A process all of whose threads are held, while others may still run.
#[derive(Debug)]
struct Held {
    pid: i32,
    ppid: i32,
    task: Task,
    threads: Vec<Thread>,
    /// It had no children when all its threads were held. Nor will it get any:
    /// orphans come to an ancestor, and CLONE_PARENT takes a child.
    is_childless: bool,
    /// Why the seccomp filters of one could not be suspended, if it has any.
    not_suspended: Option<cryonaut_puppet::Error>,
}

impl Held {
    /// Reads what could change until everything stood still.
    fn survey(self, (objects, descriptors): &(KnownObjects, KnownDescriptors)) -> Result<Process> {
        let Held { pid, ppid, mut task, mut threads, not_suspended, .. } = self;
        let mut ended = None;
        if let Some(first) = threads.first().filter(|first| first.tid != pid) {
            ended = Some(Ended::read(&task, pid)?);
            task = Task::open(pid_of(first.tid)?)?;
        }
        let (stat, status) = (task.stat()?, task.status()?);
        // A thread may have filters of its own, which its process's status does not tell: tried for all.
        if let Some(e) = not_suspended.filter(|_| status.seccomp != Seccomp::Disabled) {
            return Err(e.into());
        }
        if threads.is_empty() {
            refuse_traced(pid, &status)?;
        }
        let is_zombie = threads.is_empty();
        if is_zombie && !matches!(stat.state, State::Zombie | State::Dead) {
            return Err(Error::kernel(Object::Process(pid), "hold any of its threads", Errno::SRCH));
        }
        restart::look_again(pid, &mut threads);
        let mut process = Process {
            pid,
            ppid,
            stat,
            status,
            ended,
            maps: Vec::new(),
            objects: None,
            descriptors: descriptors.of_process(pid),
            namespaces: Default::default(),
            ids: None,
            hand: None,
            task,
            threads,
        };
        if !is_zombie {
            process.maps = process.task.maps()?;
            (process.objects, process.namespaces) = objects.of_process(&process.task, process.speaker())?;
        }
        Ok(process)
    }
}

fn open_task(pid: i32) -> Result<Task> {
    Task::open(pid_of(pid)?).map_err(|e| gone(pid, &e))
}

/// Why nothing is known of a process.
fn gone(pid: i32, e: &cryonaut_kernel::proc::Error) -> Error {
    Error::Kernel {
        object: Object::Process(pid),
        action: "find it".into(),
        errno: e.errno().unwrap_or(Errno::SRCH),
        remedy: "it may have ended; look it up again",
    }
}

/// The children of held processes, of those from one on, each with its parent; of a zombie none,
/// whose children have another parent.
fn children_of(held: &mut [Held], from: usize, seen: &mut Seen) -> Result<Vec<(i32, i32)>> {
    let total = held.len();
    let held = &mut held[from..];
    let mut asked: Vec<&Held> = held.iter().filter(|p| !p.is_childless).collect();
    if let Some(seen) = seen.look(total, asked.len()) {
        let childless = glance::are_childless(seen, &asked);
        asked =
            asked.into_iter().zip(childless).filter(|(_, childless)| !childless).map(|(process, _)| process).collect();
    }
    let parents_of = |p: &Held| -> Vec<i32> {
        let seen = glance_at(&p.task, p.pid, p.threads.len());
        let may_have = |tid: &i32| seen.as_ref().and_then(|seen| seen.get(tid)).is_none_or(|seen| seen.has_children);
        p.threads.iter().map(|t| t.tid).filter(may_have).collect()
    };
    let threads: Vec<(&Held, i32)> =
        asked.into_iter().flat_map(|p| parents_of(p).into_iter().map(move |tid| (p, tid))).collect();
    let list = |(process, tid): (&Held, i32)| -> Result<Vec<(i32, i32)>> {
        let children = process.task.children(pid_of(tid)?).unwrap_or_default();
        Ok(children.into_iter().map(|child| (child.as_raw_nonzero().get(), process.pid)).collect())
    };
    let mut children = Vec::new();
    for some in parallel::map(threads, list) {
        children.extend(some?);
    }
    let parents: BTreeSet<i32> = children.iter().map(|(_, parent)| *parent).collect();
    for process in held {
        process.is_childless = !parents.contains(&process.pid);
    }
    Ok(children)
}

fn explain_seize(pid: i32, tid: i32, process: &Task, e: cryonaut_puppet::Error) -> Error {
    if !matches!(e, cryonaut_puppet::Error::Ptrace { errno: Errno::PERM, .. }) {
        return e.into();
    }
    let status = pid_of(tid).ok().and_then(|tid| process.thread(tid).status().ok());
    let refusal = status.and_then(|status| {
        if status.kernel_thread {
            return Some(Error::unsupported(Object::Process(pid), "it is a kernel thread", ""));
        }
        refuse_traced(pid, &status).err()
    });
    refusal.unwrap_or(Error::Kernel {
        object: Object::Process(pid),
        action: "attach to it".into(),
        errno: Errno::PERM,
        remedy: "this needs CAP_SYS_PTRACE over the process",
    })
}

/// Who has a tracer already cannot be held.
fn refuse_traced(pid: i32, status: &Status) -> Result<()> {
    match status.tracer_pid {
        0 => Ok(()),
        tracer => Err(Error::unsupported(
            Object::Process(pid),
            format!("it is traced by process {tracer}"),
            "detach the debugger first",
        )),
    }
}
