//! Queued signals: the raw `siginfo_t` and the calls that send one with chosen contents.

use std::marker::PhantomData;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::Pid;

use super::check;

/// Blocks every signal for the calling thread. Neither allocates nor touches anything of libc's.
pub fn block_all() {
    let (all, none) = (u64::MAX, std::ptr::null_mut::<u64>());
    // SAFETY: rt_sigprocmask reads eight bytes of `all`.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const all, none, size_of::<u64>()) };
}

/// While it is there, every signal is blocked for the thread that has made it.
#[derive(Debug)]
pub(crate) struct AllBlocked {
    before: u64,
    /// Of one thread.
    _here: PhantomData<*const ()>,
}

impl AllBlocked {
    pub(crate) fn new() -> Self {
        let (all, mut before) = (u64::MAX, 0u64);
        let size = size_of::<u64>();
        // SAFETY: rt_sigprocmask reads eight bytes of `all` and writes eight to `before`.
        unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, &raw mut before, size);
        }
        Self { before, _here: PhantomData }
    }
}

impl Drop for AllBlocked {
    fn drop(&mut self) {
        let (before, none) = (self.before, std::ptr::null_mut::<u64>());
        // SAFETY: rt_sigprocmask reads eight bytes of `before`.
        unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const before, none, size_of::<u64>())
        };
    }
}

/// A `siginfo_t` as 128 raw bytes: what an image stores, what ptrace and rt_sigqueueinfo exchange.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SigInfo {
    bytes: [u8; Self::SIZE],
}

const _: () = assert!(size_of::<SigInfo>() == size_of::<libc::siginfo_t>());
const _: () = assert!(align_of::<SigInfo>() == align_of::<libc::siginfo_t>());

impl SigInfo {
    /// Bytes of a `siginfo_t`, the same on every architecture.
    pub const SIZE: usize = 128;

    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        Self { bytes }
    }

    pub fn as_bytes(&self) -> &[u8; Self::SIZE] {
        &self.bytes
    }

    pub(crate) const fn zeroed() -> Self {
        Self { bytes: [0; Self::SIZE] }
    }

    fn int(&self, at: usize) -> i32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes[at..at + 4]);
        i32::from_ne_bytes(word)
    }

    /// Signal number.
    pub fn signo(&self) -> i32 {
        self.int(0)
    }

    pub fn errno(&self) -> i32 {
        self.int(4)
    }

    /// `SI_*`: 0 or more for the kernel's own, below 0 for a process'.
    pub fn code(&self) -> i32 {
        self.int(8)
    }

    /// The sender, for the codes that have one (`SI_USER`, `SI_QUEUE`, `SI_TKILL`, SIGCHLD).
    pub fn pid(&self) -> i32 {
        self.int(16)
    }
}

impl std::fmt::Debug for SigInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigInfo")
            .field("signo", &self.signo())
            .field("errno", &self.errno())
            .field("code", &self.code())
            .finish_non_exhaustive()
    }
}

/// Queues a signal for a process (rt_sigqueueinfo(2)). The kernel refuses codes of 0 and more (and `SI_TKILL`)
/// with EPERM unless the caller sends to its own process.
pub fn rt_sigqueueinfo(tgid: Pid, signo: i32, info: &SigInfo) -> Result<(), Errno> {
    // SAFETY: the kernel reads one siginfo_t from `info`, which has its size and alignment.
    let answer =
        unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, tgid.as_raw_nonzero().get(), signo, &raw const *info) };
    check(answer).map(drop)
}

/// Queues a signal for one thread (rt_tgsigqueueinfo(2)); codes are restricted likewise.
pub fn rt_tgsigqueueinfo(tgid: Pid, tid: Pid, signo: i32, info: &SigInfo) -> Result<(), Errno> {
    // SAFETY: the kernel reads one siginfo_t from `info`, which has its size and alignment.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            tgid.as_raw_nonzero().get(),
            tid.as_raw_nonzero().get(),
            signo,
            &raw const *info,
        )
    };
    check(answer).map(drop)
}

/// Sends a signal to one thread (tgkill(2)); 0 asks only whether it is there.
pub fn tgkill(tgid: Pid, tid: Pid, signo: i32) -> Result<(), Errno> {
    // SAFETY: takes three integers, touches no memory of the caller.
    let answer =
        unsafe { libc::syscall(libc::SYS_tgkill, tgid.as_raw_nonzero().get(), tid.as_raw_nonzero().get(), signo) };
    check(answer).map(drop)
}

/// signalfd4(2): a new file of the signals in `mask` (bit n-1 for signal n), close-on-exec.
pub fn signalfd(mask: u64) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads 8 bytes of `mask`, which outlives the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), libc::SFD_CLOEXEC) };
    let fd = check(answer)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// kill(2) with any signal number, real-time ones too.
pub fn kill(pid: Pid, signo: i32) -> Result<(), Errno> {
    // SAFETY: takes two integers, touches no memory of the caller.
    let answer = unsafe { libc::syscall(libc::SYS_kill, pid.as_raw_nonzero().get(), signo) };
    check(answer).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queued_signal_keeps_its_contents() {
        let (signo, tid) = (libc::SIGRTMIN() + 3, rustix::thread::gettid());
        let tgid = rustix::process::getpid();
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: `set` is a sigset_t of this frame; sigaddset fills it before pthread_sigmask reads it.
        unsafe {
            libc::sigaddset(set.as_mut_ptr(), signo);
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        }
        let mut bytes = [0u8; SigInfo::SIZE];
        bytes[0..4].copy_from_slice(&signo.to_ne_bytes());
        bytes[8..12].copy_from_slice(&libc::SI_QUEUE.to_ne_bytes());
        bytes[16..20].copy_from_slice(&4711i32.to_ne_bytes());
        bytes[24..32].copy_from_slice(&0x1122_3344_5566_7788u64.to_ne_bytes());
        rt_tgsigqueueinfo(tgid, tid, signo, &SigInfo::from_bytes(bytes)).unwrap();
        let mut got = SigInfo::zeroed();
        // SAFETY: sigwaitinfo writes one siginfo_t to `got`, which has its size and alignment.
        let waited = unsafe { libc::sigwaitinfo(set.as_ptr(), (&raw mut got).cast()) };
        assert_eq!(waited, signo);
        assert_eq!(got.as_bytes(), &bytes);
        assert_eq!((got.code(), got.pid()), (libc::SI_QUEUE, 4711));
        assert_eq!(tgkill(tgid, tid, 0), Ok(()));
        assert_eq!(tgkill(tgid, Pid::INIT, 0), Err(Errno::SRCH));
    }
}
