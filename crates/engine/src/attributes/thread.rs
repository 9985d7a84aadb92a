//! What each thread has of its own: name, scheduling, robust list, tid
//! address, rseq, alternate stack, pdeath signal, credentials, queued signals.

use super::{credentials, extras, rseq, seccomp, signals, unanswered};
use crate::arch;
use crate::freeze::{Process, Thread, pid_of};
use crate::{Error, Object, Result, parallel};
use cryonaut_image::records::{CoreEntry, CredsEntry, SeccompMode, SignalQueueEntry, ThreadCoreEntry, ThreadSasEntry};
use cryonaut_kernel::sys::sched::{self, SchedAttr};
use cryonaut_kernel::sys::thread_calls;
use cryonaut_kernel::sys::thread_state::{self, ThreadState};
use cryonaut_puppet::{Arg, Batch, Call, Data};

/// SCHED_RESET_ON_FORK, which a recorded policy may have beside its number (sched(7)).
const RESET_ON_FORK: u32 = 0x4000_0000;
/// `TASK_COMM_LEN`: a thread's name with its terminating zero.
const COMM_LEN: usize = 16;
/// SECCOMP_MODE_STRICT (linux/seccomp.h).
const STRICT: u64 = 1;

/// More threads of a process than these are not woken to tell of themselves, if that can be helped.
pub const MANY: usize = 24;

/// Gets ready what reads of so many threads what they have, while they are being stopped.
pub fn prepare(threads: usize) {
    if threads > MANY {
        parallel::aside(thread_calls::prepare);
        parallel::aside(thread_state::prepare);
    }
}

/// What only the thread itself can tell.
#[derive(Debug)]
pub struct Ask {
    altstack: Data,
    tid_address: Data,
    pdeath: Data,
    comm: Data,
    timer_slack: Call,
    seccomp: Call,
    creds: credentials::Ask,
}

impl Ask {
    /// Adds the questions to a batch for the thread.
    pub fn new(b: &mut Batch) -> Self {
        let (altstack, tid_address, pdeath, comm) = (b.space(24), b.space(8), b.space(8), b.space(COMM_LEN));
        b.call(libc::SYS_sigaltstack, [Arg::Val(0), altstack.into()]);
        b.call(libc::SYS_prctl, [libc::PR_GET_TID_ADDRESS.into(), tid_address.into()]);
        b.call(libc::SYS_prctl, [libc::PR_GET_PDEATHSIG.into(), pdeath.into()]);
        b.call(libc::SYS_prctl, [libc::PR_GET_NAME.into(), comm.into()]);
        let timer_slack = b.call(libc::SYS_prctl, [libc::PR_GET_TIMERSLACK.into()]);
        let seccomp = b.call(libc::SYS_prctl, [libc::PR_GET_SECCOMP.into()]);
        Ask { altstack, tid_address, pdeath, comm, timer_slack, seccomp, creds: credentials::Ask::new(b) }
    }

    /// What thread `tid` of a process has told.
    pub fn answer(&self, process: &Process, tid: i32, answers: &Batch) -> Result<Facts> {
        let failed = |about| unanswered(tid, about);
        let id = pid_of(tid)?;
        let comm = answers.read(self.comm);
        let status = || Ok(process.task.thread(id).status()?);
        Ok(Facts {
            altstack: ThreadSasEntry {
                ss_sp: answers.read_u64(self.altstack),
                ss_size: answers.read_u64(self.altstack.at(16)),
                ss_flags: answers.read_u32(self.altstack.at(8)),
            },
            tid_address: answers.read_u64(self.tid_address),
            pdeath_signal: answers.read_u32(self.pdeath),
            comm: comm[..comm.iter().position(|b| *b == 0).unwrap_or(comm.len())].to_vec(),
            timer_slack_ns: answers.result(self.timer_slack).map_err(failed("timer slack"))?,
            seccomp_mode: answers.result(self.seccomp).map_err(failed("seccomp mode"))?,
            creds: self.creds.record(tid, answers, status)?,
        })
    }
}

/// What a thread tells of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    altstack: ThreadSasEntry,
    tid_address: u64,
    pdeath_signal: u32,
    comm: Vec<u8>,
    timer_slack_ns: u64,
    seccomp_mode: u64,
    /// Its credentials.
    pub creds: CredsEntry,
}

impl Facts {
    /// What a thread would tell that has the credentials `creds`.
    pub fn known(state: &ThreadState, creds: &CredsEntry) -> Facts {
        let (ss_sp, ss_flags, ss_size) = state.altstack;
        Facts {
            altstack: ThreadSasEntry { ss_sp, ss_size, ss_flags },
            tid_address: state.tid_address,
            pdeath_signal: state.pdeath_signal,
            comm: state.comm.clone(),
            timer_slack_ns: state.timer_slack_ns,
            seccomp_mode: state.seccomp_mode,
            creds: CredsEntry { no_new_privs: state.no_new_privs.then_some(1), ..creds.clone() },
        }
    }
}

/// What only the holder of a thread can find out (ptrace(2)).
#[derive(Debug)]
pub struct Told {
    queued: SignalQueueEntry,
    /// The newest of its seccomp filters, should it have any.
    filter: Result<Option<u32>>,
}

impl Told {
    /// Reads it of a held thread that has not run anything for us yet: it could
    /// take a signal from its queue.
    pub fn read(tid: i32) -> Result<Told> {
        Ok(Told { queued: signals::queued(tid, false)?, filter: Ok(None) })
    }

    /// Reads its filters into those of the tree, should it have some.
    pub fn read_filters(&mut self, tid: i32, facts: &Facts, filters: &mut seccomp::Filters) {
        if facts.seccomp_mode != 0 {
            self.filter = filters.of_thread(tid);
        }
    }
}

/// The record of one thread, without what belongs to the whole process, and
/// what the format has no place for.
pub fn record(thread: &Thread, facts: Facts, told: Told) -> Result<(CoreEntry, extras::ThreadExtra)> {
    let tid = thread.tid;
    let failed = |about| unanswered(tid, about);
    let id = pid_of(tid)?;
    let sched = sched::sched_getattr(id).map_err(failed("scheduling"))?;
    let (robust, robust_len) = sched::get_robust_list(id).map_err(failed("robust list"))?;
    let extra = extras::record(thread, facts.timer_slack_ns)?;
    let context = &thread.context;
    let mut info = arch::thread_info(tid, context, facts.tid_address)?;
    arch::settle_call(&context.regs, &mut info);
    let (seccomp_mode, seccomp_filter) = match facts.seccomp_mode {
        0 => (None, None),
        STRICT => (Some(SeccompMode::Strict as i32), None),
        _ => (Some(SeccompMode::Filter as i32), told.filter?),
    };
    let core = ThreadCoreEntry {
        futex_rla: robust,
        futex_rla_len: robust_len as u32,
        sched_nice: Some(sched.nice),
        sched_policy: Some(policy_record(&sched)),
        sched_prio: (sched.priority != 0).then_some(sched.priority),
        blk_sigset: Some(context.sigmask),
        sas: Some(facts.altstack),
        pdeath_sig: Some(facts.pdeath_signal).filter(|s| *s != 0),
        signals_p: Some(told.queued),
        creds: Some(facts.creds),
        seccomp_mode,
        seccomp_filter,
        comm: Some(facts.comm),
        blk_sigset_extended: None,
        rseq_entry: thread.rseq.map(rseq::record),
        cg_set: thread.cg_set,
    };
    let core = CoreEntry {
        mtype: arch::MARCH as i32,
        thread_info: Some(info),
        thread_core: Some(core),
        ..CoreEntry::default()
    };
    Ok((core, extra))
}

/// Adds to a batch, which the thread itself runs, everything but the
/// credentials and seccomp, which come last.
pub fn build(b: &mut Batch, core: &CoreEntry, extra: Option<&extras::ThreadExtra>) {
    // 0 is that of real-time policies, which have none to set.
    if let Some(slack) = extra.map(|extra| extra.timer_slack_ns).filter(|ns| *ns != 0) {
        b.call(libc::SYS_prctl, [libc::PR_SET_TIMERSLACK.into(), slack.into()]);
    }
    if let Some(info) = &core.thread_info {
        b.call(libc::SYS_set_tid_address, [info.clear_tid_addr.into()]);
    }
    let Some(t) = &core.thread_core else { return };
    if t.futex_rla_len != 0 {
        b.call(libc::SYS_set_robust_list, [t.futex_rla.into(), t.futex_rla_len.into()]);
    }
    if let Some(comm) = t.comm.as_ref().or(core.tc.as_ref().map(|tc| &tc.comm)) {
        let name = b.cstr(comm);
        b.call(libc::SYS_prctl, [libc::PR_SET_NAME.into(), name.into()]);
    }
    if let Some(sas) = &t.sas {
        // SS_ONSTACK is a state, not a setting; it follows from the stack pointer.
        const SS_ONSTACK: u32 = 1;
        let mut stack = sas.ss_sp.to_le_bytes().to_vec();
        stack.extend_from_slice(&u64::from(sas.ss_flags & !SS_ONSTACK).to_le_bytes());
        stack.extend_from_slice(&sas.ss_size.to_le_bytes());
        let stack = b.bytes(&stack);
        b.call(libc::SYS_sigaltstack, [stack.into(), Arg::Val(0)]);
    }
    if let Some(r) = t.rseq_entry.filter(|r| r.rseq_abi_pointer != 0) {
        b.call(libc::SYS_rseq, [r.rseq_abi_pointer.into(), r.rseq_abi_size.into(), Arg::Val(0), r.signature.into()]);
    }
}

/// Gives a held thread its scheduling; from outside, since a thread's own
/// credentials may not suffice.
pub fn build_scheduling(tid: i32, core: &ThreadCoreEntry) -> Result<()> {
    let id = pid_of(tid)?;
    let failed = |e| Error::kernel(Object::Thread(tid), "set its scheduling", e);
    let mut attr = sched::sched_getattr(id).map_err(failed)?;
    let policy = core.sched_policy.unwrap_or(0);
    let wanted = (policy, core.sched_nice.unwrap_or(0), core.sched_prio.unwrap_or(0));
    if wanted != (policy_record(&attr), attr.nice, attr.priority) {
        attr.policy = policy & !RESET_ON_FORK;
        (attr.nice, attr.priority) = (wanted.1, wanted.2);
        attr.flags &= !SchedAttr::RESET_ON_FORK;
        if policy & RESET_ON_FORK != 0 {
            attr.flags |= SchedAttr::RESET_ON_FORK;
        }
        sched::sched_setattr(id, &attr).map_err(failed)?;
    }
    Ok(())
}

/// The policy as sched_getscheduler(2) would tell it: with a bit that says that
/// children start with the default one.
pub(super) fn policy_record(attr: &SchedAttr) -> u32 {
    let resets = attr.flags & SchedAttr::RESET_ON_FORK != 0;
    attr.policy | if resets { RESET_ON_FORK } else { 0 }
}
