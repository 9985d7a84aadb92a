//! What the parsers of /proc do with text that no kernel writes: refuse it or make the best of it, never panic.

use cryonaut_kernel::proc::{Task, fdinfo, locks, maps, mountinfo, stat, status, timers};
use proptest::prelude::*;

fn feed(text: &[u8]) {
    let _ = maps::parse(text);
    let _ = maps::parse_smaps(text);
    let _ = stat::parse(text);
    let _ = status::parse(text);
    let _ = fdinfo::parse(text);
    let _ = locks::parse(text);
    let _ = mountinfo::parse(text);
    let _ = timers::parse(text);
}

/// Texts as the kernel writes them, to be damaged.
fn samples() -> Vec<Vec<u8>> {
    let task = Task::current().unwrap();
    let mut samples: Vec<Vec<u8>> = ["maps", "smaps", "stat", "status", "mountinfo", "fdinfo/0"]
        .into_iter()
        .map(|name| task.read(name).unwrap())
        .collect();
    samples.push(b"1: -> POSIX  ADVISORY  WRITE 3568 fd:00:2531452 0 EOF\n".to_vec());
    samples.push(b"ID: 2\nsignal: 34/0000000000001234\nnotify: signal/tid.10863\nClockID: 1\n".to_vec());
    let kinds = [
        "eventfd-count:  1f\neventfd-id: 1\n",
        "clockid: 7\nticks: 3\nsettime flags: 01\nit_value: (2, 999963085)\nit_interval: (1, 2)\n",
        "tfd:        3 events: 80000019 data: ffff  pos:-1 ino:40e sdev:10\n",
        "inotify wd:a ino:3c4a7 sdev:fe00000 mask:100 ignored_mask:0 fhandle-bytes:2 fhandle-type:1 f_handle:a7c4\n",
        "fanotify flags:4 event-flags:8000\nfanotify mnt_id:1b mflags:0 mask:8 ignored_mask:0\n",
        "pending:\t1\ntotal:\t2\nAPI:\taa:0:80000000000001ff\n",
    ];
    samples.extend(kinds.map(|kind| format!("pos:\t7\nflags:\t02\nmnt_id:\t17\n{kind}").into_bytes()));
    samples
}

proptest! {
    #[test]
    fn any_bytes(text in proptest::collection::vec(any::<u8>(), 0..400)) {
        feed(&text);
    }

    #[test]
    fn damaged_texts(
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let samples = samples();
        let mut text = which.get(&samples).clone();
        for (at, byte) in damage {
            // Bytes that mean something to the parsers are tried more often than chance would.
            let at = at.index(text.len());
            text[at] = *b" \t\n:-/().0129afx\\\xff".get(usize::from(byte) % 20).unwrap_or(&byte);
        }
        feed(&text);
        text.truncate(cut.index(text.len() + 1));
        feed(&text);
    }
}
