//! Killing a program at a chosen point of its run: after some time, or at the entry or exit of its n-th system call.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cryonaut_kernel::sys::ptrace::{self, Options};
use cryonaut_kernel::sys::wait::{self, PtraceEvent, WaitStatus, Who};
use rustix::process::{Pid, Signal, kill_process};

/// When the program is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    /// This long after its start.
    After(Duration),
    /// At this entry or exit of a system call of its main thread, counted from 1.
    AtStop(u64),
}

/// Runs `command`, kills it at the point told, and collects it. Says whether it was still running then.
pub(crate) fn strike(command: &mut Command, log: &Path, blow: Blow) -> io::Result<bool> {
    match blow {
        Blow::After(pause) => {
            let mut child = start(command, log)?;
            let begun = Instant::now();
            // A sleep ends too late by more than the distance between two instants that matter.
            while begun.elapsed() < pause {
                std::hint::spin_loop();
            }
            child.kill()?;
            Ok(child.wait()?.code().is_none())
        }
        Blow::AtStop(stop) => Ok(step(command, log, stop)? == stop),
    }
}

/// How many entries and exits of system calls the program's main thread has when nobody kills it.
pub(crate) fn count_stops(command: &mut Command, log: &Path) -> io::Result<u64> {
    step(command, log, u64::MAX)
}

fn start(command: &mut Command, log: &Path) -> io::Result<Child> {
    let out = File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()
}

/// Leads a program from call to call. A shell stops itself for us before it becomes the program.
fn step(command: &Command, log: &Path, last: u64) -> io::Result<u64> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    let mut child = start(&mut shell, log)?;
    let pid = Pid::from_child(&child);
    let stops = lead(pid, last).inspect_err(|_| drop(child.kill()));
    // Its end has been taken by the tracer unless something failed.
    let _ = child.wait();
    Ok(stops?)
}

fn lead(pid: Pid, last: u64) -> Result<u64, rustix::io::Errno> {
    ptrace::seize(pid, Options::TRACESYSGOOD | Options::TRACEEXEC | Options::EXITKILL)?;
    let (mut stops, mut program) = (0, false);
    loop {
        let mut give = 0;
        match wait::wait(Who::One(pid))?.1 {
            status if status.is_end() => return Ok(stops),
            WaitStatus::Event(PtraceEvent::Exec) => program = true,
            WaitStatus::SyscallStop if program => {
                stops += 1;
                if stops == last {
                    kill_process(pid, Signal::KILL)?;
                    while !wait::wait(Who::One(pid))?.1.is_end() {}
                    return Ok(stops);
                }
            }
            // The shell has stopped itself.
            WaitStatus::GroupStop(_) => kill_process(pid, Signal::CONT)?,
            WaitStatus::SignalStop(signal) => give = signal,
            _ => {}
        }
        if program {
            ptrace::syscall(pid, give)?;
        } else {
            ptrace::cont(pid, give)?;
        }
    }
}
