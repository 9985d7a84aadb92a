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
//! the trampoline is in, the same chain ends its farewell. A target that is
//! *built* (restore) needs none of this, since it dies with its tracer.

use crate::arch::{self, Gadgets, Registers};
use crate::batch::{Batch, Place};
use crate::scratch::{self, op, slot};
use crate::{Error, Result, memory, trace};

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
    fn home(&self) -> u64 {
        self.stack + arch::FRAME_HEAD as u64 + 8
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
    pid: i32,
    tid: i32,
    base: u64,
    len: u64,
    requests: u64,
    signal: i32,
    entry: Entry,
    thread_requests: u64,
    stop_seen: bool,
    serving: bool,
}

#[derive(Debug)]
enum Entry {
    /// A target that existed before and goes back to what it did.
    Visited { context: Box<Context>, door: Doorway },
    /// A target that we are building.
    Built,
}

/// Index of `set_tid` among the words of `struct clone_args` (clone(2));
/// `set_tid_size` follows.
const CLONE_ARGS_SET_TID: usize = 8;

/// Signals that a program which does not handle them does not notice.
const QUIET_SIGNALS: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];

/// The quiet signal for a program that catches `caught` (bit n-1 for signal n).
fn quiet_signal(caught: u64) -> i32 {
    QUIET_SIGNALS.into_iter().find(|s| caught & (1 << (s - 1)) == 0).unwrap_or(libc::SIGURG)
}

impl Hand {
    /// Makes the stopped thread `tid` of `pid` a hand. `base` is the address
    /// for its scratch mapping, free in the target; `caught` the signals that
    /// the program handles.
    pub fn enter(pid: i32, tid: i32, context: Context, door: Doorway, base: u64, caught: u64) -> Result<Hand> {
        let len = scratch::LEN;
        let mut hand = Hand {
            pid,
            tid,
            base,
            len,
            requests: 0,
            signal: quiet_signal(caught),
            thread_requests: 0,
            stop_seen: false,
            serving: false,
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
        let got = crate::stops::run_one_call(tid)?;
        if got != base as i64 {
            context.write_back(tid)?;
            return Err(Error::Scratch { pid, errno: rustix::io::Errno::from_raw_os_error(-got as i32) });
        }
        hand.entry = Entry::Visited { context: Box::new(context), door };
        hand.furnish(door.gadgets.syscall, back, libc::SYS_munmap as u64)?;
        Ok(hand)
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
            thread_requests: 0,
            stop_seen: false,
            serving: false,
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

    /// The thread that serves.
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
        self.start(batch)?;
        self.wait(batch)
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
        trace::resume(self.tid, 0)
    }

    /// Waits for the batch that [`Hand::start`] started.
    pub fn wait(&mut self, batch: &mut Batch) -> Result<()> {
        self.wait_announcement(self.tid)?;
        self.fetch(batch, &self.place(), self.base + scratch::SLOT)?;
        self.failed(batch)
    }

    fn failed(&self, batch: &Batch) -> Result<()> {
        match batch.failure() {
            None => Ok(()),
            Some((_, nr, errno)) => Err(Error::Call { pid: self.pid, call: crate::names::syscall_name(nr), errno }),
        }
    }

    /// Creates a process by `clone3` in this one, with the arguments that
    /// `args` holds (struct clone_args), and waits until it stands still. It
    /// shares our tracing options.
    pub fn clone_child(&mut self, args: &[u64; 11], set_tid: i32) -> Result<i32> {
        let mut b = Batch::new();
        let tid = b.bytes(&set_tid.to_le_bytes());
        let bytes: Vec<u8> = args.iter().flat_map(|w| w.to_le_bytes()).collect();
        let data = b.bytes(&bytes);
        b.point(data.at(8 * CLONE_ARGS_SET_TID), tid);
        b.set(data.at(8 * CLONE_ARGS_SET_TID + 8), &1u64.to_le_bytes());
        let call = b.call(libc::SYS_clone3, [data.into(), bytes.len().into()]);
        self.run(&mut b).map_err(|e| match e {
            Error::Call { errno, .. } => Error::Birth { pid: set_tid, errno },
            other => other,
        })?;
        let child = b.result(call).map_err(|errno| Error::Birth { pid: set_tid, errno })? as i32;
        crate::stops::wait_newborn(child)?;
        Ok(child)
    }

    /// Runs a small batch in another stopped thread of the same process and
    /// puts the thread back to where it was.
    pub fn run_in_thread(&mut self, tid: i32, context: &Context, batch: &mut Batch) -> Result<()> {
        let at = self.base + scratch::THREAD_SLOT;
        let frame_at = self.base + scratch::THREAD_FRAME;
        let home = arch::with_call_reissued(&context.regs);
        let frame = arch::write_frame(frame_at, 0, &home, context.sigmask, &context.xstate);
        self.poke(frame_at, &frame)?;
        self.lay_slot(
            at,
            &[
                (slot::OPS, self.base + scratch::THREAD_OPS),
                (slot::LEAVE_SP, frame_at + 8),
                (slot::LEAVE_NR, libc::SYS_rt_sigreturn as u64),
                (slot::LEAVE_IP, self.base + scratch::CODE + arch::syscall_offset()),
            ],
        )?;
        self.thread_requests += 1;
        let request = self.thread_requests;
        let place = self.thread_place();
        self.submit(batch, &place, at, request)?;
        self.send_in(tid, &context.regs, at, self.base + scratch::THREAD_STACK_TOP - 64)?;
        trace::resume(tid, 0)?;
        self.wait_announcement(tid)?;
        self.fetch(batch, &place, at)?;
        context.write_back(tid)?;
        self.failed(batch)
    }

    /// Makes one system call outside the trampoline, through a `syscall; ret`
    /// at `gadget`, and leaves the thread stopped behind it.
    pub fn call_bare(&mut self, gadget: u64, nr: i64, args: [u64; 6]) -> Result<i64> {
        let base = trace::registers(self.tid)?;
        self.serving = false;
        self.set_regs(&arch::for_call(&base, gadget, self.base + scratch::STACK_TOP - 64, nr as u64, args))?;
        crate::stops::run_one_call(self.tid)
    }

    /// Makes a held thread of the process enter a call that sleeps, and
    /// interrupts it there; see [`crate::stops::run_until_asleep`].
    pub fn enter_call(&self, tid: i32, nr: i64, args: [u64; 6]) -> Result<i64> {
        let at = self.base + scratch::CODE + arch::syscall_offset();
        let base = trace::registers(tid)?;
        trace::set_registers(
            tid,
            &arch::for_call(&base, at, self.base + scratch::THREAD_STACK_TOP - 64, nr as u64, args),
        )?;
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

    fn place(&self) -> Place {
        Place {
            ops: self.base + scratch::OPS,
            data: self.base + scratch::DATA,
            ops_max: scratch::OPS_MAX,
            data_max: scratch::DATA_LEN,
        }
    }

    fn thread_place(&self) -> Place {
        Place {
            ops: self.base + scratch::THREAD_OPS,
            data: self.base + scratch::THREAD_DATA,
            ops_max: scratch::THREAD_OPS_MAX,
            data_max: scratch::THREAD_DATA_LEN,
        }
    }

    /// Lays the code and the main slot into the scratch mapping.
    fn furnish(&mut self, leave_ip: u64, leave_sp: u64, leave_nr: u64) -> Result<()> {
        self.poke(self.base + scratch::CODE, arch::code())?;
        self.lay_slot(
            self.base + scratch::SLOT,
            &[
                (slot::OPS, self.base + scratch::OPS),
                (slot::FAREWELL_OPS, self.base + scratch::FAREWELL),
                (slot::LEAVE_SP, leave_sp),
                (slot::LEAVE_ARG0, self.base),
                (slot::LEAVE_ARG1, self.len),
                (slot::LEAVE_NR, leave_nr),
                (slot::LEAVE_IP, leave_ip),
            ],
        )
    }

    /// Writes a slot: these fields, the signal, and zero for the rest.
    fn lay_slot(&self, at: u64, fields: &[(usize, u64)]) -> Result<()> {
        let mut words = [0u64; slot::SIZE / 8];
        words[slot::SIGNAL / 8] = self.signal as u64;
        for &(field, value) in fields {
            words[field / 8] = value;
        }
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.poke(at, &bytes)
    }

    /// Points the stopped thread at the trampoline, to serve the batch that
    /// lies in the slot at `slot_at`. The registers before the mask: see
    /// [`Context::write_back`].
    fn send_in(&self, tid: i32, base: &Registers, slot_at: u64, stack: u64) -> Result<()> {
        let regs = arch::for_trampoline(base, self.base + scratch::CODE + arch::serve_offset(), slot_at, stack);
        trace::set_registers(tid, &regs)?;
        self.block_all_in(tid)
    }

    fn submit(&self, batch: &Batch, place: &Place, slot_at: u64, request: u64) -> Result<()> {
        if !batch.fits(place) {
            return Err(Error::TooLarge { pid: self.pid, what: "batch" });
        }
        let (ops, data) = batch.encode(place);
        self.poke(place.ops, &ops)?;
        self.poke(place.data, &data)?;
        self.poke(slot_at + slot::COUNT as u64, &(batch.len() as u64).to_le_bytes())?;
        self.poke(slot_at + slot::REQUEST as u64, &request.to_le_bytes())
    }

    fn fetch(&self, batch: &mut Batch, place: &Place, slot_at: u64) -> Result<()> {
        let left = self.peek(slot_at + slot::LEFT as u64, 8)?;
        let ops = self.peek(place.ops, batch.len() * op::SIZE)?;
        batch.take_results(&ops, u64::from_le_bytes(left[..8].try_into().unwrap_or_default()));
        if let Some(range) = batch.output_range() {
            let got = self.peek(place.data + range.start as u64, range.len())?;
            batch.data_mut()[range].copy_from_slice(&got);
        }
        Ok(())
    }

    fn set_regs(&self, regs: &Registers) -> Result<()> {
        trace::set_registers(self.tid, regs)
    }

    fn block_all(&self) -> Result<()> {
        self.block_all_in(self.tid)
    }

    fn block_all_in(&self, tid: i32) -> Result<()> {
        let all_but_ours = !(1u64 << (self.signal - 1));
        trace::set_sigmask(tid, all_but_ours)
    }

    fn wait_announcement(&mut self, tid: i32) -> Result<()> {
        self.stop_seen |= crate::stops::wait_for_signal(tid, self.signal)?;
        Ok(())
    }

    /// Writes to the target's memory.
    pub fn poke(&self, at: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        memory::write(self.pid, at, bytes).map_err(|errno| Error::Memory { pid: self.pid, at, op: "write", errno })
    }

    /// Reads from the target's memory.
    pub fn peek(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; len];
        if len > 0 {
            memory::read(self.pid, at, &mut out).map_err(|errno| Error::Memory {
                pid: self.pid,
                at,
                op: "read",
                errno,
            })?;
        }
        Ok(out)
    }
}
