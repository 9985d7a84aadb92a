//! Ptys of this process, carried through an image.

use super::super::testing::Carried;
use super::data::waiting;
use super::*;
use crate::RestoreOptions;
use cryonaut_kernel::sys::tty;
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, openpt};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Ptys have numbers, and the lowest free one is given: one test at a time.
static NUMBERS: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    NUMBERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pty with a number that others are unlikely to be given once it is free.
fn pair() -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let mut masters: Vec<OwnedFd> = (0..12).map(|_| openpt(flags).unwrap()).collect();
    let master = masters.pop().unwrap();
    tty::set_pty_locked(&master, false).unwrap();
    let slave = tty::open_peer(&master, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC).unwrap();
    (master, slave)
}

fn read(file: &OwnedFd) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let n = rustix::io::read(file, &mut bytes).unwrap();
    bytes.truncate(n);
    bytes
}

#[test]
fn a_pty_comes_back_with_its_number_settings_and_size() {
    let _alone = alone();
    let (master, slave) = pair();
    let mut settings = tty::get_termios2(&slave).unwrap();
    settings.termios.lflag &= !(libc::ECHO | libc::ICANON);
    settings.termios.cc[libc::VINTR] = 7;
    settings.termios.cc[18] = 9;
    tty::set_termios2(&slave, &settings).unwrap();
    let locked = tty::Termios { oflag: libc::OPOST, ..tty::Termios::default() };
    tty::set_locked_termios(&slave, &locked).unwrap();
    let size = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 5, ws_ypixel: 6 };
    tcsetwinsize(&slave, size).unwrap();
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(7)), None).unwrap();
    rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK).unwrap();
    let number = tty::pty_number(&master).unwrap();
    let second = tty::open_peer(&master, OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC).unwrap();
    let flags = |fd: &OwnedFd| rustix::fs::fcntl_getfl(fd).unwrap();
    let old_flags = [flags(&slave), flags(&master), flags(&second)];
    let carried = Carried::collect(&[&slave, &master, &second]);
    assert_ne!(carried.record(0).tty.unwrap().tty_info_id, carried.record(1).tty.unwrap().tty_info_id);
    assert_eq!(carried.record(0).tty.unwrap().tty_info_id, carried.record(2).tty.unwrap().tty_info_id);
    drop((master, slave, second));
    let carried = carried.build(RestoreOptions::default());
    let [slave, master, second] = [0, 1, 2].map(|n| carried.file(n));
    assert_eq!(tty::pty_number(master), Ok(number));
    assert_eq!(tty::device(second), tty::device(slave));
    assert_eq!(tty::get_termios2(slave), Ok(settings));
    assert_eq!(tty::get_locked_termios(slave), Ok(locked));
    let new = tcgetwinsize(slave).unwrap();
    assert_eq!((new.ws_row, new.ws_col, new.ws_xpixel, new.ws_ypixel), (33, 77, 5, 6));
    assert_eq!(rustix::fs::fstat(slave).unwrap().st_uid, 7);
    assert_eq!([flags(slave), flags(master), flags(second)], old_flags);
    rustix::io::write(slave, b"out").unwrap();
    assert_eq!(read(master), b"out");
}

#[test]
fn unread_output_is_carried_and_left_in_place() {
    let _alone = alone();
    let (master, slave) = pair();
    rustix::io::write(&slave, b"one\ntwo").unwrap();
    while waiting(&master) < 8 {
        std::thread::yield_now();
    }
    let carried = Carried::collect(&[&master, &slave]);
    assert_eq!(read(&master), b"one\r\ntwo");
    drop((master, slave));
    let carried = carried.build(RestoreOptions::default());
    assert_eq!(read(carried.file(0)), b"one\r\ntwo");
}

#[test]
fn a_slave_without_its_master_is_hung_up_again() {
    let _alone = alone();
    let (master, slave) = pair();
    drop(master);
    let carried = Carried::collect(&[&slave]).build(RestoreOptions::default());
    assert_eq!(tty::get_termios(carried.file(0)), Err(rustix::io::Errno::IO));
    assert_eq!(rustix::io::read(carried.file(0), &mut [0; 4]), Ok(0));
}

#[test]
fn a_number_that_is_in_use_is_an_error_that_names_it() {
    let _alone = alone();
    let (master, slave) = pair();
    let number = tty::pty_number(&master).unwrap();
    let carried = Carried::collect(&[&master, &slave]);
    let error = carried.try_build(RestoreOptions::default()).err().unwrap().to_string();
    assert!(error.contains(&format!("/dev/pts/{number} is in use")), "{error}");
}

#[test]
fn typed_lines_are_carried_and_left_in_place() {
    let _alone = alone();
    let (master, slave) = pair();
    rustix::io::write(&master, b"one\ntwo\nthree\x04par").unwrap();
    while waiting(&slave) < 13 || waiting(&master) < 18 {
        std::thread::yield_now();
    }
    let carried = Carried::collect(&[&slave, &master]);
    let check = |slave: &OwnedFd, master: &OwnedFd| {
        for line in [&b"one\n"[..], b"two\n", b"three"] {
            assert_eq!(read(slave), line);
        }
        assert_eq!(waiting(slave), 0);
        assert_eq!(read(master), b"one\r\ntwo\r\nthreepar");
        // What is still being typed can still be rubbed out.
        rustix::io::write(master, b"\x7fnt\n").unwrap();
        assert_eq!(read(slave), b"pant\n");
    };
    check(&slave, &master);
    drop((master, slave));
    let carried = carried.build(RestoreOptions::default());
    check(carried.file(0), carried.file(1));
}

#[test]
fn what_was_written_this_moment_is_carried() {
    let _alone = alone();
    // Whether a worker of the kernel is faster than we are is a matter of luck.
    for _ in 0..30 {
        let (master, slave) = pair();
        rustix::io::write(&slave, b"out").unwrap();
        rustix::io::write(&master, b"line\n").unwrap();
        let carried = Carried::collect(&[&slave, &master]);
        drop((master, slave));
        let carried = carried.build(RestoreOptions::default());
        assert_eq!(waiting(carried.file(0)), 5);
        assert_eq!(read(carried.file(1)), b"outline\r\n");
    }
}

#[test]
fn a_line_that_is_being_typed_is_carried_alone() {
    let _alone = alone();
    let (master, slave) = pair();
    rustix::io::write(&master, b"par").unwrap();
    let carried = Carried::collect(&[&slave, &master]);
    rustix::io::write(&master, b"t\n").unwrap();
    assert_eq!(read(&slave), b"part\n");
    drop((master, slave));
    let carried = carried.build(RestoreOptions::default());
    rustix::io::write(carried.file(1), b"ty\n").unwrap();
    assert_eq!(read(carried.file(0)), b"party\n");
}

#[test]
fn a_master_whose_slaves_are_closed_says_so_again() {
    let _alone = alone();
    let (master, slave) = pair();
    drop(slave);
    rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK).unwrap();
    let carried = Carried::collect(&[&master]);
    drop(master);
    let carried = carried.build(RestoreOptions::default());
    assert_eq!(rustix::io::read(carried.file(0), &mut [0; 4]), Err(rustix::io::Errno::IO));
}

#[test]
fn a_given_terminal_takes_the_place_of_one() {
    use std::os::fd::AsRawFd;
    let _alone = alone();
    let (_master, slave) = pair();
    let (_other_master, other) = pair();
    let stat = rustix::fs::fstat(&slave).unwrap();
    let key = format!("tty[{:x}:{:x}]", stat.st_rdev, stat.st_dev);
    let options = RestoreOptions { inherit_fds: vec![(other.as_raw_fd(), key)], ..RestoreOptions::default() };
    let carried = Carried::collect(&[&slave]).build(options);
    assert_eq!(tty::device(carried.file(0)), tty::device(&other));
}

#[test]
fn a_terminal_of_an_outsider_needs_a_stand_in() {
    let _alone = alone();
    let (master, slave) = pair();
    let carried = Carried::collect(&[&slave]);
    drop((master, slave));
    let error = carried.try_build(RestoreOptions::default()).err().unwrap();
    assert!(error.to_string().contains("/dev/pts/") && error.remedy().contains("--shell-job"), "{error}");
}

#[test]
fn a_terminal_of_an_outsider_is_made_anew_for_a_caller_who_takes_its_master() {
    let _alone = alone();
    let (master, slave) = pair();
    let number = tty::pty_number(&master).unwrap();
    let size = Winsize { ws_row: 11, ws_col: 22, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&slave, size).unwrap();
    rustix::io::write(&master, b"unread\n").unwrap();
    let carried = Carried::collect(&[&slave]);
    drop((master, slave));
    let taken = std::sync::Arc::new(Mutex::new(Vec::new()));
    let keeper = std::sync::Arc::clone(&taken);
    let hook = crate::Hook::new(move |event| {
        let master = event.terminal.expect("a terminal").try_clone_to_owned().expect("a duplicate");
        keeper.lock().unwrap().push((event.moment, master));
        Ok(crate::Answer::default())
    });
    let carried = carried.build(RestoreOptions { orphan_terminals: true, hook, ..RestoreOptions::default() });
    let taken = taken.lock().unwrap();
    let [(moment, master)] = &taken[..] else { panic!("{taken:?}") };
    assert_eq!(*moment, crate::Moment::OrphanPtsMaster);
    assert_eq!(tty::pty_number(master), Ok(number));
    assert_eq!(tcgetwinsize(carried.file(0)).unwrap().ws_col, 22);
    assert_eq!(read(carried.file(0)), b"unread\n");
    rustix::io::write(carried.file(0), b"x").unwrap();
}
