//! What a network namespace may have that is not carried: found before anything is changed, and refused by name.

use super::link::{self, ifla};
use super::talk::{failed, object};
use crate::{Error, Object, Result};
use cryonaut_kernel::sys::conversation::{Conversation, Message, Refusal, number, text, within};
use rustix::io::Errno;
use rustix::net::netlink;

/// Refuses what is there, in the namespace in which the calling thread is.
pub fn refuse(talk: &mut Conversation, id: u32) -> Result<()> {
    refuse_queues(talk, id)?;
    refuse_routes(talk, id)?;
    refuse_vlans(talk, id)?;
    refuse_ipsec(id)
}

/// All that the kernel tells; nothing of what it does not have.
fn dump(talk: &mut Conversation, request: &Message, what: &str, id: u32) -> Result<Vec<Message>> {
    match talk.dump(request) {
        Ok(all) => Ok(all),
        Err(Refusal {
            errno: Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PFNOSUPPORT | Errno::PROTONOSUPPORT,
            ..
        }) => Ok(Vec::new()),
        Err(refusal) => Err(failed(object(id), format!("ask for its {what}"), refusal)),
    }
}

fn refused(id: u32, what: &str) -> Error {
    Error::unsupported(
        Object::Other(format!("network namespace {id}")),
        format!("there is {what}, which cannot be carried"),
        "delete it before the checkpoint, or leave the namespace to the caller with --external net[...]",
    )
}

/// Queueing disciplines that somebody has set (tc(8)).
fn refuse_queues(talk: &mut Conversation, id: u32) -> Result<()> {
    const GET: u16 = 38;
    const NEW: u16 = 36;
    const HEADER: usize = 20;
    const KIND: u16 = 1;
    let all = dump(talk, &Message::new(GET, 0, &[0; HEADER]), "queueing disciplines", id)?;
    let handle = |message: &Message| message.body().get(8..12).and_then(number);
    match all.iter().find(|m| m.kind() == NEW && handle(m).is_some_and(|handle| handle != 0)) {
        None => Ok(()),
        Some(set) => {
            let kind = set.attribute(HEADER, KIND).map(text).unwrap_or_default();
            Err(refused(id, &format!("a device with the queueing discipline {kind} (tc)")))
        }
    }
}

/// Routes of families that no table of ours has.
fn refuse_routes(talk: &mut Conversation, id: u32) -> Result<()> {
    const GET: u16 = 26;
    const NEW: u16 = 24;
    const HEADER: usize = 12;
    // RTNL_FAMILY_IPMR and its like for IPv6 (linux/rtnetlink.h); AF_MPLS.
    let families = [(128, "a multicast route"), (129, "a multicast route of IPv6"), (28, "a route of MPLS")];
    for (family, what) in families {
        let mut header = [0; HEADER];
        header[0] = family;
        // A kernel without the family tells of all others in its place.
        let all = dump(talk, &Message::new(GET, 0, &header), "routes", id)?;
        if all.iter().any(|m| m.kind() == NEW && m.body().first() == Some(&family)) {
            return Err(refused(id, what));
        }
    }
    Ok(())
}

/// VLANs of ports of bridges other than the one that every port is in from the beginning.
fn refuse_vlans(talk: &mut Conversation, id: u32) -> Result<()> {
    /// RTEXT_FILTER_BRVLAN (linux/rtnetlink.h).
    const VLANS: u32 = 1 << 1;
    const VLAN_INFO: u16 = 2;
    /// BRIDGE_VLAN_INFO_PVID, BRIDGE_VLAN_INFO_UNTAGGED.
    const FROM_THE_BEGINNING: u16 = 2 | 4;
    /// IFLA_BR_VLAN_DEFAULT_PVID, which a kernel without VLANs of bridges does not tell.
    const DEFAULT_PVID: u16 = 39;
    let bridges: Vec<(u32, u16)> = link::all(talk, id)?
        .iter()
        .filter(|link| link::kind(link) == "bridge")
        .map(|bridge| (link::index(bridge), short(link::data(bridge, DEFAULT_PVID)).unwrap_or(0)))
        .collect();
    if bridges.is_empty() {
        return Ok(());
    }
    let mut header = [0; link::HEADER];
    header[0] = libc::AF_BRIDGE as u8;
    let mut request = Message::new(link::GET, 0, &header);
    request.add_number(ifla::EXT_MASK, VLANS);
    for port in dump(talk, &request, "ports of bridges", id)? {
        let master = port.attribute(link::HEADER, ifla::MASTER).and_then(number).unwrap_or(link::index(&port));
        let Some((_, default)) = bridges.iter().find(|(bridge, _)| *bridge == master) else { continue };
        let Some(vlans) = port.attribute(link::HEADER, ifla::AF_SPEC) else { continue };
        let told = within(vlans).filter(|(kind, _)| *kind == VLAN_INFO);
        let all: Vec<_> = told.map(|(_, one)| (short(Some(one)), short(one.get(2..)))).collect();
        let usual = match default {
            0 => all.is_empty(),
            vlan => all == [(Some(FROM_THE_BEGINNING), Some(*vlan))],
        };
        if !usual {
            let what = format!("a VLAN of the bridge's port {}", link::name(&port));
            return Err(refused(id, &what));
        }
    }
    Ok(())
}

fn short(bytes: Option<&[u8]>) -> Option<u16> {
    bytes?.first_chunk::<2>().map(|two| u16::from_ne_bytes(*two))
}

/// Policies and states of IPsec.
fn refuse_ipsec(id: u32) -> Result<()> {
    // XFRM_MSG_GETPOLICY with a struct xfrm_userpolicy_id, XFRM_MSG_GETSA with a struct xfrm_usersa_id (linux/xfrm.h),
    // and the messages that tell of one.
    let kinds = [(0x15, 64, 0x13, "policy"), (0x12, 24, 0x10, "state")];
    let mut talk = match Conversation::begin(Some(netlink::XFRM)) {
        // A kernel without.
        Err(Errno::PROTONOSUPPORT) => return Ok(()),
        talk => talk.map_err(|e| failed(object(id), "speak with its IPsec", e.into()))?,
    };
    for (get, fixed, new, what) in kinds {
        let all = dump(&mut talk, &Message::new(get, 0, &vec![0; fixed]), "policies of IPsec", id)?;
        if all.iter().any(|message| message.kind() == new) {
            return Err(refused(id, &format!("a {what} of IPsec")));
        }
    }
    Ok(())
}
