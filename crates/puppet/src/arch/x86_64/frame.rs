//! The signal frame: what `rt_sigreturn` loads a thread's state from.
//!
//! Layout after arch/x86/include/uapi/asm/{ucontext,sigcontext}.h: at the
//! call, the stack pointer stands on the `ucontext`.

use super::Registers;

/// Length of the `ucontext` with a 64-bit signal mask.
const UCONTEXT: usize = 304;

/// Bytes before the extended state in a frame built by [`write_frame`]: the
/// return address for the gadget and the `ucontext`.
pub const FRAME_HEAD: usize = 8 + UCONTEXT;

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Offset of the software-reserved bytes in the legacy area; ptrace keeps the
/// mask of the user's features in their first eight.
const SW_RESERVED: usize = 464;

/// Bytes that a frame with `xstate` bytes of extended state needs, alignment
/// included.
#[must_use]
pub fn frame_len(xstate: usize) -> usize {
    FRAME_HEAD + 64 + xstate + 4
}

/// XRSTOR wants its operand on a 64-byte boundary.
#[must_use]
pub fn xstate_align(at: u64) -> u64 {
    at.next_multiple_of(64)
}

/// Builds the frame that gives a thread back `regs`, `sigmask` and `xstate`
/// (as read by `PTRACE_GETREGSET`), to stand at address `at`. Its first word
/// is `return_to`, for a `ret` that leads to `rt_sigreturn`.
#[must_use]
pub fn write_frame(at: u64, return_to: u64, regs: &Registers, sigmask: u64, xstate: &[u8]) -> Vec<u8> {
    let fp_at = xstate_align(at + FRAME_HEAD as u64);
    let mut out = head(return_to, regs, sigmask, if xstate.is_empty() { 0 } else { fp_at });
    if xstate.len() >= 576 {
        out.resize((fp_at - at) as usize, 0);
        let start = out.len();
        out.extend_from_slice(xstate);
        let features = u64::from_le_bytes(xstate[SW_RESERVED..SW_RESERVED + 8].try_into().unwrap_or_default());
        let sw = &mut out[start + SW_RESERVED..start + SW_RESERVED + 48];
        sw.fill(0);
        sw[0..4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
        sw[4..8].copy_from_slice(&(xstate.len() as u32 + 4).to_le_bytes());
        sw[8..16].copy_from_slice(&features.to_le_bytes());
        sw[16..20].copy_from_slice(&(xstate.len() as u32).to_le_bytes());
        out.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
    }
    out
}

/// A frame for one intermediate step of a chain of system calls: no extended
/// state (the last frame of the chain restores it).
#[must_use]
pub fn write_step_frame(return_to: u64, regs: &Registers) -> Vec<u8> {
    head(return_to, regs, u64::MAX, 0)
}

fn head(return_to: u64, regs: &Registers, sigmask: u64, fpstate: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096);
    let mut put = |v: u64| out.extend_from_slice(&v.to_le_bytes());
    put(return_to);
    put(UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS | if fpstate != 0 { UC_FP_XSTATE } else { 0 });
    put(0);
    // uc_stack: flags that the kernel refuses, so that the thread keeps the
    // alternate stack that it has (restore_altstack ignores the refusal).
    put(0);
    put(0x7fff_ffff);
    put(0);
    for v in [
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rdi,
        regs.rsi,
        regs.rbp,
        regs.rbx,
        regs.rdx,
        regs.rax,
        regs.rcx,
        regs.rsp,
        regs.rip,
        regs.eflags,
    ] {
        put(v);
    }
    put((regs.cs & 0xffff) | (regs.gs & 0xffff) << 16 | (regs.fs & 0xffff) << 32 | (regs.ss & 0xffff) << 48);
    for v in [0, 0, 0, 0, fpstate] {
        put(v);
    }
    for _ in 0..8 {
        put(0);
    }
    put(sigmask);
    debug_assert_eq!(out.len(), FRAME_HEAD);
    out
}
