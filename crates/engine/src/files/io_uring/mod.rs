//! Instances of io_uring (io_uring(7)) that have no request in flight: their
//! queues, with what is in them, and where the program has them mapped.
//!
//! What is carried is what is known. Sizes and indices stand in fdinfo; how the
//! instance was made, whether requests are in flight, and what is registered,
//! no call tells: the kernel is asked by a program of its own
//! ([`cryonaut_kernel::sys::io_uring::inside`]). A ring that has more than its
//! queues is refused.
//!
//! The program keeps copies of the indices, which count for ever; the kernel's
//! own begin with zero and nothing sets them. So a new ring takes as many
//! requests that do nothing, and then gets the contents of the old one. Where
//! one thread alone may submit, that thread does it ([`issuer`]).
//!
//! The kernel maps a ring where it likes and nowhere else, and does not move
//! it either. All that is free besides the wanted place is therefore filled
//! for the moment, while the process has next to no mappings. The other way
//! would be memory of the process's own as rings (IORING_SETUP_NO_MMAP): but
//! then the instance is another than it was, its memory ordinary memory, which
//! fork does not share and which the program can neither map again nor
//! resize; and older kernels want it in one physical piece.
//!
//! CRIU knows no such file: the record in files.img has no type, so that it
//! refuses the image, and all else is in `cryonaut-io-uring-ID.json`.

mod issuer;

pub use issuer::{Start, start};

use super::{Build, Collect, FileKind, OpenFile};
use crate::freeze::Process;
use crate::{Error, Object, Result};
use cryonaut_image::ImageDir;
use cryonaut_image::records::{FdTypes, FileEntry, VmaEntry};
use cryonaut_kernel::proc::fdinfo::Details;
use cryonaut_kernel::proc::maps::Vma;
use cryonaut_kernel::sys::io_uring::{self, Inside, Layout, Mapped, Offsets, PART_MASK, Position, Region, setup};
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Arg, Batch, Hand};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// Instances of io_uring.
#[derive(Debug)]
pub struct IoUring;

/// How an instance can have been made so that it is made again as it was.
const CARRIED: u32 = setup::SUBMIT_ALL
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
/// Bytes of contents that are left out when they are zero.
const LINE: usize = 64;

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
    rings: BTreeMap<usize, String>,
    entries: BTreeMap<usize, String>,
}

impl Record {
    /// Of a file in the image.
    fn read(images: &ImageDir, entry: &FileEntry) -> Result<Record> {
        let record: Record = images.read_json(&json_name(entry.id))?.ok_or_else(|| Build::lacks(entry, "io_uring"))?;
        let position = record.position();
        if position.unread() > record.cq_entries
            || position.steps() > MOST_STEPS
            || record.setup_flags & !CARRIED != 0
            || record.issuer.is_some() != (record.setup_flags & setup::SINGLE_ISSUER != 0)
        {
            return Err(Error::bad_image(json_name(entry.id), "no ring can stand as it says"));
        }
        Ok(record)
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
        let told = Told::of(file).ok_or_else(|| silent(file, Errno::NOTSUP))?;
        let inside = at_rest(file)?;
        refuse(file, &told, &inside)?;
        let failed = |what: &'static str| move |e| Error::kernel(file.object(), what, e);
        let setup_flags = inside.flags & !TRACELESS;
        // Another one of the same kind tells where its parts are.
        let (_, layout) = io_uring::make(told.sq_entries, told.cq_entries, setup_flags)
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
            offsets: layout.offsets,
            submitted,
            completed,
            collected,
            rings: in_lines(&mapped.rings.read()),
            entries: in_lines(&mapped.entries.read()),
        };
        cx.images.write_json(&json_name(id), &record)?;
        Ok(FileEntry { r#type: FdTypes::Und as i32, id, ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let record = Record::read(cx.images, entry)?;
        let object = || Object::File(entry.id, "io_uring".into());
        let later = if record.issuer.is_some() { setup::R_DISABLED } else { 0 };
        let made = io_uring::make(record.sq_entries, record.cq_entries, record.setup_flags | later);
        let (file, layout) = made.map_err(|errno| Error::Kernel {
            object: object(),
            action: "make one".into(),
            errno,
            remedy: if errno == Errno::PERM { "see /proc/sys/kernel/io_uring_disabled" } else { "" },
        })?;
        if layout.offsets != record.offsets {
            let reason = "this kernel lays rings out in another way than the one of the checkpoint";
            return Err(Error::unsupported(object(), reason, "restore on a kernel of the same version"));
        }
        super::apply_status_flags(file.as_fd(), entry.id, record.file_flags)?;
        if record.issuer.is_none() {
            let failed = |what: &'static str| move |e| Error::kernel(object(), what, e);
            let mapped = Mapped::new(file.as_fd(), layout).map_err(failed("map its rings"))?;
            mapped.turn(file.as_fd(), record.position()).map_err(failed("bring its indices to where they were"))?;
            fill_both(entry.id, &record, &mapped)?;
        }
        Ok(file)
    }
}

fn json_name(id: u32) -> String {
    format!("io-uring-{id}")
}

/// What fdinfo tells (io_uring/fdinfo.c; Linux 5.16 and later).
#[derive(Debug, PartialEq, Eq)]
struct Told {
    sq_entries: u32,
    cq_entries: u32,
    position: Position,
    /// Requests that wait for a file.
    polls: usize,
    /// Completions for which there was no room.
    overflown: usize,
    files: bool,
    buffers: bool,
    busy_polls: bool,
}

impl Told {
    fn of(file: &OpenFile<'_>) -> Option<Told> {
        match &file.info.details {
            Details::Other(lines) => Told::parse(lines),
            _ => None,
        }
    }

    fn parse(lines: &[Vec<u8>]) -> Option<Told> {
        // Lines of a list are set in, under the line that names it.
        let mut values: HashMap<&str, (&str, usize)> = HashMap::new();
        let mut list = "";
        for line in lines {
            let line = std::str::from_utf8(line).ok()?;
            match line.split_once(':') {
                Some((key, value)) if !line.starts_with(char::is_whitespace) => {
                    list = key;
                    values.insert(key, (value.trim(), 0));
                }
                _ => values.entry(list).or_default().1 += 1,
            }
        }
        let word = |key| {
            let (text, _) = values.get(key)?;
            text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())
        };
        let items = |key| values.get(key).map_or(0, |(_, items)| *items);
        Some(Told {
            sq_entries: word("SqMask")?.checked_add(1)?,
            cq_entries: word("CqMask")?.checked_add(1)?,
            position: Position {
                submitted: word("CachedSqHead")?,
                completed: word("CachedCqTail")?,
                collected: word("CqHead")?,
            },
            polls: items("PollList"),
            overflown: items("CqOverflowList"),
            files: word("UserFiles")? != 0,
            buffers: word("UserBufs")? != 0,
            busy_polls: values.get("NAPI").is_some_and(|(text, _)| *text == "enabled"),
        })
    }
}

/// For what the kernel keeps to itself.
fn silent(file: &OpenFile<'_>, errno: Errno) -> Error {
    Error::Kernel {
        object: file.object(),
        action: "see how the instance was made, and whether requests are in flight".into(),
        errno,
        remedy: "this needs CAP_BPF and CAP_PERFMON, and a kernel with /sys/kernel/btf/vmlinux (see cryonaut check)",
    }
}

/// What the kernel has of it, once nothing is in flight or nothing comes to rest any more.
fn at_rest(file: &OpenFile<'_>) -> Result<Inside> {
    let begun = Instant::now();
    loop {
        let inside = io_uring::inside(file.pid, file.fd).map_err(|e| silent(file, e))?;
        if inside.in_flight.unwrap_or(0) == 0 || begun.elapsed() > PATIENCE {
            return Ok(inside);
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
    if told.overflown > 0 {
        let reason = "completions for which there was no room wait in the kernel".into();
        return no(reason, "let the program collect completions before the checkpoint");
    }
    let registered = [
        (told.files, "registered files"),
        (told.buffers, "registered buffers"),
        (inside.buffers, "provided buffers"),
        (inside.eventfd, "an eventfd that is told of completions"),
        (inside.personalities, "registered credentials"),
        (inside.restricted, "restrictions of what may be submitted"),
        (inside.regions, "registered memory or network queues"),
        (told.busy_polls, "busy polling of network devices"),
        (inside.clock.is_some_and(|clock| clock != libc::CLOCK_MONOTONIC), "a clock of its own"),
    ];
    if let Some((_, what)) = registered.iter().find(|(has, _)| *has) {
        return no(format!("it has {what}, which cannot be carried yet"), CLOSE);
    }
    let modes = [
        (setup::SQPOLL, "a thread of the kernel that submits (IORING_SETUP_SQPOLL)"),
        (setup::IOPOLL, "busy waiting for completions (IORING_SETUP_IOPOLL)"),
        (setup::R_DISABLED, "been made disabled, and not been enabled (IORING_SETUP_R_DISABLED)"),
        (setup::NO_MMAP, "its queues in memory of the program (IORING_SETUP_NO_MMAP)"),
        (!CARRIED & !TRACELESS, "been made in a way that is not known"),
    ];
    if let Some((flag, what)) = modes.iter().find(|(flag, _)| inside.flags & flag != 0) {
        return no(format!("it has {what}, which cannot be carried yet (flags {:#x})", inside.flags & flag), CLOSE);
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

/// Whether a mapping is of a ring.
pub fn is_mapping(vma: &Vma) -> bool {
    vma.path.as_bytes().starts_with(b"anon_inode:[io_uring]")
}

/// Threads that may name a ring by an index of their own (IORING_REGISTER_RING_FDS), which is not carried yet.
pub fn refuse_registered(process: &Process) -> Result<()> {
    if !process.maps.iter().any(is_mapping) {
        return Ok(());
    }
    let Some(&any) = process.task.fds()?.first() else { return Ok(()) };
    for thread in &process.threads {
        let failed = |e| Error::kernel(Object::Thread(thread.tid), "see whether it has registered a ring", e);
        if io_uring::registered(thread.tid, any).map_err(failed)? > 0 {
            let reason = "it has registered the descriptor of an io_uring (IORING_REGISTER_RING_FDS)";
            return Err(Error::unsupported(Object::Thread(thread.tid), reason, "let the program unregister it"));
        }
    }
    Ok(())
}

/// The id of the file that a mapping is of.
pub fn mapped(cx: &Collect<'_>, object: impl Fn() -> Object, vma: &Vma) -> Result<u32> {
    let no = |reason, remedy| Err(Error::unsupported(object(), reason, remedy));
    if vma.offset & !PART_MASK != 0 {
        return no("only a part of its rings is mapped, which cannot be done again", CLOSE);
    }
    match cx.notes.get(&("io_uring", vma.inode)) {
        Some(&id) => Ok(id),
        None => no("no process of the tree before this one has the descriptor that it belongs to", "unmap it first"),
    }
}

/// Whether a record is of a mapping of a ring.
pub fn is_recorded(files: &Build<'_>, vma: &VmaEntry) -> bool {
    vma.status & crate::memory::status::FILE_SHARED != 0
        && files.records().get(&(vma.shmid as u32)).is_some_and(|file| file.r#type == FdTypes::Und as i32)
}

/// Maps a ring at its address. The process has few mappings yet, and none where this one goes.
pub fn map(hand: &mut Hand, service: &Service, files: &mut Build<'_>, vma: &VmaEntry) -> Result<()> {
    let pid = hand.pid();
    let number = service.give(hand, &[files.file(vma.shmid as u32)?])?[0];
    let taken = cryonaut_kernel::proc::Task::open(crate::freeze::pid_of(pid)?)?.maps()?;
    let mut keep: Vec<(u64, u64)> = taken.iter().map(|v| (v.start, v.end)).collect();
    keep.push((vma.start, vma.end));
    let fillers = crate::memory::free_besides(keep);
    let mut b = Batch::new();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    for &(start, end) in &fillers {
        let len = end - start;
        b.call(
            libc::SYS_mmap,
            [start.into(), len.into(), libc::PROT_NONE.into(), flags.into(), Arg::Val(u64::MAX), 0.into()],
        );
    }
    let shared = libc::MAP_SHARED;
    let len = vma.end - vma.start;
    let at = b.attempt(
        libc::SYS_mmap,
        [0.into(), len.into(), vma.prot.into(), shared.into(), number.into(), vma.pgoff.into()],
    );
    for &(start, end) in &fillers {
        b.call(libc::SYS_munmap, [start.into(), (end - start).into()]);
    }
    b.call(libc::SYS_close, [number.into()]);
    let object = || Object::Mapping(pid, vma.start, "io_uring".into());
    hand.run(&mut b).map_err(|e| match e {
        cryonaut_puppet::Error::Call { errno: errno @ Errno::NOMEM, .. } => Error::Kernel {
            object: object(),
            action: "keep all other places taken while it is mapped".into(),
            errno,
            remedy: "restore without a limit of the address space (ulimit -v)",
        },
        e => e.into(),
    })?;
    match b.result(at) {
        Ok(at) if at == vma.start => Ok(()),
        Ok(_) => Err(Error::kernel(object(), "have the kernel map it there", Errno::EXIST)),
        Err(e) => Err(Error::kernel(object(), "map it", e)),
    }
}

/// The lines that are not zero, joined where one follows the other.
fn in_lines(bytes: &[u8]) -> BTreeMap<usize, String> {
    let mut out: BTreeMap<usize, String> = BTreeMap::new();
    for (index, line) in bytes.chunks(LINE).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0)) {
        let hex: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let at = index * LINE;
        match out.last_entry() {
            Some(mut last) if last.key() + last.get().len() / 2 == at => last.get_mut().push_str(&hex),
            _ => drop(out.insert(at, hex)),
        }
    }
    out
}

/// Gives a ring its contents.
fn fill_both(id: u32, record: &Record, mapped: &Mapped) -> Result<()> {
    for (region, lines) in [(&mapped.rings, &record.rings), (&mapped.entries, &record.entries)] {
        fill(region, lines).ok_or_else(|| Error::bad_image(json_name(id), "its contents do not fit its size"))?;
    }
    Ok(())
}

/// Gives a region its contents, also where they are zero. `None` if they reach beyond it, or are none.
fn fill(region: &Region, lines: &BTreeMap<usize, String>) -> Option<()> {
    let mut bytes = vec![0; region.len()];
    for (&at, hex) in lines {
        let room = bytes.get_mut(at..at.checked_add(hex.len() / 2)?)?;
        for (byte, pair) in room.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
    }
    region.write(0, &bytes);
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
    fn what_is_more_than_queues_is_refused() {
        let position = Position { submitted: 1, completed: 1, collected: 1 };
        let (file, _) = ring(position, 0);
        assert!(Carried::try_collect(&[&file]).is_ok());
        for (flags, why) in [(setup::IOPOLL, "IOPOLL"), (setup::R_DISABLED, "R_DISABLED")] {
            let (file, _) = io_uring::make(4, 8, flags).unwrap();
            let error = Carried::try_collect(&[&file]).err().unwrap().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn lists_in_fdinfo_are_counted() {
        let text = "SqMask:\t0x7\nCachedSqHead:\t5\nCqMask:\t0xf\nCqHead:\t3\nCachedCqTail:\t4\nSQEs:\t0\nCQEs:\t1\n    \
            3: user_data:7, res:0, flag:0\nUserFiles:\t0\nUserBufs:\t0\nPollList:\n  op=6, task_works=0\n\
            CqOverflowList:\n  user_data=1, res=0, flags=0\n  user_data=2, res=0, flags=0\nNAPI:\tdisabled\n";
        let lines: Vec<Vec<u8>> = text.lines().map(|line| line.as_bytes().to_vec()).collect();
        let told = Told::parse(&lines).unwrap();
        assert_eq!((told.sq_entries, told.cq_entries, told.polls, told.overflown), (8, 16, 1, 2));
        assert_eq!(told.position, Position { submitted: 5, completed: 4, collected: 3 });
        assert!(!told.files && !told.buffers && !told.busy_polls);
        assert_eq!(Told::parse(&lines[1..]), None);
    }
}
