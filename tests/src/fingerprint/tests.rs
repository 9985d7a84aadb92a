//! That a fingerprint sees what it should, and that its comparison can fail.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use cryonaut_kernel::proc::maps::Perms;
use cryonaut_kernel::sys::{mem, sched, signal};
use rustix::fs::{Uid, fchown};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, Signal, kill_process, pidfd_getfd, pidfd_open, prlimit,
};

use super::rules::Rule;
use super::{Baseline, Difference, Fingerprint, Object, differences};
use crate::Workload;
use crate::family::Family;

fn numbers(workload: &Workload) -> (Pid, i32) {
    (workload.pid(), workload.pid().as_raw_nonzero().get())
}

fn names(found: &[Difference]) -> BTreeSet<&str> {
    found.iter().map(|difference| difference.field.name.as_str()).collect()
}

#[test]
fn tells_what_there_is_to_tell() {
    let workload = Workload::start("tree/family").unwrap();
    let (pid, number) = numbers(&workload);
    let print = Fingerprint::take(&[pid]);
    let (process, thread) = (Object::Process(number), Object::Thread(number, number));
    for name in ["exe", "cwd", "limits", "auxv", "stat.pgrp", "status.SigIgn", "ns.pid", "environ", "cgroup"] {
        assert!(print.get(&process, name).is_some_and(|value| !value.starts_with('(')), "{name}");
    }
    for name in ["registers.rip", "xstate.xmm", "signals.blocked", "rseq", "scheduling", "shared.memory", "children"] {
        assert!(print.get(&thread, name).is_some(), "{name}");
    }
    assert_eq!(print.get(&Object::Descriptor(number, 0), "link"), Some("/dev/null"));
    assert_eq!(print.get(&Object::Descriptor(number, 2), "description"), Some(format!("{number}:1").as_str()));
    assert!(print.fields.iter().any(|(field, _)| field.name.starts_with("content.")));
    assert!(print.fields.iter().any(|(field, value)| field.name == "path" && value == "[stack]"));
}

#[test]
fn every_field_is_compared() {
    let workload = Workload::start("tree/family").unwrap();
    let mut print = Fingerprint::take(&[workload.pid()]);
    // What a thread that is at work is in the middle of is not compared, and on a busy machine it is for a while.
    while print.works() {
        print = Fingerprint::take(&[workload.pid()]);
    }
    let mut excused = BTreeSet::new();
    for field in print.fields.keys() {
        let mut without = print.clone();
        without.fields.remove(field);
        let mut other = print.clone();
        if let Some(value) = other.fields.get_mut(field) {
            value.push('~');
        }
        let seen = |after: &Fingerprint| differences(&print, after, &[]).iter().any(|found| found.field == *field);
        // Without the word that there was a visit, or a call, its fields are not compared.
        if !seen(&without) || !seen(&other) {
            excused.insert(format!("{} {}", field.object.kind(), field.name));
        }
    }
    let unexpected: Vec<_> = excused
        .iter()
        .filter(|name| !name.contains(" stat.") && !name.contains(" status.") && !name.contains(" ksm_stat."))
        .filter(|name| {
            !["process oom_score", "process sessionid", "thread shared.I/O context", "thread visit"]
                .contains(&name.as_str())
        })
        .collect();
    assert!(unexpected.is_empty(), "these are never compared: {unexpected:?}");
}

#[test]
fn a_tree_left_alone_is_the_same() {
    let workload = Workload::start("tree/family").unwrap();
    let family = || Family::of(workload.images().parent().unwrap()).members_and_zombies();
    let baseline = Baseline::take(family);
    let found = baseline.compare(family, &[]);
    assert!(found.is_empty(), "{found:?}");
}

/// Each change is made to a running process from outside, and must be seen in its field.
#[test]
fn every_loss_is_seen() {
    type Loss = (&'static str, fn(Pid));
    let losses: &[Loss] = &[
        ("limits", |pid| {
            let limit = Rlimit { current: Some(77), maximum: Some(77) };
            prlimit(Some(pid), Resource::Nofile, limit).unwrap();
        }),
        ("oom_score_adj", |pid| write(pid, "oom_score_adj", "7")),
        ("coredump_filter", |pid| write(pid, "coredump_filter", "1")),
        ("timerslack_ns", |pid| write(pid, "timerslack_ns", "77777")),
        ("scheduling", |pid| {
            let mut attr = sched::sched_getattr(pid).unwrap();
            attr.nice = 3;
            sched::sched_setattr(pid, &attr).unwrap();
        }),
        ("io_priority", |pid| sched::ioprio_set(pid, 3 << 13).unwrap()),
        ("stat.state", stop),
        ("signals.queued_for_process", |pid| {
            // One that a stopped process keeps: it would have to write a core dump. Not stopped yet, it would die of it.
            stop(pid);
            signal::kill(pid, Signal::QUIT.as_raw()).unwrap();
        }),
        ("content", |pid| {
            let start = writable(pid);
            let mut byte = [0];
            mem::read(pid, start, &mut byte).unwrap();
            mem::write(pid, start, &[byte[0] ^ 1]).unwrap();
        }),
    ];
    for (name, lose) in losses {
        let workload = Workload::start("tree/family").unwrap();
        let pid = workload.pid();
        let baseline = Baseline::take(|| vec![pid]);
        lose(pid);
        let found = baseline.compare(|| vec![pid], &[]);
        let names = names(&found);
        assert!(names.iter().any(|found| found.starts_with(name)), "{name} is not among {names:?}");
    }
}

/// No option and no call tells it of a datagram socket.
#[test]
fn what_sock_diag_alone_tells_is_seen() {
    let workload = Workload::start("sockets/udp").unwrap();
    let pid = workload.pid();
    let baseline = Baseline::take(|| vec![pid]);
    assert_eq!(baseline.compare(|| vec![pid], &[]), []);
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let kind = |socket: &OwnedFd| rustix::net::sockopt::socket_type(socket);
    let ours = |fd: i32| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok().filter(|file| kind(file).is_ok());
    let socket = (3..64).find_map(ours).unwrap();
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Write).unwrap_or_default();
    fchown(&socket, Some(Uid::from_raw(77)), None).unwrap();
    let found = baseline.compare(|| vec![pid], &[]);
    let names = names(&found);
    assert!(names.contains("socket.diag.uid"), "{names:?}");
}

fn stop(pid: Pid) {
    kill_process(pid, Signal::STOP).unwrap();
    while state(pid) != "T" {
        std::thread::yield_now();
    }
}

fn write(pid: Pid, file: &str, text: &str) {
    std::fs::write(format!("/proc/{}/{file}", pid.as_raw_nonzero()), text).unwrap();
}

fn state(pid: Pid) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
    stat.rsplit(") ").next().unwrap()[..1].to_owned()
}

/// The program's own data.
fn writable(pid: Pid) -> u64 {
    let maps = cryonaut_kernel::proc::Task::open(pid).unwrap().maps().unwrap();
    maps.iter().find(|vma| vma.has_file() && vma.perms.contains(Perms::WRITE)).unwrap().start
}

#[test]
fn a_rule_covers_its_own_fields_alone() {
    let rule = Rule::parse("descriptor fdinfo.*, for a test").unwrap();
    let field = |object, name: &str| super::Field { object, name: name.to_owned() };
    assert!(rule.covers(&field(Object::Descriptor(1, 2), "fdinfo.pos")));
    assert!(!rule.covers(&field(Object::Descriptor(1, 2), "link")));
    assert!(!rule.covers(&field(Object::Process(1), "fdinfo.pos")));
    assert_eq!(Rule::parse("no reason"), None);
}
