//! Unix sockets: `unix_sk_entry` in files.img, what they have not read in sk-queues.img.
//!
//! Who is whose peer is what sock_diag tells, by inode numbers; it is asked
//! once. A peer must be in the tree too, which is known when all files are
//! ([`finish`]). What is not read is in [`queue`], connections that wait to be
//! accepted are in [`waiting`], names are in [`name`];
//! [`build`] makes them all again, pairs first, and [`complete()`] gives them
//! the rest, when every file that a message may bring is there.

mod acting;
mod build;
mod complete;
mod name;
mod queue;
mod waiting;

pub use acting::{Actors, Maker};
pub use build::{Making, all as make_all};
pub use complete::all as complete;

use super::beside::Extra;
use super::inet::{mode_of, owner_of, ready, refuse_error};
use super::settings::{self, Setting};
use super::{CLOSE, filter, options};
use crate::files::{Build, Collect, FileKind, OpenFile};
use crate::{Error, Object, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, SkShutdown, UnixSkEntry};
use cryonaut_kernel::sys::unix_diag::{self, UnixSocket};
use rustix::event::PollFlags;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::OwnedFd;

/// Unix sockets.
#[derive(Debug)]
pub struct Unix;

/// States of the record (include/net/tcp_states.h).
mod state {
    pub const ESTABLISHED: u32 = 1;
    pub const LISTEN: u32 = 10;
}

/// Bit of `uflags`: the record is of a socket outside of the tree, which others are connected to.
const EXTERN: u32 = 1;

/// What collecting knows of them.
#[derive(Debug, Default)]
pub struct Known {
    /// All of this host, by inode number; once they were asked for.
    told: Option<HashMap<u32, UnixSocket>>,
    /// Those that wait to be accepted, which have no number.
    unaccepted: Vec<UnixSocket>,
    /// Sockets of the tree at which some wait.
    halls: Vec<waiting::Hall>,
    /// Those of the tree that were written down, and how to call them, by inode number.
    carried: BTreeMap<u32, Object>,
    /// Messages with descriptors, which are written when all other files are.
    on_their_way: VecDeque<queue::Loaded>,
}

/// The options of such a socket.
const TABLES: &[&[Setting]] = &[settings::SOCKET, settings::UNIX];

impl FileKind for Unix {
    fn name(&self) -> &'static str {
        "a Unix socket"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Unixsk
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        super::is_socket(file) && file.asked.sort(file.file).is_ok_and(|sort| sort.family == libc::AF_UNIX)
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let sort = file.asked.sort(file.file).map_err(|e| Error::kernel(file.object(), "ask what it is", e))?;
        let inode = file.stat.st_ino as u32;
        let told = told(&mut cx.sockets, file, inode)?.clone();
        let reset = is_reset(file, &told);
        if !reset {
            refuse_error(file)?;
        }
        let mut record = UnixSkEntry {
            id,
            ino: inode,
            r#type: sort.kind as u32,
            state: u32::from(told.state),
            flags: file.flags(),
            backlog: told.sent,
            peer: told.peer.unwrap_or_default(),
            fown: file.owner()?,
            opts: options::collect(file)?,
            ..UnixSkEntry::default()
        };
        record.opts.so_filter = filter::collect(file.file, &file.object())?;
        let how = SkShutdown::try_from(i32::from(told.shutdown)).unwrap_or_default();
        if how != SkShutdown::None {
            record.set_shutdown(how);
        }
        name::collect(cx, file, &told, &mut record)?;
        let mut extra = Extra { owner: owner_of(file), mode: mode_of(file), ..Extra::default() };
        extra.orphan = told.peer == Some(0) && sort.kind == libc::SOCK_DGRAM;
        extra.reset = reset;
        extra.peer = Maker::of(file.file).map_err(|e| Error::kernel(file.object(), "ask who its peer is", e))?;
        settings::collect(&mut cx.sockets, file, sort, TABLES, &mut extra);
        if queue::has_one(&record) {
            queue::collect(cx, file, &record)?;
        }
        cx.sockets.note(id, extra);
        if record.state == state::LISTEN && !told.waiting.is_empty() {
            waiting::Hall::note(cx, file, id, told)?;
        }
        cx.sockets.unix.carried.insert(inode, file.object());
        Ok(FileEntry { r#type: FdTypes::Unixsk as i32, id, usk: Some(record), ..FileEntry::default() })
    }

    /// Builds all of the image at once: they need each other.
    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let mut ours = None;
        for (id, file) in build::all(cx, &mut Actors::none())? {
            match id == entry.id {
                true => ours = Some(file),
                false => cx.put(id, file),
            }
        }
        ours.ok_or_else(|| Build::lacks(entry, self.name()))
    }

    /// Queues may name processes.
    fn needs_processes(&self, _entry: &FileEntry) -> bool {
        true
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.usk.as_ref().map(|record| &record.fown)
    }
}

/// For messages at the restore.
fn object(record: &UnixSkEntry) -> Object {
    Object::File(record.id, format!("Unix socket {}", name::shown(&record.name)))
}

fn told<'k>(known: &'k mut super::Known, file: &OpenFile<'_>, inode: u32) -> Result<&'k UnixSocket> {
    let told = known.unix.told.get_or_insert_default();
    if !std::mem::replace(&mut known.here.unix, true) {
        let all = unix_diag::all().map_err(|errno| Error::Kernel {
            object: file.object(),
            action: "ask sock_diag about Unix sockets".into(),
            errno,
            remedy: "the kernel needs CONFIG_UNIX_DIAG (module unix_diag)",
        })?;
        let (unaccepted, all): (Vec<_>, Vec<_>) = all.into_iter().partition(|socket| socket.inode == 0);
        known.unix.unaccepted.extend(unaccepted);
        told.extend(all.into_iter().map(|socket| (socket.inode, socket)));
    }
    told.get(&inode).ok_or_else(|| Error::unsupported(file.object(), "sock_diag does not know it", CLOSE))
}

/// A stream has no other error for the program (net/unix/af_unix.c, unix_release_sock), so that nobody need ask for it.
fn is_reset(file: &OpenFile<'_>, told: &UnixSocket) -> bool {
    let has_lost_peer = i32::from(told.kind) == libc::SOCK_STREAM && told.peer == Some(0);
    has_lost_peer && ready(file.file).contains(PollFlags::ERR)
}

/// All files were collected: peers that were not are outside of the tree.
pub fn finish(cx: &mut Collect<'_>) -> Result<()> {
    queue::collect_rights(cx)?;
    let known = std::mem::take(&mut cx.sockets.unix);
    waiting::collect(cx, &known)?;
    let Some(told) = &known.told else { return Ok(()) };
    let mut written = Vec::new();
    for (inode, object) in &known.carried {
        let Some(peer) = told.get(inode).and_then(|socket| socket.peer).filter(|peer| *peer != 0) else { continue };
        let there = told.get(&peer);
        if known.carried.contains_key(&peer) {
            refuse_one_way(object, *inode, there)?;
            continue;
        }
        if !is_allowed(cx, peer, *inode) {
            return Err(outside(object, peer, there));
        }
        let Some(there) = there.filter(|there| i32::from(there.kind) == libc::SOCK_DGRAM) else { continue };
        if there.name.is_empty() {
            let reason = "its peer is outside of the tree and has no name by which it could be found again";
            return Err(Error::unsupported(object.clone(), reason, CLOSE));
        }
        if !written.contains(&peer) {
            written.push(peer);
            write_external(cx, there)?;
        }
    }
    Ok(())
}

/// Puts who is connected to a socket that is not connected to it behind that: CRIU's restore looks for it among those
/// that it has seen.
pub fn sort(entries: &mut [FileEntry]) {
    let peers: HashMap<u32, u32> =
        entries.iter().filter_map(|entry| entry.usk.as_ref()).map(|record| (record.ino, record.peer)).collect();
    let depth = |entry: &FileEntry| {
        let (mut at, mut depth) = (entry.usk.as_ref().map_or(0, |record| record.ino), 0);
        while let Some(peer) = peers.get(&at).copied().filter(|peer| peers.get(peer).is_some_and(|back| *back != at)) {
            // Rings have no end.
            if depth == peers.len() {
                return 0;
            }
            (at, depth) = (peer, depth + 1);
        }
        depth
    };
    entries.sort_by_cached_key(depth);
}

/// A datagram socket is found again by its name, unless both have each other.
fn refuse_one_way(object: &Object, inode: u32, peer: Option<&UnixSocket>) -> Result<()> {
    match peer {
        Some(peer) if peer.peer != Some(inode) && peer.name.is_empty() => Err(Error::unsupported(
            object.clone(),
            "it sends to a socket that is connected to another now, and has no name by which to connect again",
            CLOSE,
        )),
        _ => Ok(()),
    }
}

fn is_allowed(cx: &Collect<'_>, peer: u32, own: u32) -> bool {
    let named = |inode: u32| cx.options.external.iter().any(|key| *key == format!("unix[{inode}]"));
    cx.options.ext_unix_sockets || named(peer) || named(own)
}

/// Who has the peer, by looking through all processes.
fn outside(object: &Object, peer: u32, there: Option<&UnixSocket>) -> Error {
    let link = format!("socket:[{peer}]");
    let mut holders: Vec<String> = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = process.path();
        let mut files = std::fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
        if files.any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == link.as_str())) {
            let comm = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            holders.push(format!("{} ({})", process.file_name().to_string_lossy(), comm.trim_end()));
        }
    }
    let holders = match holders.as_slice() {
        [] => "no process has it as a descriptor: it waits to be accepted, or is on its way in a message".to_owned(),
        [one] => format!("process {one} has it"),
        all => format!("processes {} have it", all.join(", ")),
    };
    let name = there.map_or(String::new(), |there| format!(" {}", name::shown(&there.name)));
    Error::unsupported(
        object.clone(),
        format!("its peer{name} (inode {peer}) is outside of the tree: {holders}"),
        "checkpoint both in one tree, let the program close it, or use --ext-unix-sk[=INODE] or --external unix[INODE]: \
         datagram sockets then connect again by name, others find their peer gone",
    )
}

/// A record of a socket outside, which says by which name it is to be found.
fn write_external(cx: &mut Collect<'_>, there: &UnixSocket) -> Result<()> {
    let id = cx.new_id();
    let record = UnixSkEntry {
        id,
        ino: there.inode,
        r#type: u32::from(there.kind),
        state: u32::from(there.state),
        flags: libc::O_RDWR as u32,
        uflags: EXTERN,
        name: there.name.clone(),
        ..UnixSkEntry::default()
    };
    let entry = FileEntry { r#type: FdTypes::Unixsk as i32, id, usk: Some(record), ..FileEntry::default() };
    Ok(cx.images.append(ImageKind::Files, None, &entry, None)?)
}
