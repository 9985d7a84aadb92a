//! INOTIFY_IOC_SETNEXTWD: chooses the number of the next watch.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, ioctl, opcode};

const INOTIFY_IOC_SETNEXTWD: Opcode = opcode::write::<i32>(b'I', 0);
const _: () = assert!(INOTIFY_IOC_SETNEXTWD == 0x4004_4900);

/// The next watch gets this number, or the next free one above. EINVAL unless positive; ENOTTY where the kernel lacks
/// CONFIG_CHECKPOINT_RESTORE (or is older than Linux 4.17).
pub fn set_next_watch(inotify: impl AsFd, number: i32) -> Result<(), Errno> {
    let number = usize::try_from(number).map_err(|_| Errno::INVAL)?;
    // SAFETY: INOTIFY_IOC_SETNEXTWD takes its argument as an integer, not as an address (fs/notify/inotify).
    unsafe { ioctl(inotify, IntegerSetter::<INOTIFY_IOC_SETNEXTWD>::new_usize(number)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

    #[test]
    fn the_next_watch_has_the_number_asked_for() {
        let inotify = init(CreateFlags::CLOEXEC).unwrap();
        match set_next_watch(&inotify, 77) {
            Ok(()) => assert_eq!(add_watch(&inotify, "/", WatchFlags::CREATE), Ok(77)),
            Err(errno) => assert_eq!(errno, Errno::NOTTY),
        }
        assert_eq!(set_next_watch(&inotify, -1), Err(Errno::INVAL));
    }
}
