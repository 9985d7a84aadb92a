//! x86_64: the register file, the trampoline and the signal frame.

mod frame;
mod gadgets;
mod trampoline;

pub use frame::{FRAME_HEAD, frame_len, write_frame, write_step_frame, xstate_align};
pub use gadgets::{Gadgets, find_gadgets, spare_gadgets};
pub use trampoline::{alone_offset, code, die_offset, serve_offset, syscall_offset};

/// The general registers as `PTRACE_GETREGS` gives them.
pub type Registers = libc::user_regs_struct;

/// Kernel-internal return values of a system call that a signal interrupted
/// (include/linux/errno.h); user space never sees them, a tracer does.
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// The system call that a stopped thread was in and that the kernel means to
/// start again, if any.
#[must_use]
pub fn interrupted_call(regs: &Registers) -> Option<u64> {
    let in_call = (regs.orig_rax as i64) >= 0;
    let restarts = matches!(regs.rax as i64, ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK);
    (in_call && restarts).then_some(regs.orig_rax)
}

/// Whether the interrupted call continues through the kernel's restart block,
/// which holds the time that a relative sleep still has to go.
#[must_use]
pub fn has_restart_block(regs: &Registers) -> bool {
    interrupted_call(regs).is_some() && regs.rax as i64 == ERESTART_RESTARTBLOCK
}

/// The registers with which user space runs on when the kernel does not get to
/// restart the interrupted call itself: back on the `syscall` instruction with
/// the call's number in place.
#[must_use]
pub fn with_call_reissued(regs: &Registers) -> Registers {
    let mut out = *regs;
    if let Some(nr) = interrupted_call(regs) {
        out.rax = nr;
        out.rip = out.rip.wrapping_sub(2);
        out.orig_rax = u64::MAX;
    }
    out
}

/// Makes a thread that stands behind a call one that waits in it, call `nr`,
/// for [`with_call_reissued`].
pub fn begin_anew(regs: &mut Registers, nr: i64) {
    regs.orig_rax = nr as u64;
    regs.rax = ERESTART_RESTARTBLOCK as u64;
}

/// Waits that the kernel ends with EINTR when a thread is stopped, although no
/// signal was delivered (signal(7), "Interruption of system calls and library
/// functions by stop signals").
const ENDED_BY_A_STOP: [i64; 6] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semtimedop,
    libc::SYS_io_getevents,
];

/// Makes such a wait one that the kernel starts again unless a signal with a
/// handler comes first, so that the program never sees our interruption. Says
/// whether it was one.
pub fn undo_interruption(regs: &mut Registers) -> bool {
    let ended = regs.rax as i64 == -i64::from(libc::EINTR) && ENDED_BY_A_STOP.contains(&(regs.orig_rax as i64));
    if ended {
        regs.rax = ERESTARTNOHAND as u64;
    }
    ended
}

/// Number and arguments of the call that a thread was in.
#[must_use]
pub fn registers_of_call(regs: &Registers) -> (i64, [u64; 6]) {
    (regs.orig_rax as i64, [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9])
}

/// Registers that make a stopped thread execute one system call at the gadget
/// `at` (a `syscall; ret`), with the stack at `sp`.
#[must_use]
pub fn for_call(base: &Registers, at: u64, sp: u64, nr: u64, args: [u64; 6]) -> Registers {
    let mut r = clean(base);
    r.rip = at;
    r.rsp = sp;
    r.rax = nr;
    r.rdi = args[0];
    r.rsi = args[1];
    r.rdx = args[2];
    r.r10 = args[3];
    r.r8 = args[4];
    r.r9 = args[5];
    r
}

/// Registers that make a stopped thread enter the trampoline at `ip`, serving
/// `slot`, with the stack at `sp`.
#[must_use]
pub fn for_trampoline(base: &Registers, ip: u64, slot: u64, sp: u64) -> Registers {
    let mut r = clean(base);
    r.rip = ip;
    r.rsp = sp;
    r.rbx = slot;
    r
}

/// Outside any system call, direction and trap flags clear.
fn clean(base: &Registers) -> Registers {
    let mut r = *base;
    r.orig_rax = u64::MAX;
    r.eflags &= !(0x400 | 0x100);
    r
}

/// The result register.
#[must_use]
pub fn result(regs: &Registers) -> i64 {
    regs.rax as i64
}

/// Whether the thread runs 64-bit code (`cs` of the kernel's GDT).
#[must_use]
pub fn is_native(regs: &Registers) -> bool {
    regs.cs == 0x33
}
