//! What fdinfo tells of a ring.

use crate::Result;
use crate::files::OpenFile;
use cryonaut_kernel::proc::fdinfo::Details;
use cryonaut_kernel::sys::io_uring::Position;
use std::collections::HashMap;

/// What fdinfo tells (io_uring/fdinfo.c; Linux 5.16 and later).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) sq_entries: u32,
    pub(super) cq_entries: u32,
    pub(super) position: Position,
    /// Requests that the program has given, and nobody has taken.
    pub(super) offered: u32,
    /// Requests that wait for a file.
    pub(super) polls: usize,
    /// Completions for which there was no room.
    pub(super) overflown: usize,
    pub(super) files: bool,
    pub(super) buffers: bool,
    pub(super) busy_polls: bool,
}

impl Told {
    /// What is told now; `None` when nothing is, which is also so while the kernel works on the ring.
    pub(super) fn now(file: &OpenFile<'_>) -> Result<Option<Told>> {
        Ok(match file.task.fdinfo(file.fd)?.details {
            Details::Other(lines) => Told::parse(&lines),
            _ => None,
        })
    }

    fn parse(lines: &[Vec<u8>]) -> Option<Told> {
        // Lines of a list are set in, under the line that names it.
        let mut values: HashMap<&str, (&str, usize)> = HashMap::new();
        let mut list = "";
        for line in lines {
            let line = std::str::from_utf8(line).ok()?;
            match line.split_once(':') {
                Some((key, value)) if !line.starts_with(char::is_whitespace) => {
                    list = key;
                    values.insert(key, (value.trim(), 0));
                }
                _ => values.entry(list).or_default().1 += 1,
            }
        }
        let word = |key| {
            let (text, _) = values.get(key)?;
            text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())
        };
        let items = |key| values.get(key).map_or(0, |(_, items)| *items);
        Some(Told {
            sq_entries: word("SqMask")?.checked_add(1)?,
            cq_entries: word("CqMask")?.checked_add(1)?,
            position: Position {
                submitted: word("CachedSqHead")?,
                completed: word("CachedCqTail")?,
                collected: word("CqHead")?,
            },
            offered: word("SqTail")?.wrapping_sub(word("CachedSqHead")?),
            polls: items("PollList"),
            overflown: items("CqOverflowList"),
            files: word("UserFiles")? != 0,
            buffers: word("UserBufs")? != 0,
            busy_polls: values.get("NAPI").is_some_and(|(text, _)| *text == "enabled"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_in_fdinfo_are_counted() {
        let text = "SqMask:\t0x7\nSqTail:\t7\nCachedSqHead:\t5\nCqMask:\t0xf\nCqHead:\t3\nCachedCqTail:\t4\nSQEs:\t0\nCQEs:\t1\n    \
            3: user_data:7, res:0, flag:0\nUserFiles:\t0\nUserBufs:\t0\nPollList:\n  op=6, task_works=0\n\
            CqOverflowList:\n  user_data=1, res=0, flags=0\n  user_data=2, res=0, flags=0\nNAPI:\tdisabled\n";
        let lines: Vec<Vec<u8>> = text.lines().map(|line| line.as_bytes().to_vec()).collect();
        let told = Told::parse(&lines).unwrap();
        assert_eq!((told.sq_entries, told.cq_entries, told.polls, told.overflown), (8, 16, 1, 2));
        assert_eq!(told.offered, 2);
        assert_eq!(told.position, Position { submitted: 5, completed: 4, collected: 3 });
        assert!(!told.files && !told.buffers && !told.busy_polls);
        assert_eq!(Told::parse(&lines[1..]), None);
    }
}
