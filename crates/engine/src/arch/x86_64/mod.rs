//! x86_64: registers and the XSAVE area, to and from the core record.

pub mod vdso;
mod xsave;

use crate::{Error, Object, Result};
use cryonaut_image::records::{CoreEntry, ThreadInfoX86, UserDescT, UserX86RegsEntry, UserX86RegsMode, core_entry};
use cryonaut_puppet::Context;
use cryonaut_puppet::arch::Registers;

/// The architecture's tag in a core record.
pub const MARCH: core_entry::March = core_entry::March::X8664;

/// `AUDIT_ARCH_X86_64`, by which a seccomp filter knows the architecture
/// (linux/audit.h).
pub const AUDIT_ARCH: u32 = 0xc000_003e;

/// Entries of the GDT that a thread may fill by `set_thread_area`; 64-bit
/// programs do not.
const TLS_ENTRIES: std::ops::RangeInclusive<u32> = 12..=14;

const EINTR: i64 = -4;
/// Results of an interrupted call that the kernel starts again from its
/// instruction (include/linux/errno.h), and the one that it continues through
/// its restart block.
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
/// Bytes of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

/// The thread's registers and extended state as its record has them.
pub fn thread_info(tid: i32, context: &Context, tid_address: u64) -> Result<ThreadInfoX86> {
    if !cryonaut_puppet::arch::is_native(&context.regs) {
        return Err(Error::unsupported(Object::Thread(tid), "it runs 32-bit code", "run the program's 64-bit build"));
    }
    Ok(ThreadInfoX86 {
        clear_tid_addr: tid_address,
        gpregs: general_record(&context.regs),
        fpregs: xsave::record(tid, &context.xstate)?,
        tls: TLS_ENTRIES
            .map(|entry_number| UserDescT {
                entry_number,
                read_exec_only: true,
                seg_not_present: true,
                ..UserDescT::default()
            })
            .collect(),
    })
}

fn general_record(r: &Registers) -> UserX86RegsEntry {
    UserX86RegsEntry {
        r15: r.r15,
        r14: r.r14,
        r13: r.r13,
        r12: r.r12,
        bp: r.rbp,
        bx: r.rbx,
        r11: r.r11,
        r10: r.r10,
        r9: r.r9,
        r8: r.r8,
        ax: r.rax,
        cx: r.rcx,
        dx: r.rdx,
        si: r.rsi,
        di: r.rdi,
        orig_ax: r.orig_rax,
        ip: r.rip,
        cs: r.cs,
        flags: r.eflags,
        sp: r.rsp,
        ss: r.ss,
        fs_base: r.fs_base,
        gs_base: r.gs_base,
        ds: r.ds,
        es: r.es,
        fs: r.fs,
        gs: r.gs,
        mode: Some(UserX86RegsMode::Native as i32),
    }
}

/// The kernel's own result of an interrupted call that it is about to start
/// again, unless a signal's handler forbids that.
#[must_use]
pub fn interruption(regs: &Registers) -> Option<i64> {
    let result = regs.rax as i64;
    let in_call = regs.orig_rax as i64 >= 0;
    (in_call && matches!(result, ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND)).then_some(result)
}

/// Says of an interrupted call what a reader understands that knows nothing
/// of the kernel's own results: one that starts again has not begun yet, one
/// that only the restart block could continue has failed.
pub fn settle_call(regs: &Registers, info: &mut ThreadInfoX86) {
    let g = &mut info.gpregs;
    if interruption(regs).is_some() {
        g.ax = g.orig_ax;
        g.ip = g.ip.wrapping_sub(SYSCALL_LEN);
    } else if g.ax as i64 == ERESTART_RESTARTBLOCK {
        g.ax = EINTR as u64;
    }
}

/// Takes [`settle_call`] back for a call that starts again, so that the kernel
/// decides about it as it would have.
pub fn unsettle_call(regs: &mut Registers, interruption: i64) {
    let mut again = *regs;
    again.rip = again.rip.wrapping_add(SYSCALL_LEN);
    again.rax = interruption as u64;
    if regs.rax == regs.orig_rax && self::interruption(&again).is_some() {
        *regs = again;
    }
}

/// This architecture's part of a thread's record.
pub fn info_of(tid: i32, core: &CoreEntry) -> Result<&ThreadInfoX86> {
    let none = || Error::bad_image(format!("core-{tid}.img"), "it has no registers of this architecture");
    core.thread_info.as_ref().ok_or_else(none)
}

/// The general registers of a record.
pub fn registers(tid: i32, info: &ThreadInfoX86) -> Result<Registers> {
    let g = &info.gpregs;
    if g.mode() != UserX86RegsMode::Native || g.cs != 0x33 {
        return Err(Error::unsupported(Object::Thread(tid), "it ran 32-bit code", ""));
    }
    Ok(Registers {
        r15: g.r15,
        r14: g.r14,
        r13: g.r13,
        r12: g.r12,
        rbp: g.bp,
        rbx: g.bx,
        r11: g.r11,
        r10: g.r10,
        r9: g.r9,
        r8: g.r8,
        rax: g.ax,
        rcx: g.cx,
        rdx: g.dx,
        rsi: g.si,
        rdi: g.di,
        orig_rax: g.orig_ax,
        rip: g.ip,
        cs: g.cs,
        eflags: g.flags,
        rsp: g.sp,
        ss: g.ss,
        fs_base: g.fs_base,
        gs_base: g.gs_base,
        ds: g.ds,
        es: g.es,
        fs: g.fs,
        gs: g.gs,
    })
}

/// The extended state of a record, on top of `current`, which gives the
/// layout (and the software bytes) of this machine.
pub fn extended_state(tid: i32, info: &ThreadInfoX86, current: &[u8]) -> Result<Vec<u8>> {
    xsave::area(tid, &info.fpregs, current)
}
