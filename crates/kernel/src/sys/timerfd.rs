//! TFD_IOC_SET_TICKS: gives a timerfd back the expirations that nobody has read yet.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

const TFD_IOC_SET_TICKS: Opcode = opcode::write::<u64>(b'T', 0);
const _: () = assert!(TFD_IOC_SET_TICKS == 0x4008_5400);

/// Sets the count that the next read returns; 0 is EINVAL. ENOTTY where the kernel lacks CONFIG_CHECKPOINT_RESTORE.
pub fn set_ticks(timer: impl AsFd, ticks: u64) -> Result<(), Errno> {
    // SAFETY: TFD_IOC_SET_TICKS reads one u64.
    unsafe { ioctl(timer, Setter::<TFD_IOC_SET_TICKS, u64>::new(ticks)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    #[test]
    fn a_read_returns_the_ticks_set() {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
        set_ticks(&timer, 7).unwrap();
        let mut count = [0u8; 8];
        rustix::io::read(&timer, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 7);
        assert_eq!(set_ticks(&timer, 0), Err(Errno::INVAL));
    }
}
