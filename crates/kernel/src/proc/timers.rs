//! `/proc/PID/timers`: the POSIX timers of a process (proc_pid_timers(5)). ENOENT where the kernel lacks
//! CONFIG_CHECKPOINT_RESTORE. How much time is left only the process itself can ask (timer_gettime).

use super::text::{self, Malformed, OrMalformed};
use super::{Result, Task};

/// How a timer tells that it has expired (`sigev_notify`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// `SIGEV_SIGNAL`, or `SIGEV_THREAD_ID` with `Timer::thread`.
    Signal,
    None,
    /// `SIGEV_THREAD`, which no kernel timer has: libc does it with `SIGEV_THREAD_ID`.
    Thread,
}

/// One timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    /// The kernel's id, unique in the process.
    pub id: i32,
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    pub notify: Notify,
    /// The signal goes to one thread (`SIGEV_THREAD_ID`).
    pub thread: bool,
    /// The process, or that thread; 0 when it has gone or is outside of this /proc's pid namespace.
    pub target: i32,
    /// `CLOCK_*`, or the number of a process' or thread's CPU clock.
    pub clock: i32,
}

impl Task {
    /// The POSIX timers of the process, in the kernel's order (not that of their ids).
    pub fn timers(&self) -> Result<Vec<Timer>> {
        self.read_as("timers", parse)
    }
}

/// Parses `timers`: four lines for each.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Timer>, Malformed> {
    let mut lines = text::lines(text);
    let mut timers = Vec::new();
    while let Some(first) = lines.next() {
        let mut value = |key: &[u8]| lines.next()?.strip_prefix(key);
        let timer = (|| {
            let id = text::dec(first.strip_prefix(b"ID: ")?)?;
            let (signal, sigval) = text::cut(value(b"signal: ")?, b'/')?;
            let (notify, rest) = text::cut(value(b"notify: ")?, b'/')?;
            let (whom, target) = text::cut(rest, b'.')?;
            let clock = text::signed(value(b"ClockID: ")?)?;
            let notify = match notify {
                b"signal" => Notify::Signal,
                b"none" => Notify::None,
                b"thread" => Notify::Thread,
                _ => return None,
            };
            let (signal, sigval, target) = (text::dec(signal)?, text::hex(sigval)?, text::signed(target)?);
            Some(Timer { id, signal, value: sigval, notify, thread: whom == b"tid", target, clock })
        })();
        timers.push(timer.or_malformed("timer", first)?);
    }
    Ok(timers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_timers() {
        let text = b"ID: 2\nsignal: 34/0000000000001234\nnotify: signal/tid.10863\nClockID: 1\n\
            ID: 0\nsignal: 60/00007fff86e452a8\nnotify: none/pid.9\nClockID: -6\n";
        let timers = parse(text).unwrap();
        let first =
            Timer { id: 2, signal: 34, value: 0x1234, notify: Notify::Signal, thread: true, target: 10863, clock: 1 };
        assert_eq!(timers[0], first);
        assert_eq!((timers[1].value, timers[1].notify, timers[1].clock), (0x7fff_86e4_52a8, Notify::None, -6));
        assert!(parse(&text[..60]).is_err());
    }

    #[test]
    fn live() {
        // SAFETY: sigevent is made of integers and pointers, for which zero bytes are a value.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_NONE;
        event.sigev_signo = libc::SIGUSR1;
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: timer_create reads `event` and writes one timer_t to `timer`.
        assert_eq!(unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, &raw mut timer) }, 0);
        let timers = Task::current().unwrap().timers().unwrap();
        assert!(timers.iter().any(|timer| timer.clock == libc::CLOCK_BOOTTIME && timer.notify == Notify::None));
        // SAFETY: `timer` was made above and is deleted once.
        unsafe { libc::timer_delete(timer) };
    }
}
