//! `/proc/PID/mountinfo`: the mounts of a mount namespace below a process' root (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::text::{self, Malformed, OrMalformed};
use super::{Result, Task};

/// One mount. Paths are as seen from the process' root, escapes undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Unique among the mounts that exist; used again after an unmount.
    pub id: i32,
    /// The mount it stands on; of the topmost, one that is not listed (or itself).
    pub parent: i32,
    /// Major and minor number of the superblock's device.
    pub dev: (u32, u32),
    /// The directory of the file system that is mounted here; `nstype:[inode]` for a bound namespace file. Ends in
    /// `//deleted` when it has been removed.
    pub root: PathBuf,
    pub mount_point: PathBuf,
    /// Options of the mount: `ro`, `nosuid`, `relatime`, ..., by commas.
    pub options: Vec<u8>,
    /// Peer group it shares events with.
    pub shared: Option<u32>,
    /// Peer group it receives events from.
    pub master: Option<u32>,
    /// The closest peer group below the process' root, where `master` lies outside of it.
    pub propagate_from: Option<u32>,
    pub unbindable: bool,
    /// Type, with subtype: `ext4`, `fuse.sshfs`.
    pub fs_type: Vec<u8>,
    /// What was mounted, as the file system names it; empty when it was mounted with an empty name.
    pub source: Vec<u8>,
    /// Options of the superblock, by commas.
    pub super_options: Vec<u8>,
}

impl Task {
    /// The mounts that the process can reach.
    pub fn mountinfo(&self) -> Result<Vec<MountInfo>> {
        self.read_as("mountinfo", parse)
    }
}

/// Parses `mountinfo`.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<MountInfo>, Malformed> {
    text::lines(text).map(|line| parse_line(line).or_malformed("mount", line)).collect()
}

fn parse_line(line: &[u8]) -> Option<MountInfo> {
    // Fields are apart by exactly one blank, so that an empty source keeps its place.
    let mut fields = line.split(|&byte| byte == b' ');
    let (id, parent) = (text::dec(fields.next()?)?, text::dec(fields.next()?)?);
    let (major, minor) = text::cut(fields.next()?, b':')?;
    let mut mount = MountInfo {
        id,
        parent,
        dev: (text::dec(major)?, text::dec(minor)?),
        root: path(fields.next()?),
        mount_point: path(fields.next()?),
        options: fields.next()?.to_vec(),
        shared: None,
        master: None,
        propagate_from: None,
        unbindable: false,
        fs_type: Vec::new(),
        source: Vec::new(),
        super_options: Vec::new(),
    };
    loop {
        let field = fields.next()?;
        let (tag, value) = text::cut(field, b':').unwrap_or((field, b""));
        match tag {
            b"-" => break,
            b"shared" => mount.shared = Some(text::dec(value)?),
            b"master" => mount.master = Some(text::dec(value)?),
            b"propagate_from" => mount.propagate_from = Some(text::dec(value)?),
            b"unbindable" => mount.unbindable = true,
            _ => {}
        }
    }
    mount.fs_type = text::unescape(fields.next()?);
    mount.source = text::unescape(fields.next()?);
    // File systems write their options themselves; some forget to escape a blank.
    let mut options = fields.next()?.to_vec();
    for more in fields {
        options.push(b' ');
        options.extend_from_slice(more);
    }
    mount.super_options = text::unescape(&options);
    Some(mount)
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(text::unescape(field)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn reads_optional_fields_and_escapes() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=c\n\
            37 35 0:5 / /x\\134 ro shared:9 unbindable - fuse.s\\011s  rw,a=b c\n\
            38 36 0:4 net:[4026531840] /n rw - nsfs nsfs rw\n";
        let mounts = parse(text).unwrap();
        assert_eq!((mounts[0].id, mounts[0].parent, mounts[0].dev), (36, 35, (98, 0)));
        assert_eq!(mounts[0].root, Path::new("/mnt1"));
        assert_eq!(mounts[0].mount_point, Path::new("/mnt 2"));
        assert_eq!((mounts[0].master, mounts[0].propagate_from, mounts[0].shared), (Some(1), Some(2), None));
        assert_eq!((mounts[0].fs_type.as_slice(), mounts[0].source.as_slice()), (&b"ext3"[..], &b"/dev/root"[..]));
        assert_eq!((mounts[1].mount_point.as_path(), mounts[1].shared), (Path::new("/x\\"), Some(9)));
        assert!(mounts[1].unbindable && mounts[1].source.is_empty());
        assert_eq!(mounts[1].fs_type, b"fuse.s\ts");
        assert_eq!(mounts[1].super_options, b"rw,a=b c");
        assert_eq!(mounts[2].root, Path::new("net:[4026531840]"));
        assert!(parse(b"36 35 98:0 / / rw shared:1\n").is_err());
    }

    #[test]
    fn live() {
        let mounts = Task::current().unwrap().mountinfo().unwrap();
        assert!(mounts.iter().any(|mount| mount.mount_point == Path::new("/proc") && mount.fs_type == b"proc"));
    }
}
