//! Which workloads there are, and what each declares about itself at the top of its source.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fingerprint::rules::Rule;

/// A workload as its source declares it, by lines at the top of the C file:
///
/// - `// flags: --file-locks`: options for every engine, at both ends
/// - `// checkpoint-flags: --link-remap`: options for every engine's checkpoint alone
/// - `// criu-flags: --ghost-limit 1G`: options for the peer alone, at both ends
/// - `// peer: no, REASON`: the peer cannot carry this state
/// - `// gap: REASON`: known to be lost
/// - `// differs: KIND NAME, REASON`: what else may differ between the fingerprints before and after, one to a line
/// - `// restless: REASON`: nobody can take a fingerprint of it, its processes come and go; its own checks must do
/// - `// sysctl: NAME VALUE`: a setting of the host while it runs (`net/ipv4/NAME`), put back afterwards
/// - `// processor: FLAG`: it needs a processor with this flag (/proc/cpuinfo), and is no workload elsewhere
/// - `// refused: TEXT`: a checkpoint must be refused with a message that holds TEXT, and the workload go on unharmed
#[derive(Debug, Clone)]
pub struct Declaration {
    /// `AREA/NAME`.
    pub name: String,
    /// The built program.
    pub program: PathBuf,
    /// Options for checkpoint and restore.
    pub flags: Vec<String>,
    /// Options for the checkpoint alone.
    pub checkpoint_flags: Vec<String>,
    /// Options that only CRIU needs, for dump and restore alike.
    pub criu_flags: Vec<String>,
    /// Why the peer is not asked to carry it.
    pub peer_cannot: Option<String>,
    /// What the refusal of a checkpoint must say, for state that nobody can carry.
    pub refused: Option<String>,
    /// What of it is known to be lost today. The suite then expects the loss, so that whoever mends it is told.
    pub gap: Option<String>,
    /// What else may differ between its fingerprints.
    pub differs: Vec<Rule>,
    /// Why there is no fingerprint of it.
    pub restless: Option<String>,
    /// A setting of the host that it needs, below /proc/sys, and its value.
    pub sysctl: Option<(String, String)>,
    /// What is put into its directory as `script` before it starts.
    pub script: Option<String>,
}

impl Declaration {
    /// That of a program that is no workload.
    pub(crate) fn of_program(name: &str, program: PathBuf, flags: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            program,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            checkpoint_flags: Vec::new(),
            criu_flags: Vec::new(),
            peer_cannot: None,
            refused: None,
            gap: None,
            differs: Vec::new(),
            restless: None,
            sysctl: None,
            script: None,
        }
    }
}

/// Every workload, in the order of names.
///
/// # Panics
/// If the sources that the build script built cannot be read any more.
pub fn catalogue() -> Vec<Declaration> {
    let sources = Path::new(env!("WORKLOAD_SOURCES"));
    let mut all = Vec::new();
    for area in subdirectories(sources) {
        for source in entries(&area) {
            if source.extension().is_some_and(|extension| extension == "c") {
                let relative = source.strip_prefix(sources).expect("listed below it").with_extension("");
                all.extend(parse(&source, &relative));
            }
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// The workload called `AREA/NAME`.
pub fn declaration(name: &str) -> Option<Declaration> {
    catalogue().into_iter().find(|workload| workload.name == name)
}

/// `None` if this processor lacks what it needs.
fn parse(source: &Path, relative: &Path) -> Option<Declaration> {
    let text = fs::read_to_string(source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    let values = |key: &str| {
        let lines = text.lines().take_while(|line| !line.starts_with("int main"));
        let found = lines.filter_map(|line| line.strip_prefix("// ")?.strip_prefix(key)?.strip_prefix(": "));
        found.map(|value| value.trim().to_owned()).collect::<Vec<_>>()
    };
    let value = |key: &str| values(key).into_iter().next();
    if value("processor").is_some_and(|flag| !processor_has(&flag)) {
        return None;
    }
    let words = |key: &str| value(key).map(|v| v.split_whitespace().map(str::to_owned).collect()).unwrap_or_default();
    Some(Declaration {
        name: relative.display().to_string(),
        program: Path::new(env!("WORKLOAD_PROGRAMS")).join(relative),
        flags: words("flags"),
        checkpoint_flags: words("checkpoint-flags"),
        criu_flags: words("criu-flags"),
        peer_cannot: value("peer").and_then(|v| v.strip_prefix("no, ").map(str::to_owned)),
        refused: value("refused"),
        gap: value("gap"),
        differs: values("differs").iter().map(|text| rule(source, text)).collect(),
        restless: value("restless"),
        sysctl: value("sysctl").and_then(|v| v.split_once(' ').map(|(name, value)| (name.into(), value.into()))),
        script: None,
    })
}

fn processor_has(flag: &str) -> bool {
    let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = told.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    flags.is_some_and(|(_, flags)| flags.split_whitespace().any(|one| one == flag))
}

fn rule(source: &Path, text: &str) -> Rule {
    Rule::parse(text).unwrap_or_else(|| panic!("{}: not 'KIND NAME, REASON': {text}", source.display()))
}

fn subdirectories(of: &Path) -> Vec<PathBuf> {
    entries(of).into_iter().filter(|path| path.is_dir()).collect()
}

fn entries(of: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(of).unwrap_or_else(|error| panic!("{}: {error}", of.display()));
    listed.filter_map(|entry| Some(entry.ok()?.path())).collect()
}
