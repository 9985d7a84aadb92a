//! What no call tells of POSIX timers: whether a timer's signal waits, and how many expirations nobody has been told of.
//! Read from the kernel's own structures (include/linux/posix-timers.h), whose layout it describes itself.
//!
//! Since Linux 6.13 a periodic timer stands still from its expiry until its signal is taken; the periods that passed
//! are counted then (kernel/time/posix-timers.c, posixtimer_deliver_signal) or when the timer is asked for what is left
//! (timer_gettime(2)). Older kernels keep these facts in another way, and are not read.

use super::bpf_iter::{self, Base, Block, Field};
use super::btf::Btf;
use rustix::io::Errno;

/// POSIX_TIMER_REQUEUE_PENDING: it has expired, and goes on when its signal is taken.
const REQUEUE_PENDING: u64 = 2;

/// One timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inside {
    /// The kernel's id, unique in the process.
    pub id: i32,
    /// Its signal is in a queue.
    pub queued: bool,
    /// The timer has been set since: the signal in the queue goes to nobody.
    pub stale: bool,
    /// It has expired and stands still until its signal is taken, or becomes no longer ignored.
    pub stands: bool,
    /// Expirations behind that of the signal, as far as they are counted; -1 while none has been.
    pub overrun: i64,
}

/// Where things are.
struct Layout {
    id: Field,
    status: Field,
    overrun: Field,
    signal_seq: Field,
    queued_seq: Field,
    /// The first link of the queued signal, which leads to itself while that is in no queue.
    queue: Field,
    /// In the list of a process's timers.
    link: u32,
}

impl Layout {
    const TIMER: &str = "k_itimer";

    fn new(btf: &Btf) -> Result<Self, Errno> {
        let at = |structure, name| btf.field(structure, name).ok_or(Errno::NOTSUP);
        let own = |name, len| Ok(Field { offset: at(Self::TIMER, name)?, len });
        Ok(Layout {
            id: own("it_id", 4)?,
            status: own("it_status", 4)?,
            overrun: own("it_overrun", 8)?,
            signal_seq: own("it_signal_seq", 4)?,
            queued_seq: own("it_sigqueue_seq", 4)?,
            queue: Field { offset: at(Self::TIMER, "sigq")? + at("sigqueue", "list")?, len: 8 },
            link: at(Self::TIMER, "list")?,
        })
    }

    fn len(&self) -> usize {
        let ends = [self.id, self.status, self.overrun, self.signal_seq, self.queued_seq, self.queue];
        let longest = ends.into_iter().map(|f| f.offset + u32::from(f.len)).max();
        longest.unwrap_or(0).max(self.link + 8) as usize
    }

    fn timer(&self, block: &Block) -> Option<Inside> {
        Some(Inside {
            id: block.value(self.id)? as i32,
            queued: block.value(self.queue)? != block.address + u64::from(self.queue.offset),
            stale: block.value(self.signal_seq)? != block.value(self.queued_seq)?,
            stands: block.value(self.status)? == REQUEUE_PENDING,
            overrun: block.value(self.overrun)?.cast_signed(),
        })
    }
}

/// The timers of the process that a task belongs to, which should stand still. ENOENT or ENOTSUP where the kernel does
/// not describe its types, or has others; EPERM without the right to look.
pub fn inside(tid: i32) -> Result<Vec<Inside>, Errno> {
    let btf = Btf::running()?;
    let layout = Layout::new(btf)?;
    let pointer = |structure, name| btf.field(structure, name).map(|offset| Field { offset, len: 8 });
    let signal = pointer("task_struct", "signal").ok_or(Errno::NOTSUP)?;
    let first = pointer("signal_struct", "posix_timers").ok_or(Errno::NOTSUP)?;
    let signal = bpf_iter::task_fields(btf, tid, Base::Task, &[signal])?[2];
    let first = bpf_iter::task_fields(btf, tid, Base::Address(signal), &[first])?[2];
    let all = bpf_iter::blocks(btf, tid, (first, 0), layout.link, layout.len())?;
    all.iter().map(|block| layout.timer(block).ok_or(Errno::NOTSUP)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: usize = 150;

    fn make(signal: i32) -> (libc::timer_t, i32) {
        // SAFETY: sigevent is made of integers and pointers, for which zero bytes are a value.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        event.sigev_signo = signal;
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: timer_create reads `event` and writes one timer_t to `timer`.
        assert_eq!(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) }, 0);
        (timer, timer as usize as i32)
    }

    fn set(timer: libc::timer_t, nanoseconds: i64) {
        let time = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds };
        let value = libc::itimerspec { it_interval: time, it_value: time };
        // SAFETY: timer_settime reads `value`; the last may be null.
        assert_eq!(unsafe { libc::timer_settime(timer, 0, &raw const value, std::ptr::null_mut()) }, 0);
    }

    #[test]
    fn what_waits_is_told() {
        let signal = libc::SIGRTMIN() + 7;
        // SAFETY: the set is made by sigemptyset before it is read; only this thread's mask changes.
        unsafe {
            let mut own: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut own);
            libc::sigaddset(&raw mut own, signal);
            assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &raw const own, std::ptr::null_mut()), 0);
        }
        let idle: Vec<_> = (0..COUNT).map(|_| make(signal)).collect();
        let (timer, id) = make(signal);
        let look = || inside(rustix::thread::gettid().as_raw_nonzero().get());
        let before = match look() {
            Ok(all) => all,
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => return,
            Err(e) => panic!("{e}"),
        };
        assert!(idle.iter().all(|(_, id)| before.iter().any(|t| t.id == *id && !t.queued)));
        set(timer, 2_000_000);
        std::thread::sleep(std::time::Duration::from_millis(50));
        let mut left = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec { tv_sec: 0, tv_nsec: 0 },
        };
        // SAFETY: timer_gettime writes one itimerspec.
        assert_eq!(unsafe { libc::timer_gettime(timer, &raw mut left) }, 0);
        let find = || look().unwrap().into_iter().find(|t| t.id == id).unwrap();
        let one = find();
        assert!(one.queued && one.stands && !one.stale && one.overrun >= 23, "{one:?}");
        set(timer, 900_000_000);
        let one = find();
        assert!(one.queued && !one.stands && one.stale && one.overrun == -1, "{one:?}");
        for (timer, _) in idle.into_iter().chain([(timer, id)]) {
            // SAFETY: each was made above and is deleted once.
            unsafe { libc::timer_delete(timer) };
        }
    }
}
