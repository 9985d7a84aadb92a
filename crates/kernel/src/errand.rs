//! A few system calls that are made to the end though this process be killed in the middle of them.
//!
//! They are made by a child, as vfork(2) makes one: it shares memory and descriptors with us, who wait. A SIGKILL that is
//! for us ends our wait and is nothing to the child, which goes on in the memory that it keeps, and ends when it is done.

use std::ffi::c_void;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::Pid;

use crate::sys::check;
use crate::sys::signal::AllBlocked;
use crate::sys::wait::{Who, wait};

/// What of a path is copied on the way to a call is far less.
const STACK: usize = 64 << 10;

/// Runs `errand` in such a child, and returns what it has returned; in this thread if there can be no child (`pids.max`).
/// Paths mean what they mean to the calling thread, and what is opened is ours.
///
/// # Safety
/// `errand` makes system calls and nothing else: it neither allocates nor takes a lock, whose holder may be dead by then.
pub(crate) unsafe fn run<T>(errand: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let stack = Stack::new()?;
    let mut work = Work { errand: Some(errand), done: None };
    match spawn(&stack, &mut work) {
        Ok(child) => while wait(Who::One(child)) == Err(Errno::INTR) {},
        Err(_) => work.act(),
    }
    // Nothing if somebody has killed the child as well.
    work.done.unwrap_or(Err(Errno::INTR))
}

struct Work<F, T> {
    errand: Option<F>,
    done: Option<Result<T, Errno>>,
}

impl<T, F: FnOnce() -> Result<T, Errno>> Work<F, T> {
    fn act(&mut self) {
        self.done = self.errand.take().map(|errand| errand());
    }
}

fn spawn<T, F: FnOnce() -> Result<T, Errno>>(stack: &Stack, work: &mut Work<F, T>) -> Result<Pid, Errno> {
    // The child has our handlers: it must not run any.
    let _blocked = AllBlocked::new();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
    // SAFETY: the child has a stack of its own, whose top is aligned to a page. This thread, whose thread-local memory it
    // shares, does nothing until it has ended; or nothing any more, if it is killed, and then `work` and `stack` stay where
    // they are, since nobody returns from here. What `work` does is vouched for by whoever called `run`.
    let pid = check(unsafe { libc::clone(serve::<T, F>, stack.top(), flags, (&raw mut *work).cast()) })?;
    Pid::from_raw(pid).ok_or(Errno::CHILD)
}

/// Does not unwind: that would end in an abort.
extern "C" fn serve<T, F: FnOnce() -> Result<T, Errno>>(work: *mut c_void) -> i32 {
    // SAFETY: `spawn` has handed over a `Work<F, T>` that nobody else touches while this runs.
    unsafe { &mut *work.cast::<Work<F, T>>() }.act();
    0
}

/// Memory for the child to run on.
struct Stack(NonNull<c_void>);

impl Stack {
    fn new() -> Result<Self, Errno> {
        // SAFETY: new memory, where the kernel likes.
        let at = unsafe {
            mmap_anonymous(std::ptr::null_mut(), STACK, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        NonNull::new(at).map(Stack).ok_or(Errno::NOMEM)
    }

    fn top(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping.
        unsafe { self.0.as_ptr().byte_add(STACK) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: our own mapping, upon which nobody runs any more: `run` has waited.
        let _ = unsafe { munmap(self.0.as_ptr(), STACK) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Spawn, spawn};
    use rustix::pipe::pipe;
    use rustix::process::{Signal, kill_process};

    #[test]
    fn what_it_opens_and_returns_is_ours() {
        let opened = || rustix::fs::open(c"/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
        // SAFETY: one system call.
        let file = unsafe { run(opened) }.unwrap();
        assert_eq!(rustix::io::write(&file, b"all"), Ok(3));
        // SAFETY: no call at all.
        assert_eq!(unsafe { run(|| Err::<(), _>(Errno::XDEV)) }, Err(Errno::XDEV));
    }

    #[test]
    fn it_is_done_though_its_maker_is_killed() {
        let [(begun, has_begun), (go_on, may_go_on), (done, is_done)] = [pipe(), pipe(), pipe()].map(Result::unwrap);
        let errand = || {
            rustix::io::write(&has_begun, b"1")?;
            rustix::io::read(&go_on, &mut [0])?;
            rustix::io::write(&is_done, b"2")
        };
        // SAFETY: the body, and the errand in it, make system calls alone.
        let maker = unsafe { spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || i32::from(run(errand).is_err())) };
        let maker = maker.unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&begun, &mut byte), Ok(1));
        kill_process(maker.pid, Signal::KILL).unwrap();
        assert!(wait(Who::One(maker.pid)).unwrap().1.is_end());
        rustix::io::write(&may_go_on, b"!").unwrap();
        assert_eq!(rustix::io::read(&done, &mut byte), Ok(1));
        assert_eq!(byte, *b"2");
    }
}
