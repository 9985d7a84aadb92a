//! Work on many things at once, where it needs no leave of ptrace: that is
//! bound to one thread.

use std::panic::resume_unwind;
use std::thread::{available_parallelism, scope};

/// Most threads that share a piece of work.
const MOST: usize = 4;
/// Fewer things than these, for each thread, are done before it has begun.
const WORTH_A_THREAD: usize = 8;

/// How many threads are worth having for so many things, this one included.
pub fn threads_for(things: usize) -> usize {
    let processors = available_parallelism().map_or(1, |n| n.get().min(MOST));
    processors.min(things / WORTH_A_THREAD).max(1)
}

/// What `f` makes of each, in their order.
pub fn map<T: Send, R: Send>(things: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
    let share = things.len().div_ceil(threads_for(things.len())).max(1);
    let mut shares: Vec<Vec<T>> = Vec::new();
    for thing in things {
        match shares.last_mut() {
            Some(last) if last.len() < share => last.push(thing),
            _ => shares.push(vec![thing]),
        }
    }
    let f = &f;
    scope(|scope| {
        let mut shares = shares.into_iter();
        let own = shares.next().unwrap_or_default();
        let others: Vec<_> =
            shares.map(|share| scope.spawn(move || share.into_iter().map(f).collect::<Vec<R>>())).collect();
        let mut all: Vec<R> = own.into_iter().map(f).collect();
        for other in others {
            all.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        all
    })
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
