//! `criu service`: listens under a name in the file system. Every caller is served by a process of his own, which is
//! this program once more, with the connection as its standard input.

use super::session::{self, Manner};
use super::wire::Peer;
use crate::criu::place::Place;
use crate::criu::settings::Settings;
use crate::pidfile::Pidfile;
use anyhow::{Context, Result, ensure};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with, sockopt,
};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

/// What follows `service` for the process that serves one caller, who is at its standard input.
pub const ONE: &str = "one";

/// What follows it for the one in the background, whose standard input listens.
const LISTENING: &str = "listening";

/// The name of the socket unless another is given.
const SOCKET: &str = "criu_service.socket";

/// `criu service`.
///
/// # Errors
/// When it cannot listen.
pub fn service(settings: &Settings, place: &Place) -> Result<ExitCode> {
    if settings.operands.first().is_some_and(|operand| operand == LISTENING) {
        return answer(&cryonaut_kernel::sys::fcntl::take_inherited(0).context("nothing listens at standard input")?);
    }
    place.check()?;
    let path = place.work.join(settings.address.as_deref().unwrap_or(OsStr::new(SOCKET)));
    let pidfile = Pidfile::claim(settings.pidfile.as_ref().map(|file| place.work.join(file)))?;
    let listener = listener(&path)?;
    tracing::info!("The service is listening at {}", path.display());
    if !settings.daemon {
        pidfile.write(rustix::process::getpid().as_raw_nonzero().get())?;
        return answer(&listener);
    }
    let mut command = ourselves(LISTENING, listener);
    let background = command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn();
    pidfile.write(background.context("the service cannot go into the background")?.id() as i32)?;
    Ok(ExitCode::SUCCESS)
}

/// A socket under this name, in the place of one that nobody listens at any more.
fn listener(path: &Path) -> Result<OwnedFd> {
    let failed = || format!("{}: cannot be listened at", path.display());
    let address = SocketAddrUnix::new(path).with_context(failed)?;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).with_context(failed)?;
    if fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
        let probe =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).with_context(failed)?;
        ensure!(rustix::net::connect(&probe, &address).is_err(), "{}: another service listens there", path.display());
        fs::remove_file(path).with_context(failed)?;
    }
    bind(&socket, &address).with_context(failed)?;
    listen(&socket, 16).with_context(failed)?;
    Ok(socket)
}

/// Answers whoever connects.
fn answer(listener: &OwnedFd) -> Result<ExitCode> {
    loop {
        match retry_on_intr(|| accept_with(listener, SocketFlags::CLOEXEC)) {
            Ok(connection) => {
                if let Err(error) = serve(connection) {
                    tracing::error!("{error:#}");
                }
            }
            Err(Errno::CONNABORTED) => {}
            Err(errno) => return Err(errno).context("no connection can be accepted"),
        }
    }
}

/// Lets a process serve this caller. Others than ourselves and root may not ask for anything: what is restored has the
/// rights that the image says.
fn serve(connection: OwnedFd) -> Result<()> {
    let caller = sockopt::socket_peercred(&connection).context("a caller does not tell who it is")?;
    let is_allowed = caller.uid.is_root() || caller.uid == rustix::process::geteuid();
    ensure!(
        is_allowed,
        "process {} of the user {} may not ask for anything",
        caller.pid.as_raw_nonzero(),
        caller.uid.as_raw()
    );
    let mut child = ourselves(ONE, connection).spawn().context("nobody can be made to serve a caller")?;
    thread::spawn(move || child.wait());
    Ok(())
}

/// Serves the one at standard input.
pub fn one() -> ExitCode {
    let Ok(peer) = Peer::inherited(0) else { return ExitCode::FAILURE };
    session::serve(peer, Manner { may_be_sibling: false })
}

fn ourselves(role: &str, stdin: OwnedFd) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("criu").args(["service", role]).stdin(Stdio::from(stdin));
    command
}
