//! New file systems, made by a process of the tree: so that they belong to its namespaces (proc to that of pids, sysfs to
//! that of the network, mqueue to that of IPC, ...).

use super::filesystem::{FsType, Making};
use super::table;
use crate::{Error, Result};
use cryonaut_image::records::MntEntry;
use cryonaut_kernel::Errno;
use cryonaut_kernel::sys::mount;
use cryonaut_puppet::{Arg, Batch, Hand};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// How many are made by one batch.
const AT_ONCE: usize = 16;
/// Commands of fsconfig(2) (linux/mount.h).
const SET_FLAG: u32 = 0;
const SET_STRING: u32 = 1;
const CREATE: u32 = 6;
const CLOEXEC: u32 = 1;

/// Words of recorded options that are shown and cannot be set.
const ONLY_SHOWN: &[&[u8]] = &[b"seclabel", b"idmapped"];

/// A key and its value, if it has one.
pub type Setting = (Vec<u8>, Option<Vec<u8>>);

/// What a new file system is told.
pub fn settings(entry: &MntEntry, fs: &FsType) -> Vec<Setting> {
    let mut all: Vec<Setting> = Vec::new();
    if !entry.source.is_empty() {
        all.push((b"source".to_vec(), Some(entry.source.clone())));
    }
    if fs.making != Making::OfNamespace && fs.name != b"cgroup2" {
        let words = entry.options.split(|byte| *byte == b',').filter(|word| !word.is_empty());
        for word in words.filter(|word| !ONLY_SHOWN.contains(word) && !word.starts_with(b"release_agent=")) {
            let setting = match word.iter().position(|byte| *byte == b'=') {
                Some(at) => (word[..at].to_vec(), Some(word[at + 1..].to_vec())),
                None => (word.to_vec(), None),
            };
            all.push(setting);
        }
    }
    let flags = u64::from(entry.sb_flags());
    // One that is to be filled becomes read-only in the end.
    let words = [(libc::MS_RDONLY, "ro"), (libc::MS_SYNCHRONOUS, "sync"), (libc::MS_DIRSYNC, "dirsync")];
    for (flag, word) in words {
        if flags & flag != 0 && !(flag == libc::MS_RDONLY && fs.making == Making::Filled) {
            all.push((word.as_bytes().to_vec(), None));
        }
    }
    all
}

/// Has a process make the file systems of these entries; a mount of each, which stands nowhere.
pub fn by_hand(hand: &mut Hand, wanted: &[(&MntEntry, &FsType)]) -> Result<Vec<OwnedFd>> {
    let mut made = Vec::new();
    for some in wanted.chunks(AT_ONCE) {
        let mut b = Batch::new();
        let (mut ends, mut mounts) = (Vec::new(), Vec::new());
        for (entry, fs) in some {
            let name = b.cstr(fs.name);
            let context = b.call(libc::SYS_fsopen, [name.into(), CLOEXEC.into()]);
            for (key, value) in settings(entry, fs) {
                let key = b.cstr(&key);
                match value {
                    Some(value) => {
                        let value = b.cstr(&value);
                        let args = [context.into(), SET_STRING.into(), key.into(), value.into(), Arg::Val(0)];
                        b.call(libc::SYS_fsconfig, args);
                    }
                    None => {
                        let args = [context.into(), SET_FLAG.into(), key.into(), Arg::Val(0), Arg::Val(0)];
                        b.call(libc::SYS_fsconfig, args);
                    }
                }
            }
            b.call(libc::SYS_fsconfig, [context.into(), CREATE.into(), Arg::Val(0), Arg::Val(0), Arg::Val(0)]);
            mounts.push(b.call(libc::SYS_fsmount, [context.into(), CLOEXEC.into(), Arg::Val(0)]));
            b.call(libc::SYS_close, [context.into()]);
            ends.push(b.len());
        }
        if let Err(error) = hand.run(&mut b) {
            let Some((at, _, errno)) = b.failure() else { return Err(error.into()) };
            let entry = ends.iter().position(|end| at < *end).map_or(some[0].0, |at| some[at].0);
            return Err(failed(entry, errno));
        }
        made.extend(taken(hand, &b, &mounts).map_err(|errno| failed(some[0].0, errno))?);
        let mut b2 = Batch::new();
        for mount in mounts {
            b2.call(libc::SYS_close, [b.result(mount).unwrap_or_default().into()]);
        }
        hand.run(&mut b2)?;
    }
    Ok(made)
}

fn failed(entry: &MntEntry, errno: Errno) -> Error {
    Error::kernel(table::object(entry), "make its file system", errno)
}

/// Duplicates of what calls of a hand have opened.
fn taken(hand: &Hand, b: &Batch, calls: &[cryonaut_puppet::Call]) -> std::result::Result<Vec<OwnedFd>, Errno> {
    let pid = rustix::process::Pid::from_raw(hand.pid()).ok_or(Errno::SRCH)?;
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let take = |call: &cryonaut_puppet::Call| {
        let number = b.result(*call)? as i32;
        rustix::process::pidfd_getfd(&process, number, PidfdGetfdFlags::empty())
    };
    calls.iter().map(take).collect()
}

/// Makes a file system by the calling thread: one of memory, for our own ends.
pub fn in_memory() -> std::result::Result<OwnedFd, Errno> {
    by_us(b"tmpfs", &[(b"source".to_vec(), Some(b"cryonaut".to_vec()))])
}

/// The same of any type with these settings.
pub fn by_us(name: &[u8], settings: &[Setting]) -> std::result::Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in settings {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, key.as_slice(), value.as_slice())?,
            None => rustix::mount::fsconfig_set_flag(&context, key.as_slice())?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// An overlay of directories of the tree, which the calling thread sees by the paths that its options tell. Strings of the
/// new interface are short (256 bytes, fs/fsopen.c); `place` is a directory where the old one mounts it for a moment.
pub fn overlay(entry: &MntEntry, fs: &FsType, place: &OwnedFd) -> std::result::Result<OwnedFd, Errno> {
    let settings = settings(entry, fs);
    if settings.iter().all(|(_, value)| value.as_ref().is_none_or(|value| value.len() < 256)) {
        return by_us(fs.name, &settings);
    }
    let way = std::ffi::CString::new(format!("/proc/thread-self/fd/{}", place.as_raw_fd())).unwrap_or_default();
    let data = std::ffi::CString::new(entry.options.clone()).map_err(|_| Errno::INVAL)?;
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount(entry.source.as_slice(), way.as_c_str(), fs.name, flags, Some(data.as_c_str()))?;
    let top = rustix::fs::open(way.as_c_str(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
    let clone = top.and_then(|top| mount::clone_at(top.as_fd(), b""));
    rustix::mount::unmount(way.as_c_str(), UnmountFlags::DETACH)?;
    clone
}

/// Makes the file system of a device, by the calling thread.
pub fn of_device(entry: &MntEntry, device: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let settings = [(b"source".to_vec(), Some(device.to_vec()))];
    by_us(entry.fsname(), &settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespaces::mount::filesystem::by_name;

    #[test]
    fn options_are_set_where_they_concern_nobody_else() {
        let entry = MntEntry {
            source: b"t".to_vec(),
            options: b"size=10k,mode=755,seclabel,inode64".to_vec(),
            sb_flags: Some((libc::MS_RDONLY | libc::MS_SYNCHRONOUS) as u32),
            ..MntEntry::default()
        };
        let told = |name: &[u8]| {
            let word = |(key, value): Setting| match value {
                Some(value) => format!("{}={}", String::from_utf8_lossy(&key), String::from_utf8_lossy(&value)),
                None => String::from_utf8_lossy(&key).into_owned(),
            };
            settings(&entry, by_name(name).unwrap()).into_iter().map(word).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told(b"tmpfs"), "source=t size=10k mode=755 inode64 sync");
        assert_eq!(told(b"sysfs"), "source=t ro sync");
        assert_eq!(told(b"cgroup2"), "source=t ro sync");
        assert_eq!(told(b"proc"), "source=t size=10k mode=755 inode64 ro sync");
    }
}
