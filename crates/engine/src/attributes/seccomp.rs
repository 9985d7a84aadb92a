//! Seccomp modes and filters. Filters that threads share are kept once.

use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::{SeccompEntry, SeccompFilter, SeccompMode};
use cryonaut_kernel::sys::ptrace;
use cryonaut_puppet::{Arg, Batch, Call};
use rustix::io::Errno;

/// SECCOMP_FILTER_FLAG_TSYNC: all threads get the filter (linux/seccomp.h).
const FLAG_TSYNC: u32 = 1;

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

/// The mode and the newest filter of a thread.
pub type State = (i32, Option<u32>);

/// The filters of a thread, the oldest first.
fn chain(all: &SeccompEntry, newest: Option<u32>) -> Result<Vec<u32>> {
    let mut chain = Vec::new();
    let mut next = newest;
    while let Some(index) = next {
        let filter = all.seccomp_filters.get(index as usize).filter(|_| chain.len() < all.seccomp_filters.len());
        let filter = filter.ok_or_else(|| Error::bad_image("seccomp.img", format!("no filter {index}")))?;
        chain.push(index);
        next = filter.prev;
    }
    chain.reverse();
    Ok(chain)
}

/// How many filters, from the oldest on, all threads of a process have. Of one
/// thread alone: none.
pub fn common(all: &SeccompEntry, threads: &[State]) -> Result<usize> {
    let filtered = |&(mode, _): &State| mode == SeccompMode::Filter as i32;
    if threads.len() < 2 || !threads.iter().all(filtered) {
        return Ok(0);
    }
    // Not by their numbers: in an image of CRIU's, threads may have equal filters under several.
    let same = |a: u32, b: u32| {
        let [a, b] = [a, b].map(|index| &all.seccomp_filters[index as usize]);
        (&a.filter, a.flags) == (&b.filter, b.flags)
    };
    let first = chain(all, threads[0].1)?;
    let mut count = first.len();
    for (_, newest) in &threads[1..] {
        let other = chain(all, *newest)?;
        count = first.iter().zip(&other).take(count).take_while(|(a, b)| same(**a, **b)).count();
    }
    Ok(count)
}

/// Adds to a batch, which one thread runs while none has a filter, the `count`
/// oldest of its filters, for all threads of its process: they share them, or a
/// later SECCOMP_FILTER_FLAG_TSYNC would find threads that have gone their own
/// ways (seccomp(2)). Each call must then have answered 0.
pub fn build_common(b: &mut Batch, all: &SeccompEntry, newest: Option<u32>, count: usize) -> Result<Vec<Call>> {
    let chain = chain(all, newest)?;
    Ok(chain.iter().take(count).map(|index| set(b, &all.seccomp_filters[*index as usize], FLAG_TSYNC)).collect())
}

/// Adds to a batch, which the thread itself runs and after which it makes no
/// call but through a tracer that suspends seccomp, its mode and filters, but
/// for the `done` oldest.
pub fn build(b: &mut Batch, all: &SeccompEntry, (mode, newest): State, done: usize) -> Result<()> {
    const SET_STRICT: u64 = 0;
    if mode == SeccompMode::Strict as i32 {
        b.call(libc::SYS_seccomp, [SET_STRICT.into(), Arg::Val(0), Arg::Val(0)]);
        return Ok(());
    }
    for index in chain(all, newest)?.into_iter().skip(done) {
        set(b, &all.seccomp_filters[index as usize], 0);
    }
    Ok(())
}

fn set(b: &mut Batch, filter: &SeccompFilter, more: u32) -> Call {
    const SET_FILTER: u64 = 1;
    let program = b.bytes(&filter.filter);
    let head = b.bytes(&((filter.filter.len() / 8) as u64).to_le_bytes());
    let pointer = b.bytes(&[0; 8]);
    b.point(pointer, program);
    let flags = filter.flags.unwrap_or(0) & !FLAG_TSYNC | more;
    b.call(libc::SYS_seccomp, [SET_FILTER.into(), flags.into(), head.into()])
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
        assert!(build(&mut Batch::new(), &looped, (SeccompMode::Filter as i32, Some(0)), 0).is_err());
    }

    #[test]
    fn what_all_threads_have_is_found_from_the_oldest_on() {
        let mut filters = Filters::default();
        let mut of = |code, prev| Some(filters.intern(SeccompFilter { filter: vec![code; 8], prev, flags: None }));
        let a = of(1, None);
        let (b, c) = (of(2, a), of(3, a));
        let d = of(4, b);
        let filter = SeccompMode::Filter as i32;
        let of = |threads: &[State]| common(filters.record(), threads).unwrap();
        assert_eq!(of(&[(filter, d), (filter, b), (filter, d)]), 2);
        assert_eq!(of(&[(filter, d), (filter, c)]), 1);
        assert_eq!(of(&[(filter, d)]), 0);
        assert_eq!(of(&[(filter, d), (0, None)]), 0);
    }
}
