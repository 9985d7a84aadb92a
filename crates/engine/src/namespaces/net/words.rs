//! Rules of netfilter in the words of programs, which images of CRIU have: `iptables-ID` and `ip6tables-ID` as
//! iptables-save(8) writes them, `nftables-ID` as `nft list ruleset` does.
//!
//! None are made of them, so they are refused if they say anything. What they say of CRIU's own network lock is nothing: it
//! stood when they were written (so in every image of a network namespace where iptables(8) works by nftables), and was
//! to end with the restore.

use crate::error::errno_of;
use crate::{Error, Object, Result};
use cryonaut_image::{ImageDir, ImageKind};
use std::io::Read;

/// The chain of the lock, and how the names of its tables begin if it is one of nftables.
const LOCK: &str = "CRIU";
const LOCK_TABLE: &str = "CRIU-";

/// Refuses words of an image that is not ours.
pub fn refuse(images: &ImageDir, number: u64) -> Result<()> {
    for kind in [ImageKind::Iptables, ImageKind::Ip6tables, ImageKind::Nftables] {
        let Some(mut file) = images.open_raw_optional(kind, number)? else { continue };
        let (mut bytes, name) = (Vec::new(), kind.file_name(number)?);
        file.read_to_end(&mut bytes)
            .map_err(|e| Error::kernel(Object::Other(name.clone()), "read it", errno_of(&e)))?;
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_matches(['\0', '\n']);
        let says = if kind == ImageKind::Nftables { filters_by_nftables(text) } else { filters_by_iptables(text) };
        if says {
            return Err(Error::unsupported(
                Object::Other(name),
                "its rules are written for a program, which is not run",
                "make them in the script of the moment setup-namespaces and remove this file from the image",
            ));
        }
    }
    Ok(())
}

/// Whether iptables-save(8) has told of more than empty chains and the lock.
fn filters_by_iptables(text: &str) -> bool {
    text.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["-N" | "-A", LOCK, ..] | ["-A", _, "-j", LOCK] => false,
            ["-N" | "-A", ..] => true,
            [chain, policy, ..] => chain.starts_with(':') && *policy == "DROP",
            _ => false,
        }
    })
}

/// Whether `nft list ruleset` has told of more than the lock, and the empty chains that it needs.
fn filters_by_nftables(text: &str) -> bool {
    let (mut depth, mut lock) = (0u32, None);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_lock = match words.as_slice() {
            ["table", _, name, "{"] => name.starts_with(LOCK_TABLE),
            ["chain", name, "{"] => *name == LOCK,
            ["}"] => {
                depth = depth.saturating_sub(1);
                lock = lock.filter(|at| *at < depth);
                continue;
            }
            // Of a chain that drops nothing.
            ["type", .., "policy", "accept;"] => continue,
            ["counter", "packets", _, "bytes", _, "jump", LOCK] | ["jump", LOCK] => continue,
            _ if lock.is_some() => false,
            _ => return true,
        };
        if line.ends_with('{') {
            lock = lock.or(is_lock.then_some(depth));
            depth += 1;
        }
    }
    // Whoever has made a table of his own and no lock wants it back, be it empty.
    !text.is_empty() && !text.contains(LOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKED: &str = "table ip filter {
\tchain CRIU {
\t\tmeta mark 0x0000c114 counter packets 0 bytes 0 accept
\t\tcounter packets 0 bytes 0 drop
\t}

\tchain INPUT {
\t\ttype filter hook input priority filter; policy accept;
\t\tcounter packets 0 bytes 0 jump CRIU
\t}
}";

    #[test]
    fn the_lock_says_nothing() {
        assert!(!filters_by_nftables(""));
        assert!(!filters_by_nftables(LOCKED));
        let own = "table inet CRIU-7 {\n\tchain output {\n\t\ttype filter hook output priority filter; policy drop;
\t\tmeta mark 0x0000c114 accept\n\t}\n}\n";
        assert!(!filters_by_nftables(own));
        assert!(!filters_by_nftables(&[LOCKED, own, LOCKED].join("\n")));
        let saved = ":INPUT ACCEPT [0:0]\n:CRIU - [0:0]\n-A INPUT -j CRIU\n-A CRIU -m mark --mark 0xc114 -j ACCEPT";
        assert!(!filters_by_iptables(&format!("{saved}\n-A CRIU -j DROP\nCOMMIT")));
    }

    #[test]
    fn what_stands_beside_the_lock_does() {
        for more in [
            "table ip mine {\n}",
            "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority 0; policy drop;\n\t}\n}",
            "table ip filter {\n\tchain INPUT {\n\t\ttcp dport 22 drop\n\t}\n}",
            "table ip nat {\n\tchain DNAT {\n\t\tcounter packets 0 bytes 0 jump CRIU-2\n\t}\n}",
            "table ip filter {\n\tset CRIU {\n\t\ttype ipv4_addr\n\t}\n}",
        ] {
            assert!(filters_by_nftables(more), "{more}");
            let is_empty = more.ends_with("mine {\n}");
            assert!(is_empty || filters_by_nftables(&[LOCKED, more].join("\n")), "{more}");
        }
        for more in ["-A INPUT -p tcp -j CRIU", "-N CRIUS", ":OUTPUT DROP [0:0]", "-A INPUT -j DROP"] {
            assert!(filters_by_iptables(more), "{more}");
        }
    }
}
