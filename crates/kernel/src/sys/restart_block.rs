//! How the kernel will continue a call with a relative time limit that a stop has interrupted: what `restart_syscall(2)`
//! begins with (include/linux/restart_block.h). No call tells it; it is read from the kernel's own structures, whose
//! layout it describes itself.

use super::bpf_iter::{self, Field};
use super::btf::Btf;
use rustix::io::Errno;
use std::collections::BTreeMap;

/// Clocks have small numbers, where no memory is.
pub const HIGHEST_CLOCK: u64 = 16;

/// A block holds what one of these calls needs; which it was is not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartBlock {
    sleep_clock: i32,
    sleep_until: u64,
    poll_files: u64,
    poll_count: u32,
    poll_is_limited: u32,
    poll_until: (u64, u64),
    futex: u64,
    futex_value: u32,
    futex_until: u64,
}

/// The kinds of calls that are continued so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Sleep,
    Poll,
    Futex,
}

impl RestartBlock {
    /// What kind of call it is of, which had these arguments.
    #[must_use]
    pub fn kind(&self, args: &[u64; 6]) -> Kind {
        if (1..=HIGHEST_CLOCK).contains(&args[0]) {
            // No address; and a sleep on clock 0 is noted as one on another.
            Kind::Sleep
        } else if self.poll_files == args[0] && self.poll_count == args[1] as u32 && self.poll_is_limited <= 1 {
            // Of a futex there stand flags, of which it has more than the lowest.
            Kind::Poll
        } else if self.futex == args[0] && self.futex_value == args[2] as u32 {
            Kind::Futex
        } else {
            Kind::Sleep
        }
    }

    /// The clock and the moment, in nanoseconds, at which the call's time is up. `None` for a poll without a limit.
    #[must_use]
    pub fn end(&self, kind: Kind) -> Option<(i32, u64)> {
        match kind {
            Kind::Sleep => Some((self.sleep_clock, self.sleep_until)),
            Kind::Poll if self.poll_is_limited == 0 => None,
            Kind::Poll => {
                let (seconds, nanoseconds) = self.poll_until;
                Some((libc::CLOCK_MONOTONIC, seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)))
            }
            Kind::Futex => Some((libc::CLOCK_MONOTONIC, self.futex_until)),
        }
    }
}

/// Those of all threads of a process, by tid: of use for who has been interrupted in such a call. ENOENT or ENOTSUP where
/// the kernel does not describe its types, or has others; EPERM without the right to look.
pub fn of_threads(pid: i32) -> Result<BTreeMap<i32, RestartBlock>, Errno> {
    const BLOCK: &str = "restart_block";
    let btf = Btf::running()?;
    let outer = btf.field("task_struct", BLOCK).ok_or(Errno::NOTSUP)?;
    let find = |part, name| btf.inner_field(BLOCK, part, name).map(|at| outer + at);
    let need = |part, name, len| find(part, name).map(|offset| Field { offset, len }).ok_or(Errno::NOTSUP);
    // Seconds, then nanoseconds: two fields, or one of two parts.
    let until = find("poll", "tv_sec").or_else(|| find("poll", "end_time")).ok_or(Errno::NOTSUP)?;
    let fields = [
        Field { offset: btf.field("task_struct", "pid").ok_or(Errno::NOTSUP)?, len: 4 },
        need("nanosleep", "clockid", 4)?,
        need("nanosleep", "expires", 8)?,
        need("poll", "ufds", 8)?,
        need("poll", "nfds", 4)?,
        need("poll", "has_timeout", 4)?,
        Field { offset: until, len: 8 },
        Field { offset: until + 8, len: 8 },
        need("futex", "uaddr", 8)?,
        need("futex", "val", 4)?,
        need("futex", "time", 8)?,
    ];
    let block = |words: Vec<u64>| {
        let block = RestartBlock {
            sleep_clock: words[1] as i32,
            sleep_until: words[2],
            poll_files: words[3],
            poll_count: words[4] as u32,
            poll_is_limited: words[5] as u32,
            poll_until: (words[6], words[7]),
            futex: words[8],
            futex_value: words[9] as u32,
            futex_until: words[10],
        };
        (words[0] as i32, block)
    };
    Ok(bpf_iter::thread_fields(btf, pid, &fields)?.into_iter().map(block).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(words: [u32; 6]) -> RestartBlock {
        let pair = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
        RestartBlock {
            sleep_clock: words[0] as i32,
            sleep_until: pair(4),
            poll_files: pair(0),
            poll_count: words[2],
            poll_is_limited: words[3],
            poll_until: (pair(4), 0),
            futex: pair(0),
            futex_value: words[2],
            futex_until: 0,
        }
    }

    #[test]
    fn a_block_tells_its_kind_together_with_the_arguments() {
        let monotonic = libc::CLOCK_MONOTONIC as u32;
        // nanosleep, clock_nanosleep on two clocks: what stood there before is left where they write nothing.
        assert_eq!(block([monotonic, 0, 0, 1, 7, 0]).kind(&[0x7f00_0000, 0, 0, 0, 0, 0]), Kind::Sleep);
        assert_eq!(block([monotonic, 0, 0, 1, 7, 0]).kind(&[1, 0, 0x7f00_0000, 0, 0, 0]), Kind::Sleep);
        assert_eq!(block([monotonic, 0, 0, 1, 7, 0]).kind(&[0, 0, 0x7f00_0000, 0, 0, 0]), Kind::Sleep);
        assert_eq!(block([0, 0, 0, 1, 7, 0]).kind(&[0, 0, 5000, 0, 0, 0]), Kind::Poll);
        assert_eq!(block([0x7000, 0, 2, 0, 0, 0]).kind(&[0x7000, 2, u64::MAX, 0, 0, 0]), Kind::Poll);
        assert_eq!(block([0x7000, 0, 2, 0, 0, 0]).end(Kind::Poll), None);
        assert_eq!(block([0x7000, 0, 2, 0x12, u32::MAX, 0]).kind(&[0x7000, 128, 2, 0x8000, 0, 0]), Kind::Futex);
    }

    #[test]
    fn every_thread_of_a_process_has_one() {
        let pid = std::process::id() as i32;
        let Ok(all) = of_threads(pid) else { return };
        assert!(all.contains_key(&rustix::thread::gettid().as_raw_nonzero().get()));
    }
}
