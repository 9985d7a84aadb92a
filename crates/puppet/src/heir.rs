//! A process that is built, and whose first thread is to have ended: another of its threads becomes the hand.

use crate::hand::Hand;
use crate::{Result, arch, scratch, stops, trace};

impl Hand {
    /// Lets the thread that serves end by exit(2), with this code and signal mask, and makes `heir`, another held thread
    /// of the process, the one that serves. Returns when the first has ended.
    ///
    /// It does not end as one that we hold: of a process's first thread, only its tracer would be told when the whole
    /// process ends. Should we die before, it dies with the others.
    pub fn hand_over(&mut self, heir: i32, code: u8, sigmask: u64) -> Result<()> {
        let gone = self.tid;
        let at = self.base + scratch::CODE + arch::syscall_offset();
        let stack = self.base + scratch::STACK_TOP - 64;
        let args = [u64::from(code), 0, 0, 0, 0, 0];
        trace::set_sigmask(gone, sigmask)?;
        self.set_regs(&arch::for_call(&trace::registers(gone)?, at, stack, libc::SYS_exit as u64, args))?;
        trace::detach(gone)?;
        self.tid = heir;
        self.serving = false;
        stops::wait_zombie(gone)
    }
}
