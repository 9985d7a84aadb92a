//! What a lazy restore leaves to processes of its own, when these are killed, or their source fails.

use std::fs::File;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::catalogue::declaration;
use crate::engine::Engine;
use crate::suite::run;
use crate::workload::Workload;

/// The program's own changes are followed by whoever fills; its memory is large enough that it takes a while.
const WORKLOADS: [&str; 4] = ["memory/changes", "memory/cow_many", "memory/large", "tree/family"];
const DEFAULT_ROUNDS: u64 = 4;
/// More in a row are taken for something that ends each of them.
const MOST_KILLS: u32 = 7;
const TRIES: usize = 20;

/// `killed::AREA::NAME`: who fills is killed again and again, and who watches over it, never both at once. `unreadable`:
/// pages that cannot be read any more are no zeros.
///
/// # Panics
/// If CRYONAUT_KILLS is no number, or a workload is missing.
pub fn lazy(own: &Engine) -> ExitCode {
    let rounds = std::env::var("CRYONAUT_KILLS").ok();
    let rounds = rounds.map_or(DEFAULT_ROUNDS, |n| n.parse::<u64>().expect("CRYONAUT_KILLS is no number") / 10);
    let start = |name: &str, own: &Engine| {
        let found = declaration(name).unwrap_or_else(|| panic!("there is no workload {name}"));
        let own = own.clone();
        move || Workload::start_with(found.clone(), (own.clone(), own.clone()), false)
    };
    let mut tests = Vec::new();
    for name in WORKLOADS {
        let start = start(name, own);
        let name = format!("killed::{}", name.replace('/', "::"));
        tests.push(Trial::test(name, move || (0..rounds).try_for_each(|round| killed(start()?, round))));
    }
    let start = start("memory/changes", own);
    tests.push(Trial::test("unreadable", move || {
        for _ in 0..TRIES {
            if unreadable(start()?)? {
                return Ok(());
            }
        }
        Err("all memory came before its source was lost".into())
    }));
    run(tests)
}

/// Those of our program's processes that a restore has left behind.
fn fillers(workload: &Workload) -> Vec<Pid> {
    let is_ours = |pid: &Pid| {
        std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).is_ok_and(|name| name == "cryonaut\n")
    };
    workload.family().members().into_iter().filter(is_ours).collect()
}

fn killed(mut workload: Workload, round: u64) -> Result<(), Failed> {
    workload.checkpoint()?;
    workload.restore_lazily()?;
    let watch = workload.go()?;
    let begun = Instant::now();
    let (mut random, mut kills) = (round.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, 0);
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    loop {
        let there = fillers(&workload);
        if there.is_empty() {
            break;
        }
        // With one alone, the other is just being replaced, or all is done.
        if let [one, other] = there[..]
            && kills < MOST_KILLS
        {
            kills += u32::from(end(if draw(2) == 0 { one } else { other })?);
        }
        if begun.elapsed() > Duration::from_secs(50) {
            return Err(format!("memory is still being filled after {kills} kills").into());
        }
        sleep(Duration::from_micros(draw(3000)));
    }
    println!("{kills} kills");
    Ok(workload.await_verdict(&watch)?)
}

/// Kills a process and waits for its end; whether it was still there.
fn end(pid: Pid) -> Result<bool, Failed> {
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(false) };
    let sent = pidfd_send_signal(&pidfd, Signal::KILL).is_ok();
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None)?;
    Ok(sent)
}

/// Whether it was seen: all memory may have come before its source is lost.
fn unreadable(mut workload: Workload) -> Result<bool, Failed> {
    workload.checkpoint()?;
    workload.restore_lazily()?;
    let there = fillers(&workload);
    let signal = |signal| there.iter().try_for_each(|pid| kill_process(*pid, signal));
    if there.len() != 2 || signal(Signal::STOP).is_err() || !workload.misses_memory() {
        let _ = signal(Signal::CONT);
        return workload.finish().map(|()| false).map_err(Failed::from);
    }
    for entry in std::fs::read_dir(workload.images())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("pages-") {
            File::options().write(true).open(entry.path())?.set_len(0)?;
        }
    }
    signal(Signal::CONT)?;
    match workload.finish() {
        Ok(()) => Err("said ok although its memory was lost".into()),
        Err(failure) if failure.what.starts_with("ended without a word") => Ok(true),
        Err(other) => Err(format!("did not end by a signal: {other}").into()),
    }
}
