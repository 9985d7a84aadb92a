//! Namespaces in which no process is, and which are there for one of their files: it is mounted somewhere, which is how
//! `ip netns add` keeps them (namespaces(7)).

use super::mount::bound;
use super::{KINDS, Kind, Own, Owned};
use crate::{CheckpointOptions, Result};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;

/// What a link such as `net:[4026531840]` names: the kind of a namespace, and the inode number of its file.
pub fn named(link: &[u8]) -> Option<(&'static Kind, u64)> {
    let text = std::str::from_utf8(link).ok()?;
    let (name, number) = text.split_once(":[")?;
    let number = number.strip_suffix(']')?;
    let kind = match name {
        "net" => Namespace::Net,
        "uts" => Namespace::Uts,
        "ipc" => Namespace::Ipc,
        "pid" => Namespace::Pid,
        "mnt" => Namespace::Mnt,
        "user" => Namespace::User,
        "cgroup" => Namespace::Cgroup,
        "time" => Namespace::Time,
        _ => return None,
    };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let inode = number.parse().ok().filter(|_| is_number)?;
    KINDS.iter().find(|known| known.kind == kind).map(|kind| (kind, inode))
}

/// Adds the network namespaces that mounts of the tree keep; the first gets the number `next`. Those of other kinds are
/// refused where the mounts are written down.
pub fn find(owned: &mut Owned, mut next: u32, options: &CheckpointOptions) -> Result<()> {
    let ours = Task::current()?.namespace(Namespace::Net)?;
    let mut found = Vec::new();
    for own in owned.iter().filter(|own| own.kind.kind == Namespace::Mnt) {
        for one in bound::found(own, options)? {
            found.extend(one.file.filter(|_| one.kind.kind == Namespace::Net).map(|file| (own.pid, one.inode, file)));
        }
    }
    for (pid, inode, file) in found {
        let own = Own::new(Namespace::Net, next, pid, file);
        let known = owned.with_inode(Namespace::Net, inode).map_err(own.failed("compare it with others"))?;
        if ours != Some(inode) && known.is_none() {
            owned.add(own);
            next += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_the_link() {
        let told = |link: &[u8]| named(link).map(|(kind, inode)| (kind.name, inode));
        assert_eq!(told(b"net:[4026531840]"), Some(("network", 4_026_531_840)));
        assert_eq!(told(b"mnt:[1]"), Some(("mount", 1)));
        assert_eq!((told(b"pipe:[12]"), told(b"net:[x]"), told(b"/net:[1]")), (None, None, None));
    }
}
