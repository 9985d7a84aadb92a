//! Connections that wait to be accepted by a listening Unix socket, each a socket that no process has: who has connected,
//! as whom, and what was sent since. No call tells of it, so it is read from the kernel's memory ([`bpf_iter`]).

use super::bpf_iter::{self, Base, Field};
use super::btf::Btf;
use super::unix_message::Credentials;
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// More than can wait (SOMAXCONN is 4096), and more messages than a socket can have.
const MOST: usize = 1 << 20;
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
    /// What it says; `None` for bytes that are out of reach: those of a call that has sent more than some 3.6 KiB.
    pub bytes: Option<Vec<u8>>,
    /// Who has sent it. Process 0 if nothing was noted.
    pub credentials: Credentials,
    /// It brings descriptors.
    pub has_rights: bool,
}

/// Reads structures of the kernel.
struct Reader {
    btf: &'static Btf,
    own: i32,
}

impl Reader {
    fn field(&self, structure: &str, name: &str, len: u8) -> Result<Field, Errno> {
        self.btf.field(structure, name).map(|offset| Field { offset, len }).ok_or(Errno::NOTSUP)
    }

    fn values(&self, at: u64, fields: &[Field]) -> Result<Vec<u64>, Errno> {
        let words = bpf_iter::task_fields(self.btf, self.own, Base::Address(at), fields)?;
        Ok(words[2..].to_vec())
    }

    fn value(&self, at: u64, structure: &str, name: &str, len: u8) -> Result<u64, Errno> {
        self.values(at, &[self.field(structure, name, len)?]).map(|values| values[0])
    }

    fn bytes(&self, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let words = bpf_iter::memory(self.btf, self.own, &[(at, len.div_ceil(8))])?.concat();
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(len);
        Ok(bytes)
    }

    /// The buffers that a socket (struct sock) has received.
    fn received(&self, sock: u64) -> Result<Vec<u64>, Errno> {
        let queue = sock + u64::from(self.field("sock", "sk_receive_queue", 8)?.offset);
        let next = self.field("sk_buff", "next", 8)?;
        let mut all = Vec::new();
        // The head of the list begins as its members do.
        let mut at = self.values(queue, &[next])?[0];
        while at != queue && at != 0 {
            if all.len() == MOST {
                return Err(Errno::NOTSUP);
            }
            all.push(at);
            at = self.values(at, &[next])?[0];
        }
        Ok(all)
    }

    /// A process as we call it, by its struct pid.
    fn pid(&self, at: u64) -> Result<i32, Errno> {
        if at == 0 {
            return Ok(0);
        }
        let (level, numbers) = (self.field("pid", "level", 4)?, self.field("pid", "numbers", 8)?);
        let (nr, ns) = (self.field("upid", "nr", 4)?, self.field("upid", "ns", 8)?);
        let size = self.btf.size("upid").ok_or(Errno::NOTSUP)?;
        let level = self.values(at, &[level])?[0].min(32);
        // The one whose namespace is ours: that of the reading task.
        let own = self.own_namespace()?;
        for depth in 0..=level {
            let upid = at + u64::from(numbers.offset) + depth * u64::from(size);
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
        let size = u64::from(self.btf.size("upid").ok_or(Errno::NOTSUP)?);
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
        let messages = self.received(sock)?.into_iter().map(|buffer| self.message(buffer)).collect::<Result<_, _>>()?;
        Ok(Waiting { client, credentials: Credentials { pid, uid: uid as u32, gid: gid as u32 }, groups, messages })
    }

    fn message(&self, buffer: u64) -> Result<Sent, Errno> {
        let names = [("len", 4), ("data_len", 4), ("data", 8)];
        let names = names.map(|(name, len)| self.field("sk_buff", name, len));
        let names: Vec<Field> = names.into_iter().collect::<Result<_, _>>()?;
        let [len, paged, data] = self.values(buffer, &names)?[..] else { return Err(Errno::NOTSUP) };
        let beside = buffer + u64::from(self.field("sk_buff", "cb", 8)?.offset);
        let names = [("pid", 8), ("uid", 4), ("gid", 4), ("fp", 8)];
        let names = names.map(|(name, len)| self.field("unix_skb_parms", name, len));
        let names: Vec<Field> = names.into_iter().collect::<Result<_, _>>()?;
        let [pid, uid, gid, rights] = self.values(beside, &names)?[..] else { return Err(Errno::NOTSUP) };
        let bytes = if paged == 0 { Some(self.bytes(data, len as usize)?) } else { None };
        let credentials = Credentials { pid: self.pid(pid)?, uid: uid as u32, gid: gid as u32 };
        Ok(Sent { bytes, credentials, has_rights: rights != 0 })
    }
}

/// The connections that wait at a listening socket, first come first. ENOENT or ENOTSUP where the kernel does not describe
/// its types, or has others; EPERM without the right to look.
pub fn at(listener: BorrowedFd<'_>) -> Result<Vec<Waiting>, Errno> {
    let reader = Reader { btf: Btf::running()?, own: rustix::process::getpid().as_raw_nonzero().get() };
    let sk = reader.field("socket", "sk", 8)?;
    let sock = bpf_iter::fields(reader.btf, (reader.own, listener.as_raw_fd()), Base::Behind, &[sk])?[2];
    let mut all = Vec::new();
    for buffer in reader.received(sock)? {
        all.push(reader.connection(reader.value(buffer, "sk_buff", "sk", 8)?)?);
    }
    Ok(all)
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
        send(&one, b"", &vec![0; 20_000], None, &[]).unwrap();
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
        assert_eq!((all[0].messages[1].has_rights, all[0].messages[2].bytes.as_ref()), (true, None));
        // The other end is kept by the message.
        assert_eq!(all[1].messages[0].bytes.as_deref(), Some(b"farewell".as_slice()));
        let mut groups = rustix::process::getgroups().unwrap().iter().map(|g| g.as_raw()).collect::<Vec<_>>();
        groups.sort_unstable();
        assert_eq!(all[0].groups, groups);
    }
}
