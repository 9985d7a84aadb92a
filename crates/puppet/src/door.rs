//! Where a target is entered: the two snippets in its text and the unused end
//! of its stack.

use crate::arch::{self, Gadgets};
use crate::hand::Doorway;
use crate::{Error, Result, memory, trace};
use cryonaut_kernel::proc::maps::{Perms, Vma};
use std::collections::HashMap;
use std::ops::Range;

/// A file by device and inode, and an offset in it.
type Text = (u64, u64, u64);
/// Where the two snippets lie in it.
type Snippets = (Option<u64>, Option<u64>);

/// What was found in a file's text once serves every process that maps it.
#[derive(Debug, Default)]
pub struct DoorMaps {
    found: HashMap<Text, Snippets>,
}

/// Bytes below the stack pointer that code may use without moving it (System V
/// ABI for x86_64).
const RED_ZONE: u64 = 128;

/// Text is searched in pieces of this size, so that a huge program costs no
/// more memory than a small one; pieces overlap by more than a snippet.
const PIECE: usize = 32 * 1024;
const OVERLAP: u64 = 16;

/// What is known of a process that is to be entered.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// A thread of it that lives.
    pub tid: i32,
    /// Its mappings.
    pub maps: &'a [Vma],
    /// The stack pointer of the thread to enter.
    pub sp: u64,
    /// The stack pointers of other threads, also of other processes, that run in the same memory.
    pub others: &'a [u64],
    /// Where other hands in the same memory have their frames ([`Doorway::frames`]).
    pub taken: &'a [Range<u64>],
}

/// Finds a way into process `pid`. `xstate` is the size of its extended state.
pub fn find_doorway(seen: &mut DoorMaps, pid: i32, ground: &Ground<'_>, xstate: usize) -> Result<Doorway> {
    let gadgets = match find_gadgets(seen, ground.tid, ground.maps)? {
        Some(g) => g,
        None => plant_gadgets(pid, ground)?,
    };
    let (stack, roomy) = find_stack(pid, ground, Doorway::need(xstate))?;
    Ok(Doorway { gadgets, stack, roomy })
}

fn find_gadgets(seen: &mut DoorMaps, tid: i32, maps: &[Vma]) -> Result<Option<Gadgets>> {
    let (mut call, mut ret) = (None, None);
    // The C library comes late in the address space and has both.
    for vma in maps.iter().rev().filter(|v| v.perms.contains(Perms::EXEC) && v.end < 1 << 47) {
        let key = (u64::from(vma.dev.0) << 32 | u64::from(vma.dev.1), vma.inode, vma.offset);
        let (c, r) = match seen.found.get(&key) {
            Some(known) if vma.inode != 0 => *known,
            _ => {
                let found = search(tid, vma)?;
                seen.found.insert(key, found);
                found
            }
        };
        call = call.or(c.map(|off| vma.start + off));
        ret = ret.or(r.map(|off| vma.start + off));
        if let (Some(syscall), Some(sigreturn)) = (call, ret) {
            return Ok(Some(Gadgets { syscall, sigreturn }));
        }
    }
    Ok(None)
}

fn search(tid: i32, vma: &Vma) -> Result<(Option<u64>, Option<u64>)> {
    let (mut call, mut ret) = (None, None);
    let mut end = vma.end;
    let mut buf = vec![0; PIECE];
    // From its end: the dynamic loader has what it took from the C library there.
    while end > vma.start && (call.is_none() || ret.is_none()) {
        let at = end.saturating_sub(PIECE as u64).max(vma.start);
        let piece = &mut buf[..(end - at) as usize];
        // Pages beyond the end of their file cannot be read.
        if memory::read(tid, at, piece).is_ok() {
            let (c, r) = arch::find_gadgets(piece);
            call = call.or(c.map(|o| at + o as u64 - vma.start));
            ret = ret.or(r.map(|o| at + o as u64 - vma.start));
        }
        end = if at == vma.start { at } else { at + OVERLAP };
    }
    Ok((call, ret))
}

/// For a program that has neither snippet: the zero padding behind the vdso's
/// code, which nothing executes.
fn plant_gadgets(pid: i32, ground: &Ground<'_>) -> Result<Gadgets> {
    let none = Error::NoDoor { pid, what: "executable padding" };
    let vdso = ground.maps.iter().find(|v| v.special() == Some(b"vdso")).ok_or(none)?;
    let spare = arch::spare_gadgets();
    let at = vdso.end - spare.len() as u64;
    let mut there = [0u8; 16];
    memory::read(ground.tid, at, &mut there).map_err(|errno| Error::Memory { pid, at, op: "read", errno })?;
    if there != spare {
        if there != [0; 16] {
            return Err(Error::NoDoor { pid, what: "executable padding" });
        }
        for (i, word) in spare.chunks_exact(8).enumerate() {
            let value = u64::from_le_bytes(word.try_into().unwrap_or_default());
            trace::poke_data(ground.tid, at + 8 * i as u64, value).map_err(|errno| Error::Memory {
                pid,
                at,
                op: "write",
                errno,
            })?;
        }
    }
    Ok(Gadgets { syscall: at, sigreturn: at + 4 })
}

/// How many places at the end of the main stack are looked at.
const PLACES: u64 = 24;

/// Whether nothing was ever written there. A chain may be: that of a visitor
/// who died while job control had the process stopped, which it still needs.
fn is_unused(tid: i32, at: u64, len: u64) -> bool {
    let mut there = vec![0; len as usize];
    memory::read(tid, at, &mut there).is_ok() && there.iter().all(|byte| *byte == 0)
}

/// The far end of the main stack: the kernel maps 128 KiB of it at exec, and
/// what lies that far below every live stack pointer has no defined contents.
fn find_stack(pid: i32, ground: &Ground<'_>, need: u64) -> Result<(u64, bool)> {
    let free = |at: u64, len: u64| !ground.taken.iter().any(|t| at < t.end && t.start < at + len);
    let pointers = || ground.others.iter().copied().chain([ground.sp]);
    let stack = ground.maps.iter().find(|v| v.special() == Some(b"stack") && v.perms.contains(Perms::WRITE));
    if let Some(v) = stack {
        let step = need.next_multiple_of(64);
        let top = v.start + PLACES * step;
        // One that stands in such a chain itself has its own stack above.
        let live = pointers().filter(|sp| (top..v.end).contains(sp)).min();
        // Above it, a page for the arguments, or a frame of what runs there.
        let end = live.map_or(v.end - 4096, |sp| sp - 1024);
        let places = (0..PLACES).map(|n| v.start + n * step).filter(|at| at + need <= end && free(*at, need));
        let places: Vec<u64> = places.collect();
        let unused = places.iter().find(|at| is_unused(ground.tid, **at, need));
        let in_chain = pointers().any(|sp| (v.start..top.min(v.end)).contains(&sp));
        if let Some(at) = unused.or(places.first().filter(|_| !in_chain)) {
            return Ok((*at, true));
        }
    }
    // The stack that the thread is on, below the red zone, as a signal's frame would be.
    let sp = ground.sp;
    let v = ground.maps.iter().find(|v| (v.start..v.end).contains(&sp) && v.perms.contains(Perms::WRITE));
    for (len, roomy) in [(need, true), (Doorway::least(), false)] {
        let at = sp.saturating_sub(RED_ZONE + len) & !63;
        if v.is_some_and(|v| at >= v.start) && free(at, len) {
            return Ok((at, roomy));
        }
    }
    Err(Error::NoDoor { pid, what: "stack" })
}
