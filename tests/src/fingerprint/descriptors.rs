//! What the descriptors of a tree tell: their fdinfo, what the file itself answers when asked through a duplicate, and
//! which of them are one open file description.

use std::cmp::Ordering;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::{fcntl, kcmp, pidfd, tty};
use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdGetfdFlags, pidfd_getfd};

use super::identity::is_made_anew;
use super::memory::Digest;
use super::process::speaker;
use super::{Object, Taking};

/// Deleted files are compared to this many bytes of data.
const MOST_CONTENT: u64 = 32 << 20;

struct Open {
    pid: Pid,
    fd: i32,
    link: String,
    inode: Option<u64>,
    file: Result<OwnedFd, Errno>,
}

pub(super) fn take(taking: &mut Taking, pids: &[Pid]) {
    let mut numbers = Vec::new();
    for pid in pids {
        let Ok(task) = Task::open(speaker(*pid)) else {
            continue;
        };
        let fds = task.fds().unwrap_or_default();
        // First all names, so that an epoll can tell what it watches by them.
        for fd in &fds {
            let open = look(&task, *pid, *fd);
            if let Some(inode) = open.inode
                && is_made_anew(&open.link)
            {
                taking.identities.name(inode);
            }
        }
        numbers.extend(fds.into_iter().map(|fd| (*pid, fd)));
    }
    for (pid, fd) in &numbers {
        if let Ok(task) = Task::open(speaker(*pid)) {
            let open = look(&task, *pid, *fd);
            describe(taking, &task, &open);
        }
    }
    descriptions(taking, &numbers);
}

fn look(task: &Task, pid: Pid, fd: i32) -> Open {
    let link = task.link(&format!("fd/{fd}")).map(|path| path.display().to_string()).unwrap_or_default();
    let file = pidfd::open_thread(speaker(pid)).and_then(|process| {
        // A duplicate: neither position nor anything else is touched by having it.
        pidfd_getfd(&process, fd, PidfdGetfdFlags::empty())
    });
    let inode = file.as_ref().ok().and_then(|file| rustix::fs::fstat(file).ok()).map(|stat| stat.st_ino);
    Open { pid, fd, link, inode, file }
}

fn describe(taking: &mut Taking, task: &Task, open: &Open) {
    let object = Object::Descriptor(open.pid.as_raw_nonzero().get(), open.fd);
    let link = taking.identities.link(&open.link, open.inode.unwrap_or(0));
    taking.put(&object, "link", link);
    match task.read(&format!("fdinfo/{}", open.fd)) {
        Ok(text) => fdinfo(taking, &object, &String::from_utf8_lossy(&text)),
        Err(error) => taking.put_result::<&str>(&object, "fdinfo", Err(error.errno().unwrap_or(Errno::INVAL))),
    }
    match &open.file {
        Ok(file) => ask(taking, &object, file.as_fd(), &open.link),
        Err(errno) => taking.put_result::<&str>(&object, "duplicate", Err(*errno)),
    }
}

/// The lines of fdinfo; those that come several times are numbered.
fn fdinfo(taking: &mut Taking, object: &Object, text: &str) {
    let mut watched = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':').or_else(|| line.split_once(' ')) else {
            continue;
        };
        let value = value.trim();
        match key {
            "ino" => {
                let inode = value.parse().map_or_else(|_| value.to_owned(), |inode| taking.identities.known(inode));
                taking.put(object, "fdinfo.ino", inode);
            }
            // No order is told apart: that of epoll is by addresses, that of locks by age.
            "tfd" | "inotify wd" | "inotify" | "fanotify ino" | "fanotify mnt_id" | "fanotify" | "lock" => {
                watched.push(watch(taking, key, value));
            }
            _ => {
                // io_uring tells what is registered with it: `2: pipe:[1234]`.
                let inode = value.strip_suffix(']').and_then(|rest| rest.rsplit_once(":[")?.1.parse().ok());
                let value = inode.map_or_else(|| value.to_owned(), |inode| taking.identities.link(value, inode));
                taking.put(object, format!("fdinfo.{key}"), value);
            }
        }
    }
    watched.sort();
    if !watched.is_empty() {
        taking.put(object, "fdinfo.watched", watched.join("; "));
    }
}

/// A line about another file, whose inode number may be a new one.
fn watch(taking: &mut Taking, key: &str, value: &str) -> String {
    let mut words: Vec<String> = value.split_whitespace().map(str::to_owned).collect();
    if key == "lock" {
        // `1: POSIX ADVISORY WRITE 1234 fe:01:5678 0 EOF`: the first word counts the locks of the whole machine.
        words.retain(|word| !(word.ends_with(':') && word[..word.len() - 1].bytes().all(|b| b.is_ascii_digit())));
        for word in &mut words {
            if word.matches(':').count() == 2
                && let Some((device, inode)) = word.rsplit_once(':')
                && let Ok(number) = inode.parse()
            {
                *word = format!("{device}:{}", taking.identities.known(number));
            }
        }
    }
    for at in 0..words.len() {
        // Hexadecimal in all of them, `ino:1a2b` or `ino: 1a2b`.
        let apart = at > 0 && words[at - 1] == "ino:";
        let digits = words[at].strip_prefix("ino:").unwrap_or(if apart { &words[at] } else { "" });
        if let Ok(inode) = u64::from_str_radix(digits, 16) {
            let name = taking.identities.known(inode);
            words[at] = if apart { name } else { format!("ino:{name}") };
        }
    }
    // The handle of a file that is made again is another as well.
    if words.iter().any(|word| word.starts_with("ino:#")) {
        words.iter_mut().filter(|word| word.starts_with("f_handle:")).for_each(|word| "f_handle:#".clone_into(word));
    }
    format!("{key} {}", words.join(" "))
}

/// What the file says about itself.
fn ask(taking: &mut Taking, object: &Object, file: BorrowedFd<'_>, link: &str) {
    let Ok(stat) = rustix::fs::fstat(file) else {
        return;
    };
    let sort = FileType::from_raw_mode(stat.st_mode);
    taking.put(object, "file.mode", format!("{:o}", stat.st_mode));
    taking.put(object, "file.links", stat.st_nlink.to_string());
    taking.put(object, "file.owner", format!("{}:{}", stat.st_uid, stat.st_gid));
    taking.put(object, "file.device", format!("{:x} {:x}", stat.st_dev, stat.st_rdev));
    if sort == FileType::RegularFile && !link.starts_with("/proc/") {
        taking.put(object, "file.size", stat.st_size.to_string());
        let memory = link.starts_with("/memfd:") || link.starts_with("/dev/zero");
        let sort = if memory { "memfd" } else { "file" };
        taking.put(object, format!("{sort}.modified"), format!("{}.{:06}", stat.st_mtime, stat.st_mtime_nsec / 1000));
        taking.put(object, format!("{sort}.modified_ns"), (stat.st_mtime_nsec % 1000).to_string());
    }
    taking.put_result(object, "owner", fcntl::getown_ex(file).map(|owner| format!("{owner:?}")));
    taking.put_result(object, "owner_uids", fcntl::getowner_uids(file).map(|ids| format!("{ids:?}")));
    taking.put_result(object, "owner_signal", fcntl::getsig(file));
    let lease = fcntl::get_lease(file);
    if sort == FileType::RegularFile {
        taking.put_result(object, "lease", lease);
        taking.put_result(object, "seals", rustix::fs::fcntl_get_seals(file).map(|seals| format!("{seals:?}")));
        // Nobody can watch or lease a file without a name; reading one with a name could be noticed.
        if stat.st_nlink == 0 && lease == Ok(2) {
            taking.put_result(object, "content", content(file));
        }
    }
    if sort == FileType::Socket && link.starts_with("socket:[") {
        super::sockets::take(taking, object, file);
    }
    if sort == FileType::Fifo {
        taking.put_result(object, "pipe.size", rustix::pipe::fcntl_getpipe_size(file));
    }
    if sort == FileType::Fifo || link.starts_with("/dev/pt") || link.starts_with("anon_inode:inotify") {
        taking.put_result(object, "unread", rustix::io::ioctl_fionread(file));
    }
    if link.starts_with("/dev/pt") || link.starts_with("/dev/tty") {
        taking.put_result(object, "tty.modes", tty::get_termios2(file).map(|modes| format!("{modes:x?}")));
        let window = rustix::termios::tcgetwinsize(file);
        let window = window.map(|w| format!("{} {} {} {}", w.ws_row, w.ws_col, w.ws_xpixel, w.ws_ypixel));
        taking.put_result(object, "tty.window", window);
        taking.put_result(object, "tty.exclusive", tty::exclusive(file));
        taking.put_result(object, "tty.number", tty::pty_number(file));
        taking.put_result(object, "tty.locked", tty::pty_locked(file));
        taking.put_result(object, "tty.packets", tty::packet_mode(file));
        taking.put_result(object, "tty.locked_modes", tty::get_locked_termios(file).map(|modes| format!("{modes:x?}")));
    }
}

/// A digest of what a file holds, holes left out; the position of the description stays as it is, since the data is
/// looked for through a description of our own.
fn content(file: BorrowedFd<'_>) -> Result<String, Errno> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let own = rustix::fs::open(path, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC, 0.into())?;
    file_digest(&own)
}

/// A digest of the pages of a file that are not zero, and how many there are.
pub(super) fn file_digest(file: &OwnedFd) -> Result<String, Errno> {
    let mut digest = Digest::default();
    let mut page = vec![0u8; 4096];
    let (mut at, mut pages) = (0u64, 0u64);
    loop {
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data / 4096 * 4096,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        let count = rustix::io::pread(file, &mut page, at)?;
        if count == 0 {
            break;
        }
        if page[..count].iter().any(|byte| *byte != 0) {
            digest.add(&at.to_ne_bytes());
            digest.add(&page[..count]);
            pages += 1;
        }
        at += 4096;
        if pages * 4096 > MOST_CONTENT {
            return Ok(format!("more than {pages} pages, {digest}"));
        }
    }
    Ok(format!("{pages} pages, {digest}"))
}

/// Which descriptors are one open file description: each is told the first such of the tree.
fn descriptions(taking: &mut Taking, numbers: &[(Pid, i32)]) {
    let places: Vec<(Pid, i32)> = numbers.iter().map(|(pid, fd)| (speaker(*pid), *fd)).collect();
    let compare = |a: usize, b: usize| kcmp::file(places[a].0, places[a].1, places[b].0, places[b].1);
    let open: Vec<usize> = (0..numbers.len()).filter(|at| compare(*at, *at).is_ok()).collect();
    let mut sorted = open;
    sorted.sort_by(|a, b| compare(*a, *b).unwrap_or(Ordering::Equal).then(a.cmp(b)));
    let mut first = 0;
    for (at, index) in sorted.iter().enumerate() {
        if at == 0 || compare(sorted[first], *index) != Ok(Ordering::Equal) {
            first = at;
        }
        let (pid, fd) = numbers[*index];
        let (first_pid, first_fd) = numbers[sorted[first]];
        let object = Object::Descriptor(pid.as_raw_nonzero().get(), fd);
        taking.put(&object, "description", format!("{}:{first_fd}", first_pid.as_raw_nonzero()));
    }
}
