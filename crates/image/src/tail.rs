//! Messages that raw bytes follow.
//!
//! Some records are a message and then data outside of it: what a pipe holds, a
//! socket's queues. The message tells how much; some kinds fill up to a multiple.

use crate::records;
use crate::shape::Record;

/// A message after which raw bytes lie in the file.
pub trait Tailed: Record {
    /// How many bytes of data follow the message.
    fn tail_len(&self) -> u64;

    /// Data and filling together are a multiple of this many bytes.
    const ALIGN: u64 = 1;

    /// How many bytes of filling follow the data.
    fn padding(&self) -> u64 {
        self.tail_len().wrapping_neg() & (Self::ALIGN - 1)
    }
}

/// `pipes-data.img` and `fifo-data.img`: what the pipe holds.
impl Tailed for records::PipeDataEntry {
    fn tail_len(&self) -> u64 {
        u64::from(self.bytes)
    }
}

/// `sk-queues.img`: one packet of a socket's receive queue.
impl Tailed for records::SkPacketEntry {
    fn tail_len(&self) -> u64 {
        u64::from(self.length)
    }
}

/// `tcp-stream-*.img`: the receive queue, then the send queue.
impl Tailed for records::TcpStreamEntry {
    fn tail_len(&self) -> u64 {
        u64::from(self.inq_len) + u64::from(self.outq_len)
    }
}

/// `bpfmap-data.img`: all keys, then all values.
impl Tailed for records::BpfmapDataEntry {
    fn tail_len(&self) -> u64 {
        u64::from(self.keys_bytes) + u64::from(self.values_bytes)
    }
}

/// `ipcns-sem-*.img`: the values, 16 bits each.
impl Tailed for records::IpcSemEntry {
    fn tail_len(&self) -> u64 {
        u64::from(self.nsems) * 2
    }

    const ALIGN: u64 = 8;
}

/// `ipcns-shm-*.img`: the segment's contents, unless they are pages elsewhere.
impl Tailed for records::IpcShmEntry {
    fn tail_len(&self) -> u64 {
        match self.in_pagemaps() {
            true => 0,
            false => self.size,
        }
    }

    const ALIGN: u64 = 4;
}

/// `ipcns-msg-*.img`: a queue's entry is followed by `qnum` of these.
impl Tailed for records::IpcMsg {
    fn tail_len(&self) -> u64 {
        u64::from(self.msize)
    }

    const ALIGN: u64 = 8;
}

/// `ghost-file-*.img` when the file has holes: one stretch of data.
impl Tailed for records::GhostChunkEntry {
    fn tail_len(&self) -> u64 {
        self.len
    }
}
