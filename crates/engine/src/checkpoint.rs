//! A checkpoint: freeze, collect, write, and let go or end.

use crate::attributes::{credentials, leader};
use crate::caller::{Event, ToldToLock};
use crate::cgroups::{Membership, Thawed};
use crate::dump::{About, dump, expect_files};
use crate::files::socket::{self, Held, Peers};
use crate::freeze::{self, Frozen, Process, pid_of};
use crate::lazy::PageService;
use crate::lineage::{Kin, Lineage};
use crate::namespaces::{self, Owned, inner, net, pid, user};
use crate::network_lock::{self, NetworkLock, NetworkLocks, Reach};
use crate::options::{Afterwards, PrecopyMode};
use crate::precopy::{self, Keeping, Precopied};
use crate::report::{CheckpointReport, micros};
use crate::sharing::{self, Namespaces, Sharing};
use crate::tcp_policy::TcpPolicy;
use crate::tracking;
use crate::{CheckpointOptions, Error, Moment, Object, Result, lazy, parallel};
use cryonaut_image::records::TaskKobjIdsEntry;
use cryonaut_image::{CommitOptions, DumpDir, Durability, ImageKind, Leavings, Remains, is_part_of_an_image};
use cryonaut_kernel::Pid;
use cryonaut_kernel::guard::Undertaker;
use cryonaut_kernel::janitor::{Duty, Janitor};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::stat::State;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::kcmp::{self, Shared};
use cryonaut_kernel::sys::namespace::visit_network;
use rustix::process::PidfdFlags;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Instant;

/// Writes the state of the tree below `pid` into `dir`.
///
/// If this fails, the tree goes on as it was and no image is there.
pub fn checkpoint(pid: i32, dir: &Path, options: &CheckpointOptions) -> Result<CheckpointReport> {
    refuse_ourselves(pid)?;
    lazy::wait_until_filled(pid)?;
    network_lock::clear_stale();
    let surroundings = Namespaces::read(&Task::current()?)?;
    let Some(tree) = pid::elsewhere(pid, &options.external)? else {
        let done = checkpoint_here(pid, dir, options, &surroundings);
        return done.map_err(|error| why_pages_were_lost(options).unwrap_or(error));
    };
    let begun = Instant::now();
    let report = inner::run(&tree, None, &options.hook, |outer| {
        let options = CheckpointOptions { hook: outer.hook(), ..options.clone() };
        let done = checkpoint_here(tree.inside, dir, &options, &surroundings);
        done.map_err(|error| why_pages_were_lost(&options).unwrap_or(error))
    })?;
    Ok(CheckpointReport { root_pid: pid, total_us: micros(begun.elapsed()), ..report })
}

/// Who writes pages to a server that is gone is told no more than that nobody reads them.
fn why_pages_were_lost(options: &CheckpointOptions) -> Option<Error> {
    Some(options.page_server.as_ref()?.failure()?.into())
}

/// The same for a tree of our own pid namespace. `surroundings` are the namespaces that count as not the tree's.
fn checkpoint_here(
    pid: i32,
    dir: &Path,
    options: &CheckpointOptions,
    surroundings: &Namespaces,
) -> Result<CheckpointReport> {
    let begun = Instant::now();
    freeze::prepare(pid);
    options.hook.call(Moment::PreDump, pid)?;
    let janitor = janitor(dir)?;
    let images = DumpDir::create(dir)?;
    if options.page_server.is_some() {
        images.leave_memory_out();
    }
    // What nobody needs to stand still for.
    expect_files(&images, pid, options.page_server.is_none())?;
    set_parent(&images, options)?;
    let precopied = precopy(pid, &images, options)?;
    let mut sharing = Sharing::default();
    // Ours first: their numbers are the lowest.
    let own = sharing.numbers_of(surroundings);
    parallel::get_ready();
    let has_sockets = socket::get_ready(pid);
    cryonaut_kernel::heap::fault_in();
    credentials::last_capability();
    let freezing = Instant::now();
    // Before the tree, so that it closes behind it: hands could not go home in it.
    let thawed = options.cgroups.freezer.as_deref().map(Thawed::closed).transpose()?.flatten();
    let mut frozen = Frozen::freeze(pid, options.timeout, thawed.as_ref())?;
    let stood_still = Instant::now();
    for process in frozen.processes.iter_mut().filter(|p| !p.is_zombie()) {
        process.ids = Some(sharing.ids(process)?);
    }
    refuse(&frozen, &own, options)?.write(&images)?;
    user::take_note(&frozen.processes, &own)?;
    let told = tell_of_network(&frozen, &own, options)?;
    let extended = with_answers(&frozen, options)?;
    let options = extended.as_ref().unwrap_or(options);
    // Before anything is asked of a socket; it is let go before the tree is.
    let owned = Owned::find(&frozen.processes, &own)?;
    let mut network = lock_network(&frozen, &owned, options, has_sockets)?;
    let entering = Instant::now();
    frozen.enter_all()?;
    if options.afterwards == Afterwards::Kill {
        frozen.make_verdict()?;
    }
    let mut report = CheckpointReport {
        root_pid: pid,
        freeze_us: micros(stood_still - freezing),
        enter_us: micros(entering.elapsed()),
        ..CheckpointReport::default()
    };
    let cgroups = Membership::find(&mut frozen.processes, (&own, &owned), &options.cgroups)?;
    let precopied_by = precopied.as_ref();
    let about =
        About { own, owned: &owned, cgroups: &cgroups, network: &network, has_sockets, precopied: precopied_by };
    let (links, connections) = dump(&mut frozen, &images, options, about, &mut report, janitor.as_ref())?;
    if let Some(server) = &options.page_server {
        // Memory may be on its way by reference alone: nobody runs before it has arrived.
        server.close()?;
    }
    options.hook.call(Moment::PostDump, pid)?;
    let durability = if options.sync { Durability::Synced } else { Durability::Relaxed };
    let commit = |images: DumpDir| -> Result<Remains> {
        Ok(images.commit(CommitOptions { durability, compress: options.compress, ..CommitOptions::default() })?)
    };
    let keeps = options.keep_tracking && options.afterwards != Afterwards::Kill;
    let settle = |precopied: Option<Precopied<'_>>, report: &mut CheckpointReport| -> Result<Option<Keeping>> {
        let Some(precopied) = precopied else { return Ok(None) };
        let (told, keeping) = precopied.settle(keeps, options.afterwards != Afterwards::LeaveRunning)?;
        report.precopy = Some(told);
        Ok(keeping)
    };
    // What remains is cleared away when the tree no longer waits for it.
    let (remains, keeping);
    match options.afterwards {
        Afterwards::LeaveRunning => {
            network.lift()?;
            told.unlock()?;
            ((), report.end_us) = timed(|| release(frozen, thawed))?;
            report.frozen_us = micros(stood_still.elapsed());
            keeping = settle(precopied, &mut report)?;
            (remains, report.commit_us) = timed(|| commit(images))?;
            links.keep();
        }
        Afterwards::LeaveStopped => {
            keeping = settle(precopied, &mut report)?;
            (remains, report.commit_us) = timed(|| commit(images))?;
            links.keep();
            frozen.stop()?;
            network.lift()?;
            told.unlock()?;
            ((), report.end_us) = timed(|| release(frozen, thawed))?;
            report.frozen_us = micros(stood_still.elapsed());
        }
        Afterwards::Kill => {
            frozen.share_verdict();
            keeping = settle(precopied, &mut report)?;
            (remains, report.commit_us) = timed(|| commit(images))?;
            if let Some(service) = &options.lazy_pages {
                hand_over(service, &frozen, dir, options)?;
            }
            links.keep();
            told.keep();
            if let Some(thawed) = thawed {
                thawed.end();
            }
            if let Some(outer) = inner::outer().filter(|_| pid == inner::INIT) {
                drop(remains);
                report.frozen_us = micros(stood_still.elapsed());
                return outer.end_tree(frozen, &connections, network, report);
            }
            let undertakers = undertakers(pid, &mut network, &connections)?;
            // Who is told to end is no longer frozen.
            report.frozen_us = micros(stood_still.elapsed());
            ((), report.end_us) = timed(|| frozen.kill())?;
            // We hold the last descriptors of them.
            connections.silence();
            drop(undertakers);
            connections.close();
            network.keep();
        }
    }
    drop(remains);
    keep(keeping);
    report.total_us = micros(begun.elapsed());
    Ok(report)
}

/// Lets whoever restores the tree fetch its memory. If that fails, the image is none any more.
fn hand_over(service: &PageService, frozen: &Frozen, dir: &Path, options: &CheckpointOptions) -> Result<()> {
    let root = frozen.processes[0].pid;
    let done = options.hook.call(Moment::StatusReady, root).and_then(|()| service.serve(&frozen.processes));
    done.inspect_err(|_| {
        // What makes a directory an image. The rest is replaced by the next dump.
        let inventory = ImageKind::Inventory.file_name(None).map(|name| dir.join(name));
        if let Err(e) = inventory.map_err(std::io::Error::other).and_then(std::fs::remove_file) {
            tracing::warn!("{}: what is there lacks its memory, and looks like an image: {e}", dir.display());
        }
    })
}

/// Copies the memory of a tree that goes on, what was written since the parent of the image was made or else all of it, for
/// the next image, which may leave what has not changed to this one. It is no image that could be restored.
///
/// # Errors
/// As for [`checkpoint`].
pub fn pre_dump(pid: i32, dir: &Path, options: &CheckpointOptions) -> Result<CheckpointReport> {
    refuse_ourselves(pid)?;
    lazy::wait_until_filled(pid)?;
    let Some(tree) = pid::elsewhere(pid, &options.external)? else { return pre_dump_here(pid, dir, options) };
    let report = inner::run(&tree, None, &options.hook, |outer| {
        let options = CheckpointOptions { hook: outer.hook(), ..options.clone() };
        pre_dump_here(tree.inside, dir, &options)
    })?;
    Ok(CheckpointReport { root_pid: pid, ..report })
}

fn pre_dump_here(pid: i32, dir: &Path, options: &CheckpointOptions) -> Result<CheckpointReport> {
    let begun = Instant::now();
    options.hook.call(Moment::PreDump, pid)?;
    let _janitor = janitor(dir)?;
    let images = DumpDir::create(dir)?;
    set_parent(&images, options)?;
    parallel::get_ready();
    let (precopied, count) = Precopied::pre_dump(pid, &images, options)?;
    images.write_one(ImageKind::Inventory, None, &crate::dump::inventory_of_pre_dump())?;
    let (precopy, keeping) = precopied.settle(true, false)?;
    let mut report = CheckpointReport {
        root_pid: pid,
        pages_scanned: count.scanned,
        pages_written: count.written,
        pages_in_parent: count.in_parent,
        frozen_us: precopy.stops_us.iter().sum(),
        ..CheckpointReport::default()
    };
    report.processes = keeping.as_ref().map_or(0, |(_, spaces)| spaces.len());
    report.precopy = Some(precopy);
    let durability = if options.sync { Durability::Synced } else { Durability::Relaxed };
    drop(images.commit(CommitOptions { durability, ..CommitOptions::default() })?);
    keep(keeping);
    options.hook.call(Moment::PostDump, pid)?;
    report.total_us = micros(begun.elapsed());
    Ok(report)
}

/// Names the image to which this one leaves what has not changed.
fn set_parent(images: &DumpDir, options: &CheckpointOptions) -> Result<()> {
    options.parent.as_ref().map_or(Ok(()), |parent| Ok(images.set_parent(parent)?))
}

/// Has the tracking go on. The image is there already: without it, the next one has all of the memory again.
fn keep(keeping: Option<Keeping>) {
    let Some((kept, spaces)) = keeping else { return };
    if let Err(e) = kept.keep(&spaces) {
        tracing::warn!("the next image will have all memory again: {e}");
    }
}

/// Copies the memory of the tree while it runs, if that is wanted and worth it.
fn precopy<'a>(pid: i32, images: &'a DumpDir, options: &CheckpointOptions) -> Result<Option<Precopied<'a>>> {
    let is_wanted = match options.precopy.mode {
        PrecopyMode::Never => options.keep_tracking || options.parent.is_some(),
        PrecopyMode::Always => true,
        PrecopyMode::Auto => {
            let is_large = options.afterwards == Afterwards::LeaveRunning && precopy::is_worth_it(pid);
            is_large || options.keep_tracking || options.parent.is_some()
        }
    };
    // A page server takes each page once; what comes later is not copied.
    if !is_wanted || options.page_server.is_some() || options.lazy_pages.is_some() {
        tracking::end_all(pid)?;
        return Ok(None);
    }
    let is_closed = options.cgroups.freezer.as_deref().map(Thawed::closed).transpose()?.flatten().is_some();
    Ok(Some(Precopied::make(pid, images, options, is_closed)?))
}

/// Lets the tree go on, in the freezer in which it was.
fn release(frozen: Frozen, thawed: Option<Thawed>) -> Result<()> {
    let Some(thawed) = thawed else { return frozen.release() };
    frozen.release()?;
    thawed.close()?.wait();
    Ok(())
}

/// Tells the caller of a network namespace that the tree has for itself.
fn tell_of_network<'h>(
    frozen: &Frozen,
    own: &TaskKobjIdsEntry,
    options: &'h CheckpointOptions,
) -> Result<ToldToLock<'h>> {
    let root = &frozen.processes[0];
    let is_its_own = root.ids.as_ref().is_some_and(|ids| ids.net_ns_id != own.net_ns_id);
    ToldToLock::new(&options.hook, root.pid, is_its_own)
}

/// The options with what the caller adds when asked; `None` if that is nothing.
fn with_answers(frozen: &Frozen, options: &CheckpointOptions) -> Result<Option<CheckpointOptions>> {
    let event = Event { moment: Moment::QueryExtFiles, root_pid: frozen.processes[0].pid, terminal: None };
    let more = options.hook.ask(&event)?.external;
    Ok((!more.is_empty()).then(|| {
        let mut extended = options.clone();
        extended.external.extend(more);
        extended
    }))
}

/// The network locks: for connections in our network namespace, if they are to be carried and there are any; and for
/// every network namespace of the tree's with sockets in it.
fn lock_network(
    frozen: &Frozen,
    owned: &Owned,
    options: &CheckpointOptions,
    has_sockets: bool,
) -> Result<NetworkLocks> {
    let mut locks = NetworkLocks::default();
    let peers = || -> Result<Peers> {
        if !options.tcp.may_keep() {
            return Ok(Peers::default());
        }
        let living = frozen.processes.iter().filter(|p| !p.is_zombie());
        let living = living.map(|p| (p.pid, p.speaker()));
        let mut peers = Peers::of_tree(living, !options.skip_in_flight, has_sockets)?;
        peers.0.retain(|one| options.tcp.of(one.peer) == TcpPolicy::Keep);
        Ok(peers)
    };
    locks.add(NetworkLock::set(options.network_lock, &peers()?)?);
    for own in owned.iter().filter(|own| own.kind.kind == Namespace::Net) {
        let there = visit_network(own.file.as_fd()).map_err(own.failed("enter it"))?;
        let is_empty = Task::current_thread()?.inet_sockets().is_ok_and(|sockets| sockets == 0);
        let peers = if is_empty { Peers::default() } else { peers()? };
        drop(there);
        let reach = match is_empty {
            true => Reach::Nothing,
            false if net::is_named(&options.external, own)? => Reach::Connections,
            false => Reach::Everything,
        };
        let lock = NetworkLock::set_there(options.network_lock, own, locks.run_id(), (&peers, reach))?;
        locks.add(lock);
    }
    Ok(locks)
}

/// Who sees to it that no peer hears of the end of the tree, should we be killed in it.
fn undertakers(root: i32, network: &mut NetworkLocks, connections: &Held) -> Result<Vec<Undertaker>> {
    let root = rustix::process::pidfd_open(pid_of(root)?, PidfdFlags::empty())
        .map_err(|e| Error::kernel(Object::Process(root), "watch it", e))?;
    network.see_to_the_end(&root, connections)
}

/// Who removes what we have written, should we be killed. Without one, the
/// next checkpoint into the same directory does.
fn janitor(dir: &Path) -> Result<Option<Janitor>> {
    let leavings = Leavings::of(dir)?;
    let (Ok(directory), Ok(hidden), Ok(mark)) = (
        CString::new(std::path::absolute(dir).unwrap_or_default().into_os_string().into_vec()),
        CString::new(leavings.hidden),
        CString::new(leavings.inventory),
    ) else {
        return Ok(None);
    };
    let ours = if leavings.visible { is_part_of_an_image } else { |_: &[u8], _| false };
    let duty = Duty { directory, hidden, mark, ours, whole: leavings.directory };
    Ok(Janitor::hire(&duty).inspect_err(|e| tracing::warn!("nobody would clear up behind us: {e}")).ok())
}

/// Runs it; what came of it, and how long it took.
fn timed<T>(step: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let begun = Instant::now();
    let made = step()?;
    Ok((made, micros(begun.elapsed())))
}

/// A tree that contains the checkpointer would wait for itself.
fn refuse_ourselves(pid: i32) -> Result<()> {
    let mut up = rustix::process::getpid().as_raw_nonzero().get();
    while up > 1 {
        if up == pid {
            return Err(Error::unsupported(
                Object::Process(pid),
                "it is this program, or an ancestor of it",
                "run the checkpoint from outside the tree",
            ));
        }
        let task = Task::open(pid_of(up)?)?;
        up = task.stat()?.ppid;
    }
    Ok(())
}

/// What cannot be carried, found before anything is entered. What pids the processes have in deeper namespaces.
fn refuse(frozen: &Frozen, own: &TaskKobjIdsEntry, options: &CheckpointOptions) -> Result<pid::Numbers> {
    let in_tree = |pid: i32| frozen.processes.iter().any(|p| p.pid == pid);
    let root = &frozen.processes[0];
    if root.is_zombie() {
        return Err(Error::unsupported(Object::Process(root.pid), "it has ended and waits for its parent", ""));
    }
    if !options.shell_job && !in_tree(root.stat.session) {
        return Err(Error::unsupported(
            Object::Process(root.pid),
            format!("its session {} has its leader outside of the tree", root.stat.session),
            "use --shell-job if it was started from a terminal, or start it with setsid",
        ));
    }
    let numbers = pid::Numbers::of_tree(&frozen.processes)?;
    refuse_history(frozen, &numbers)?;
    refuse_shared_outside(root)?;
    namespaces::ipc::undo::refuse_outside(&frozen.processes, own)?;
    if options.page_server.is_some() {
        refuse_one_memory_of_several(frozen)?;
    }
    for process in frozen.processes.iter().filter(|p| !p.is_zombie()) {
        const SHSTK: u32 = 1 << 0;
        if process.status.x86_thread_features & SHSTK != 0 {
            return Err(Error::unsupported(
                Object::Process(process.pid),
                "it uses shadow stacks",
                "start it without them",
            ));
        }
        if process.status.core_dumping {
            return Err(Error::unsupported(Object::Process(process.pid), "it is dumping core", ""));
        }
        if let Some(ended) = &process.ended {
            leader::refuse(process, ended)?;
        }
        if let Some(ids) = &process.ids {
            namespaces::refuse(process.pid, ids, own)?;
        }
    }
    Ok(numbers)
}

/// A page server keeps memory for each process by itself.
fn refuse_one_memory_of_several(frozen: &Frozen) -> Result<()> {
    let mut seen = BTreeSet::new();
    let again = frozen.processes.iter().find(|p| p.ids.is_some_and(|ids| !seen.insert(ids.vm_id)));
    again.map_or(Ok(()), |process| {
        Err(Error::unsupported(
            Object::Process(process.pid),
            "it shares its memory with another process (CLONE_VM), which a page server cannot keep",
            "dump it without --page-server",
        ))
    })
}

/// A tree whose sessions and groups, or what its processes share, no order of
/// births could make again.
fn refuse_history(frozen: &Frozen, numbers: &pid::Numbers) -> Result<()> {
    let kin = |p: &Process| (p.pid, Kin { parent: p.ppid, group: p.stat.pgrp, session: p.stat.session });
    let tree = frozen.processes.iter().map(kin).collect();
    let shared = |pid: i32| {
        let process = frozen.processes.iter().find(|p| p.pid == pid)?;
        process.ids.as_ref().map(sharing::inborn)
    };
    let root = frozen.processes[0].pid;
    let lineage = Lineage::arrange(root, &tree).and_then(|all| all.in_deeper_namespaces(root, &tree, numbers));
    lineage.and_then(|lineage| lineage.check_inborn(shared)).map_err(|e| {
        Error::unsupported(Object::Process(e.pid), format!("it {}", e.what), "nothing could make this tree again")
    })
}

/// Memory that somebody outside of the tree shares would be written to while
/// it is read, and could not be shared again.
fn refuse_shared_outside(root: &Process) -> Result<()> {
    let Ok(parent) = pid_of(root.stat.ppid) else { return Ok(()) };
    let root_tid = pid_of(root.speaker())?;
    let is_same = |tid: &Pid| kcmp::resource(root_tid, *tid, Shared::Vm).is_ok_and(std::cmp::Ordering::is_eq);
    // The first thread of the parent may have ended, and has no memory then.
    let task = Task::open(parent);
    let others = || task.as_ref().ok().and_then(|task| task.tids().ok()).unwrap_or_default();
    let first_lives = task.as_ref().is_ok_and(|task| task.stat().is_ok_and(|stat| stat.state != State::Zombie));
    if is_same(&parent) || !first_lives && others().iter().any(is_same) {
        return Err(Error::unsupported(
            Object::Process(root.pid),
            format!("it shares its memory with its parent {}, which is not in the tree", root.stat.ppid),
            "checkpoint the parent, and it with that",
        ));
    }
    Ok(())
}
