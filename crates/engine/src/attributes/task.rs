//! What belongs to a whole process: personality, subreaper, oom adjustment,
//! login uid, umask, working and root directory, membarrier registrations.

use super::unanswered;
use crate::files::{Build, Collect, regular};
use crate::freeze::Process;
use crate::restore::Work;
use crate::{Error, Object, Result};
use cryonaut_image::records::{FsEntry, MmEntry, TaskCoreEntry};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::glance::Objects;
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Arg, Batch, Call, Data, Hand};
use rustix::fs::OFlags;
use std::os::fd::AsFd;

/// `task_core_entry.task_state`.
pub const ALIVE: u32 = 1;
/// Ended, its parent has not asked yet.
pub const DEAD: u32 = 2;
/// Stopped by job control.
pub const STOPPED: u32 = 3;
/// Its first thread has ended, others go on; whether job control has stopped them tells the signal. Ours: CRIU's format
/// has no value for it, and its values are small.
pub const FIRST_ENDED: u32 = 0x80;

const MEMBARRIER_GET_REGISTRATIONS: u64 = 1 << 9;
/// The argument of personality(2) that changes nothing.
const ASK_PERSONALITY: u64 = 0xffff_ffff;

/// What only the process itself can tell.
#[derive(Debug)]
pub struct Ask {
    subreaper: Data,
    membarrier: Call,
    personality: Call,
}

impl Ask {
    /// Adds the questions to a batch for the process.
    pub fn new(b: &mut Batch) -> Self {
        let subreaper = b.space(8);
        b.call(libc::SYS_prctl, [libc::PR_GET_CHILD_SUBREAPER.into(), subreaper.into()]);
        let membarrier =
            b.attempt(libc::SYS_membarrier, [MEMBARRIER_GET_REGISTRATIONS.into(), Arg::Val(0), Arg::Val(0)]);
        let personality = b.call(libc::SYS_personality, [ASK_PERSONALITY.into()]);
        Ask { subreaper, membarrier, personality }
    }

    /// The record, without signals, timers and limits.
    pub fn record(&self, process: &Process, answers: &Batch) -> Result<TaskCoreEntry> {
        let mut entry = base_record(process)?;
        entry.child_subreaper = Some(answers.read_u32(self.subreaper) != 0);
        entry.membarrier_registration_mask = answers.result(self.membarrier).ok().filter(|m| *m != 0).map(|m| m as u32);
        let failed = unanswered(process.pid, "personality");
        entry.personality = answers.result(self.personality).map_err(failed)? as u32;
        let known = process.objects.and_then(|objects| objects.login_uid);
        entry.loginuid = known.map_or_else(|| process.task.loginuid(), |uid| Ok(Some(uid)))?;
        let known = process.objects.map(|objects| i32::from(objects.oom_score_adj));
        entry.oom_score_adj = Some(known.map_or_else(|| process.task.oom_score_adj(), Ok)?);
        Ok(entry)
    }
}

/// The record of a zombie, and the part of any other that needs no answers.
pub fn base_record(process: &Process) -> Result<TaskCoreEntry> {
    let stopped = process.job_stop();
    let leader = process.ended.as_ref().map_or(&process.stat, |ended| &ended.stat);
    let has_ended = process.is_zombie() || process.ended.is_some();
    Ok(TaskCoreEntry {
        task_state: match (process.is_zombie(), stopped) {
            (true, _) => DEAD,
            (false, _) if process.ended.is_some() => FIRST_ENDED,
            (false, Some(_)) => STOPPED,
            (false, None) => ALIVE,
        },
        exit_code: if has_ended { leader.exit_code as u32 } else { 0 },
        flags: leader.flags,
        comm: leader.comm.clone(),
        stop_signo: stopped.map(|s| s as u32),
        ..TaskCoreEntry::default()
    })
}

/// The record of working directory, root and umask.
pub fn fs_record(
    cx: &mut Collect<'_>,
    (pid, task): (i32, &Task),
    objects: Option<Objects>,
    umask: Option<u32>,
) -> Result<FsEntry> {
    let flags = (libc::O_PATH | libc::O_DIRECTORY) as u32;
    let mut dir = |link, place| Ok::<_, Error>(regular::collect_place(cx, task, pid, (link, place), flags)?.id);
    let cwd_id = dir("cwd", objects.map(|objects| objects.cwd))?;
    Ok(FsEntry { cwd_id, root_id: dir("root", objects.map(|objects| objects.root))?, umask })
}

/// Gives the process its working directory, root and umask.
pub fn build_fs(work: &mut Work<'_>, files: &mut Build<'_>, fs: &FsEntry) -> Result<()> {
    let pid = work.hand.pid();
    let root = files.file(fs.root_id)?;
    let same_root = {
        let ours = rustix::fs::stat("/").map_err(unanswered(pid, "root directory"))?;
        let theirs = rustix::fs::fstat(root).map_err(unanswered(pid, "root directory"))?;
        (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
    };
    let root = if same_root { None } else { Some(work.give(&[root])?) };
    let cwd = work.give(&[files.file(fs.cwd_id)?])?;
    let (root, cwd) = (root.map(|gift| work.number(gift, 0)), work.number(cwd, 0));
    let b = &mut work.batch;
    if let Some(number) = root {
        let dot = b.cstr(".");
        b.call(libc::SYS_fchdir, [number]);
        b.call(libc::SYS_chroot, [dot.into()]);
        b.call(libc::SYS_close, [number]);
    }
    b.call(libc::SYS_fchdir, [cwd]);
    b.call(libc::SYS_close, [cwd]);
    if let Some(umask) = fs.umask {
        b.call(libc::SYS_umask, [umask.into()]);
    }
    Ok(())
}

/// Adds to a batch what gives the process what its record says, short of credentials and of what [`build`] does.
pub fn build_calls(b: &mut Batch, core: &TaskCoreEntry) {
    b.call(libc::SYS_personality, [core.personality.into()]);
    if core.child_subreaper.unwrap_or(false) {
        b.call(libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER.into(), 1.into(), 0.into(), 0.into(), 0.into()]);
    }
    if let Some(mask) = core.membarrier_registration_mask {
        for command in (0..32).filter(|c| mask & 1 << c != 0) {
            b.attempt(libc::SYS_membarrier, [(1u64 << command).into(), Arg::Val(0), Arg::Val(0)]);
        }
    }
}

/// Gives the process what stands in files of its own.
pub fn build(hand: &mut Hand, service: &Service, core: &TaskCoreEntry) -> Result<()> {
    adjust_oom(hand.pid(), core)?;
    set_loginuid(hand, service, core)
}

fn adjust_oom(pid: i32, core: &TaskCoreEntry) -> Result<()> {
    let Some(wanted) = core.oom_score_adj else {
        return Ok(());
    };
    let task = Task::open(crate::freeze::pid_of(pid)?)?;
    let current = task.read("oom_score_adj").unwrap_or_default();
    if current.trim_ascii() == wanted.to_string().as_bytes() {
        return Ok(());
    }
    let file = task.open_file("oom_score_adj", OFlags::WRONLY)?;
    rustix::io::write(&file, wanted.to_string().as_bytes()).map(drop).map_err(|errno| Error::Kernel {
        object: Object::Process(pid),
        action: format!("set oom_score_adj to {wanted}"),
        errno,
        remedy: "lowering it needs CAP_SYS_RESOURCE",
    })
}

/// Only the process itself may set it, and its threads inherit it
/// (kernel/audit.c).
fn set_loginuid(hand: &mut Hand, service: &Service, core: &TaskCoreEntry) -> Result<()> {
    let pid = hand.pid();
    let task = Task::open(crate::freeze::pid_of(pid)?)?;
    let current = task.read("loginuid").unwrap_or_default();
    let is = |uid: &u32| current.trim_ascii() == uid.to_string().as_bytes();
    // A kernel without audit has no such file, and nothing to restore.
    let Some(wanted) = core.loginuid.filter(|uid| !current.is_empty() && !is(uid)) else {
        return Ok(());
    };
    let failed = |errno| Error::Kernel {
        object: Object::Process(pid),
        action: format!("set its login uid to {wanted}"),
        errno,
        remedy: "where audit keeps login uids from being changed, restore from a process that has none, such as a service",
    };
    let file = task.open_file("loginuid", OFlags::WRONLY)?;
    let number = service.give(hand, &[file.as_fd()])?[0];
    let mut b = Batch::new();
    let text = wanted.to_string();
    let bytes = b.bytes(text.as_bytes());
    let written = b.attempt(libc::SYS_write, [number.into(), bytes.into(), text.len().into()]);
    b.call(libc::SYS_close, [number.into()]);
    hand.run(&mut b)?;
    b.result(written).map(drop).map_err(failed)
}

/// Adds to a thread's last batch what a change of credentials resets:
/// dumpable and the parent's death signal (prctl(2)).
pub fn build_after_credentials(b: &mut Batch, mm: Option<&MmEntry>, pdeath_sig: Option<u32>) {
    if let Some(dumpable) = mm.and_then(|m| m.dumpable) {
        // 2 (SUID_DUMP_ROOT) cannot be set, only arise; it arises again from the credentials.
        if dumpable < 2 {
            b.call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), dumpable.into(), 0.into(), 0.into(), 0.into()]);
        }
    }
    let signal = pdeath_sig.unwrap_or(0);
    b.call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG.into(), signal.into(), 0.into(), 0.into(), 0.into()]);
}
