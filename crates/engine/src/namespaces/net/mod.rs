//! Network namespaces (network_namespaces(7)): devices, addresses, routes, rules, neighbours, settings, rules of
//! netfilter. Everything is asked and made over netlink by a thread that is there; no program is run.
//!
//! A process of the tree that is born into a new one only makes it; when all are there they are filled together
//! ([`fill`]), since a pair of devices may lead from one to another. One that the caller has named (`--external
//! net[INODE]:KEY`) is entered at the restore by the descriptor of that key (`--inherit-fd`) and not touched. That of the
//! root may come back empty (`--empty-ns net`), which runtimes always ask for: it is the caller's to fill, but its loopback
//! device is up again if it was. Of others in the tree the caller knows nothing.
//!
//! A namespace may belong to a socket alone: it is recorded when the socket is found ([`dump_found`]).

mod build;
mod contents;
mod left_out;
mod link;
mod link_build;
mod netfilter;
mod sysctl;
mod table;
pub mod talk;
pub mod tracked;
pub mod tun;
mod words;

use super::{Building, Dumping, Halves, Own, Owned, inherited, join, joined};
use crate::freeze::Process;
use crate::{CheckpointOptions, RestoreOptions, Result};
use build::Unfilled;
use contents::Contents;
use cryonaut_image::records::{CoreEntry, NdType, NetnsEntry, NetnsId, PstreeEntry, TaskKobjIdsEntry, TunLinkEntry};
use cryonaut_image::{DumpDir, ImageDir, ImageKind};
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::conversation::{Conversation, Message, number};
use cryonaut_kernel::sys::namespace::{self, visit_network};
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Batch, Hand};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub const HALVES: Halves = Halves { dump, build: enter, at_birth: false };

/// What a caller has said of network namespaces and their devices, `--external` without its name in front.
#[derive(Debug, Clone, Copy)]
pub struct External<'a>(&'a [String]);

impl<'a> External<'a> {
    /// From the options of a checkpoint or a restore.
    pub fn of(all: &'a [String]) -> External<'a> {
        External(all)
    }

    /// What stands behind `KIND[NAME]:`, or an empty string for `KIND[NAME]`.
    fn value(self, kind: &str, name: &str) -> Option<&'a str> {
        let of = |one: &'a String| {
            let rest = one.strip_prefix(kind)?.strip_prefix('[')?.strip_prefix(name)?.strip_prefix(']')?;
            if rest.is_empty() { Some("") } else { rest.strip_prefix(':') }
        };
        self.0.iter().find_map(of)
    }

    /// The key of a namespace, `net[INODE]:KEY`.
    fn namespace(self, inode: u64) -> Option<&'a str> {
        self.value("net", &inode.to_string()).filter(|key| !key.is_empty())
    }

    /// The device of ours that takes the place of one, `netdev[NAME]:OURS`.
    pub fn device(self, name: &str) -> Option<&'a str> {
        self.value("netdev", name).filter(|ours| !ours.is_empty())
    }

    /// The device of ours above which one is, `macvlan[NAME]:OURS`.
    pub fn macvlan(self, name: &str) -> Option<&'a str> {
        self.value("macvlan", name).filter(|ours| !ours.is_empty())
    }

    /// The other end of a pair: its name, and the bridge that it goes into (`veth[NAME]:OTHER@BRIDGE`).
    pub fn veth(self, name: &str) -> Option<(&'a str, Option<&'a str>)> {
        let value = self.value("veth", name).filter(|value| !value.is_empty())?;
        Some(value.split_once('@').map_or((value, None), |(other, bridge)| (other, Some(bridge))))
    }

    /// Devices that will be there at the restore, `netdev[NAME]`.
    fn devices(self) -> Vec<String> {
        let name = |one: &String| Some(one.strip_prefix("netdev[")?.split_once(']')?.0.to_owned());
        self.0.iter().filter_map(name).collect()
    }
}

fn dump(cx: &mut Dumping<'_>, own: &Own) -> Result<()> {
    let is_in_it = |p: &Process| p.ids.and_then(|ids| ids.net_ns_id) == Some(own.id);
    let is_empty = cx.options.empty_network && cx.processes.first().is_some_and(is_in_it);
    write(cx.images, cx.options, own, cx.owned, (is_empty, cx.processes.iter().filter(|p| is_in_it(p))))
}

/// Writes down a namespace that was found by a socket of the tree.
pub fn dump_found(images: &DumpDir, options: &CheckpointOptions, own: &Own, owned: &Owned) -> Result<()> {
    write(images, options, own, owned, (false, std::iter::empty()))
}

/// Whether the caller has named it (`net[INODE]:KEY`): then it is not the tree's alone.
pub fn is_named(external: &[String], own: &Own) -> Result<bool> {
    let inode = namespace::inode(own.file.as_fd()).map_err(own.failed("identify it"))?;
    Ok(External::of(external).namespace(inode).is_some())
}

fn write<'p>(
    images: &DumpDir,
    options: &CheckpointOptions,
    own: &Own,
    owned: &Owned,
    (comes_back_empty, processes): (bool, impl Iterator<Item = &'p Process>),
) -> Result<()> {
    let external = External::of(&options.external);
    let inode = namespace::inode(own.file.as_fd()).map_err(own.failed("identify it"))?;
    let key = external.namespace(inode).map(str::to_owned);
    if key.is_some() || comes_back_empty {
        if key.is_none() {
            let there = visit_network(own.file.as_fd()).map_err(own.failed("enter it"))?;
            let is_up = link_build::loopback_is_up()?;
            drop(there);
            images.write_json(&loopback(own.id), &is_up)?;
        }
        let record = NetnsEntry { ext_key: key, ..NetnsEntry::default() };
        return Ok(images.write_one(ImageKind::Netns, u64::from(own.id), &record)?);
    }
    let tuns = tun::of_files(processes);
    let _there = visit_network(own.file.as_fd()).map_err(own.failed("enter it"))?;
    let nsids = numbers_of_others(own, owned)?;
    let (settings, devices) = (sysctl::read(), external.devices());
    let known = link::Known { id: own.id, settings: &settings, peers: &nsids, tuns: &tuns, external: &devices };
    let record = NetnsEntry { nsids: nsids.clone(), ..NetnsEntry::default() };
    Contents::read(&known, record)?.write(images, own.id)
}

/// Whether the loopback device of a namespace that comes back empty was up: it alone is there, and no caller minds it.
fn loopback(id: u32) -> String {
    format!("loopback-{id}")
}

/// By which numbers the namespace in which we are knows the others of the tree.
fn numbers_of_others(own: &Own, owned: &Owned) -> Result<Vec<NetnsId>> {
    const GET: u16 = 90;
    const NSID: u16 = 1;
    const FD: u16 = 3;
    let object = || talk::object(own.id);
    let begin = Conversation::about_routes();
    let mut talk = begin.map_err(|e| talk::failed(object(), "speak with rtnetlink", e.into()))?;
    let mut all = Vec::new();
    for other in owned.iter().filter(|other| other.kind.kind == Namespace::Net && other.id != own.id) {
        let mut request = Message::new(GET, 0, &[0; 4]);
        request.add_number(FD, other.file.as_raw_fd() as u32);
        let told = talk.question(&request).map_err(|e| talk::failed(object(), "ask how it numbers others", e))?;
        let nsid = told.first().and_then(|told| told.attribute(4, NSID)).and_then(number).map_or(-1, |n| n as i32);
        if nsid >= 0 {
            all.push(NetnsId { target_ns_id: other.id, netnsid_value: nsid });
        }
    }
    Ok(all)
}

/// Brings a newborn process into its namespace: that of the caller's, or a new one.
fn enter(cx: &mut Building<'_>, own: &Own) -> Result<()> {
    if let Some(given) = given(cx.images, cx.options, own.id)? {
        return join(cx.hand, cx.service, Namespace::Net, given.as_fd());
    }
    let mut b = Batch::new();
    b.call(libc::SYS_unshare, [libc::CLONE_NEWNET.into()]);
    Ok(cx.hand.run(&mut b)?)
}

/// The namespace of the caller's that takes the place of one.
pub fn given(images: &ImageDir, options: &RestoreOptions, id: u32) -> Result<Option<OwnedFd>> {
    if of_root(images)? == Some(id)
        && let Some(joined) = joined(options, Namespace::Net)?
    {
        return Ok(Some(joined));
    }
    let record: NetnsEntry = images.read_one(ImageKind::Netns, u64::from(id))?;
    let Some(key) = record.ext_key else { return Ok(None) };
    inherited(options, &key, || talk::object(id)).map(Some)
}

/// The network namespace of the root process.
fn of_root(images: &ImageDir) -> Result<Option<u32>> {
    let tree: Vec<PstreeEntry> = images.read_all(ImageKind::Pstree, None)?;
    let Some(root) = tree.first().map(|root| u64::from(root.pid)) else { return Ok(None) };
    let core: CoreEntry = images.read_one(ImageKind::Core, root)?;
    let ids = match core.ids {
        Some(ids) => ids,
        None => images.read_one::<TaskKobjIdsEntry>(ImageKind::Ids, root)?,
    };
    Ok(ids.net_ns_id)
}

/// Network namespaces of a restore, by their numbers in the image.
#[derive(Debug, Default)]
pub struct Networks {
    /// Our own, if there are others.
    home: Option<OwnedFd>,
    tuns: BTreeMap<(u32, String), TunLinkEntry>,
}

impl Networks {
    /// What was recorded of a device of tun, by its namespace and name.
    pub fn tun(&self, network: Option<u32>, name: &str) -> Option<TunLinkEntry> {
        self.tuns.get(&(network?, name.to_owned())).copied()
    }

    /// The namespace in which a socket is to be made; `None` if all are in the one where we are.
    pub fn of<'o>(&'o self, owned: &'o Owned, network: Option<u32>) -> Option<BorrowedFd<'o>> {
        let home = self.home.as_ref()?;
        let own = network.and_then(|id| owned.get(Namespace::Net, id));
        Some(own.map_or(home.as_fd(), |own| own.file.as_fd()))
    }
}

/// Fills all network namespaces of an image when their processes are there; those that have none are made.
pub fn fill(
    images: &ImageDir,
    options: &RestoreOptions,
    owned: &mut Owned,
    surroundings: Option<u32>,
    (hand, service): (&mut Hand, &Service),
) -> Result<Networks> {
    let mut networks = Networks::default();
    let ids: Vec<u32> = images.ids(ImageKind::Netns)?.into_iter().filter_map(|id| id.try_into().ok()).collect();
    for id in ids.iter().filter(|id| Some(**id) != surroundings) {
        if owned.get(Namespace::Net, *id).is_none() {
            let file = make_for_nobody(images, options, *id, hand, service)?;
            owned.add(Own::new(Namespace::Net, *id, hand.pid(), file));
        }
    }
    let (mut unfilled, of_root) = (Vec::new(), of_root(images)?);
    for own in owned.iter().filter(|own| own.kind.kind == Namespace::Net) {
        if given(images, options, own.id)?.is_some() {
            continue;
        }
        if options.empty_network && Some(own.id) == of_root {
            if images.read_json::<bool>(&loopback(own.id))?.unwrap_or_default() {
                let _there = visit_network(own.file.as_fd()).map_err(own.failed("enter it"))?;
                link_build::bring_loopback_up()?;
            }
            continue;
        }
        if let Some(contents) = Contents::load(images, own.id)? {
            for link in contents.links.iter().filter(|link| link.r#type() == NdType::Tun) {
                networks.tuns.extend(link.tun.map(|tun| ((own.id, link.name.clone()), tun)));
            }
            unfilled.push(Unfilled { own, contents });
        }
    }
    build::fill(&unfilled, &External::of(&options.external))?;
    if owned.iter().any(|own| own.kind.kind == Namespace::Net) {
        networks.home = Some(build::home()?);
    }
    Ok(networks)
}

/// A namespace without processes, of the same owner as that of a process.
fn make_for_nobody(
    images: &ImageDir,
    options: &RestoreOptions,
    id: u32,
    hand: &mut Hand,
    service: &Service,
) -> Result<OwnedFd> {
    if let Some(given) = given(images, options, id)? {
        return Ok(given);
    }
    let task = cryonaut_kernel::proc::Task::open(crate::freeze::pid_of(hand.pid())?)?;
    let before = namespace::open(&task, Namespace::Net)?;
    let mut b = Batch::new();
    b.call(libc::SYS_unshare, [libc::CLONE_NEWNET.into()]);
    hand.run(&mut b)?;
    let made = namespace::open(&task, Namespace::Net)?;
    join(hand, service, Namespace::Net, before.as_fd())?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_has_said_is_found_by_name() {
        let all: Vec<String> =
            ["net[4026532253]:extRootNetNS", "veth[eth0]:vethX@br0", "veth[eth1]:vethY", "netdev[wg0]", "netdev[a]:b"]
                .map(str::to_owned)
                .into();
        let external = External::of(&all);
        assert_eq!(external.namespace(4026532253), Some("extRootNetNS"));
        assert_eq!(external.namespace(4026532254), None);
        assert_eq!(external.veth("eth0"), Some(("vethX", Some("br0"))));
        assert_eq!(external.veth("eth1"), Some(("vethY", None)));
        assert_eq!((external.device("a"), external.device("wg0")), (Some("b"), None));
        assert_eq!(external.devices(), ["wg0", "a"]);
    }
}
