//! Resource limits (getrlimit(2)).
//!
//! Read from /proc/PID/limits, which asks for no capability; set by the
//! process itself, and only where they differ, since raising a hard limit
//! needs CAP_SYS_RESOURCE.

use crate::freeze::Process;
use crate::{Error, Object, Result};
use cryonaut_image::records::{RlimitEntry, TaskRlimitsEntry};
use cryonaut_puppet::{Arg, Batch, Hand};
use rustix::io::Errno;

/// The record.
pub fn record(process: &Process) -> Result<TaskRlimitsEntry> {
    let value = |v: Option<u64>| v.unwrap_or(u64::MAX);
    let limits = process.task.limits()?;
    let rlimits = limits.iter().map(|l| RlimitEntry { cur: value(l.soft), max: value(l.hard) }).collect();
    Ok(TaskRlimitsEntry { rlimits })
}

/// Gives the process its limits.
pub fn build(hand: &mut Hand, limits: &TaskRlimitsEntry) -> Result<()> {
    let mut b = Batch::new();
    let mut calls = Vec::new();
    let rooms: Vec<_> = (0..limits.rlimits.len())
        .map(|i| {
            let room = b.space(16);
            b.call(libc::SYS_prlimit64, [Arg::Val(0), i.into(), Arg::Val(0), room.into()]);
            room
        })
        .collect();
    hand.run(&mut b)?;
    let mut set = Batch::new();
    for (i, limit) in limits.rlimits.iter().enumerate() {
        if (b.read_u64(rooms[i]), b.read_u64(rooms[i].at(8))) == (limit.cur, limit.max) {
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
