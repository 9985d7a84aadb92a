//! Kernel objects whose inode numbers are given out anew at each creation: pipes, memfds, deleted files. Each is called
//! `#N` in the order in which the tree shows them, so that who shares which object can still be compared.

use std::collections::HashMap;

/// The objects met so far, by inode number.
#[derive(Debug, Default)]
pub(super) struct Identities {
    numbers: HashMap<u64, usize>,
}

/// Whether a file with this link text is made anew when it is restored, and with it its inode number.
pub(super) fn is_made_anew(link: &str) -> bool {
    link.ends_with(" (deleted)")
        || link.starts_with("/memfd:")
        // Each process has an inode of its own in pidfs.
        || link == "anon_inode:[pidfd]"
        || link == "anon_inode:[io_uring]"
        || link.starts_with("pipe:[")
        || link.starts_with("socket:[")
        // Inodes of /proc live as long as somebody looks at them.
        || link.starts_with("/proc/")
}

impl Identities {
    /// The name of an object that is made anew.
    pub(super) fn name(&mut self, inode: u64) -> String {
        let next = self.numbers.len();
        format!("#{}", self.numbers.entry(inode).or_insert(next))
    }

    /// The name of any object: only one that was met as made anew has another than its inode number.
    pub(super) fn known(&self, inode: u64) -> String {
        match self.numbers.get(&inode) {
            Some(number) => format!("#{number}"),
            None => inode.to_string(),
        }
    }

    /// A link text without the number of an object: `pipe:[#3]`, or `/dir/##3 (deleted)` for one of O_TMPFILE.
    pub(super) fn link(&self, link: &str, inode: u64) -> String {
        let known = self.known(inode);
        link.replace(&format!("[{inode}]"), &format!("[{known}]"))
            .replace(&format!("/#{inode} (deleted)"), &format!("/#{known} (deleted)"))
    }
}
