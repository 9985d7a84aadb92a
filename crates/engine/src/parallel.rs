//! Work on many things at once, where it needs no leave of ptrace: that is
//! bound to one thread.
//!
//! Nobody may hold a lock when calling in here: a thread that waits for others
//! does work of theirs meanwhile, which may want the same one.
//!
//! The threads are begun once, before anybody stands still for us
//! ([`get_ready`]), and sleep until there is something to do.

use cryonaut_kernel::sys::fcntl::make_room;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use rayon::{Scope, ThreadPool, ThreadPoolBuilder};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::available_parallelism;

/// Most threads that share a piece of work.
const MOST: usize = 4;
/// Fewer things than these, for each thread, are done before one has woken.
const WORTH_A_THREAD: usize = 8;

/// A pool that stays for the life of a process; none where only one can work at a time, or none is to be had.
type Pool = OnceLock<Option<ThreadPool>>;

/// That of the process that was started, and that of its copy: a fork leaves all threads but one behind.
static POOLS: [Pool; 2] = [const { OnceLock::new() }; 2];
static IS_COPY: AtomicBool = AtomicBool::new(false);

/// The threads.
fn pool() -> Option<&'static ThreadPool> {
    let begin = || {
        // Not asked for twice: cgroups have a say, and the answer takes a dozen system calls.
        let processors = available_parallelism().map_or(1, |n| n.get().min(MOST));
        let threads = ThreadPoolBuilder::new().num_threads(processors).thread_name(|n| format!("engine {n}"));
        let threads = threads.start_handler(|_| cryonaut_kernel::heap::reserve());
        if processors > 1 { threads.build().ok() } else { None }
    };
    POOLS[usize::from(IS_COPY.load(Ordering::Relaxed))].get_or_init(begin).as_ref()
}

/// This process is a copy of another, whose threads it does not have.
pub fn begin_again() {
    IS_COPY.store(true, Ordering::Relaxed);
    make_room();
}

/// Begins the threads.
pub fn get_ready() {
    pool();
}

/// How many threads are worth having for so many things, this one included.
pub fn threads_for(things: usize) -> usize {
    match things / WORTH_A_THREAD {
        0 | 1 => 1,
        most => pool().map_or(1, ThreadPool::current_num_threads).min(most),
    }
}

/// What `f` makes of each, in their order.
pub fn map<T: Send, R: Send>(things: Vec<T>, f: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
    // Asked in this order: the threads are not begun for a few things.
    match Some(things.len()).filter(|count| threads_for(*count) > 1).and_then(|_| pool()) {
        Some(pool) => pool.install(|| things.into_par_iter().map(f).collect()),
        None => things.into_iter().map(f).collect(),
    }
}

/// Runs `here` on this thread, which may give others something to do. They are
/// done when it returns. Without other threads, `here` is given none.
pub fn scope<'scope, R>(here: impl FnOnce(Option<&Scope<'scope>>) -> R) -> R {
    match pool() {
        Some(pool) => pool.in_place_scope(|scope| here(Some(scope))),
        None => here(None),
    }
}

/// Runs `here` on this thread, and `aside` on another if there is one.
pub fn both<A: Send, B>(aside: impl FnOnce() -> A + Send, here: impl FnOnce() -> B) -> (A, B) {
    let Some(pool) = pool() else { return (aside(), here()) };
    let mut done = None;
    let made = pool.in_place_scope(|scope| {
        scope.spawn(|_| done = Some(aside()));
        here()
    });
    match done {
        Some(done) => (done, made),
        None => unreachable!("a scope ends when all in it is done"),
    }
}

/// How many threads can work beside this one.
pub fn others() -> usize {
    pool().map_or(0, |pool| pool.current_num_threads() - 1)
}

/// Runs `here` on this thread, and `aside` on so many others, if there are any. They are done when it returns.
pub fn beside<R>(threads: usize, aside: impl Fn() + Sync, here: impl FnOnce() -> R) -> R {
    let Some(pool) = pool().filter(|_| threads > 0) else { return here() };
    pool.in_place_scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|_| aside());
        }
        here()
    })
}

/// Has another thread do it, if there is one: nobody waits for it. Without one, it is not done; what `work` owns is dropped
/// in any case.
pub fn aside(work: impl FnOnce() + Send + 'static) {
    if let Some(pool) = pool() {
        pool.spawn(work);
    }
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

    #[test]
    fn both_are_done() {
        let mut here = 0;
        let aside = both(|| 1, || here = 2);
        assert_eq!((aside.0, here), (1, 2));
    }
}
