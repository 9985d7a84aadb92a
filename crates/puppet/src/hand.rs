//! A hand: one process of the tree, stopped, running batches for the brain.
//!
//! ```text
//!   stopped ──enter──▶ idle in the trampoline ──start──▶ running a batch
//!      ▲                    ▲        │                        │
//!      └──────release───────│────────┘◀────────wait───────────┘
//!                           └─ nobody there: farewell, back through the frame
//! ```
//!
//! At every instant in between, a target whose tracer dies finds its own way
//! back: the stack page prepared before the first call holds a chain of signal
//! frames that unmaps the scratch mapping and restores every register; once
//! the trampoline is in, the same chain ends its farewell. Before it unmaps
//! anything, a hand waits until another thread that was in the trampoline has
//! left. A target that is *built* (restore) needs none of this, since it dies
//! with its tracer, until its last moment: see `park`.
//!
//! What a deserted target still notices:
//! - A call with a relative time limit begins anew, so it may last longer by
//!   what had passed of it: the kernel's restart block does not survive the
//!   return through a signal frame.
//! - A thread whose stack is nearly full, and which has no main stack to fall
//!   back to, loses its floating-point registers: the frame with them has no
//!   room ([`Doorway::roomy`]).
//! - A stop signal that came while a batch ran is lost with us.
//! - A process that job control had stopped stays stopped, with the scratch
//!   mapping in it, and goes home when it is continued.
//! - Seccomp filters judge it again. A hand with filters therefore returns
//!   home after each batch, so that only a death within a batch can meet them;
//!   then the scratch mapping stays behind.

use crate::arch::{self, Gadgets, Registers};
use crate::batch::{Batch, Place};
use crate::scratch::{self, op, slot};
use crate::{Error, Result, farewell, memory, numbers, trace};

/// What a stopped thread has to get back when it is let go.
#[derive(Debug, Clone)]
pub struct Context {
    /// General registers at the stop.
    pub regs: Registers,
    /// Blocked signals, bit n-1 for signal n.
    pub sigmask: u64,
    /// Extended state in the standard XSAVE layout.
    pub xstate: Vec<u8>,
}

impl Context {
    /// Reads the state of a stopped thread.
    pub fn read(tid: i32) -> Result<Self> {
        Ok(Context { regs: trace::registers(tid)?, sigmask: trace::sigmask(tid)?, xstate: trace::xstate(tid)? })
    }

    /// Reads that of a thread which dies with us: without the extended state,
    /// since what it runs for us touches none.
    pub fn of_built(tid: i32) -> Result<Self> {
        Ok(Context { regs: trace::registers(tid)?, sigmask: trace::sigmask(tid)?, xstate: Vec::new() })
    }

    /// Gives a stopped thread its registers and signal mask back. The mask
    /// first: until the registers are in, the thread is still on a path that
    /// restores everything by itself.
    pub fn write_back(&self, tid: i32) -> Result<()> {
        trace::set_sigmask(tid, self.sigmask)?;
        trace::set_registers(tid, &self.regs)
    }
}

/// How the target is entered and left without a byte of its code changed.
#[derive(Debug, Clone, Copy)]
pub struct Doorway {
    /// The two snippets in its text.
    pub gadgets: Gadgets,
    /// Address of unused stack for the chain of frames: [`Doorway::need`]
    /// bytes, far below any live stack pointer.
    pub stack: u64,
    /// Whether there is room for the extended state too. Without it, a thread
    /// whose tracer dies gets its floating-point registers back empty.
    pub roomy: bool,
}

impl Doorway {
    /// Address of the frame that restores everything, the second of the chain.
    pub(crate) fn home(&self) -> u64 {
        self.stack + arch::FRAME_HEAD as u64 + 8
    }

    /// The bytes of stack that are used, with an extended state of this size.
    #[must_use]
    pub fn frames(&self, xstate: usize) -> std::ops::Range<u64> {
        let used = if self.roomy { Doorway::need(xstate) } else { Doorway::least() };
        self.stack..self.stack + used
    }

    /// Bytes of stack without the extended state.
    #[must_use]
    pub fn least() -> u64 {
        (2 * arch::FRAME_HEAD + 16) as u64
    }

    /// Bytes of stack that the chain of frames needs.
    #[must_use]
    pub fn need(xstate: usize) -> u64 {
        (arch::FRAME_HEAD + 16 + arch::frame_len(xstate)) as u64
    }
}

/// A process that runs batches.
#[derive(Debug)]
pub struct Hand {
    pub(crate) pid: i32,
    pub(crate) tid: i32,
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) requests: u64,
    pub(crate) signal: i32,
    entry: Entry,
    stop_seen: bool,
    /// A batch was started and not waited for yet.
    running: bool,
    pub(crate) serving: bool,
    /// Does not wait in the trampoline for the next batch.
    restless: bool,
    /// Its signal would be noticed: no thread is to be left waiting with it.
    loud: bool,
    /// The frame on its own stack through which it would go home, and its length.
    pub(crate) frame: Option<(u64, usize)>,
    /// Where the rows of parked threads are, and their length.
    pub(crate) rows: Option<(u64, u64)>,
    /// It looks at the word that decides for all (`verdict`).
    pub(crate) has_verdict: bool,
}

#[derive(Debug)]
enum Entry {
    /// A target that existed before and goes back to what it did.
    Visited { context: Box<Context>, door: Doorway },
    /// A target that we are building.
    Built,
}

/// Signals that a program which does not handle them does not notice.
const QUIET_SIGNALS: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];

/// The quiet signal for a program that catches `caught` (bit n-1 for signal n).
fn quiet_signal(caught: u64) -> Option<i32> {
    QUIET_SIGNALS.into_iter().find(|s| caught & bit(*s) == 0)
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// A hand on its way in: the target makes the scratch mapping. To be followed
/// to its end also when another failed meanwhile.
#[derive(Debug)]
#[must_use]
pub struct Entering {
    hand: Hand,
    context: Context,
    door: Doorway,
}

impl Entering {
    /// Waits for the target to begin the call, and lets it.
    pub fn go_on(&self) -> Result<()> {
        crate::stops::enter_call(self.hand.tid)
    }

    /// Waits for the mapping and lays everything into it.
    pub fn finish(self) -> Result<Hand> {
        let Entering { mut hand, context, door } = self;
        let got = crate::stops::leave_call(hand.tid)?;
        if got != hand.base as i64 {
            context.write_back(hand.tid)?;
            let errno = rustix::io::Errno::from_raw_os_error(-got as i32);
            return Err(Error::Scratch { pid: hand.pid, errno });
        }
        hand.entry = Entry::Visited { context: Box::new(context), door };
        hand.furnish(door.gadgets.syscall, door.home(), libc::SYS_munmap as u64)?;
        Ok(hand)
    }
}

impl Hand {
    /// Begins to make the stopped thread `tid` of `pid` a hand. `base` is the
    /// address for its scratch mapping, free in the target; `caught` the signals
    /// that the program handles. Many may be on their way at once.
    pub fn enter(pid: i32, tid: i32, context: Context, door: Doorway, base: u64, caught: u64) -> Result<Entering> {
        let len = scratch::LEN;
        let quiet = quiet_signal(caught);
        let hand = Hand {
            pid,
            tid,
            base,
            len,
            requests: 0,
            signal: quiet.unwrap_or(libc::SIGURG),
            stop_seen: false,
            running: false,
            serving: false,
            restless: false,
            loud: quiet.is_none(),
            frame: None,
            rows: None,
            has_verdict: false,
            entry: Entry::Built,
        };
        let unmap = door.stack;
        let back = door.home();
        let leave =
            arch::for_call(&context.regs, door.gadgets.syscall, back, libc::SYS_munmap as u64, [base, len, 0, 0, 0, 0]);
        let mut chain = arch::write_step_frame(door.gadgets.sigreturn, &leave);
        chain.resize((back - unmap) as usize, 0);
        let home = arch::with_call_reissued(&context.regs);
        let xstate: &[u8] = if door.roomy { &context.xstate } else { &[] };
        chain.extend(arch::write_frame(back, door.gadgets.sigreturn, &home, context.sigmask, xstate));
        hand.poke(unmap, &chain)?;

        let prot = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let regs = arch::for_call(
            &context.regs,
            door.gadgets.syscall,
            unmap,
            libc::SYS_mmap as u64,
            [base, len, prot, flags, u64::MAX, 0],
        );
        hand.set_regs(&regs)?;
        hand.block_all()?;
        trace::resume_to_syscall(tid)?;
        Ok(Entering { hand, context, door })
    }

    /// Takes over a process that has just been born with the scratch mapping
    /// of this process at `base` (see [`crate::spawn`]) and is stopped.
    pub fn adopt(pid: i32, base: u64) -> Result<Hand> {
        let mut hand = Hand {
            pid,
            tid: pid,
            base,
            len: scratch::LEN,
            requests: 0,
            signal: libc::SIGSTKFLT,
            stop_seen: false,
            running: false,
            serving: false,
            restless: false,
            loud: false,
            frame: None,
            rows: None,
            has_verdict: false,
            entry: Entry::Built,
        };
        hand.furnish(base + scratch::CODE + arch::die_offset(), base + scratch::STACK_TOP - 16, 0)?;
        Ok(hand)
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The thread that serves. Through it the memory is read and written: the process's first thread, by whose id the
    /// kernel would take the process, may have ended.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Where the scratch mapping stands.
    #[must_use]
    pub fn scratch(&self) -> std::ops::Range<u64> {
        self.base..self.base + self.len
    }

    /// Runs a batch and reads its results. A call of the batch that failed is
    /// an error here; the results tell how far it got.
    pub fn run(&mut self, batch: &mut Batch) -> Result<()> {
        if batch.is_empty() {
            // To wake it for nothing takes as long.
            return Ok(());
        }
        self.start(batch)?;
        self.wait(batch)
    }

    /// Whether a batch is not too large.
    #[must_use]
    pub fn fits(&self, batch: &Batch) -> bool {
        batch.fits(&self.place())
    }

    /// Whether a batch can run in another thread beside those of more threads.
    #[must_use]
    pub fn fits_in_thread(&self, batch: &Batch) -> bool {
        batch.fits(&self.row(0))
    }

    /// From now on a built hand announces itself by a signal that does no harm
    /// should we die: none that the program to be catches, or has waiting
    /// (`busy`, bit n-1 for signal n).
    pub fn hush(&mut self, busy: u64) -> Result<()> {
        let quiet = QUIET_SIGNALS.into_iter().find(|s| *s != libc::SIGCHLD && busy & bit(*s) == 0);
        self.loud = quiet.is_none();
        self.signal = quiet.unwrap_or(self.signal);
        let at = self.base + scratch::SLOT + slot::SIGNAL as u64;
        self.poke(at, &(self.signal as u64).to_le_bytes())?;
        self.block_all()
    }

    /// Whether a thread with this signal mask must not be left in the stop in
    /// which its hand announced itself: the signal would stay with it.
    #[must_use]
    pub fn disturbs(&self, sigmask: u64) -> bool {
        self.loud || sigmask & bit(self.signal) != 0
    }

    /// For a process with seccomp filters: its hand goes home after each batch.
    pub fn be_restless(&mut self) {
        self.restless = true;
    }

    /// Starts a batch without waiting, so that many hands work at once.
    pub fn start(&mut self, batch: &Batch) -> Result<()> {
        self.requests += 1;
        self.submit(batch, &self.place(), self.base + scratch::SLOT, self.requests)?;
        if !self.serving {
            let regs = match &self.entry {
                Entry::Visited { context, .. } => context.regs,
                Entry::Built => trace::registers(self.tid)?,
            };
            self.send_in(self.tid, &regs, self.base + scratch::SLOT, self.base + scratch::STACK_TOP - 64)?;
            self.serving = true;
        }
        self.running = true;
        trace::resume(self.tid, 0)
    }

    /// Waits for the batch that [`Hand::start`] started.
    pub fn wait(&mut self, batch: &mut Batch) -> Result<()> {
        let left = self.wait_announcement(self.tid, self.base + scratch::SLOT)?;
        self.running = false;
        if let (true, Entry::Visited { context, .. }) = (self.restless, &self.entry) {
            context.write_back(self.tid)?;
            self.serving = false;
        }
        self.fetch(&mut [(&mut *batch, self.place(), left)])?;
        self.failed(batch)
    }

    pub(crate) fn failed(&self, batch: &Batch) -> Result<()> {
        match batch.failure() {
            None => Ok(()),
            Some((_, nr, errno)) => Err(Error::Call { pid: self.pid, call: crate::names::syscall_name(nr), errno }),
        }
    }

    /// Makes a held thread of the process enter a call that sleeps, and
    /// interrupts it there; see [`crate::stops::run_until_asleep`].
    pub fn enter_call(&self, tid: i32, nr: i64, args: [u64; 6]) -> Result<i64> {
        let code = self.base + scratch::CODE;
        let at = code + arch::syscall_offset();
        let base = trace::registers(tid)?;
        // A parked thread that finishes the call alone goes on as it would have without it.
        let stack = self.base + scratch::THREAD_STACK_TOP - 64;
        self.poke(stack, &(code + arch::alone_offset()).to_le_bytes())?;
        trace::set_registers(tid, &arch::for_call(&base, at, stack, nr as u64, args))?;
        self.block_all_in(tid)?;
        crate::stops::run_until_asleep(tid)
    }

    /// Address of some scratch room for what a single call reads.
    #[must_use]
    pub fn thread_room(&self) -> u64 {
        self.base + scratch::THREAD_DATA
    }

    /// Removes the scratch mapping and puts the thread back to where it was,
    /// still stopped. A target that was built is left as it is.
    pub fn leave(&mut self) -> Result<()> {
        if self.running && matches!(self.entry, Entry::Visited { .. }) {
            self.wait_announcement(self.tid, self.base + scratch::SLOT)?;
        }
        let Entry::Visited { context, door } = &self.entry else {
            return Ok(());
        };
        let back = door.home();
        let regs = arch::for_call(
            &context.regs,
            door.gadgets.syscall,
            back,
            libc::SYS_munmap as u64,
            [self.base, self.len, 0, 0, 0, 0],
        );
        self.set_regs(&regs)?;
        let got = crate::stops::run_one_call(self.tid)?;
        context.write_back(self.tid)?;
        // Whoever comes next sees that nobody needs the chain any more.
        let used = door.frames(context.xstate.len());
        self.poke(used.start, &vec![0; (used.end - used.start) as usize])?;
        if got != 0 {
            return Err(Error::Scratch { pid: self.pid, errno: rustix::io::Errno::from_raw_os_error(-got as i32) });
        }
        Ok(())
    }

    /// Whether somebody sent the process a stop signal meanwhile, which was
    /// held back and has to be sent again when it is let go.
    #[must_use]
    pub fn stop_seen(&self) -> bool {
        self.stop_seen
    }

    pub(crate) fn place(&self) -> Place {
        Place {
            ops: self.base + scratch::OPS,
            data: self.base + scratch::DATA,
            ops_max: scratch::OPS_MAX,
            data_max: scratch::DATA_LEN,
        }
    }

    /// Lays the code, the main slot and the farewells into the scratch mapping.
    fn furnish(&mut self, leave_ip: u64, leave_sp: u64, leave_nr: u64) -> Result<()> {
        let at = |offset: u64| self.base + offset;
        let slot = self.slot(&[
            (slot::OPS, at(scratch::OPS)),
            (slot::VERDICT, at(scratch::VERDICT)),
            (slot::FAREWELL_OPS, at(scratch::FAREWELL)),
            (slot::FAREWELL_COUNT, farewell::FOR_OTHERS + numbers::MAX as u64),
            (slot::LEAVE_SP, leave_sp),
            (slot::LEAVE_ARG0, self.base),
            (slot::LEAVE_ARG1, self.len),
            (slot::LEAVE_NR, leave_nr),
            (slot::LEAVE_IP, leave_ip),
        ]);
        let words = farewell::times(farewell::GRACE_OF_ONE + scratch::THREADS as u64 * farewell::GRACE_OF_EACH);
        let words: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.poke_all(&[
            (at(scratch::CODE), arch::code()),
            (at(scratch::FAREWELL), &[numbers::farewell(self.base), farewell::for_others(self.base)].concat()),
            (at(scratch::NUMBERS), &numbers::none()),
            (at(scratch::LEFT), &words),
            (at(scratch::BUSY), &crate::group::busy(0)),
            (at(scratch::THREAD_FAREWELL), &farewell::say_left(self.base)),
            (at(scratch::SLOT), &slot),
        ])
    }

    /// The bytes of a slot: these fields, the signal, and zero for the rest.
    pub(crate) fn slot(&self, fields: &[(usize, u64)]) -> Vec<u8> {
        let mut words = [0u64; slot::SIZE / 8];
        words[slot::SIGNAL / 8] = self.signal as u64;
        for &(field, value) in fields {
            words[field / 8] = value;
        }
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// Points the stopped thread at the trampoline, to serve the batch that
    /// lies in the slot at `slot_at`. The registers before the mask: see
    /// [`Context::write_back`].
    pub(crate) fn send_in(&self, tid: i32, base: &Registers, slot_at: u64, stack: u64) -> Result<()> {
        let regs = arch::for_trampoline(base, self.base + scratch::CODE + arch::serve_offset(), slot_at, stack);
        trace::set_registers(tid, &regs)?;
        self.block_all_in(tid)
    }

    pub(crate) fn encode(&self, batch: &Batch, place: &Place) -> Result<(Vec<u8>, Vec<u8>)> {
        if !batch.fits(place) {
            return Err(Error::TooLarge { pid: self.pid, what: "batch" });
        }
        Ok(batch.encode(place))
    }

    /// Lays a batch down. The number of the request comes last: until it is
    /// there, a hand that is left alone sees nothing new.
    fn submit(&self, batch: &Batch, place: &Place, slot_at: u64, request: u64) -> Result<()> {
        let (ops, data) = self.encode(batch, place)?;
        self.poke_all(&[
            (place.ops, &ops),
            (place.data, &data),
            (slot_at + slot::COUNT as u64, &(batch.len() as u64).to_le_bytes()),
            (slot_at + slot::REQUEST as u64, &request.to_le_bytes()),
        ])
    }

    /// Reads the results of batches, each from its place; with each, how many
    /// of its calls were not reached.
    pub(crate) fn fetch(&self, batches: &mut [(&mut Batch, Place, u64)]) -> Result<()> {
        let mut spans = Vec::with_capacity(2 * batches.len());
        for (batch, place, _) in batches.iter() {
            let outputs = batch.output_range().unwrap_or_default();
            spans.push((place.ops, batch.len() * op::SIZE));
            spans.push((place.data + outputs.start as u64, outputs.len()));
        }
        let got = self.peek_all(&spans)?;
        for ((batch, _, left), got) in batches.iter_mut().zip(got.chunks_exact(2)) {
            batch.take_results(&got[0], *left);
            if let Some(range) = batch.output_range() {
                batch.data_mut()[range].copy_from_slice(&got[1]);
            }
        }
        Ok(())
    }

    pub(crate) fn set_regs(&self, regs: &Registers) -> Result<()> {
        trace::set_registers(self.tid, regs)
    }

    fn block_all(&self) -> Result<()> {
        self.block_all_in(self.tid)
    }

    fn block_all_in(&self, tid: i32) -> Result<()> {
        let all_but_ours = !bit(self.signal);
        trace::set_sigmask(tid, all_but_ours)
    }

    /// Waits until the batch of the slot at `slot_at` has been run; returns how
    /// many calls of it were not reached.
    pub(crate) fn wait_announcement(&mut self, tid: i32, slot_at: u64) -> Result<u64> {
        loop {
            self.stop_seen |= crate::stops::wait_for_signal(tid, self.signal)?;
            // Of a thread that is held, single words are cheaper to get than the slot is.
            let word = |at: usize| {
                let at = slot_at + at as u64;
                trace::peek_data(tid, at).map_err(|errno| Error::Memory { pid: self.pid, at, op: "read", errno })
            };
            if word(slot::DONE)? == word(slot::REQUEST)? {
                let left = word(slot::LEFT)?;
                if self.loud {
                    crate::stops::move_on(tid)?;
                }
                return Ok(left);
            }
            // Somebody else sent the same signal.
            trace::resume(tid, 0)?;
        }
    }

    /// Writes to the target's memory.
    pub fn poke(&self, at: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        memory::write(self.tid, at, bytes).map_err(|errno| Error::Memory { pid: self.pid, at, op: "write", errno })
    }

    /// Writes pieces to the target's memory, in this order.
    pub fn poke_all(&self, pieces: &[(u64, &[u8])]) -> Result<()> {
        let at = pieces.first().map_or(0, |p| p.0);
        memory::write_pieces(self.tid, pieces).map_err(|errno| Error::Memory { pid: self.pid, at, op: "write", errno })
    }

    /// Reads pieces (address and length) of the target's memory.
    fn peek_all(&self, pieces: &[(u64, usize)]) -> Result<Vec<Vec<u8>>> {
        let at = pieces.first().map_or(0, |p| p.0);
        memory::read_pieces(self.tid, pieces).map_err(|errno| Error::Memory { pid: self.pid, at, op: "read", errno })
    }

    /// Reads from the target's memory.
    pub fn peek(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; len];
        if len > 0 {
            memory::read(self.tid, at, &mut out).map_err(|errno| Error::Memory {
                pid: self.pid,
                at,
                op: "read",
                errno,
            })?;
        }
        Ok(out)
    }
}
