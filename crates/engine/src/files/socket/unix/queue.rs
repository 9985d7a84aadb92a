//! What a Unix socket has not read: `sk-queues.img`, a record and the bytes of
//! each message in their order. CRIU's records have no place for the name and
//! the credentials of the sender; where there are any, those of all messages
//! of a socket go beside it in `cryonaut-messages-FILE.json`.
//!
//! They are looked at without being taken (MSG_PEEK with SO_PEEK_OFF).

use super::super::inet::ready;
use super::{CLOSE, object, state};
use crate::files::{Build, Collect, OpenFile};
use crate::{Error, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{SkPacketEntry, UnixSkEntry};
use cryonaut_kernel::sys::socket;
use cryonaut_kernel::sys::unix_message::{self, Credentials, Message};
use libc::SOL_SOCKET;
use rustix::event::PollFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;

/// Room for a message at first; as much of a stream is one message.
const ROOM: usize = 64 << 10;
/// More than any message can have.
const MOST: usize = 1 << 30;
/// Empty messages in a row that are looked at where they may mean the end.
const EMPTY_IN_A_ROW: usize = 64;

/// What is beside a message's record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// `sun_path` of the sender's address, in hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    from: String,
    /// Process, user and group of the sender, if they were noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credentials: Option<(i32, u32, u32)>,
}

impl Beside {
    fn of(message: &Message) -> Beside {
        let noted = message.credentials.filter(|credentials| credentials.pid != 0);
        Beside {
            from: message.from.iter().map(|byte| format!("{byte:02x}")).collect(),
            credentials: noted.map(|c| (c.pid, c.uid, c.gid)),
        }
    }

    /// `sun_path` of the sender's address.
    pub fn from(&self) -> Option<Vec<u8>> {
        (0..self.from.len()).step_by(2).map(|at| u8::from_str_radix(self.from.get(at..at + 2)?, 16).ok()).collect()
    }

    /// Of the sender.
    pub fn credentials(&self) -> Option<Credentials> {
        self.credentials.map(|(pid, uid, gid)| Credentials { pid, uid, gid })
    }
}

fn name_of(id: u32) -> String {
    format!("messages-{id}")
}

/// Whether it can have received anything.
pub fn has_one(record: &UnixSkEntry) -> bool {
    record.r#type == libc::SOCK_DGRAM as u32 || record.state == state::ESTABLISHED
}

/// Writes down what was not read.
pub fn collect(cx: &Collect<'_>, file: &OpenFile<'_>, record: &UnixSkEntry) -> Result<()> {
    let failed = |e| Error::kernel(file.object(), "look at what it has not read", e);
    let get = |option| socket::get_int(file.file, SOL_SOCKET, option).map_err(failed);
    let set = |option, value| socket::set_int(file.file, SOL_SOCKET, option, value).map_err(failed);
    if !ready(file.file).contains(PollFlags::IN) {
        return Ok(());
    }
    let (offset, tells) = (get(libc::SO_PEEK_OFF)?, get(libc::SO_PASSCRED)?);
    set(libc::SO_PASSCRED, 1)?;
    let read = read_all(file.file, record);
    set(libc::SO_PASSCRED, tells)?;
    set(libc::SO_PEEK_OFF, offset)?;
    let all = read.map_err(failed)?;
    if all.iter().any(|message| !message.rights.is_empty()) {
        return Err(Error::unsupported(
            file.object(),
            "descriptors are on their way to it in a message (SCM_RIGHTS), which cannot be carried yet",
            "let the program receive them before the checkpoint",
        ));
    }
    if all.iter().any(|message| message.is_robbed) {
        return Err(Error::unsupported(file.object(), "a message brings it something unknown", CLOSE));
    }
    let beside: Vec<Beside> = all.iter().map(Beside::of).collect();
    for message in &all {
        let entry = SkPacketEntry { id_for: record.id, length: message.bytes.len() as u32, ..SkPacketEntry::default() };
        cx.images.append(ImageKind::SkQueues, None, &entry, Some(&message.bytes))?;
    }
    if beside.iter().any(|beside| *beside != Beside::default()) {
        cx.images.write_json(&name_of(record.id), &beside)?;
    }
    Ok(())
}

fn is_stream(record: &UnixSkEntry) -> bool {
    record.r#type == libc::SOCK_STREAM as u32
}

fn read_all(socket: BorrowedFd<'_>, record: &UnixSkEntry) -> std::result::Result<Vec<Message>, Errno> {
    let (mut all, mut at, mut room): (Vec<Message>, usize, usize) = (Vec::new(), 0, ROOM);
    // Of a sequence of packets that can receive no more, the end looks like an empty one.
    let may_end = record.shutdown.is_some_and(|how| how & 1 != 0) && record.r#type == libc::SOCK_SEQPACKET as u32;
    loop {
        let offset = i32::try_from(at).map_err(|_| Errno::TOOBIG)?;
        socket::set_int(socket, SOL_SOCKET, libc::SO_PEEK_OFF, offset)?;
        let message = match unix_message::peek(socket, room) {
            Err(Errno::AGAIN) => return Ok(all),
            message => message?,
        };
        if message.is_cut && room < MOST {
            room *= 2;
            continue;
        }
        if message.bytes.is_empty() && is_stream(record) {
            return Ok(all);
        }
        at += message.bytes.len();
        all.push(message);
        let empty = all.iter().rev().take_while(|message| message.bytes.is_empty()).count();
        if may_end && empty == EMPTY_IN_A_ROW {
            all.truncate(all.len() - empty);
            return Ok(all);
        }
    }
}

/// Messages for each socket, by file id.
pub type Queues = HashMap<u32, Vec<(Vec<u8>, Beside)>>;

/// Of all sockets of an image.
pub fn read(cx: &Build<'_>) -> Result<Queues> {
    let mut queues = Queues::new();
    let Some(mut entries) = cx.images.entries_optional(ImageKind::SkQueues, None)? else { return Ok(queues) };
    while let Some((entry, bytes)) = entries.next_tailed::<SkPacketEntry>()? {
        if entry.scm.iter().any(|scm| !scm.rights.is_empty()) {
            let record = cx.record(entry.id_for)?.usk.clone().unwrap_or_default();
            let reason = "the image has descriptors on their way to it (SCM_RIGHTS), which cannot be carried yet";
            return Err(Error::unsupported(object(&record), reason, ""));
        }
        queues.entry(entry.id_for).or_default().push((bytes, Beside::default()));
    }
    for (id, queue) in &mut queues {
        let beside: Vec<Beside> = cx.images.read_json(&name_of(*id))?.unwrap_or_default();
        for ((_, place), beside) in queue.iter_mut().zip(beside) {
            *place = beside;
        }
    }
    Ok(queues)
}
