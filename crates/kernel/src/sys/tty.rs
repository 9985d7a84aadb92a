//! Terminal ioctls that rustix lacks (ioctl_tty(2)).
//!
//! Foreground group, session, window size and the peer of a pty's master are in rustix; its `Termios` gives up bits
//! that it does not know, so the settings are offered here as the kernel has them.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Getter, IntegerSetter, NoArg, Opcode, Setter, ioctl, opcode};

/// `struct termios` as TCGETS has it (asm-generic/termbits.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Termios {
    pub iflag: u32,
    pub oflag: u32,
    pub cflag: u32,
    pub lflag: u32,
    pub line: u8,
    pub cc: [u8; 19],
}

/// `struct termios2` as TCGETS2 has it: with speeds as numbers.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Termios2 {
    pub termios: Termios,
    pub ispeed: u32,
    pub ospeed: u32,
}

const TCGETS: Opcode = 0x5401;
const TCSETS: Opcode = 0x5402;
const TIOCEXCL: Opcode = 0x540c;
const TIOCNXCL: Opcode = 0x540d;
const TIOCSCTTY: Opcode = 0x540e;
const TIOCSTI: Opcode = 0x5412;
const TIOCPKT: Opcode = 0x5420;
const TIOCNOTTY: Opcode = 0x5422;
const TCGETS2: Opcode = opcode::read::<Termios2>(b'T', 0x2a);
const TCSETS2: Opcode = opcode::write::<Termios2>(b'T', 0x2b);
const TIOCGPTN: Opcode = opcode::read::<u32>(b'T', 0x30);
const TIOCSPTLCK: Opcode = opcode::write::<i32>(b'T', 0x31);
const TIOCGPKT: Opcode = opcode::read::<i32>(b'T', 0x38);
const TIOCGPTLCK: Opcode = opcode::read::<i32>(b'T', 0x39);
const TIOCGEXCL: Opcode = opcode::read::<i32>(b'T', 0x40);
const TIOCGPTPEER: Opcode = opcode::none(b'T', 0x41);
const TIOCGDEV: Opcode = opcode::read::<u32>(b'T', 0x32);
const TIOCGLCKTRMIOS: Opcode = 0x5456;
const TIOCSLCKTRMIOS: Opcode = 0x5457;

const _: () = assert!(size_of::<Termios>() == 36 && size_of::<Termios2>() == 44);
const _: () = assert!(TCGETS2 == 0x802c_542a && TCSETS2 == 0x402c_542b);
const _: () = assert!(TIOCGPTN == 0x8004_5430 && TIOCSPTLCK == 0x4004_5431);
const _: () = assert!(TIOCGPKT == 0x8004_5438 && TIOCGPTLCK == 0x8004_5439 && TIOCGEXCL == 0x8004_5440);
const _: () = assert!(TIOCGPTPEER == 0x5441);

/// The settings.
pub fn get_termios(tty: impl AsFd) -> Result<Termios, Errno> {
    // SAFETY: TCGETS writes one kernel termios.
    unsafe { ioctl(tty, Getter::<TCGETS, Termios>::new()) }
}

/// Changes the settings at once.
pub fn set_termios(tty: impl AsFd, termios: &Termios) -> Result<(), Errno> {
    // SAFETY: TCSETS reads one kernel termios.
    unsafe { ioctl(tty, Setter::<TCSETS, Termios>::new(*termios)) }
}

/// The settings with their speeds.
pub fn get_termios2(tty: impl AsFd) -> Result<Termios2, Errno> {
    // SAFETY: TCGETS2 writes one termios2.
    unsafe { ioctl(tty, Getter::<TCGETS2, Termios2>::new()) }
}

/// Changes the settings and speeds at once.
pub fn set_termios2(tty: impl AsFd, termios: &Termios2) -> Result<(), Errno> {
    // SAFETY: TCSETS2 reads one termios2.
    unsafe { ioctl(tty, Setter::<TCSETS2, Termios2>::new(*termios)) }
}

/// Which settings are locked: a set bit may not be changed without CAP_SYS_ADMIN.
pub fn get_locked_termios(tty: impl AsFd) -> Result<Termios, Errno> {
    // SAFETY: TIOCGLCKTRMIOS writes one kernel termios.
    unsafe { ioctl(tty, Getter::<TIOCGLCKTRMIOS, Termios>::new()) }
}

/// Locks settings. Needs CAP_SYS_ADMIN.
pub fn set_locked_termios(tty: impl AsFd, termios: &Termios) -> Result<(), Errno> {
    // SAFETY: TIOCSLCKTRMIOS reads one kernel termios.
    unsafe { ioctl(tty, Setter::<TIOCSLCKTRMIOS, Termios>::new(*termios)) }
}

fn get_flag<const OPCODE: Opcode>(tty: impl AsFd) -> Result<bool, Errno> {
    const { assert!(OPCODE == TIOCGPKT || OPCODE == TIOCGPTLCK || OPCODE == TIOCGEXCL) };
    // SAFETY: each of these writes one int.
    unsafe { ioctl(tty, Getter::<OPCODE, i32>::new()) }.map(|flag| flag != 0)
}

/// Whether a pty's master is in packet mode.
pub fn packet_mode(master: impl AsFd) -> Result<bool, Errno> {
    get_flag::<TIOCGPKT>(master)
}

/// Sets packet mode of a pty's master.
pub fn set_packet_mode(master: impl AsFd, on: bool) -> Result<(), Errno> {
    // SAFETY: TIOCPKT reads one int.
    unsafe { ioctl(master, Setter::<TIOCPKT, i32>::new(i32::from(on))) }
}

/// Whether a pty's other end is locked: cannot be opened.
pub fn pty_locked(master: impl AsFd) -> Result<bool, Errno> {
    get_flag::<TIOCGPTLCK>(master)
}

/// Locks or unlocks a pty's other end.
pub fn set_pty_locked(master: impl AsFd, on: bool) -> Result<(), Errno> {
    // SAFETY: TIOCSPTLCK reads one int.
    unsafe { ioctl(master, Setter::<TIOCSPTLCK, i32>::new(i32::from(on))) }
}

/// Whether the terminal is in exclusive mode.
pub fn exclusive(tty: impl AsFd) -> Result<bool, Errno> {
    get_flag::<TIOCGEXCL>(tty)
}

/// Sets exclusive mode: no more opens without CAP_SYS_ADMIN.
pub fn set_exclusive(tty: impl AsFd, on: bool) -> Result<(), Errno> {
    // SAFETY: neither takes an argument.
    unsafe { if on { ioctl(tty, NoArg::<TIOCEXCL>::new()) } else { ioctl(tty, NoArg::<TIOCNXCL>::new()) } }
}

/// The number of a pty, from its master: N of `/dev/pts/N`.
pub fn pty_number(master: impl AsFd) -> Result<u32, Errno> {
    // SAFETY: TIOCGPTN writes one unsigned int.
    unsafe { ioctl(master, Getter::<TIOCGPTN, u32>::new()) }
}

/// The device of the terminal itself, as `st_rdev` has it: of a pty, that of its slave, whichever end is asked; of
/// `/dev/tty`, the terminal that it stood for when it was opened.
pub fn device(tty: impl AsFd) -> Result<u32, Errno> {
    // SAFETY: TIOCGDEV writes one unsigned int.
    unsafe { ioctl(tty, Getter::<TIOCGDEV, u32>::new()) }
}

/// Opens the other end of a pty through its master, whatever is mounted on /dev/pts, close-on-exec. `flags`: `O_*`.
pub fn open_peer(master: impl AsFd, flags: rustix::fs::OFlags) -> Result<OwnedFd, Errno> {
    // Given to the ioctl, O_CLOEXEC would become a status flag of the open file, and fdinfo would show it for every
    // duplicate (ptm_open_peer in drivers/tty/pty.c).
    let flags = flags - rustix::fs::OFlags::CLOEXEC;
    let peer = rustix::pty::ioctl_tiocgptpeer(master, rustix::pty::OpenptFlags::from_bits_retain(flags.bits()))?;
    rustix::io::fcntl_setfd(&peer, rustix::io::FdFlags::CLOEXEC)?;
    Ok(peer)
}

/// Makes the terminal that of the calling session leader. `steal` takes it from another session (CAP_SYS_ADMIN).
pub fn set_controlling(tty: impl AsFd, steal: bool) -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer.
    unsafe { ioctl(tty, IntegerSetter::<TIOCSCTTY>::new_usize(usize::from(steal))) }
}

/// Gives up the controlling terminal; for a session leader, for its whole session.
pub fn drop_controlling(tty: impl AsFd) -> Result<(), Errno> {
    // SAFETY: TIOCNOTTY takes no argument.
    unsafe { ioctl(tty, NoArg::<TIOCNOTTY>::new()) }
}

/// Puts a byte into the input as if typed. EIO where `dev.tty.legacy_tiocsti` is 0 and CAP_SYS_ADMIN is missing.
pub fn push_input(tty: impl AsFd, byte: u8) -> Result<(), Errno> {
    // SAFETY: TIOCSTI reads one char.
    unsafe { ioctl(tty, Setter::<TIOCSTI, u8>::new(byte)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::OFlags;
    use rustix::pty::{OpenptFlags, openpt};

    #[test]
    fn a_pty_tells_and_takes_its_modes() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        assert_eq!(pty_locked(&master), Ok(true));
        set_pty_locked(&master, false).unwrap();
        assert_eq!(pty_locked(&master), Ok(false));
        let number = pty_number(&master).unwrap();
        assert_eq!(device(&master), Ok(rustix::fs::makedev(136, number) as u32));
        assert_eq!(packet_mode(&master), Ok(false));
        set_packet_mode(&master, true).unwrap();
        assert_eq!(packet_mode(&master), Ok(true));
        let slave = open_peer(&master, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC).unwrap();
        set_exclusive(&slave, true).unwrap();
        assert_eq!(exclusive(&slave), Ok(true));
        set_exclusive(&slave, false).unwrap();
        assert_eq!(exclusive(&slave), Ok(false));
        let mut termios = get_termios(&slave).unwrap();
        termios.lflag ^= libc::ECHO;
        termios.cc[18] = 9;
        set_termios(&slave, &termios).unwrap();
        assert_eq!(get_termios(&slave), Ok(termios));
        let termios2 = get_termios2(&slave).unwrap();
        assert_eq!((termios2.termios, termios2.ospeed), (termios, 38400));
        set_termios2(&slave, &termios2).unwrap();
        let locked = get_locked_termios(&slave).unwrap();
        assert_eq!(locked.lflag, 0);
        set_locked_termios(&slave, &Termios { lflag: libc::ECHO, ..locked }).unwrap();
        assert_eq!(get_locked_termios(&slave).unwrap().lflag, libc::ECHO);
        set_locked_termios(&slave, &locked).unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(get_termios(&reader), Err(Errno::NOTTY));
    }
}
