//! What the kernel tells of the Unix sockets of a network namespace (sock_diag(7)), and no option of a socket does: who
//! the peer is, who waits to be accepted, what is shut down.

use super::sock_diag::{attributes, dump, word};
use rustix::io::Errno;

/// `struct unix_diag_msg`.
const MESSAGE: usize = 16;
/// Name, file, peer, waiting connections, lengths of queues (linux/unix_diag.h, `UDIAG_SHOW_*`).
const SHOW: u32 = 0x1f;

const NAME: u16 = 0;
const VFS: u16 = 1;
const PEER: u16 = 2;
const ICONS: u16 = 3;
const RQLEN: u16 = 4;
const SHUTDOWN: u16 = 6;

/// A Unix socket, as the kernel tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// `SOCK_STREAM` and so on.
    pub kind: u8,
    /// `TCP_ESTABLISHED` (1), `TCP_CLOSE` (7) or `TCP_LISTEN` (10).
    pub state: u8,
    /// Its inode number.
    pub inode: u32,
    /// `sun_path` of its address: a path with its zero, or a zero and an abstract name. Empty without an address.
    pub name: Vec<u8>,
    /// The inode number of the file that it is bound to.
    pub file: Option<u32>,
    /// The inode number of its peer; 0 if that one has been closed.
    pub peer: Option<u32>,
    /// Of a listening socket, those who have connected and wait: the inode numbers of their own sockets.
    pub waiting: Vec<u32>,
    /// Bytes that can be read; of a listening socket, how many wait.
    pub received: u32,
    /// Memory of what was sent and is not read; of a listening socket, how many may wait.
    pub sent: u32,
    /// Which directions are shut down: 1 for receiving, 2 for sending.
    pub shutdown: u8,
}

/// All Unix sockets of our network namespace. ENOENT where the kernel lacks CONFIG_UNIX_DIAG.
pub fn all() -> Result<Vec<UnixSocket>, Errno> {
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
    for number in [u32::MAX, 0, SHOW, u32::MAX, u32::MAX] {
        request.extend_from_slice(&number.to_ne_bytes());
    }
    dump(&request, MESSAGE, socket_of)
}

fn socket_of(body: &[u8]) -> UnixSocket {
    let mut socket = UnixSocket { kind: body[1], state: body[2], inode: word(body, 4), ..UnixSocket::default() };
    for (kind, value) in attributes(&body[MESSAGE..]) {
        match (kind, value.len()) {
            (NAME, _) => socket.name = value.to_vec(),
            (VFS, 4..) => socket.file = Some(word(value, 0)),
            (PEER, 4..) => socket.peer = Some(word(value, 0)),
            (ICONS, _) => socket.waiting = value.chunks_exact(4).map(|number| word(number, 0)).collect(),
            (RQLEN, 8..) => (socket.received, socket.sent) = (word(value, 0), word(value, 4)),
            (SHUTDOWN, 1..) => socket.shutdown = value[0],
            _ => {}
        }
    }
    socket
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn inode(socket: impl std::os::fd::AsFd) -> u32 {
        rustix::fs::fstat(socket).unwrap().st_ino as u32
    }

    #[test]
    fn pairs_listeners_and_who_waits_are_told() {
        let (one, other) = UnixStream::pair().unwrap();
        one.shutdown(std::net::Shutdown::Write).unwrap();
        let (alone, gone) = UnixStream::pair().unwrap();
        drop(gone);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let all = match all() {
            Ok(all) => all,
            // A kernel without it.
            Err(Errno::NOENT) => return,
            Err(errno) => panic!("{errno}"),
        };
        let find = |number| all.iter().find(|socket| socket.inode == number).unwrap();
        let told = find(inode(&other));
        assert_eq!((told.peer, told.shutdown, told.state), (Some(inode(&one)), 1, 1));
        let told = find(inode(&alone));
        assert_eq!((told.peer, told.shutdown), (Some(0), 3));
        let told = find(inode(&listener));
        assert_eq!((told.state, told.waiting.as_slice()), (10, [inode(&client)].as_slice()));
        assert_eq!(told.name, [std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()), b"\0"].concat());
        let file = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(told.file, Some(std::os::unix::fs::MetadataExt::ino(&file) as u32));
    }
}
