use super::*;
use std::fs;

fn parse(line: &str) -> Result<Settings, String> {
    let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    let (settings, outcome) = read(&arguments, &[]);
    outcome.map(|()| settings)
}

#[test]
fn a_dump_as_scripts_write_it() {
    let got =
        parse("dump --no-default-config -o dump.log -D /img -v4 -t 42 -j --action-script /x --timeout=10").unwrap();
    let expected = Settings {
        action: Some("dump".into()),
        log_file: Some("dump.log".into()),
        images_dir: Some("/img".into()),
        verbosity: Some(4),
        tree: Some(42),
        shell_job: true,
        scripts: vec!["/x".into()],
        timeout: Some(10),
        ..Settings::default()
    };
    assert_eq!(got, expected);
}

#[test]
fn values_stand_beside_or_behind_and_letters_together() {
    for line in ["dump -t7 -RjD/x", "dump -t 7 -R -j -D /x", "-R dump --tree=7 --shell-job --leave-run --images-dir /x"]
    {
        let got = parse(line).unwrap();
        assert_eq!((got.tree, got.leave_running, got.shell_job), (Some(7), true, true), "{line}");
        assert_eq!(got.images_dir, Some("/x".into()), "{line}");
        assert_eq!(got.action.as_deref(), Some("dump"), "{line}");
    }
}

#[test]
fn verbosity_in_all_its_forms() {
    for (line, level) in [
        ("check -v4", 4),
        ("check -v", 3),
        ("check -vv", 4),
        ("check -vvvv", 6),
        ("check -v -v", 4),
        ("check --verbosity=4", 4),
        ("check --verbosity", 3),
        ("check -verbosity=0", 0),
        ("check -v0", 0),
    ] {
        assert_eq!(parse(line).unwrap().verbosity, Some(level), "{line}");
    }
}

#[test]
fn the_last_of_two_contrary_options_counts() {
    assert!(!parse("dump --leave-running --no-leave-running").unwrap().leave_running);
    assert!(parse("dump --no-leave-running --leave-running").unwrap().leave_running);
}

#[test]
fn options_of_features_that_are_not_here_are_refused_by_name() {
    for (line, name) in [("restore -J user:/x", "--join-ns"), ("restore --external ipc[a]:b", "--external ipc[a]:b")] {
        let refused = parse(line).unwrap().refused;
        assert!(refused[0].starts_with(name), "{line}: {refused:?}");
    }
    assert!(parse("dump --no-track-mem --no-lazy-pages").unwrap().refused.is_empty());
}

#[test]
fn lists_hold_all_and_keys_stay_as_they_are() {
    let got = parse("restore --inherit-fd fd[3]:pipe:[123] --inherit-fd fd[4]:/a/b --external tty[8801:5]").unwrap();
    assert_eq!(got.inherit_fds, [(3, "pipe:[123]".into()), (4, "/a/b".into())]);
    assert_eq!(got.external, ["tty[8801:5]"]);
    let got = parse("dump --external mnt[/a]:b --ext-mount-map /c:d --ext-mount-map auto --enable-external-masters");
    assert_eq!(got.unwrap().external, ["mnt[/a]:b", "mnt[/c]:d", "mnt[]", "mnt[]:?m"]);
    assert!(parse("dump --ext-mount-map x").is_err());
}

#[test]
fn unix_sockets_outside_are_all_or_those_of_a_list() {
    for all in ["dump --ext-unix-sk", "dump -x"] {
        let got = parse(all).unwrap();
        assert!(got.ext_unix_sockets && got.external.is_empty(), "{all}");
    }
    for some in ["dump --ext-unix-sk=12,7", "dump -x12,7"] {
        let got = parse(some).unwrap();
        assert_eq!((got.ext_unix_sockets, got.external), (false, vec!["unix[12]".into(), "unix[7]".into()]), "{some}");
    }
}

#[test]
fn sizes_have_units() {
    for (line, bytes) in [("512", 512), ("4K", 4096), ("16M", 16 << 20), ("2g", 2 << 30)] {
        assert_eq!(parse(&format!("dump --ghost-limit {line}")).unwrap().ghost_limit, Some(bytes));
    }
    for bad in ["M", "4T", "-1", "99999999999G"] {
        assert!(parse(&format!("dump --ghost-limit={bad}")).is_err(), "{bad}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (line, problem) in [
        ("dump -t x", "--tree: 'x' is not a pid"),
        ("dump -t", "option '-t' requires an argument"),
        ("dump --tree", "option '--tree' requires an argument"),
        ("dump -q", "invalid option -- 'q'"),
        ("dump --warp", "unrecognized option '--warp'"),
        ("dump --ext-unix-sk=5,x", "--ext-unix-sk: 'x' is not the inode number of a socket"),
        ("restore --inherit-fd 3:x", "--inherit-fd: '3:x' is not of the form fd[NUMBER]:RESOURCE"),
    ] {
        assert_eq!(parse(line).unwrap_err(), problem, "{line}");
    }
    assert!(parse("dump --shell-job=yes").is_err());
}

#[test]
fn the_log_is_known_even_when_an_option_is_not() {
    let arguments: Vec<OsString> = ["dump", "-o", "d.log", "-D", "/i", "--warp"].map(OsString::from).into();
    let (settings, outcome) = read(&arguments, &[]);
    assert!(outcome.is_err());
    assert_eq!((settings.log_file, settings.images_dir), (Some("d.log".into()), Some("/i".into())));
}

#[test]
fn a_command_to_run_stands_behind_two_dashes() {
    let got = parse("restore --exec-cmd -D /x -- sleep -1").unwrap();
    assert!(got.exec_cmd);
    assert_eq!(got.operands, ["sleep", "-1"]);
}

#[test]
fn the_command_line_has_the_last_word_over_files() {
    let dir = tempfile::tempdir().unwrap();
    let (default, named) = (dir.path().join("default.conf"), dir.path().join("named.conf"));
    fs::write(&default, "# all\nlog-file default.log\n  shell-job\n\nverbosity 4 # loud\n").unwrap();
    fs::write(&named, "--log-file \"with space.log\"\nimages-dir=/img\n").unwrap();
    let read = |line: String| {
        let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let (settings, outcome) = read(&arguments, &[dir.path().join("absent.conf"), default.clone()]);
        outcome.map(|()| settings)
    };

    let got = read("dump -v1".into()).unwrap();
    assert_eq!((got.log_file, got.shell_job, got.verbosity), (Some("default.log".into()), true, Some(1)));

    let got = read("dump --no-default-config".into()).unwrap();
    assert_eq!((got.log_file, got.shell_job), (None, false));

    let got = read(format!("dump --config {}", named.display())).unwrap();
    assert_eq!(got.log_file, Some("with space.log".into()));
    assert_eq!((got.images_dir, got.shell_job), (Some("/img".into()), false));

    assert!(read("dump --config /nonexistent".into()).unwrap_err().contains("/nonexistent"));
}
