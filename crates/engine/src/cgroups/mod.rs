//! Cgroups (cgroups(7)) of both versions, side by side: in which ones the tasks and threads of a tree are, and the
//! directories below those, with their properties. `cgroup.img` has the *sets* (one cgroup in each hierarchy), which
//! records of threads name, and the directories of each hierarchy.
//!
//! A hierarchy in which all of the tree is where we are ourselves is nobody's own, and is left out: at the restore the
//! tree is then where the caller of that is. So most trees have no such file. Of the top of a hierarchy only membership is
//! kept, never what is below it: that would be the cgroups of the whole host.
//!
//! - [`membership`] reads the sets of a frozen tree.
//! - [`directories`] reads directories and makes them again.
//! - [`properties`] says which files in them are properties.
//! - [`hierarchy`] reaches hierarchies by mounts that have no place in the file system, and are gone with us.
//! - [`restoring`] makes what is missing and moves the tasks.

mod directories;
mod freezer;
mod hierarchy;
mod membership;
mod properties;
mod restoring;
#[cfg(test)]
mod tests;

pub use freezer::Thawed;
pub use membership::Membership;
pub use restoring::Restoring;

use std::path::PathBuf;

/// How much is done about cgroups (criu(8), `--manage-cgroups`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupMode {
    /// Nothing, as if there were none.
    Ignore,
    /// Tasks are moved into cgroups that are there; their properties stay.
    None,
    /// Tasks are moved into cgroups that are there, which get their properties.
    Properties,
    /// Cgroups that are missing are made, and those get their properties.
    #[default]
    Soft,
    /// Cgroups that are missing are made, and all get their properties.
    Full,
    /// All cgroups are made: none of them may be there.
    Strict,
}

impl CgroupMode {
    /// Whether a directory that is missing is made.
    fn makes(self) -> bool {
        matches!(self, CgroupMode::Soft | CgroupMode::Full | CgroupMode::Strict)
    }

    /// Whether a directory gets its properties, that we have made or not.
    fn sets_properties(self, is_new: bool) -> bool {
        match self {
            CgroupMode::Ignore | CgroupMode::None => false,
            CgroupMode::Soft => is_new,
            CgroupMode::Properties | CgroupMode::Full | CgroupMode::Strict => true,
        }
    }
}

/// What a caller may ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupOptions {
    /// How much is done.
    pub mode: CgroupMode,
    /// Other tops for the tree's directories: of one hierarchy by its name (`cpu`, `name=systemd`), or of all others
    /// (`--cgroup-root [CONTROLLER:]PATH`).
    pub roots: Vec<(Option<String>, String)>,
    /// Where hierarchies are mounted, each under its name (`--cgroup-yard`).
    pub yard: Option<PathBuf>,
    /// Hierarchies with one of these controllers alone are looked into; all if there is none (`--cgroup-dump-controller`).
    pub controllers: Vec<String>,
    /// Properties besides those that are known, or in their place (`--cgroup-props`).
    pub properties: Vec<CgroupProperties>,
    /// The directory of a freezer in which the tree may stand already (`--freeze-cgroup`).
    pub freezer: Option<PathBuf>,
    /// At a restore, in whose cgroups we are to be while we build. A runtime puts us into those of the container, whose
    /// limits are not made for two.
    pub beside: Option<i32>,
}

/// Which properties of a controller are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupProperties {
    /// The controller.
    pub controller: String,
    /// Whether they take the place of those that are known.
    pub replace: bool,
    /// Names of files.
    pub names: Vec<String>,
}

impl CgroupOptions {
    /// The other top for a hierarchy, if there is one.
    fn root_of(&self, hierarchy: &str) -> Option<&str> {
        let is_named = |name: &str| name == hierarchy || hierarchy.split(',').any(|controller| controller == name);
        let named = self.roots.iter().rev().find(|(name, _)| name.as_deref().is_some_and(is_named));
        let root = named.or_else(|| self.roots.iter().rev().find(|(name, _)| name.is_none()))?;
        Some(root.1.as_str())
    }

    /// Whether a hierarchy is looked into.
    fn wants(&self, hierarchy: &str) -> bool {
        let is_wanted = |name: &str| self.controllers.iter().any(|wanted| wanted == name);
        self.controllers.is_empty() || is_wanted(hierarchy) || hierarchy.split(',').any(is_wanted)
    }
}

/// A path in a hierarchy without a slash at its end, and an empty one for its top.
fn trimmed(path: &str) -> &str {
    path.trim_end_matches('/')
}

/// Whether a directory is another one, or below it.
fn is_within(path: &str, top: &str) -> bool {
    let (path, top) = (trimmed(path), trimmed(top));
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
