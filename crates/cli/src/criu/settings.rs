//! The command line and the configuration files, put together: what a call of `criu` asks for.

use super::table::{self, Spec, Takes};
use super::{cgroup_props, config};
use cryonaut_engine::{CgroupMode, CgroupOptions, LockMethod};
use cryonaut_page_server::TlsOptions;
use lexopt::{Arg, ValueExt};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

/// Everything asked for. What was given more than once holds the last; lists hold all.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub action: Option<String>,
    /// What follows the action or `--`.
    pub operands: Vec<OsString>,
    pub tree: Option<i32>,
    pub images_dir: Option<PathBuf>,
    pub work_dir: Option<PathBuf>,
    pub log_file: Option<PathBuf>,
    pub verbosity: Option<u8>,
    pub version: bool,
    pub help: bool,
    pub pidfile: Option<PathBuf>,
    pub display_stats: bool,
    pub leave_running: bool,
    pub leave_stopped: bool,
    pub detached: bool,
    pub sibling: bool,
    pub exec_cmd: bool,
    pub shell_job: bool,
    pub file_locks: bool,
    pub link_remap: bool,
    pub tcp_established: bool,
    pub tcp_close: bool,
    pub skip_in_flight: bool,
    pub network_lock: LockMethod,
    pub ghost_limit: Option<u64>,
    pub timeout: Option<u64>,
    pub inherit_fds: Vec<(i32, String)>,
    pub external: Vec<String>,
    pub skip_mounts: Vec<String>,
    pub empty_network: bool,
    /// Namespaces of others that the tree's root enters: kind, and a path or pid.
    pub join: Vec<(String, String)>,
    pub ext_unix_sockets: bool,
    pub orphan_terminals: bool,
    pub scripts: Vec<OsString>,
    /// The file that leads to the descriptor of `--status-fd`: the number itself may be another program's.
    pub status_fd: Option<PathBuf>,
    pub root: Option<PathBuf>,
    /// Where the service listens, or a page server does.
    pub address: Option<OsString>,
    pub port: Option<u16>,
    /// A connection to or from a page server that the caller has made.
    pub ps_socket: Option<i32>,
    pub page_server: bool,
    pub tls: Tls,
    pub lazy_pages: bool,
    pub auto_dedup: bool,
    /// Writes to memory are noted on, for the next image.
    pub track_mem: bool,
    /// The image that this one builds on, seen from its directory.
    pub prev_images_dir: Option<PathBuf>,
    pub daemon: bool,
    pub cgroups: CgroupOptions,
    pub feature: Option<String>,
    /// Options that this build cannot honour, each with what it lacks. Said after the log is open, not before.
    pub refused: Vec<String>,
}

/// What is said about TLS; files that are not named are CRIU's.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tls {
    is_on: bool,
    any_name: bool,
    authorities: Option<PathBuf>,
    revoked: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Tls {
    /// `None` if connections are plain.
    pub fn options(&self) -> Option<TlsOptions> {
        let default = TlsOptions::default();
        self.is_on.then(|| TlsOptions {
            authorities: self.authorities.clone().unwrap_or(default.authorities),
            revoked: self.revoked.clone(),
            certificate: self.certificate.clone().unwrap_or(default.certificate),
            key: self.key.clone().unwrap_or(default.key),
            any_name: self.any_name,
        })
    }
}

/// Reads the configuration files that apply and then the command line, which has the last word.
///
/// # Errors
/// What is wrong with an option or a configuration file. The settings hold what was understood nonetheless, so that
/// the log can be written where it was asked for.
pub fn read(arguments: &[OsString], defaults: &[PathBuf]) -> (Settings, Result<(), String>) {
    let mut settings = Settings::default();
    let mut wanted = ConfigWanted { defaults: true, named: None };
    // A dry run over the command line first: it says which files come before it.
    let dry = walk(arguments, &mut |given| {
        match given {
            Given::Option(spec, on, value) if spec.name == "config" && on => wanted.named = value.map(PathBuf::from),
            Given::Option(spec, ..) if spec.name == "no-default-config" => wanted.defaults = false,
            _ => {}
        }
        Ok(())
    });
    let outcome = dry
        .and_then(|()| wanted.files(defaults).iter().try_for_each(|(file, must)| read_file(file, *must, &mut settings)))
        .and(Ok(()));
    let line = walk(arguments, &mut |given| settings.take(given));
    (settings, outcome.and(line))
}

/// The same for a request of the RPC: the files that apply, then its options in the form of arguments, then the file
/// that it names, which has the last word and need not exist.
pub fn read_request(
    arguments: &[OsString],
    defaults: &[PathBuf],
    last: Option<&Path>,
) -> (Settings, Result<(), String>) {
    let mut settings = Settings::default();
    let before = defaults.iter().try_for_each(|file| read_file(file, false, &mut settings));
    let asked = walk(arguments, &mut |given| settings.take(given));
    let after = last.map_or(Ok(()), |file| read_file(file, false, &mut settings));
    (settings, before.and(asked).and(after))
}

struct ConfigWanted {
    defaults: bool,
    named: Option<PathBuf>,
}

impl ConfigWanted {
    /// The files to read, in their order, and whether each must exist. A named one takes the place of the defaults.
    fn files(self, defaults: &[PathBuf]) -> Vec<(PathBuf, bool)> {
        match self.named {
            Some(named) => vec![(named, true)],
            None if self.defaults => defaults.iter().map(|file| (file.clone(), false)).collect(),
            None => Vec::new(),
        }
    }
}

fn read_file(file: &Path, must_exist: bool, settings: &mut Settings) -> Result<(), String> {
    let arguments = config::arguments(file, must_exist)?;
    walk(&arguments, &mut |given| match given {
        Given::Operand(word) => Err(format!("{}: {word:?} is no option", file.display())),
        Given::Option(..) => settings.take(given),
    })
    .map_err(|problem| format!("{}: {problem}", file.display()))
}

enum Given {
    /// An option, whether it is on (not its `--no-` form), and its value.
    Option(&'static Spec, bool, Option<OsString>),
    Operand(OsString),
}

/// Goes through arguments with the habits of getopt_long.
fn walk(arguments: &[OsString], each: &mut dyn FnMut(Given) -> Result<(), String>) -> Result<(), String> {
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(|e| e.to_string())? {
        let (spec, is_on, shown) = match argument {
            Arg::Value(word) => {
                each(Given::Operand(word))?;
                continue;
            }
            Arg::Short(letter) => {
                let spec = table::by_letter(letter).ok_or_else(|| format!("invalid option -- '{letter}'"))?;
                (spec, true, format!("-{letter}"))
            }
            Arg::Long(name) => {
                let (spec, is_negative) = table::by_name(name)?;
                (spec, !is_negative, format!("--{}", spec.name))
            }
        };
        let value = match spec.takes {
            // An attached value is an error for the parser itself at its next step; after a letter there are more letters.
            Takes::Nothing => None,
            Takes::Maybe => parser.optional_value(),
            Takes::Value => Some(parser.value().map_err(|_| format!("option '{shown}' requires an argument"))?),
        };
        each(Given::Option(spec, is_on, value))?;
    }
    Ok(())
}

impl Settings {
    fn take(&mut self, given: Given) -> Result<(), String> {
        match given {
            Given::Operand(word) if self.action.is_none() => {
                self.action = Some(word.string().map_err(|e| e.to_string())?)
            }
            Given::Operand(word) => self.operands.push(word),
            Given::Option(Spec { name, lacks: Some(lacks), .. }, is_on, _) => {
                // The negative form asks for what is the case.
                if is_on {
                    self.refused.push(format!("--{name} is not in this build, which lacks {lacks}"));
                }
            }
            Given::Option(spec, is_on, None) => self.switch(spec.name, is_on),
            Given::Option(spec, _, Some(value)) => self.set(spec.name, value)?,
        }
        Ok(())
    }

    fn switch(&mut self, name: &str, is_on: bool) {
        match name {
            "verbosity" => self.verbosity = Some(self.verbosity.unwrap_or(DEFAULT_VERBOSITY).saturating_add(1)),
            "manage-cgroups" => self.cgroups.mode = if is_on { CgroupMode::Soft } else { CgroupMode::Ignore },
            "version" => self.version = is_on,
            "help" => self.help = is_on,
            "display-stats" => self.display_stats = is_on,
            "leave-running" => self.leave_running = is_on,
            "leave-stopped" => self.leave_stopped = is_on,
            "restore-detached" => self.detached = is_on,
            "restore-sibling" => self.sibling = is_on,
            "exec-cmd" => self.exec_cmd = is_on,
            "shell-job" => self.shell_job = is_on,
            "file-locks" => self.file_locks = is_on,
            "link-remap" => self.link_remap = is_on,
            "ext-unix-sk" => self.ext_unix_sockets = is_on,
            "orphan-pts-master" => self.orphan_terminals = is_on,
            "enable-external-sharing" if is_on => self.external.push("mnt[]:?s".into()),
            "enable-external-masters" if is_on => self.external.push("mnt[]:?m".into()),
            "tcp-established" => self.tcp_established = is_on,
            "tcp-close" => self.tcp_close = is_on,
            "skip-in-flight" => self.skip_in_flight = is_on,
            "daemon" => self.daemon = is_on,
            "page-server" => self.page_server = is_on,
            "lazy-pages" => self.lazy_pages = is_on,
            "auto-dedup" => self.auto_dedup = is_on,
            "track-mem" => self.track_mem = is_on,
            "tls" => self.tls.is_on = is_on,
            "tls-no-cn-verify" => self.tls.any_name = is_on,
            // The others change nothing here; the table says why.
            _ => {}
        }
    }

    /// The options that a page server in the background is given as well.
    pub fn for_page_server(&self) -> Vec<OsString> {
        let switches = [
            (self.lazy_pages, "lazy-pages"),
            (self.auto_dedup, "auto-dedup"),
            (self.tls.is_on, "tls"),
            (self.tls.any_name, "tls-no-cn-verify"),
        ];
        let files = [
            (&self.log_file, "log-file"),
            (&self.prev_images_dir, "prev-images-dir"),
            (&self.tls.authorities, "tls-cacert"),
            (&self.tls.revoked, "tls-cacrl"),
            (&self.tls.certificate, "tls-cert"),
            (&self.tls.key, "tls-key"),
        ];
        let switches = switches.iter().filter(|(is_on, _)| *is_on).map(|(_, name)| format!("--{name}").into());
        let files = files.iter().filter_map(|(file, name)| {
            let mut option = OsString::from(format!("--{name}="));
            option.push(file.as_ref()?);
            Some(option)
        });
        let verbosity = self.verbosity.map(|level| format!("-v{level}").into());
        switches.chain(files).chain(verbosity).collect()
    }

    /// Those that say where a page server is, for one in the background that asks it.
    pub fn way_to_page_server(&self) -> Vec<OsString> {
        if !self.page_server {
            return Vec::new();
        }
        let mut options = vec!["--page-server".into()];
        options.extend(self.port.map(|port| format!("--port={port}").into()));
        if let Some(address) = &self.address {
            options.extend(["--address".into(), address.clone()]);
        }
        options
    }

    fn add_cgroup_properties(&mut self, name: &str, text: &str) -> Result<(), String> {
        let more = cgroup_props::parse(text).map_err(|problem| format!("--{name}: {problem}"))?;
        self.cgroups.properties.extend(more);
        Ok(())
    }

    fn set(&mut self, name: &str, value: OsString) -> Result<(), String> {
        match name {
            "tree" => self.tree = Some(positive(name, &value)?),
            "images-dir" => self.images_dir = Some(value.into()),
            "work-dir" => self.work_dir = Some(value.into()),
            "log-file" => self.log_file = Some(value.into()),
            "verbosity" => self.verbosity = Some(verbosity(&value, self.verbosity)),
            "pidfile" => self.pidfile = Some(value.into()),
            "ghost-limit" => self.ghost_limit = Some(size(&text(name, &value)?)?),
            "timeout" => self.timeout = Some(number(name, &value)?),
            "inherit-fd" => self.inherit_fds.push(inherited(&text(name, &value)?)?),
            "network-lock" => match text(name, &value)?.as_str() {
                "nftables" => self.network_lock = LockMethod::Nftables,
                "iptables" => self.network_lock = LockMethod::Iptables,
                "skip" => self.network_lock = LockMethod::Skip,
                other => return Err(format!("--network-lock: '{other}' is none of nftables, iptables, skip")),
            },
            "skip-mnt" => self.skip_mounts.push(text(name, &value)?),
            "external" => {
                let resource = text(name, &value)?;
                // `console:` and the like, which LXC gives without meaning anything by it, name nothing.
                let names_something = EXTERNAL.iter().any(|kind| resource.starts_with(kind));
                if names_something {
                    self.external.push(resource);
                } else if resource.contains('[') {
                    let kinds = EXTERNAL.join("...], ");
                    self.refused.push(format!("--external {resource} is not in this build, which has {kinds}...]"));
                }
            }
            // Older words for the same.
            "ext-mount-map" => match text(name, &value)?.as_str() {
                "auto" => self.external.push("mnt[]".into()),
                map => {
                    let (key, value) = map
                        .split_once(':')
                        .ok_or_else(|| format!("--{name}: '{map}' is not of the form KEY:VALUE or auto"))?;
                    self.external.push(format!("mnt[{key}]:{value}"));
                }
            },
            "empty-ns" => match text(name, &value)?.as_str() {
                "net" | "network" => self.empty_network = true,
                other => return Err(format!("--empty-ns: '{other}' is not net, the only kind that may be empty")),
            },
            "veth-pair" => {
                let pair = text(name, &value)?;
                let (inside, outside) =
                    pair.split_once('=').ok_or_else(|| format!("--veth-pair: '{pair}' is not IN=OUT[@BRIDGE]"))?;
                self.external.push(format!("veth[{inside}]:{outside}"));
            }
            "join-ns" => {
                let joined = text(name, &value)?;
                let (kind, place) =
                    joined.split_once(':').ok_or_else(|| format!("--join-ns: '{joined}' is not KIND:PATH"))?;
                match kind {
                    "net" | "ipc" | "uts" | "time" | "cgroup" => self.join.push((kind.into(), place.into())),
                    _ => self.refused.push(format!("--join-ns {joined}: of this kind none is entered")),
                }
            }
            // These alone, whereas all are meant without a list.
            "ext-unix-sk" => {
                for inode in text(name, &value)?.split(',') {
                    let inode: u32 = inode
                        .parse()
                        .map_err(|_| format!("--{name}: '{inode}' is not the inode number of a socket"))?;
                    self.external.push(format!("unix[{inode}]"));
                }
            }
            "action-script" => self.scripts.push(value),
            "status-fd" => self.status_fd = Some(format!("/proc/self/fd/{}", number(name, &value)?).into()),
            "root" => self.root = Some(value.into()),
            "address" => self.address = Some(value),
            "port" => self.port = Some(port(&text(name, &value)?)?),
            "ps-socket" => self.ps_socket = Some(descriptor(name, &value)?),
            "prev-images-dir" => self.prev_images_dir = Some(value.into()),
            "tls-cacert" => self.tls.authorities = Some(value.into()),
            "tls-cacrl" => self.tls.revoked = Some(value.into()),
            "tls-cert" => self.tls.certificate = Some(value.into()),
            "tls-key" => self.tls.key = Some(value.into()),
            "manage-cgroups" => self.cgroups.mode = cgroup_mode(&text(name, &value)?)?,
            "cgroup-root" => self.cgroups.roots.push(cgroup_root(&text(name, &value)?)?),
            "cgroup-yard" => self.cgroups.yard = Some(value.into()),
            "cgroup-dump-controller" => self.cgroups.controllers.push(text(name, &value)?),
            "cgroup-props" => self.add_cgroup_properties(name, &text(name, &value)?)?,
            "cgroup-props-file" => {
                let text = fs::read_to_string(&value).map_err(|e| format!("--{name}: {}: {e}", value.display()))?;
                self.add_cgroup_properties(name, &text)?;
            }
            "freeze-cgroup" => self.cgroups.freezer = Some(value.into()),
            "feature" => self.feature = Some(text(name, &value)?),
            // The others change nothing here; the table says why.
            _ => {}
        }
        Ok(())
    }
}

/// The name of a mode.
fn cgroup_mode(given: &str) -> Result<CgroupMode, String> {
    Ok(match given {
        "ignore" => CgroupMode::Ignore,
        "none" => CgroupMode::None,
        "props" => CgroupMode::Properties,
        "soft" => CgroupMode::Soft,
        "full" => CgroupMode::Full,
        "strict" => CgroupMode::Strict,
        other => return Err(format!("--manage-cgroups: there is no mode '{other}'")),
    })
}

/// `[CONTROLLER:]PATH`; that of version 2 has an empty name. LXC tells a path without the slash at its beginning.
fn cgroup_root(given: &str) -> Result<(Option<String>, String), String> {
    let (controller, path) = match given.split_once(':') {
        Some((controller, path)) if !controller.starts_with('/') => (Some(controller.to_owned()), path),
        _ => (None, given),
    };
    if path.is_empty() || path.split('/').any(|part| part == "..") {
        return Err(format!("--cgroup-root: '{given}' is not of the form [CONTROLLER:]/PATH"));
    }
    Ok((controller, format!("/{}", path.trim_start_matches('/'))))
}

/// Kinds of resources that may be outside of the tree; the engine's rooms say what each means.
const EXTERNAL: [&str; 10] = ["tty[", "file[", "unix[", "mnt[", "dev[", "net[", "pid[", "veth[", "macvlan[", "netdev["];

/// Errors and warnings.
pub const DEFAULT_VERBOSITY: u8 = 2;

fn text(name: &str, value: &OsStr) -> Result<String, String> {
    value.to_str().map(str::to_owned).ok_or_else(|| format!("--{name}: {value:?} is not UTF-8"))
}

fn number(name: &str, value: &OsStr) -> Result<u64, String> {
    let given = text(name, value)?;
    given.parse().map_err(|_| format!("--{name}: '{given}' is not a number"))
}

fn port(given: &str) -> Result<u16, String> {
    given.parse().map_err(|_| format!("--port: '{given}' is not the number of a port"))
}

fn descriptor(name: &str, value: &OsStr) -> Result<i32, String> {
    let given = text(name, value)?;
    given.parse().ok().filter(|n| *n >= 0).ok_or_else(|| format!("--{name}: '{given}' is not a descriptor"))
}

fn positive(name: &str, value: &OsStr) -> Result<i32, String> {
    let given = text(name, value)?;
    given.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("--{name}: '{given}' is not a pid"))
}

/// `4` of `-v4`, `vvv` of `-vvvv`; anything else, such as what is left of `-verbosity=0`, is level 0, as atoi has it.
fn verbosity(value: &OsStr, before: Option<u8>) -> u8 {
    let value = value.to_string_lossy();
    if value.chars().all(|c| c == 'v') {
        let more = u8::try_from(value.len() + 1).unwrap_or(u8::MAX);
        return before.unwrap_or(DEFAULT_VERBOSITY).saturating_add(more);
    }
    let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// A number of bytes, with K, M or G for the powers of 1024.
fn size(given: &str) -> Result<u64, String> {
    let digits = given.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match given[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => {
            return Err(format!("--ghost-limit: '{given}' is not a size such as 512K, 16M or 1G"));
        }
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    bytes.ok_or_else(|| format!("--ghost-limit: '{given}' is not a size such as 512K, 16M or 1G"))
}

/// `fd[N]:KEY`.
fn inherited(given: &str) -> Result<(i32, String), String> {
    let parts = given.strip_prefix("fd[").and_then(|rest| rest.split_once("]:"));
    let parts = parts.and_then(|(number, key)| Some((number.parse().ok().filter(|n| *n >= 0)?, key.to_owned())));
    parts
        .filter(|(_, key)| !key.is_empty())
        .ok_or_else(|| format!("--inherit-fd: '{given}' is not of the form fd[NUMBER]:RESOURCE"))
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
