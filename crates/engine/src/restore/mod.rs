//! A restore: read, plan, build, resume.
//!
//! Every process of the tree is held from its birth and dies with us until the
//! very end, so a failure at any point leaves nothing behind.

mod births;
mod descriptors;
mod resume;
mod work;

pub use work::{Gift, Work};

use resume::Own;
use work::AtWork;

use crate::attributes::{leader, limits, signals, task, timers};
use crate::cgroups::Restoring;
use crate::files::socket::Peers;
use crate::files::{Build, Settle, io_uring, kind_of};
use crate::lazy::{Handover, Refusals};
use crate::memory::{AddressSpaces, PAGE, Shape};
use crate::namespaces::inner::{self, INIT, Tree};
use crate::namespaces::{net, pid};
use crate::network_lock::translated::Awaited;
use crate::network_lock::{self, NetworkLock, NetworkLocks, Reach};
use crate::plan::{Plan, ProcessPlan, SharedSpaces};
use crate::report::RestoreReport;
use crate::users;
use crate::{Custody, Error, LockMethod, Moment, Object, RestoreOptions, Result, freeze};
use cryonaut_image::ImageDir;
use cryonaut_image::records::InetSkEntry;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::proc::{Task, stat::State};
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Batch, Hand, Verdict, scratch, spawn, stops};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How many hands are at work at a time that get no files meanwhile.
const AT_ONCE: usize = 128;

/// The processes while they are built; what is not resumed is killed.
#[derive(Debug)]
struct Nursery<'p> {
    hands: BTreeMap<i32, Hand>,
    /// Those of them in deeper pid namespaces.
    numbers: &'p pid::Numbers,
}

impl Drop for Nursery<'_> {
    fn drop(&mut self) {
        // Of an init, the end would be ours as well: it dies with us.
        let inside = inner::outer().is_some();
        let others = || self.hands.keys().filter(|pid| !inside || **pid != INIT);
        for pid in others() {
            if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let depth = |pid: i32| self.numbers.is_init(pid).then(|| self.numbers.depth(pid));
        let (first, then) = pid::by_end(others().copied(), depth);
        first.into_iter().rev().chain(then).for_each(stops::reap_process);
    }
}

impl Nursery<'_> {
    /// From here on they end with us even when they run.
    fn give_into(&self, custody: &Custody) -> Result<()> {
        let open = |pid: &i32| {
            let failed = |e| Error::kernel(Object::Process(*pid), "open it", e);
            pidfd_open(freeze::pid_of(*pid)?, PidfdFlags::empty()).map_err(failed)
        };
        let pidfds = self.hands.keys().map(open).collect::<Result<Vec<_>>>()?;
        custody.hold(&pidfds.iter().map(AsFd::as_fd).collect::<Vec<_>>())
    }

    fn hand(&mut self, pid: i32) -> Result<&mut Hand> {
        self.hands.get_mut(&pid).ok_or_else(|| Error::kernel(Object::Process(pid), "build it", Errno::SRCH))
    }
}

/// Brings back the tree whose image is in `dir`. Its root becomes a child of
/// the calling process (of its parent with `options.sibling`).
pub fn restore(dir: &Path, options: &RestoreOptions) -> Result<RestoreReport> {
    let begun = Instant::now();
    let images = ImageDir::open(dir)?;
    network_lock::clear_stale();
    let plan = Plan::read(&images)?;
    options.hook.call(Moment::PreRestore, plan.root)?;
    refuse(&plan, options)?;
    let scratches = Scratches::find(&plan)?;
    let verdict = Verdict::inherited(scratches.base)?;
    let service = Service::new(service_number(&plan)?)?;
    // What is made goes again after those who might be in it.
    let (cgroups, made) = Restoring::prepare(&images, &options.cgroups, plan.tasks())?;
    let mut seed =
        Seed { begun, images: &images, plan: &plan, scratches: &scratches, verdict, service, cgroups, handover: None };
    if !plan.namespaces.has_own_pids(plan.root) {
        let report = seed.grow(options)?;
        made.keep();
        return Ok(report);
    }
    // Not from within: it is none of the tree, and must not be seen there.
    seed.handover = Handover::begin(&options.lazy, &plan)?;
    let nursery = Cradle::of_root(&images, &plan, options, &scratches)?;
    if let Some(custody) = &options.custody {
        custody.hold(&[nursery.tree.pidfd.as_fd()])?;
    }
    let report = inner::run(&nursery.tree, Some(nursery.free_pid), &options.hook, |outer| {
        seed.grow(&RestoreOptions { hook: outer.hook(), custody: None, ..options.clone() })
    })?;
    let root_pid = nursery.leave();
    made.keep();
    Ok(RestoreReport { root_pid, ..report })
}

/// The root of a tree in another pid namespace, which is killed unless it is left to itself.
#[derive(Debug)]
struct Cradle {
    tree: Tree,
    /// For the inner.
    free_pid: i32,
    is_done: bool,
}

impl Cradle {
    /// Makes the root of the plan, held by nobody yet: the init of a new pid namespace, or another in one of the caller's.
    fn of_root(images: &ImageDir, plan: &Plan, options: &RestoreOptions, scratches: &Scratches<'_>) -> Result<Cradle> {
        let id = plan.namespaces.made(Namespace::Pid).find(|(pid, _)| *pid == plan.root).map(|(_, id)| id);
        let given = id.map(|id| pid::given(images, options, id)).transpose()?.flatten();
        let mut flags = plan.namespaces.flags(plan.root);
        let mut others = Vec::new();
        if let Some(given) = &given {
            flags &= !(libc::CLONE_NEWPID as u64);
            others = pid::numbers_in(given.as_fd())?;
        } else if plan.root != INIT {
            let problem = format!("its root is process {} of a pid namespace, and not its init", plan.root);
            return Err(Error::bad_image("pstree.img", problem));
        }
        let inside = given.as_ref().map(AsFd::as_fd);
        let conceive = || spawn::conceive(plan.root, options.sibling, scratches.of(plan.root), flags, inside);
        let child = plan.born.with_groups(&plan.namespaces, plan.root, conceive)?;
        let tree = Tree::of(child.pid, child.pidfd, plan.root)?;
        Ok(Cradle { tree, free_pid: plan.free_pid(&others), is_done: false })
    }

    /// It runs. Its pid, as we see it.
    fn leave(mut self) -> i32 {
        self.is_done = true;
        self.tree.pid
    }
}

impl Drop for Cradle {
    fn drop(&mut self) {
        if !self.is_done {
            let _ = rustix::process::pidfd_send_signal(&self.tree.pidfd, rustix::process::Signal::KILL);
            // Fails for a child of our parent's, who takes its end.
            stops::reap(self.tree.pid);
        }
    }
}

/// Everything of which a tree is made.
struct Seed<'a> {
    begun: Instant,
    images: &'a ImageDir,
    plan: &'a Plan,
    scratches: &'a Scratches<'a>,
    verdict: Verdict,
    service: Service,
    cgroups: Restoring,
    /// To who fills memory later, if it is there already.
    handover: Option<Handover>,
}

impl Seed<'_> {
    /// Builds the tree and lets it run.
    fn grow(self, options: &RestoreOptions) -> Result<RestoreReport> {
        let mut refusals = None;
        let done = self.grow_unless_refused(options, &mut refusals);
        done.map_err(|error| match refusals.and_then(Refusals::hear) {
            Some(why) => Error::unsupported(Object::Other("memory".into()), format!("it cannot be had: {why}"), ""),
            None => error,
        })
    }

    /// The same. Who brings its memory may say through `refusals` why that cannot be.
    fn grow_unless_refused(self, options: &RestoreOptions, refusals: &mut Option<Refusals>) -> Result<RestoreReport> {
        let Seed { begun, images, plan, scratches, verdict, mut service, cgroups, mut handover } = self;
        let owner = Object::Other("the tree's user namespace".into());
        let _owner = users::own_files().map_err(|e| Error::kernel(owner, "make files in the name of its root", e))?;
        // Peers must not be answered before everything is as it was.
        let mut network = lock_network(images, plan, options)?;
        let mut nursery = Nursery { hands: BTreeMap::new(), numbers: &plan.numbers };
        let mut build = Build::new(images, options, &plan.files);
        build.root_pid = plan.root;
        build.cgroups = cgroups;
        let mut spaces = AddressSpaces::read(images, plan, scratches, &options.lazy, &options.progress)?;
        births::create_all(&mut nursery, plan, &mut service, &mut build, &mut spaces, scratches)?;
        let forked = Instant::now();
        fill_networks(&mut nursery, plan, &service, &mut build, &mut network)?;
        build.mounts.attach_namespaces(&build.namespaces)?;
        options.hook.call(Moment::PostSetupNamespaces, plan.root)?;

        if handover.is_none() {
            // Not before: it could have taken one of the tree's pids.
            handover = Handover::begin(&options.lazy, plan)?;
        }
        *refusals = handover.as_ref().and_then(Handover::refusals);
        build_memory(&mut nursery, plan, &service, &mut build, &mut spaces, handover.as_mut())?;
        if let Some(handover) = &mut handover {
            handover.complete(plan.processes.keys().copied())?;
        }
        let places = descriptors::install_all(&mut nursery, plan, &service, &mut build)?;
        settle(&mut nursery, plan, images, options, &places, &build)?;
        // Every file is open: mounts may become read-only, and share with others again.
        build.mounts.finish()?;
        births::end_zombies_and_helpers(&mut nursery, plan)?;
        let own = Own::read()?;
        let mut threads = 0;
        let living: Vec<&ProcessPlan> = plan.by_birth().filter(|p| !p.is_zombie()).collect();
        for some in living.chunks(AT_ONCE) {
            let begun =
                some.iter().map(|process| begin_attributes(&mut nursery, process)).collect::<Result<Vec<_>>>()?;
            for (process, begun) in some.iter().zip(begun) {
                finish_process(&mut nursery, plan, process, begun, (&service, &own), &mut build.cgroups)?;
                let rings = io_uring::Start { images, records: &plan.files, built: build.built(), places: &places };
                io_uring::start(nursery.hand(process.pid())?, process, &rings)?;
                threads += 1 + process.threads.len();
            }
        }
        births::leave_children_elsewhere(&mut nursery, plan, &service, &build)?;
        let (pages_restored, pages_lazy) = (spaces.pages_filled(), spaces.pages_later());
        drop(spaces);
        options.hook.call(Moment::PostRestore, plan.root)?;
        options.hook.call(Moment::PreResume, plan.root)?;
        if let Some(custody) = &options.custody {
            nursery.give_into(custody)?;
        }
        let mut links = None;
        let at_last = || {
            handover.map_or(Ok(()), Handover::go)?;
            network.lift()?;
            build.release_connections()?;
            // Our copies go before anything runs: an end of a pipe must not seem open for our sake.
            links = Some(build.finish());
            Ok(())
        };
        resume::resume_all(nursery, plan, scratches, &service, options, (&verdict, &own), at_last)?;
        if let Some(links) = links {
            links.remove();
        }
        options.hook.call(Moment::PostResume, plan.root)?;
        Ok(RestoreReport {
            root_pid: plan.root,
            processes: plan.processes.len(),
            threads,
            pages_restored,
            pages_lazy,
            forking_us: (forked - begun).as_micros() as u64,
            total_us: begun.elapsed().as_micros() as u64,
        })
    }
}

/// Gives every process its memory, and its place among the directories.
fn build_memory(
    nursery: &mut Nursery<'_>,
    plan: &Plan,
    service: &Service,
    build: &mut Build<'_>,
    spaces: &mut AddressSpaces<'_>,
    mut handover: Option<&mut Handover>,
) -> Result<()> {
    let mut at_work = AtWork::default();
    for process in plan.processes.values() {
        let Some(fs) = &process.fs else { continue };
        let mut work = at_work.add(nursery, process.pid(), service)?;
        spaces.finish(&mut work, build, handover.as_deref_mut())?;
        task::build_fs(&mut work, build, fs)?;
        at_work.start(work)?;
    }
    at_work.finish(nursery)
}

/// Fills network namespaces, now that all are there. Nothing passes in them until the tree is complete, if it has sockets
/// there.
fn fill_networks(
    nursery: &mut Nursery<'_>,
    plan: &Plan,
    service: &Service,
    build: &mut Build<'_>,
    locks: &mut NetworkLocks,
) -> Result<()> {
    let inventory = build.images.inventory()?;
    for own in build.namespaces.iter().filter(|own| own.kind.kind == Namespace::Net) {
        let here = |record: &&InetSkEntry| record.ns_id == Some(own.id);
        let records = plan.files.values().filter_map(|entry| entry.isk.as_ref()).filter(here);
        let reach = match records.clone().next() {
            None => Reach::Nothing,
            Some(_) if net::given(build.images, build.options, own.id)?.is_some() => Reach::Connections,
            Some(_) => Reach::Everything,
        };
        let peers = Peers::of_records(build.images, records)?;
        let run_id = locks.run_id().map(str::to_owned).or_else(|| inventory.dump_criu_run_id.clone());
        let run_id = run_id.filter(|id| network_lock::is_id(id));
        locks.add(NetworkLock::set_there(build.options.network_lock, own, run_id.as_deref(), (&peers, reach))?);
    }
    let surroundings = plan.namespaces.surroundings().net_ns_id;
    let (images, options) = (build.images, build.options);
    let hand = (nursery.hand(plan.root)?, service);
    build.networks = net::fill(images, options, &mut build.namespaces, surroundings, hand)?;
    Ok(())
}

/// The network lock, if there are connections to put together.
fn lock_network(images: &ImageDir, plan: &Plan, options: &RestoreOptions) -> Result<NetworkLocks> {
    let mut locks = NetworkLocks::default();
    locks.await_translated(Awaited::read(images, &options.tcp)?);
    if options.network_lock == LockMethod::Skip {
        return Ok(locks);
    }
    let ours = plan.namespaces.surroundings().net_ns_id;
    let here = |record: &&InetSkEntry| record.ns_id.is_none_or(|id| Some(id) == ours);
    let records = plan.files.values().filter_map(|entry| entry.isk.as_ref()).filter(here);
    let mut peers = Peers::of_records(images, records)?;
    peers.0.retain(|one| options.tcp.of(one.peer).keeps_record());
    locks.add(NetworkLock::set_again(&images.inventory()?, &peers)?);
    Ok(locks)
}

/// What can be known to fail before anything is made.
fn refuse(plan: &Plan, options: &RestoreOptions) -> Result<()> {
    for pid in plan.pids() {
        if !plan.namespaces.has_own_pids(plan.root) && !becomes_free(pid) {
            return Err(Error::Kernel {
                object: Object::Process(pid),
                action: "create it".into(),
                errno: Errno::EXIST,
                remedy: "the pid is taken by a running process; end that one, or restore in a pid namespace of its own",
            });
        }
    }
    plan.namespaces.refuse(options)?;
    for entry in plan.files.values() {
        Build::kind(entry)?;
    }
    Ok(())
}

/// Whether no process has the pid, or only a zombie whose parent takes it
/// away in time: an orphan's zombie may stay a moment.
fn becomes_free(pid: i32) -> bool {
    const PATIENCE: Duration = Duration::from_secs(3);
    let begun = Instant::now();
    loop {
        let stat = freeze::pid_of(pid).ok().and_then(|p| Task::open(p).ok()?.stat().ok());
        match stat {
            None => return true,
            Some(s) if s.state == State::Zombie && begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Some(_) => return false,
        }
    }
}

/// Where the hands have their scratch mappings: all at the same address, but
/// those that share their memory one beside the other.
#[derive(Debug)]
pub struct Scratches<'p> {
    base: u64,
    spaces: &'p SharedSpaces,
}

impl<'p> Scratches<'p> {
    fn find(plan: &'p Plan) -> Result<Self> {
        let mut shape = Shape::default();
        for mm in plan.processes.values().filter_map(|p| p.mm.as_ref()) {
            shape.add(&mm.vmas);
        }
        shape.add_maps(&Task::current()?.maps()?);
        let room = plan.spaces.most() as u64 * scratch::LEN + (1 << 20);
        let none = || Error::unsupported(Object::Process(plan.root), "its address space leaves no room to work in", "");
        Ok(Scratches { base: shape.free(room).ok_or_else(none)?, spaces: &plan.spaces })
    }

    /// Where a process has its own.
    fn of(&self, pid: i32) -> u64 {
        self.base + self.spaces.place(pid) as u64 * scratch::LEN
    }

    /// Where all are that share the memory of a process.
    pub fn of_space(&self, pid: i32) -> Range<u64> {
        self.base..self.base + self.spaces.count(pid) as u64 * scratch::LEN
    }

    /// A place where nobody has anything.
    pub fn detour(&self) -> u64 {
        self.base + self.spaces.most() as u64 * scratch::LEN + PAGE
    }
}

/// A descriptor number above all that the tree uses.
fn service_number(plan: &Plan) -> Result<i32> {
    /// A number that no process can have: a limit above is refused (fs.nr_open, fs/file_table.c).
    const TOO_HIGH: u32 = i32::MAX as u32 / 2;
    let highest = plan.tables.values().flatten().map(|f| f.fd).max().unwrap_or(0);
    if highest >= TOO_HIGH {
        return Err(Error::bad_image("fdinfo", format!("{highest} is no number of a descriptor")));
    }
    Ok(highest as i32 + 64)
}

/// What kinds of files do when everything is in place.
fn settle(
    nursery: &mut Nursery<'_>,
    plan: &Plan,
    images: &ImageDir,
    options: &RestoreOptions,
    places: &HashMap<u32, Vec<(i32, i32)>>,
    build: &Build<'_>,
) -> Result<()> {
    let mut settle = Settle {
        numbers: &plan.numbers,
        options,
        images,
        hands: &mut nursery.hands,
        places,
        records: &plan.files,
        built: build.built(),
        memfds: &build.memfds,
    };
    for (id, entry) in &plan.files {
        let (Some(kind), Some(file)) = (kind_of(entry), build.built().get(id)) else {
            continue;
        };
        let file = std::os::fd::AsFd::as_fd(file);
        if let Some(owner) = kind.owner(entry) {
            descriptors::set_owner(file, *id, owner)?;
        }
        let _there = build.visit_network(entry)?;
        kind.settle(&mut settle, entry, file)?;
    }
    crate::files::signals::enable(&mut settle)?;
    // Last: a lock of a process goes with the first close of its file.
    crate::files::locks::build(&mut settle)
}

/// What the hand of a process does while others begin as well.
struct Begun {
    batch: Batch,
    limits: limits::Ask,
}

/// Begins with the attributes of a process. To be followed by [`finish_process`].
fn begin_attributes(nursery: &mut Nursery<'_>, process: &ProcessPlan) -> Result<Begun> {
    let hand = nursery.hand(process.pid())?;
    hand.hush(signals_in_use(process))?;
    let mut batch = Batch::new();
    if let Some(tc) = &process.core.tc {
        task::build_calls(&mut batch, tc);
    }
    let limits = limits::Ask::new(&mut batch);
    hand.start(&batch)?;
    Ok(Begun { batch, limits })
}

/// Threads and attributes of one process, short of what resuming does.
fn finish_process(
    nursery: &mut Nursery<'_>,
    plan: &Plan,
    process: &ProcessPlan,
    begun: Begun,
    (service, own): (&Service, &Own),
    cgroups: &mut Restoring,
) -> Result<()> {
    let hand = nursery.hand(process.pid())?;
    let Begun { mut batch, limits } = begun;
    hand.wait(&mut batch)?;
    if let Some(tc) = &process.core.tc {
        task::build(hand, service, tc)?;
        if let Some(rlimits) = &tc.rlimits {
            limits::build(hand, rlimits, &limits, &batch)?;
        }
    }
    plan.debts.build(hand)?;
    births::create_threads(hand, plan, process, cgroups)?;
    leader::end(hand, process, plan.extras.get(&process.pid()), (own.bounding, &own.cpus), &plan.born)?;
    if let Some(all) = process.core.tc.as_ref().and_then(|tc| tc.timers.as_ref()) {
        timers::create(hand, all, plan.timer_owners.get(&process.pid()), &plan.numbers)?;
    }
    Ok(())
}

/// The signals that a process catches, has waiting or gets from timers, bit n-1 for signal n.
fn signals_in_use(process: &ProcessPlan) -> u64 {
    let tc = process.core.tc.as_ref();
    let mut set = tc.map_or(0, |tc| signals::caught(&tc.sigactions) | signals::waiting(tc.signals_s.as_ref()));
    let timers = tc.and_then(|tc| tc.timers.as_ref()).into_iter().flat_map(|all| &all.posix);
    set |= timers.filter(|t| (1..=64).contains(&t.si_signo)).fold(0, |set, t| set | 1 << (t.si_signo - 1));
    for (_, core) in process.cores() {
        set |= signals::waiting(core.thread_core.as_ref().and_then(|t| t.signals_p.as_ref()));
    }
    set
}
