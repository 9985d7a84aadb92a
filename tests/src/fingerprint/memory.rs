//! The mappings of a process, with their flags and their contents.
//!
//! Only pages that are there are read: looking must not populate anything. A page of zeros is as good as none. What
//! lies below a stack pointer is dead, and not looked at, nor where a thread lets the kernel tell its processor (rseq).

use std::fmt;
use std::os::fd::AsFd;

use cryonaut_kernel::pagemap::{Categories, PAGE_SIZE, PageRuns, Query};
use cryonaut_kernel::proc::Task;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::Pid;

use super::descriptors::file_digest;
use super::identity::is_made_anew;
use super::process::speaker;
use super::{Object, Taking};

/// Bytes below the stack pointer that a leaf function may use (the x86_64 ABI).
const RED_ZONE: u64 = 128;
/// How far below a stack pointer nothing is looked at, in the same mapping.
const DEAD: u64 = 1 << 20;
/// The unused end of the first stack.
const UNUSED: u64 = 16 << 10;
/// Bytes of an area of restartable sequences in which the kernel writes (`struct rseq`: numbers of processor and node).
const RSEQ: u64 = 32;
/// Contents of a mapping are told in at most this many parts.
const MOST_PARTS: u64 = 4096;

/// A fast digest: it need not withstand anybody.
#[derive(Debug, Default)]
pub(super) struct Digest(u64);

impl Digest {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            self.0 = (self.0 ^ u64::from_ne_bytes(padded)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "digest {:016x}", self.0)
    }
}

/// Lines of smaps that count pages in memory: that depends on what was touched, and what the pages hold is compared.
/// Sizes follow from the addresses.
const RESIDENT: &[&str] = &[
    "Size",
    "Rss",
    "Pss",
    "Pss_Dirty",
    "Shared_Clean",
    "Shared_Dirty",
    "Private_Clean",
    "Private_Dirty",
    "Referenced",
    "Anonymous",
    "KSM",
    "LazyFree",
    "AnonHugePages",
    "ShmemPmdMapped",
    "FilePmdMapped",
    "Shared_Hugetlb",
    "Private_Hugetlb",
    "Swap",
    "SwapPss",
    "Locked",
];

/// One mapping, and what smaps tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    perms: String,
    offset: u64,
    device: String,
    inode: u64,
    path: String,
    lines: Vec<(String, String)>,
}

impl Mapping {
    /// Whether `next` continues this one. The kernel may keep such neighbours apart, or make them one, as their history
    /// would have it.
    fn is_continued_by(&self, next: &Self) -> bool {
        let same = |a: &Self, b: &Self| {
            a.perms == b.perms && a.device == b.device && a.inode == b.inode && a.path == b.path && a.lines == b.lines
        };
        let offset = if self.inode == 0 { 0 } else { self.offset + (self.end - self.start) };
        self.end == next.start && next.offset == offset && same(self, next)
    }
}

pub(super) fn take(taking: &mut Taking, pid: Pid) {
    let number = pid.as_raw_nonzero().get();
    let Ok(task) = Task::open(speaker(pid)) else {
        return;
    };
    let Ok(text) = task.read("smaps") else {
        return;
    };
    let dead = dead_ranges(taking);
    for mapping in parse(&String::from_utf8_lossy(&text)) {
        let object = Object::Mapping(number, mapping.start, mapping.end);
        describe(taking, &object, &mapping);
        contents(taking, &object, &task, &mapping, &dead);
    }
}

/// The mappings, those made one that continue one another.
fn parse(text: &str) -> Vec<Mapping> {
    let mut all: Vec<Mapping> = Vec::new();
    let mut finish = |mapping: Option<Mapping>| match (all.last_mut(), mapping) {
        (Some(last), Some(next)) if last.is_continued_by(&next) => last.end = next.end,
        (_, Some(next)) => all.push(next),
        (_, None) => {}
    };
    let mut current: Option<Mapping> = None;
    for line in text.lines() {
        if let Some(next) = header(line) {
            finish(current.replace(next));
        } else if let (Some(mapping), Some((key, value))) = (&mut current, line.split_once(':'))
            && !RESIDENT.contains(&key)
        {
            mapping.lines.push((key.to_owned(), value.trim().to_owned()));
        }
    }
    finish(current);
    all
}

/// `START-END PERMS OFFSET DEVICE INODE PATH`, or `None` for a line of another kind.
fn header(line: &str) -> Option<Mapping> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        perms: words.next()?.to_owned(),
        offset: u64::from_str_radix(words.next()?, 16).ok()?,
        device: words.next()?.to_owned(),
        inode: words.next()?.parse().ok()?,
        path: words.next().unwrap_or("").trim_start().to_owned(),
        lines: Vec::new(),
    })
}

fn describe(taking: &mut Taking, object: &Object, mapping: &Mapping) {
    let inode = if mapping.perms.ends_with('p') && mapping.path.starts_with("/anon_hugepage") {
        // Fork leaves parent and child with one, but nothing is shared through it.
        "private".to_owned()
    } else if is_made_anew(&mapping.path) || mapping.path.starts_with("/SYSV") {
        taking.identities.name(mapping.inode)
    } else {
        taking.identities.known(mapping.inode)
    };
    let path = taking.identities.link(&mapping.path, mapping.inode);
    taking.put(object, "perms", mapping.perms.clone());
    taking.put(object, "offset", format!("{:x}", mapping.offset));
    taking.put(object, "device", mapping.device.clone());
    taking.put(object, "inode", inode);
    taking.put(object, "path", path);
    for (key, value) in &mapping.lines {
        // Soft-dirty is no state of the program's: a mapping has it until somebody has the kernel note writes.
        let value = if key == "VmFlags" { value.trim_end().trim_end_matches(" sd").to_owned() } else { value.clone() };
        taking.put(object, format!("smaps.{key}"), value);
    }
}

/// Where nothing is looked at. A thread that could not be visited has its area of restartable sequences as far from its
/// robust list as others of the tree have: libc sets the distance.
fn dead_ranges(taking: &mut Taking) -> Vec<(u64, u64)> {
    let known = taking.threads.iter().find_map(|thread| Some(thread.rseq?.wrapping_sub(thread.robust_list)));
    taking.rseq_distance = known.or(taking.rseq_distance);
    let distance = taking.rseq_distance;
    let mut dead = Vec::new();
    for thread in &taking.threads {
        if let Some(area) = thread.rseq.or(distance.map(|distance| thread.robust_list.wrapping_add(distance))) {
            dead.push((area, area.saturating_add(RSEQ)));
        }
        if let Some(sp) = thread.stack_pointer {
            dead.push((sp.saturating_sub(DEAD), sp.saturating_sub(RED_ZONE)));
        }
    }
    dead
}

fn contents(taking: &mut Taking, object: &Object, task: &Task, mapping: &Mapping, dead: &[(u64, u64)]) {
    // The kernel's own pages change with every tick of the clock.
    if mapping.path.starts_with("[v") || mapping.path.starts_with("/dev/") && mapping.path != "/dev/zero (deleted)" {
        return;
    }
    // Memory that the kernel may drop at any time.
    if mapping.lines.iter().any(|(key, value)| key == "VmFlags" && value.split(' ').any(|flag| flag == "dp")) {
        return;
    }
    if mapping.perms.ends_with('s') {
        // A file with a name is on the disk, and is the same after the restore.
        if is_made_anew(&mapping.path) && !mapping.path.starts_with("/proc/") {
            let name = format!("map_files/{:x}-{:x}", mapping.start, mapping.end);
            let file = task.open_file(&name, OFlags::RDONLY).map_err(|error| error.errno().unwrap_or(Errno::INVAL));
            taking.put_result(object, "content", file.and_then(|file| file_digest(&file)));
        }
        return;
    }
    // What lies below a stack is dead only as far as the stack's own mapping reaches.
    let inside = |(from, to): &(u64, u64)| (mapping.start + 1..=mapping.end).contains(to).then_some((*from, *to));
    let mut dead: Vec<(u64, u64)> = dead.iter().filter_map(inside).collect();
    if mapping.path == "[stack]" {
        // Where nobody has been yet, a checkpointer may have left its frames, also when the process runs elsewhere.
        dead.push((mapping.start, mapping.start + UNUSED));
    }
    if let Err(errno) = private(taking, object, task, mapping, &dead) {
        taking.put_result::<&str>(object, "content", Err(errno));
    }
}

/// What a process has written into a private mapping.
fn private(
    taking: &mut Taking,
    object: &Object,
    task: &Task,
    mapping: &Mapping,
    dead: &[(u64, u64)],
) -> Result<(), Errno> {
    let pagemap = task.open_file("pagemap", OFlags::RDONLY).map_err(|error| error.errno().unwrap_or(Errno::INVAL))?;
    let memory = task.open_file("mem", OFlags::RDONLY).map_err(|error| error.errno().unwrap_or(Errno::INVAL))?;
    let query = Query {
        start: mapping.start,
        end: mapping.end,
        // Neither the file's own pages nor the shared page of zeros.
        inverted: Categories::FILE | Categories::PFNZERO | Categories::GUARD,
        all: Categories::FILE | Categories::PFNZERO | Categories::GUARD,
        any: Categories::PRESENT | Categories::SWAPPED,
        tell: Categories::PRESENT,
        ..Query::default()
    };
    let part = ((mapping.end - mapping.start) / MOST_PARTS).next_power_of_two().max(PAGE_SIZE);
    let mut open: Option<(u64, Digest)> = None;
    let mut page = vec![0u8; PAGE_SIZE as usize];
    for run in PageRuns::scan(pagemap.as_fd(), query) {
        let run = run?;
        for address in (run.start..run.end).step_by(PAGE_SIZE as usize) {
            // As a tracer reads it: without the right to read, and without making the page the process's own, which
            // process_vm_readv does to one that is shared until it is written.
            rustix::io::pread(&memory, &mut page, address)?;
            for (from, to) in dead {
                let within = |end: u64| end.clamp(address, address + PAGE_SIZE) - address;
                page[within(*from) as usize..within(*to) as usize].fill(0);
            }
            if page.iter().all(|byte| *byte == 0) {
                continue;
            }
            let begin = address / part * part;
            if open.as_ref().is_some_and(|(at, _)| *at != begin)
                && let Some((at, digest)) = open.take()
            {
                taking.put(object, format!("content.{at:x}"), digest.to_string());
            }
            let (_, digest) = open.get_or_insert_with(|| (begin, Digest::default()));
            digest.add(&address.to_ne_bytes());
            digest.add(&page);
        }
    }
    if let Some((at, digest)) = open {
        taking.put(object, format!("content.{at:x}"), digest.to_string());
    }
    Ok(())
}
