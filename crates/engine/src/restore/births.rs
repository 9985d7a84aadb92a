//! Creating the processes and threads of the tree under their own ids, in
//! their sessions and groups; and ending those that are to be zombies, or that
//! existed only for the others' sake.

use super::{Nursery, Scratches, Work};
use crate::cgroups::Restoring;
use crate::files::{Build, tty};
use crate::lineage::{Birth, Step};
use crate::memory::AddressSpaces;
use crate::namespaces::{self, Building, Own, inner, pid};
use crate::plan::{Plan, ProcessPlan};
use crate::{Error, Object, Result};
use cryonaut_image::records::TaskCoreEntry;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Arg, Batch, Hand, spawn, stops};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// Index of `flags` and `exit_signal` among the words of struct clone_args.
const FLAGS: usize = 0;
const EXIT_SIGNAL: usize = 4;
/// Signals whose default is not to end a process (signal(7)).
const SURVIVED: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// With so many children, it pays to take away first what each would have a copy of.
const SEVERAL: usize = 2;

/// Creates every process of the plan. Those whose children keep some of their
/// memory have it before.
pub fn create_all(
    nursery: &mut Nursery<'_>,
    plan: &Plan,
    service: &mut Service,
    build: &mut Build<'_>,
    spaces: &mut AddressSpaces<'_>,
    scratches: &Scratches<'_>,
) -> Result<()> {
    let mut steps = plan.lineage.steps.iter().peekable();
    while let Some(step) = steps.next() {
        match *step {
            Step::Create(birth) if birth.creator == 0 => {
                let flags = plan.namespaces.flags(birth.pid);
                let mut hand = match inner::outer() {
                    // It is there already: this program works in its pid namespace.
                    Some(_) => spawn::adopt_first(birth.pid, scratches.of(birth.pid))?,
                    None => plan.born.with_groups(&plan.namespaces, birth.pid, || {
                        spawn::first(birth.pid, build.options.sibling, scratches.of(birth.pid), flags)
                    })?,
                };
                service.install(&mut hand)?;
                nursery.hands.insert(birth.pid, hand);
                settle_in(nursery, birth.pid, plan, service, build)?;
            }
            Step::Create(first) => {
                let is_forebear = spaces.comes_first(first.creator);
                if is_forebear {
                    let mut work = Work::new(nursery.hand(first.creator)?, service);
                    spaces.begin(&mut work, build)?;
                    work.flush()?;
                }
                let mut births = vec![(first, sharing_flags(plan, first))];
                while let Some(&&Step::Create(next)) = steps.peek().filter(|s| s.creator() == Some(first.creator)) {
                    births.push((next, sharing_flags(plan, next)));
                    steps.next();
                }
                if births.len() >= SEVERAL && !is_forebear {
                    spaces.clear(&mut Work::new(nursery.hand(first.creator)?, service))?;
                }
                let pids_of = |birth: &Birth| plan.namespaces.joins_pids(birth.pid);
                for births in births.chunk_by(|(one, _), (next, _)| pids_of(one) == pids_of(next)) {
                    let joined = pids_of(&births[0].0).and_then(|id| build.namespaces.get(Namespace::Pid, id));
                    let back = joined.map(|own| step_aside(nursery, first.creator, service, own)).transpose()?;
                    create(nursery, plan, first.creator, births, scratches)?;
                    if let Some(back) = back {
                        pid::enter_for_children(nursery.hand(first.creator)?, service, back.as_fd())?;
                    }
                    births.iter().try_for_each(|(birth, _)| settle_in(nursery, birth.pid, plan, service, build))?;
                }
            }
            Step::NewSession(pid) => {
                let mut b = Batch::new();
                b.call(libc::SYS_setsid, []);
                let hand = nursery.hand(pid)?;
                hand.run(&mut b)?;
                tty::give_terminal(build, hand, service, pid)?;
            }
            Step::Group(pid, group) => set_group(nursery, plan, pid, group)?,
            Step::Reaper(pid, is_one) => {
                let mut b = Batch::new();
                b.call(libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER.into(), u64::from(is_one).into()]);
                nursery.hand(pid)?.run(&mut b)?;
            }
            Step::End(helper, reaper) => {
                end(nursery, helper, None, Some(reaper))?;
                forget_sigchld_of(nursery, reaper)?;
            }
        }
    }
    mount_pinned(nursery, plan, service, build)?;
    if let Some((pid, id)) = build.mounts.later.front() {
        let problem = format!("it shows the processes of pid namespaces of which process {pid} knows none");
        return Err(Error::bad_image(format!("mountpoints-{id}.img"), problem));
    }
    for (pid, process) in plan.processes.iter().filter(|(_, process)| !process.is_zombie()) {
        build.cgroups.move_process(*pid, &process.core)?;
    }
    groups(nursery, plan, scratches)
}

/// Sees to it that a newborn process is in its namespaces, and that there is in them what is to be.
fn settle_in(nursery: &mut Nursery<'_>, pid: i32, plan: &Plan, service: &Service, build: &mut Build<'_>) -> Result<()> {
    // Helpers have no record, and no namespaces of their own.
    let Some(process) = plan.processes.get(&pid) else { return Ok(()) };
    let hand = nursery.hand(pid)?;
    let Build { images, options, mounts, cgroups, .. } = build;
    let core = &process.core;
    let mut cx = Building { images, options, hand, core, cgroups, service, mounts, keep: Vec::new() };
    namespaces::settle_in(&mut cx, &plan.namespaces, &mut build.namespaces)?;
    mount_what_waits(nursery, plan, service, build)
}

/// Makes the mounts of namespaces in which nobody is: by who has made these.
fn mount_pinned(nursery: &mut Nursery<'_>, plan: &Plan, service: &Service, build: &mut Build<'_>) -> Result<()> {
    for own in std::mem::take(&mut build.mounts.pinned) {
        let hand = nursery.hand(own.pid)?;
        let core = &plan.processes[&own.pid].core;
        let Build { images, options, mounts, cgroups, .. } = build;
        let mut cx = Building { images, options, hand, core, cgroups, service, mounts, keep: Vec::new() };
        namespaces::make_mounts(&mut cx, &own)?;
        build.namespaces.add(own);
    }
    Ok(())
}

/// Makes the mounts that had to wait for pid namespaces, as far as those are there now.
fn mount_what_waits(nursery: &mut Nursery<'_>, plan: &Plan, service: &Service, build: &mut Build<'_>) -> Result<()> {
    let surroundings = plan.namespaces.surroundings().pid_ns_id;
    while let Some(&(pid, id)) = build.mounts.later.front() {
        let shown = build.mounts.procs_of_others(id);
        let is_there = |pids: u32| Some(pids) == surroundings || build.namespaces.get(Namespace::Pid, pids).is_some();
        let (Some(own), true) = (build.namespaces.get(Namespace::Mnt, id), shown.iter().all(|one| is_there(one.1)))
        else {
            return Ok(());
        };
        for (provider, pids) in shown {
            let init = build.namespaces.get(Namespace::Pid, pids).map(|own| own.pid);
            let by = init.map(|init| nursery.hand(init)).transpose()?;
            build.mounts.make_proc(provider, by)?;
        }
        let hand = nursery.hand(pid)?;
        let core = &plan.processes[&pid].core;
        let Build { images, options, mounts, cgroups, .. } = build;
        let mut cx = Building { images, options, hand, core, cgroups, service, mounts, keep: Vec::new() };
        namespaces::make_mounts(&mut cx, own)?;
        build.mounts.later.pop_front();
    }
    Ok(())
}

/// Has the children of a process be born into a pid namespace; gives the one that it is in itself.
fn step_aside(nursery: &mut Nursery<'_>, creator: i32, service: &Service, own: &Own) -> Result<OwnedFd> {
    let back = pid::of_process(creator)?;
    pid::enter_for_children(nursery.hand(creator)?, service, own.file.as_fd())?;
    Ok(back)
}

/// Leaves each process with the pid namespace for its children that it had. It has no further threads after that.
pub fn leave_children_elsewhere(
    nursery: &mut Nursery<'_>,
    plan: &Plan,
    service: &Service,
    build: &Build<'_>,
) -> Result<()> {
    for (creator, id) in plan.numbers.children() {
        match id {
            None => pid::renew_for_children(nursery.hand(creator)?)?,
            Some(id) => {
                if let Some(own) = build.namespaces.get(Namespace::Pid, id) {
                    step_aside(nursery, creator, service, own)?;
                }
            }
        }
    }
    Ok(())
}

/// What the child shares with its creator from birth, and what not.
fn sharing_flags(plan: &Plan, birth: Birth) -> u64 {
    let ids = |pid: i32| plan.processes.get(&pid).and_then(|p| p.ids.as_ref());
    let mut flags = plan.namespaces.flags(birth.pid);
    if birth.sibling {
        flags |= libc::CLONE_PARENT as u64;
    }
    if let (Some(child), Some(creator)) = (ids(birth.pid), ids(birth.creator)) {
        if child.files_id == creator.files_id {
            flags |= libc::CLONE_FILES as u64;
        }
        if child.fs_id == creator.fs_id {
            flags |= libc::CLONE_FS as u64;
        }
        if child.vm_id == creator.vm_id {
            flags |= libc::CLONE_VM as u64;
            if child.sighand_id == creator.sighand_id {
                flags |= libc::CLONE_SIGHAND as u64;
            }
        }
    }
    flags
}

/// Creates what one process creates, with these flags each.
fn create(
    nursery: &mut Nursery<'_>,
    plan: &Plan,
    creator: i32,
    births: &[(Birth, u64)],
    scratches: &Scratches<'_>,
) -> Result<()> {
    let args = |&(birth, flags): &(Birth, u64)| {
        let mut args = [0u64; 11];
        args[FLAGS] = flags;
        // A sibling's parent is told by the signal of its creator's own birth.
        args[EXIT_SIGNAL] = if birth.sibling { 0 } else { libc::SIGCHLD as u64 };
        let numbers = &plan.numbers;
        (args, if birth.helper { numbers.of_helper(birth.pid, birth.creator) } else { numbers.of(birth.pid) })
    };
    let hand = nursery.hand(creator)?;
    births.iter().try_for_each(|(birth, _)| plan.born.take_groups(&plan.namespaces, birth.pid, hand))?;
    // They run on the stack of their own scratch mapping: until then they stand still.
    let sharers = births.iter().filter(|(_, flags)| flags & libc::CLONE_VM as u64 != 0);
    spawn::make_room(hand, &sharers.map(|(birth, _)| scratches.of(birth.pid)).collect::<Vec<_>>())?;
    hand.clone_all(&births.iter().map(args).collect::<Vec<_>>())?;
    for (birth, _) in births {
        nursery.hands.insert(birth.pid, Hand::adopt(birth.pid, scratches.of(birth.pid))?);
    }
    Ok(())
}

/// Puts every process into its group.
fn groups(nursery: &mut Nursery<'_>, plan: &Plan, scratches: &Scratches<'_>) -> Result<()> {
    for &(group, member) in &plan.lineage.leaderless {
        let stand_in = Birth { pid: group, creator: member, sibling: false, helper: true };
        create(nursery, plan, member, &[(stand_in, 0)], scratches)?;
        set_group(nursery, plan, group, group)?;
    }
    for &(pid, group) in &plan.lineage.groups {
        set_group(nursery, plan, pid, group)?;
    }
    for &(helper, parent) in &plan.lineage.leaderless {
        end(nursery, helper, None, Some(parent))?;
    }
    Ok(())
}

fn set_group(nursery: &mut Nursery<'_>, plan: &Plan, pid: i32, group: i32) -> Result<()> {
    let mut b = Batch::new();
    b.call(libc::SYS_setpgid, [Arg::Val(0), plan.numbers.seen_from(pid, group).into()]);
    Ok(nursery.hand(pid)?.run(&mut b)?)
}

/// Zombies get the end that they had; helpers go for good.
pub fn end_zombies_and_helpers(nursery: &mut Nursery<'_>, plan: &Plan) -> Result<()> {
    for &(helper, parent) in &plan.lineage.helpers {
        end(nursery, helper, None, Some(parent))?;
    }
    // Children before parents: a zombie's own children were reparented long ago, so it has none.
    for process in plan.processes.values().filter(|p| p.is_zombie()) {
        end(nursery, process.pid(), process.core.tc.as_ref(), None)?;
        forget_sigchld_of(nursery, process.tree.ppid as i32)?;
    }
    Ok(())
}

/// Ends a process as its record says, under the name that `ps` shows for it; `reaper` takes the status at once.
fn end(nursery: &mut Nursery<'_>, pid: i32, record: Option<&TaskCoreEntry>, reaper: Option<i32>) -> Result<()> {
    let status = record.map_or(0, |tc| tc.exit_code);
    let Some(mut hand) = nursery.hands.remove(&pid) else {
        return Err(Error::kernel(Object::Process(pid), "end it", Errno::SRCH));
    };
    let signal = (status & 0x7f) as i32;
    if SURVIVED.contains(&signal) {
        let problem = format!("signal {signal} is to have ended it, of which nobody dies");
        return Err(Error::bad_image(format!("core-{pid}.img"), problem));
    }
    let mut b = Batch::new();
    // A core dump of a zombie to be would be one too many.
    let none = b.bytes(&[0; 16]);
    b.attempt(libc::SYS_prlimit64, [Arg::Val(0), libc::RLIMIT_CORE.into(), none.into(), Arg::Val(0)]);
    if let Some(tc) = record {
        let name = b.cstr(&tc.comm);
        b.attempt(libc::SYS_prctl, [libc::PR_SET_NAME.into(), name.into()]);
    }
    if signal != 0 && signal != libc::SIGKILL {
        let default = b.bytes(&[0; 32]);
        b.call(libc::SYS_rt_sigaction, [signal.into(), default.into(), Arg::Val(0), Arg::Val(8)]);
    }
    hand.run(&mut b)?;
    if signal == 0 {
        let mut b = Batch::new();
        b.call(libc::SYS_exit_group, [(status >> 8 & 0xff).into()]);
        hand.start(&b)?;
        stops::reap(pid);
    } else {
        stops::die_of(pid, signal)?;
    }
    if let Some(parent) = reaper {
        let mut b = Batch::new();
        const WALL: i32 = 0x4000_0000;
        let seen = nursery.numbers.seen_from(parent, pid);
        b.call(libc::SYS_wait4, [seen.into(), Arg::Val(0), WALL.into(), Arg::Val(0)]);
        nursery.hand(parent)?.run(&mut b)?;
    }
    Ok(())
}

/// Takes away the SIGCHLD that a process got because we built its zombie.
fn forget_sigchld_of(nursery: &mut Nursery<'_>, pid: i32) -> Result<()> {
    let Some(hand) = nursery.hands.get_mut(&pid) else { return Ok(()) };
    let mut b = Batch::new();
    forget_sigchld(&mut b);
    Ok(hand.run(&mut b)?)
}

/// Adds to a batch what takes away a SIGCHLD that we have brought about.
pub fn forget_sigchld(b: &mut Batch) {
    let set = b.bytes(&(1u64 << (libc::SIGCHLD - 1)).to_le_bytes());
    let now = b.bytes(&[0; 16]);
    b.attempt(libc::SYS_rt_sigtimedwait, [set.into(), Arg::Val(0), now.into(), Arg::Val(8)]);
}

/// Creates the threads of a process but for its leader.
pub fn create_threads(hand: &mut Hand, plan: &Plan, process: &ProcessPlan, cgroups: &mut Restoring) -> Result<()> {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let mut args = [0u64; 11];
    args[FLAGS] = flags as u64;
    let others = || process.cores().filter(|(tid, _)| *tid != process.pid());
    hand.clone_all(&others().map(|(tid, _)| (args, plan.numbers.of(tid))).collect::<Vec<_>>())?;
    others().try_for_each(|(tid, core)| cgroups.move_thread(tid, core, &process.core))
}
