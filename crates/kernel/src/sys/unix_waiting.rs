//! Connections that wait to be accepted by a listening Unix socket, each a socket that no process has: who has connected,
//! as whom, and what was sent since. No call tells of it, so it is read from the kernel's memory ([`bpf_iter`]).

use super::bpf_iter::{self, Base};
use super::btf::Btf;
use super::unix_memory::{Buffer, Reader};
use super::unix_message::Credentials;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Groups that are read: more have not been seen, and a process may have 65,536.
const MOST_GROUPS: u32 = 1 << 16;

/// A connection that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The inode number of the other end; 0 if that has been closed.
    pub client: u32,
    /// As whom it has connected, which its peer will be told (SO_PEERCRED).
    pub credentials: Credentials,
    /// The supplementary groups of who has connected.
    pub groups: Vec<u32>,
    /// What was sent.
    pub messages: Vec<Sent>,
}

/// A message that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// What it says; `None` for bytes that are out of reach, as those of more than some 3.6 KiB in one call may be.
    pub bytes: Option<Vec<u8>>,
    /// Who has sent it. Process 0 if nothing was noted.
    pub credentials: Credentials,
    /// The open files that it brings, by their addresses in the kernel ([`holdings`]).
    pub rights: Vec<u64>,
    /// It is a byte that was sent out of band.
    pub is_urgent: bool,
}

impl Reader {
    /// A process as we call it, by its struct pid.
    fn pid(&self, at: u64) -> Result<i32, Errno> {
        if at == 0 {
            return Ok(0);
        }
        let (level, numbers) = (self.field("pid", "level", 4)?, self.field("pid", "numbers", 8)?);
        let (nr, ns) = (self.field("upid", "nr", 4)?, self.field("upid", "ns", 8)?);
        let size = self.size("upid")?;
        let level = self.values(at, &[level])?[0].min(32);
        // The one whose namespace is ours: that of the reading task.
        let own = self.own_namespace()?;
        for depth in 0..=level {
            let upid = at + u64::from(numbers.offset) + depth * size;
            let [number, namespace] = self.values(upid, &[nr, ns])?[..] else { return Err(Errno::NOTSUP) };
            if namespace == own {
                return Ok(number as i32);
            }
        }
        Ok(0)
    }

    fn own_namespace(&self) -> Result<u64, Errno> {
        let thread_pid = self.field("task_struct", "thread_pid", 8)?;
        let pid = bpf_iter::task_fields(self.btf, self.own, Base::Task, &[thread_pid])?[2];
        let level = self.value(pid, "pid", "level", 4)?;
        let size = self.size("upid")?;
        let numbers = u64::from(self.field("pid", "numbers", 8)?.offset);
        self.value(pid + numbers + level * size, "upid", "ns", 8)
    }

    /// Who has connected: the other end, whose peer an accepted socket is told of.
    fn connection(&self, sock: u64) -> Result<Waiting, Errno> {
        let peer = self.value(sock, "unix_sock", "peer", 8)?;
        let socket = if peer == 0 { 0 } else { self.value(peer, "sock", "sk_socket", 8)? };
        let client = match socket {
            0 => 0,
            _ => {
                let inode = self.field("socket_alloc", "vfs_inode", 8)?.offset
                    - self.field("socket_alloc", "socket", 8)?.offset;
                self.value(socket + u64::from(inode), "inode", "i_ino", 8)? as u32
            }
        };
        let pid = self.pid(self.value(sock, "sock", "sk_peer_pid", 8)?)?;
        let cred = self.value(sock, "sock", "sk_peer_cred", 8)?;
        let names =
            [self.field("cred", "euid", 4)?, self.field("cred", "egid", 4)?, self.field("cred", "group_info", 8)?];
        let [uid, gid, info] = self.values(cred, &names)?[..] else { return Err(Errno::NOTSUP) };
        let count = (self.value(info, "group_info", "ngroups", 4)? as u32).min(MOST_GROUPS);
        let list = info + u64::from(self.field("group_info", "gid", 8)?.offset);
        let groups = self.bytes(list, 4 * count as usize)?;
        let groups = groups.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])).collect();
        let urgent = self.urgent(sock)?;
        let messages = self.received(sock)?;
        let messages = messages.iter().map(|buffer| self.message(buffer, urgent)).collect::<Result<_, _>>()?;
        Ok(Waiting { client, credentials: Credentials { pid, uid: uid as u32, gid: gid as u32 }, groups, messages })
    }

    fn message(&self, buffer: &Buffer, urgent: u64) -> Result<Sent, Errno> {
        let (pid, uid, gid) = buffer.sender;
        let credentials = Credentials { pid: self.pid(pid)?, uid, gid };
        Ok(Sent {
            bytes: self.text(buffer)?,
            credentials,
            rights: self.files(buffer.rights)?,
            is_urgent: buffer.address == urgent,
        })
    }
}

/// The connections that wait at a listening socket, first come first. ENOENT or ENOTSUP where the kernel does not describe
/// its types, or has others; EPERM without the right to look.
pub fn at(listener: BorrowedFd<'_>) -> Result<Vec<Waiting>, Errno> {
    let reader = Reader::new()?;
    let waiting = reader.received(reader.sock(listener)?)?;
    waiting.iter().map(|buffer| reader.connection(buffer.sock)).collect()
}

/// The descriptors of a task, each with the address of its open file in the kernel.
pub fn holdings(tid: i32) -> Result<Vec<(u64, i32)>, Errno> {
    let all = bpf_iter::descriptors(Btf::running()?, tid)?;
    Ok(all.into_iter().map(|one| (one.file, one.fd)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::unix_message::send;
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn who_waits_and_what_was_sent_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let all = match at(listener.as_fd()) {
            Ok(all) => all,
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        };
        assert_eq!(all, []);
        let (one, two) = (UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap());
        let long: Vec<u8> = (0..3000).map(|n| n as u8).collect();
        send(&one, b"", &long, None, &[]).unwrap();
        send(&one, b"", b"two", None, &[two.as_fd()]).unwrap();
        let longer: Vec<u8> = (0..150_000).map(|n| (n % 251) as u8).collect();
        send(&one, b"", &longer, None, &[]).unwrap();
        send(&two, b"", b"farewell", None, &[]).unwrap();
        drop(two);
        let all = at(listener.as_fd()).unwrap();
        let own = Credentials {
            pid: std::process::id() as i32,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        let inode = rustix::fs::fstat(&one).unwrap().st_ino as u32;
        assert_eq!((all.len(), all[0].client, all[0].credentials), (2, inode, own));
        assert_eq!(all[0].messages[0].bytes.as_ref(), Some(&long));
        // Noted as long as nobody has accepted.
        assert_eq!(all[0].messages[0].credentials.pid, own.pid);
        let own_fds = holdings(own.pid).unwrap();
        let brought = own_fds.iter().find(|(file, _)| [*file] == all[0].messages[1].rights[..]);
        // What has been closed since has no number.
        assert!(brought.is_none() && !all[0].messages[1].rights.is_empty());
        let sent: Vec<u8> = all[0].messages[2..].iter().flat_map(|sent| sent.bytes.clone().unwrap()).collect();
        assert_eq!(sent, longer);
        // The other end is kept by the message.
        assert_eq!(all[1].messages[0].bytes.as_deref(), Some(b"farewell".as_slice()));
        let mut groups = rustix::process::getgroups().unwrap().iter().map(|g| g.as_raw()).collect::<Vec<_>>();
        groups.sort_unstable();
        assert_eq!(all[0].groups, groups);
    }
}
