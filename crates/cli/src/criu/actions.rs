//! What `criu` does, by its command line and by its RPC alike: a dump, a restore, a check.

use super::page_server;
use super::place::Place;
use super::settings::Settings;
use super::stats;
use crate::features::{self, CriuAnswer};
use crate::pidfile::Pidfile;
use anyhow::{Context, Result, bail, ensure};
use cryonaut_engine::{
    Afterwards, Answer, CgroupOptions, CheckpointOptions, CheckpointReport, Custody, Hook, LAZY_SOCKET, Lazy, Moment,
    PageService, PrecopyMode, PrecopyOptions, RestoreOptions, TcpPolicy,
};
use cryonaut_image::{ImageDir, dedup};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// `criu dump`.
///
/// # Errors
/// What the options lack, and those of the engine. The tree goes on.
pub fn dump(settings: Settings, place: &Place, hook: Hook) -> Result<()> {
    let pid = settings.tree.context("the option --tree is missing: which process is to be dumped?")?;
    place.check()?;
    let auto_dedup = settings.auto_dedup;
    let lazy_pages = if settings.lazy_pages { Some(Arc::new(page_service(&settings)?)) } else { None };
    let (hook, status) = match &lazy_pages {
        // Who fetches the memory waits for that.
        Some(_) => (hook.and(when_ready(settings.status_fd.clone())), None),
        None => (hook, settings.status_fd.clone()),
    };
    let mut options = CheckpointOptions {
        page_server: if settings.lazy_pages { None } else { page_server::sender(&settings)? },
        lazy_pages,
        cgroups: cgroups(&settings, place),
        afterwards: match (settings.leave_running, settings.leave_stopped) {
            (true, _) => Afterwards::LeaveRunning,
            (_, true) => Afterwards::LeaveStopped,
            _ => Afterwards::Kill,
        },
        file_locks: settings.file_locks,
        shell_job: settings.shell_job,
        link_remap: settings.link_remap,
        ghost_limit: settings.ghost_limit,
        tcp: match (settings.tcp_established, settings.tcp_close) {
            (_, true) => TcpPolicy::Close,
            (true, _) => TcpPolicy::Keep,
            _ => TcpPolicy::Refuse,
        }
        .into(),
        skip_in_flight: settings.skip_in_flight,
        network_lock: settings.network_lock,
        external: settings.external,
        skip_mounts: settings.skip_mounts,
        empty_network: settings.empty_network,
        ext_unix_sockets: settings.ext_unix_sockets,
        orphan_terminals: settings.orphan_terminals,
        parent: settings.prev_images_dir,
        keep_tracking: settings.track_mem,
        precopy: PrecopyOptions { mode: PrecopyMode::Auto, ..PrecopyOptions::default() },
        hook,
        ..CheckpointOptions::default()
    };
    if let Some(seconds) = settings.timeout {
        options.timeout = limit(seconds);
    }
    let report = cryonaut_engine::checkpoint(pid, &place.images, &options)?;
    if auto_dedup {
        // The tree has ended, and its image is a good one.
        let image = ImageDir::open(&place.images)?;
        match dedup::dedup(&image) {
            Ok(done) => tracing::info!("{} pages of its parents are holes now", done.pages),
            Err(error) => tracing::warn!("parents keep what is newer now: {error}"),
        }
    }
    tell_dumped(&report, place, settings.display_stats, status)?;
    tracing::info!("Dumping finished successfully");
    Ok(())
}

/// Where whoever restores a dump fetches its memory.
fn page_service(settings: &Settings) -> Result<PageService> {
    let goes_on = if settings.leave_running { "--leave-running" } else { "--leave-stopped" };
    ensure!(
        !settings.leave_running && !settings.leave_stopped,
        "--lazy-pages hands the tree over to whoever restores it: {goes_on} cannot be had as well"
    );
    Ok(PageService::new(page_server::lazy_listener(settings)?, settings.tls.options()))
}

/// Tells who waits at the descriptor that the pages may be fetched.
fn when_ready(status: Option<PathBuf>) -> Hook {
    Hook::new(move |event| {
        if event.moment == Moment::StatusReady {
            page_server::tell_ready_at(status.as_deref()).map_err(|error| format!("{error:#}"))?;
        }
        Ok(Answer::default())
    })
}

/// `criu pre-dump`.
///
/// # Errors
/// What the options lack, and those of the engine. The tree goes on in any case.
pub fn pre_dump(settings: Settings, place: &Place, hook: Hook) -> Result<()> {
    let pid = settings.tree.context("the option --tree is missing: which process is to be dumped?")?;
    place.check()?;
    let mut options = CheckpointOptions {
        afterwards: Afterwards::LeaveRunning,
        page_server: page_server::sender(&settings)?,
        parent: settings.prev_images_dir,
        external: settings.external,
        hook,
        ..CheckpointOptions::default()
    };
    if let Some(seconds) = settings.timeout {
        options.timeout = limit(seconds);
    }
    let report = cryonaut_engine::pre_dump(pid, &place.images, &options)?;
    tell_dumped(&report, place, settings.display_stats, settings.status_fd)?;
    tracing::info!("Pre-dumping finished successfully");
    Ok(())
}

/// Leaves the statistics of a dump beside its image, shows them if that `is_wanted`, and says that it is over.
fn tell_dumped(report: &CheckpointReport, place: &Place, is_wanted: bool, status: Option<PathBuf>) -> Result<()> {
    let stats = stats::of_dump(report);
    cryonaut_image::stats::write_dump_stats(&place.work, stats).map_err(cryonaut_engine::Error::from)?;
    if is_wanted {
        print!("{}", stats::show_dump(&stats));
    }
    tell_ready(status)
}

/// `criu restore`, until the tree runs. Gives the pid of its root.
///
/// # Errors
/// Those of the engine. Nothing of the tree is left.
pub fn restore(settings: Settings, place: &Place, hook: Hook, custody: Option<Custody>) -> Result<i32> {
    place.check()?;
    let lazy = match settings.lazy_pages {
        true => Lazy::Server(place.work.join(LAZY_SOCKET)),
        false => Lazy::No,
    };
    let options = RestoreOptions {
        lazy,
        cgroups: cgroups(&settings, place),
        shell_job: settings.shell_job,
        leave_stopped: settings.leave_stopped,
        sibling: settings.sibling,
        inherit_fds: settings.inherit_fds,
        external: settings.external,
        empty_network: settings.empty_network,
        join: settings.join,
        orphan_terminals: settings.orphan_terminals,
        file_locks: settings.file_locks,
        tcp: if settings.tcp_close { TcpPolicy::Close } else { TcpPolicy::Keep }.into(),
        network_lock: settings.network_lock,
        root: settings.root,
        hook,
        custody,
        ..RestoreOptions::default()
    };
    let pidfile = Pidfile::claim(settings.pidfile.map(|file| place.work.join(file)))?;
    let report = cryonaut_engine::restore(&place.images, &options)?;
    if settings.auto_dedup {
        // What runs now needs its image no more; criu(8) promises that it is used up.
        match ImageDir::open(&place.images).and_then(|image| dedup::take_out_all(&image)) {
            Ok(done) => tracing::info!("{} pages of the image are holes now", done.pages),
            Err(error) => tracing::warn!("the image keeps its pages: {error}"),
        }
    }
    pidfile.write(report.root_pid)?;
    let stats = stats::of_restore(&report);
    cryonaut_image::stats::write_restore_stats(&place.work, stats).map_err(cryonaut_engine::Error::from)?;
    if settings.display_stats {
        print!("{}", stats::show_restore(&stats));
    }
    tell_ready(settings.status_fd)?;
    tracing::info!("Restore finished successfully. Tasks resumed.");
    Ok(report.root_pid)
}

/// `criu dedup`: makes holes in the image's parents for the pages that it has itself.
///
/// # Errors
/// Those of the images; that there is no parent.
pub fn dedup(place: &Place) -> Result<()> {
    place.check()?;
    let image = ImageDir::open(&place.images)?;
    ensure!(image.parent()?.is_some(), "{}: it has no parent that could be deduplicated", place.images.display());
    let done = dedup::dedup(&image)?;
    tracing::info!("Deduplicated: {} pages of its parents are holes now", done.pages);
    Ok(())
}

/// `criu check`, of one feature or of all that nothing works without.
///
/// # Errors
/// That it is not there, or not known.
pub fn check(feature: Option<&str>) -> Result<()> {
    let Some(name) = feature else {
        let found = features::probe_all().context("the kernel does not tell what it can do")?;
        if let Some(name) = found.lacking().next() {
            bail!("this kernel lacks {name}, without which nothing works");
        }
        return Ok(());
    };
    match features::criu_feature(name) {
        CriuAnswer::Present => Ok(()),
        CriuAnswer::Absent => bail!("{name}: this kernel does not have it"),
        CriuAnswer::NotInThisBuild => bail!("{name}: not in this build"),
        CriuAnswer::Unknown => bail!("{name}: no such feature"),
    }
}

/// A yard is looked for from the working directory, as CRIU does, which goes there.
fn cgroups(settings: &Settings, place: &Place) -> CgroupOptions {
    let yard = settings.cgroups.yard.as_ref().map(|yard| place.work.join(yard));
    CgroupOptions { yard, ..settings.cgroups.clone() }
}

/// As long as a caller can mean by it; 0 is no limit.
fn limit(seconds: u64) -> Duration {
    const DAY: u64 = 86_400;
    Duration::from_secs(if seconds == 0 { DAY } else { seconds.min(DAY) })
}

/// One zero byte to what the caller waits on; it is closed when we end.
pub fn tell_ready(status: Option<impl AsRef<Path>>) -> Result<()> {
    let Some(status) = status else { return Ok(()) };
    let status = status.as_ref();
    let told = File::options().write(true).open(status).and_then(|mut file| file.write_all(&[0]));
    told.with_context(|| format!("--status-fd: {} cannot be written to", status.display()))
}
