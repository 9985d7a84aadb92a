//! Trees that cannot be carried, told before anything is entered.

use crate::attributes::leader;
use crate::freeze::{Frozen, Process, pid_of};
use crate::lineage::{Kin, Lineage};
use crate::namespaces::{self, pid};
use crate::sharing;
use crate::{CheckpointOptions, Error, Object, Result};
use cryonaut_image::records::TaskKobjIdsEntry;
use cryonaut_kernel::Pid;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::stat::State;
use cryonaut_kernel::sys::kcmp::{self, Shared};
use std::collections::BTreeSet;

/// A tree that contains the checkpointer would wait for itself.
pub(super) fn refuse_ourselves(pid: i32) -> Result<()> {
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
pub(super) fn refuse(frozen: &Frozen, own: &TaskKobjIdsEntry, options: &CheckpointOptions) -> Result<pid::Numbers> {
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
