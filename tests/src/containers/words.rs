//! `cryonaut checkpoint` and `cryonaut restore` of containers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use libtest_mimic::Failed;

use super::podman::Podman;
use super::{Host, Test, test};

pub(super) fn tests() -> Vec<Test> {
    vec![test("podman", podman), test("podman_memory", podman_memory)]
}

/// Counts for as long as it finds its memory as it was: some 4 MiB, which no compressor makes smaller than 3.
const REMEMBERS: &str = "x=$(head -c 3000000 /dev/urandom | base64); s=$(echo \"$x\" | md5sum); i=0; \
    while [ \"$(echo \"$x\" | md5sum)\" = \"$s\" ]; do i=$((i+1)); echo $i >>/state/count; sleep 0.02; done";

/// An archive that podman takes, and one cause of a failure.
fn podman(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &["--network", "none"])?;
    let cryonaut = own_words(host, &podman)?;
    let archive = host.at("c.tar").display().to_string();
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

/// Our own words, for containers of the test.
fn own_words<'h>(host: &'h Host, podman: &Podman) -> Result<impl Fn(&[&str]) -> Result<String, Failed> + 'h, Failed> {
    // The storage of the test is not the one that podman has by itself.
    let own = podman.own_options().join(" ");
    let wrapper = host.at("bin/podman");
    fs::write(&wrapper, format!("#!/bin/sh\nexec /usr/bin/podman {own} \"$@\"\n"))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let cryonaut = fs::canonicalize(host.at("bin/criu"))?.display().to_string();
    Ok(move |arguments: &[&str]| host.run(&cryonaut, arguments))
}

/// Pages come into an archive and out of it beside podman, which takes it as well, and has the image of the container whole.
fn podman_memory(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.start("c", &["--network", "none"], REMEMBERS)?;
    podman.count.goes_on(3)?;
    let cryonaut = own_words(host, &podman)?;
    let archive = host.at("c.tar.zst").display().to_string();
    let checkpoint = |options: &[&str]| {
        cryonaut(&[&["checkpoint", "podman:c", "-o", &archive], options].concat())?;
        match fs::metadata(&archive)?.len() {
            3_000_000.. => Ok(()),
            len => Err(Failed::from(format!("the archive has {len} bytes: the pages are not in it"))),
        }
    };
    checkpoint(&["--leave-running"])?;
    podman.count.goes_on(3)?;
    checkpoint(&[])?;
    let pages = image_of(host)?.join("pages-1.img");
    if pages.is_symlink()
        || !pages.is_file()
        || pages.parent().is_none_or(|image| image.join("../pages-1.img").exists())
    {
        return Err("the pages are not where podman had them".into());
    }
    podman.restore(&["c"])?;
    podman.count.goes_on(3)?;
    checkpoint(&[])?;
    podman.remove("c")?;
    podman.restore(&["--import", &archive])?;
    podman.count.goes_on(3)?;
    checkpoint(&[])?;
    podman.remove("c")?;
    cryonaut(&["restore", "podman:c", "-i", &archive])?;
    podman.count.goes_on(3)
}

/// Where podman has the image of its only container.
fn image_of(host: &Host) -> Result<PathBuf, Failed> {
    let containers = fs::read_dir(host.at("storage/overlay-containers"))?;
    let images = containers.flatten().map(|entry| entry.path().join("userdata/checkpoint"));
    Ok(images.into_iter().find(|path| path.is_dir()).ok_or("podman has no image")?)
}
