//! Time namespaces (time_namespaces(7)): how far their clocks are from those of the host. What the clocks showed is
//! written down with the processes (`attributes/clocks.rs`); at the restore they go on from there, without a jump.
//!
//! clone3(2) would leave no moment to set the clocks: a process that has been born leaves for a new namespace, before it
//! has threads or children. A tree that had the host's clocks is given a namespace as well, if they would go back
//! otherwise: the host has been started again, or is another.

use super::{Building, Dumping, Halves, Own};
use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::{TimensEntry, Timespec};
use cryonaut_image::{ImageDir, ImageKind};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace::{self, CLONE_NEWTIME};
use cryonaut_puppet::Batch;
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

pub const HALVES: Halves = Halves { dump, build, at_birth: false };

/// The number under which the surroundings' clocks are written down.
pub const SURROUNDINGS: u32 = 0;

const SECOND: i128 = 1_000_000_000;

fn dump(_: &mut Dumping<'_>, _: &Own) -> Result<()> {
    Ok(())
}

/// Whether the monotonic clock of the surroundings shows less than it did.
pub fn would_go_back(images: &ImageDir) -> Result<bool> {
    let record: Option<TimensEntry> = images.read_optional(ImageKind::Timens, u64::from(SURROUNDINGS))?;
    Ok(record.is_some_and(|record| offset(&record.monotonic, ClockId::Monotonic) > 0))
}

/// By how many nanoseconds a clock is to be ahead of ours.
fn offset(wanted: &Timespec, clock: ClockId) -> i128 {
    let now = clock_gettime(clock);
    let now = i128::from(now.tv_sec) * SECOND + i128::from(now.tv_nsec);
    i128::from(wanted.tv_sec) * SECOND + i128::from(wanted.tv_nsec) - now
}

/// How far a clock is ahead of the host's, as `/proc/PID/timens_offsets` tells it.
fn recorded(told: &str, clock: &str) -> i128 {
    let mut fields = told.lines().map(str::split_whitespace).filter_map(|mut line| {
        (line.next() == Some(clock)).then(|| Some((line.next()?.parse::<i128>().ok()?, line.next()?.parse().ok()?)))?
    });
    fields.next().map_or(0, |(seconds, nanoseconds): (i128, i128)| seconds * SECOND + nanoseconds)
}

fn build(cx: &mut Building<'_>, own: &Own) -> Result<()> {
    let record: TimensEntry = match cx.images.read_optional(ImageKind::Timens, u64::from(own.id))? {
        Some(record) => record,
        // Of a tree all of which is in one, CRIU writes that.
        None => cx.images.read_one(ImageKind::Timens, u64::from(SURROUNDINGS))?,
    };
    let mut b = Batch::new();
    b.call(libc::SYS_unshare, [CLONE_NEWTIME.into()]);
    cx.hand.run(&mut b)?;
    let task = Task::open(pid_of(own.pid)?)?;
    // What is written is told from the host's clocks, ours may be ahead of those: so far are those of the new one.
    let told = task.read("timens_offsets")?;
    let told = String::from_utf8_lossy(&told);
    let line = |name: &str, ahead: i128| {
        let ahead = ahead + recorded(&told, name);
        format!("{name} {} {}\n", ahead.div_euclid(SECOND), ahead.rem_euclid(SECOND))
    };
    let file = task.open_file("timens_offsets", OFlags::WRONLY)?;
    // In one call: the second would find clocks that have been read.
    let text = line("monotonic", offset(&record.monotonic, ClockId::Monotonic))
        + &line("boottime", offset(&record.boottime, ClockId::Boottime));
    rustix::io::write(&file, text.as_bytes()).map_err(|errno| Error::Kernel {
        object: Object::Process(own.pid),
        action: "set the clocks of its time namespace".into(),
        errno,
        remedy: "this needs CAP_SYS_TIME",
    })?;
    let made = namespace::open(&task, Namespace::TimeForChildren)?;
    super::join(cx.hand, cx.service, Namespace::Time, std::os::fd::AsFd::as_fd(&made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_told_by_clock() {
        let told = "monotonic     9504000         0\nboottime            -1 999999999\n";
        assert_eq!(recorded(told, "monotonic"), 9_504_000 * SECOND);
        assert_eq!(recorded(told, "boottime"), -1);
        assert_eq!(recorded("", "boottime"), 0);
    }
}
