//! Moving this kernel's vdso, and the data pages before it, to where the
//! program expects them.
//!
//! A program keeps addresses of vdso functions (in its auxv, in its PLT), so
//! the vdso must be where it was. When this kernel's has the same bytes, its
//! mappings are moved there. Otherwise the program's own stays as ordinary
//! memory, and leads to this kernel's elsewhere (see `vdso_redirect`).

use super::vdso_redirect::redirect;
use super::vma::status;
use crate::restore::Work;
use crate::{Error, Object, Result};
use cryonaut_image::records::VmaEntry;
use cryonaut_kernel::proc::maps::Vma;
use cryonaut_puppet::Batch;

/// The kernel's special mappings in ascending order: data pages, then code.
fn is_special(vma: &Vma) -> bool {
    matches!(vma.special(), Some(name) if name == b"vdso" || name.starts_with(b"vvar"))
}

/// The special mappings of a process.
pub fn specials(maps: &[Vma]) -> Vec<(u64, u64)> {
    maps.iter().filter(|v| is_special(v)).map(|v| (v.start, v.end)).collect()
}

fn wanted(vmas: &[VmaEntry]) -> Vec<(u64, u64)> {
    vmas.iter().filter(|v| v.status & (status::VDSO | status::VVAR) != 0).map(|v| (v.start, v.end)).collect()
}

fn span(areas: &[(u64, u64)]) -> (u64, u64) {
    (areas.first().map_or(0, |a| a.0), areas.last().map_or(0, |a| a.1))
}

/// Where a record has the code.
pub fn recorded(vmas: &[VmaEntry]) -> Option<(u64, u64)> {
    vmas.iter().find(|v| v.status & status::VDSO != 0).map(|v| (v.start, v.end))
}

/// Puts the special mappings, which stand at `now`, where the program whose
/// record is `vmas` needs them. `code` is what it had in its vdso, as far as
/// known; `free` an address with room for all of them.
pub fn place(work: &mut Work<'_>, now: &[(u64, u64)], vmas: &[VmaEntry], code: Option<&[u8]>, free: u64) -> Result<()> {
    if let (Some(code), Some(&(start, end))) = (code, now.last()) {
        let here = work.hand.peek(start, (end - start) as usize)?;
        // With other data pages before it, even the same code would look for them where they are not.
        if here != code || !same_layout(now, &wanted(vmas)) {
            return lead_away(work, now, (vmas, code), &here, free);
        }
    }
    relocate(work.hand.pid(), &mut work.batch, now, vmas, free)
}

/// Adds what puts this kernel's special mappings to `free` for
/// good, and the program's own code, which leads there, in its place.
fn lead_away(
    work: &mut Work<'_>,
    now: &[(u64, u64)],
    (vmas, code): (&[VmaEntry], &[u8]),
    here: &[u8],
    free: u64,
) -> Result<()> {
    let Some((start, end)) = recorded(vmas) else { return Ok(()) };
    let from = span(now).0;
    let there: Vec<(u64, u64)> = now.iter().map(|a| (free + (a.0 - from), free + (a.1 - from))).collect();
    if there != now {
        moves(&mut work.batch, now, &there);
    }
    let base = there.last().map_or(0, |code| code.0);
    let led = redirect(code, here, base).map_err(|stuck| {
        let remedy = "restore on the kernel on which the program was started";
        Error::unsupported(Object::Mapping(work.hand.pid(), start, "vdso".into()), stuck.to_string(), remedy)
    })?;
    tracing::debug!(
        pid = work.hand.pid(),
        "the program's vdso is another than this kernel's: its functions are led there"
    );
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let (len, prot) = (end - start, libc::PROT_READ | libc::PROT_WRITE);
    work.batch.call(libc::SYS_mmap, [start.into(), len.into(), prot.into(), flags.into(), (-1).into(), 0.into()]);
    work.flush()?;
    work.hand.poke(start, &led)?;
    work.batch.call(libc::SYS_mprotect, [start.into(), len.into(), (libc::PROT_READ | libc::PROT_EXEC).into()]);
    Ok(())
}

/// Adds to a batch the moves from where the special mappings stand (`now`) to
/// where `vmas` want them. `free` is an address with room for all of them,
/// used when old and new place overlap. Those that the program had unmapped
/// are unmapped.
fn relocate(pid: i32, b: &mut Batch, now: &[(u64, u64)], vmas: &[VmaEntry], free: u64) -> Result<()> {
    let wanted = wanted(vmas);
    if wanted.is_empty() {
        for &(start, end) in now {
            b.call(libc::SYS_munmap, [start.into(), (end - start).into()]);
        }
        return Ok(());
    }
    let (old, new) = (span(now), span(&wanted));
    if !same_layout(now, &wanted) {
        return Err(Error::unsupported(
            Object::Process(pid),
            "the vdso of this kernel has another layout than the one the program was started with",
            "restore on the kernel on which it was dumped",
        ));
    }
    if old == new {
        return Ok(());
    }
    // CRIU writes the data pages down as one area where the kernel has several.
    let wanted: Vec<(u64, u64)> = now.iter().map(|a| (new.0 + (a.0 - old.0), new.0 + (a.1 - old.0))).collect();
    let mut from: Vec<(u64, u64)> = now.to_vec();
    if old.0 < new.1 && new.0 < old.1 {
        let stop: Vec<(u64, u64)> = now.iter().map(|a| (free + (a.0 - old.0), free + (a.1 - old.0))).collect();
        moves(b, &from, &stop);
        from = stop;
    }
    moves(b, &from, &wanted);
    Ok(())
}

/// Whether the code is as large and the data pages before it are as many, each
/// without gaps.
fn same_layout(now: &[(u64, u64)], wanted: &[(u64, u64)]) -> bool {
    let sizes = |areas: &[(u64, u64)]| {
        let gapless = areas.windows(2).all(|pair| pair[0].1 == pair[1].0);
        let whole = span(areas);
        areas.last().filter(|_| gapless).map(|code| (code.1 - code.0, whole.1 - whole.0))
    };
    sizes(now).is_some() && sizes(now) == sizes(wanted)
}

fn moves(b: &mut Batch, from: &[(u64, u64)], to: &[(u64, u64)]) {
    for (f, t) in from.iter().zip(to) {
        let len = f.1 - f.0;
        let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        b.call(libc::SYS_mremap, [f.0.into(), len.into(), len.into(), how.into(), t.0.into()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(start: u64, end: u64, status: u32) -> VmaEntry {
        VmaEntry { start, end, status, ..VmaEntry::default() }
    }

    #[test]
    fn a_move_onto_itself_takes_a_detour() {
        let now = [(0x1000, 0x2000), (0x2000, 0x3000)];
        let vmas = [vma(0x2000, 0x3000, status::VVAR), vma(0x3000, 0x4000, status::VDSO)];
        let mut b = Batch::new();
        relocate(1, &mut b, &now, &vmas, 0x9000).unwrap();
        assert_eq!(b.len(), 4);
        let mut apart = Batch::new();
        relocate(1, &mut apart, &[(0x5000, 0x6000), (0x6000, 0x7000)], &vmas, 0x9000).unwrap();
        assert_eq!(apart.len(), 2);
    }

    #[test]
    fn data_pages_may_be_recorded_as_one_area() {
        let now = [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)];
        let vmas = [vma(0x11000, 0x13000, status::VVAR), vma(0x13000, 0x14000, status::VDSO)];
        let mut b = Batch::new();
        relocate(1, &mut b, &now, &vmas, 0x90000).unwrap();
        assert_eq!(b.len(), 3);
    }

    #[test]
    fn another_layout_is_refused() {
        let vmas = [vma(0x2000, 0x4000, status::VVAR), vma(0x4000, 0x5000, status::VDSO)];
        assert!(relocate(1, &mut Batch::new(), &[(0x1000, 0x2000), (0x2000, 0x3000)], &vmas, 0).is_err());
    }
}
