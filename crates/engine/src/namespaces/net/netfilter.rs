//! Rules of netfilter in a network namespace: tables of nftables, message by message as the kernel tells and takes them
//! (those of iptables-nft among them), and the older tables of iptables and ip6tables.
//!
//! CRIU's images have the text of nft(8) and of iptables-save(8), which those programs write and read. Ours have what the
//! kernel has said (`cryonaut-network-ID.json`), so that nothing has to understand it.

use super::talk::{Kept, failed, object};
use crate::hexadecimal;
use crate::{Error, Result};
use cryonaut_kernel::sys::conversation::{APPEND, CREATE, Conversation, Message, NESTED, Refusal, TYPE, text, within};
use cryonaut_kernel::sys::xtables::{self, Family, Table};
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `struct nfgenmsg`.
const HEADER: usize = 4;
/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
const NAME: u16 = 1;
const SECOND: u16 = 2;
/// What locks of CRIU's and of ours are called.
const LOCK: &str = "CRIU-";

/// All that is filtered.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Firewall {
    /// What makes the tables of nftables, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nftables: Vec<Kept>,
    /// The older tables, of IPv4 and IPv6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    iptables: Vec<Older>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ip6tables: Vec<Older>,
}

/// A table of iptables.
#[derive(Debug, Serialize, Deserialize)]
struct Older {
    name: String,
    hooks: [u32; 11],
    count: u32,
    entries: String,
}

/// A kind of what tables of nftables have.
struct Part {
    name: &'static str,
    /// `NFT_MSG_NEW*`; the next asks for all.
    new: u16,
    /// Attributes that are the kernel's own: handles, uses, positions.
    own: &'static [u16],
}

/// In the order in which they need each other.
const PARTS: [Part; 6] = [
    Part { name: "tables", new: 0, own: &[3, 4] },
    Part { name: "chains", new: 3, own: &[2, 6, 11] },
    Part { name: "objects", new: 18, own: &[5, 6] },
    Part { name: "flow tables", new: 22, own: &[4, 5] },
    Part { name: "sets", new: 9, own: &[10, 16, 19, 20] },
    Part { name: "rules", new: 6, own: &[3, 6] },
];
const NEW_ELEMENTS: u16 = 12;

/// Of the calling thread's network namespace.
pub fn read(id: u32) -> Result<Firewall> {
    let older = |family| -> Result<Vec<Older>> {
        let all = xtables::tables(family);
        let all = all.map_err(|e| failed(object(id), "read its tables of iptables", e.into()))?;
        let one = |table: Table| {
            let Table { name, hooks, count, entries } = table;
            Older { name, hooks, count, entries: hexadecimal::encode(&entries) }
        };
        Ok(all.into_iter().map(one).collect())
    };
    Ok(Firewall { nftables: read_nftables(id)?, iptables: older(Family::V4)?, ip6tables: older(Family::V6)? })
}

fn read_nftables(id: u32) -> Result<Vec<Kept>> {
    let begin = Conversation::begin(Some(NETFILTER));
    let mut talk = match begin {
        Err(Errno::PROTONOSUPPORT) => return Ok(Vec::new()),
        begun => begun.map_err(|e| failed(object(id), "speak with netfilter", e.into()))?,
    };
    let mut all: Vec<Message> = Vec::new();
    for part in &PARTS {
        let request = Message::new(NFTABLES << 8 | (part.new + 1), 0, &[0; HEADER]);
        let told = match talk.dump(&request) {
            // A kernel without nf_tables.
            Err(Refusal { errno: Errno::OPNOTSUPP | Errno::INVAL, .. }) if all.is_empty() => return Ok(Vec::new()),
            told => told.map_err(|e| failed(object(id), format!("ask for its {} of nftables", part.name), e))?,
        };
        let told = told.into_iter().filter(|m| m.kind() == NFTABLES << 8 | part.new && !is_of_lock(m));
        let mut clean: Vec<Message> = told.map(|message| without(&message, part.own)).collect();
        if part.new == 6 {
            clean = ordered_rules(clean);
        }
        for (index, message) in clean.into_iter().enumerate() {
            refuse_owned(id, part, &message)?;
            if part.new != 9 {
                all.push(message);
                continue;
            }
            const SET_ID: u16 = 10;
            let elements = elements(&mut talk, id, &message)?;
            let mut set = message;
            // By which messages of one transaction could name it; it has to have one.
            set.add(SET_ID, &(index as u32 + 1).to_be_bytes());
            all.push(set);
            all.extend(elements);
        }
    }
    Ok(all.into_iter().map(Kept).collect())
}

/// Whether it is a part of a network lock, which is none of the tree's. The name of its table comes first in all parts.
fn is_of_lock(message: &Message) -> bool {
    message.attribute(HEADER, NAME).map(text).is_some_and(|table| table.starts_with(LOCK))
}

/// A table that goes with a socket is refused there, if that is the tree's; else it is another's affair.
fn refuse_owned(id: u32, part: &Part, message: &Message) -> Result<()> {
    const OWNER: u16 = 7;
    if part.new != 0 || message.attribute(HEADER, OWNER).is_none() {
        return Ok(());
    }
    let name = message.attribute(HEADER, NAME).map(text).unwrap_or_default();
    let reason = format!("the table {name} of nftables belongs to a socket, and would go with it");
    Err(Error::unsupported(object(id), reason, "end the program that has made it"))
}

/// A message without some of its attributes.
fn without(message: &Message, own: &[u16]) -> Message {
    let mut header = message.body()[..HEADER].to_vec();
    // What is behind the family is the generation of the rules.
    header[1..].fill(0);
    let mut clean = Message::new(message.kind(), 0, &header);
    let nested = |part: u16| if is_nest(message.kind() & 0xff, part) { NESTED } else { 0 };
    for (kind, value) in message.attributes(HEADER).filter(|(kind, _)| !own.contains(kind)) {
        clean.add(kind & TYPE | nested(kind), value);
    }
    clean
}

/// Which attributes have attributes.
fn is_nest(message: u16, attribute: u16) -> bool {
    match message {
        3 => matches!(attribute, 4 | 8),
        6 => matches!(attribute, 4 | 5),
        9 => matches!(attribute, 9 | 17 | 18),
        18 => attribute == 4,
        22 => attribute == 3,
        _ => false,
    }
}

/// Elements of a set.
fn elements(talk: &mut Conversation, id: u32, set: &Message) -> Result<Vec<Message>> {
    const SET: u16 = 2;
    const ELEMENTS: u16 = 3;
    let (Some(table), Some(name)) = (set.attribute(HEADER, NAME), set.attribute(HEADER, SECOND)) else {
        return Ok(Vec::new());
    };
    let mut request = Message::new(NFTABLES << 8 | (NEW_ELEMENTS + 1), 0, &set.body()[..HEADER]);
    request.add(NAME, table).add(SET, name);
    let told = talk.dump(&request).map_err(|e| failed(object(id), "ask for elements of a set of nftables", e))?;
    let told = told.into_iter().filter(|m| m.kind() == NFTABLES << 8 | NEW_ELEMENTS);
    let mut all = Vec::new();
    for message in told {
        let Some(list) = message.attribute(HEADER, ELEMENTS) else { continue };
        let mut clean = Message::new(NFTABLES << 8 | NEW_ELEMENTS, 0, &set.body()[..HEADER]);
        clean.add(NAME, table).add(SET, name).add(ELEMENTS | NESTED, list);
        all.push(clean);
    }
    Ok(all)
}

/// Chains that belong to one rule are complete before that.
fn ordered_rules(rules: Vec<Message>) -> Vec<Message> {
    let in_bound = |rule: &Message| rule.attribute(HEADER, SECOND).map(text).is_some_and(|c| c.starts_with("__chain"));
    let (first, then): (Vec<_>, Vec<_>) = rules.into_iter().partition(in_bound);
    first.into_iter().chain(then).map(with_protocol).collect()
}

/// Extensions of iptables want to be told the protocol that the rule is for (NFTA_RULE_COMPAT), which the kernel does not
/// tell: it is what the rule compares.
fn with_protocol(mut rule: Message) -> Message {
    const EXPRESSIONS: u16 = 4;
    const COMPAT: u16 = 5;
    const INVERSE: u32 = 1 << 1;
    let list = rule.attribute(HEADER, EXPRESSIONS).unwrap_or_default();
    let all: Vec<(String, BTreeMap<u16, &[u8]>)> = within(list)
        .map(|(_, expression)| {
            let parts: BTreeMap<u16, &[u8]> = within(expression).collect();
            let name = parts.get(&1).map(|name| text(name)).unwrap_or_default();
            (name, within(parts.get(&2).copied().unwrap_or_default()).collect())
        })
        .collect();
    if !all.iter().any(|(name, _)| name == "match" || name == "target") {
        return rule;
    }
    let big = |value: Option<&&[u8]>| value.and_then(|value| value.first_chunk()).map_or(0, |v| u32::from_be_bytes(*v));
    let (mut protocol, mut flags) = (0, 0);
    for pair in all.windows(2) {
        let [(first, loads), (second, compares)] = pair else { continue };
        const META_L4PROTO: u32 = 16;
        let is_protocol = match first.as_str() {
            "meta" => big(loads.get(&2)) == META_L4PROTO,
            // The byte of the header of IPv4 or IPv6 that says it.
            "payload" => big(loads.get(&2)) == 1 && matches!(big(loads.get(&3)), 6 | 9) && big(loads.get(&4)) == 1,
            _ => false,
        };
        if is_protocol && second == "cmp" {
            let value = within(compares.get(&3).copied().unwrap_or_default()).find(|(kind, _)| *kind == 1);
            protocol = value.and_then(|(_, value)| value.first()).map_or(0, |byte| u32::from(*byte));
            flags = if big(compares.get(&2)) == 1 { INVERSE } else { 0 };
        }
    }
    rule.nest(COMPAT, |m| {
        m.add(1, &protocol.to_be_bytes()).add(2, &flags.to_be_bytes());
    });
    rule
}

impl Firewall {
    /// Makes it in the calling thread's network namespace, which has none.
    pub fn set(&self, id: u32) -> Result<()> {
        for (family, tables) in [(Family::V4, &self.iptables), (Family::V6, &self.ip6tables)] {
            for table in tables {
                let bad =
                    || Error::bad_image(format!("cryonaut-network-{id}.json"), "entries of iptables are no digits");
                let entries = hexadecimal::decode(&table.entries).ok_or_else(bad)?;
                let whole = Table { name: table.name.clone(), hooks: table.hooks, count: table.count, entries };
                let action = format!("replace the table {} of iptables ({family:?})", table.name);
                xtables::replace(family, &whole).map_err(|e| failed(object(id), action, e.into()))?;
            }
        }
        if self.nftables.is_empty() {
            return Ok(());
        }
        let begin = Conversation::begin(Some(NETFILTER));
        let mut talk = begin.map_err(|e| failed(object(id), "speak with netfilter", e.into()))?;
        let making = |kept: &Kept| {
            let rule = kept.0.kind() & 0xff == 6;
            kept.0.retyped(kept.0.kind(), if rule { CREATE | APPEND } else { CREATE })
        };
        let all: Vec<Message> = self.nftables.iter().map(making).collect();
        talk.ask_together(&all, NFTABLES).map_err(|e| failed(object(id), "make its tables of nftables", e))
    }
}
