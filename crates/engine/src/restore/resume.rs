//! The last steps: what each thread has to do itself, then registers, then
//! letting go.

use super::{AT_ONCE, Nursery, Scratches, births};
use crate::arch;
use crate::attributes::overruns::{self, Comebacks};
use crate::attributes::signals::Queue;
use crate::attributes::{credentials, extras, filter, restart, seccomp, signals, task, thread, timers};
use crate::memory::recorded_vdso;
use crate::namespaces::inner;
use crate::plan::{Plan, ProcessPlan};
use crate::{Error, Object, RestoreOptions, Result};
use cryonaut_image::records::{CoreEntry, PosixTimerEntry, SignalQueueEntry, TaskCoreEntry};
use cryonaut_kernel::Errno;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::maps::Vma;
use cryonaut_kernel::proc::status::Seccomp;
use cryonaut_puppet::arch as puppet_arch;
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{
    Batch, Context, DoorMaps, Doorway, Ground, Hand, Homes, Job, Verdict, find_doorway, stops, trace,
};
use rustix::process::Signal;
use rustix::thread::CpuSet;
use std::collections::BTreeMap;
use std::ops::Range;

/// Lets the whole tree run.
///
/// A single process gets its final state while it still dies with us, and the
/// verdict is that the last of its threads no longer does. Of several, all
/// threads are parked first: they no longer die with us, but obey the verdict,
/// which is one store; after it, they need us only for the niceties.
///
/// `at_last` is done when nothing is missing any more but the verdict.
pub fn resume_all(
    mut nursery: Nursery<'_>,
    plan: &Plan,
    scratches: &Scratches<'_>,
    service: &Service,
    options: &RestoreOptions,
    (verdict, own): (&Verdict, &Own),
    at_last: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let living: Vec<&ProcessPlan> = plan.processes.values().filter(|p| !p.is_zombie()).collect();
    let mut doors = Doors::new(plan, scratches)?;
    let mut ready = Vec::new();
    for some in living.chunks(AT_ONCE) {
        let begin = |process: &&ProcessPlan| begin(nursery.hand(process.pid())?, process, plan, service, own);
        let begun = some.iter().map(begin).collect::<Result<Vec<_>>>()?;
        for (process, (mut batch, is_all)) in some.iter().zip(begun) {
            let hand = nursery.hand(process.pid())?;
            hand.wait(&mut batch)?;
            if !is_all {
                threads_of(hand, process, plan, own)?;
            }
            let stop = process.job_stop().or(options.leave_stopped.then_some(libc::SIGSTOP));
            let homes = homes(process, plan)?;
            let door = doors.of(process)?;
            ready.push(Ready { process, homes, door, stop });
        }
    }
    if let [only] = ready.as_slice() {
        finish_all(&ready, &mut nursery.hands, plan).into_iter().next().map_or(Ok(()), Err)?;
        at_last()?;
        only.survive_us()?;
        nursery.hands.clear();
        return only.let_go();
    }
    for one in &ready {
        one.park(nursery.hand(one.process.pid())?, plan)?;
    }
    at_last()?;
    for one in &ready {
        one.survive_us()?;
    }
    verdict.go_on();
    // From here on nothing may take the tree away again, so no failure ends this: the others still have to be let go.
    let mut hands = std::mem::take(&mut nursery.hands);
    let mut failures = Vec::new();
    for one in &ready {
        // Not before the verdict, which a stopped process would not look at.
        failures.extend(one.send_stop().err());
    }
    for some in ready.chunks(AT_ONCE) {
        failures.extend(finish_all(some, &mut hands, plan));
    }
    for one in &ready {
        failures.extend(one.let_go().err());
    }
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Has a process begin with its last calls, while others do; whether they are all that it makes.
fn begin(hand: &mut Hand, process: &ProcessPlan, plan: &Plan, service: &Service, own: &Own) -> Result<(Batch, bool)> {
    let mut b = Batch::new();
    service.withdraw(&mut b);
    let tc = of_process(process)?;
    // To begin to ignore a signal takes away what waits of it, whichever thread it waits for (do_sigaction).
    signals::build_actions(process.pid(), &mut b, &tc.sigactions)?;
    let whole = whole(process, plan, own, b.clone())?.filter(|whole| hand.fits(whole));
    if whole.is_some() {
        schedule(process.first, &process.core, plan, own)?;
        suspend_seccomp(process.first, &process.core)?;
    }
    let is_all = whole.is_some();
    let b = whole.unwrap_or(b);
    hand.start(&b)?;
    Ok((b, is_all))
}

/// All that a process does itself behind these calls, if nobody else is to do anything in between.
fn whole(process: &ProcessPlan, plan: &Plan, own: &Own, mut b: Batch) -> Result<Option<Batch>> {
    let (core, tc) = (&process.core, of_process(process)?);
    let waits = |queue: Option<&SignalQueueEntry>| queue.is_some_and(|queue| !queue.signals.is_empty());
    let has_timers = tc.timers.as_ref().is_some_and(|all| !all.posix.is_empty());
    if !process.threads.is_empty() || has_timers || waits(tc.signals_s.as_ref()) || waits(own_signals(core)) {
        return Ok(None);
    }
    thread::build(&mut b, core, plan.extras.get(&process.first));
    births::forget_sigchld(&mut b);
    if let Some(all) = &tc.timers {
        timers::start(&mut b, all, |_| timers::State::New);
    }
    last_calls(&mut b, core, process, plan, own, 0)?;
    Ok(Some(b))
}

/// Gives processes their final state, at once: calls that were interrupted, the loss of the scratch mapping, registers.
/// What fails concerns that process alone.
fn finish_all(some: &[Ready<'_>], hands: &mut BTreeMap<i32, Hand>, plan: &Plan) -> Vec<Error> {
    let mut step = |one: &Ready<'_>, take: &mut dyn FnMut(&mut Hand) -> Result<Option<u64>>| {
        hands.get_mut(&one.process.pid()).map_or(Ok(None), take)
    };
    let begun: Vec<_> = some.iter().map(|one| step(one, &mut |hand| one.begin_finish(hand, plan))).collect();
    let on: Vec<_> = some
        .iter()
        .zip(begun)
        .map(|(one, begun)| begun.and_then(|result| step(one, &mut |hand| Ok(hand.strip_on().map(|()| result)?))))
        .collect();
    let end = |(one, on): (&Ready<'_>, Result<Option<u64>>)| {
        on.and_then(|result| step(one, &mut |hand| one.end_finish(hand, result).map(|()| None))).err()
    };
    some.iter().zip(on).filter_map(end).collect()
}

/// A process of which nothing is missing but that it runs.
struct Ready<'a> {
    process: &'a ProcessPlan,
    /// Final state of each thread, the first's first; then in the order of their creation.
    homes: Vec<(i32, Context)>,
    door: Doorway,
    /// The signal that is to stop it.
    stop: Option<i32>,
}

impl Ready<'_> {
    /// Whether filters of it would not let its threads go home alone.
    fn is_confined(&self) -> bool {
        let mode = |core: &CoreEntry| match core.thread_core.as_ref().and_then(|t| t.seccomp_mode) {
            None | Some(0) => Seccomp::Disabled,
            Some(1) => Seccomp::Strict,
            Some(_) => Seccomp::Filter,
        };
        self.process.cores().any(|(tid, core)| !filter::lets_go_home(tid, mode(core)))
    }

    /// From here on it obeys the verdict when it is let go.
    fn park(&self, hand: &mut Hand, plan: &Plan) -> Result<()> {
        let mut others = self.homes.clone();
        for (tid, context) in &mut others {
            // Without us, nobody enters the call with what is left of its time: it begins anew.
            if let Some(restart) = plan.extras.get(tid).and_then(|e| e.restart) {
                puppet_arch::begin_anew(&mut context.regs, restart.number);
            }
        }
        let (_, own) = others.remove(0);
        Ok(hand.park(&self.door, &Homes { own, others }, self.is_confined())?)
    }

    /// It no longer dies with us. The kernel lets go in the reverse order of
    /// creation, so as long as the last thread dies with us, all do.
    fn survive_us(&self) -> Result<()> {
        for (tid, core) in self.process.cores() {
            let filters = if has_filters(core) { stops::SUSPEND_SECCOMP } else { stops::VISIT };
            trace::set_options(tid, stops::VISIT | filters)?;
        }
        Ok(())
    }

    /// Calls that were interrupted, and the final state of all threads but the hand's, which begins to lose the scratch
    /// mapping. What its result register is to hold.
    fn begin_finish(&self, hand: &mut Hand, plan: &Plan) -> Result<Option<u64>> {
        for (tid, context) in self.homes.iter().skip(1) {
            let result = self.reenter(hand, *tid, plan)?;
            set_state(hand, *tid, context, result)?;
        }
        hand.clear_rows()?;
        let result = self.reenter(hand, self.homes[0].0, plan)?;
        hand.begin_strip(&self.door)?;
        Ok(result)
    }

    /// The final state of the hand's thread.
    fn end_finish(&self, hand: &mut Hand, result: Option<u64>) -> Result<()> {
        hand.end_strip()?;
        let (tid, context) = &self.homes[0];
        set_state(hand, *tid, context, result)?;
        hand.wipe_frame()?;
        // What has run here has taken the signal away.
        self.send_stop()
    }

    /// A call that continues through the kernel's restart block is entered
    /// again. Returns what the result register is to hold then.
    fn reenter(&self, hand: &Hand, tid: i32, plan: &Plan) -> Result<Option<u64>> {
        let Some(restart) = plan.extras.get(&tid).and_then(|e| e.restart) else { return Ok(None) };
        let core = self.process.cores().find(|(t, _)| *t == tid).map(|(_, core)| core);
        core.map(|core| restart::reenter(hand, tid, core, restart)).transpose()
    }

    fn send_stop(&self) -> Result<()> {
        let Some(signal) = self.stop else { return Ok(()) };
        let pid = self.process.pid();
        let signal = Signal::from_named_raw(signal).ok_or_else(|| {
            Error::bad_image(format!("core-{pid}.img"), format!("signal {signal} is to have stopped it"))
        })?;
        inner::signal(pid, signal).map_err(|e| Error::kernel(Object::Process(pid), "stop it", e))
    }

    fn let_go(&self) -> Result<()> {
        let mut result = Ok(());
        for (tid, _) in &self.homes {
            result = result.and(trace::detach(*tid).map_err(Error::from));
        }
        result
    }
}

/// Everything that each thread does itself, the first last: the timers of the
/// process are with it.
fn threads_of(hand: &mut Hand, process: &ProcessPlan, plan: &Plan, own: &Own) -> Result<()> {
    let pid = process.pid();
    let inside = |tid: i32| plan.numbers.innermost(tid);
    let timers = Timers::prepare(hand, process, plan)?;
    let (mut first, mut waiting, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let filters = common_filters(hand, process, plan)?;
    for (tid, core) in &process.threads {
        let context = Context::of_built(*tid)?;
        schedule(*tid, core, plan, own)?;
        suspend_seccomp(*tid, core)?;
        let mut b = Batch::new();
        thread::build(&mut b, core, plan.extras.get(tid));
        let queue = signals::build_queue(
            Queue::Own { pid: inside(pid), tid: inside(*tid) },
            own_signals(core),
            &timers.comebacks,
        )?;
        // Whom no signal waits for does it all at once, if that is not too much.
        let mut whole = b.clone();
        last_calls(&mut whole, core, process, plan, own, filters)?;
        if queue.is_empty() && hand.fits_in_thread(&whole) {
            last.push((*tid, context, whole));
            continue;
        }
        waiting.extend(queue.into_iter().map(|b| (*tid, context.clone(), b)));
        first.push((*tid, context.clone(), b));
        let mut b = Batch::new();
        last_calls(&mut b, core, process, plan, own, filters)?;
        last.push((*tid, context, b));
    }
    run_in_threads(hand, &mut first)?;
    for one in &mut waiting {
        // One after the other: a thread's signals have an order.
        run_in_threads(hand, std::slice::from_mut(one))?;
    }
    run_in_threads(hand, &mut last)?;
    first_thread(hand, process, plan, own, &timers, filters)
}

/// The POSIX timers of a process, before any signal is queued.
#[derive(Debug)]
struct Timers {
    comebacks: Comebacks,
    /// Those that run already.
    running: Vec<u32>,
}

impl Timers {
    fn prepare(hand: &mut Hand, process: &ProcessPlan, plan: &Plan) -> Result<Self> {
        let pid = process.pid();
        let posix = process.core.tc.as_ref().and_then(|tc| tc.timers.as_ref()).map_or(&[][..], |all| &all.posix);
        let owners = plan.timer_owners.get(&pid);
        let comebacks = Comebacks::new(hand, posix, plan.overruns.get(&pid), owners)?;
        let running = overruns::tell_again(hand, posix, &comebacks, owners)?;
        Ok(Timers { comebacks, running })
    }

    fn state(&self, timer: &PosixTimerEntry) -> timers::State {
        if self.running.contains(&timer.it_id) { timers::State::Runs } else { self.comebacks.made(timer) }
    }
}

/// What the restoring process has itself, and those it creates have from it.
#[derive(Debug)]
pub struct Own {
    /// Its bounding capabilities.
    pub bounding: u64,
    /// The processors that it may run on.
    pub cpus: CpuSet,
}

impl Own {
    /// Reads it.
    pub fn read() -> Result<Own> {
        let failed = |e| Error::kernel(Object::Other("this process".into()), "ask for its processors", e);
        let cpus = rustix::thread::sched_getaffinity(None).map_err(failed)?;
        Ok(Own { bounding: Task::current()?.status()?.caps.bounding, cpus })
    }
}

fn run_in_threads(hand: &mut Hand, batches: &mut [(i32, Context, Batch)]) -> Result<()> {
    let mut jobs: Vec<Job<'_>> =
        batches.iter_mut().map(|(tid, context, batch)| Job { tid: *tid, context, batch }).collect();
    Ok(hand.run_in_threads(&mut jobs)?)
}

fn first_thread(
    hand: &mut Hand,
    process: &ProcessPlan,
    plan: &Plan,
    own: &Own,
    posix: &Timers,
    filters: usize,
) -> Result<()> {
    let (pid, first, core) = (process.pid(), process.first, &process.core);
    let inside = |tid: i32| plan.numbers.innermost(tid);
    let tc = of_process(process)?;
    let mut b = Batch::new();
    thread::build(&mut b, core, plan.extras.get(&first));
    births::forget_sigchld(&mut b);
    hand.run(&mut b)?;
    for mut b in signals::build_queue(
        Queue::Shared { pid: inside(pid), sender: inside(first) },
        tc.signals_s.as_ref(),
        &posix.comebacks,
    )? {
        hand.run(&mut b)?;
    }
    for mut b in
        signals::build_queue(Queue::Own { pid: inside(pid), tid: inside(first) }, own_signals(core), &posix.comebacks)?
    {
        hand.run(&mut b)?;
    }
    let mut b = Batch::new();
    if let Some(all) = &tc.timers {
        timers::start(&mut b, all, |t| posix.state(t));
    }
    hand.run(&mut b)?;
    schedule(first, core, plan, own)?;
    let mut last = Batch::new();
    last_calls(&mut last, core, process, plan, own, filters)?;
    suspend_seccomp(first, core)?;
    Ok(hand.run(&mut last)?)
}

/// What the record says of the whole process.
fn of_process(process: &ProcessPlan) -> Result<&TaskCoreEntry> {
    let bad = || Error::bad_image(format!("core-{}.img", process.pid()), "it is not that of a process");
    process.core.tc.as_ref().ok_or_else(bad)
}

/// Signals that wait for this thread alone.
fn own_signals(core: &CoreEntry) -> Option<&SignalQueueEntry> {
    core.thread_core.as_ref()?.signals_p.as_ref()
}

fn schedule(tid: i32, core: &CoreEntry, plan: &Plan, own: &Own) -> Result<()> {
    if let Some(t) = &core.thread_core {
        thread::build_scheduling(tid, t)?;
    }
    plan.extras.get(&tid).map_or(Ok(()), |extra| extras::build(tid, extra, &own.cpus))
}

/// Gives all threads of a process the filters that they have in common; how
/// many that are.
fn common_filters(hand: &mut Hand, process: &ProcessPlan, plan: &Plan) -> Result<usize> {
    let states: Vec<seccomp::State> = process.cores().map(|(_, core)| seccomp_of(core)).collect();
    let count = seccomp::common(&plan.seccomp, &states)?;
    if count == 0 {
        return Ok(0);
    }
    for (tid, core) in process.cores() {
        suspend_seccomp(tid, core)?;
    }
    let mut b = Batch::new();
    let calls = seccomp::build_common(&mut b, &plan.seccomp, states[0].1, count)?;
    hand.run(&mut b)?;
    // A thread's id in the place of 0: it could not be given the filter.
    match calls.iter().all(|call| b.result(*call) == Ok(0)) {
        true => Ok(count),
        false => Err(Error::kernel(Object::Process(process.pid()), "give all its threads one filter", Errno::SRCH)),
    }
}

/// Credentials, what they reset, and seccomp but for what all threads have
/// already: after this the thread may be unable to do anything.
fn last_calls(
    b: &mut Batch,
    core: &CoreEntry,
    process: &ProcessPlan,
    plan: &Plan,
    own: &Own,
    filters: usize,
) -> Result<()> {
    let Some(t) = &core.thread_core else {
        return Ok(());
    };
    // They do not judge yet, and who set them may have had rights that are gone.
    if has_filters(core) {
        seccomp::build(b, &plan.seccomp, seccomp_of(core), filters)?;
    }
    if let Some(creds) = &t.creds {
        credentials::build(b, creds, own.bounding, plan.born.has_groups(process.ids.as_ref(), creds));
    }
    task::build_after_credentials(b, process.mm.as_ref(), t.pdeath_sig);
    Ok(())
}

/// A thread's filters must not judge the calls that are still made in it.
fn suspend_seccomp(tid: i32, core: &CoreEntry) -> Result<()> {
    if has_filters(core) {
        trace::set_options(tid, stops::BUILD | stops::SUSPEND_SECCOMP)?;
    }
    Ok(())
}

fn has_filters(core: &CoreEntry) -> bool {
    seccomp_of(core).0 != 0
}

fn seccomp_of(core: &CoreEntry) -> seccomp::State {
    core.thread_core.as_ref().map_or((0, None), |t| (t.seccomp_mode.unwrap_or(0), t.seccomp_filter))
}

/// Final registers, signal mask and extended state of every thread.
fn homes(process: &ProcessPlan, plan: &Plan) -> Result<Vec<(i32, Context)>> {
    let mut all = Vec::with_capacity(1 + process.threads.len());
    // Its layout is the same in all that are born here.
    let layout = trace::xstate(process.first)?;
    for (tid, core) in process.cores() {
        let info = arch::info_of(tid, core)?;
        let mask = core.thread_core.as_ref().and_then(|t| t.blk_sigset);
        let mut regs = arch::registers(tid, info)?;
        if let Some(interruption) = plan.extras.get(&tid).and_then(|e| e.interruption) {
            arch::unsettle_call(&mut regs, interruption);
        }
        let context = Context {
            regs,
            sigmask: mask.or(core.tc.as_ref().map(|tc| tc.blk_sigset)).unwrap_or(0),
            xstate: arch::extended_state(tid, info, &layout)?,
        };
        trace::set_xstate(tid, &context.xstate)?;
        all.push((tid, context));
    }
    Ok(all)
}

/// How the scratch mappings are left for good: through instructions of the processes themselves.
#[derive(Debug)]
struct Doors<'p> {
    seen: DoorMaps,
    plan: &'p Plan,
    scratches: &'p Scratches<'p>,
    /// Of memory that is shared, by its owner.
    shared: BTreeMap<i32, SharedGround>,
}

#[derive(Debug, Default)]
struct SharedGround {
    /// The stack pointers of all threads.
    pointers: Vec<u64>,
    /// Where there are frames.
    taken: Vec<Range<u64>>,
}

impl<'p> Doors<'p> {
    fn new(plan: &'p Plan, scratches: &'p Scratches<'p>) -> Result<Self> {
        let mut shared: BTreeMap<i32, SharedGround> = BTreeMap::new();
        for process in plan.processes.values().filter(|p| !p.is_zombie() && plan.spaces.count(p.pid()) > 1) {
            let ground = shared.entry(plan.spaces.owner(process.pid())).or_default();
            for (tid, core) in process.cores() {
                ground.pointers.push(stack_pointer(tid, core)?);
            }
        }
        Ok(Doors { seen: DoorMaps::default(), plan, scratches, shared })
    }

    fn of(&mut self, process: &ProcessPlan) -> Result<Doorway> {
        let (pid, tid) = (process.pid(), process.first);
        let mut maps = Task::open(crate::freeze::pid_of(tid)?)?.maps()?;
        maps.retain(|v| !self.scratches.of_space(pid).contains(&v.start));
        refuse_inside_vdso(process, &maps)?;
        let mut alone = SharedGround::default();
        let shared = self.shared.get_mut(&self.plan.spaces.owner(pid)).unwrap_or(&mut alone);
        let (others, taken) = (&shared.pointers, &shared.taken);
        let ground = Ground { tid, maps: &maps, sp: stack_pointer(tid, &process.core)?, others, taken };
        let xstate = trace::xstate(tid)?.len();
        let door = find_doorway(&mut self.seen, pid, &ground, xstate)?;
        shared.taken.push(door.frames(xstate));
        Ok(door)
    }
}

fn stack_pointer(tid: i32, core: &CoreEntry) -> Result<u64> {
    Ok(arch::registers(tid, arch::info_of(tid, core)?)?.rsp)
}

/// Of another kernel's vdso only the functions' beginnings lead to this kernel's.
fn refuse_inside_vdso(process: &ProcessPlan, maps: &[Vma]) -> Result<()> {
    let Some((start, end)) = process.mm.as_ref().and_then(|mm| recorded_vdso(&mm.vmas)) else { return Ok(()) };
    if maps.iter().any(|v| v.start == start && v.special() == Some(b"vdso")) {
        return Ok(());
    }
    for (tid, core) in process.cores() {
        if (start..end).contains(&arch::registers(tid, arch::info_of(tid, core)?)?.rip) {
            return Err(Error::unsupported(
                Object::Thread(tid),
                "it was in the code of the vdso, and this kernel's is another",
                "make the checkpoint again, or restore on the kernel on which the program was started",
            ));
        }
    }
    Ok(())
}

/// Signal mask and registers of a thread. The mask first, as for a visitor: see [`Context::write_back`].
fn set_state(hand: &Hand, tid: i32, home: &Context, result: Option<u64>) -> Result<()> {
    let mut regs = home.regs;
    if let Some(result) = result {
        regs.rax = result;
    }
    trace::set_sigmask(tid, home.sigmask)?;
    trace::set_registers(tid, &regs)?;
    if result.is_none() && hand.disturbs(home.sigmask) {
        stops::move_on(tid)?;
    }
    Ok(())
}
