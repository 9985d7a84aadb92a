//! A checkpoint: freeze, collect, write, and let go or end.

use crate::attributes::clocks::Clocks;
use crate::attributes::{cpu_timers, extras, signals, task, thread};
use crate::files::{Collect, NewLinks};
use crate::freeze::{Frozen, Process, Thread, pid_of};
use crate::lineage::{Kin, Lineage};
use crate::memory::{AllExtras, PageCount, aio, dump_private, mappings, mm_record};
use crate::options::Afterwards;
use crate::questions::{self, Questions};
use crate::report::CheckpointReport;
use crate::sharing::{self, SharedSpace, Sharing, Spaces};
use crate::{CheckpointOptions, Error, Moment, Object, Result};
use cryonaut_image::records::{CoreEntry, InventoryEntry, PstreeEntry, TaskKobjIdsEntry};
use cryonaut_image::{CommitOptions, DumpDir, Durability, ImageKind, Leavings, is_part_of_an_image};
use cryonaut_kernel::janitor::{Duty, Janitor};
use cryonaut_kernel::sys::kcmp::{self, Shared};
use cryonaut_puppet::{Batch, Hand, Job};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use rustix::time::{ClockId, clock_gettime};
use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The image version of the format (a fact of it).
const IMAGE_VERSION: u32 = 2;

/// Writes the state of the tree below `pid` into `dir`.
///
/// If this fails, the tree goes on as it was and no image is there.
pub fn checkpoint(pid: i32, dir: &Path, options: &CheckpointOptions) -> Result<CheckpointReport> {
    let begun = Instant::now();
    refuse_ourselves(pid)?;
    options.hook.call(Moment::PreDump, pid)?;
    let janitor = janitor(dir)?;
    let images = DumpDir::create(dir)?;
    let freezing = Instant::now();
    let mut frozen = Frozen::freeze(pid, options.timeout)?;
    let stood_still = Instant::now();
    let mut sharing = Sharing::default();
    // Ours first: their numbers are the lowest.
    let own = sharing.namespaces_of(&cryonaut_kernel::proc::Task::current()?)?;
    for process in frozen.processes.iter_mut().filter(|p| !p.is_zombie()) {
        process.ids = Some(sharing.ids(process)?);
    }
    refuse(&frozen, &own, options)?;
    let entering = Instant::now();
    frozen.enter_all()?;
    if options.afterwards == Afterwards::Kill {
        frozen.share_verdict()?;
    }
    let mut report = CheckpointReport {
        root_pid: pid,
        freeze_us: micros(stood_still - freezing),
        enter_us: micros(entering.elapsed()),
        ..CheckpointReport::default()
    };
    let links = dump(&mut frozen, &images, options, own, &mut report, janitor.as_ref())?;
    options.hook.call(Moment::PostDump, pid)?;
    let durability = if options.sync { Durability::Synced } else { Durability::Relaxed };
    match options.afterwards {
        Afterwards::LeaveRunning => {
            report.end_us = timed(|| frozen.release())?;
            report.frozen_us = micros(stood_still.elapsed());
            report.commit_us = timed(|| commit(images, durability, links))?;
        }
        Afterwards::LeaveStopped => {
            report.commit_us = timed(|| commit(images, durability, links))?;
            frozen.stop()?;
            report.end_us = timed(|| frozen.release())?;
            report.frozen_us = micros(stood_still.elapsed());
        }
        Afterwards::Kill => {
            report.commit_us = timed(|| commit(images, durability, links))?;
            report.end_us = timed(|| frozen.kill())?;
            report.frozen_us = micros(stood_still.elapsed());
        }
    }
    report.total_us = micros(begun.elapsed());
    Ok(report)
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
    let ours = if leavings.visible { is_part_of_an_image } else { |_: &[u8]| false };
    let duty = Duty { directory, hidden, mark, ours, whole: leavings.directory };
    Ok(Janitor::hire(&duty).inspect_err(|e| tracing::warn!("nobody would clear up behind us: {e}")).ok())
}

fn commit(images: DumpDir, durability: Durability, links: NewLinks) -> Result<()> {
    images.commit(CommitOptions { durability, ..CommitOptions::default() })?;
    links.keep();
    Ok(())
}

/// Runs it; how long it took.
fn timed(step: impl FnOnce() -> Result<()>) -> Result<u64> {
    let begun = Instant::now();
    step()?;
    Ok(micros(begun.elapsed()))
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
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
        let task = cryonaut_kernel::proc::Task::open(pid_of(up)?)?;
        up = task.stat()?.ppid;
    }
    Ok(())
}

/// What cannot be carried, found before anything is entered.
fn refuse(frozen: &Frozen, own: &TaskKobjIdsEntry, options: &CheckpointOptions) -> Result<()> {
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
    refuse_history(frozen)?;
    refuse_shared_outside(root)?;
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
        if process.threads[0].tid != process.pid {
            return Err(Error::unsupported(
                Object::Process(process.pid),
                "its first thread has ended while others go on",
                "this cannot be built again: the kernel lets no process start without its leader",
            ));
        }
        if let Some(ids) = &process.ids {
            refuse_namespaces(process.pid, ids, own)?;
        }
    }
    Ok(())
}

/// A tree whose sessions and groups, or what its processes share, no order of
/// births could make again.
fn refuse_history(frozen: &Frozen) -> Result<()> {
    let kin = |p: &Process| (p.pid, Kin { parent: p.ppid, group: p.stat.pgrp, session: p.stat.session });
    let tree = frozen.processes.iter().map(kin).collect();
    let shared = |pid: i32| {
        let process = frozen.processes.iter().find(|p| p.pid == pid)?;
        process.ids.as_ref().map(sharing::inborn)
    };
    let lineage = Lineage::arrange(frozen.processes[0].pid, &tree);
    lineage.and_then(|lineage| lineage.check_inborn(shared)).map_err(|e| {
        Error::unsupported(Object::Process(e.pid), format!("it {}", e.what), "nothing could make this tree again")
    })
}

/// Memory that somebody outside of the tree shares would be written to while
/// it is read, and could not be shared again.
fn refuse_shared_outside(root: &Process) -> Result<()> {
    let Ok(parent) = pid_of(root.stat.ppid) else { return Ok(()) };
    match kcmp::resource(pid_of(root.pid)?, parent, Shared::Vm) {
        Ok(std::cmp::Ordering::Equal) => Err(Error::unsupported(
            Object::Process(root.pid),
            format!("it shares its memory with its parent {}, which is not in the tree", root.stat.ppid),
            "checkpoint the parent, and it with that",
        )),
        _ => Ok(()),
    }
}

/// Writes everything about a frozen tree.
fn dump(
    frozen: &mut Frozen,
    images: &DumpDir,
    options: &CheckpointOptions,
    own: TaskKobjIdsEntry,
    report: &mut CheckpointReport,
    janitor: Option<&Janitor>,
) -> Result<NewLinks> {
    let mut pids: Vec<i32> = frozen.processes.iter().map(|p| p.pid).collect();
    pids.sort_unstable();
    let mut cx = Collect::new(images, options, &pids);
    cx.janitor = janitor;
    let mut in_memory = AllExtras::default();
    let mut threads = thread::Gathered::default();
    let mut tables = Vec::new();
    let mut spaces = Spaces::of(&frozen.processes);
    let inventory = InventoryEntry {
        img_version: IMAGE_VERSION,
        fdinfo_per_id: Some(true),
        root_ids: Some(own),
        ns_per_id: Some(true),
        root_cg_set: None,
        lsmtype: Some(0),
        dump_uptime: Some(uptime_ticks()),
        ..InventoryEntry::default()
    };
    let own_time = inventory.root_ids.as_ref().and_then(|ids| ids.time_ns_id);
    let mut clocks = Clocks::new(images, own_time)?;
    for processes in frozen.processes.chunks_mut(questions::AT_ONCE) {
        let ask = |p: &mut Process| if p.is_zombie() { Ok(None) } else { Questions::ask(p).map(Some) };
        let asked: Vec<Option<Questions>> = processes.iter_mut().map(ask).collect::<Result<_>>()?;
        for (process, questions) in processes.iter_mut().zip(asked) {
            write_pstree(images, process)?;
            report.processes += 1;
            report.threads += process.threads.len();
            let Some(mut questions) = questions else {
                write_zombie(images, process)?;
                continue;
            };
            questions.wait(process)?;
            let Some(ids) = process.ids else { continue };
            let files_id = ids.files_id;
            images.write_one(ImageKind::Ids, process.pid as u64, &ids)?;
            clocks.note(images, ids.time_ns_id, process)?;
            if !tables.contains(&files_id) {
                tables.push(files_id);
                descriptors(&mut cx, process, files_id)?;
            }
            let fs = task::fs_record(&mut cx, process)?;
            images.write_one(ImageKind::Fs, process.pid as u64, &fs)?;
            let started = Instant::now();
            dump_process(&mut cx, &mut threads, process, &questions)?;
            if let Some(space) = spaces.take(ids.vm_id) {
                let count = dump_memory(&mut cx, &mut in_memory, process, &space, &questions)?;
                report.pages_scanned += count.scanned;
                report.pages_written += count.written;
            }
            report.memory_us += micros(started.elapsed());
        }
    }
    report.shared_pages_scanned = cx.shared_pages().scanned;
    report.shared_pages_written = cx.shared_pages().written;
    in_memory.write(images)?;
    extras::write(images, &threads.extras)?;
    cpu_timers::write(images, &threads.timer_owners)?;
    images.write_one(ImageKind::Seccomp, None, threads.filters.record())?;
    // Readers expect this one even when no file was open.
    images.entry_file(ImageKind::Files, None)?;
    images.write_one(ImageKind::Inventory, None, &inventory)?;
    Ok(cx.take_links())
}

/// Namespaces cannot be carried yet. A restore by CRIU leaves its tree in a
/// time namespace, whose clocks are written down; ours runs on without it.
fn refuse_namespaces(pid: i32, ids: &TaskKobjIdsEntry, ours: &TaskKobjIdsEntry) -> Result<()> {
    let all = |ids: &TaskKobjIdsEntry| {
        [
            ("pid", ids.pid_ns_id),
            ("network", ids.net_ns_id),
            ("ipc", ids.ipc_ns_id),
            ("uts", ids.uts_ns_id),
            ("mount", ids.mnt_ns_id),
            ("user", ids.user_ns_id),
            ("cgroup", ids.cgroup_ns_id),
        ]
    };
    match all(ids).iter().zip(all(ours)).find(|(theirs, ours)| theirs.1 != ours.1) {
        None => Ok(()),
        Some(((name, _), _)) => Err(Error::unsupported(
            Object::Process(pid),
            format!("it has a {name} namespace of its own"),
            "start it in the namespaces of this program: others cannot be carried yet",
        )),
    }
}

fn write_zombie(images: &DumpDir, process: &Process) -> Result<()> {
    let core =
        CoreEntry { mtype: crate::arch::MARCH as i32, tc: Some(task::base_record(process)?), ..CoreEntry::default() };
    Ok(images.write_one(ImageKind::Core, process.pid as u64, &core)?)
}

fn write_pstree(images: &DumpDir, process: &Process) -> Result<()> {
    let threads = if process.is_zombie() {
        vec![process.pid as u32]
    } else {
        process.threads.iter().map(|t| t.tid as u32).collect()
    };
    let entry = PstreeEntry {
        pid: process.pid as u32,
        ppid: process.ppid as u32,
        pgid: process.stat.pgrp as u32,
        sid: process.stat.session as u32,
        threads,
    };
    Ok(images.append(ImageKind::Pstree, None, &entry, None)?)
}

/// The descriptor table: every open file, and the numbers under which it is.
fn descriptors(cx: &mut Collect<'_>, process: &Process, files_id: u32) -> Result<()> {
    let failed = |e| Error::kernel(Object::Process(process.pid), "duplicate its descriptors", e);
    let pidfd = rustix::process::pidfd_open(pid_of(process.pid)?, PidfdFlags::empty()).map_err(failed)?;
    let writer = cx.images.entry_file(ImageKind::Fdinfo, u64::from(files_id))?;
    for fd in process.task.fds()? {
        let file = rustix::process::pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).map_err(failed)?;
        let entry = cx.descriptor(&process.task, process.pid, fd, &file)?;
        writer.append(&entry)?;
    }
    cx.images.complete(writer);
    Ok(())
}

/// Threads and attributes of one living process.
fn dump_process(
    cx: &mut Collect<'_>,
    threads: &mut thread::Gathered,
    process: &mut Process,
    asked: &Questions,
) -> Result<()> {
    let b = &asked.answers;
    let mut tc = asked.task.record(process, b)?;
    tc.sigactions = asked.signals.record(b);
    let all = asked.timers.record(process.pid, asked.of_timers())?;
    let owners = cpu_timers::owners(process, &all.posix)?;
    if !owners.is_empty() {
        threads.timer_owners.insert(process.pid, owners);
    }
    tc.timers = Some(all);
    tc.rlimits = Some(asked.limits.record(b));
    tc.signals_s = Some(signals::queued(process.pid, true)?);
    tc.blk_sigset = process.threads[0].context.sigmask;
    let mut core = thread::record(process, &process.threads[0], &asked.thread, b, threads)?;
    core.tc = Some(tc);
    cx.images.write_one(ImageKind::Core, process.pid as u64, &core)?;
    dump_threads(cx, threads, process)?;
    crate::files::io_uring::refuse_registered(process)
}

/// The address space of a process, which others may share: each has its
/// records, the pages are there once.
fn dump_memory(
    cx: &mut Collect<'_>,
    in_memory: &mut AllExtras,
    process: &mut Process,
    space: &SharedSpace,
    asked: &Questions,
) -> Result<PageCount> {
    let b = &asked.answers;
    let mut extras = asked.extras.answer(b);
    let mut vmas = mappings(cx, &mut extras, process, &space.scratches)?;
    in_memory.add(&space.pids, &extras);
    let aios = aio::collect(process, &vmas)?;
    let pages_id = cx.new_pages_id();
    let count = dump_private(cx.images, pages_id, process, &space.pids, &mut vmas, cx.pids.len() == 1)?;
    let mm = mm_record(cx, process, &asked.mm, b, vmas, aios)?;
    for pid in &space.pids {
        cx.images.write_one(ImageKind::Mm, *pid as u64, &mm)?;
    }
    Ok(count)
}

/// How many threads' answers are held at a time.
const THREADS_AT_ONCE: usize = 64;

/// All threads but the first.
fn dump_threads(cx: &Collect<'_>, gathered: &mut thread::Gathered, process: &mut Process) -> Result<()> {
    let Some(mut hand) = process.hand.take() else { return Ok(()) };
    let others = process.threads.get(1..).unwrap_or_default();
    let result = others
        .chunks(THREADS_AT_ONCE)
        .try_for_each(|threads| dump_some_threads(cx, gathered, process, &mut hand, threads));
    process.hand = Some(hand);
    result
}

fn dump_some_threads(
    cx: &Collect<'_>,
    gathered: &mut thread::Gathered,
    process: &Process,
    hand: &mut Hand,
    threads: &[Thread],
) -> Result<()> {
    let (mut asks, mut answers) = (Vec::new(), Vec::new());
    for _ in threads {
        let mut b = Batch::new();
        asks.push(thread::Ask::new(&mut b));
        answers.push(b);
    }
    let job = |(thread, batch): (_, _)| {
        let thread: &Thread = thread;
        Job { tid: thread.tid, context: &thread.context, batch }
    };
    hand.run_in_threads(&mut threads.iter().zip(&mut answers).map(job).collect::<Vec<_>>())?;
    for (thread, (ask, answers)) in threads.iter().zip(asks.iter().zip(&answers)) {
        let core = thread::record(process, thread, ask, answers, gathered)?;
        cx.images.write_one(ImageKind::Core, thread.tid as u64, &core)?;
    }
    Ok(())
}

/// Time since boot in clock ticks, as /proc/PID/stat counts start times.
fn uptime_ticks() -> u64 {
    let t = clock_gettime(ClockId::Boottime);
    let per_second = rustix::param::clock_ticks_per_second();
    t.tv_sec as u64 * per_second + t.tv_nsec as u64 * per_second / 1_000_000_000
}
