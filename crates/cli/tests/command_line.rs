//! The program from outside: what its callers see of wrong arguments, of what is not there, and of `check`.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn cryonaut(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cryonaut")).args(arguments).output().expect("the program runs")
}

/// Under the name `criu`, by argv\[0\] alone.
fn criu(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cryonaut"));
    command.arg0("/somewhere/criu").env("HOME", "/nonexistent");
    command.args(arguments).output().expect("the program runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have plain names")
}

#[test]
fn check_tells_every_feature_and_what_it_gives() {
    let output = cryonaut(&["check"]);
    assert!(stdout(&output).starts_with("Linux "), "{}", stdout(&output));
    assert!(stdout(&output).contains("pagemap-scan"));
    let told: Value = serde_json::from_slice(&cryonaut(&["check", "--json"]).stdout).expect("JSON");
    let features = told["features"].as_array().expect("an array");
    assert!(features.iter().any(|f| f["name"] == "kcmp" && f["present"].is_boolean()));
}

#[test]
fn a_missing_image_is_named_first() {
    let output = cryonaut(&["restore", "/nonexistent/image"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output).lines().next(), Some("cryonaut: /nonexistent/image: no such directory"));

    let output = cryonaut(&["restore", "--json", "/nonexistent/image"]);
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told["error"]["message"], "/nonexistent/image: no such directory");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_pidfile_that_exists_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let pidfile = dir.path().join("pid");
    fs::write(&pidfile, "1").expect("written");
    let output = cryonaut(&["restore", text(dir.path()), "--pidfile", text(&pidfile)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot be created: File exists"), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&pidfile).expect("still there"), "1");
}

#[test]
fn a_failed_restore_leaves_no_pidfile() {
    let dir = tempfile::tempdir().expect("a directory");
    let pidfile = dir.path().join("pid");
    let output = cryonaut(&["restore", text(dir.path()), "--pidfile", text(&pidfile)]);
    assert_eq!(output.status.code(), Some(1), "an empty directory is no image");
    assert!(!pidfile.exists());
}

#[test]
fn a_process_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    // Above the greatest pid that any kernel gives.
    let output = cryonaut(&["checkpoint", "4194305", "-o", text(&image), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(told["error"]["message"].as_str().expect("text").contains("4194305"), "{told}");
    assert!(!image.exists(), "a failed checkpoint leaves no directory");
}

#[test]
fn impossible_arguments_are_usage_errors() {
    for arguments in [&["checkpoint", "0"][..], &["checkpoint", "x"], &["checkpoint", "1", "-R", "-s"], &["thaw"]] {
        assert_eq!(cryonaut(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn criu_tells_its_version_in_criu_s_form() {
    for arguments in [&["--version"][..], &["-V"]] {
        let told = stdout(&criu(arguments));
        let mut lines = told.lines();
        assert_eq!(lines.next(), Some("Version: 4.2"));
        assert!(lines.next().is_some_and(|line| line.starts_with("GitID: ")));
    }
    assert!(stdout(&cryonaut(&["criu", "--version"])).starts_with("Version: 4.2\n"));
}

#[test]
fn criu_check_answers_with_its_status() {
    for (feature, is_there) in [
        ("mnt_id", true),
        ("userns", true),
        ("mem_dirty_track", true),
        ("uffd", true),
        ("uffd-noncoop", true),
        ("nonsense", false),
    ] {
        let output = criu(&["check", "--no-default-config", "-verbosity=0", "--feature", feature]);
        assert_eq!(output.status.success(), is_there, "{feature}");
        assert_eq!(stderr(&output), "", "level 0 is silence");
    }
}

#[test]
fn criu_refuses_by_name_and_says_so_in_the_log() {
    let dir = tempfile::tempdir().expect("a directory");
    for (arguments, name) in [
        (&["dump", "-t", "1", "--lazy-pages", "-R"][..], "--lazy-pages"),
        (&["dump", "--warp"], "--warp"),
        (&["dump"], "--tree"),
        (&["warp"], "warp"),
        (&[], "no action"),
    ] {
        // In front: what stands behind a faulty option is read no more.
        let mut all = vec!["-o", "x.log", "-D", text(dir.path()), "-v4"];
        all.extend(arguments);
        let output = criu(&all);
        assert_eq!(output.status.code(), Some(1), "{all:?}");
        assert!(stderr(&output).lines().next().is_some_and(|line| line.contains(name)), "{all:?}: {}", stderr(&output));
        let log = fs::read_to_string(dir.path().join("x.log")).expect("the log is there whatever happens");
        assert!(log.contains(") Error (") && log.contains(name), "{all:?}: {log}");
        fs::remove_file(dir.path().join("x.log")).expect("removed");
    }
}

#[test]
fn criu_needs_the_directories_that_it_is_told() {
    let output = criu(&["dump", "-t", "1", "-D", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent: no such directory"), "{}", stderr(&output));
}

/// A program that answers `--version` with these lines.
fn fake(path: &Path, lines: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(path, format!("#!/bin/sh\nprintf '%s\\n' {lines}\n")).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
}

#[test]
fn the_doctor_tells_which_criu_would_be_called() {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    fake(&second.join("runc"), "'runc version 1.1.5'");
    fake(&second.join("crun"), "'crun version 1.8' '+SYSTEMD +SELINUX'");
    fake(&second.join("criu"), "'Version: 3.17'");
    let path = format!("{}:{}:/usr/bin:/bin", text(&first), text(&second));
    let doctor = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cryonaut"));
        command.arg("doctor").args(arguments).env("PATH", &path).output().expect("it runs")
    };
    let told = doctor(&[]);
    let line = |output: &Output, name: &str| {
        stdout(output).lines().find(|line| line.starts_with(name)).map(str::to_owned).unwrap_or_default()
    };
    assert_eq!(told.status.code(), Some(1));
    assert!(line(&told, "runc").contains(&format!("{}/criu: not this program", text(&second))), "{}", stdout(&told));
    assert!(line(&told, "crun").contains("built without CRIU"), "{}", stdout(&told));

    fs::create_dir(&first).expect("made");
    // As `make install` does it.
    let link = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/link-criu.sh");
    fs::copy(env!("CARGO_BIN_EXE_cryonaut"), first.join("cryonaut")).expect("copied");
    assert!(Command::new(&link).arg(&first).status().expect("it runs").success());
    let told: Value = serde_json::from_slice(&doctor(&["--json"]).stdout).expect("JSON");
    let runc = told.as_array().and_then(|all| all.iter().find(|one| one["caller"] == "runc")).expect("runc is there");
    assert_eq!((runc["ours"].as_bool(), runc["criu"].as_str()), (Some(true), first.join("criu").to_str()));

    let kept = Command::new(&link).arg(&second).output().expect("it runs");
    assert!(!kept.status.success() && stderr(&kept).contains("is not ours"), "{}", stderr(&kept));
    assert!(!second.join("criu").is_symlink(), "a package's criu stays");
}
