//! Terminals whose master was outside of the tree, such as that of a container, whose master its runtime has: a pty is
//! made anew, and the caller is given its master (`--orphan-pts-master`).

use super::super::{Build, apply_status_flags};
use super::{build, data, info};
use crate::caller::Event;
use crate::{Error, Moment, RestoreOptions, Result};
use cryonaut_image::records::{TtyFileEntry, TtyInfoEntry};
use cryonaut_kernel::sys::tty;
use std::os::fd::{AsFd, OwnedFd};

/// Whether such terminals are made. The caller's own takes their place instead where the tree is a job of his and he
/// has one: runtimes ask for both at once.
pub(super) fn are_made(options: &RestoreOptions) -> bool {
    options.orphan_terminals && !(options.shell_job && build::terminal_of_caller().is_some())
}

/// Opens the slave of such a terminal, having made it if it is the first.
pub(super) fn slave(cx: &mut Build<'_>, file: &TtyFileEntry, info: &TtyInfoEntry) -> Result<OwnedFd> {
    let key = ("orphan terminal", u64::from(info.dev.unwrap_or_default()) << 32 | u64::from(info.rdev));
    if !cx.kept.contains_key(&key) {
        let master = make(cx, file, info)?;
        cx.kept.insert(key, master);
    }
    let failed = |e| Error::kernel(build::object(file, info), "open it through its new master", e);
    tty::open_peer(&cx.kept[&key], build::open_flags(file)).map_err(failed)
}

fn make(cx: &mut Build<'_>, file: &TtyFileEntry, info: &TtyInfoEntry) -> Result<OwnedFd> {
    let failed = |action: &'static str| move |e| Error::kernel(build::object(file, info), action, e);
    let path = build::ptmx(cx, file)?;
    let master = build::open_master(cx, &path, build::object(file, info), info.pty.map(|pty| pty.index))?;
    tty::set_pty_locked(&master, false).map_err(failed("unlock it"))?;
    data::fill_orphan(cx.images, master.as_fd(), info)?;
    info::apply(master.as_fd(), info)?;
    // It was opened without waiting.
    apply_status_flags(master.as_fd(), file.id, path.flags)?;
    let root_pid = cx.root_pid;
    cx.options.hook.ask(&Event { moment: Moment::OrphanPtsMaster, root_pid, terminal: Some(master.as_fd()) })?;
    Ok(master)
}
