//! `/proc/PID/fdinfo/N`: what the kernel tells of an open file, by its kind (proc_pid_fdinfo(5), and the
//! `show_fdinfo` of each kind in the kernel).

use std::os::fd::RawFd;

use super::locks::{self, FileLock};
use super::text::{self, Malformed, OrMalformed};
use super::{Result, Task};
use crate::sys::handle::FileHandle;

/// One open file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdInfo {
    /// File position in bytes.
    pub pos: i64,
    /// `O_*`, the access mode among them; `O_CLOEXEC` is that of this descriptor.
    pub flags: u32,
    /// Mount through which it was opened: the id of mountinfo, or of a mount that it does not list.
    pub mnt_id: i32,
    /// Linux 5.14.
    pub ino: Option<u64>,
    /// Locks and leases made through this description, and the POSIX locks of the process on the file.
    pub locks: Vec<FileLock>,
    pub details: Details,
}

/// The lines that belong to the kind of the file. An epoll, inotify or fanotify that watches nothing shows
/// `None` (fanotify: no marks): only the link's target tells what it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Details {
    #[default]
    None,
    EventFd {
        count: u64,
        /// Distinguishes eventfds. Linux 5.2.
        id: Option<i32>,
        /// Linux 6.5.
        semaphore: Option<bool>,
    },
    Epoll(Vec<EpollTarget>),
    SignalFd {
        /// Bit n-1 for signal n.
        mask: u64,
    },
    Inotify(Vec<InotifyWatch>),
    Fanotify {
        /// `FAN_CLASS_*` and others of fanotify_init.
        flags: u32,
        /// The `O_*` of the files that events bring.
        event_flags: u32,
        marks: Vec<FanotifyMark>,
    },
    TimerFd(TimerFd),
    Tty {
        index: u32,
    },
    PidFd {
        /// -1 when the process has been reaped, 0 when it is outside of the namespace of this /proc.
        pid: i32,
        /// Its pid from this /proc's namespace inwards.
        ns_pids: Vec<i32>,
    },
    Tun {
        /// Name of the interface; empty before TUNSETIFF.
        interface: Vec<u8>,
    },
    BpfMap(BpfMap),
    UserFaultFd {
        pending: u64,
        total: u64,
        api: u64,
        /// As the handle has them, internal bits included.
        features: u64,
    },
    Unix {
        /// Descriptors in flight in its queue. Linux 5.11.
        scm_fds: u32,
    },
    /// Any other kind (io_uring, bpf programs and links, DMA buffers): its lines as they are.
    Other(Vec<Vec<u8>>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpollTarget {
    /// The number under which it was added: may since be closed, or name another file.
    pub fd: RawFd,
    /// `EPOLL*`; 0 when it was one-shot and has fired.
    pub events: u32,
    pub data: u64,
    pub pos: i64,
    pub ino: u64,
    /// `s_dev` as the kernel packs it: see [`split_sdev`].
    pub sdev: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyWatch {
    pub wd: i32,
    pub ino: u64,
    pub sdev: u32,
    /// `IN_*`.
    pub mask: u32,
    /// `None` where the file system has none.
    pub handle: Option<FileHandle>,
}

/// What a fanotify mark is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FanotifyObject {
    Inode { ino: u64, sdev: u32, handle: Option<FileHandle> },
    Mount { mnt_id: i32 },
    FileSystem { sdev: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanotifyMark {
    pub object: FanotifyObject,
    /// `FAN_MARK_*` that are kept: `IGNORED_SURV_MODIFY`, `EVICTABLE`, `IGNORE`.
    pub flags: u32,
    /// `FAN_*` events.
    pub mask: u64,
    pub ignored_mask: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimerFd {
    /// `CLOCK_*`.
    pub clock: i32,
    /// Expirations not read yet.
    pub ticks: u64,
    /// `TFD_TIMER_*`.
    pub settime_flags: u32,
    /// Time left, in seconds and nanoseconds.
    pub value: (u64, u64),
    pub interval: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BpfMap {
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub map_flags: u32,
    /// Linux 5.16.
    pub map_extra: u64,
    pub memlock: u64,
    pub map_id: u32,
    pub frozen: bool,
}

/// Major and minor number in a `dev_t` as the kernel keeps it: the minor has the low 20 bits.
pub fn split_sdev(sdev: u32) -> (u32, u32) {
    (sdev >> 20, sdev & 0xf_ffff)
}

impl Task {
    /// What the kernel tells of descriptor `fd`.
    pub fn fdinfo(&self, fd: RawFd) -> Result<FdInfo> {
        self.single_as(&format!("fdinfo/{fd}"), parse)
    }
}

/// Parses a file of fdinfo.
pub fn parse(text: &[u8]) -> std::result::Result<FdInfo, Malformed> {
    let mut info = FdInfo { pos: 0, flags: 0, mnt_id: 0, ino: None, locks: Vec::new(), details: Details::None };
    let mut complete = false;
    for line in text::lines(text) {
        let (key, value) = text::cut(line, b':').unwrap_or((b"", line));
        let trimmed = value.trim_ascii();
        match key {
            b"pos" => info.pos = text::signed(trimmed).or_malformed("pos", line)?,
            b"flags" => {
                info.flags = text::oct(trimmed).or_malformed("flags", line)?;
                complete = true;
            }
            b"mnt_id" => info.mnt_id = text::signed(trimmed).or_malformed("mount id", line)?,
            b"ino" => info.ino = Some(text::dec(trimmed).or_malformed("inode", line)?),
            b"lock" => info.locks.push(locks::parse_line(value)?),
            _ => take_detail(&mut info.details, line, key, trimmed).or_malformed("value", line)?,
        }
    }
    if !complete {
        return Err(Malformed::new("flags line", text));
    }
    Ok(info)
}

/// Adds one line to the details; `None` when its value is not what its key asks for.
fn take_detail(details: &mut Details, line: &[u8], key: &[u8], value: &[u8]) -> Option<()> {
    // A kind's further lines mean something only after its first.
    match (&mut *details, key) {
        (Details::EventFd { id, .. }, b"eventfd-id") => *id = Some(text::signed(value)?),
        (Details::EventFd { semaphore, .. }, b"eventfd-semaphore") => *semaphore = Some(value == b"1"),
        (Details::Epoll(targets), b"tfd") => targets.push(epoll_target(line)?),
        (Details::Inotify(watches), _) if line.starts_with(b"inotify ") => watches.push(inotify_watch(line)?),
        (Details::Fanotify { marks, .. }, _) if line.starts_with(b"fanotify ") => marks.push(fanotify_mark(line)?),
        (Details::TimerFd(timer), key) => timer_line(timer, key, value)?,
        (Details::PidFd { ns_pids, .. }, b"NSpid") => {
            *ns_pids = text::words(value).map(text::signed).collect::<Option<_>>()?;
        }
        (Details::BpfMap(map), key) => bpf_line(map, key, value)?,
        (Details::UserFaultFd { total, .. }, b"total") => *total = text::dec(value)?,
        (Details::UserFaultFd { api, features, .. }, b"API") => {
            let mut parts = value.split(|&byte| byte == b':');
            *api = text::hex(parts.next()?)?;
            *features = text::hex(parts.next_back()?)?;
        }
        (Details::None, _) => *details = first_detail(line, key, value)?,
        (Details::Other(lines), _) => lines.push(line.to_vec()),
        // A line that a newer kernel has added to a kind known here.
        _ => {}
    }
    Some(())
}

fn first_detail(line: &[u8], key: &[u8], value: &[u8]) -> Option<Details> {
    Some(match key {
        b"eventfd-count" => Details::EventFd { count: text::hex(value)?, id: None, semaphore: None },
        b"tfd" => Details::Epoll(vec![epoll_target(line)?]),
        b"sigmask" => Details::SignalFd { mask: text::hex(value)? },
        b"clockid" => Details::TimerFd(TimerFd { clock: text::signed(value)?, ..TimerFd::default() }),
        b"tty-index" => Details::Tty { index: text::dec(value)? },
        b"Pid" => Details::PidFd { pid: text::signed(value)?, ns_pids: Vec::new() },
        b"iff" => Details::Tun { interface: value.to_vec() },
        b"map_type" => Details::BpfMap(BpfMap { map_type: text::dec(value)?, ..BpfMap::default() }),
        b"pending" => Details::UserFaultFd { pending: text::dec(value)?, total: 0, api: 0, features: 0 },
        b"scm_fds" => Details::Unix { scm_fds: text::dec(value)? },
        _ if line.starts_with(b"inotify ") => Details::Inotify(vec![inotify_watch(line)?]),
        _ if line.starts_with(b"fanotify ") => {
            let flags = text::hex(named(line, b"flags")?)?;
            Details::Fanotify { flags, event_flags: text::hex(named(line, b"event-flags")?)?, marks: Vec::new() }
        }
        _ => Details::Other(vec![line.to_vec()]),
    })
}

/// The value of `name:value` among the words of a line; blanks may stand after the colon.
fn named<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut words = text::words(line);
    while let Some(word) = words.next() {
        if let Some(value) = word.strip_prefix(name).and_then(|rest| rest.strip_prefix(b":")) {
            return if value.is_empty() { words.next() } else { Some(value) };
        }
    }
    None
}

fn epoll_target(line: &[u8]) -> Option<EpollTarget> {
    Some(EpollTarget {
        fd: text::dec(named(line, b"tfd")?)?,
        events: text::hex(named(line, b"events")?)?,
        data: text::hex(named(line, b"data")?)?,
        pos: text::signed(named(line, b"pos")?)?,
        ino: text::hex(named(line, b"ino")?)?,
        sdev: text::hex(named(line, b"sdev")?)?,
    })
}

fn inotify_watch(line: &[u8]) -> Option<InotifyWatch> {
    Some(InotifyWatch {
        wd: text::hex::<u32>(named(line, b"wd")?)? as i32,
        ino: text::hex(named(line, b"ino")?)?,
        sdev: text::hex(named(line, b"sdev")?)?,
        mask: text::hex(named(line, b"mask")?)?,
        handle: handle(line)?,
    })
}

fn fanotify_mark(line: &[u8]) -> Option<FanotifyMark> {
    let sdev = named(line, b"sdev").and_then(text::hex);
    let object = if let Some(ino) = named(line, b"ino") {
        FanotifyObject::Inode { ino: text::hex(ino)?, sdev: sdev?, handle: handle(line)? }
    } else if let Some(mnt_id) = named(line, b"mnt_id") {
        FanotifyObject::Mount { mnt_id: text::hex(mnt_id)? }
    } else {
        FanotifyObject::FileSystem { sdev: sdev? }
    };
    Some(FanotifyMark {
        object,
        flags: text::hex(named(line, b"mflags")?)?,
        mask: text::hex(named(line, b"mask")?)?,
        ignored_mask: text::hex(named(line, b"ignored_mask")?)?,
    })
}

/// The file handle of a watch; `Some(None)` where the line has none, `None` where it is cut.
fn handle(line: &[u8]) -> Option<Option<FileHandle>> {
    let Some(digits) = named(line, b"f_handle") else {
        return Some(None);
    };
    let length: usize = text::hex(named(line, b"fhandle-bytes")?)?;
    let kind = text::hex::<u32>(named(line, b"fhandle-type")?)? as i32;
    let bytes = digits.chunks(2).map(text::hex::<u8>).collect::<Option<Vec<_>>>()?;
    (bytes.len() == length && digits.len() % 2 == 0).then_some(Some(FileHandle { kind, bytes }))
}

fn timer_line(timer: &mut TimerFd, key: &[u8], value: &[u8]) -> Option<()> {
    match key {
        b"ticks" => timer.ticks = text::dec(value)?,
        b"settime flags" => timer.settime_flags = text::oct(value)?,
        b"it_value" => timer.value = seconds(value)?,
        b"it_interval" => timer.interval = seconds(value)?,
        _ => {}
    }
    Some(())
}

/// `(seconds, nanoseconds)`.
fn seconds(value: &[u8]) -> Option<(u64, u64)> {
    let (seconds, nanos) = text::cut(value.strip_prefix(b"(")?.strip_suffix(b")")?, b',')?;
    Some((text::dec(seconds)?, text::dec(nanos.trim_ascii_start())?))
}

fn bpf_line(map: &mut BpfMap, key: &[u8], value: &[u8]) -> Option<()> {
    match key {
        b"key_size" => map.key_size = text::dec(value)?,
        b"value_size" => map.value_size = text::dec(value)?,
        b"max_entries" => map.max_entries = text::dec(value)?,
        b"map_flags" => map.map_flags = text::hex(value)?,
        b"map_extra" => map.map_extra = text::hex(value)?,
        b"memlock" => map.memlock = text::dec(value)?,
        b"map_id" => map.map_id = text::dec(value)?,
        b"frozen" => map.frozen = value == b"1",
        _ => {}
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    const HEAD: &str = "pos:\t7\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\n";

    fn details(lines: &str) -> Details {
        parse(format!("{HEAD}{lines}").as_bytes()).unwrap().details
    }

    #[test]
    fn reads_the_common_part_and_locks() {
        let text = format!("{HEAD}lock:\t1: FLOCK  ADVISORY  WRITE 41 fe:00:1001 0 EOF\n");
        let info = parse(text.as_bytes()).unwrap();
        assert_eq!((info.pos, info.flags, info.mnt_id, info.ino), (7, 0o2000002, 17, Some(1038)));
        assert_eq!((info.locks.len(), info.locks[0].pid), (1, 41));
        assert_eq!(info.details, Details::None);
        assert!(parse(b"pos:\t0\n").is_err());
        assert!(parse(b"pos:\t0\nflags:\t08\n").is_err());
    }

    #[test]
    fn reads_eventfd_signalfd_timerfd_pidfd_tty_tun() {
        assert_eq!(
            details("eventfd-count:               1f\neventfd-id: 1\neventfd-semaphore: 1\n"),
            Details::EventFd { count: 31, id: Some(1), semaphore: Some(true) }
        );
        assert_eq!(details("sigmask:\t8000000000000200\n"), Details::SignalFd { mask: 1 << 63 | 1 << 9 });
        let timer = "clockid: 7\nticks: 3\nsettime flags: 01\nit_value: (2, 999963085)\nit_interval: (1, 2)\n";
        let expected = TimerFd { clock: 7, ticks: 3, settime_flags: 1, value: (2, 999963085), interval: (1, 2) };
        assert_eq!(details(timer), Details::TimerFd(expected));
        assert_eq!(details("Pid:\t-1\n"), Details::PidFd { pid: -1, ns_pids: Vec::new() });
        assert_eq!(details("Pid:\t9\nNSpid:\t9\t1\n"), Details::PidFd { pid: 9, ns_pids: vec![9, 1] });
        assert_eq!(details("tty-index:\t4\n"), Details::Tty { index: 4 });
        assert_eq!(details("iff:\tzz0\n"), Details::Tun { interface: b"zz0".to_vec() });
        assert_eq!(details("iff:\t\n"), Details::Tun { interface: Vec::new() });
        assert_eq!(details("scm_fds: 2\n"), Details::Unix { scm_fds: 2 });
    }

    #[test]
    fn reads_epoll_inotify_fanotify() {
        let line = "tfd:        3 events: 80000019 data: ffffffffffffffff  pos:-1 ino:40e sdev:10\n";
        let target = EpollTarget { fd: 3, events: 0x80000019, data: u64::MAX, pos: -1, ino: 0x40e, sdev: 0x10 };
        assert_eq!(details(&line.repeat(2)), Details::Epoll(vec![target.clone(), target]));
        let line = "inotify wd:a ino:3c4a7 sdev:fe00000 mask:100 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 \
            f_handle:a7c4030000000000\n";
        let handle = FileHandle { kind: 1, bytes: vec![0xa7, 0xc4, 3, 0, 0, 0, 0, 0] };
        let watch = InotifyWatch { wd: 10, ino: 0x3c4a7, sdev: 0xfe00000, mask: 0x100, handle: Some(handle.clone()) };
        assert_eq!(details(line), Details::Inotify(vec![watch]));
        assert_eq!(split_sdev(0xfe00000), (0xfe, 0));
        let text = "fanotify flags:4 event-flags:8000\n\
            fanotify ino:1 sdev:2 mflags:40 mask:0 ignored_mask:1 fhandle-bytes:8 fhandle-type:1 \
            f_handle:a7c4030000000000\n\
            fanotify sdev:fe00000 mflags:0 mask:8 ignored_mask:0\n\
            fanotify mnt_id:1b mflags:0 mask:8 ignored_mask:0\n";
        let Details::Fanotify { flags: 4, event_flags: 0x8000, marks } = details(text) else {
            panic!("no fanotify");
        };
        assert_eq!(marks[0].object, FanotifyObject::Inode { ino: 1, sdev: 2, handle: Some(handle) });
        assert_eq!((marks[0].flags, marks[0].mask, marks[0].ignored_mask), (0x40, 0, 1));
        assert_eq!(marks[1].object, FanotifyObject::FileSystem { sdev: 0xfe00000 });
        assert_eq!(marks[2].object, FanotifyObject::Mount { mnt_id: 0x1b });
    }

    #[test]
    fn reads_bpf_userfaultfd_and_keeps_the_unknown() {
        let text = "map_type:\t2\nkey_size:\t4\nvalue_size:\t8\nmax_entries:\t4\nmap_flags:\t0x400\n\
            map_extra:\t0x0\nmemlock:\t344\nmap_id:\t3\nfrozen:\t1\n";
        let Details::BpfMap(map) = details(text) else { panic!("no map") };
        assert_eq!((map.map_type, map.key_size, map.value_size, map.max_entries), (2, 4, 8, 4));
        assert_eq!((map.map_flags, map.memlock, map.map_id, map.frozen), (0x400, 344, 3, true));
        assert_eq!(
            details("pending:\t1\ntotal:\t2\nAPI:\taa:0:80000000000001ff\n"),
            Details::UserFaultFd { pending: 1, total: 2, api: 0xaa, features: 0x80000000000001ff }
        );
        let uring = "SqMask:\t0x3\nPollList:\n  op=6, task_works=0\n";
        let Details::Other(lines) = details(uring) else { panic!("no lines") };
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn refuses_cut_handles() {
        for tail in ["fhandle-bytes:8 fhandle-type:1 f_handle:a7", "fhandle-bytes:1 f_handle:a7"] {
            let line = format!("{HEAD}inotify wd:1 ino:1 sdev:1 mask:1 ignored_mask:0 {tail}\n");
            assert!(parse(line.as_bytes()).is_err(), "{tail}");
        }
    }

    #[test]
    fn live() {
        use rustix::event::{EventfdFlags, eventfd};
        let task = Task::current().unwrap();
        let event = eventfd(300, EventfdFlags::CLOEXEC).unwrap();
        let info = task.fdinfo(event.as_raw_fd()).unwrap();
        assert!(matches!(info.details, Details::EventFd { count: 300, .. }), "{info:?}");
        assert_eq!(info.flags, (libc::O_RDWR | libc::O_CLOEXEC) as u32);
        let file = tempfile::tempfile().unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(77)).unwrap();
        let info = task.fdinfo(file.as_raw_fd()).unwrap();
        assert_eq!((info.pos, info.locks.len()), (77, 1));
        assert_eq!(info.locks[0].kind, locks::LockKind::Flock);
        for fd in task.fds().unwrap() {
            // Other tests close theirs meanwhile.
            if let Err(error) = task.fdinfo(fd) {
                assert_eq!(error.errno(), Some(rustix::io::Errno::NOENT), "{error}");
            }
        }
    }
}
