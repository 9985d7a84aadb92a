//! What is asked of each process by its own hand, and of many processes at
//! once: to wake one and wait for it takes longer than its answers.

use crate::Result;
use crate::attributes::{limits, signals, task, thread, timers};
use crate::freeze::Process;
use crate::memory::{ExtrasAsk, MmAsk};
use cryonaut_puppet::{Batch, Call, Verdict};

/// How many processes' answers are held at a time.
pub const AT_ONCE: usize = 128;
/// More POSIX timers than these get a batch of their own.
const FEW_TIMERS: usize = 32;

/// The questions to one process, and once they are [answered](Questions::wait),
/// where to look for what.
#[derive(Debug)]
pub struct Questions {
    /// Signal actions.
    pub signals: signals::Ask,
    /// Its address space.
    pub mm: MmAsk,
    /// What the format has no place for of it.
    pub extras: ExtrasAsk,
    /// Its resource limits.
    pub limits: limits::Ask,
    /// The process as a whole.
    pub task: task::Ask,
    /// Its first thread.
    pub thread: thread::Ask,
    /// Its timers.
    pub timers: timers::Ask,
    /// The answers to all but, perhaps, the last.
    pub answers: Batch,
    of_timers: Option<Batch>,
    /// That it takes the verdict.
    verdict: Option<Call>,
    answered: bool,
}

impl Questions {
    /// Asks, and offers the verdict, if there is one for it; does not wait.
    pub fn ask(process: &mut Process, verdict: Option<&Verdict>) -> Result<Questions> {
        let mut b = Batch::new();
        let verdict = verdict.zip(process.hand.as_ref()).and_then(|(verdict, hand)| verdict.offer_in(&mut b, hand));
        let has_none = process.objects.is_some_and(|objects| !objects.may_have_timers);
        let posix = if has_none { Vec::new() } else { process.task.timers()? };
        let mut of_timers = (posix.len() > FEW_TIMERS).then(Batch::new);
        let questions = Questions {
            signals: signals::Ask::new(&mut b),
            mm: MmAsk::new(&mut b),
            extras: ExtrasAsk::new(&mut b),
            limits: limits::Ask::new(&mut b),
            task: task::Ask::new(&mut b),
            thread: thread::Ask::new(&mut b),
            timers: timers::Ask::new(of_timers.as_mut().unwrap_or(&mut b), posix),
            answers: b,
            of_timers,
            verdict,
            answered: false,
        };
        process.hand()?.start(&questions.answers)?;
        Ok(questions)
    }

    /// Waits for the answers, if they are not there yet.
    pub fn wait(&mut self, process: &mut Process) -> Result<()> {
        if std::mem::replace(&mut self.answered, true) {
            return Ok(());
        }
        let hand = process.hand()?;
        hand.wait(&mut self.answers)?;
        Verdict::took(hand, &self.answers, self.verdict);
        self.of_timers.as_mut().map_or(Ok(()), |b| Ok(hand.run(b)?))
    }

    /// Whether the process has POSIX timers.
    pub fn has_timers(&self) -> bool {
        self.timers.any()
    }

    /// The answers about timers.
    pub fn of_timers(&self) -> &Batch {
        self.of_timers.as_ref().unwrap_or(&self.answers)
    }
}
