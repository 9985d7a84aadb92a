//! Timers read from a file (timerfd_create(2)).
//!
//! The record has the time left. That is right for clocks that count from
//! boot: they stand still with the workload. A deadline on the wall clock
//! stays where it was, however long the image lay around: it goes beside the
//! record, in `cryonaut-timerfd-ID.json`. Timers are started when all else is
//! done, so that the time a restore takes does not count.

use super::{Build, Collect, FileKind, OpenFile, Settle, apply_status_flags};
use crate::{Error, Object, Result};
use cryonaut_image::ImageDir;
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, TimerfdEntry};
use cryonaut_kernel::proc::fdinfo::Details;
use cryonaut_kernel::sys::timerfd;
use rustix::io::Errno;
use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Timers.
#[derive(Debug)]
pub struct TimerFd;

/// When a timer of the wall clock expires next, since the Epoch.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Deadline {
    sec: i64,
    nsec: i64,
}

const ABSTIME: u32 = TimerfdTimerFlags::ABSTIME.bits();

impl FileKind for TimerFd {
    fn name(&self) -> &'static str {
        "timerfd"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Timerfd
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        matches!(file.info.details, Details::TimerFd(_))
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        // Asking for the time makes the kernel count the periods that have passed
        // unread; before, fdinfo shows one of them and no time left.
        let left = rustix::time::timerfd_gettime(file.file)
            .map_err(|e| Error::kernel(file.object(), "read how much time is left", e))?;
        let Details::TimerFd(timer) = file.task.fdinfo(file.fd)?.details else {
            return Err(file.unexpected(self.name()));
        };
        let tfd = TimerfdEntry {
            id,
            flags: file.flags(),
            fown: file.owner()?,
            clockid: timer.clock as u32,
            ticks: timer.ticks,
            settime_flags: timer.settime_flags,
            vsec: left.it_value.tv_sec as u64,
            vnsec: left.it_value.tv_nsec as u64,
            isec: left.it_interval.tv_sec as u64,
            insec: left.it_interval.tv_nsec as u64,
        };
        if is_wall_deadline(&tfd) {
            let at = sum(rustix::time::clock_gettime(ClockId::Realtime), left.it_value);
            cx.images.write_json(&deadline_name(id), &Deadline { sec: at.tv_sec, nsec: at.tv_nsec })?;
        }
        Ok(FileEntry { r#type: FdTypes::Timerfd as i32, id, tfd: Some(tfd), ..FileEntry::default() })
    }

    fn build(&self, _cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let tfd = entry.tfd.ok_or_else(|| Build::lacks(entry, self.name()))?;
        let clock = clock_of(&tfd)?;
        let file = rustix::time::timerfd_create(clock, TimerfdFlags::CLOEXEC).map_err(|errno| Error::Kernel {
            object: object(&tfd),
            action: "make a timerfd".into(),
            errno,
            remedy: if errno == Errno::PERM { "alarm clocks need CAP_WAKE_ALARM" } else { "" },
        })?;
        apply_status_flags(file.as_fd(), entry.id, tfd.flags)?;
        Ok(file)
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.tfd.as_ref().map(|tfd| &tfd.fown)
    }

    fn settle(&self, cx: &mut Settle<'_>, entry: &FileEntry, file: BorrowedFd<'_>) -> Result<()> {
        entry.tfd.as_ref().map_or(Ok(()), |tfd| start(cx.images, tfd, file))
    }
}

fn object(tfd: &TimerfdEntry) -> Object {
    Object::File(tfd.id, "timerfd".into())
}

fn deadline_name(id: u32) -> String {
    format!("timerfd-{id}")
}

fn clock_of(tfd: &TimerfdEntry) -> Result<TimerfdClockId> {
    use TimerfdClockId::{Boottime, BoottimeAlarm, Monotonic, Realtime, RealtimeAlarm};
    [Realtime, Monotonic, Boottime, RealtimeAlarm, BoottimeAlarm]
        .into_iter()
        .find(|clock| *clock as u32 == tfd.clockid)
        .ok_or_else(|| {
            Error::bad_image("files.img", format!("timerfd {:#x} has the unknown clock {}", tfd.id, tfd.clockid))
        })
}

/// The clock that counts what a timer of `clock` counts, to be read.
fn readable(clock: TimerfdClockId) -> ClockId {
    match clock {
        TimerfdClockId::Realtime | TimerfdClockId::RealtimeAlarm => ClockId::Realtime,
        TimerfdClockId::Boottime | TimerfdClockId::BoottimeAlarm => ClockId::Boottime,
        _ => ClockId::Monotonic,
    }
}

fn is_wall_deadline(tfd: &TimerfdEntry) -> bool {
    let wall = clock_of(tfd).is_ok_and(|clock| readable(clock) == ClockId::Realtime);
    wall && tfd.settime_flags & ABSTIME != 0 && (tfd.vsec, tfd.vnsec) != (0, 0)
}

fn sum(one: Timespec, two: Timespec) -> Timespec {
    let nsec = one.tv_nsec + two.tv_nsec;
    Timespec { tv_sec: one.tv_sec.saturating_add(two.tv_sec) + nsec / 1_000_000_000, tv_nsec: nsec % 1_000_000_000 }
}

/// Starts the timer where it stood and gives it back what was not read yet.
fn start(images: &ImageDir, tfd: &TimerfdEntry, file: BorrowedFd<'_>) -> Result<()> {
    let failed = |action: &str, errno| Error::kernel(object(tfd), action, errno);
    let mut value = Timespec { tv_sec: tfd.vsec as i64, tv_nsec: tfd.vnsec as i64 };
    let it_interval = Timespec { tv_sec: tfd.isec as i64, tv_nsec: tfd.insec as i64 };
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    if value == zero && tfd.ticks > 0 {
        // A period of which CRIU saw the end, and not yet the begin of the next.
        value = it_interval;
    }
    let mut ticks = tfd.ticks;
    if tfd.settime_flags & ABSTIME != 0 && value != zero {
        let now = rustix::time::clock_gettime(readable(clock_of(tfd)?));
        value = sum(now, value);
        if is_wall_deadline(tfd)
            && let Some(deadline) = images.read_json::<Deadline>(&deadline_name(tfd.id))?
        {
            value = Timespec { tv_sec: deadline.sec, tv_nsec: deadline.nsec };
            // It expires at once; what is set below replaces this tick.
            ticks += u64::from(ticks > 0 && value <= now);
        }
    }
    let flags = TimerfdTimerFlags::from_bits_retain(tfd.settime_flags);
    rustix::time::timerfd_settime(file, flags, &Itimerspec { it_interval, it_value: value })
        .map_err(|e| failed("start it", e))?;
    if ticks > 0 {
        timerfd::set_ticks(file, ticks).map_err(|e| failed("give it back its unread expirations", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;
    use std::time::Duration;

    fn timer(clock: TimerfdClockId, flags: TimerfdTimerFlags, value: Duration, interval: Duration) -> OwnedFd {
        let spec = |d: Duration| Timespec { tv_sec: d.as_secs() as i64, tv_nsec: i64::from(d.subsec_nanos()) };
        let file = rustix::time::timerfd_create(clock, TimerfdFlags::NONBLOCK).unwrap();
        let spec = Itimerspec { it_interval: spec(interval), it_value: spec(value) };
        rustix::time::timerfd_settime(&file, flags, &spec).unwrap();
        file
    }

    fn ticks(file: &OwnedFd) -> std::result::Result<u64, Errno> {
        let mut ticks = [0; 8];
        rustix::io::read(file, &mut ticks).map(|_| u64::from_ne_bytes(ticks))
    }

    #[test]
    fn time_left_period_and_unread_ticks_come_back() {
        let none = TimerfdTimerFlags::empty();
        let hour = Duration::from_secs(3600);
        let far = timer(TimerfdClockId::Boottime, none, hour, Duration::ZERO);
        let beat = timer(TimerfdClockId::Monotonic, none, Duration::from_millis(1), Duration::from_millis(40));
        let idle = timer(TimerfdClockId::Monotonic, none, Duration::ZERO, Duration::ZERO);
        let once = timer(TimerfdClockId::Monotonic, none, Duration::from_nanos(1), Duration::ZERO);
        std::thread::sleep(Duration::from_millis(50));
        let carried = Carried::collect(&[&far, &beat, &idle, &once]).build(RestoreOptions::default());
        for n in 0..4 {
            start(carried.images(), &carried.record(n).tfd.unwrap(), carried.file(n).as_fd()).unwrap();
        }
        let left = rustix::time::timerfd_gettime(carried.file(0)).unwrap().it_value.tv_sec;
        assert!((3590..3600).contains(&left), "{left}");
        assert_eq!(ticks(carried.file(1)), Ok(2));
        assert_eq!(ticks(carried.file(1)), Err(Errno::AGAIN));
        std::thread::sleep(Duration::from_millis(45));
        assert!(ticks(carried.file(1)).unwrap() >= 1);
        assert_eq!(ticks(carried.file(2)), Err(Errno::AGAIN));
        assert_eq!((ticks(carried.file(3)), ticks(carried.file(3))), (Ok(1), Err(Errno::AGAIN)));
    }

    #[test]
    fn a_deadline_on_the_wall_clock_stays_where_it_was() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let at = now + Duration::from_millis(60);
        let file = timer(TimerfdClockId::Realtime, TimerfdTimerFlags::ABSTIME, at, Duration::ZERO);
        let carried = Carried::collect(&[&file]).build(RestoreOptions::default());
        std::thread::sleep(Duration::from_millis(100));
        start(carried.images(), &carried.record(0).tfd.unwrap(), carried.file(0).as_fd()).unwrap();
        assert_eq!(ticks(carried.file(0)), Ok(1));
    }
}
