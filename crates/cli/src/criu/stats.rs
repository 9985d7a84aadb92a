//! The statistics that lie beside an image, and how `--display-stats` shows them.

use cryonaut_engine::{CheckpointReport, RestoreReport};
use cryonaut_image::records::{DumpStatsEntry, RestoreStatsEntry};

/// Of a dump.
pub fn of_dump(report: &CheckpointReport) -> DumpStatsEntry {
    DumpStatsEntry {
        freezing_time: microseconds(report.freeze_us),
        frozen_time: microseconds(report.frozen_us),
        // The memory is copied by the processes themselves straight into the image: both are one step.
        memdump_time: microseconds(report.memory_us),
        memwrite_time: microseconds(report.memory_us),
        pages_scanned: report.pages_scanned,
        pages_written: report.pages_written,
        pages_skipped_parent: report.pages_in_parent,
        pages_lazy: report.pages_lazy,
        shpages_scanned: Some(report.shared_pages_scanned),
        shpages_written: Some(report.shared_pages_written),
        ..DumpStatsEntry::default()
    }
}

/// Of a restore.
pub fn of_restore(report: &RestoreReport) -> RestoreStatsEntry {
    RestoreStatsEntry {
        forking_time: microseconds(report.forking_us),
        restore_time: microseconds(report.total_us),
        pages_restored: Some(report.pages_restored),
        ..RestoreStatsEntry::default()
    }
}

fn microseconds(us: u64) -> u32 {
    u32::try_from(us).unwrap_or(u32::MAX)
}

/// For a person.
pub fn show_dump(stats: &DumpStatsEntry) -> String {
    format!(
        "Displaying dump stats:\nFreezing time: {} us\nFrozen time: {} us\nMemory dump time: {} us\n\
         Memory write time: {} us\nMemory pages scanned: {}\nMemory pages skipped from parent: {}\n\
         Memory pages written: {}\nShared memory pages written: {}\n",
        stats.freezing_time,
        stats.frozen_time,
        stats.memdump_time,
        stats.memwrite_time,
        stats.pages_scanned,
        stats.pages_skipped_parent,
        stats.pages_written,
        stats.shpages_written.unwrap_or(0),
    )
}

/// For a person.
pub fn show_restore(stats: &RestoreStatsEntry) -> String {
    format!(
        "Displaying restore stats:\nRestore time: {} us\nForking time: {} us\n",
        stats.restore_time, stats.forking_time
    )
}
