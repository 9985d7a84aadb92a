//! What /proc tells of a process and its threads, and what its processes share.

use std::cmp::Ordering;

use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::stat::State;
use cryonaut_kernel::proc::values::Syscall;
use cryonaut_kernel::sys::{kcmp, sched};
use rustix::io::Errno;
use rustix::process::Pid;

use super::{Object, Taking, ThreadPlaces, mounts, visit};

/// Files of a process that are compared as a whole.
const PROCESS_FILES: &[&str] = &[
    "cmdline",
    "environ",
    "limits",
    "personality",
    "oom_score_adj",
    "loginuid",
    "sessionid",
    "coredump_filter",
    "cgroup",
    "cpuset",
    "uid_map",
    "gid_map",
    "projid_map",
    "setgroups",
    "timens_offsets",
    "attr/current",
    "oom_score",
];

/// Files of a thread.
const THREAD_FILES: &[&str] = &["comm", "timerslack_ns", "cgroup"];

const LINKS: &[&str] = &["exe", "cwd", "root"];

const NAMESPACES: &[&str] =
    &["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"];

/// The fields of `stat`, in their order (proc_pid_stat(5)).
const STAT: &[&str] = &[
    "pid",
    "comm",
    "state",
    "ppid",
    "pgrp",
    "session",
    "tty_nr",
    "tpgid",
    "flags",
    "minflt",
    "cminflt",
    "majflt",
    "cmajflt",
    "utime",
    "stime",
    "cutime",
    "cstime",
    "priority",
    "nice",
    "num_threads",
    "itrealvalue",
    "starttime",
    "vsize",
    "rss",
    "rsslim",
    "startcode",
    "endcode",
    "startstack",
    "kstkesp",
    "kstkeip",
    "signal",
    "blocked",
    "sigignore",
    "sigcatch",
    "wchan",
    "nswap",
    "cnswap",
    "exit_signal",
    "processor",
    "rt_priority",
    "policy",
    "delayacct_blkio_ticks",
    "guest_time",
    "cguest_time",
    "start_data",
    "end_data",
    "start_brk",
    "arg_start",
    "arg_end",
    "env_start",
    "env_end",
    "exit_code",
];

/// The kernel's answer behind a failed read.
fn errno(error: cryonaut_kernel::proc::Error) -> Errno {
    error.errno().unwrap_or(Errno::INVAL)
}

/// Timers in the order of their ids: the kernel's is that in which threads happened to make them.
fn by_id(timers: &str) -> String {
    let mut all: Vec<&str> = timers.split("ID: ").filter(|timer| !timer.is_empty()).collect();
    all.sort_by_key(|timer| timer.lines().next().and_then(|id| id.parse::<i64>().ok()));
    all.iter().map(|timer| format!("ID: {}\n", timer.trim_end())).collect()
}

fn text(task: &Task, name: &str) -> Result<String, Errno> {
    let bytes = task.read(name).map_err(errno)?;
    Ok(String::from_utf8_lossy(&bytes).replace('\0', "\\0"))
}

/// The link of a namespace: our own as it is, others, which are made anew, by who is in the same.
fn namespace(taking: &mut Taking, name: &str, link: &str) -> String {
    let ours = std::fs::read_link(format!("/proc/self/ns/{name}"));
    let inode = link.split_once(":[").and_then(|(_, rest)| rest.strip_suffix(']')?.parse().ok());
    match inode {
        Some(inode) if ours.is_ok_and(|ours| ours.as_os_str() != link) => {
            format!("{name}:[{}]", taking.identities.name(inode))
        }
        _ => link.to_owned(),
    }
}

/// The thread by whose id the kernel tells of a process: its first, or if that has ended before others, another.
pub(crate) fn speaker(pid: Pid) -> Pid {
    let Ok(task) = Task::open(pid) else { return pid };
    let lives = |tid: &Pid| task.thread(*tid).stat().is_ok_and(|stat| stat.state != State::Zombie);
    if lives(&pid) { pid } else { threads(&task).into_iter().find(lives).unwrap_or(pid) }
}

fn take_namespaces(taking: &mut Taking, object: &Object, task: &Task) {
    for name in NAMESPACES {
        let link = task.link(&format!("ns/{name}")).map_err(errno).map(|path| path.display().to_string());
        let told = link.map(|link| namespace(taking, name, &link));
        taking.put_result(object, format!("ns.{name}"), told);
    }
    mounts::take(taking, object, task);
    super::network::take(taking, object, task);
}

/// What is around a process: its namespaces and cgroups.
pub(super) fn take_surroundings(taking: &mut Taking, pid: Pid) {
    let object = Object::Process(pid.as_raw_nonzero().get());
    let Ok(task) = Task::open(pid) else { return };
    taking.put_result(&object, "cgroup", text(&task, "cgroup"));
    take_namespaces(taking, &object, &task);
}

/// One process with all its threads.
pub(super) fn take(taking: &mut Taking, pid: Pid) {
    let object = Object::Process(pid.as_raw_nonzero().get());
    taking.threads.clear();
    let Ok(task) = Task::open(speaker(pid)) else {
        taking.put(&object, "exists", "no");
        return;
    };
    if task.stat().is_ok_and(|stat| stat.state == State::Zombie) {
        take_zombie(taking, &object, &task);
        return;
    }
    for name in PROCESS_FILES {
        taking.put_result(&object, *name, text(&task, name));
    }
    taking.put_result(&object, "timers", text(&task, "timers").map(|told| by_id(&told)));
    for name in LINKS {
        let link = task.link(name).map_err(errno);
        taking.put_result(&object, *name, link.map(|path| path.display().to_string()));
    }
    take_namespaces(taking, &object, &task);
    take_auxv(taking, &object, &task);
    take_stat(taking, &object, &task);
    take_lines(taking, &object, &task, "status");
    take_lines(taking, &object, &task, "ksm_stat");
    let mut queue_told = false;
    for tid in threads(&task) {
        take_thread(taking, &task, pid, tid, &mut queue_told);
    }
}

/// The threads of a process but for those that the kernel has made to work for it (io_uring), which come and go.
pub(crate) fn threads(task: &Task) -> Vec<Pid> {
    const WORKER: u32 = 0x10 | 0x4000; // PF_IO_WORKER, PF_USER_WORKER
    let mut all = task.tids().unwrap_or_default();
    all.retain(|tid| task.thread(*tid).stat().is_ok_and(|stat| stat.flags & WORKER == 0));
    all
}

/// What somebody may still want to know of one that has ended: nobody will ask for its limits or its handlers.
fn take_zombie(taking: &mut Taking, object: &Object, task: &Task) {
    for name in ["comm", "ids", "exit_code"] {
        match (name, task.stat(), task.status()) {
            ("comm", _, _) => taking.put_result(object, name, text(task, "comm")),
            ("ids", Ok(stat), Ok(status)) => {
                let ids = format!("{} {} {} {:?} {:?}", stat.ppid, stat.pgrp, stat.session, status.uid, status.gid);
                taking.put(object, name, ids);
            }
            ("exit_code", Ok(stat), _) => taking.put(object, name, format!("{:#x}", stat.exit_code)),
            _ => {}
        }
    }
}

fn take_auxv(taking: &mut Taking, object: &Object, task: &Task) {
    match task.auxv() {
        Ok(pairs) => {
            let words: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}:{value:#x}")).collect();
            taking.put(object, "auxv", words.join(" "));
        }
        Err(error) => taking.put_result::<&str>(object, "auxv", Err(errno(error))),
    }
}

fn take_stat(taking: &mut Taking, object: &Object, task: &Task) {
    let line = match text(task, "stat") {
        Ok(line) => line,
        Err(errno) => return taking.put_result::<&str>(object, "stat", Err(errno)),
    };
    let (Some(open), Some(close)) = (line.find('('), line.rfind(')')) else {
        return taking.put(object, "stat", line);
    };
    let mut values = vec![line[..open].trim(), &line[open..=close]];
    values.extend(line[close + 1..].split_whitespace());
    for (at, value) in values.iter().enumerate() {
        let name = STAT.get(at).map_or_else(|| format!("stat.{}", at + 1), |name| format!("stat.{name}"));
        taking.put(object, name, *value);
    }
}

/// A file of lines `KEY: VALUE` or `KEY VALUE`.
fn take_lines(taking: &mut Taking, object: &Object, task: &Task, name: &str) {
    match text(task, name) {
        Ok(all) => {
            for line in all.lines() {
                if let Some((key, value)) = line.split_once(':').or_else(|| line.split_once(' ')) {
                    taking.put(object, format!("{name}.{key}"), value.trim());
                }
            }
        }
        Err(errno) => taking.put_result::<&str>(object, name, Err(errno)),
    }
}

fn take_thread(taking: &mut Taking, process: &Task, pid: Pid, tid: Pid, queue_told: &mut bool) {
    let object = Object::Thread(pid.as_raw_nonzero().get(), tid.as_raw_nonzero().get());
    let task = process.thread(tid);
    for name in THREAD_FILES {
        // Given to the thread's own directory in /proc alone.
        let from = if *name == "timerslack_ns" { Task::open(tid) } else { Ok(process.thread(tid)) };
        taking.put_result(&object, *name, from.map_err(errno).and_then(|task| text(&task, name)));
    }
    take_stat(taking, &object, &task);
    take_lines(taking, &object, &task, "status");
    let mut children: Vec<i32> =
        process.children(tid).unwrap_or_default().iter().map(|child| child.as_raw_nonzero().get()).collect();
    children.sort_unstable();
    taking.put(&object, "children", format!("{children:?}"));
    taking.put_result(&object, "scheduling", sched::sched_getattr(tid).map(|attr| format!("{attr:?}")));
    taking.put_result(&object, "io_priority", sched::ioprio_get(tid));
    let robust = sched::get_robust_list(tid);
    taking.put_result(&object, "robust_list", robust.map(|(head, size)| format!("{head:#x} {size}")));
    let call = task.syscall();
    let stack_pointer = match call {
        Ok(Syscall::In { sp, .. } | Syscall::Blocked { sp, .. }) => Some(sp),
        Ok(Syscall::Running) | Err(_) => None,
    };
    let robust_list = robust.map_or(0, |(head, _)| head);
    taking.threads.push(ThreadPlaces { stack_pointer, rseq: None, robust_list });
    taking.put(&object, "call", describe_call(&call));
    visit::take(taking, &object, tid, &task, call.ok(), queue_told);
}

/// The call that a thread is blocked in, with the arguments that it has. Those that the kernel may have begun again are
/// one and the same: which it is shows in the instruction pointer.
fn describe_call(call: &cryonaut_kernel::proc::Result<Syscall>) -> String {
    match call {
        Ok(Syscall::In { number, args, sp, pc }) => {
            let name = if visit::MAY_BE_RESTARTED.contains(number) { "restartable".into() } else { number.to_string() };
            format!("{name} args {args:x?} sp {sp:#x} pc {pc:#x}")
        }
        Ok(Syscall::Blocked { sp, pc }) => format!("blocked outside of calls, sp {sp:#x} pc {pc:#x}"),
        Ok(Syscall::Running) => "running".to_owned(),
        Err(error) => format!("({:?})", error.errno()),
    }
}

/// Whether two processes run in the same memory.
pub(super) fn share_memory(one: Pid, other: Pid) -> bool {
    kcmp::resource(speaker(one), speaker(other), kcmp::Shared::Vm) == Ok(Ordering::Equal)
}

/// Which processes (and threads) have a resource in common: each is told the first of the tree with which it shares.
pub(super) fn take_sharing(taking: &mut Taking, pids: &[Pid]) {
    const KINDS: [(kcmp::Shared, &str); 6] = [
        (kcmp::Shared::Vm, "memory"),
        (kcmp::Shared::Files, "descriptors"),
        (kcmp::Shared::Fs, "file-system context"),
        (kcmp::Shared::Sighand, "signal actions"),
        (kcmp::Shared::Io, "I/O context"),
        (kcmp::Shared::Sysvsem, "semaphore undo list"),
    ];
    let mut tasks: Vec<(Pid, Pid)> = Vec::new();
    for pid in pids {
        let tids = Task::open(*pid).map(|task| threads(&task)).unwrap_or_default();
        tasks.extend(tids.into_iter().map(|tid| (*pid, tid)));
    }
    // Those that have ended since would compare equal to all.
    tasks.retain(|(_, tid)| kcmp::resource(*tid, *tid, kcmp::Shared::Vm).is_ok());
    for (kind, name) in KINDS {
        let mut sorted: Vec<usize> = (0..tasks.len()).collect();
        let compare = |a: &usize, b: &usize| {
            kcmp::resource(tasks[*a].1, tasks[*b].1, kind).unwrap_or(Ordering::Equal).then(a.cmp(b))
        };
        sorted.sort_by(compare);
        let mut first = 0;
        for (at, index) in sorted.iter().enumerate() {
            if at == 0 || kcmp::resource(tasks[sorted[first]].1, tasks[*index].1, kind) != Ok(Ordering::Equal) {
                first = at;
            }
            let (pid, tid) = tasks[*index];
            let object = Object::Thread(pid.as_raw_nonzero().get(), tid.as_raw_nonzero().get());
            taking.put(&object, format!("shared.{name}"), tasks[sorted[first]].1.as_raw_nonzero().to_string());
        }
    }
}
