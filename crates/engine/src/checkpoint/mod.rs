//! A checkpoint: freeze, collect, write, and let go or end.
//!
//! | module   | owns                                                  |
//! |----------|-------------------------------------------------------|
//! | refusals | trees that cannot be carried                          |
//! | standing | the tree while it stands still, and what becomes of it |
//! | pre_dump | the memory alone, of a tree that goes on              |

mod pre_dump;
mod refusals;
mod standing;

pub use pre_dump::pre_dump;

use crate::attributes::credentials;
use crate::cgroups::{Membership, Thawed};
use crate::dump::{About, dump, expect_files};
use crate::files::socket;
use crate::freeze::{self, Frozen};
use crate::lazy::PageService;
use crate::namespaces::{inner, pid};
use crate::network_lock::{self, translated};
use crate::options::{Afterwards, PrecopyMode};
use crate::precopy::{self, Keeping, Precopied};
use crate::report::{CheckpointReport, micros};
use crate::sharing::{Namespaces, Sharing};
use crate::tracking;
use crate::{CheckpointOptions, Moment, Result, lazy, parallel};
use cryonaut_image::{CommitOptions, DumpDir, Durability, ImageKind, Leavings, Remains, is_part_of_an_image};
use cryonaut_kernel::janitor::{Duty, Janitor};
use cryonaut_kernel::proc::Task;
use refusals::refuse_ourselves;
use standing::Standing;
use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Instant;

/// Writes the state of the tree below `pid` into `dir`.
///
/// If this fails, the tree goes on as it was and no image is there.
pub fn checkpoint(pid: i32, dir: &Path, options: &CheckpointOptions) -> Result<CheckpointReport> {
    refuse_ourselves(pid)?;
    lazy::wait_until_filled(pid)?;
    network_lock::clear_stale();
    let surroundings = Namespaces::read(&Task::current()?)?;
    let report = match pid::elsewhere(pid, &options.external)? {
        None => unless_pages_were_lost(options, checkpoint_here(pid, dir, options, &surroundings))?,
        Some(tree) => {
            let begun = Instant::now();
            let report = inner::run(&tree, None, &options.hook, |outer| {
                let options = CheckpointOptions { hook: outer.hook(), ..options.clone() };
                let done = checkpoint_here(tree.inside, dir, &options, &surroundings);
                unless_pages_were_lost(&options, done)
            })?;
            CheckpointReport { root_pid: pid, total_us: micros(begun.elapsed()), ..report }
        }
    };
    if options.afterwards == Afterwards::Kill {
        translated::hold(dir);
    }
    Ok(report)
}

/// What was done, or why the page server was lost if it was: who writes pages to one that is gone is told no more than that
/// nobody reads them.
fn unless_pages_were_lost(options: &CheckpointOptions, done: Result<CheckpointReport>) -> Result<CheckpointReport> {
    let why = || Some(options.page_server.as_ref()?.failure()?.into());
    done.map_err(|error| why().unwrap_or(error))
}

/// The same for a tree of our own pid namespace. `surroundings` are the namespaces that count as not the tree's.
fn checkpoint_here(
    pid: i32,
    dir: &Path,
    options: &CheckpointOptions,
    surroundings: &Namespaces,
) -> Result<CheckpointReport> {
    let begun = Instant::now();
    freeze::prepare(pid);
    options.hook.call(Moment::PreDump, pid)?;
    let janitor = janitor(dir)?;
    let images = DumpDir::create(dir)?;
    if options.page_server.is_some() {
        images.leave_memory_out();
    }
    // What nobody needs to stand still for.
    expect_files(&images, pid, options.page_server.is_none())?;
    set_parent(&images, options)?;
    let precopied = precopy(pid, &images, options)?;
    let mut sharing = Sharing::default();
    // Ours first: their numbers are the lowest.
    let own = sharing.numbers_of(surroundings);
    parallel::get_ready();
    let has_sockets = socket::get_ready(pid);
    cryonaut_kernel::heap::fault_in();
    credentials::last_capability();
    let mut report = CheckpointReport { root_pid: pid, ..CheckpointReport::default() };
    let namespaces = (&mut sharing, &own);
    let (mut tree, extended) = Standing::freeze(pid, &images, options, namespaces, has_sockets, &mut report)?;
    let options = extended.as_ref().unwrap_or(options);
    let Standing { frozen, owned, network, .. } = &mut tree;
    let cgroups = Membership::find(&mut frozen.processes, (&own, owned), &options.cgroups)?;
    let about = About { own, owned, cgroups: &cgroups, network, has_sockets, precopied: precopied.as_ref() };
    let (links, connections) = dump(frozen, &images, options, about, &mut report, janitor.as_ref())?;
    if let Some(server) = &options.page_server {
        // Memory may be on its way by reference alone: nobody runs before it has arrived.
        server.close()?;
    }
    options.hook.call(Moment::PostDump, pid)?;
    let keeping;
    match options.afterwards {
        Afterwards::LeaveRunning => {
            tree.go_on(&mut report)?;
            keeping = settle(precopied, options, &mut report)?;
            let remains = commit(images, options, &mut report)?;
            links.keep();
            drop(remains);
        }
        Afterwards::LeaveStopped => {
            keeping = settle(precopied, options, &mut report)?;
            let remains = commit(images, options, &mut report)?;
            links.keep();
            tree.frozen.stop()?;
            tree.go_on(&mut report)?;
            drop(remains);
        }
        Afterwards::Kill => {
            tree.frozen.share_verdict();
            keeping = settle(precopied, options, &mut report)?;
            let remains = commit(images, options, &mut report)?;
            if let Some(service) = &options.lazy_pages {
                hand_over(service, &tree.frozen, dir, options)?;
            }
            links.keep();
            report = tree.end(connections, remains, report)?;
        }
    }
    keep(keeping);
    report.total_us = micros(begun.elapsed());
    Ok(report)
}

/// Ends what was done while the tree ran.
fn settle(
    precopied: Option<Precopied<'_>>,
    options: &CheckpointOptions,
    report: &mut CheckpointReport,
) -> Result<Option<Keeping>> {
    let Some(precopied) = precopied else { return Ok(None) };
    let keeps = options.keep_tracking && options.afterwards != Afterwards::Kill;
    let (told, keeping) = precopied.settle(keeps, options.afterwards != Afterwards::LeaveRunning)?;
    report.precopy = Some(told);
    Ok(keeping)
}

/// Makes an image of what was written. What remains is to be cleared away when the tree no longer waits for it.
fn commit(images: DumpDir, options: &CheckpointOptions, report: &mut CheckpointReport) -> Result<Remains> {
    let durability = if options.sync { Durability::Synced } else { Durability::Relaxed };
    let how = CommitOptions { durability, compress: options.compress, ..CommitOptions::default() };
    let (remains, took) = timed(|| Ok(images.commit(how)?))?;
    report.commit_us = took;
    Ok(remains)
}

/// Names the image to which this one leaves what has not changed.
fn set_parent(images: &DumpDir, options: &CheckpointOptions) -> Result<()> {
    options.parent.as_ref().map_or(Ok(()), |parent| Ok(images.set_parent(parent)?))
}

/// Has the tracking go on. The image is there already: without it, the next one has all of the memory again.
fn keep(keeping: Option<Keeping>) {
    let Some((kept, spaces)) = keeping else { return };
    if let Err(e) = kept.keep(&spaces) {
        tracing::warn!("the next image will have all memory again: {e}");
    }
}

/// Copies the memory of the tree while it runs, if that is wanted and worth it.
fn precopy<'a>(pid: i32, images: &'a DumpDir, options: &CheckpointOptions) -> Result<Option<Precopied<'a>>> {
    let is_wanted = match options.precopy.mode {
        PrecopyMode::Never => options.keep_tracking || options.parent.is_some(),
        PrecopyMode::Always => true,
        PrecopyMode::Auto => {
            let is_large = options.afterwards == Afterwards::LeaveRunning && precopy::is_worth_it(pid);
            is_large || options.keep_tracking || options.parent.is_some()
        }
    };
    // What comes later is not copied.
    let to_server = options.page_server.is_some();
    if !is_wanted || options.lazy_pages.is_some() || to_server && options.parent.is_none() {
        tracking::end_all(pid)?;
        return Ok(None);
    }
    if to_server {
        return Ok(Some(Precopied::resumed(pid, images, options)?));
    }
    let is_closed = options.cgroups.freezer.as_deref().map(Thawed::closed).transpose()?.flatten().is_some();
    Ok(Some(Precopied::make(pid, images, options, is_closed)?))
}

/// Who removes what we have written, should we be killed. Without one, the
/// next checkpoint into the same directory does.
fn janitor(dir: &Path) -> Result<Option<Janitor>> {
    let leavings = Leavings::of(dir)?;
    let (Ok(directory), Ok(hidden), Ok(mark)) = (
        CString::new(std::path::absolute(dir).unwrap_or_default().into_os_string().into_vec()),
        CString::new(leavings.hidden),
        CString::new(leavings.inventory),
    ) else {
        return Ok(None);
    };
    let ours = if leavings.visible { is_part_of_an_image } else { |_: &[u8], _| false };
    let duty = Duty { directory, hidden, mark, ours, whole: leavings.directory };
    Ok(Janitor::hire(&duty).inspect_err(|e| tracing::warn!("nobody would clear up behind us: {e}")).ok())
}

/// Runs it; what came of it, and how long it took.
fn timed<T>(step: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let begun = Instant::now();
    let made = step()?;
    Ok((made, micros(begun.elapsed())))
}

/// Lets whoever restores the tree fetch its memory. If that fails, the image is none any more.
fn hand_over(service: &PageService, frozen: &Frozen, dir: &Path, options: &CheckpointOptions) -> Result<()> {
    let root = frozen.processes[0].pid;
    let done = options.hook.call(Moment::StatusReady, root).and_then(|()| service.serve(&frozen.processes));
    done.inspect_err(|_| {
        // What makes a directory an image. The rest is replaced by the next dump.
        let inventory = ImageKind::Inventory.file_name(None).map(|name| dir.join(name));
        if let Err(e) = inventory.map_err(std::io::Error::other).and_then(std::fs::remove_file) {
            tracing::warn!("{}: what is there lacks its memory, and looks like an image: {e}", dir.display());
        }
    })
}
