//! Resource limits (getrlimit(2)).
//!
//! Read and set by the process itself: of another's, prlimit(2) asks for
//! CAP_SYS_RESOURCE. Set only where they differ, since raising a hard limit
//! needs that too.

use crate::{Error, Object, Result};
use cryonaut_image::records::{RlimitEntry, TaskRlimitsEntry};
use cryonaut_puppet::{Arg, Batch, Data, Hand};
use rustix::io::Errno;

/// `RLIM_NLIMITS` (asm-generic/resource.h).
const COUNT: usize = 16;

/// The question for all limits of a process.
#[derive(Debug)]
pub struct Ask {
    limits: Vec<Data>,
}

impl Ask {
    /// Adds it to a batch for the process.
    pub fn new(b: &mut Batch) -> Self {
        Ask { limits: (0..COUNT).map(|number| ask_one(b, number)).collect() }
    }

    /// The record, in the order of their numbers; RLIM_INFINITY is all ones in both.
    pub fn record(&self, answers: &Batch) -> TaskRlimitsEntry {
        let limit = |room: &Data| RlimitEntry { cur: answers.read_u64(*room), max: answers.read_u64(room.at(8)) };
        TaskRlimitsEntry { rlimits: self.limits.iter().map(limit).collect() }
    }
}

fn ask_one(b: &mut Batch, number: usize) -> Data {
    let room = b.space(16);
    b.call(libc::SYS_prlimit64, [Arg::Val(0), number.into(), Arg::Val(0), room.into()]);
    room
}

/// Gives the process its limits, where they are not what `asked` has been answered.
pub fn build(hand: &mut Hand, limits: &TaskRlimitsEntry, asked: &Ask, answers: &Batch) -> Result<()> {
    let mut calls = Vec::new();
    let there = asked.record(answers);
    let mut set = Batch::new();
    for (i, limit) in limits.rlimits.iter().enumerate() {
        if there.rlimits.get(i) == Some(limit) {
            continue;
        }
        let mut value = limit.cur.to_le_bytes().to_vec();
        value.extend_from_slice(&limit.max.to_le_bytes());
        let value = set.bytes(&value);
        calls.push((i, set.attempt(libc::SYS_prlimit64, [Arg::Val(0), i.into(), value.into(), Arg::Val(0)])));
    }
    hand.run(&mut set)?;
    for (i, call) in calls {
        if let Err(errno) = set.result(call) {
            let remedy = if errno == Errno::PERM {
                "raising a limit needs CAP_SYS_RESOURCE; raise it before the restore"
            } else {
                ""
            };
            let object = Object::Process(hand.pid());
            return Err(Error::Kernel { object, action: format!("set resource limit {i}"), errno, remedy });
        }
    }
    Ok(())
}
