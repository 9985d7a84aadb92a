//! The lists of tests: one per workload and kind of run. Each function is the whole `main` of a test program.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::catalogue::{Declaration, catalogue};
use crate::engine::Engine;
use crate::workload::Workload;

/// `sound::AREA::NAME`: without any checkpoint a workload says ok, and once it has destroyed its state it says FAIL.
/// A workload that cannot fail proves nothing about an engine.
pub fn sound() -> ExitCode {
    // Never asked to do anything.
    let none = Engine::Cryonaut("/nonexistent".into());
    run(each("sound", &catalogue(), (none.clone(), none), |start| {
        start(false)?.finish()?;
        match start(true)?.finish() {
            Ok(()) => Err("said ok although it had destroyed its own state (--lose)".into()),
            Err(failure) if failure.what.starts_with("FAIL: ") => Ok(()),
            Err(other) => Err(format!("destroyed its own state (--lose) and then did not say FAIL: {other}").into()),
        }
    }))
}

/// `survives::`: checkpointed and restored, the state holds. `twice::`: and once more from what was restored.
/// `unharmed::`: checkpointed and left running, it goes on as if nothing had happened. `refused::`: what cannot be
/// carried is named, and goes on as well. `precopied::`: the memory was copied before the freeze;
/// `schedules::`: again and again. `lazily::`: as `survives`, with the memory coming while it runs, and
/// checkpointed once more while it does. `another_vdso::`: as if restored on another kernel.
pub fn survives(own: &Engine) -> ExitCode {
    let (cannot, all): (Vec<_>, Vec<_>) = catalogue().into_iter().partition(|w| w.refused.is_some());
    let (lost, all): (Vec<_>, Vec<_>) = all.into_iter().partition(|w| w.gap.is_some());
    let engines = (own.clone(), own.clone());
    let mut tests = each("gap", &lost, engines.clone(), |start| match round_trips(start, 1) {
        Ok(()) => Err("this is carried now: take its `// gap:` line away".into()),
        Err(_) => Ok(()),
    });
    tests.extend(each("survives", &all, engines.clone(), |start| unchanged(start, 1)));
    tests.extend(each("twice", &all, engines.clone(), |start| unchanged(start, 2)));
    tests.extend(each("lazily", &all, engines.clone(), |start| {
        let mut workload = start(false)?;
        workload.fingerprint();
        workload.checkpoint()?;
        workload.restore_lazily()?;
        // Waits for the memory.
        workload.checkpoint()?;
        workload.restore_lazily()?;
        workload.await_memory()?;
        workload.compare()?;
        workload.checkpoint()?;
        workload.restore_lazily()?;
        Ok(workload.finish()?)
    }));
    tests.extend(each("refused", &cannot, engines.clone(), refused));
    tests.extend(each("unharmed", &all, engines.clone(), |start| {
        let mut workload = start(false)?;
        workload.fingerprint();
        workload.checkpoint_leave_running()?;
        workload.compare()?;
        Ok(workload.finish()?)
    }));
    let copied_ahead: Vec<Declaration> = all.iter().filter(|w| has_memory(w)).map(copied_while_it_runs).collect();
    tests.extend(each("precopied", &copied_ahead, engines.clone(), |start| unchanged(start, 1)));
    let ceaseless =
        ["ceaseless", "shared_ceaseless", "cow_ceaseless", "moved_back"].map(|name| format!("memory/{name}_copied"));
    let ceaseless: Vec<Declaration> = all.iter().filter(|w| ceaseless.contains(&w.name)).cloned().collect();
    tests.extend(each("schedules", &ceaseless, engines.clone(), again_and_again));
    tests.extend(crate::vdso::tests(own));
    run(tests)
}

/// How often a workload that never rests is copied while it runs, each time at another moment of what it does.
fn schedules() -> u32 {
    std::env::var("CRYONAUT_SCHEDULES").ok().and_then(|number| number.parse().ok()).unwrap_or(10)
}

/// Whether a workload is about memory, or about processes whose memory is worth a look.
fn has_memory(workload: &Declaration) -> bool {
    let areas = ["memory/", "tree/", "threads/", "calls/"];
    workload.checkpoint_flags.is_empty() && areas.iter().any(|area| workload.name.starts_with(area))
}

/// The same workload, its memory copied before it is frozen.
fn copied_while_it_runs(workload: &Declaration) -> Declaration {
    let mut workload = workload.clone();
    workload.checkpoint_flags.push("--precopy=always".into());
    workload
}

/// Ours and the peer's, both ways, for each workload that the peer can carry: `ours_to_peer::` and `peer_to_ours::`,
/// twice each, so that either also checkpoints what the other has restored; and `peer_alone::`, which shows that the
/// peer can. There are no tests when the environment names no peer (CRIU). With
/// CRIU_ALL also those that the peer is said not to carry, for the day on which a newer one does.
pub fn peer(own: &Engine) -> ExitCode {
    let Some(peer) = Engine::peer() else {
        eprintln!("no peer to test with: `make test-peer` brings it in and sets CRIU");
        return run(Vec::new());
    };
    let everything = std::env::var_os("CRIU_ALL").is_some();
    let carried: Vec<Declaration> =
        catalogue().into_iter().filter(|w| (everything || w.peer_cannot.is_none()) && w.refused.is_none()).collect();
    // What our own restore is known to lose is a test of `survives`.
    let ours: Vec<Declaration> = carried.iter().filter(|w| w.gap.is_none()).cloned().collect();
    let mut tests = Vec::new();
    tests.extend(each("peer_alone", &carried, (peer.clone(), peer.clone()), |start| round_trips(start, 1)));
    tests.extend(each("ours_to_peer", &carried, (own.clone(), peer.clone()), |start| round_trips(start, 2)));
    tests.extend(each("peer_to_ours", &ours, (peer, own.clone()), |start| round_trips(start, 2)));
    run(tests)
}

type Start<'a> = &'a dyn Fn(bool) -> Result<Workload, crate::workload::Failure>;

fn round_trips(start: Start<'_>, times: u32) -> Result<(), Failed> {
    let mut workload = start(false)?;
    for _ in 0..times {
        workload.checkpoint()?;
        workload.restore()?;
    }
    Ok(workload.finish()?)
}

/// Round trips, each after a checkpoint that leaves it running: what is left of that may not matter to the next.
fn again_and_again(start: Start<'_>) -> Result<(), Failed> {
    let mut workload = start(false)?;
    for _ in 0..schedules() {
        workload.checkpoint_leave_running()?;
        workload.checkpoint()?;
        workload.restore()?;
    }
    Ok(workload.finish()?)
}

/// Round trips after which the tree is the same by its fingerprint, too.
fn unchanged(start: Start<'_>, times: u32) -> Result<(), Failed> {
    let mut workload = start(false)?;
    workload.fingerprint();
    for _ in 0..times {
        workload.checkpoint()?;
        workload.restore()?;
        workload.compare()?;
    }
    Ok(workload.finish()?)
}

fn refused(start: Start<'_>) -> Result<(), Failed> {
    let mut workload = start(false)?;
    let reason = workload.declaration().refused.clone().unwrap_or_default();
    workload.fingerprint();
    match workload.checkpoint_leave_running() {
        Ok(()) => Err("was checkpointed although nobody can carry its state".into()),
        Err(failure) if failure.what.contains(&reason) => {
            workload.compare()?;
            Ok(workload.finish()?)
        }
        Err(other) => Err(format!("the refusal does not say \"{reason}\": {other}").into()),
    }
}

/// One test per workload; `body` starts it, with or without --lose, as often as it likes.
fn each(
    group: &str,
    all: &[Declaration],
    engines: (Engine, Engine),
    body: fn(Start<'_>) -> Result<(), Failed>,
) -> Vec<Trial> {
    let one = |declaration: &Declaration| {
        let name = format!("{group}::{}", declaration.name.replace('/', "::"));
        let (declaration, engines) = (declaration.clone(), engines.clone());
        Trial::test(name, move || body(&|lose| Workload::start_with(declaration.clone(), engines.clone(), lose)))
    };
    all.iter().map(one).collect()
}

pub(crate) fn run(tests: Vec<Trial>) -> ExitCode {
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}
