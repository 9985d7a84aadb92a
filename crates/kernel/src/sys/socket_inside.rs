//! What the kernel has of any socket and no call tells, or only by taking it away. Read from the kernel's memory
//! ([`bpf_iter`]).

use super::unix_memory::Reader;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// What waits for the program of a socket to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// The error that SO_ERROR would tell, or 0.
    pub error: i32,
    /// Messages in the queue of errors (MSG_ERRQUEUE).
    pub messages: u32,
}

/// Of a socket of ours. ENOENT or ENOTSUP where the kernel does not describe its types, or has others; EPERM without the
/// right to look.
pub fn waits(socket: BorrowedFd<'_>) -> Result<Waits, Errno> {
    let reader = Reader::new()?;
    let queue = reader.field("sock", "sk_error_queue", 8)?.offset;
    let mut messages = reader.field("sk_buff_head", "qlen", 4)?;
    messages.offset += queue;
    let told = reader.values(reader.sock(socket)?, &[reader.field("sock", "sk_err", 4)?, messages])?;
    let [error, messages] = told[..] else { return Err(Errno::NOTSUP) };
    Ok(Waits { error: error as i32, messages: messages as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn an_error_is_told_and_stays() {
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(nobody.local_addr().unwrap()).unwrap();
        match waits(socket.as_fd()) {
            Ok(waits) => assert_eq!(waits, Waits { error: 0, messages: 0 }),
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        }
        drop(nobody);
        socket.send(b"?").unwrap();
        assert_eq!(waits(socket.as_fd()), Ok(Waits { error: libc::ECONNREFUSED, messages: 0 }));
        assert_eq!(socket.take_error().unwrap().unwrap().raw_os_error(), Some(libc::ECONNREFUSED));
    }
}
