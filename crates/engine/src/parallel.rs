//! Work on many things at once, where it needs no leave of ptrace: that is
//! bound to one thread.

use std::panic::resume_unwind;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{Builder, available_parallelism, scope};

/// Most threads that share a piece of work.
const MOST: usize = 4;
/// Fewer things than these, for each thread, are done before it has begun.
const WORTH_A_THREAD: usize = 8;

/// How many threads can work at once. To find out takes a dozen system calls,
/// for cgroups have a say: best asked for before anybody waits.
pub fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| available_parallelism().map_or(1, |n| n.get().min(MOST)))
}

/// How many threads are worth having for so many things, this one included.
pub fn threads_for(things: usize) -> usize {
    processors().min(things / WORTH_A_THREAD).max(1)
}

/// What `f` makes of each, in their order.
pub fn map<T: Send, R: Send>(things: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = threads_for(things.len());
    if threads == 1 {
        return things.into_iter().map(f).collect();
    }
    let queue = Mutex::new(things.into_iter().enumerate());
    let work = || {
        let mut made = Vec::new();
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            match next {
                Some((index, thing)) => made.push((index, f(thing))),
                None => return made,
            }
        }
    };
    let mut made = scope(|scope| {
        // Where no thread is to be had, this one does it all.
        let others: Vec<_> = (1..threads).filter_map(|_| Builder::new().spawn_scoped(scope, work).ok()).collect();
        let mut made = work();
        for other in others {
            made.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        made
    });
    made.sort_unstable_by_key(|(index, _)| *index);
    made.into_iter().map(|(_, thing)| thing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_however_many_there_are() {
        for count in [0, 1, WORTH_A_THREAD, 1000] {
            let made = map((0..count).collect(), |n| n * 2);
            assert_eq!(made, (0..count).map(|n| n * 2).collect::<Vec<_>>());
        }
    }
}
