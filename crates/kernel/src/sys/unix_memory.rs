//! What waits in a socket to be read, mostly one of Unix, as it stands in the kernel's memory ([`bpf_iter`]): for what no
//! call tells.

use super::bpf_iter::{self, Base, Block, Field};
use super::bpf_memory;
use super::btf::Btf;
use super::direct_map::DirectMap;
use rustix::io::Errno;
use std::cell::OnceCell;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Reads structures of the kernel.
pub(super) struct Reader {
    pub btf: &'static Btf,
    pub own: i32,
    map: OnceCell<DirectMap>,
}

/// A piece of what was sent (struct sk_buff).
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffer {
    pub address: u64,
    /// The socket that it came with, of one that listens: a connection.
    pub sock: u64,
    /// Bytes of it in all, and how many of them are not at `data`.
    pub len: u64,
    pub paged: u64,
    pub data: u64,
    /// Where it says where the others are (struct skb_shared_info).
    pub shared: u64,
    /// Where the header of its network begins, if it has one.
    pub network: u64,
    /// How many were read already, of a stream.
    pub consumed: u64,
    /// Its sender: struct pid, user and group.
    pub sender: (u64, u32, u32),
    /// The descriptors that it brings (struct scm_fp_list), or 0.
    pub rights: u64,
}

impl Reader {
    pub fn new() -> Result<Reader, Errno> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        Ok(Reader { btf: Btf::running()?, own, map: OnceCell::new() })
    }

    pub fn field(&self, structure: &str, name: &str, len: u8) -> Result<Field, Errno> {
        self.btf.field(structure, name).map(|offset| Field { offset, len }).ok_or(Errno::NOTSUP)
    }

    /// A field in a field.
    pub fn inner(&self, (structure, outer, kind, name): (&str, &str, &str, &str), len: u8) -> Result<Field, Errno> {
        let inner = self.field(kind, name, len)?;
        Ok(Field { offset: self.field(structure, outer, 8)?.offset + inner.offset, ..inner })
    }

    /// Fields of some structures, each by its address.
    pub fn read(&self, bases: &[u64], fields: &[Field]) -> Result<Vec<Vec<u64>>, Errno> {
        let place = |base: &u64| fields.iter().map(|field| (base + u64::from(field.offset), 1)).collect::<Vec<_>>();
        let places: Vec<(u64, usize)> = bases.iter().flat_map(place).collect();
        let words = bpf_memory::words(self.btf, self.own, &places)?;
        let value = |(word, field): (&Vec<u64>, &Field)| word[0] & u64::MAX >> (64 - 8 * u32::from(field.len.max(1)));
        let one = |words: &[Vec<u64>]| words.iter().zip(fields).map(value).collect();
        Ok(words.chunks_exact(fields.len()).map(one).collect())
    }

    pub fn size(&self, structure: &str) -> Result<u64, Errno> {
        self.btf.size(structure).map(u64::from).ok_or(Errno::NOTSUP)
    }

    pub fn values(&self, at: u64, fields: &[Field]) -> Result<Vec<u64>, Errno> {
        let words = bpf_iter::task_fields(self.btf, self.own, Base::Address(at), fields)?;
        Ok(words[2..].to_vec())
    }

    pub fn value(&self, at: u64, structure: &str, name: &str, len: u8) -> Result<u64, Errno> {
        self.values(at, &[self.field(structure, name, len)?]).map(|values| values[0])
    }

    pub fn bytes(&self, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        self.pieces(&[(at, len)])
    }

    /// Pieces of memory, one behind the other.
    pub fn pieces(&self, places: &[(u64, usize)]) -> Result<Vec<u8>, Errno> {
        let words: Vec<(u64, usize)> = places.iter().map(|(at, len)| (*at, len.div_ceil(8))).collect();
        let told = bpf_memory::words(self.btf, self.own, &words)?;
        let bytes = |(words, (_, len)): (Vec<u64>, &(u64, usize))| {
            words.iter().flat_map(|word| word.to_le_bytes()).take(*len).collect::<Vec<u8>>()
        };
        Ok(told.into_iter().zip(places).flat_map(bytes).collect())
    }

    /// The socket (struct sock) of a descriptor of ours.
    pub fn sock(&self, socket: BorrowedFd<'_>) -> Result<u64, Errno> {
        let sk = self.field("socket", "sk", 8)?;
        Ok(bpf_iter::fields(self.btf, (self.own, socket.as_raw_fd()), Base::Behind, &[sk])?[2])
    }

    /// What a socket has received, first come first.
    pub fn received(&self, sock: u64) -> Result<Vec<Buffer>, Errno> {
        self.queue(sock, "sk_receive_queue")
    }

    /// What is in a queue of a socket.
    pub fn queue(&self, sock: u64, queue: &str) -> Result<Vec<Buffer>, Errno> {
        let parts = |name, len| {
            let beside = self.field("sk_buff", "cb", 8)?.offset;
            self.field("unix_skb_parms", name, len).map(|field| Field { offset: beside + field.offset, len })
        };
        let whole = |name, len| self.field("sk_buff", name, len);
        let [len, paged, data, head, end, owner, network] = [
            whole("len", 4)?,
            whole("data_len", 4)?,
            whole("data", 8)?,
            whole("head", 8)?,
            whole("end", 4)?,
            whole("sk", 8)?,
            whole("network_header", 2)?,
        ];
        let [pid, uid, gid, rights, consumed] =
            [parts("pid", 8)?, parts("uid", 4)?, parts("gid", 4)?, parts("fp", 8)?, parts("consumed", 4)?];
        let fields = [len, paged, data, head, end, owner, network, pid, uid, gid, rights, consumed];
        let most = fields.iter().map(|field| field.offset as usize + 8).max().unwrap_or_default();
        // The head of the list begins as its members do.
        let queue = sock + u64::from(self.field("sock", queue, 8)?.offset);
        let next = self.field("sk_buff", "next", 8)?;
        let first = self.values(queue, &[next])?[0];
        let all = bpf_iter::blocks(self.btf, self.own, (first, queue), next.offset, most)?;
        let buffer = |block: &Block| {
            let value = |field| block.value(field).ok_or(Errno::NOTSUP);
            Ok(Buffer {
                address: block.address,
                sock: value(owner)?,
                len: value(len)?,
                paged: value(paged)?,
                data: value(data)?,
                shared: value(head)? + value(end)?,
                network: value(head)? + value(network)?,
                consumed: value(consumed)?,
                sender: (value(pid)?, value(uid)? as u32, value(gid)? as u32),
                rights: value(rights)?,
            })
        };
        all.iter().map(buffer).collect()
    }

    /// What a buffer says. `None` where it is out of reach.
    pub fn text(&self, buffer: &Buffer) -> Result<Option<Vec<u8>>, Errno> {
        let linear = buffer.len.checked_sub(buffer.paged).ok_or(Errno::BADMSG)?;
        let mut places = vec![(buffer.data, linear as usize)];
        if buffer.paged > 0 {
            match self.fragments(buffer) {
                Ok(more) => places.extend(more),
                // A kernel that has it elsewhere.
                Err(Errno::NOTSUP) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
        let text = self.pieces(&places)?;
        Ok(Some(text).filter(|text| text.len() as u64 == buffer.len))
    }

    /// Where the bytes are that are in pages of their own.
    fn fragments(&self, buffer: &Buffer) -> Result<Vec<(u64, usize)>, Errno> {
        let map = match self.map.get() {
            Some(map) => *map,
            None => {
                let found = DirectMap::find(self)?;
                *self.map.get_or_init(|| found)
            }
        };
        let count = self.value(buffer.shared, "skb_shared_info", "nr_frags", 1)?;
        let first = buffer.shared + u64::from(self.field("skb_shared_info", "frags", 8)?.offset);
        let parts = [
            self.field("skb_frag", "netmem", 8)?,
            self.field("skb_frag", "len", 4)?,
            self.field("skb_frag", "offset", 4)?,
        ];
        let size = self.size("skb_frag")?;
        let one = |n| {
            let [page, len, offset] = self.values(first + n * size, &parts)?[..] else { return Err(Errno::NOTSUP) };
            // A mark says that it is the memory of a device.
            if page & 1 != 0 { Err(Errno::NOTSUP) } else { Ok((map.page(page) + offset, len as usize)) }
        };
        (0..count).map(one).collect()
    }

    /// The open files (struct file) that a message brings.
    pub fn files(&self, rights: u64) -> Result<Vec<u64>, Errno> {
        if rights == 0 {
            return Ok(Vec::new());
        }
        let count = self.value(rights, "scm_fp_list", "count", 2)?;
        let at = rights + u64::from(self.field("scm_fp_list", "fp", 8)?.offset);
        let bytes = self.bytes(at, 8 * count as usize)?;
        Ok(bytes
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
            .collect())
    }

    /// Which of them is the urgent byte that was not read; 0 if there is none, or the kernel knows no such.
    pub fn urgent(&self, sock: u64) -> Result<u64, Errno> {
        match self.field("unix_sock", "oob_skb", 8) {
            Ok(field) => self.values(sock, &[field]).map(|values| values[0]),
            Err(_) => Ok(0),
        }
    }
}

/// A piece of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Bytes that were not read. None: there was a byte that was sent out of band and read before what was in front of it,
    /// and this is its mark.
    pub len: usize,
    /// The byte that was sent out of band last, and not read.
    pub is_urgent: bool,
}

/// The pieces that a stream has received and not read. ENOENT or ENOTSUP where the kernel does not describe its types, or
/// has others; EPERM without the right to look.
pub fn pieces(stream: BorrowedFd<'_>) -> Result<Vec<Piece>, Errno> {
    let reader = Reader::new()?;
    let sock = reader.sock(stream)?;
    let urgent = reader.urgent(sock)?;
    let piece = |buffer: Buffer| Piece {
        len: buffer.len.saturating_sub(buffer.consumed) as usize,
        is_urgent: buffer.address == urgent,
    };
    Ok(reader.received(sock)?.into_iter().map(piece).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvFlags, SendFlags, recv, send};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn urgent_bytes_and_their_marks_are_told() {
        let (one, other) = UnixStream::pair().unwrap();
        let say = |text: &str, flags| send(&one, text.as_bytes(), flags).unwrap();
        say("before", SendFlags::empty());
        // A kernel without it (CONFIG_AF_UNIX_OOB).
        if send(&one, b"!", SendFlags::OOB).is_err() {
            return;
        }
        assert_eq!(recv(&other, &mut [0u8; 1][..], RecvFlags::OOB).unwrap().0, 1);
        say("behind", SendFlags::empty());
        say("and?", SendFlags::OOB);
        recv(&other, &mut [0u8; 2][..], RecvFlags::empty()).unwrap();
        let all = match pieces(other.as_fd()) {
            Ok(all) => all,
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        };
        let is = |len, is_urgent| Piece { len, is_urgent };
        assert_eq!(all, [is(4, false), is(0, false), is(6, false), is(3, false), is(1, true)]);
    }
}
