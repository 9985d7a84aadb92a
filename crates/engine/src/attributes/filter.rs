//! Whether a thread's seccomp filters let a hand with nobody behind it go home: while we live they are suspended, but
//! they judge again what a deserted hand does.
//!
//! A filter is a classic BPF program over `struct seccomp_data` (seccomp(2)); it is run here as the kernel would run it
//! (kernel/seccomp.c), for calls with arguments of zero.

use crate::freeze::pid_of;
use cryonaut_kernel::proc::status::Seccomp;
use cryonaut_kernel::sys::ptrace;
use cryonaut_puppet::farewell_calls;
use rustix::io::Errno;

const RET_ACTION: u32 = 0xffff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
/// Bytes of `struct seccomp_data`: number, architecture, instruction pointer, six arguments.
const DATA: usize = 64;
/// Words of a program's memory (BPF_MEMWORDS).
const MEMORY: usize = 16;

/// Whether nothing stands in the way of a held thread with this seccomp mode. What cannot be told counts as a no.
#[must_use]
pub fn lets_go_home(tid: i32, mode: Seccomp) -> bool {
    permits(tid, mode, &farewell_calls())
}

/// Whether nothing stands in the way of these calls.
#[must_use]
pub fn permits(tid: i32, mode: Seccomp, calls: &[i64]) -> bool {
    match mode {
        Seccomp::Disabled => true,
        Seccomp::Strict => false,
        Seccomp::Filter => filters_answer(tid, calls, &[RET_ALLOW, RET_LOG]),
    }
}

/// Whether these calls do no harm: they may fail, should we die in between, but nobody is ended for them.
#[must_use]
pub fn tolerates(tid: i32, mode: Seccomp, calls: &[i64]) -> bool {
    match mode {
        Seccomp::Disabled => true,
        Seccomp::Strict => false,
        Seccomp::Filter => filters_answer(tid, calls, &[RET_ALLOW, RET_LOG, RET_ERRNO]),
    }
}

/// Whether all filters give all calls one of these answers.
fn filters_answer(tid: i32, calls: &[i64], answers: &[u32]) -> bool {
    let Ok(pid) = pid_of(tid) else { return false };
    let fits = |program: &[libc::sock_filter], nr: i64| answer(program, nr).is_some_and(|a| answers.contains(&a));
    for index in 0.. {
        match ptrace::seccomp_filter(pid, index) {
            Ok(program) if calls.iter().all(|nr| fits(&program, *nr)) => {}
            Err(Errno::NOENT) => return index > 0,
            _ => return false,
        }
    }
    false
}

/// What a program answers to a call, without the data of the answer.
fn answer(program: &[libc::sock_filter], nr: i64) -> Option<u32> {
    let mut data = [0; DATA];
    data[..4].copy_from_slice(&(nr as u32).to_le_bytes());
    data[4..8].copy_from_slice(&crate::arch::AUDIT_ARCH.to_le_bytes());
    run(program, &data).map(|answer| answer & RET_ACTION)
}

/// What a program answers; `None` if it is none that the kernel would have taken.
fn run(program: &[libc::sock_filter], data: &[u8; DATA]) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; MEMORY]);
    let mut at = 0;
    // Jumps go forward only, so this ends.
    while let Some(i) = program.get(at) {
        at += 1;
        let code = u32::from(i.code);
        let operand = if code & libc::BPF_X == 0 { i.k } else { x };
        match code & 7 {
            libc::BPF_LD | libc::BPF_LDX => {
                let value = match code & 0xe0 {
                    libc::BPF_IMM => i.k,
                    libc::BPF_MEM => *memory.get(i.k as usize)?,
                    libc::BPF_LEN => DATA as u32,
                    libc::BPF_ABS => {
                        let start = i.k as usize;
                        u32::from_le_bytes(data.get(start..start.checked_add(4)?)?.try_into().ok()?)
                    }
                    _ => return None,
                };
                if code & 7 == libc::BPF_LD { a = value } else { x = value }
            }
            libc::BPF_ST => *memory.get_mut(i.k as usize)? = a,
            libc::BPF_STX => *memory.get_mut(i.k as usize)? = x,
            libc::BPF_ALU => a = compute(code & 0xf0, a, operand)?,
            libc::BPF_JMP if code & 0xf0 == libc::BPF_JA => at = at.checked_add(i.k as usize)?,
            libc::BPF_JMP => at += usize::from(if holds(code & 0xf0, a, operand)? { i.jt } else { i.jf }),
            libc::BPF_RET => return Some(if code & 0x18 == libc::BPF_A { a } else { i.k }),
            // TXA and TAX.
            _ if code & 0x80 != 0 => a = x,
            _ => x = a,
        }
    }
    None
}

fn compute(op: u32, a: u32, b: u32) -> Option<u32> {
    Some(match op {
        libc::BPF_ADD => a.wrapping_add(b),
        libc::BPF_SUB => a.wrapping_sub(b),
        libc::BPF_MUL => a.wrapping_mul(b),
        libc::BPF_DIV => a.checked_div(b)?,
        libc::BPF_AND => a & b,
        libc::BPF_OR => a | b,
        libc::BPF_XOR => a ^ b,
        libc::BPF_LSH => a.checked_shl(b)?,
        libc::BPF_RSH => a.checked_shr(b)?,
        libc::BPF_NEG => a.wrapping_neg(),
        _ => return None,
    })
}

fn holds(op: u32, a: u32, b: u32) -> Option<bool> {
    Some(match op {
        libc::BPF_JEQ => a == b,
        libc::BPF_JGT => a > b,
        libc::BPF_JGE => a >= b,
        libc::BPF_JSET => a & b != 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(program: &[libc::sock_filter], nr: i64) -> bool {
        matches!(answer(program, nr), Some(RET_ALLOW | RET_LOG))
    }

    fn statement(code: u32, k: u32) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
    }

    /// Answers one call with an errno and lets everything else through, or the other way round.
    fn one_call(nr: i64, equal: u32, other: u32) -> Vec<libc::sock_filter> {
        let jump = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        vec![
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
            libc::sock_filter { code: jump, jt: 0, jf: 1, k: nr as u32 },
            statement(libc::BPF_RET | libc::BPF_K, equal),
            statement(libc::BPF_RET | libc::BPF_K, other),
        ]
    }

    #[test]
    fn a_call_is_judged_by_its_number() {
        const ERRNO: u32 = 0x0005_0001;
        let forbids = one_call(libc::SYS_munmap, ERRNO, RET_ALLOW);
        assert!(!allowed(&forbids, libc::SYS_munmap));
        assert_eq!(answer(&forbids, libc::SYS_munmap), Some(RET_ERRNO));
        assert!(allowed(&forbids, libc::SYS_futex));
        let permits = one_call(libc::SYS_munmap, RET_ALLOW, 0);
        assert!(allowed(&permits, libc::SYS_munmap));
        assert!(!allowed(&permits, libc::SYS_futex));
    }

    #[test]
    fn a_program_may_compute() {
        // Allow if nr & 0xff, moved through memory and X, is 11.
        let mut program = vec![
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
            statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0xff),
            statement(libc::BPF_ST, 3),
            statement(libc::BPF_LDX | libc::BPF_MEM, 3),
            statement(libc::BPF_LD | libc::BPF_IMM, 11),
        ];
        let jump = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_X) as u16;
        program.push(libc::sock_filter { code: jump, jt: 1, jf: 0, k: 0 });
        program.push(statement(libc::BPF_RET | libc::BPF_K, 0));
        program.push(statement(libc::BPF_RET | libc::BPF_K, RET_LOG));
        assert!(allowed(&program, 11));
        assert!(!allowed(&program, 12));
    }

    #[test]
    fn nonsense_allows_nothing() {
        assert!(!allowed(&[], 1));
        assert!(!allowed(&[statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 62)], 1));
        assert!(!allowed(&[statement(libc::BPF_ALU | libc::BPF_DIV | libc::BPF_K, 0)], 1));
    }
}
