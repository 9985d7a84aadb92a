//! The small files of `/proc/PID`: one value or a short list each.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::io::Errno;

use super::text::{self, Malformed, OrMalformed};
use super::{Result, Task};

type Parsed<T> = std::result::Result<T, Malformed>;

/// One line of `cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// 0 for cgroup v2.
    pub hierarchy: u32,
    /// v1: `cpu,cpuacct`, or `name=NAME`; v2: empty.
    pub controllers: Vec<u8>,
    /// From the root of the reader's cgroup namespace; ends in ` (deleted)` when it has been removed.
    pub path: PathBuf,
}

/// What a thread does in the kernel, from `syscall`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syscall {
    /// It runs, or is about to.
    Running,
    /// Blocked, but not in a system call (a page fault).
    Blocked { sp: u64, pc: u64 },
    /// Blocked in a call.
    In { number: i64, args: [u64; 6], sp: u64, pc: u64 },
}

/// Kinds of namespaces, as links in `/proc/PID/ns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Namespace {
    Cgroup,
    Ipc,
    Mnt,
    Net,
    Pid,
    PidForChildren,
    Time,
    TimeForChildren,
    User,
    Uts,
}

impl Namespace {
    pub const ALL: [Self; 10] = [
        Self::Cgroup,
        Self::Ipc,
        Self::Mnt,
        Self::Net,
        Self::Pid,
        Self::PidForChildren,
        Self::Time,
        Self::TimeForChildren,
        Self::User,
        Self::Uts,
    ];

    /// Name below `/proc/PID`.
    pub fn link(self) -> &'static str {
        match self {
            Self::Cgroup => "ns/cgroup",
            Self::Ipc => "ns/ipc",
            Self::Mnt => "ns/mnt",
            Self::Net => "ns/net",
            Self::Pid => "ns/pid",
            Self::PidForChildren => "ns/pid_for_children",
            Self::Time => "ns/time",
            Self::TimeForChildren => "ns/time_for_children",
            Self::User => "ns/user",
            Self::Uts => "ns/uts",
        }
    }
}

/// A range of `uid_map` or `gid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside of the namespace.
    pub inside: u32,
    /// The id that it is outside: in the reader's namespace.
    pub outside: u32,
    pub count: u32,
}

/// What `timens_offsets` adds to a clock, in seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeOffsets {
    pub monotonic: (i64, u32),
    pub boottime: (i64, u32),
}

fn value<T>(text: &[u8], what: &'static str, parse: fn(&[u8]) -> Option<T>) -> Parsed<T> {
    parse(text.trim_ascii()).or_malformed(what, text)
}

impl Task {
    /// Audit login uid; `u32::MAX` when never set. `None` where the kernel lacks CONFIG_AUDIT.
    pub fn loginuid(&self) -> Result<Option<u32>> {
        self.if_there(self.single_as("loginuid", |text| value(text, "login uid", text::dec)))
    }

    pub fn oom_score_adj(&self) -> Result<i32> {
        self.single_as("oom_score_adj", |text| value(text, "score", text::signed))
    }

    /// Of a thread, in nanoseconds: 0 for one under a real-time policy. Needs CAP_SYS_NICE for another process'.
    pub fn timerslack_ns(&self) -> Result<u64> {
        self.single_as("timerslack_ns", |text| value(text, "slack", text::dec))
    }

    /// Which mappings go into a core file; `None` for a task without memory, whose file is empty.
    pub fn coredump_filter(&self) -> Result<Option<u32>> {
        self.read_as("coredump_filter", |text| match text.trim_ascii() {
            b"" => Ok(None),
            mask => value(mask, "mask", text::hex).map(Some),
        })
    }

    /// Where in the kernel a thread sleeps; `None` when it does not, or it may not be told.
    pub fn wchan(&self) -> Result<Option<String>> {
        let text = self.read("wchan")?;
        Ok((text != b"0").then(|| String::from_utf8_lossy(&text).into_owned()))
    }

    pub fn syscall(&self) -> Result<Syscall> {
        self.single_as("syscall", parse_syscall)
    }

    /// The name of a thread, at most 15 bytes.
    pub fn comm(&self) -> Result<Vec<u8>> {
        let mut name = self.read("comm")?;
        name.pop_if(|last| *last == b'\n');
        Ok(name)
    }

    /// The arguments; empty for a kernel thread or zombie. The program may have overwritten them with anything.
    pub fn cmdline(&self) -> Result<Vec<Vec<u8>>> {
        let text = self.read("cmdline")?;
        let text = text.strip_suffix(b"\0").unwrap_or(&text);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        Ok(text.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect())
    }

    /// The auxiliary vector: pairs of `AT_*` and value, without the final `AT_NULL`.
    pub fn auxv(&self) -> Result<Vec<(u64, u64)>> {
        self.read_as("auxv", parse_auxv)
    }

    pub fn cgroups(&self) -> Result<Vec<Cgroup>> {
        self.read_as("cgroup", parse_cgroups)
    }

    /// Inode number of a namespace, which identifies it while it lives. `None` where the kernel lacks the kind, or
    /// when there is no process to show yet (`PidForChildren` before the first child) or any more (a zombie).
    pub fn namespace(&self, kind: Namespace) -> Result<Option<u64>> {
        let Some(target) = self.if_there(self.link(kind.link()))? else {
            return Ok(None);
        };
        let target = target.into_os_string().into_vec();
        let between = target.strip_suffix(b"]").and_then(|text| text::cut(text, b'['));
        let inode = between.and_then(|(_, inode)| text::dec(inode));
        inode.map(Some).ok_or_else(|| self.malformed(kind.link(), Malformed::new("namespace inode", &target)))
    }

    pub fn uid_map(&self) -> Result<Vec<IdRange>> {
        self.read_as("uid_map", parse_id_map)
    }

    /// Whether setgroups(2) is allowed in its user namespace, or will be when that has its groups.
    pub fn may_set_groups(&self) -> Result<bool> {
        self.read_as("setgroups", |text| Ok(text.trim_ascii() != b"deny"))
    }

    pub fn gid_map(&self) -> Result<Vec<IdRange>> {
        self.read_as("gid_map", parse_id_map)
    }

    /// Offsets of the time namespace of the process' children. `None` where the kernel lacks it.
    pub fn timens_offsets(&self) -> Result<Option<TimeOffsets>> {
        self.if_there(self.read_as("timens_offsets", parse_time_offsets))
    }

    /// `None` for a file that is not there, as long as the process is.
    fn if_there<T>(&self, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.errno() == Some(Errno::NOENT) && self.is_there() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the process (or its zombie) still exists.
    pub fn is_there(&self) -> bool {
        self.open_file("stat", rustix::fs::OFlags::PATH).is_ok()
    }
}

fn parse_syscall(text: &[u8]) -> Parsed<Syscall> {
    let text = text.trim_ascii();
    if text == b"running" {
        return Ok(Syscall::Running);
    }
    let parse = || {
        let mut words = text::words(text);
        let number: i64 = text::signed(words.next()?)?;
        let mut next = || text::hex::<u64>(words.next()?);
        if number == -1 {
            return Some(Syscall::Blocked { sp: next()?, pc: next()? });
        }
        let args = [next()?, next()?, next()?, next()?, next()?, next()?];
        Some(Syscall::In { number, args, sp: next()?, pc: next()? })
    };
    parse().or_malformed("system call", text)
}

fn parse_auxv(bytes: &[u8]) -> Parsed<Vec<(u64, u64)>> {
    let (pairs, []) = bytes.as_chunks::<16>() else {
        return Err(Malformed::new("pairs of words", bytes));
    };
    let words = pairs.iter().map(|pair| {
        let pair = u128::from_ne_bytes(*pair);
        #[cfg(target_endian = "little")]
        let words = (pair as u64, (pair >> 64) as u64);
        #[cfg(target_endian = "big")]
        let words = ((pair >> 64) as u64, pair as u64);
        words
    });
    Ok(words.take_while(|&(kind, _)| kind != 0).collect())
}

fn parse_cgroups(text: &[u8]) -> Parsed<Vec<Cgroup>> {
    let parse = |line: &[u8]| {
        let (hierarchy, rest) = text::cut(line, b':')?;
        // The name of a v1 hierarchy may hold a colon no more than the controllers do.
        let (controllers, path) = text::cut(rest, b':')?;
        let path = PathBuf::from(OsString::from_vec(text::unescape(path)));
        Some(Cgroup { hierarchy: text::dec(hierarchy)?, controllers: controllers.to_vec(), path })
    };
    text::lines(text).map(|line| parse(line).or_malformed("cgroup", line)).collect()
}

fn parse_id_map(text: &[u8]) -> Parsed<Vec<IdRange>> {
    let parse = |line: &[u8]| {
        let mut words = text::words(line).map(text::dec);
        let mut next = || words.next()?;
        Some(IdRange { inside: next()?, outside: next()?, count: next()? })
    };
    text::lines(text).map(|line| parse(line).or_malformed("id range", line)).collect()
}

fn parse_time_offsets(text: &[u8]) -> Parsed<TimeOffsets> {
    let mut offsets = TimeOffsets::default();
    for line in text::lines(text) {
        let mut parse = || {
            let mut words = text::words(line);
            let clock = words.next()?;
            let offset = (text::signed(words.next()?)?, text::dec(words.next()?)?);
            match clock {
                b"monotonic" => offsets.monotonic = offset,
                b"boottime" => offsets.boottime = offset,
                _ => {}
            }
            Some(())
        };
        parse().or_malformed("clock offset", line)?;
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn reads_every_form_of_syscall() {
        assert_eq!(parse_syscall(b"running\n"), Ok(Syscall::Running));
        assert_eq!(parse_syscall(b"-1 0x7ffe 0x5500\n"), Ok(Syscall::Blocked { sp: 0x7ffe, pc: 0x5500 }));
        let call = parse_syscall(b"7 0x1 0x2 0x3 0x4 0x5 0x6 0x7fff5bd48a48 0x7f242a85b2ad\n").unwrap();
        let expected = Syscall::In { number: 7, args: [1, 2, 3, 4, 5, 6], sp: 0x7fff_5bd4_8a48, pc: 0x7f24_2a85_b2ad };
        assert_eq!(call, expected);
        assert!(parse_syscall(b"7 0x1").is_err());
    }

    #[test]
    fn reads_cgroups_maps_and_offsets() {
        let groups = parse_cgroups(b"11:name=x.root:/\n1:cpu,cpuacct:/a:b\n0::/\n").unwrap();
        assert_eq!(groups[0].controllers, b"name=x.root");
        assert_eq!((groups[1].hierarchy, groups[1].path.as_path()), (1, Path::new("/a:b")));
        assert!(groups[2].controllers.is_empty());
        let map = parse_id_map(b"         0     100000      65536\n 65536 1 1\n").unwrap();
        assert_eq!(map[0], IdRange { inside: 0, outside: 100000, count: 65536 });
        assert!(parse_id_map(b"0 1\n").is_err());
        let offsets = parse_time_offsets(b"monotonic          -5         7\nboottime  12 0\n").unwrap();
        assert_eq!(offsets, TimeOffsets { monotonic: (-5, 7), boottime: (12, 0) });
    }

    #[test]
    fn reads_auxv() {
        let words: Vec<u8> = [6u64, 4096, 0, 0, 1, 1].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(parse_auxv(&words), Ok(vec![(6, 4096)]));
        assert!(parse_auxv(&words[..20]).is_err());
    }

    #[test]
    fn live() {
        let task = Task::current().unwrap();
        task.loginuid().unwrap();
        assert!((-1000..=1000).contains(&task.oom_score_adj().unwrap()));
        assert!(task.timerslack_ns().unwrap() > 0);
        assert!(task.coredump_filter().unwrap().is_some());
        assert!(task.cmdline().unwrap()[0].ends_with(std::env::args_os().next().unwrap().into_vec().as_slice()));
        assert!(task.auxv().unwrap().contains(&(libc::AT_PAGESZ, 4096)));
        assert!(!task.cgroups().unwrap().is_empty());
        for kind in Namespace::ALL {
            let file = std::fs::metadata(format!("/proc/self/{}", kind.link())).ok();
            let inode = file.map(|file| std::os::unix::fs::MetadataExt::ino(&file));
            assert_eq!(task.namespace(kind).unwrap(), inode);
        }
        assert!(task.uid_map().unwrap().iter().any(|range| range.inside == 0));
        task.timens_offsets().unwrap();
        let thread = task.thread(rustix::thread::gettid());
        assert!(matches!(thread.syscall().unwrap(), Syscall::In { .. } | Syscall::Running));
        assert!(!thread.comm().unwrap().is_empty());
        assert_eq!(thread.wchan().unwrap(), None);
    }

    #[test]
    fn a_missing_file_is_told_from_a_missing_process() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let task = Task::open(crate::Pid::from_raw(child.id() as i32).unwrap()).unwrap();
        assert!(task.is_there());
        child.wait().unwrap();
        assert!(!task.is_there());
        assert!(task.namespace(Namespace::Net).is_err());
        assert!(task.loginuid().is_err());
    }
}
