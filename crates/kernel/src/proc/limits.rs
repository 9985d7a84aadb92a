//! `/proc/PID/limits`: resource limits, also of a zombie, for which prlimit(2) has none to tell.

use super::text::{self, Malformed, OrMalformed};
use super::{Result, Task};

/// Number of resources (`RLIM_NLIMITS`).
pub const COUNT: usize = 16;

/// One limit; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit {
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// The names in the order of `RLIMIT_*` on every architecture but MIPS and SPARC (fs/proc/base.c).
const NAMES: [&[u8]; COUNT] = [
    b"Max cpu time",
    b"Max file size",
    b"Max data size",
    b"Max stack size",
    b"Max core file size",
    b"Max resident set",
    b"Max processes",
    b"Max open files",
    b"Max locked memory",
    b"Max address space",
    b"Max file locks",
    b"Max pending signals",
    b"Max msgqueue size",
    b"Max nice priority",
    b"Max realtime priority",
    b"Max realtime timeout",
];

impl Task {
    /// The limits, at the index of their `RLIMIT_*`, in the units of prlimit(2).
    pub fn limits(&self) -> Result<[Limit; COUNT]> {
        self.read_as("limits", parse)
    }
}

/// Parses `limits`; all sixteen must be there.
pub fn parse(text: &[u8]) -> std::result::Result<[Limit; COUNT], Malformed> {
    let mut limits = [None; COUNT];
    for line in text::lines(text).skip(1) {
        let known = NAMES.iter().enumerate().find_map(|(index, name)| {
            line.strip_prefix(*name).filter(|rest| rest.starts_with(b" ")).map(|rest| (index, rest))
        });
        let Some((index, rest)) = known else { continue };
        let mut words = text::words(rest).map(|word| match word {
            b"unlimited" => Some(None),
            word => text::dec(word).map(Some),
        });
        let mut next = || words.next().flatten().or_malformed("limit", line);
        limits[index] = Some(Limit { soft: next()?, hard: next()? });
    }
    let mut all = [Limit::default(); COUNT];
    for (index, limit) in limits.into_iter().enumerate() {
        all[index] = limit.or_malformed("limit", NAMES[index])?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_agrees_with_prlimit() {
        let limits = Task::current().unwrap().limits().unwrap();
        for (resource, index) in [
            (rustix::process::Resource::Nofile, libc::RLIMIT_NOFILE),
            (rustix::process::Resource::Stack, libc::RLIMIT_STACK),
            (rustix::process::Resource::Rttime, libc::RLIMIT_RTTIME),
        ] {
            let limit = rustix::process::getrlimit(resource);
            assert_eq!(limits[index as usize], Limit { soft: limit.current, hard: limit.maximum });
        }
    }

    #[test]
    fn refuses_a_missing_limit() {
        let text = b"Limit                     Soft Limit           Hard Limit           Units     \n\
            Max cpu time              5                    unlimited            seconds   \n";
        assert_eq!(parse(text).unwrap_err().text.as_ref(), "Max file size");
    }
}
