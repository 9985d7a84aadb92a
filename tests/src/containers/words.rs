//! `cryonaut checkpoint` and `cryonaut restore` of containers.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use libtest_mimic::Failed;

use super::podman::Podman;
use super::{Host, Test, test};

pub(super) fn tests() -> Vec<Test> {
    vec![test("podman", podman)]
}

/// An archive that podman takes, and one cause of a failure.
fn podman(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &["--network", "none"])?;
    // The storage of the test is not the one that podman has by itself.
    let own = podman.own_options().join(" ");
    let wrapper = host.at("bin/podman");
    fs::write(&wrapper, format!("#!/bin/sh\nexec /usr/bin/podman {own} \"$@\"\n"))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let cryonaut = fs::canonicalize(host.at("bin/criu"))?.display().to_string();
    let archive = host.at("c.tar").display().to_string();
    let cryonaut = |arguments: &[&str]| host.run(&cryonaut, arguments);
    cryonaut(&["checkpoint", "podman:c", "--leave-running", "-o", &archive])?;
    podman.count.goes_on(5)?;
    cryonaut(&["checkpoint", "podman:c", "-o", &archive])?;
    podman.count.stands_still()?;
    podman.podman(&["rm", "c"])?;
    podman.restore(&["--import", &archive])?;
    podman.count.goes_on(5)?;
    // Packed by us, both ways: podman takes it, and we do.
    let packed = host.at("c.tar.zst").display().to_string();
    cryonaut(&["checkpoint", "podman:c", "-o", &packed])?;
    podman.remove("c")?;
    podman.restore(&["--import", &packed])?;
    podman.count.goes_on(5)?;
    cryonaut(&["checkpoint", "podman:c", "-o", &packed])?;
    podman.remove("c")?;
    cryonaut(&["restore", "podman:c", "-i", &packed])?;
    podman.count.goes_on(5)?;
    podman.remove("c")?;
    fs::write(&podman.count.0, "")?;
    cryonaut(&["restore", "podman:c", "-i", &archive])?;
    podman.count.wait_for(3)?;
    let before = fs::read(&packed)?;
    let failed = cryonaut(&["checkpoint", "podman:nobody", "-o", &packed]).err().ok_or("nobody was checkpointed")?;
    if fs::read(&packed)? != before || host.at("c.tar.zst.part").exists() {
        return Err("an archive was touched by a checkpoint that failed".into());
    }
    let told = failed.message().unwrap_or_default();
    match told.contains("cryonaut: podman, nobody: ") && told.contains("no such container") {
        true => Ok(()),
        false => Err(format!("the cause is told as {told}").into()),
    }
}
