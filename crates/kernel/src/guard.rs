//! Processes that put connections of TCP right should this one be killed: a socket must not stay in repair mode, nor its
//! packets be dropped, when the program that has it goes on; and when that has ended, its peers must not hear of it.
//!
//! Like a [`janitor`](crate::janitor), a guard is a child that waits for the end of its maker, and makes system calls and
//! nothing else.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::sys::nf_tables::Ready;
use crate::sys::process::{Child, Spawn, is_deserted, spawn};
use crate::sys::signal;
use crate::sys::socket::set_int;
use crate::sys::tcp_repair;
use crate::sys::wait::{Who, wait};

/// What is to be done at the end.
#[derive(Debug, Clone)]
pub enum LastWill {
    Nothing,
    /// Netfilter is told so.
    Rules(Ready),
    /// These are run one after the other, each by its path and with the words that it is called with, that first.
    Programs(Vec<Vec<CString>>),
}

impl LastWill {
    /// The words of programs as execve(2) wants them: for who may not allocate.
    fn pointers(&self) -> Vec<Vec<*const libc::c_char>> {
        let LastWill::Programs(programs) = self else { return Vec::new() };
        let of_one = |words: &Vec<CString>| words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
        programs.iter().filter(|words| !words.is_empty()).map(of_one).collect()
    }

    /// Does it; there is nobody to be told of an error.
    fn carry_out(&self, programs: &[Vec<*const libc::c_char>]) {
        if let LastWill::Rules(rules) = self {
            let _ = rules.send();
        }
        for words in programs {
            let none: [*const libc::c_char; 1] = [std::ptr::null()];
            // SAFETY: the body makes one system call. Both lists end with a null pointer, and the words live in the copy of
            // the maker's memory.
            let child = unsafe {
                spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
                    libc::syscall(libc::SYS_execve, words[0], words.as_ptr(), none.as_ptr());
                    1
                })
            };
            if let Ok(child) = child {
                let _ = wait(Who::One(child.pid));
            }
        }
    }
}

const IN_REPAIR: u8 = 1;
const REPAIRED: u8 = 3;
const DISMISSED: u8 = 4;

/// Most sockets that are in repair mode at a time: as many as one message takes (SCM_MAX_FD is 253).
pub const MOST_IN_REPAIR: usize = 64;

/// Watches while connections are read. Dropped, it is dismissed.
#[derive(Debug)]
pub struct Guard {
    socket: OwnedFd,
    child: Child,
}

impl Guard {
    /// Makes one, which carries out `will` if we are killed.
    pub fn hire(will: &LastWill) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let programs = will.pointers();
        // SAFETY: the body makes system calls alone, by wrappers that neither allocate nor touch anything of libc's.
        let child = unsafe {
            spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
                signal::block_all();
                keep_alone(theirs.as_raw_fd());
                if watch(theirs.as_fd()) {
                    will.carry_out(&programs);
                }
                0
            })
        }?;
        Ok(Self { socket: ours, child })
    }

    /// From now on until [`Guard::repaired`], these sockets are in repair mode, each with whether it has SO_REUSEADDR; at
    /// most [`MOST_IN_REPAIR`] (E2BIG).
    pub fn in_repair(&self, sockets: &[(BorrowedFd<'_>, bool)]) -> Result<(), Errno> {
        if sockets.len() > MOST_IN_REPAIR {
            return Err(Errno::TOOBIG);
        }
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_IN_REPAIR))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        let files: Vec<BorrowedFd<'_>> = sockets.iter().map(|(socket, _)| *socket).collect();
        control.push(SendAncillaryMessage::ScmRights(&files));
        let words: Vec<u8> = [IN_REPAIR].into_iter().chain(sockets.iter().map(|(_, reuse)| u8::from(*reuse))).collect();
        sendmsg(&self.socket, &[std::io::IoSlice::new(&words)], &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    /// They are no more.
    pub fn repaired(&self) -> Result<(), Errno> {
        rustix::net::send(&self.socket, &[REPAIRED], SendFlags::NOSIGNAL).map(drop)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Fails only if somebody has ended it.
        let _ = rustix::net::send(&self.socket, &[DISMISSED], SendFlags::NOSIGNAL);
        let _ = wait(Who::One(self.child.pid));
    }
}

/// Whether the maker has ended without a word; then all is put right.
fn watch(socket: BorrowedFd<'_>) -> bool {
    let mut held = [const { None::<OwnedFd> }; MOST_IN_REPAIR];
    let mut words = [0u8; 1 + MOST_IN_REPAIR];
    loop {
        let mut new = [0u8; 1 + MOST_IN_REPAIR];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_IN_REPAIR))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let mut parts = [std::io::IoSliceMut::new(&mut new)];
        let got = match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => continue,
            Err(_) => 0,
            Ok(got) => got.bytes,
        };
        if got == 0 {
            for (socket, reuse) in held.iter().zip(&words[1..]) {
                let Some(socket) = socket else { continue };
                let _ = tcp_repair::end_silently(socket);
                let _ = set_int(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, i32::from(*reuse));
            }
            return true;
        }
        match new[0] {
            IN_REPAIR => {
                words = new;
                let files = control.drain().filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(files) => Some(files),
                    _ => None,
                });
                held.iter_mut().zip(files.flatten()).for_each(|(place, file)| *place = Some(file));
            }
            REPAIRED => held = [const { None }; MOST_IN_REPAIR],
            DISMISSED => return false,
            _ => {}
        }
    }
}

/// How long it may take from the order to end until a program has ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// Watches while a tree is ended, whose connections we hold. Dropped, it is dismissed.
#[derive(Debug)]
pub struct Undertaker {
    pipe: OwnedFd,
    child: Child,
}

impl Undertaker {
    /// Makes one. If we are killed and `root` ends, or has: `connections`, of which the program has no more, go without
    /// a word to their peers, and the file `note` is removed. If it goes on: `will` is carried out.
    pub fn hire(root: &OwnedFd, connections: &[RawFd], note: &CString, will: &LastWill) -> Result<Self, Errno> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let last = writer.as_raw_fd();
        let programs = will.pointers();
        // SAFETY: as above; the descriptors are those of the copy of our table. Closing `last` there leaves nobody without
        // it: the child ends with _exit.
        let child = unsafe {
            spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
                signal::block_all();
                libc::syscall(libc::SYS_close, last);
                if !is_deserted(reader.as_fd()) {
                    return 0;
                }
                if !ends(root) {
                    will.carry_out(&programs);
                    return 0;
                }
                for fd in connections {
                    let _ = tcp_repair::begin(BorrowedFd::borrow_raw(*fd));
                }
                let _ = rustix::fs::unlinkat(rustix::fs::CWD, note, rustix::fs::AtFlags::empty());
                0
            })
        }?;
        Ok(Self { pipe: writer, child })
    }
}

impl Drop for Undertaker {
    fn drop(&mut self) {
        // Fails only if somebody has ended it.
        let _ = rustix::io::write(&self.pipe, &[DISMISSED]);
        let _ = wait(Who::One(self.child.pid));
    }
}

/// Whether a process has ended, or does soon.
fn ends(process: &OwnedFd) -> bool {
    let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut watched = [PollFd::new(process, PollFlags::IN)];
    matches!(poll(&mut watched, Some(&limit)), Ok(1))
}

/// Closes every descriptor but those of stdio, which a last will may want, and this one.
fn keep_alone(keep: RawFd) {
    const FIRST: u32 = 3;
    let keep = keep as u32;
    // SAFETY: others are left without their descriptors, but nothing in this process uses or drops them: it ends with
    // _exit.
    unsafe {
        if keep > FIRST {
            libc::syscall(libc::SYS_close_range, FIRST, keep - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, (keep + 1).max(FIRST), u32::MAX, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::nf_tables::{Transaction, has_table};
    use crate::sys::socket::get_int;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (client, server)
    }

    /// Ends the watch as our death would, and waits for it.
    fn die(socket: OwnedFd, child: &Child) {
        drop(socket);
        wait(Who::One(child.pid)).unwrap();
    }

    #[test]
    fn a_connection_goes_on_if_its_reader_dies() {
        let (mut client, mut server) = pair();
        if tcp_repair::begin(&server) == Err(Errno::PERM) {
            return;
        }
        let (table, will) = table("deserted");
        let guard = Guard::hire(&will).unwrap();
        guard.in_repair(&[(client.as_fd(), false), (server.as_fd(), true)]).unwrap();
        let (socket, child) = take(guard);
        die(socket, &child);
        assert_eq!(get_int(&server, libc::IPPROTO_TCP, 19), Ok(0));
        assert_eq!(get_int(&server, libc::SOL_SOCKET, libc::SO_REUSEADDR), Ok(1));
        server.write_all(b"on").unwrap();
        client.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(has_table(&table), Ok(false), "the last will is not carried out");
    }

    /// A table of netfilter that is there, and the will that it goes.
    fn table(name: &str) -> (String, LastWill) {
        let name = format!("cryonaut-{name}-{}", std::process::id());
        Transaction::default().add_table(&name).finish().send().unwrap();
        let will = LastWill::Rules(Transaction::default().delete_table(&name).finish());
        (name, will)
    }

    fn take(guard: Guard) -> (OwnedFd, Child) {
        let guard = std::mem::ManuallyDrop::new(guard);
        // SAFETY: both are read once, and the guard is never dropped.
        unsafe { (std::ptr::read(&guard.socket), std::ptr::read(&guard.child)) }
    }

    #[test]
    fn a_guard_that_is_dismissed_does_nothing() {
        let (_client, server) = pair();
        if tcp_repair::begin(&server) == Err(Errno::PERM) {
            return;
        }
        tcp_repair::end_silently(&server).unwrap();
        let (table, will) = table("dismissed");
        let guard = Guard::hire(&will).unwrap();
        guard.in_repair(&[(server.as_fd(), false)]).unwrap();
        guard.repaired().unwrap();
        drop(guard);
        assert_eq!(has_table(&table), Ok(true));
        Transaction::default().delete_table(&table).finish().send().unwrap();
    }

    #[test]
    fn peers_hear_nothing_of_the_end_of_both() {
        let (mut client, server) = pair();
        if tcp_repair::begin(&server) == Err(Errno::PERM) {
            return;
        }
        tcp_repair::end_silently(&server).unwrap();
        // SAFETY: the child does nothing at all.
        let root = unsafe { spawn(&Spawn::default(), || 0) }.unwrap();
        let note = tempfile::NamedTempFile::new().unwrap();
        let path = CString::new(note.path().to_str().unwrap()).unwrap();
        let undertaker = Undertaker::hire(&root.pidfd, &[server.as_raw_fd()], &path, &LastWill::Nothing).unwrap();
        let undertaker = std::mem::ManuallyDrop::new(undertaker);
        // SAFETY: both are read once, and the undertaker is never dropped.
        let (pipe, child) = unsafe { (std::ptr::read(&undertaker.pipe), std::ptr::read(&undertaker.child)) };
        drop(server);
        die(pipe, &child);
        wait(Who::One(root.pid)).unwrap();
        assert!(!note.path().exists());
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        // No end and no reset: it would still wait.
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}
