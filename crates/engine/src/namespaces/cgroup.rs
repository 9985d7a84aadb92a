//! Cgroup namespaces (cgroup_namespaces(7)): a view of the cgroups whose top is where a process was when it made one. What
//! there is to know of them stands with the cgroups (`cgroups/`), as the part of each path that is above the top.

use super::{Building, Dumping, Halves, Own};
use crate::Result;

pub const HALVES: Halves = Halves { dump, build, at_birth: false };

fn dump(_: &mut Dumping<'_>, _: &Own) -> Result<()> {
    Ok(())
}

fn build(cx: &mut Building<'_>, _: &Own) -> Result<()> {
    cx.cgroups.make_namespace(cx.hand, cx.core)
}
