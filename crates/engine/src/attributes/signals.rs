//! Signal actions and queued signals.

use super::overruns::{self, Comeback, Comebacks};
use super::unanswered;
use crate::freeze::pid_of;
use crate::{Error, Result};
use cryonaut_image::records::{SaEntry, SiginfoEntry, SignalQueueEntry};
use cryonaut_kernel::sys::ptrace::peek_siginfo;
use cryonaut_puppet::{Arg, Batch, Data};

/// Signals that have an action: all but SIGKILL and SIGSTOP.
fn signals() -> impl Iterator<Item = i32> {
    (1..=64).filter(|s| *s != libc::SIGKILL && *s != libc::SIGSTOP)
}

/// Size of the kernel's `struct sigaction`: handler, flags, restorer, mask.
const SIGACTION: usize = 32;
const SIGSET: u64 = 8;

/// The question for all actions of a process.
#[derive(Debug)]
pub struct Ask {
    actions: Vec<Data>,
}

impl Ask {
    /// Adds it to a batch for the process.
    pub fn new(b: &mut Batch) -> Self {
        let actions = signals()
            .map(|signal| {
                let room = b.space(SIGACTION);
                b.call(libc::SYS_rt_sigaction, [signal.into(), Arg::Val(0), room.into(), SIGSET.into()]);
                room
            })
            .collect();
        Ask { actions }
    }

    /// The actions, in the order of [`signals`].
    pub fn record(&self, answers: &Batch) -> Vec<SaEntry> {
        self.actions
            .iter()
            .map(|room| SaEntry {
                sigaction: answers.read_u64(*room),
                flags: answers.read_u64(room.at(8)),
                restorer: answers.read_u64(room.at(16)),
                mask: answers.read_u64(room.at(24)),
                compat_sigaction: Some(false),
                mask_extended: None,
            })
            .collect()
    }
}

/// Signals that wait, of the thread or (`shared`) of its whole process.
pub fn queued(tid: i32, shared: bool) -> Result<SignalQueueEntry> {
    let infos = peek_siginfo(pid_of(tid)?, shared).map_err(unanswered(tid, "queued signals"))?;
    Ok(SignalQueueEntry { signals: infos.iter().map(|i| SiginfoEntry { siginfo: i.as_bytes().to_vec() }).collect() })
}

/// Adds the actions of a record to a batch.
pub fn build_actions(pid: i32, b: &mut Batch, actions: &[SaEntry]) -> Result<()> {
    if actions.len() != signals().count() {
        return Err(Error::bad_image(format!("core-{pid}.img"), format!("{} signal actions", actions.len())));
    }
    for (signal, sa) in signals().zip(actions) {
        let words = [sa.sigaction, sa.flags, sa.restorer, sa.mask];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let action = b.bytes(&bytes);
        b.call(libc::SYS_rt_sigaction, [signal.into(), action.into(), Arg::Val(0), SIGSET.into()]);
    }
    Ok(())
}

/// The signals that actions catch, bit n-1 for signal n.
#[must_use]
pub fn caught(actions: &[SaEntry]) -> u64 {
    // SIG_DFL is 0, SIG_IGN is 1.
    signals().zip(actions).filter(|(_, a)| a.sigaction > 1).fold(0, |set, (signal, _)| set | 1 << (signal - 1))
}

/// The signals that wait in a queue, bit n-1 for signal n.
#[must_use]
pub fn waiting(queue: Option<&SignalQueueEntry>) -> u64 {
    let numbers = queue.into_iter().flat_map(|q| &q.signals).filter_map(|s| s.siginfo.first_chunk::<4>());
    numbers.map(|n| i32::from_le_bytes(*n)).filter(|n| (1..=64).contains(n)).fold(0, |set, n| set | 1 << (n - 1))
}

/// Where siginfo_t has the count of a timer's expirations.
const SI_OVERRUN: usize = 20;

/// linux/pidfd.h (Linux 6.9).
const PIDFD_THREAD: i32 = libc::O_EXCL;
const PIDFD_SIGNAL_THREAD_GROUP: u32 = 1 << 1;

/// How many signals one batch sends: what a thread's slot has room for.
const SENT_AT_ONCE: usize = 16;

/// Batches that send the queued signals of a record, in their order, to be run
/// by the thread itself: only to itself may a thread send what the kernel or a
/// timer sent. Timers that send theirs again do so by themselves (`timers`).
pub fn build_queue(whose: Queue, queue: Option<&SignalQueueEntry>, timers: &Comebacks) -> Result<Vec<Batch>> {
    let waiting = queue.map_or(&[][..], |queue| &queue.signals);
    let comebacks = timers.of_queue(whose.tid(), waiting);
    let all: Vec<(&SiginfoEntry, Comeback)> = waiting.iter().zip(comebacks).collect();
    all.chunks(SENT_AT_ONCE).map(|entries| send(whose, entries)).collect()
}

/// Whose signals wait in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Those of a whole process, sent by this thread of it.
    Shared { pid: i32, sender: i32 },
    /// Those of one of its threads.
    Own { pid: i32, tid: i32 },
}

impl Queue {
    /// The thread, 0 for all.
    fn tid(self) -> i32 {
        if let Queue::Own { tid, .. } = self { tid } else { 0 }
    }
}

/// How long the kernel is given to let a timer expire before what came after it is sent, in nanoseconds.
const EXPIRY_TAKES: u64 = 100_000;

fn send(whose: Queue, entries: &[(&SiginfoEntry, Comeback)]) -> Result<Batch> {
    let (Queue::Shared { pid, .. } | Queue::Own { pid, .. }) = whose;
    let mut b = Batch::new();
    for (entry, comeback) in entries {
        let Some(signal) = entry.siginfo.get(..4).filter(|_| entry.siginfo.len() == 128) else {
            return Err(Error::bad_image(format!("core-{pid}.img"), "a queued signal has no siginfo"));
        };
        let signal = i32::from_le_bytes(signal.try_into().unwrap_or_default());
        let mut info = entry.siginfo.clone();
        match *comeback {
            Comeback::Sent => {}
            Comeback::Counted(missed) => info[SI_OVERRUN..SI_OVERRUN + 4].copy_from_slice(&missed.to_le_bytes()),
            Comeback::Expires(timer, value) => {
                overruns::expire(&mut b, timer, value);
                let pause = b.bytes(&[0, EXPIRY_TAKES].map(u64::to_le_bytes).concat());
                b.call(libc::SYS_nanosleep, [pause.into(), Arg::Val(0)]);
                continue;
            }
            Comeback::Dropped => continue,
        }
        let code = i32::from_le_bytes(info[8..12].try_into().unwrap_or_default());
        let info = b.bytes(&info);
        match whose {
            Queue::Shared { pid, sender } if sender != pid && (code >= 0 || code == libc::SI_TKILL) => {
                // As its own a thread may send that only to the id that it has itself: a process's first by its pid,
                // another through a pidfd (kernel/signal.c).
                let own = b.call(libc::SYS_pidfd_open, [sender.into(), PIDFD_THREAD.into()]);
                let send = [own.into(), signal.into(), info.into(), PIDFD_SIGNAL_THREAD_GROUP.into()];
                b.call(libc::SYS_pidfd_send_signal, send);
                b.call(libc::SYS_close, [own.into()])
            }
            Queue::Shared { .. } => b.call(libc::SYS_rt_sigqueueinfo, [pid.into(), signal.into(), info.into()]),
            Queue::Own { tid, .. } => {
                b.call(libc::SYS_rt_tgsigqueueinfo, [pid.into(), tid.into(), signal.into(), info.into()])
            }
        };
    }
    Ok(b)
}
