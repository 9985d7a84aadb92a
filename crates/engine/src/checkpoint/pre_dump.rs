//! A pre-dump: the memory alone, of a tree that goes on.

use super::refusals::refuse_ourselves;
use super::{janitor, keep, set_parent, unless_pages_were_lost};
use crate::namespaces::{inner, pid};
use crate::precopy::Precopied;
use crate::report::{CheckpointReport, micros};
use crate::{CheckpointOptions, Moment, Result, lazy, parallel};
use cryonaut_image::{CommitOptions, DumpDir, Durability, ImageKind};
use std::path::Path;
use std::time::Instant;

/// Copies the memory of a tree that goes on, what was written since the parent of the image was made or else all of it, for
/// the next image, which may leave what has not changed to this one. It is no image that could be restored.
///
/// # Errors
/// As for [`checkpoint`].
pub fn pre_dump(pid: i32, dir: &Path, options: &CheckpointOptions) -> Result<CheckpointReport> {
    refuse_ourselves(pid)?;
    lazy::wait_until_filled(pid)?;
    let Some(tree) = pid::elsewhere(pid, &options.external)? else {
        return unless_pages_were_lost(options, pre_dump_here(pid, dir, options));
    };
    let report = inner::run(&tree, None, &options.hook, |outer| {
        let options = CheckpointOptions { hook: outer.hook(), ..options.clone() };
        unless_pages_were_lost(&options, pre_dump_here(tree.inside, dir, &options))
    })?;
    Ok(CheckpointReport { root_pid: pid, ..report })
}

fn pre_dump_here(pid: i32, dir: &Path, options: &CheckpointOptions) -> Result<CheckpointReport> {
    let begun = Instant::now();
    options.hook.call(Moment::PreDump, pid)?;
    let _janitor = janitor(dir)?;
    let images = DumpDir::create(dir)?;
    if options.page_server.is_some() {
        images.leave_memory_out();
    }
    set_parent(&images, options)?;
    parallel::get_ready();
    let (precopied, count) = Precopied::pre_dump(pid, &images, options)?;
    options.page_server.as_ref().map_or(Ok(()), |server| server.close())?;
    images.write_one(ImageKind::Inventory, None, &crate::dump::inventory_of_pre_dump())?;
    let (precopy, keeping) = precopied.settle(true, false)?;
    let mut report = CheckpointReport {
        root_pid: pid,
        pages_scanned: count.scanned,
        pages_written: count.written,
        pages_in_parent: count.in_parent,
        frozen_us: precopy.stops_us.iter().sum(),
        ..CheckpointReport::default()
    };
    report.processes = keeping.as_ref().map_or(0, |(_, spaces)| spaces.len());
    report.precopy = Some(precopy);
    let durability = if options.sync { Durability::Synced } else { Durability::Relaxed };
    drop(images.commit(CommitOptions { durability, ..CommitOptions::default() })?);
    keep(keeping);
    options.hook.call(Moment::PostDump, pid)?;
    report.total_us = micros(begun.elapsed());
    Ok(report)
}
