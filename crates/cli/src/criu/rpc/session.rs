//! One session: requests, each worked on and answered. After the last answer the program ends by itself; callers wait
//! for that while they still hold the socket.

use super::wire::{Peer, Received, bounded};
use super::{notify, options};
use crate::archive::aside;
use crate::criu::place::{Place, open_directory};
use crate::criu::settings::{self, Settings};
use crate::criu::{CRIU_VERSION, GIT_ID, actions, config, log, page_server, script};
use crate::failure;
use crate::features::{CriuAnswer, criu_feature};
use anyhow::{Context, Error, Result, anyhow, bail};
use cryonaut_engine::{Custody, Hook};
use cryonaut_image::rpc::{
    CriuDumpResp, CriuFeatures, CriuOpts, CriuPageServerInfo, CriuReq, CriuReqType, CriuResp, CriuRestoreResp,
    CriuVersion,
};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// What depends on how we were called.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Whether a restored tree may become our caller's child: not if our caller is the service.
    pub may_be_sibling: bool,
}

/// A request whose options mean nothing or ask for what is not in this build, as opposed to a run that failed.
#[derive(Debug)]
struct BadRequest(String);

impl std::fmt::Display for BadRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadRequest {}

fn bad(problem: impl Into<String>) -> Error {
    BadRequest(problem.into()).into()
}

/// Serves a caller to the end.
pub fn serve(peer: Peer, manner: Manner) -> ExitCode {
    let peer = Arc::new(peer);
    // What he does not hear of is not his, and ends with us.
    let custody = Custody::default();
    loop {
        let (response, more) = match peer.receive() {
            Ok(Received::End) => return ExitCode::SUCCESS,
            Ok(Received::Request(request)) => {
                let response = work_on(&peer, &request, manner, &custody);
                let more = request.keep_open() && may_go_on(request.r#type());
                (response, more)
            }
            Ok(Received::Malformed(problem)) => (failed(CriuReqType::Empty, &bad(problem)), false),
            // Who cannot be heard cannot be told.
            Err(_) => return ExitCode::FAILURE,
        };
        if peer.send(&response, None).is_err() || !response.success {
            return ExitCode::FAILURE;
        }
        if !more {
            custody.release();
            std::process::exit(0);
        }
    }
}

/// Requests after which others may follow in the same session.
fn may_go_on(kind: CriuReqType) -> bool {
    use CriuReqType::{
        Check, CpuinfoCheck, CpuinfoDump, FeatureCheck, PageServer, PageServerChld, PreDump, Version, WaitPid,
    };
    // A series of pre-dumps, and the dump behind them, may be of one session.
    matches!(
        kind,
        PreDump | Version | FeatureCheck | Check | CpuinfoDump | CpuinfoCheck | PageServer | PageServerChld | WaitPid
    )
}

fn work_on(peer: &Arc<Peer>, request: &CriuReq, manner: Manner, custody: &Custody) -> CriuResp {
    let kind = CriuReqType::try_from(request.r#type);
    let done = match kind {
        Ok(kind) => act(peer, kind, request, manner, custody),
        Err(_) => Err(bad(format!("{} is no type of request", request.r#type))),
    };
    let kind = kind.unwrap_or(CriuReqType::Empty);
    done.unwrap_or_else(|error| {
        tracing::error!("{}", failure::line(&error));
        failed(kind, &error)
    })
}

fn act(peer: &Arc<Peer>, kind: CriuReqType, request: &CriuReq, manner: Manner, custody: &Custody) -> Result<CriuResp> {
    let done = CriuResp { r#type: kind as i32, success: true, ..CriuResp::default() };
    match kind {
        CriuReqType::Version => Ok(CriuResp { version: Some(version()), ..done }),
        CriuReqType::FeatureCheck => Ok(CriuResp { features: Some(features(request.features.as_ref())), ..done }),
        CriuReqType::Check => actions::check(None).map(|()| done),
        CriuReqType::WaitPid => Ok(CriuResp { status: Some(wait(request.pid)?), ..done }),
        CriuReqType::Dump => {
            let call = Call::prepare(peer, kind, request.opts.as_ref(), manner)?;
            actions::dump(call.settings, &call.place, call.hook)?;
            // If not, they go the usual way.
            if let Err(e) = aside::set_aside(&call.place.images) {
                tracing::warn!("cannot set the pages aside: {e}");
            }
            Ok(CriuResp { dump: Some(CriuDumpResp { restored: Some(false) }), ..done })
        }
        CriuReqType::Restore => {
            let call = Call::prepare(peer, kind, request.opts.as_ref(), manner)?;
            let pid = actions::restore(call.settings, &call.place, call.hook, Some(custody.clone()))?;
            Ok(CriuResp { restore: Some(CriuRestoreResp { pid }), ..done })
        }
        CriuReqType::PreDump | CriuReqType::SinglePreDump => {
            let call = Call::prepare(peer, kind, request.opts.as_ref(), manner)?;
            actions::pre_dump(call.settings, &call.place, call.hook)?;
            Ok(done)
        }
        CriuReqType::PageServer | CriuReqType::PageServerChld => {
            let call = Call::prepare(peer, kind, request.opts.as_ref(), manner)?;
            let (server, port) = page_server::start(&call.settings, &call.place)?;
            let ps = CriuPageServerInfo {
                pid: Some(server.id() as i32),
                port: Some(i32::from(port)),
                ..CriuPageServerInfo::default()
            };
            // Callers expect this type for both.
            Ok(CriuResp { r#type: CriuReqType::PageServer as i32, ps: Some(ps), ..done })
        }
        CriuReqType::CpuinfoDump | CriuReqType::CpuinfoCheck => lacking(kind, "comparing processors"),
        CriuReqType::Notify => Err(bad("a NOTIFY acknowledges a notification, and there was none")),
        CriuReqType::Empty => Err(bad("the request is empty")),
    }
}

fn lacking(kind: CriuReqType, what: &str) -> Result<CriuResp> {
    Err(bad(format!("{} is not in this build, which lacks {what}", short_name(kind))))
}

fn short_name(kind: CriuReqType) -> &'static str {
    let name = kind.as_str_name();
    name.strip_prefix("CRIU_REQ_TYPE_").unwrap_or(name)
}

fn failed(kind: CriuReqType, error: &Error) -> CriuResp {
    CriuResp {
        r#type: kind as i32,
        success: false,
        dump: (kind == CriuReqType::Dump).then_some(CriuDumpResp { restored: Some(false) }),
        restore: (kind == CriuReqType::Restore).then_some(CriuRestoreResp { pid: -1 }),
        cr_errno: errno(error),
        cr_errmsg: Some(bounded(failure::line(error))),
        ..CriuResp::default()
    }
}

fn errno(error: &Error) -> Option<i32> {
    if error.is::<BadRequest>() {
        return Some(Errno::BADRQC.raw_os_error());
    }
    let engine = error.downcast_ref::<cryonaut_engine::Error>().and_then(cryonaut_engine::Error::errno);
    let errno = engine.or_else(|| error.chain().find_map(|cause| cause.downcast_ref::<Errno>().copied()));
    errno.map(Errno::raw_os_error)
}

fn version() -> CriuVersion {
    let (major_number, minor_number) = CRIU_VERSION;
    CriuVersion { major_number, minor_number, gitid: Some(GIT_ID.into()), ..CriuVersion::default() }
}

/// Of what is asked for, what there is; false for what is not asked for.
fn features(asked: Option<&CriuFeatures>) -> CriuFeatures {
    let answer =
        |asked: Option<bool>, name: &str| Some(asked.unwrap_or_default() && criu_feature(name) == CriuAnswer::Present);
    let asked = asked.copied().unwrap_or_default();
    CriuFeatures {
        mem_track: answer(asked.mem_track, "mem_dirty_track"),
        lazy_pages: answer(asked.lazy_pages, "uffd-noncoop"),
        pidfd_store: answer(asked.pidfd_store, "pidfd_store"),
    }
}

/// How a child of ours has ended, as wait(2) puts it.
fn wait(pid: Option<u32>) -> Result<i32> {
    let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).ok_or_else(|| bad("pid is missing"))?;
    let waited = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
    let (_, status) = waited
        .with_context(|| format!("process {}: cannot wait for it to end", pid.as_raw_nonzero()))?
        .context("waitpid returned without a child")?;
    Ok(status.as_raw())
}

/// A run that has been asked for, ready to begin: its log is open.
struct Call {
    settings: Settings,
    place: Place,
    hook: Hook,
}

impl Call {
    fn prepare(peer: &Arc<Peer>, kind: CriuReqType, opts: Option<&CriuOpts>, manner: Manner) -> Result<Call> {
        let opts = opts.ok_or_else(|| bad(format!("{} needs options", short_name(kind))))?;
        let arguments = options::arguments(kind, opts);
        let last = opts.config_file.as_deref().filter(|path| !path.is_empty()).map(Path::new);
        let (mut settings, outcome) =
            settings::read_request(arguments.as_deref().unwrap_or_default(), &config::default_files(), last);
        let place = place(peer, opts).map_err(|error| bad(format!("{error:#}")))?;
        start_log(&settings, &place, opts).map_err(|error| bad(format!("{error:#}")))?;
        arguments.map(drop).and(outcome).map_err(bad)?;
        if let Some(refused) = settings.refused.first() {
            return Err(bad(refused.clone()));
        }
        if settings.sibling && !manner.may_be_sibling {
            return Err(bad("rst_sibling: who is served by the service is not its parent"));
        }
        if kind == CriuReqType::Dump {
            let pid = settings.tree.ok_or_else(|| bad("pid is missing: which process is to be dumped?"))?;
            // Callers know the error by its number.
            if !Path::new(&format!("/proc/{pid}")).exists() {
                return Err(Error::from(Errno::SRCH).context(format!("process {pid}: cannot be dumped")));
            }
        }
        if kind == CriuReqType::Restore {
            settings.cgroups.beside = Some(peer.pid());
        }
        if let Some(number) = opts.status_fd.filter(|number| *number >= 0) {
            settings.status_fd = Some(peer.file(number));
        }
        std::env::set_current_dir(&place.work).with_context(|| format!("{}: cannot go there", place.work.display()))?;
        let scripts = script::hook(settings.scripts.clone(), place.absolute_images()?);
        let told = if opts.notify_scripts() { notify::hook(Arc::clone(peer)) } else { Hook::default() };
        Ok(Call { settings, place, hook: scripts.and(told) })
    }
}

/// The directories that the caller has open, or names.
fn place(peer: &Peer, opts: &CriuOpts) -> Result<Place> {
    let images = match (opts.images_dir_fd, opts.images_dir.as_deref()) {
        (number @ 0.., _) => open_directory(&peer.file(number)).context("images_dir_fd")?,
        (_, Some(path)) => open_directory(Path::new(path)).context("images_dir")?,
        _ => bail!("neither images_dir_fd nor images_dir says where the images are"),
    };
    let work = opts.work_dir_fd.filter(|number| *number >= 0);
    let work = work.map(|number| open_directory(&peer.file(number)).context("work_dir_fd")).transpose()?;
    Place::of_opened(images, work)
}

fn start_log(settings: &Settings, place: &Place, opts: &CriuOpts) -> Result<()> {
    const UNNAMED: &str = "criu.log";
    let name = settings.log_file.as_deref().unwrap_or(Path::new(UNNAMED));
    let path = place.work.join(name);
    let to_stderr = opts.log_to_stderr() && settings.log_file.is_none();
    let verbosity = settings.verbosity.unwrap_or(settings::DEFAULT_VERBOSITY);
    log::start((!to_stderr).then_some(path.as_path()), verbosity)
        .map_err(|error| anyhow!("{}: cannot be made: {error}", path.display()))
}
