//! Messages of Unix sockets with what travels beside their bytes (unix(7)): the sender's name and credentials, and
//! descriptors.

use super::check;
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Most descriptors that a message can have (SCM_MAX_FD, net/scm.h).
const MOST_RIGHTS: usize = 253;
/// A pidfd of the sender (SO_PASSPIDFD, linux/socket.h).
const SCM_PIDFD: i32 = 4;
/// Room for all control messages that there can be, as words: a security label and times included.
const CONTROL_WORDS: usize = 1024;

/// Process, user and group of a sender. Process 0 if nothing was noted when it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// In our pid namespace.
    pub pid: i32,
    /// Its real user id, unless it said another.
    pub uid: u32,
    /// Its real group id, unless it said another.
    pub gid: u32,
}

/// A message.
#[derive(Debug)]
pub struct Message {
    /// What it says.
    pub bytes: Vec<u8>,
    /// `sun_path` of the sender's address; empty if it has none, or for streams.
    pub from: Vec<u8>,
    /// If SO_PASSCRED is on.
    pub credentials: Option<Credentials>,
    /// Duplicates of the descriptors that it brings.
    pub rights: Vec<OwnedFd>,
    /// There is more of it than there was room for.
    pub is_cut: bool,
    /// Not all of what came beside it was received.
    pub is_robbed: bool,
    /// It was sent out of band: for the caller to note, since who looks is not told.
    pub is_urgent: bool,
}

/// Looks at a message, at most `room` bytes of it, and leaves it there. Does not wait: EAGAIN.
pub fn peek(socket: impl AsFd, room: usize) -> Result<Message, Errno> {
    let mut bytes = vec![0u8; room];
    let mut control = vec![0u64; CONTROL_WORDS];
    let mut name = [0u8; size_of::<libc::sockaddr_un>()];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: room };
    // SAFETY: msghdr is plain data, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = name.len() as libc::socklen_t;
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(control.as_slice());
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: name, bytes and control are as long as the header says, and outlive the call.
    let got = check(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) })?;
    bytes.truncate(got as usize);
    let path = std::mem::offset_of!(libc::sockaddr_un, sun_path);
    let named = (header.msg_namelen as usize).min(name.len());
    let mut message = Message {
        bytes,
        from: name.get(path..named).unwrap_or_default().to_vec(),
        credentials: None,
        rights: Vec::new(),
        is_cut: header.msg_flags & libc::MSG_TRUNC != 0,
        is_robbed: header.msg_flags & libc::MSG_CTRUNC != 0,
        is_urgent: false,
    };
    read_control(&control, header.msg_controllen, &mut message);
    Ok(message)
}

/// Looks at a stream whose bytes were sent in pieces: how many bytes the pieces have that fit into `room` as a whole. The
/// kernel copies them one by one (unix_stream_read_generic, net/unix/af_unix.c), and ends before one that it cannot.
pub fn peek_pieces(socket: impl AsFd, room: usize) -> Result<usize, Errno> {
    let mut bytes = vec![0u8; room];
    let mut iov = [
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: room },
        // No memory: who writes there is told EFAULT.
        libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 << 20 },
    ];
    // SAFETY: msghdr is plain data, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = iov.as_mut_ptr();
    header.msg_iovlen = iov.len();
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: bytes are as long as the first entry says and outlive the call; nothing can be written by the second.
    // Without room for control messages no descriptor is made.
    match check(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) }) {
        Err(Errno::FAULT) => Ok(0),
        got => got.map(|got| got as usize),
    }
}

/// Reads control messages, each with a header of 16 bytes: length with header, level, type.
fn read_control(control: &[u64], len: usize, message: &mut Message) {
    let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).take(len).collect();
    let int = |bytes: &[u8]| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut rest = bytes.as_slice();
    while let Some(head) = rest.first_chunk::<16>() {
        let whole = head.first_chunk::<8>().map_or(0, |len| u64::from_ne_bytes(*len) as usize);
        let Some(value) = rest.get(16..whole) else { return };
        if int(&head[8..]) == libc::SOL_SOCKET {
            match int(&head[12..]) {
                libc::SCM_RIGHTS => message.rights.extend(value.chunks_exact(4).map(|number| {
                    // SAFETY: the kernel has just installed this descriptor for us, and nobody else knows of it.
                    unsafe { OwnedFd::from_raw_fd(int(number)) }
                })),
                // Of the sender: made for us, and of no use.
                SCM_PIDFD if value.len() >= 4 && int(value) >= 0 => {
                    // SAFETY: as above.
                    drop(unsafe { OwnedFd::from_raw_fd(int(value)) });
                }
                libc::SCM_CREDENTIALS if value.len() >= 12 => {
                    let (pid, uid, gid) = (int(value), int(&value[4..]) as u32, int(&value[8..]) as u32);
                    message.credentials = Some(Credentials { pid, uid, gid });
                }
                _ => {}
            }
        }
        rest = rest.get(whole.next_multiple_of(8)..).unwrap_or_default();
    }
}

/// Sends a message, to `to` (`sun_path` of an address) if that is not empty. Does not wait, and raises no signal.
/// Credentials other than the own need CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID; ESRCH if there is no such process.
pub fn send(
    socket: impl AsFd,
    to: &[u8],
    bytes: &[u8],
    credentials: Option<Credentials>,
    rights: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    send_with(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL, socket, to, bytes, credentials, rights)
}

/// The same of a byte that is sent out of band through a stream. EOPNOTSUPP where the kernel lacks CONFIG_AF_UNIX_OOB.
pub fn send_urgent(
    socket: impl AsFd,
    byte: u8,
    credentials: Option<Credentials>,
    rights: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let flags = libc::MSG_OOB | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    send_with(flags, socket, &[], &[byte], credentials, rights).map(drop)
}

fn send_with(
    flags: i32,
    socket: impl AsFd,
    to: &[u8],
    bytes: &[u8],
    credentials: Option<Credentials>,
    rights: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    if rights.len() > MOST_RIGHTS {
        return Err(Errno::INVAL);
    }
    let mut control = Vec::new();
    let mut add = |kind: i32, value: &[i32]| {
        let len = 16 + size_of_val(value);
        control.push(len as u64);
        control.push(u64::from(libc::SOL_SOCKET as u32) | u64::from(kind as u32) << 32);
        let half = |number: &i32| u64::from(*number as u32);
        control.extend(value.chunks(2).map(|pair| half(&pair[0]) | pair.get(1).map_or(0, half) << 32));
    };
    if let Some(Credentials { pid, uid, gid }) = credentials {
        add(libc::SCM_CREDENTIALS, &[pid, uid as i32, gid as i32]);
    }
    if !rights.is_empty() {
        add(libc::SCM_RIGHTS, &rights.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>());
    }
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend_from_slice(to);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    if !to.is_empty() {
        header.msg_name = address.as_mut_ptr().cast();
        header.msg_namelen = address.len() as libc::socklen_t;
    }
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !control.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(control.as_slice());
    }
    // SAFETY: name, bytes and control are as long as the header says and outlive the call, which only reads them.
    check(unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, flags) }).map(|sent| sent as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn pieces_of_a_stream_are_told_apart() {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        for (piece, rights) in [("abc", false), ("de", true), ("f", false)] {
            let rights = if rights { vec![one.as_fd()] } else { vec![] };
            send(&one, b"", piece.as_bytes(), None, &rights).unwrap();
        }
        let fit = |room| peek_pieces(&other, room).unwrap();
        assert_eq!([0, 2, 3, 4, 5].map(fit), [0, 0, 3, 3, 5]);
        assert_eq!(peek(&other, 9).unwrap().bytes, b"abcde");
    }

    #[test]
    fn a_message_is_looked_at_with_all_that_it_brings() {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::sockopt::set_socket_passcred(&other, true).unwrap();
        let own = Credentials {
            pid: std::process::id() as i32,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let (one_fd, other_fd) = (one.as_fd(), other.as_fd());
        assert_eq!(send(&one, b"", b"three", Some(own), &[one_fd, other_fd, one_fd]), Ok(5));
        for _ in 0..2 {
            let message = peek(&other, 3).unwrap();
            assert_eq!((message.bytes.as_slice(), message.is_cut, message.is_robbed), (b"thr".as_slice(), true, false));
            assert_eq!((message.credentials, message.from.len()), (Some(own), 0));
            let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
            let got: Vec<u64> = message.rights.iter().map(|fd| inode(fd.as_fd())).collect();
            assert_eq!(got, [inode(one_fd), inode(other_fd), inode(one_fd)]);
        }
        assert_eq!(peek(&one, 1).unwrap_err(), Errno::AGAIN);
    }
}
