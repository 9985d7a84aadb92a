//! What a bar is drawn by: bytes of memory done, of those that there are.

use cryonaut_engine::{
    Afterwards, CheckpointOptions, PrecopyMode, PrecopyOptions, Progress, RestoreOptions, checkpoint, restore,
};
use cryonaut_tests::Workload;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;

/// What `memory/many_mappings` has at least, bytes.
const LEAST: u64 = 8 << 20;

fn assert_told(progress: &Progress) {
    let (done, total) = progress.get();
    assert!(done >= LEAST && total >= LEAST, "{done} of {total} bytes");
    // An estimate, but not a wild one.
    assert!(done <= total + total / 4 && total <= done + done / 4, "{done} of {total} bytes");
}

#[test]
fn memory_is_told_of_as_it_is_copied() {
    let dir = TempDir::new().expect("a directory");
    let workload = Workload::start("memory/many_mappings").expect("it starts");
    let pid = workload.pid().as_raw_nonzero().get();
    for (mode, last) in [(PrecopyMode::Always, false), (PrecopyMode::Never, true)] {
        let precopy = PrecopyOptions { mode, ..PrecopyOptions::default() };
        let mut options = CheckpointOptions { precopy, ..CheckpointOptions::default() };
        if !last {
            options.afterwards = Afterwards::LeaveRunning;
        }
        checkpoint(pid, dir.path(), &options).expect("a checkpoint");
        assert_told(&options.progress);
    }
    let root = Pid::from_raw(pid).expect("a pid");
    let options = RestoreOptions::default();
    restore(dir.path(), &options).expect("a restore");
    kill_process(root, Signal::KILL).expect("it is there");
    waitpid(Some(root), WaitOptions::empty()).expect("it was our child");
    assert_told(&options.progress);
}
