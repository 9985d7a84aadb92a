//! `criu lazy-pages`: brings the memory of a tree that is restored with `--lazy-pages`, out of the images directory and,
//! with `--page-server`, from a dump that serves it or a server of its pages. It waits for the restore at a socket in the
//! working directory, and ends when all memory is there.
//!
//! In the background it is this program once more, with the socket as standard input; it says by a byte that it is ready.

use super::page_server;
use super::place::Place;
use super::settings::Settings;
use crate::features::{self, CriuAnswer};
use crate::pidfile::Pidfile;
use anyhow::{Context, Result, bail, ensure};
use cryonaut_engine::{LAZY_SOCKET, serve_restore};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

/// The operand of the one in the background, whose standard input listens.
const LISTENING: &str = "listening";

/// Runs until the memory of one restore is there.
///
/// # Errors
/// When the kernel lacks what it takes, the image or the page server cannot be reached, or nobody can listen.
pub fn run(settings: &Settings, place: &Place) -> Result<ExitCode> {
    place.check()?;
    if settings.operands.first().is_some_and(|operand| operand == LISTENING) {
        let listener = cryonaut_kernel::sys::fcntl::take_inherited(0).context("nothing listens at standard input")?;
        return serve(UnixListener::from(listener), settings, place, || {
            let mut out = std::io::stdout();
            out.write_all(&[0]).and_then(|()| out.flush()).context("nobody waits for us to be ready")
        });
    }
    for feature in ["uffd", "uffd-noncoop"] {
        ensure!(features::criu_feature(feature) == CriuAnswer::Present, "{feature}: this kernel does not have it");
    }
    let pidfile = Pidfile::claim(settings.pidfile.as_ref().map(|file| place.work.join(file)))?;
    let socket = Socket::bind(place.work.join(LAZY_SOCKET))?;
    if settings.daemon {
        let server = in_background(socket.listener.into(), settings, place)?;
        pidfile.write(server.id() as i32)?;
        page_server::tell_ready(settings)?;
        std::mem::forget(socket.path);
        return Ok(ExitCode::SUCCESS);
    }
    let mut pidfile = Some(pidfile);
    serve(socket.listener, settings, place, || {
        if let Some(pidfile) = pidfile.take() {
            pidfile.write(std::process::id() as i32)?;
        }
        page_server::tell_ready(settings)
    })
}

/// Waits for a restore, and serves it. `ready` says that one may come.
fn serve(
    listener: UnixListener,
    settings: &Settings,
    place: &Place,
    mut ready: impl FnMut() -> Result<()>,
) -> Result<ExitCode> {
    let server = page_server::client(settings)?;
    // It goes with the one restore that comes, or with us.
    let _path = Removed(place.work.join(LAZY_SOCKET));
    ready()?;
    tracing::info!("Waiting for a restore at {}", place.work.join(LAZY_SOCKET).display());
    let status = serve_restore(listener, &place.images, server, log(settings, place)?)?;
    ensure!(status == 0, "the memory of the restored tree could not be brought; the tree was ended");
    tracing::info!("All memory is there");
    Ok(ExitCode::SUCCESS)
}

/// Where who brings the memory says what goes wrong.
fn log(settings: &Settings, place: &Place) -> Result<File> {
    match &settings.log_file {
        Some(file) => {
            let path = place.work.join(file);
            let opened = File::options().append(true).open(&path);
            opened.with_context(|| format!("{}: cannot be opened", path.display()))
        }
        None => Ok(File::from(std::io::stderr().as_fd().try_clone_to_owned().context("stderr is not open")?)),
    }
}

/// A socket that is there, and its name.
struct Socket {
    listener: UnixListener,
    path: Removed,
}

/// A name that goes when this is dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Socket {
    fn bind(path: PathBuf) -> Result<Socket> {
        // One that was killed leaves its name.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path);
        let listener = listener.with_context(|| format!("{}: cannot listen there", path.display()))?;
        Ok(Socket { listener, path: Removed(path) })
    }
}

/// This program once more, with the socket as its standard input; it is ready.
fn in_background(socket: OwnedFd, settings: &Settings, place: &Place) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("criu").args(["lazy-pages", "--no-default-config", LISTENING]);
    command.arg("-D").arg(absolute(&place.images)?).arg("-W").arg(absolute(&place.work)?);
    command.args(settings.for_page_server()).args(settings.way_to_page_server());
    command.stdin(Stdio::from(socket)).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().context("it cannot go into the background")?;
    let mut told = [0];
    match child.stdout.take().map(|mut out| out.read_exact(&mut told)) {
        Some(Ok(())) => Ok(child),
        _ => {
            let _ = child.wait();
            bail!("it has ended in the background before it was ready; its log tells why")
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{}: cannot be found", path.display()))
}
