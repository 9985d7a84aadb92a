//! Seccomp modes and filters. Filters that threads share are kept once.

use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::{SeccompEntry, SeccompFilter, SeccompMode};
use cryonaut_kernel::sys::ptrace;
use cryonaut_puppet::{Arg, Batch};
use rustix::io::Errno;

/// The filters met so far. A thread's filters form a chain, the newest first;
/// each record names the one before it.
#[derive(Debug, Default)]
pub struct Filters {
    entry: SeccompEntry,
}

impl Filters {
    /// The newest filter of a held thread, if it has any.
    pub fn of_thread(&mut self, tid: i32) -> Result<Option<u32>> {
        let failed = |e| Error::kernel(Object::Thread(tid), "read its seccomp filters", e);
        // The kernel counts from the oldest.
        let mut last = None;
        for index in 0.. {
            let program = match ptrace::seccomp_filter(pid_of(tid)?, index) {
                Ok(program) => program,
                Err(Errno::NOENT) => break,
                // Not in filter mode.
                Err(Errno::INVAL) if index == 0 => break,
                Err(e) => return Err(failed(e)),
            };
            let mut filter = Vec::with_capacity(program.len() * 8);
            for i in &program {
                filter.extend_from_slice(&i.code.to_le_bytes());
                filter.extend_from_slice(&[i.jt, i.jf]);
                filter.extend_from_slice(&i.k.to_le_bytes());
            }
            let flags = ptrace::seccomp_flags(pid_of(tid)?, index as u64).ok().filter(|f| *f != 0).map(|f| f as u32);
            last = Some(self.intern(SeccompFilter { filter, prev: last, flags }));
        }
        Ok(last)
    }

    fn intern(&mut self, filter: SeccompFilter) -> u32 {
        let known = self.entry.seccomp_filters.iter().position(|f| *f == filter);
        known.unwrap_or_else(|| {
            self.entry.seccomp_filters.push(filter);
            self.entry.seccomp_filters.len() - 1
        }) as u32
    }

    /// The record of all filters.
    #[must_use]
    pub fn record(&self) -> &SeccompEntry {
        &self.entry
    }
}

/// Adds to a batch, which the thread itself runs and after which it makes no
/// call but through a tracer that suspends seccomp, its mode and filters.
pub fn build(b: &mut Batch, all: &SeccompEntry, mode: i32, newest: Option<u32>) -> Result<()> {
    const SET_STRICT: u64 = 0;
    const SET_FILTER: u64 = 1;
    const FLAG_TSYNC: u32 = 1;
    if mode == SeccompMode::Strict as i32 {
        b.call(libc::SYS_seccomp, [SET_STRICT.into(), Arg::Val(0), Arg::Val(0)]);
        return Ok(());
    }
    let mut chain = Vec::new();
    let mut next = newest;
    while let Some(index) = next {
        let filter = all.seccomp_filters.get(index as usize).filter(|_| chain.len() < all.seccomp_filters.len());
        let filter = filter.ok_or_else(|| Error::bad_image("seccomp.img", format!("no filter {index}")))?;
        chain.push(filter);
        next = filter.prev;
    }
    for filter in chain.into_iter().rev() {
        let program = b.bytes(&filter.filter);
        let head = b.bytes(&((filter.filter.len() / 8) as u64).to_le_bytes());
        let pointer = b.bytes(&[0; 8]);
        b.point(pointer, program);
        let flags = filter.flags.unwrap_or(0) & !FLAG_TSYNC;
        b.call(libc::SYS_seccomp, [SET_FILTER.into(), flags.into(), head.into()]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_chains_are_kept_once() {
        let mut filters = Filters::default();
        let base = filters.intern(SeccompFilter { filter: vec![1; 8], prev: None, flags: None });
        let top = filters.intern(SeccompFilter { filter: vec![2; 8], prev: Some(base), flags: None });
        assert_eq!(filters.intern(SeccompFilter { filter: vec![2; 8], prev: Some(base), flags: None }), top);
        assert_eq!(filters.record().seccomp_filters.len(), 2);
    }

    #[test]
    fn a_chain_that_bites_its_tail_is_refused() {
        let looped =
            SeccompEntry { seccomp_filters: vec![SeccompFilter { filter: vec![0; 8], prev: Some(0), flags: None }] };
        assert!(build(&mut Batch::new(), &looped, SeccompMode::Filter as i32, Some(0)).is_err());
    }
}
