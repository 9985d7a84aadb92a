//! What a Unix socket has not read: `sk-queues.img`, a record and the bytes of
//! each message in their order. CRIU's records have no place for the name and
//! the credentials of the sender; where there are any, those of all messages
//! of a socket go beside it in `cryonaut-messages-FILE.json`.
//!
//! They are looked at without being taken (MSG_PEEK with SO_PEEK_OFF). Who looks
//! gets duplicates of the descriptors that a message brings (SCM_RIGHTS): those
//! are described like any other file, when the files of all processes are known
//! ([`collect_rights`]), and may be Unix sockets with messages of their own.

use super::super::inet::ready;
use super::{CLOSE, state};
use crate::files::{Build, Collect, OpenFile};
use crate::users;
use crate::{Error, Result, hexadecimal};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{ScmEntry, SkPacketEntry, UnixSkEntry};
use cryonaut_kernel::sys::socket::{self, so};
use cryonaut_kernel::sys::unix_memory;
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
    /// Sent out of band. Without a byte: that one has been read before what is in front of it, and this is its mark.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    urgent: bool,
}

/// As the tree has its users.
fn of(Credentials { pid, uid, gid }: Credentials) -> (i32, u32, u32) {
    let (uid, gid) = users::inside((uid, gid));
    (pid, uid, gid)
}

impl Beside {
    fn of(message: &Message) -> Beside {
        let noted = message.credentials.filter(|credentials| credentials.pid != 0);
        let credentials = noted.map(of);
        Beside { from: hexadecimal::encode(&message.from), credentials, urgent: message.is_urgent }
    }

    /// Of a message whose sender has no name of interest.
    pub fn by(sender: Credentials, urgent: bool) -> Beside {
        let credentials = (sender.pid != 0).then(|| of(sender));
        Beside { from: String::new(), credentials, urgent }
    }

    /// `sun_path` of the sender's address. `None` if it is not hexadecimal.
    pub fn from(&self) -> Option<Vec<u8>> {
        hexadecimal::decode(&self.from)
    }

    /// Whether it was sent out of band.
    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Of the sender.
    pub fn credentials(&self) -> Option<Credentials> {
        let (pid, uid, gid) = self.credentials?;
        let (uid, gid) = users::outside((uid, gid));
        Some(Credentials { pid, uid, gid })
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
pub fn collect(cx: &mut Collect<'_>, file: &OpenFile<'_>, record: &UnixSkEntry) -> Result<()> {
    let failed = |e| Error::kernel(file.object(), "look at what it has not read", e);
    let get = |option| socket::get_int(file.file, SOL_SOCKET, option).map_err(failed);
    let set = |option, value| socket::set_int(file.file, SOL_SOCKET, option, value).map_err(failed);
    if !ready(file.file).contains(PollFlags::IN) {
        return Ok(());
    }
    let (offset, tells, brings) = (get(libc::SO_PEEK_OFF)?, get(libc::SO_PASSCRED)?, get(so::PASSRIGHTS).unwrap_or(1));
    set(libc::SO_PASSCRED, 1)?;
    if brings == 0 {
        set(so::PASSRIGHTS, 1)?;
    }
    let read = read_with_marks(file, record);
    if brings == 0 {
        set(so::PASSRIGHTS, 0)?;
    }
    set(libc::SO_PASSCRED, tells)?;
    set(libc::SO_PEEK_OFF, offset)?;
    let all = read?;
    if all.iter().any(|message| message.is_robbed) {
        return Err(Error::unsupported(
            file.object(),
            "a message brings it something unknown, or more descriptors than this program may have (RLIMIT_NOFILE)",
            CLOSE,
        ));
    }
    if all.iter().all(|message| message.rights.is_empty()) {
        return write(cx, record.id, &all, &[]);
    }
    cx.sockets.unix.on_their_way.push_back(Loaded { id: record.id, inode: record.ino, all });
    Ok(())
}

/// What a socket has not read, with descriptors.
#[derive(Debug)]
pub struct Loaded {
    id: u32,
    inode: u32,
    all: Vec<Message>,
}

/// Writes down messages with descriptors, and what files those are.
pub fn collect_rights(cx: &mut Collect<'_>) -> Result<()> {
    while let Some(Loaded { id, inode, mut all }) = cx.sockets.unix.on_their_way.pop_front() {
        let mut rights = Vec::with_capacity(all.len());
        for message in &mut all {
            let files = std::mem::take(&mut message.rights).into_iter();
            rights.push(files.map(|file| cx.on_its_way(file, inode)).collect::<Result<Vec<u32>>>()?);
        }
        write(cx, id, &all, &rights)?;
    }
    Ok(())
}

fn write(cx: &Collect<'_>, id: u32, all: &[Message], rights: &[Vec<u32>]) -> Result<()> {
    let beside: Vec<Beside> = all.iter().map(Beside::of).collect();
    for (at, message) in all.iter().enumerate() {
        let mut entry = SkPacketEntry { id_for: id, length: message.bytes.len() as u32, ..SkPacketEntry::default() };
        if let Some(rights) = rights.get(at).filter(|rights| !rights.is_empty()) {
            entry.scm.push(ScmEntry { r#type: libc::SCM_RIGHTS as u32, rights: rights.clone() });
        }
        cx.images.append(ImageKind::SkQueues, None, &entry, Some(&message.bytes))?;
    }
    if beside.iter().any(|beside| *beside != Beside::default()) {
        cx.images.write_json(&name_of(id), &beside)?;
    }
    Ok(())
}

fn is_stream(record: &UnixSkEntry) -> bool {
    record.r#type == libc::SOCK_STREAM as u32
}

/// Reads all, with what was sent out of band. Where that is, stands in the kernel's memory, which is looked at where there
/// may be some: where the kernel says so, or reading ends before the end.
fn read_with_marks(file: &OpenFile<'_>, record: &UnixSkEntry) -> Result<Vec<Message>> {
    let failed = |e| Error::kernel(file.object(), "look at what it has not read", e);
    if !is_stream(record) {
        return read_all(file.file, record, &[]).map_err(failed);
    }
    let is_certain = ready(file.file).contains(PollFlags::PRI) || socket::is_at_mark(file.file).unwrap_or_default();
    if !is_certain {
        let all = read_all(file.file, record, &[]).map_err(failed)?;
        if all.len() < 2 {
            return Ok(all);
        }
        let marks = marks(file.file).unwrap_or_default();
        return if marks.is_empty() { Ok(all) } else { read_inline(file.file, record, &marks).map_err(failed) };
    }
    let marks = marks(file.file).map_err(|errno| {
        Error::unsupported(
            file.object(),
            format!("it has urgent data (MSG_OOB) that was not read, and where that is cannot be seen ({errno})"),
            "this needs CAP_BPF and CAP_PERFMON, and a kernel with /sys/kernel/btf/vmlinux; or let the program read it",
        )
    })?;
    read_inline(file.file, record, &marks).map_err(failed)
}

/// Where in a stream a byte was sent out of band, and whether it is there still.
type Mark = (usize, bool);

fn marks(socket: BorrowedFd<'_>) -> std::result::Result<Vec<Mark>, Errno> {
    let mut at = 0;
    let mut marks = Vec::new();
    for piece in unix_memory::pieces(socket)? {
        if piece.is_urgent || piece.len == 0 {
            marks.push((at, piece.is_urgent));
        }
        at += piece.len;
    }
    Ok(marks)
}

/// Who looks gets an urgent byte in its place, as with SO_OOBINLINE.
fn read_inline(
    socket: BorrowedFd<'_>,
    record: &UnixSkEntry,
    marks: &[Mark],
) -> std::result::Result<Vec<Message>, Errno> {
    let before = socket::get_int(socket, SOL_SOCKET, libc::SO_OOBINLINE)?;
    socket::set_int(socket, SOL_SOCKET, libc::SO_OOBINLINE, 1)?;
    let read = read_all(socket, record, marks);
    socket::set_int(socket, SOL_SOCKET, libc::SO_OOBINLINE, before)?;
    read
}

/// What is to say that there was an urgent byte.
fn mark() -> Message {
    Message {
        bytes: Vec::new(),
        from: Vec::new(),
        credentials: None,
        rights: Vec::new(),
        is_cut: false,
        is_robbed: false,
        is_urgent: true,
    }
}

fn read_all(
    socket: BorrowedFd<'_>,
    record: &UnixSkEntry,
    mut marks: &[Mark],
) -> std::result::Result<Vec<Message>, Errno> {
    let (mut all, mut at, mut room): (Vec<Message>, usize, usize) = (Vec::new(), 0, ROOM);
    // Of a sequence of packets that can receive no more, the end looks like an empty one.
    let may_end = record.shutdown.is_some_and(|how| how & 1 != 0) && record.r#type == libc::SOCK_SEQPACKET as u32;
    // Behind what a stream has, a look would take an error away.
    let most = if is_stream(record) { rustix::io::ioctl_fionread(socket)? as usize } else { usize::MAX };
    loop {
        // No look goes beyond a mark.
        let mut is_urgent = false;
        let mut within = room;
        if let Some(((place, is_there), rest)) = marks.split_first() {
            is_urgent = *place == at;
            within = if is_urgent { 1 } else { room.min(place - at) };
            marks = if is_urgent { rest } else { marks };
            if is_urgent && !is_there {
                all.push(mark());
                continue;
            }
        }
        if at >= most {
            return Ok(all);
        }
        let offset = i32::try_from(at).map_err(|_| Errno::TOOBIG)?;
        let mut message = match look(socket, offset, within) {
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
        if is_stream(record) && !message.rights.is_empty() {
            let before = before_last(socket, offset, &message)?;
            if before > 0 {
                message = look(socket, offset, before)?;
                message.rights.clear();
            }
        }
        at += message.bytes.len();
        message.is_urgent = is_urgent;
        all.push(message);
        let empty = all.iter().rev().take_while(|message| message.bytes.is_empty()).count();
        if may_end && empty == EMPTY_IN_A_ROW {
            all.truncate(all.len() - empty);
            return Ok(all);
        }
    }
}

fn look(socket: BorrowedFd<'_>, offset: i32, room: usize) -> std::result::Result<Message, Errno> {
    socket::set_int(socket, SOL_SOCKET, libc::SO_PEEK_OFF, offset)?;
    unix_message::peek(socket, room)
}

/// Who reads a stream gets descriptors with the first byte that was sent with them. Looking at it stops behind these
/// bytes, but what was sent before comes with them; this is how much.
fn before_last(socket: BorrowedFd<'_>, offset: i32, looked: &Message) -> std::result::Result<usize, Errno> {
    socket::set_int(socket, SOL_SOCKET, libc::SO_PEEK_OFF, offset)?;
    unix_message::peek_pieces(socket, looked.bytes.len() - 1)
}

/// A message for a socket.
#[derive(Debug)]
pub struct Unread {
    /// What it says.
    pub bytes: Vec<u8>,
    /// Who sent it.
    pub beside: Beside,
    /// The files that it brings, by id.
    pub rights: Vec<u32>,
}

/// Messages for each socket, by file id.
pub type Queues = HashMap<u32, Vec<Unread>>;

/// Of all sockets of an image.
pub fn read(cx: &Build<'_>) -> Result<Queues> {
    let mut queues = Queues::new();
    let Some(mut entries) = cx.images.entries_optional(ImageKind::SkQueues, None)? else { return Ok(queues) };
    while let Some((entry, bytes)) = entries.next_tailed::<SkPacketEntry>()? {
        let rights = entry.scm.iter().filter(|scm| scm.r#type == libc::SCM_RIGHTS as u32);
        let rights = rights.flat_map(|scm| scm.rights.iter().copied()).collect();
        queues.entry(entry.id_for).or_default().push(Unread { bytes, beside: Beside::default(), rights });
    }
    for (id, queue) in &mut queues {
        let Some(beside) = cx.images.read_json::<Vec<Beside>>(&name_of(*id))? else { continue };
        if beside.len() != queue.len() || beside.iter().any(|beside| beside.from().is_none()) {
            let problem = format!("it does not tell of the {} messages that there are", queue.len());
            return Err(Error::bad_image(format!("cryonaut-{}.json", name_of(*id)), problem));
        }
        for (message, beside) in queue.iter_mut().zip(beside) {
            message.beside = beside;
        }
    }
    Ok(queues)
}
