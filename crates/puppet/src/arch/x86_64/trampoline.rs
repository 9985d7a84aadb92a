//! The trampoline: the only code that ever runs inside a target.
//!
//! It serves a *slot* (see `scratch`): announce that the hand is idle by
//! sending itself the slot's signal, which the tracer sees as a stop and
//! cancels; then look whether a new batch was laid down. If so, run it and
//! announce again. If not, nobody stands behind the hand any more: obey the
//! verdict, run the farewell operations and return through the saved frame.
//!
//! It keeps its state in registers that system calls preserve, touches no
//! floating-point register and reads no address but what the slot names.

use crate::scratch::{op, slot};
use core::arch::global_asm;

global_asm!(
    ".pushsection .rodata.cryonaut_trampoline, \"a\", @progbits",
    ".balign 16",
    ".globl cryonaut_trampoline_start",
    "cryonaut_trampoline_start:",
    // rbx: the slot. Announce: tgkill(getpid(), gettid(), slot.signal).
    "20:",
    "mov eax, {getpid}",
    "syscall",
    "mov r12d, eax",
    "mov eax, {gettid}",
    "syscall",
    "mov edi, r12d",
    "mov esi, eax",
    "mov edx, dword ptr [rbx + {slot_signal}]",
    "mov eax, {tgkill}",
    "syscall",
    ".globl cryonaut_trampoline_serve",
    "cryonaut_trampoline_serve:",
    "mov rax, qword ptr [rbx + {slot_request}]",
    "cmp rax, qword ptr [rbx + {slot_done}]",
    "je 60f",
    "mov r13, qword ptr [rbx + {slot_ops}]",
    "mov r14, qword ptr [rbx + {slot_count}]",
    "call 30f",
    "mov qword ptr [rbx + {slot_left}], r14",
    "mov rax, qword ptr [rbx + {slot_request}]",
    "mov qword ptr [rbx + {slot_done}], rax",
    "jmp 20b",
    // Run r14 operations at r13; leaves in r14 how many were not reached.
    "30:",
    "test r14, r14",
    "jz 39f",
    "mov rax, qword ptr [r13 + {op_cond}]",
    "test rax, rax",
    "jz 31f",
    "cmp qword ptr [rax], 0",
    "jl 38f",
    "31:",
    "mov r12, qword ptr [r13 + {op_refs}]",
    "mov rdi, qword ptr [r13 + {op_args}]",
    "test r12d, 1",
    "jz 32f",
    "mov rdi, qword ptr [rdi]",
    "32:",
    "mov rsi, qword ptr [r13 + {op_args} + 8]",
    "test r12d, 2",
    "jz 33f",
    "mov rsi, qword ptr [rsi]",
    "33:",
    "mov rdx, qword ptr [r13 + {op_args} + 16]",
    "test r12d, 4",
    "jz 34f",
    "mov rdx, qword ptr [rdx]",
    "34:",
    "mov r10, qword ptr [r13 + {op_args} + 24]",
    "test r12d, 8",
    "jz 35f",
    "mov r10, qword ptr [r10]",
    "35:",
    "mov r8, qword ptr [r13 + {op_args} + 32]",
    "test r12d, 16",
    "jz 36f",
    "mov r8, qword ptr [r8]",
    "36:",
    "mov r9, qword ptr [r13 + {op_args} + 40]",
    "test r12d, 32",
    "jz 37f",
    "mov r9, qword ptr [r9]",
    "37:",
    "mov rax, qword ptr [r13 + {op_nr}]",
    "syscall",
    "mov qword ptr [r13 + {op_result}], rax",
    "cmp rax, -4095",
    "jb 38f",
    "test r12d, {may_fail}",
    "jz 39f",
    "38:",
    "add r13, {op_size}",
    "dec r14",
    "jmp 30b",
    "39:",
    "ret",
    // Nobody is there. Verdict 2: die; else undo and go back.
    ".globl cryonaut_trampoline_alone",
    "cryonaut_trampoline_alone:",
    "60:",
    "mov rax, qword ptr [rbx + {slot_verdict}]",
    "test rax, rax",
    "jz 61f",
    "cmp dword ptr [rax], {verdict_die}",
    "je 70f",
    "61:",
    "mov r13, qword ptr [rbx + {slot_farewell_ops}]",
    "mov r14, qword ptr [rbx + {slot_farewell_count}]",
    "call 30b",
    "mov rsp, qword ptr [rbx + {slot_leave_sp}]",
    "mov rdi, qword ptr [rbx + {slot_leave_arg0}]",
    "mov rsi, qword ptr [rbx + {slot_leave_arg1}]",
    "mov rax, qword ptr [rbx + {slot_leave_nr}]",
    "jmp qword ptr [rbx + {slot_leave_ip}]",
    ".balign 16",
    ".globl cryonaut_trampoline_die",
    "cryonaut_trampoline_die:",
    "70:",
    "mov eax, {getpid}",
    "syscall",
    "mov edi, eax",
    "mov esi, 9",
    "mov eax, {kill}",
    "syscall",
    // The init of a pid namespace does not hear itself (pid_namespaces(7)).
    "mov edi, 137",
    "mov eax, {exit_group}",
    "syscall",
    "jmp 70b",
    ".balign 16",
    ".globl cryonaut_trampoline_syscall",
    "cryonaut_trampoline_syscall:",
    "syscall",
    "ret",
    ".globl cryonaut_trampoline_end",
    "cryonaut_trampoline_end:",
    ".popsection",
    getpid = const libc::SYS_getpid,
    gettid = const libc::SYS_gettid,
    tgkill = const libc::SYS_tgkill,
    kill = const libc::SYS_kill,
    exit_group = const libc::SYS_exit_group,
    slot_signal = const slot::SIGNAL,
    slot_request = const slot::REQUEST,
    slot_done = const slot::DONE,
    slot_ops = const slot::OPS,
    slot_count = const slot::COUNT,
    slot_left = const slot::LEFT,
    slot_verdict = const slot::VERDICT,
    slot_farewell_ops = const slot::FAREWELL_OPS,
    slot_farewell_count = const slot::FAREWELL_COUNT,
    slot_leave_sp = const slot::LEAVE_SP,
    slot_leave_arg0 = const slot::LEAVE_ARG0,
    slot_leave_arg1 = const slot::LEAVE_ARG1,
    slot_leave_nr = const slot::LEAVE_NR,
    slot_leave_ip = const slot::LEAVE_IP,
    op_nr = const op::NR,
    op_args = const op::ARGS,
    op_refs = const op::REFS,
    op_cond = const op::COND,
    op_result = const op::RESULT,
    op_size = const op::SIZE,
    may_fail = const op::MAY_FAIL,
    verdict_die = const crate::scratch::VERDICT_DIE,
);

unsafe extern "C" {
    static cryonaut_trampoline_start: u8;
    static cryonaut_trampoline_serve: u8;
    static cryonaut_trampoline_alone: u8;
    static cryonaut_trampoline_die: u8;
    static cryonaut_trampoline_syscall: u8;
    static cryonaut_trampoline_end: u8;
}

fn offset(symbol: *const u8) -> u64 {
    (symbol as usize - (&raw const cryonaut_trampoline_start) as usize) as u64
}

/// Where a thread enters whose slot already holds a batch.
#[must_use]
pub fn serve_offset() -> u64 {
    offset(&raw const cryonaut_trampoline_serve)
}

/// Where a thread waits that is to obey the verdict once it is alone.
#[must_use]
pub fn alone_offset() -> u64 {
    offset(&raw const cryonaut_trampoline_alone)
}

/// Where a thread is sent that must end its process at once.
#[must_use]
pub fn die_offset() -> u64 {
    offset(&raw const cryonaut_trampoline_die)
}

/// A `syscall; ret` of our own.
#[must_use]
pub fn syscall_offset() -> u64 {
    offset(&raw const cryonaut_trampoline_syscall)
}

/// The trampoline's bytes; they run at any address.
#[must_use]
pub fn code() -> &'static [u8] {
    let len = offset(&raw const cryonaut_trampoline_end) as usize;
    // SAFETY: the assembler laid the bytes between the two symbols in
    // read-only data of this program, where they stay unchanged.
    unsafe { core::slice::from_raw_parts(&raw const cryonaut_trampoline_start, len) }
}
