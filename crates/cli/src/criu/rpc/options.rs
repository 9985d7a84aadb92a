//! The options of a request, each in the form that the command line has for it.
//!
//! What a false one means is what an absent one means, but for what becomes of the tree: there it overrides a
//! configuration file.

use cryonaut_image::rpc::{
    CriuCgMode, CriuNetworkLockMethod, CriuOpts, CriuPageServerInfo, CriuPreDumpMode, CriuReqType,
};
use std::ffi::OsString;

/// CLONE_NEWNET (clone(2)), as `empty_ns` has it.
const NEW_NETWORK: u32 = 0x4000_0000;

/// The options of a request as arguments.
///
/// # Errors
/// The name of a field whose value means nothing, or of one that is not in this build.
pub fn arguments(request: CriuReqType, opts: &CriuOpts) -> Result<Vec<OsString>, String> {
    let mut line = Line::default();
    switches(&mut line, opts);
    values(&mut line, opts)?;
    lists(&mut line, opts)?;
    if request == CriuReqType::Restore {
        line.value("root", &opts.root);
    }
    refuse(opts)?;
    Ok(line.0)
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn switch(&mut self, name: &str, is_on: Option<bool>) {
        if is_on == Some(true) {
            self.0.push(format!("--{name}").into());
        }
    }

    fn value(&mut self, name: &str, value: &Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.0.push(format!("--{name}={value}").into());
        }
    }

    fn all(&mut self, name: &str, values: &[impl std::fmt::Display]) {
        self.0.extend(values.iter().map(|value| format!("--{name}={value}").into()));
    }
}

fn switches(line: &mut Line, opts: &CriuOpts) {
    for (name, is_on) in [
        ("leave-stopped", opts.leave_stopped),
        ("ext-unix-sk", opts.ext_unix_sk),
        ("tcp-established", opts.tcp_established),
        ("tcp-close", opts.tcp_close),
        ("skip-in-flight", opts.tcp_skip_in_flight),
        ("evasive-devices", opts.evasive_devices),
        ("shell-job", opts.shell_job),
        ("file-locks", opts.file_locks),
        ("track-mem", opts.track_mem),
        ("auto-dedup", opts.auto_dedup),
        ("link-remap", opts.link_remap),
        ("force-irmap", opts.force_irmap),
        ("restore-sibling", opts.rst_sibling),
        ("enable-external-sharing", opts.ext_sharing),
        ("enable-external-masters", opts.ext_masters),
        ("weak-sysctls", opts.weak_sysctls),
        ("lazy-pages", opts.lazy_pages),
        ("orphan-pts-master", opts.orphan_pts_master),
        ("tls", opts.tls),
        ("tls-no-cn-verify", opts.tls_no_cn_verify),
        ("mntns-compat-mode", opts.mntns_compat_mode),
        ("skip-file-rwx-check", opts.skip_file_rwx_check),
        ("unprivileged", opts.unprivileged),
        ("display-stats", opts.display_stats),
    ] {
        line.switch(name, is_on);
    }
    match opts.leave_running {
        Some(true) => line.switch("leave-running", Some(true)),
        Some(false) => line.switch("no-leave-running", Some(true)),
        None => {}
    }
    if opts.auto_ext_mnt == Some(true) {
        line.0.push("--ext-mount-map=auto".into());
    }
}

fn values(line: &mut Line, opts: &CriuOpts) -> Result<(), String> {
    line.value("tree", &opts.pid);
    line.value("verbosity", &opts.log_level.map(|level| level.clamp(0, 9)));
    line.value("log-file", &opts.log_file);
    line.value("prev-images-dir", &opts.parent_img);
    line.value("cpu-cap", &opts.cpu_cap.filter(|cap| *cap != CriuOpts::default().cpu_cap()));
    line.value("ghost-limit", &opts.ghost_limit);
    line.value("cgroup-props", &opts.cgroup_props);
    line.value("cgroup-props-file", &opts.cgroup_props_file);
    line.value("cgroup-yard", &opts.cgroup_yard);
    line.value("freeze-cgroup", &opts.freeze_cgroup);
    line.value("timeout", &opts.timeout);
    line.value("lsm-profile", &opts.lsm_profile);
    line.value("lsm-mount-context", &opts.lsm_mount_context);
    line.value("tls-cacert", &opts.tls_cacert);
    line.value("tls-cacrl", &opts.tls_cacrl);
    line.value("tls-cert", &opts.tls_cert);
    line.value("tls-key", &opts.tls_key);
    line.value("pre-dump-mode", &named(opts.pre_dump_mode, "pre_dump_mode", pre_dump_mode)?);
    line.value("network-lock", &named(opts.network_lock, "network_lock", lock_method)?);
    let cgroups = named(opts.manage_cgroups_mode, "manage_cgroups_mode", cgroup_mode)?;
    // The older field of the two says whether at all.
    line.value("manage-cgroups", &cgroups.or(opts.manage_cgroups.filter(|on| *on).map(|_| "soft")));
    match opts.empty_ns {
        None | Some(0) => {}
        Some(NEW_NETWORK) => line.0.push("--empty-ns=net".into()),
        Some(other) => return Err(format!("empty_ns: {other:#x} is not CLONE_NEWNET, the only one that may be empty")),
    }
    Ok(())
}

fn lists(line: &mut Line, opts: &CriuOpts) -> Result<(), String> {
    line.all("external", &opts.external);
    line.all("skip-mnt", &opts.skip_mnt);
    line.all("enable-fs", &opts.enable_fs);
    line.all("irmap-scan-path", &opts.irmap_scan_paths);
    line.all("cgroup-dump-controller", &opts.cgroup_dump_controller);
    for pair in &opts.veths {
        line.all("external", &[format!("veth[{}]:{}", pair.if_in, pair.if_out)]);
    }
    for mount in &opts.ext_mnt {
        line.all("external", &[format!("mnt[{}]:{}", mount.key, mount.val)]);
    }
    // crun tells one path for all hierarchies, from the first line of its process's: a hierarchy that it does not use may
    // stand there, in which that is at the top. The tree would leave its own cgroups for the host's.
    for root in opts.cg_root.iter().filter(|root| root.ctrl.is_some() || root.path != "/") {
        let controller = root.ctrl.as_deref().map(|name| format!("{name}:")).unwrap_or_default();
        line.all("cgroup-root", &[format!("{controller}{}", root.path)]);
    }
    for given in &opts.inherit_fd {
        if given.fd < 0 || given.key.is_empty() {
            return Err(format!("inherit_fd: {} for '{}' is no descriptor for a resource", given.fd, given.key));
        }
        line.all("inherit-fd", &[format!("fd[{}]:{}", given.fd, given.key)]);
    }
    for joined in &opts.join_ns {
        let extra = joined.extra_opt.as_deref().map(|extra| format!(",{extra}")).unwrap_or_default();
        line.all("join-ns", &[format!("{}:{}{extra}", joined.ns, joined.ns_file)]);
    }
    if !opts.unix_sk_ino.is_empty() {
        let numbers: Vec<String> = opts.unix_sk_ino.iter().map(|one| one.inode.to_string()).collect();
        line.all("ext-unix-sk", &[numbers.join(",")]);
    }
    if let Some(CriuPageServerInfo { address, port, fd, pid: _ }) = &opts.ps {
        // The number is one of 16 bits, whatever its field is.
        line.value("port", &port.map(|port| port as u16));
        // A lazy dump is itself the server: the address is not its own.
        if opts.lazy_pages != Some(true) {
            line.switch("page-server", Some(true));
            line.value("address", address);
            line.value("ps-socket", fd);
        }
    }
    Ok(())
}

/// What has no form on the command line.
fn refuse(opts: &CriuOpts) -> Result<(), String> {
    if !opts.exec_cmd.is_empty() {
        return Err("exec_cmd: running a command behind a restore is not in this build's RPC".into());
    }
    if opts.pidfd_store_sk.is_some() {
        return Err("pidfd_store_sk is not in this build, which lacks incremental images".into());
    }
    if opts.log_file.as_ref().is_some_and(|name| name.contains('/')) {
        return Err("log_file: it must be a name in the working directory, without '/'".into());
    }
    Ok(())
}

/// The name of an enumeration's value.
fn named(
    value: Option<i32>,
    field: &str,
    name: impl Fn(i32) -> Option<&'static str>,
) -> Result<Option<&'static str>, String> {
    let Some(value) = value else { return Ok(None) };
    name(value).map(Some).ok_or_else(|| format!("{field}: {value} means nothing"))
}

fn cgroup_mode(value: i32) -> Option<&'static str> {
    Some(match CriuCgMode::try_from(value).ok()? {
        CriuCgMode::Ignore => "ignore",
        CriuCgMode::CgNone => "none",
        CriuCgMode::Props => "props",
        CriuCgMode::Soft | CriuCgMode::Default => "soft",
        CriuCgMode::Full => "full",
        CriuCgMode::Strict => "strict",
    })
}

fn lock_method(value: i32) -> Option<&'static str> {
    Some(match CriuNetworkLockMethod::try_from(value).ok()? {
        CriuNetworkLockMethod::Iptables => "iptables",
        CriuNetworkLockMethod::Nftables => "nftables",
        CriuNetworkLockMethod::Skip => "skip",
    })
}

fn pre_dump_mode(value: i32) -> Option<&'static str> {
    Some(match CriuPreDumpMode::try_from(value).ok()? {
        CriuPreDumpMode::Splice => "splice",
        CriuPreDumpMode::VmRead => "read",
    })
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
