//! The thread of the kernel that takes requests from a ring by itself (IORING_SETUP_SQPOLL), as far as no call tells of
//! it (io_uring/sqpoll.h).

use super::super::bpf_iter::{self, Base, Field};
use super::super::btf::Btf;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_getres};
use std::os::fd::BorrowedFd;

/// How it polls, and as whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Poller {
    /// The process that it belongs to; 0 when it has ended.
    pub pid: i32,
    /// After how many milliseconds without a request it sleeps.
    pub idle_ms: u32,
    /// The processor that it keeps to, if the ring was made so (`setup::SQ_AFF`).
    pub cpu: u32,
    /// Other rings have it, too.
    pub is_shared: bool,
    /// It has no id but root's.
    pub is_root: bool,
    /// Its effective capabilities.
    pub capabilities: u64,
}

/// That of a ring, a descriptor of a task, which has one. ENOENT or ENOTSUP where the kernel does not describe its types,
/// or has others; EPERM without the right to look.
pub fn of_ring(tid: i32, fd: i32) -> Result<Poller, Errno> {
    let btf = Btf::running()?;
    let field =
        |structure, name, len| btf.field(structure, name).map(|offset| Field { offset, len }).ok_or(Errno::NOTSUP);
    let own = |name, len| field("io_ring_ctx", name, len);
    let words = bpf_iter::fields(
        btf,
        (tid, fd),
        Base::Behind,
        &[own("sq_data", 8)?, own("sq_creds", 8)?, own("sq_thread_idle", 4)?],
    )?;
    let (data, credentials, idle) = (words[2], words[3], words[4]);
    if data == 0 || credentials == 0 {
        return Err(Errno::NOTSUP);
    }
    let of_data = ["task_tgid", "sq_cpu", "refs"].map(|name| field("io_sq_data", name, 4));
    let of_data: Vec<Field> = of_data.into_iter().collect::<Result<_, _>>()?;
    let told = bpf_iter::fields(btf, (tid, fd), Base::Address(data), &of_data)?;
    let mut ids = Vec::new();
    for name in ["uid", "gid", "suid", "sgid", "euid", "egid", "fsuid", "fsgid"] {
        ids.push(field("cred", name, 4)?);
    }
    ids.push(field("cred", "cap_effective", 8)?);
    let as_whom = bpf_iter::fields(btf, (tid, fd), Base::Address(credentials), &ids)?;
    let (capabilities, ids) = (as_whom[as_whom.len() - 1], &as_whom[2..as_whom.len() - 1]);
    Ok(Poller {
        pid: told[2] as i32,
        idle_ms: milliseconds(idle),
        cpu: told[3] as u32,
        is_shared: told[4] != 1,
        is_root: ids.iter().all(|id| *id == 0),
        capabilities,
    })
}

/// Ticks of the kernel, which are as long as its coarse clocks are exact.
fn milliseconds(ticks: u64) -> u32 {
    let tick = clock_getres(ClockId::MonotonicCoarse);
    (ticks * tick.tv_nsec as u64 / 1_000_000) as u32
}

/// Wakes it, so that it takes what has been given.
pub fn wake(ring: BorrowedFd<'_>) -> Result<(), Errno> {
    super::enter(ring, 0, super::ENTER_SQ_WAKEUP).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::{Params, Position, setup};
    use super::*;
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn what_was_asked_for_is_told() {
        let own = std::process::id() as i32;
        let flags = setup::SQPOLL | setup::SQ_AFF;
        let (ring, layout) = super::super::make_by(&mut Params::new(8, flags).polled(0, 1200), 4).unwrap();
        let Ok(poller) = of_ring(own, ring.as_raw_fd()) else { return };
        let capabilities = crate::proc::Task::current().unwrap().status().unwrap().caps.effective;
        let ids = (rustix::process::getuid().is_root(), rustix::process::getgid().is_root());
        let told =
            Poller { pid: own, idle_ms: 1200, cpu: 0, is_shared: false, is_root: ids == (true, true), capabilities };
        assert_eq!(poller, told);
        let position = Position { submitted: 100, completed: 95, collected: 90 };
        let mapped = super::super::Mapped::new(ring.as_fd(), layout).unwrap();
        mapped.turn(ring.as_fd(), position).unwrap();
        assert_eq!(mapped.completed(), 95);
    }
}
