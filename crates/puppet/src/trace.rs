//! The kernel crate's tracing calls on plain thread ids, with the error that
//! names the thread.

use crate::arch::Registers;
use crate::{Error, Result};
use cryonaut_kernel::sys::ptrace::{self, Options};
use cryonaut_kernel::sys::wait::{self, WaitStatus, Who};
use cryonaut_kernel::{Errno, Pid};

/// A thread id as the kernel crate takes it. Zero and below name no thread.
pub(crate) fn id(tid: i32) -> std::result::Result<Pid, Errno> {
    Pid::from_raw(tid).filter(|_| tid > 0).ok_or(Errno::SRCH)
}

fn on<T>(tid: i32, op: &'static str, call: impl FnOnce(Pid) -> std::result::Result<T, Errno>) -> Result<T> {
    id(tid).and_then(call).map_err(|errno| Error::Ptrace { tid, op, errno })
}

pub(crate) fn seize(tid: i32, options: Options) -> std::result::Result<(), Errno> {
    id(tid).and_then(|t| ptrace::seize(t, options))
}

pub(crate) fn interrupt(tid: i32) -> std::result::Result<(), Errno> {
    id(tid).and_then(ptrace::interrupt)
}

pub(crate) fn resume(tid: i32, signal: i32) -> Result<()> {
    on(tid, "resume", |t| ptrace::cont(t, signal))
}

pub(crate) fn resume_to_syscall(tid: i32) -> Result<()> {
    on(tid, "resume", |t| ptrace::syscall(t, 0))
}

/// Lets a thread go.
pub fn detach(tid: i32) -> Result<()> {
    on(tid, "let go of", |t| ptrace::detach(t, 0))
}

/// Changes a held thread's options.
pub fn set_options(tid: i32, options: Options) -> Result<()> {
    on(tid, "set the tracing options of", |t| ptrace::set_options(t, options))
}

/// General registers of a held thread.
pub fn registers(tid: i32) -> Result<Registers> {
    on(tid, "read the registers of", ptrace::get_regs)
}

/// Sets the general registers of a held thread.
pub fn set_registers(tid: i32, regs: &Registers) -> Result<()> {
    on(tid, "set the registers of", |t| ptrace::set_regs(t, regs))
}

/// Extended state of a held thread in the standard XSAVE layout.
pub fn xstate(tid: i32) -> Result<Vec<u8>> {
    on(tid, "read the extended state of", ptrace::get_xstate)
}

/// Sets the extended state of a held thread.
pub fn set_xstate(tid: i32, area: &[u8]) -> Result<()> {
    on(tid, "set the extended state of", |t| ptrace::set_regset(t, ptrace::regset::X86_XSTATE, area))
}

/// Blocked signals of a held thread.
pub fn sigmask(tid: i32) -> Result<u64> {
    on(tid, "read the signal mask of", ptrace::get_sigmask)
}

/// Sets the blocked signals of a held thread.
pub fn set_sigmask(tid: i32, mask: u64) -> Result<()> {
    on(tid, "set the signal mask of", |t| ptrace::set_sigmask(t, mask))
}

/// A word of a held thread's memory.
pub(crate) fn peek_data(tid: i32, at: u64) -> std::result::Result<u64, Errno> {
    id(tid).and_then(|t| ptrace::peek_data(t, at))
}

pub(crate) fn poke_data(tid: i32, at: u64, word: u64) -> std::result::Result<(), Errno> {
    id(tid).and_then(|t| ptrace::poke_data(t, at, word))
}

/// Waits for the thread's next report, whatever signals we get meanwhile.
pub(crate) fn wait(tid: i32) -> Result<WaitStatus> {
    loop {
        match id(tid).and_then(|t| wait::wait(Who::One(t))) {
            Ok((_, status)) => return Ok(status),
            Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::Ptrace { tid, op: "wait for", errno });
            }
        }
    }
}

/// The thread's next report if there is one.
pub(crate) fn try_wait(tid: i32) -> std::result::Result<Option<WaitStatus>, Errno> {
    Ok(id(tid).and_then(|t| wait::try_wait(Who::One(t)))?.map(|(_, status)| status))
}
