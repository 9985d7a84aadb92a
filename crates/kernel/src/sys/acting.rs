//! Calls on Unix sockets in another's name: the kernel notes who makes a pair, connects or listens, and tells that to the
//! other end (SO_PEERCRED, unix(7)). A child that shares our descriptors makes the call, under the pid of a process that
//! is no more if that is free, and ends.

use super::process::{CloneFlags, Spawn, spawn};
use super::wait::{WaitStatus, Who, wait};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// As whom a call is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// The process.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

/// A call.
#[derive(Debug, Clone, Copy)]
pub enum Act<'a> {
    /// socketpair(2) of this type, which takes the place of these two descriptors.
    Pair(i32, [BorrowedFd<'a>; 2]),
    /// connect(2) with an address (a `sockaddr_un`), which may be relative to a directory.
    Connect(BorrowedFd<'a>, Option<BorrowedFd<'a>>, &'a [u8]),
    /// listen(2) for so many.
    Listen(BorrowedFd<'a>, i32),
}

/// Makes the call, and returns the pid under which it was made: that of `ids` if it was free, or that of a child that has
/// ended. Needs CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN (or CAP_CHECKPOINT_RESTORE).
pub fn act(ids: &Ids, what: Act<'_>) -> Result<i32, Errno> {
    // SAFETY: the body makes system calls alone, without libc's help, and neither allocates nor unwinds: what it uses is
    // made here.
    let child = at(ids.pid, |how| unsafe { spawn(how, || in_child(ids, what)) }.map(|child| child.pid))?;
    match wait_for(child)? {
        WaitStatus::Exited(0) => Ok(child.as_raw_nonzero().get()),
        WaitStatus::Exited(errno) => Err(Errno::from_raw_os_error(errno)),
        _ => Err(Errno::IO),
    }
}

fn wait_for(child: Pid) -> Result<WaitStatus, Errno> {
    loop {
        match wait(Who::One(child)) {
            Err(Errno::INTR) => {}
            answer => return answer.map(|(_, status)| status),
        }
    }
}

/// Spawns with a pid, or with any other if that is taken.
fn at<T>(pid: i32, spawn: impl Fn(&Spawn<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
    let flags = CloneFlags::FILES | CloneFlags::CLEAR_SIGHAND;
    let any = Spawn { flags, exit_signal: 0, ..Spawn::default() };
    if pid <= 0 {
        return spawn(&any);
    }
    match spawn(&Spawn { set_tid: &[pid], ..any }) {
        Err(Errno::EXIST | Errno::INVAL | Errno::PERM) => spawn(&any),
        answer => answer,
    }
}

fn in_child(ids: &Ids, what: Act<'_>) -> i32 {
    let call = |nr: i64, args: [u64; 4]| -> Result<(), i32> {
        // SAFETY: the callers below give the calls addresses of memory that outlives them and is as long as they say.
        let answer = unsafe { libc::syscall(nr, args[0], args[1], args[2], args[3]) };
        // SAFETY: errno of this thread, which is the only one of the child.
        if answer < 0 { Err(unsafe { *libc::__errno_location() }) } else { Ok(()) }
    };
    const KEEP: u64 = u32::MAX as u64;
    const NO_SETUID_FIXUP: u64 = 1 << 2;
    let raw = |file: BorrowedFd<'_>| file.as_raw_fd() as u64;
    let all = || {
        // Rights stay, as who has done this may have had them then.
        call(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as u64, NO_SETUID_FIXUP, 0, 0])?;
        call(libc::SYS_setgroups, [ids.groups.len() as u64, ids.groups.as_ptr() as u64, 0, 0])?;
        call(libc::SYS_setresgid, [KEEP, ids.gid.into(), KEEP, 0])?;
        call(libc::SYS_setresuid, [KEEP, ids.uid.into(), KEEP, 0])?;
        match what {
            Act::Pair(kind, places) => {
                let mut ends = [0i32; 2];
                let (kind, close) = ((kind | libc::SOCK_CLOEXEC) as u64, libc::O_CLOEXEC as u64);
                call(libc::SYS_socketpair, [libc::AF_UNIX as u64, kind, 0, (&raw mut ends) as u64])?;
                for (end, place) in ends.into_iter().zip(places) {
                    call(libc::SYS_dup3, [end as u64, raw(place), close, 0])?;
                    call(libc::SYS_close, [end as u64, 0, 0, 0])?;
                }
                Ok(())
            }
            Act::Connect(socket, dir, address) => {
                if let Some(dir) = dir {
                    call(libc::SYS_fchdir, [raw(dir), 0, 0, 0])?;
                }
                call(libc::SYS_connect, [raw(socket), address.as_ptr() as u64, address.len() as u64, 0])
            }
            Act::Listen(socket, backlog) => call(libc::SYS_listen, [raw(socket), backlog as u64, 0, 0]),
        }
    };
    all().err().unwrap_or(0)
}

/// A pair of Unix sockets of a type (`SOCK_*`), made by another.
pub fn pair(ids: &Ids, kind: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (one, other) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    act(ids, Act::Pair(kind, [one.as_fd(), other.as_fd()]))?;
    Ok((one, other))
}

/// connect(2) in our own name, with an address (a `sockaddr_un`) that may be relative to a directory.
pub fn connect(socket: BorrowedFd<'_>, dir: Option<BorrowedFd<'_>>, address: &[u8]) -> Result<(), Errno> {
    let call = || {
        let (at, len) = (address.as_ptr().cast(), address.len() as libc::socklen_t);
        // SAFETY: the address is as long as told, and only read.
        super::check(unsafe { libc::connect(socket.as_raw_fd(), at, len) }).map(drop)
    };
    match dir {
        None => call(),
        Some(dir) => super::unix_name::in_directory(dir, call),
    }
}

/// A process that is there as long as this, and does nothing.
#[derive(Debug)]
pub struct Present(Pid);

impl Present {
    /// Under this pid. EEXIST if there is one.
    pub fn new(pid: i32) -> Result<Present, Errno> {
        let how = Spawn { flags: CloneFlags::CLEAR_SIGHAND, exit_signal: 0, set_tid: &[pid], ..Spawn::default() };
        super::process::spawn_idle(&how).map(|child| Present(child.pid))
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        if rustix::process::kill_process(self.0, Signal::KILL).is_ok() {
            let _ = wait_for(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::unix_message::{Credentials, send};
    use super::*;
    use rustix::net::sockopt::socket_peercred;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, accept, bind, socket};

    #[test]
    fn what_another_has_done_is_told_of_it() {
        // A pid that is free.
        let gone = super::super::process::spawn_ended(0).unwrap().pid;
        wait_for(gone).unwrap();
        let pid = gone.as_raw_nonzero().get();
        let ids = Ids { pid, uid: 1234, gid: 2345, groups: vec![7, 9] };
        let (one, other) = match pair(&ids, libc::SOCK_STREAM) {
            Err(Errno::PERM) => return,
            made => made.unwrap(),
        };
        for end in [&one, &other] {
            let peer = socket_peercred(end).unwrap();
            assert_eq!((peer.pid, peer.uid.as_raw(), peer.gid.as_raw()), (gone, 1234, 2345));
        }
        assert_eq!(rustix::io::write(&one, b"x"), Ok(1));

        let dir = tempfile::tempdir().unwrap();
        let [listener, client] = [(); 2].map(|()| socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap());
        bind(&listener, &SocketAddrUnix::new(dir.path().join("name")).unwrap()).unwrap();
        assert_eq!(act(&ids, Act::Listen(listener.as_fd(), 3)), Ok(pid));
        let place = std::fs::File::open(dir.path()).unwrap();
        let address = [&(libc::AF_UNIX as u16).to_ne_bytes()[..], b"name\0"].concat();
        let taken = Ids { pid: 1, uid: 3, gid: 4, groups: Vec::new() };
        let acted = act(&taken, Act::Connect(client.as_fd(), Some(place.as_fd()), &address)).unwrap();
        assert_ne!(acted, 1);
        assert_eq!(socket_peercred(&client).unwrap().pid, gone);
        let peer = socket_peercred(accept(&listener).unwrap()).unwrap();
        assert_eq!((peer.pid.as_raw_nonzero().get(), peer.uid.as_raw()), (acted, 3));

        let noted = Some(Credentials { pid, uid: 5, gid: 6 });
        assert_eq!(send(&one, b"", b"x", noted, &[]), Err(Errno::SRCH));
        let there = Present::new(pid).unwrap();
        assert_eq!(send(&one, b"", b"x", noted, &[]), Ok(1));
        drop(there);
        assert!(Present::new(pid).is_ok());
    }
}
