//! Instances of io_uring (io_uring(7)) that have no request in flight: their
//! queues, with what is in them, where the program has them mapped
//! ([`mapping`]), and files,
//! memory and an eventfd that are registered with them ([`tables`]).
//!
//! What is carried is what is known. Sizes and indices stand in fdinfo; how the
//! instance was made, whether requests are in flight, and what is registered,
//! no call tells: the kernel is asked by a program of its own
//! ([`cryonaut_kernel::sys::io_uring::inside`]). A ring that has more than that
//! is refused.
//!
//! The program keeps copies of the indices, which count for ever; the kernel's
//! own begin with zero and nothing sets them. So a new ring takes as many
//! requests that do nothing, and then gets the contents of the old one. Where
//! one thread alone may submit, that thread does it ([`issuer`]).
//!
//! CRIU knows no such file: the record in files.img has no type, so that it
//! refuses the image, and all else is in `cryonaut-io-uring-ID.json`.

mod issuer;
mod mapping;
mod names;
mod poller;
mod tables;
mod told;

pub use issuer::{Start, start};
pub use mapping::{is_mapping, is_recorded, map, mapped};
pub use names::{Names, names, write_names};

use super::lines::{self, Lines};
use super::{Build, Collect, FileKind, OpenFile, Settle};
use crate::{Error, Object, Result};
use cryonaut_image::ImageDir;
use cryonaut_image::records::{FdTypes, FileEntry};
use cryonaut_kernel::sys::io_uring::{self, Inside, Layout, Mapped, Offsets, Position, Region, setup};
use poller::Poller;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use tables::Tables;
use told::Told;

/// Instances of io_uring.
#[derive(Debug)]
pub struct IoUring;

/// How an instance can have been made so that it is made again as it was.
const CARRIED: u32 = setup::IOPOLL
    | setup::SQPOLL
    | setup::SQ_AFF
    | setup::R_DISABLED
    | setup::SUBMIT_ALL
    | setup::COOP_TASKRUN
    | setup::TASKRUN_FLAG
    | setup::SQE128
    | setup::CQE32
    | setup::SINGLE_ISSUER
    | setup::DEFER_TASKRUN
    | setup::NO_SQARRAY
    | setup::CQE_MIXED;
/// What leaves no trace but the sizes: they were chosen or cut; a thread pool that belongs to the process now.
const TRACELESS: u32 = setup::CQSIZE | setup::CLAMP | setup::ATTACH_WQ;
/// Requests that a new ring takes at most to stand where the old one stood: half a minute.
const MOST_STEPS: u64 = 1 << 28;
/// How long requests may take to come to rest.
const PATIENCE: Duration = Duration::from_millis(200);
const NAP: Duration = Duration::from_millis(5);
/// Where in the file the rings are: both queues' are one, under two offsets (IORING_OFF_CQ_RING is the other).
const RINGS_PARTS: [u64; 2] = [io_uring::RINGS_OFFSET, 0x800_0000];

const CLOSE: &str = "let the program close it, or take this away, before the checkpoint";

/// What the format has no place for: all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Record {
    /// Status flags of the open file.
    file_flags: u32,
    sq_entries: u32,
    cq_entries: u32,
    /// `IORING_SETUP_*`.
    setup_flags: u32,
    /// The thread that alone may submit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issuer: Option<i32>,
    /// Where its parts are: `sq_off` and `cq_off` of struct io_uring_params, as words.
    offsets: Offsets,
    submitted: u32,
    completed: u32,
    collected: u32,
    /// Contents of both mappings but for zeros: hexadecimal, by offset.
    rings: Lines,
    entries: Lines,
    #[serde(default)]
    registered: Tables,
    /// The thread of the kernel that submits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    poller: Option<Poller>,
}

impl Record {
    /// Of a file in the image.
    fn read(images: &ImageDir, entry: &FileEntry) -> Result<Record> {
        let record: Record = images.read_json(&json_name(entry.id))?.ok_or_else(|| Build::lacks(entry, "io_uring"))?;
        let position = record.position();
        if position.unread() > record.cq_entries
            || position.steps() > MOST_STEPS
            || record.setup_flags & !CARRIED != 0
            || record.issuer.is_some() != has_issuer(record.setup_flags)
            || record.is_disabled() && position.steps() > 0
            || record.poller.is_some() != (record.setup_flags & setup::SQPOLL != 0)
        {
            return Err(Error::bad_image(json_name(entry.id), "no ring can stand as it says"));
        }
        Ok(record)
    }

    /// How it is made: its own thread enables it.
    fn flags_at_first(&self) -> u32 {
        self.setup_flags | if self.issuer.is_some() { setup::R_DISABLED } else { 0 }
    }

    /// Nothing was ever submitted to it.
    fn is_disabled(&self) -> bool {
        self.setup_flags & setup::R_DISABLED != 0
    }

    fn position(&self) -> Position {
        Position { submitted: self.submitted, completed: self.completed, collected: self.collected }
    }

    fn layout(&self) -> Layout {
        Layout {
            sq_entries: self.sq_entries,
            cq_entries: self.cq_entries,
            flags: self.setup_flags,
            offsets: self.offsets,
        }
    }
}

impl FileKind for IoUring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Und
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        file.anon_inode() == Some(b"io_uring")
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let (told, inside) = at_rest(file)?;
        refuse(file, &told, &inside)?;
        let failed = |what: &'static str| move |e| Error::kernel(file.object(), what, e);
        let setup_flags = inside.flags & !TRACELESS;
        // Another one of the same kind tells where its parts are.
        let like = setup_flags & !(setup::SQPOLL | setup::SQ_AFF);
        let (_, layout) = io_uring::make(told.sq_entries, told.cq_entries, like)
            .map_err(failed("make one like it, to see how it is laid out"))?;
        let mapped = Mapped::new(file.file, layout).map_err(failed("map its rings"))?;
        if cx.notes.insert(("io_uring", file.stat.st_ino), id).is_some() {
            return Err(Error::unsupported(
                file.object(),
                "this kernel does not tell whose rings are mapped where",
                CLOSE,
            ));
        }
        let Position { submitted, completed, collected } = told.position;
        let record = Record {
            file_flags: file.flags(),
            sq_entries: told.sq_entries,
            cq_entries: told.cq_entries,
            setup_flags,
            issuer: issuer::find(file, &inside, told.position)?,
            registered: tables(cx, file, &told, &inside)?,
            poller: Poller::find(file, &inside)?,
            offsets: layout.offsets,
            submitted,
            completed,
            collected,
            rings: lines::of(&mapped.rings.read()),
            entries: lines::of(&mapped.entries.read()),
        };
        cx.images.write_json(&json_name(id), &record)?;
        Ok(FileEntry { r#type: FdTypes::Und as i32, id, ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let record = Record::read(cx.images, entry)?;
        if record.poller.is_some() {
            return Err(Error::bad_image(
                json_name(entry.id),
                "it has a thread, and the thread's process has not mapped it",
            ));
        }
        let made = io_uring::make(record.sq_entries, record.cq_entries, record.flags_at_first());
        let (file, layout) = made.map_err(|e| cannot_make(entry.id, e))?;
        bring_to(entry.id, &record, &file, layout)?;
        Ok(file)
    }

    fn settle(&self, cx: &mut Settle<'_>, entry: &FileEntry, file: BorrowedFd<'_>) -> Result<()> {
        Record::read(cx.images, entry)?.registered.build(cx, entry, file)
    }
}

fn object(id: u32) -> Object {
    Object::File(id, "io_uring".into())
}

fn cannot_make(id: u32, errno: Errno) -> Error {
    let remedy = if errno == Errno::PERM { "see /proc/sys/kernel/io_uring_disabled" } else { "" };
    Error::Kernel { object: object(id), action: "make one".into(), errno, remedy }
}

/// Makes a new ring what the old one was, but for what its own thread has to do.
fn bring_to(id: u32, record: &Record, file: &OwnedFd, layout: Layout) -> Result<()> {
    if layout.offsets != record.offsets {
        let reason = "this kernel lays rings out in another way than the one of the checkpoint";
        return Err(Error::unsupported(object(id), reason, "restore on a kernel of the same version"));
    }
    super::apply_status_flags(file.as_fd(), id, record.file_flags)?;
    if record.issuer.is_none() {
        let failed = |what: &'static str| move |e| Error::kernel(object(id), what, e);
        let mapped = Mapped::new(file.as_fd(), layout).map_err(failed("map its rings"))?;
        if !record.is_disabled() {
            mapped.turn(file.as_fd(), record.position()).map_err(failed("bring its indices to where they were"))?;
        }
        fill_both(id, record, &mapped)?;
    }
    Ok(())
}

/// Whether of rings made so a single thread may submit, which is known.
fn has_issuer(setup_flags: u32) -> bool {
    setup_flags & (setup::SINGLE_ISSUER | setup::R_DISABLED) == setup::SINGLE_ISSUER
}

/// What is registered, where anything is.
fn tables(cx: &Collect<'_>, file: &OpenFile<'_>, told: &Told, inside: &Inside) -> Result<Tables> {
    let clock = inside.clock.filter(|clock| *clock != libc::CLOCK_MONOTONIC);
    let any = told.files || told.buffers || inside.eventfd || clock.is_some();
    if any { Tables::read(cx, file, clock) } else { Ok(Tables::default()) }
}

fn json_name(id: u32) -> String {
    format!("io-uring-{id}")
}

/// For what the kernel keeps to itself.
fn silent(file: &OpenFile<'_>, errno: Errno) -> Error {
    Error::Kernel {
        object: file.object(),
        action: "see how the instance was made, what is registered and whether requests are in flight".into(),
        errno,
        remedy: "this needs CAP_BPF and CAP_PERFMON, and a kernel with /sys/kernel/btf/vmlinux (see cryonaut check)",
    }
}

/// What is told of it, and what the kernel has, once nothing is in flight or nothing comes to rest any more.
fn at_rest(file: &OpenFile<'_>) -> Result<(Told, Inside)> {
    let begun = Instant::now();
    loop {
        let before = Told::now(file)?;
        let inside = io_uring::inside(file.speaker, file.fd).map_err(|e| silent(file, e))?;
        // What completes later moves the indices.
        let told = Told::now(file)?;
        let polled = inside.flags & setup::SQPOLL != 0;
        let is_served = !polled || before.as_ref().is_some_and(|before| before.offered == 0);
        let late = begun.elapsed() > PATIENCE;
        match told {
            Some(told) if late || is_served && inside.in_flight.unwrap_or(0) == 0 => return Ok((told, inside)),
            None if late => return Err(silent(file, Errno::NOTSUP)),
            _ if polled && !is_served => drop(io_uring::poller::wake(file.file)),
            _ => {}
        }
        std::thread::sleep(NAP);
    }
}

/// What is more than two queues.
fn refuse(file: &OpenFile<'_>, told: &Told, inside: &Inside) -> Result<()> {
    let no = |reason: String, remedy: &'static str| Err(Error::unsupported(file.object(), reason, remedy));
    // Where the kernel does not count them, each request has one completion, or it is not known whether it will.
    let in_flight = inside.in_flight.map_or_else(|| told.position.silent() != 0 || told.polls > 0, |count| count > 0);
    if in_flight {
        let count = inside.in_flight.map_or("some".into(), |count| count.to_string());
        let reason = format!("requests are in flight ({count}), which exist in the kernel alone");
        return no(reason, "let them complete, or let the program cancel them, before the checkpoint");
    }
    if inside.flags & setup::SQPOLL != 0 && told.offered > 0 {
        let reason =
            "the thread of the kernel that submits for it (IORING_SETUP_SQPOLL) leaves requests where they are";
        return no(reason.into(), CLOSE);
    }
    if told.overflown > 0 {
        let reason = "completions for which there was no room wait in the kernel".into();
        return no(reason, "let the program collect completions before the checkpoint");
    }
    let registered = [
        (inside.buffers, "provided buffers"),
        (inside.personalities, "registered credentials"),
        (inside.restricted, "restrictions of what may be submitted"),
        (inside.regions, "registered memory or network queues"),
        (told.busy_polls, "busy polling of network devices"),
    ];
    if let Some((_, what)) = registered.iter().find(|(has, _)| *has) {
        return no(format!("it has {what}, which cannot be carried yet"), CLOSE);
    }
    let modes = [
        (setup::NO_MMAP, "its queues in memory of the program (IORING_SETUP_NO_MMAP)"),
        (!CARRIED & !TRACELESS, "been made in a way that is not known"),
    ];
    if let Some((flag, what)) = modes.iter().find(|(flag, _)| inside.flags & flag != 0) {
        return no(format!("it has {what}, which cannot be carried yet (flags {:#x})", inside.flags & flag), CLOSE);
    }
    if inside.flags & setup::R_DISABLED != 0 && told.position.steps() > 0 {
        return no("it has got completions without ever being enabled (IORING_SETUP_R_DISABLED)".into(), CLOSE);
    }
    if told.position.unread() > told.cq_entries {
        return no("the program has written an index into it that cannot be".into(), "");
    }
    if told.position.steps() > MOST_STEPS {
        let reason = format!("{} requests have gone through it, over {MOST_STEPS}", told.position.steps());
        return no(
            reason,
            "let the program close it and make a new one: each would be repeated by one that does nothing",
        );
    }
    Ok(())
}

/// Gives a ring its contents.
fn fill_both(id: u32, record: &Record, mapped: &Mapped) -> Result<()> {
    let both = [(&mapped.rings, &record.rings, mapped.restless()), (&mapped.entries, &record.entries, None)];
    for (region, lines, but) in both {
        fill(region, lines, but).ok_or_else(|| Error::bad_image(json_name(id), "its contents do not fit its size"))?;
    }
    Ok(())
}

/// Gives a region its contents, also where they are zero, but for the word at an offset. `None` if they reach beyond it,
/// or are none.
fn fill(region: &Region, lines: &Lines, but: Option<usize>) -> Option<()> {
    let bytes = lines::bytes_of(lines, region.len())?;
    let (first, rest) = but.map_or((bytes.len(), bytes.len()), |at| (at, at + 4));
    region.write(0, bytes.get(..first)?);
    region.write(rest, bytes.get(rest..)?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;

    fn ring(position: Position, flags: u32) -> (OwnedFd, Mapped) {
        let (file, layout) = io_uring::make(4, 8, flags).unwrap();
        let mapped = Mapped::new(file.as_fd(), layout).unwrap();
        mapped.turn(file.as_fd(), position).unwrap();
        (file, mapped)
    }

    #[test]
    fn a_ring_comes_back_as_it_stood() {
        let position = Position { submitted: 1001, completed: 1001, collected: 996 };
        let (file, mapped) = ring(position, setup::NO_SQARRAY | setup::CQSIZE);
        mapped.entries.write(70, b"left over");
        let carried = Carried::collect(&[&file]).build(RestoreOptions::default());
        assert_eq!(carried.record(0).r#type, FdTypes::Und as i32);
        let again = Mapped::new(carried.file(0).as_fd(), mapped.layout).unwrap();
        assert_eq!(again.rings.read(), mapped.rings.read());
        assert_eq!(again.entries.read(), mapped.entries.read());
        let second = Carried::collect(&[carried.file(0)]);
        let json = |carried: &Carried| carried.images().read_json::<Record>(&json_name(carried.record(0).id)).unwrap();
        assert_eq!(json(&second), json(&carried));
        assert_eq!(json(&second).unwrap().collected, 996);
    }

    #[test]
    fn the_thread_of_a_ring_is_made_by_its_process_alone() {
        let (file, _) = io_uring::make(4, 8, setup::SQPOLL).unwrap();
        let carried = Carried::collect(&[&file]);
        let error = carried.try_build(RestoreOptions::default()).err().unwrap().to_string();
        assert!(error.contains("has not mapped it"), "{error}");
    }
}
