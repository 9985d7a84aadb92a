//! Every option of CRIU's command line (criu(8), version 4.2): what it takes, and whether this build has it.

use std::fmt::Write;

/// What follows an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing; there is a `--no-` form.
    Nothing,
    /// A value, in the same argument or the next.
    Value,
    /// A value in the same argument, or none.
    Maybe,
}

/// One option.
#[derive(Debug, PartialEq, Eq)]
pub struct Spec {
    /// Without the dashes.
    pub name: &'static str,
    /// Its letter, if it has one.
    pub short: Option<char>,
    /// What follows it.
    pub takes: Takes,
    /// What is missing in this build for it to mean something; `None` if nothing is.
    pub lacks: Option<&'static str>,
}

const fn here(name: &'static str, short: Option<char>, takes: Takes) -> Spec {
    Spec { name, short, takes, lacks: None }
}

const fn later(name: &'static str, takes: Takes, lacks: &'static str) -> Spec {
    Spec { name, short: None, takes, lacks: Some(lacks) }
}

const fn later_short(name: &'static str, short: char, takes: Takes, lacks: &'static str) -> Spec {
    Spec { name, short: Some(short), takes, lacks: Some(lacks) }
}

use Takes::{Maybe, Nothing, Value};

const MOUNTS: &str = "mount namespaces";
const SECURITY: &str = "security modules";
const STREAM: &str = "streamed images";
const CHECKS: &str = "choosing how files and processors are compared";
const PLUGINS: &str = "plugins";

/// All of them.
pub const OPTIONS: &[Spec] = &[
    here("tree", Some('t'), Value),
    here("images-dir", Some('D'), Value),
    here("work-dir", Some('W'), Value),
    here("log-file", Some('o'), Value),
    here("verbosity", Some('v'), Maybe),
    here("config", None, Value),
    here("no-default-config", None, Nothing),
    here("version", Some('V'), Nothing),
    here("help", Some('h'), Nothing),
    here("pidfile", None, Value),
    here("display-stats", None, Nothing),
    here("leave-running", Some('R'), Nothing),
    here("leave-stopped", Some('s'), Nothing),
    here("restore-detached", Some('d'), Nothing),
    here("restore-sibling", Some('S'), Nothing),
    here("exec-cmd", None, Nothing),
    here("shell-job", Some('j'), Nothing),
    here("file-locks", Some('l'), Nothing),
    here("link-remap", None, Nothing),
    here("ghost-limit", None, Value),
    // Deleted files keep their holes whatever the file system tells them by.
    here("ghost-fiemap", None, Nothing),
    here("timeout", None, Value),
    here("inherit-fd", None, Value),
    here("external", None, Value),
    here("action-script", None, Value),
    here("status-fd", None, Value),
    here("root", Some('r'), Value),
    // Of the service and of page servers.
    here("address", None, Value),
    here("daemon", None, Nothing),
    here("manage-cgroups", None, Maybe),
    here("freeze-cgroup", None, Value),
    here("cgroup-root", None, Value),
    here("cgroup-props", None, Value),
    here("cgroup-props-file", None, Value),
    here("cgroup-dump-controller", None, Value),
    here("cgroup-yard", None, Value),
    // The kernel is asked for the file behind a watch, so there is no search that could be forced or hinted.
    here("force-irmap", None, Nothing),
    here("irmap-scan-path", None, Value),
    here("tcp-established", None, Nothing),
    here("tcp-close", None, Nothing),
    here("skip-in-flight", None, Nothing),
    here("network-lock", None, Value),
    here("ext-unix-sk", Some('x'), Maybe),
    here("orphan-pts-master", None, Nothing),
    // A permission to take another path to a device file than the recorded one, which nothing here has use for.
    here("evasive-devices", None, Nothing),
    // No step asks for more than it needs anyway.
    here("unprivileged", None, Nothing),
    // How a pre-dump reads memory: there is one way here, which lets the tree run meanwhile.
    here("pre-dump-mode", None, Value),
    here("feature", None, Value),
    here("all", None, Nothing),
    here("extra", None, Nothing),
    here("experimental", None, Nothing),
    here("track-mem", None, Nothing),
    here("prev-images-dir", None, Value),
    here("auto-dedup", None, Nothing),
    here("lazy-pages", None, Nothing),
    here("page-server", None, Nothing),
    here("port", None, Value),
    here("ps-socket", None, Value),
    here("tls", None, Nothing),
    here("tls-cacert", None, Value),
    here("tls-cacrl", None, Value),
    here("tls-cert", None, Value),
    here("tls-key", None, Value),
    here("tls-no-cn-verify", None, Nothing),
    here("join-ns", Some('J'), Value),
    here("empty-ns", None, Value),
    here("veth-pair", None, Value),
    // A setting that cannot be made is warned of in any case.
    here("weak-sysctls", None, Nothing),
    here("ext-mount-map", None, Value),
    later_short("mnt", 'M', Value, MOUNTS),
    here("enable-external-sharing", None, Nothing),
    here("enable-external-masters", None, Nothing),
    // What cannot be carried is refused by its own name.
    here("enable-fs", None, Value),
    here("skip-mnt", None, Value),
    // Another way to the same mounts.
    here("mntns-compat-mode", None, Nothing),
    later("lsm-profile", Value, SECURITY),
    later("lsm-mount-context", Value, SECURITY),
    later("stream", Nothing, STREAM),
    later("cpu-cap", Maybe, CHECKS),
    later("file-validation", Value, CHECKS),
    later("skip-file-rwx-check", Nothing, CHECKS),
    later("allow-uprobes", Nothing, "uprobes"),
    later("close", Value, "closing descriptors of the caller"),
    later("log-pid", Nothing, "a log for each process"),
    later_short("libdir", 'L', Value, PLUGINS),
];

/// The option of a letter.
pub fn by_letter(letter: char) -> Option<&'static Spec> {
    OPTIONS.iter().find(|spec| spec.short == Some(letter))
}

/// The option of a name or of the beginning of one that fits no other, and whether it was the `--no-` form.
///
/// # Errors
/// What is wrong with the name.
pub fn by_name(name: &str) -> Result<(&'static Spec, bool), String> {
    let mut found = Vec::new();
    for spec in OPTIONS {
        for (form, is_negative) in forms(spec) {
            if form == name {
                return Ok((spec, is_negative));
            }
            if form.starts_with(name) {
                found.push((spec, is_negative, form));
            }
        }
    }
    match found[..] {
        [] => Err(format!("unrecognized option '--{name}'")),
        [(spec, is_negative, _)] => Ok((spec, is_negative)),
        _ => {
            let mut problem = format!("option '--{name}' is ambiguous; possibilities:");
            for (_, _, form) in &found {
                // Writing to a string cannot fail.
                let _ = write!(problem, " '--{form}'");
            }
            Err(problem)
        }
    }
}

fn forms(spec: &Spec) -> impl Iterator<Item = (String, bool)> {
    let has_negative = spec.takes == Nothing && !matches!(spec.name, "no-default-config" | "version" | "help");
    let negative = has_negative.then(|| (format!("no-{}", spec.name), true));
    std::iter::once((spec.name.to_owned(), false)).chain(negative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_letters_are_unique() {
        for (i, one) in OPTIONS.iter().enumerate() {
            for other in &OPTIONS[i + 1..] {
                assert_ne!(one.name, other.name);
                assert!(one.short.is_none() || one.short != other.short, "{} {}", one.name, other.name);
            }
        }
    }

    #[test]
    fn a_beginning_that_fits_one_option_is_enough() {
        for (given, name, negative) in [
            ("tree", "tree", false),
            ("tre", "tree", false),
            ("images", "images-dir", false),
            ("leave-r", "leave-running", false),
            ("no-leave-r", "leave-running", true),
            ("no-def", "no-default-config", false),
            ("restore-d", "restore-detached", false),
            // A whole name wins over longer ones that begin with it.
            ("tls", "tls", false),
            ("cgroup-props", "cgroup-props", false),
        ] {
            let (spec, is_negative) = by_name(given).expect(given);
            assert_eq!((spec.name, is_negative), (name, negative), "{given}");
        }
    }

    #[test]
    fn an_unclear_name_says_what_it_could_be() {
        let problem = by_name("leave").unwrap_err();
        assert!(problem.contains("ambiguous") && problem.contains("'--leave-stopped'"), "{problem}");
        assert_eq!(by_name("warp").unwrap_err(), "unrecognized option '--warp'");
        assert!(by_name("no-tree").is_err(), "only what takes no value has a --no- form");
    }
}
