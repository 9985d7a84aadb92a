//! A tree that stands still for a checkpoint: from the freeze until it goes on or ends.

use super::refusals::refuse;
use super::timed;
use crate::caller::{Event, ToldToLock};
use crate::cgroups::Thawed;
use crate::files::socket::{Held, Peers};
use crate::freeze::{Frozen, pid_of};
use crate::namespaces::{Owned, inner, net, user};
use crate::network_lock::{NetworkLock, NetworkLocks, Reach};
use crate::options::Afterwards;
use crate::report::{CheckpointReport, micros};
use crate::sharing::Sharing;
use crate::tcp_policy::TcpPolicy;
use crate::{CheckpointOptions, Error, Moment, Object, Result};
use cryonaut_image::records::TaskKobjIdsEntry;
use cryonaut_image::{DumpDir, Remains};
use cryonaut_kernel::guard::Undertaker;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace::visit_network;
use rustix::process::PidfdFlags;
use std::os::fd::AsFd;
use std::time::Instant;

/// The tree, and what was changed around it. Dropped, all of it is as it was, in the order of the fields: the network is let
/// go before the tree, and the freezer closes behind it, for hands could not go home in it.
#[derive(Debug)]
pub(super) struct Standing<'h> {
    /// The packets of its connections are dropped.
    pub network: NetworkLocks,
    /// The namespaces that it has for itself.
    pub owned: Owned,
    told: ToldToLock<'h>,
    /// Its processes, all entered.
    pub frozen: Frozen,
    thawed: Option<Thawed>,
    /// The moment at which all of it stood still.
    since: Instant,
}

impl<'h> Standing<'h> {
    /// Freezes the tree below `pid` and enters it; what cannot be carried is refused in between. With it come the options
    /// with what the caller adds when he is asked, if that is anything. `own` are the numbers of our own namespaces.
    pub fn freeze(
        pid: i32,
        images: &DumpDir,
        options: &'h CheckpointOptions,
        (sharing, own): (&mut Sharing, &TaskKobjIdsEntry),
        has_sockets: bool,
        report: &mut CheckpointReport,
    ) -> Result<(Self, Option<CheckpointOptions>)> {
        let freezing = Instant::now();
        let thawed = options.cgroups.freezer.as_deref().map(Thawed::closed).transpose()?.flatten();
        let mut frozen = Frozen::freeze(pid, options.timeout, thawed.as_ref())?;
        let since = Instant::now();
        for process in frozen.processes.iter_mut().filter(|p| !p.is_zombie()) {
            process.ids = Some(sharing.ids(process)?);
        }
        refuse(&frozen, own, options)?.write(images)?;
        user::take_note(&frozen.processes, own)?;
        let told = tell_of_network(&frozen, own, options)?;
        let extended = with_answers(&frozen, options)?;
        let options = extended.as_ref().unwrap_or(options);
        // Before anything is asked of a socket.
        let owned = Owned::find(&frozen.processes, own, options)?;
        let network = lock_network(&frozen, &owned, options, has_sockets)?;
        let entering = Instant::now();
        frozen.enter_all()?;
        if options.afterwards == Afterwards::Kill {
            frozen.make_verdict()?;
        }
        (report.freeze_us, report.enter_us) = (micros(since - freezing), micros(entering.elapsed()));
        Ok((Standing { network, owned, told, frozen, thawed, since }, extended))
    }

    /// Lets the tree go on.
    pub fn go_on(self, report: &mut CheckpointReport) -> Result<()> {
        self.network.lift()?;
        self.told.unlock()?;
        let (frozen, thawed) = (self.frozen, self.thawed);
        ((), report.end_us) = timed(|| release(frozen, thawed))?;
        report.frozen_us = micros(self.since.elapsed());
        Ok(())
    }

    /// Ends the tree, whose image is complete, and behind it the last descriptors of its `connections`. What remains of an
    /// older image is cleared away when nobody waits for that.
    pub fn end(
        mut self,
        connections: Held,
        remains: Remains,
        mut report: CheckpointReport,
    ) -> Result<CheckpointReport> {
        let root = self.frozen.processes[0].pid;
        self.told.keep();
        if let Some(thawed) = self.thawed {
            thawed.end();
        }
        if let Some(outer) = inner::outer().filter(|_| root == inner::INIT) {
            drop(remains);
            report.frozen_us = micros(self.since.elapsed());
            return outer.end_tree(self.frozen, &connections, self.network, report);
        }
        let undertakers = undertakers(root, &mut self.network, &connections)?;
        // Who is told to end is no longer frozen.
        report.frozen_us = micros(self.since.elapsed());
        ((), report.end_us) = timed(|| self.frozen.kill())?;
        // We hold the last descriptors of them.
        connections.silence();
        drop(undertakers);
        connections.close();
        self.network.keep();
        Ok(report)
    }
}

/// Lets the tree go on, in the freezer in which it was.
fn release(frozen: Frozen, thawed: Option<Thawed>) -> Result<()> {
    let Some(thawed) = thawed else { return frozen.release() };
    frozen.release()?;
    thawed.close()?.wait();
    Ok(())
}

/// Tells the caller of a network namespace that the tree has for itself.
fn tell_of_network<'h>(
    frozen: &Frozen,
    own: &TaskKobjIdsEntry,
    options: &'h CheckpointOptions,
) -> Result<ToldToLock<'h>> {
    let root = &frozen.processes[0];
    let is_its_own = root.ids.as_ref().is_some_and(|ids| ids.net_ns_id != own.net_ns_id);
    ToldToLock::new(&options.hook, root.pid, is_its_own)
}

/// The options with what the caller adds when asked; `None` if that is nothing.
fn with_answers(frozen: &Frozen, options: &CheckpointOptions) -> Result<Option<CheckpointOptions>> {
    let event = Event { moment: Moment::QueryExtFiles, root_pid: frozen.processes[0].pid, terminal: None };
    let more = options.hook.ask(&event)?.external;
    Ok((!more.is_empty()).then(|| {
        let mut extended = options.clone();
        extended.external.extend(more);
        extended
    }))
}

/// The network locks: for connections in our network namespace, if they are to be carried and there are any; and for
/// every network namespace of the tree's with sockets in it.
fn lock_network(
    frozen: &Frozen,
    owned: &Owned,
    options: &CheckpointOptions,
    has_sockets: bool,
) -> Result<NetworkLocks> {
    let mut locks = NetworkLocks::default();
    let peers = || -> Result<Peers> {
        if !options.tcp.may_keep() {
            return Ok(Peers::default());
        }
        let living = frozen.processes.iter().filter(|p| !p.is_zombie());
        let living = living.map(|p| (p.pid, p.speaker()));
        let mut peers = Peers::of_tree(living, !options.skip_in_flight, has_sockets)?;
        peers.0.retain(|one| options.tcp.of(one.peer) == TcpPolicy::Keep);
        Ok(peers)
    };
    locks.add(NetworkLock::set(options.network_lock, &peers()?)?);
    for own in owned.iter().filter(|own| own.kind.kind == Namespace::Net) {
        let there = visit_network(own.file.as_fd()).map_err(own.failed("enter it"))?;
        let is_empty = Task::current_thread()?.inet_sockets().is_ok_and(|sockets| sockets == 0);
        let peers = if is_empty { Peers::default() } else { peers()? };
        drop(there);
        let reach = match is_empty {
            true => Reach::Nothing,
            false if net::is_named(&options.external, own)? => Reach::Connections,
            false => Reach::Everything,
        };
        let lock = NetworkLock::set_there(options.network_lock, own, locks.run_id(), (&peers, reach))?;
        locks.add(lock);
    }
    Ok(locks)
}

/// Who sees to it that no peer hears of the end of the tree, should we be killed in it.
fn undertakers(root: i32, network: &mut NetworkLocks, connections: &Held) -> Result<Vec<Undertaker>> {
    let root = rustix::process::pidfd_open(pid_of(root)?, PidfdFlags::empty())
        .map_err(|e| Error::kernel(Object::Process(root), "watch it", e))?;
    network.see_to_the_end(&root, connections)
}
