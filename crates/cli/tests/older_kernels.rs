//! What there is to be done on kernels without PAGEMAP_SCAN (before Linux 6.7): a filter answers as they do. Here is neither
//! that nor soft-dirty, so nothing can note writes, unless this kernel has the latter.

use cryonaut_tests::{Engine, Workload, declaration};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A program in the place of ours, which runs that under a filter: the ioctl 0xc0606610 is ENOTTY.
fn older(dir: &Path) -> PathBuf {
    let path = dir.join("older");
    let text = format!(
        "#!/usr/bin/env python3\n\
         import ctypes, os, struct, sys\n\
         steps = [(0x20, 0, 0, 0), (0x15, 0, 3, 16), (0x20, 0, 0, 24), (0x15, 0, 1, 0xc0606610),\n\
         (0x06, 0, 0, 0x50000 + 25), (0x06, 0, 0, 0x7fff0000)]\n\
         code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))\n\
         program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(steps), ctypes.addressof(code)))\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         if libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program))): sys.exit('no filter can be set')\n\
         os.execv({program:?}, sys.argv)\n",
        program = env!("CARGO_BIN_EXE_cryonaut"),
    );
    fs::write(&path, text).expect("a script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it can be run");
    path
}

fn has_soft_dirty() -> bool {
    let told = Command::new(env!("CARGO_BIN_EXE_cryonaut")).args(["check", "--json"]).output().expect("it runs");
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).expect("JSON");
    let features = told["features"].as_array().or_else(|| told["check"]["features"].as_array()).expect("features");
    features.iter().any(|feature| feature["name"] == "soft-dirty" && feature["present"] == true)
}

#[test]
fn memory_is_carried_without_a_way_to_scan_it() {
    let dir = TempDir::new().expect("a directory");
    let engines = (Engine::Cryonaut(older(dir.path())), Engine::own());
    for name in ["memory/anon_private", "memory/cow", "memory/many_mappings", "memory/large", "memory/shared_anon"] {
        let found = declaration(name).expect("there is such a workload");
        let mut workload = Workload::start_with(found, engines.clone(), false).expect("it starts");
        workload.checkpoint().unwrap_or_else(|failure| panic!("{failure}"));
        workload.restore().expect("a restore");
        workload.finish().expect("its own checks");
    }
}

#[test]
fn where_nothing_notes_writes_it_is_said_and_all_is_copied_in_the_freeze() {
    if has_soft_dirty() {
        return;
    }
    let dir = TempDir::new().expect("a directory");
    let older = older(dir.path());
    let workload = Workload::start("memory/many_mappings").expect("it starts");
    let pid = workload.pid().as_raw_nonzero().to_string();
    let mut before: Option<&str> = None;
    for name in ["first", "second"] {
        let mut command = Command::new(&older);
        command.current_dir(dir.path()).args(["checkpoint", &pid, "--leave-running", "--precopy=always", "-o", name]);
        match before {
            None => command.arg("--track"),
            Some(before) => command.args(["--since", before]),
        };
        let done = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        assert!(said.contains("nor by soft-dirty bits"), "{said}");
        let pages = fs::metadata(dir.path().join(name).join("pages-1.img")).expect("all of its pages").len();
        assert!(pages > 8 << 20, "{name}: {pages} bytes of pages");
        before = Some(name);
    }
    let check = Command::new(&older).args(["criu", "check", "--feature", "mem_dirty_track"]).status();
    assert!(!check.expect("it runs").success());
    workload.finish().expect("it goes on unharmed");
}
