//! Processes beside ours that outlive it: one that is nobody's, and pairs of which each takes the other's place.

use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::process::Pid;

use super::check;
use super::process::{Child, CloneFlags, Spawn, clone3};
use super::wait::{Who, wait};

/// Runs `body` in a process that has nothing of its caller: no parent, no session, no terminal, no working directory, no
/// descriptors but those to keep, and `/dev/null` for the first three. It blocks all signals, and ends with the exit code
/// that `body` returns.
///
/// Its pid is none of those that are `taken`: somebody else is to have them.
///
/// It is a copy of this process with one thread, which may allocate. What another thread of ours holds at this moment, a
/// lock of its own, is never let go there.
pub fn set_aside(keep: &[RawFd], taken: impl Fn(i32) -> bool, body: impl FnOnce() -> i32) -> Result<(), Errno> {
    let middle = loop {
        // SAFETY: fork(3) leaves a copy of this process with this thread alone, in which the C library works. What leaves
        // it does so by _exit.
        let middle = check(unsafe { libc::fork() })?;
        match Pid::from_raw(middle) {
            // Its number would stay that of the session.
            Some(child) if taken(middle) => {
                wait(Who::One(child))?;
            }
            middle => break middle,
        }
    };
    let Some(middle) = middle else {
        let _abort = super::process::AbortOnUnwind;
        if taken(rustix::process::getpid().as_raw_nonzero().get()) {
            leave(0);
        }
        // Fails only for who has a session already.
        let _ = rustix::process::setsid();
        loop {
            // SAFETY: as above, in a process of one thread.
            match unsafe { libc::fork() } {
                0 if taken(rustix::process::getpid().as_raw_nonzero().get()) => leave(0),
                0 => leave(if leave_everything(keep).is_ok() { body() } else { 1 }),
                born if taken(born) => drop(Pid::from_raw(born).map(|pid| wait(Who::One(pid)))),
                born => leave(i32::from(born < 0)),
            }
        }
    };
    match wait(Who::One(middle))?.1 {
        super::wait::WaitStatus::Exited(0) => Ok(()),
        _ => Err(Errno::AGAIN),
    }
}

fn leave_everything(keep: &[RawFd]) -> Result<(), Errno> {
    super::signal::block_all();
    rustix::process::chdir("/")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
    let mut numbers = keep.to_vec();
    for standard in 0..3 {
        if !numbers.contains(&standard) {
            // SAFETY: dup3 takes numbers. Who has owned this descriptor does not use it here: see the caller.
            check(unsafe { libc::dup3(null.as_raw_fd(), standard, 0) })?;
        }
    }
    std::mem::forget(null);
    numbers.extend([0, 1, 2]);
    numbers.sort_unstable();
    numbers.dedup();
    let mut from = 0u32;
    for number in numbers.iter().map(|number| *number as u32).chain([u32::MAX]) {
        if number > from {
            // SAFETY: it takes numbers. Nothing in this process uses or drops those descriptors: it ends with _exit.
            unsafe {
                libc::syscall(libc::SYS_close_range, from, if number == u32::MAX { number } else { number - 1 }, 0)
            };
        }
        from = number.saturating_add(1);
    }
    Ok(())
}

/// Makes a copy of this process with which it shares its descriptors: what one opens, both have, and it stays open until
/// both have ended. Returns twice, `None` in the copy. EBUSY unless this process has one thread.
///
/// The values that own descriptors are in both: only one of the two may drop them.
pub fn split() -> Result<Option<Child>, Errno> {
    // A thread that has been joined is there for a moment longer.
    let mut tries = 100;
    while threads()? != 1 {
        tries -= 1;
        if tries == 0 {
            return Err(Errno::BUSY);
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    // SAFETY: the only thread of this process holds none of the C library's locks here, so its copy is as good.
    unsafe { clone3(&Spawn { flags: CloneFlags::FILES, exit_signal: 0, ..Spawn::default() }) }
}

fn threads() -> Result<usize, Errno> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    Ok(threads.count())
}

/// Ends this process at once: nothing is dropped, which may be another's as well.
pub fn leave(code: i32) -> ! {
    // SAFETY: _exit runs nothing of this program.
    unsafe { libc::_exit(code) }
}

/// Closes a descriptor that the other process of a [`split`] has opened, and left by its end.
pub fn close_left(number: i32) {
    // SAFETY: close takes a number. It has no owner any more but the caller, by the contract.
    unsafe { libc::close(number) };
}

/// Words that this process shares with its copies, zero at first. They stay for its life.
pub fn shared_words<const N: usize>() -> Result<&'static [AtomicU64; N], Errno> {
    let len = size_of::<[AtomicU64; N]>();
    // SAFETY: a new mapping at an address of the kernel's choice replaces none.
    let at =
        unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED) }?;
    let at = NonNull::new(at.cast::<[AtomicU64; N]>()).ok_or(Errno::NOMEM)?;
    // SAFETY: the mapping is aligned to a page, long enough, never unmapped, and holds zeros, which are such words. That
    // other processes write to it is what atomics are for.
    Ok(unsafe { at.as_ref() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::Ordering;

    #[test]
    fn who_is_set_aside_is_nobodys_and_splits() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let words = shared_words::<2>().unwrap();
        let skipped = std::process::id() as i32 + 3;
        set_aside(
            &[writer.as_raw_fd()],
            |pid| pid == skipped,
            || {
                let alone = rustix::process::getpgrp() != rustix::process::getpid();
                let Ok(child) = split() else { return 1 };
                let Some(child) = child else {
                    // Opened here, seen there.
                    let (null, _other) = pipe_with(PipeFlags::CLOEXEC).unwrap();
                    words[1].store(null.as_raw_fd() as u64, Ordering::SeqCst);
                    std::mem::forget((null, _other));
                    return 0;
                };
                wait(Who::One(child.pid)).unwrap();
                let number = words[1].load(Ordering::SeqCst) as i32;
                // SAFETY: the other process has opened it for both, and has ended.
                let theirs = unsafe { BorrowedFd::borrow_raw(number) };
                let open = rustix::io::fcntl_getfd(theirs).is_ok();
                i32::from(rustix::io::write(&writer, &[u8::from(open), u8::from(alone)]) != Ok(2))
            },
        )
        .unwrap();
        drop(writer);
        let mut told = [0; 4];
        assert_eq!(rustix::io::read(&reader, &mut told), Ok(2));
        assert_eq!(told[..2], [1, 1]);
        assert_eq!(rustix::io::read(&reader, &mut told), Ok(0));
    }
}
