//! Root file systems of containers, from what this host has: no registry is asked.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;

use super::Host;

impl Host {
    /// The least that a program can live in: busybox under all of its names.
    pub(super) fn root_file_system(&self) -> Result<PathBuf, Failed> {
        let root = self.at("rootfs");
        for directory in ["bin", "proc", "sys", "dev", "tmp", "etc", "root", "run", "var", "state"] {
            fs::create_dir_all(root.join(directory))?;
        }
        // Whoever the container's user is.
        for public in ["state", "tmp", "run", "var"] {
            rustix::fs::chmod(root.join(public), rustix::fs::Mode::from_raw_mode(0o777))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).map_err(|e| format!("busybox (busybox-static): {e}"))?;
        for name in self.run("/bin/busybox", &["--list"])?.lines().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("bin").join(name))?;
        }
        Ok(root)
    }

    /// The same with programs of this host and the libraries that they need, and directories of it.
    pub(super) fn root_with(&self, programs: &[&Path], directories: &[&Path]) -> Result<PathBuf, Failed> {
        let root = self.root_file_system()?;
        let mut files: BTreeSet<PathBuf> = programs.iter().map(|program| (*program).to_owned()).collect();
        for program in programs {
            let told = self.run("ldd", &[program])?;
            let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
            files.extend(told.lines().filter_map(path));
        }
        for file in files {
            let there = root.join(file.strip_prefix("/").unwrap_or(&file));
            fs::create_dir_all(there.parent().unwrap_or(&root))?;
            fs::copy(&file, there).map_err(|e| format!("{}: {e}; scripts/test-deps.sh installs it", file.display()))?;
        }
        for directory in directories {
            let there = root.join(directory.strip_prefix("/").unwrap_or(directory));
            fs::create_dir_all(there.parent().unwrap_or(&root))?;
            self.run("cp", &[Path::new("-aT"), directory, &there])?;
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
        fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
        Ok(root)
    }
}
