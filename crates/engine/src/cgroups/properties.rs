//! Which files of a cgroup are properties of it: those that can be written, and that say nothing of who is in it.

use super::CgroupOptions;

/// Of every cgroup of version 1.
const OF_ALL: &[&str] = &["cgroup.clone_children", "notify_on_release", "cgroup.procs", "tasks"];

/// Of every cgroup of version 2; a type before what it allows, controllers before what they have.
const OF_UNIFIED: &[&str] = &[
    "cgroup.type",
    "cgroup.subtree_control",
    "cgroup.max.descendants",
    "cgroup.max.depth",
    "cgroup.procs",
    "cgroup.threads",
];

/// By controller, of both versions (the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst). The order is
/// that in which they are set.
const BY_CONTROLLER: &[(&str, &[&str])] = &[
    (
        "cpu",
        &[
            "cpu.shares",
            "cpu.cfs_period_us",
            "cpu.cfs_quota_us",
            "cpu.rt_period_us",
            "cpu.rt_runtime_us",
            "cpu.idle",
            "cpu.weight",
            "cpu.max",
            "cpu.max.burst",
        ],
    ),
    (
        "cpuset",
        &[
            "cpuset.cpus",
            "cpuset.mems",
            "cpuset.cpu_exclusive",
            "cpuset.mem_exclusive",
            "cpuset.mem_hardwall",
            "cpuset.memory_migrate",
            "cpuset.memory_spread_page",
            "cpuset.memory_spread_slab",
            "cpuset.sched_load_balance",
            "cpuset.sched_relax_domain_level",
            "cpuset.cpus.partition",
        ],
    ),
    (
        "memory",
        &[
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.soft_limit_in_bytes",
            "memory.swappiness",
            "memory.oom_control",
            "memory.move_charge_at_immigrate",
            "memory.use_hierarchy",
            "memory.kmem.limit_in_bytes",
            "memory.kmem.tcp.limit_in_bytes",
            "memory.min",
            "memory.low",
            "memory.high",
            "memory.max",
            "memory.swap.high",
            "memory.swap.max",
            "memory.zswap.max",
            "memory.oom.group",
        ],
    ),
    ("blkio", &["blkio.weight", "blkio.bfq.weight"]),
    ("io", &["io.weight", "io.bfq.weight", "io.max"]),
    ("devices", &["devices.list"]),
    ("net_cls", &["net_cls.classid"]),
    ("net_prio", &["net_prio.ifpriomap"]),
    ("pids", &["pids.max"]),
];

/// Whether a file says who is there: of such a one only the owner and mode are kept.
pub fn lists_tasks(name: &str) -> bool {
    matches!(name, "cgroup.procs" | "cgroup.threads" | "tasks")
}

/// The names of those of one hierarchy, in the order in which they are set.
pub fn names<'o>(hierarchy: &str, controllers: &[String], options: &'o CgroupOptions) -> Vec<&'o str> {
    let general = if hierarchy.is_empty() { OF_UNIFIED } else { OF_ALL };
    let mut names: Vec<&str> = general.to_vec();
    for controller in controllers {
        let known = BY_CONTROLLER.iter().find(|(name, _)| name == controller).map_or(&[][..], |(_, known)| known);
        let asked: Vec<_> = options.properties.iter().filter(|asked| asked.controller == *controller).collect();
        if !asked.iter().any(|asked| asked.replace) {
            names.extend(known);
        }
        names.extend(asked.iter().flat_map(|asked| asked.names.iter().map(String::as_str)));
    }
    names
}
