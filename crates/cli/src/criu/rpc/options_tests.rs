use super::*;
use cryonaut_image::rpc::{CgroupRoot, CriuVethPair, ExtMountMap, InheritFd, JoinNamespace, UnixSk};

fn said(opts: &CriuOpts) -> Vec<String> {
    let arguments = arguments(CriuReqType::Restore, opts).expect("good options");
    arguments.into_iter().map(|argument| argument.into_string().expect("text")).collect()
}

/// Every field that there is, so that one more does not compile: what each becomes stands behind it.
fn everything() -> CriuOpts {
    CriuOpts {
        images_dir_fd: 7,
        images_dir: Some("/images".into()),
        work_dir_fd: Some(8),
        notify_scripts: Some(true),
        status_fd: Some(9),
        config_file: Some("/etc/criu/runc.conf".into()),
        log_to_stderr: Some(true),
        pid: Some(42),
        leave_running: Some(true),
        leave_stopped: Some(true),
        ext_unix_sk: Some(true),
        tcp_established: Some(true),
        tcp_close: Some(true),
        tcp_skip_in_flight: Some(true),
        evasive_devices: Some(true),
        shell_job: Some(true),
        file_locks: Some(true),
        log_level: Some(4),
        log_file: Some("dump.log".into()),
        ps: Some(CriuPageServerInfo { address: Some("10.0.0.1".into()), port: Some(27), pid: None, fd: Some(3) }),
        root: Some("/root/fs".into()),
        parent_img: Some("../before".into()),
        track_mem: Some(true),
        auto_dedup: Some(true),
        link_remap: Some(true),
        veths: vec![CriuVethPair { if_in: "eth0".into(), if_out: "veth1".into() }],
        cpu_cap: Some(1),
        force_irmap: Some(true),
        exec_cmd: Vec::new(),
        ext_mnt: vec![ExtMountMap { key: "/etc/hosts".into(), val: "/host:s".into() }],
        manage_cgroups: Some(true),
        cg_root: vec![
            CgroupRoot { ctrl: Some("freezer".into()), path: "/a".into() },
            CgroupRoot { ctrl: None, path: "/b".into() },
            CgroupRoot { ctrl: None, path: "/".into() },
        ],
        rst_sibling: Some(true),
        inherit_fd: vec![InheritFd { key: "pipe:[5]".into(), fd: 1 }],
        auto_ext_mnt: Some(true),
        ext_sharing: Some(true),
        ext_masters: Some(true),
        skip_mnt: vec!["/skip".into()],
        enable_fs: vec!["hugetlbfs".into()],
        unix_sk_ino: vec![UnixSk { inode: 11 }, UnixSk { inode: 12 }],
        manage_cgroups_mode: Some(CriuCgMode::Strict as i32),
        ghost_limit: Some(1024),
        irmap_scan_paths: vec!["/scan".into()],
        external: vec!["net[4]:key".into()],
        empty_ns: Some(0x4000_0000),
        join_ns: vec![JoinNamespace { ns: "ipc".into(), ns_file: "/proc/1/ns/ipc".into(), extra_opt: None }],
        cgroup_props: Some("props".into()),
        cgroup_props_file: Some("/props".into()),
        cgroup_dump_controller: vec!["cpu".into()],
        freeze_cgroup: Some("/sys/fs/cgroup/freezer/x".into()),
        timeout: Some(20),
        weak_sysctls: Some(true),
        lazy_pages: Some(true),
        orphan_pts_master: Some(true),
        lsm_profile: Some("selinux:x".into()),
        tls_cacert: Some("ca".into()),
        tls_cacrl: Some("crl".into()),
        tls_cert: Some("cert".into()),
        tls_key: Some("key".into()),
        tls: Some(true),
        tls_no_cn_verify: Some(true),
        cgroup_yard: Some("/yard".into()),
        pre_dump_mode: Some(CriuPreDumpMode::VmRead as i32),
        pidfd_store_sk: None,
        lsm_mount_context: Some("context".into()),
        network_lock: Some(CriuNetworkLockMethod::Skip as i32),
        mntns_compat_mode: Some(true),
        skip_file_rwx_check: Some(true),
        unprivileged: Some(true),
        display_stats: Some(true),
    }
}

#[test]
fn every_option_has_its_form_on_the_command_line() {
    let said = said(&CriuOpts { lazy_pages: None, ..everything() });
    for wanted in [
        "--tree=42",
        "--leave-running",
        "--verbosity=4",
        "--page-server",
        "--address=10.0.0.1",
        "--port=27",
        "--ps-socket=3",
        "--root=/root/fs",
        "--prev-images-dir=../before",
        "--external=veth[eth0]:veth1",
        "--external=mnt[/etc/hosts]:/host:s",
        "--external=net[4]:key",
        "--cgroup-root=freezer:/a",
        "--cgroup-root=/b",
        "--inherit-fd=fd[1]:pipe:[5]",
        "--ext-mount-map=auto",
        "--ext-unix-sk=11,12",
        "--manage-cgroups=strict",
        "--empty-ns=net",
        "--join-ns=ipc:/proc/1/ns/ipc",
        "--pre-dump-mode=read",
        "--network-lock=skip",
        "--cpu-cap=1",
    ] {
        assert!(said.iter().any(|argument| argument == wanted), "{wanted} is not in {said:?}");
    }
    // Of the 70 fields, seven are the session's, two are refused, two share an argument and one is of a dump that serves
    // its pages itself; the page server makes four.
    assert_eq!(said.len(), 63, "{said:?}");
    for argument in &said {
        let name = argument.trim_start_matches("--").split('=').next().unwrap_or_default();
        crate::criu::table::by_name(name).expect("an option of the command line");
    }
}

#[test]
fn a_dump_that_serves_its_pages_itself_sends_them_nowhere() {
    let said = said(&everything());
    assert!(said.contains(&"--lazy-pages".into()) && said.contains(&"--port=27".into()));
    assert!(!said.iter().any(|argument| argument.starts_with("--page-server") || argument.starts_with("--address")));
}

#[test]
fn what_is_false_is_as_if_it_were_absent() {
    let opts = CriuOpts { tcp_established: Some(false), shell_job: Some(false), ..CriuOpts::default() };
    assert!(said(&opts).is_empty());
    let opts = CriuOpts { leave_running: Some(false), ..CriuOpts::default() };
    assert_eq!(said(&opts), ["--no-leave-running"]);
}

#[test]
fn the_root_of_a_dump_says_nothing() {
    let opts = CriuOpts { root: Some("/nonexistent".into()), ..CriuOpts::default() };
    assert_eq!(arguments(CriuReqType::Dump, &opts), Ok(Vec::new()));
}

#[test]
fn what_means_nothing_is_named() {
    let default = CriuOpts::default;
    for (opts, field) in [
        (CriuOpts { manage_cgroups_mode: Some(9), ..default() }, "manage_cgroups_mode"),
        (CriuOpts { network_lock: Some(0), ..default() }, "network_lock"),
        (CriuOpts { pre_dump_mode: Some(5), ..default() }, "pre_dump_mode"),
        (CriuOpts { empty_ns: Some(0x2000_0000), ..default() }, "empty_ns"),
        (CriuOpts { log_file: Some("a/b".into()), ..default() }, "log_file"),
        (CriuOpts { exec_cmd: vec!["sh".into()], ..default() }, "exec_cmd"),
        (CriuOpts { pidfd_store_sk: Some(5), ..default() }, "pidfd_store_sk"),
        (CriuOpts { inherit_fd: vec![InheritFd { key: "x".into(), fd: -1 }], ..default() }, "inherit_fd"),
    ] {
        let problem = arguments(CriuReqType::Restore, &opts).expect_err(field);
        assert!(problem.starts_with(field), "{problem}");
    }
}
