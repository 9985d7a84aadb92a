//! Writing down the address space of a process.

use super::{Files, lock};
use crate::freeze::Process;
use crate::memory::{self, KnownFlags, PageCount, PagesPlace, aio, dump_private, find_files, mappings, mm_record};
use crate::questions::Questions;
use crate::sharing::SharedSpace;
use crate::{Result, parallel};
use cryonaut_image::ImageKind;
use cryonaut_image::records::VmaEntry;
use cryonaut_kernel::proc::maps::{FlaggedVma, VmFlags, Vma};
use cryonaut_puppet::Hand;

/// Whether a process's memory is not to be written without its hand: what was copied while it ran needs none.
pub fn hand_writes(process: &Process, is_precopied: bool) -> bool {
    (has_much_memory(process) && !is_precopied) || process.maps.iter().any(aio::is_mapping)
}

/// Whether its hand is to hand its pages on.
fn has_much_memory(process: &Process) -> bool {
    process.status.vm_rss_kib << 10 >= memory::WORTH_IT
}

/// The address space of a process, which others may share: each has its
/// records, the pages are there once.
pub fn dump_memory(
    files: Files<'_, '_>,
    place: PagesPlace<'_>,
    process: &Process,
    mut hand: Option<&mut Hand>,
    space: &SharedSpace,
    asked: &Questions,
) -> Result<(PageCount, memory::Extras)> {
    let b = &asked.answers;
    let mut extras = asked.extras.answer(b);
    let precopied = place.precopied.and_then(|precopied| precopied.of(&space.pids));
    let is_tracked = precopied.as_ref().is_some_and(|space| space.is_ours());
    let known = precopied.as_ref().and_then(|copied| copied.mappings(process, &space.scratches));
    let known = known.or_else(|| KnownFlags::prepared()?.of_frozen(process, &space.scratches));
    drop(precopied);
    let smaps = || -> Result<Vec<FlaggedVma>> {
        let mut flagged = known.map_or_else(|| process.task.smaps(), Ok)?;
        // Of our own doing.
        let segments = |vma: &Vma| place.precopied.is_some_and(|precopied| precopied.has_segment(process.pid, vma));
        let of_ours = flagged.iter_mut().filter(|flagged| is_tracked || segments(&flagged.vma));
        of_ours.for_each(|flagged| flagged.flags.remove(VmFlags::UFFD_WP));
        Ok(flagged)
    };
    let mut write = |vmas: &[VmaEntry]| dump_private(place, process, hand.as_deref_mut(), space, vmas);
    let (flagged, early) = if has_much_memory(process) && !process.maps.iter().any(aio::is_mapping) {
        // To tell the flags, the kernel looks at every page: meanwhile pages can be written.
        let vmas = memory::mappings_without_flags(process)?;
        let (flagged, written) = parallel::both(smaps, || write(&vmas));
        (flagged?, Some(written))
    } else {
        (smaps()?, None)
    };
    // What cannot be carried is told first.
    let mut vmas = mappings(&mut extras, process, &flagged, &space.scratches)?;
    let (count, beside, aios) = match early {
        Some(written) => {
            let (count, beside) = written?;
            (count, beside, Vec::new())
        }
        None => {
            let aios = aio::collect(process.pid, hand.as_deref_mut(), &vmas)?;
            let (count, beside) = dump_private(place, process, hand, space, &vmas)?;
            (count, beside, aios)
        }
    };
    memory::add_guards(&mut vmas, beside.guards);
    (extras.like_file, extras.like_file_sum) = (beside.like_file, beside.like_file_sum);
    let mut cx = lock(files);
    find_files(&mut cx, process, &flagged, &mut vmas)?;
    let mm = mm_record(&mut cx, process, &asked.mm, b, vmas, aios)?;
    drop(cx);
    let images = place.images;
    for pid in &space.pids {
        images.write_one(ImageKind::Mm, *pid as u64, &mm)?;
    }
    Ok((count, extras))
}
