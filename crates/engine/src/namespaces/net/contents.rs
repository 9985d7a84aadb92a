//! What is in a network namespace, as data: read from the kernel by a thread that is there, written to the image and read
//! from it. CRIU's files have devices (`netdev`), settings (`netns`), addresses, routes and rules (`ifaddr`, `route`,
//! `route6`, `rule`: as `ip ... save` writes them); `cryonaut-network-ID.json` what those have no place for.

use super::left_out;
use super::link::{self, Links};
use super::netfilter::{self, Firewall};
use super::sysctl::{self, Settings};
use super::table::{ADDRESSES, NEIGHBOURS, NEXT_HOPS, PROXY, ROUTES, RULES};
use super::talk::{self, Kept, Magic, failed, object};
use super::{tracked, words};
use crate::error::errno_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::{NetDeviceEntry, NetnsEntry};
use cryonaut_image::{DumpDir, ImageDir, ImageKind};
use cryonaut_kernel::sys::conversation::{Conversation, Message};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Read, Write};

const V4: i32 = libc::AF_INET;
const V6: i32 = libc::AF_INET6;

/// What CRIU's files have no place for.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Beside {
    /// All settings below /proc/sys/net.
    #[serde(default)]
    pub settings: Settings,
    /// What the kernel told of each device, by number.
    #[serde(default)]
    pub links: BTreeMap<u32, Kept>,
    /// All rules of IPv6, those that the kernel makes among them.
    #[serde(default)]
    pub rules6: Vec<Kept>,
    /// Next hops that routes name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next_hops: Vec<Kept>,
    /// Neighbours that were set or learned, those that are answered for, and entries of bridges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Kept>,
    /// Rules of netfilter.
    #[serde(default)]
    pub firewall: Firewall,
}

/// A network namespace.
#[derive(Debug, Default)]
pub struct Contents {
    pub record: NetnsEntry,
    pub links: Vec<NetDeviceEntry>,
    pub addresses: Vec<Message>,
    pub routes: Vec<Message>,
    pub routes6: Vec<Message>,
    pub rules: Vec<Message>,
    /// Connections that are tracked.
    pub tracked: Vec<Message>,
    /// `None` of an image that is not ours.
    pub beside: Option<Beside>,
}

fn kept(messages: Vec<Message>) -> Vec<Kept> {
    messages.into_iter().map(Kept).collect()
}

/// The messages that were kept.
pub fn messages(kept: &[Kept]) -> Vec<Message> {
    kept.iter().map(|kept| kept.0.clone()).collect()
}

impl Contents {
    /// Of the namespace in which the calling thread is; what is known of it from elsewhere is given.
    pub fn read(known: &link::Known<'_>, record: NetnsEntry) -> Result<Contents> {
        let id = known.id;
        let begin = Conversation::about_routes();
        let mut talk = begin.map_err(|e| failed(object(id), "speak with rtnetlink", e.into()))?;
        let mut record = record;
        sysctl::tell(known.settings, &mut record);
        let Links { records: links, told } = link::read(&mut talk, known)?;
        left_out::refuse(&mut talk, id)?;
        let mut read = |table: &super::table::Table, family, flags| table.read(&mut talk, id, family, flags);
        let mut rules = read(&RULES, V4, 0)?;
        let rules6 = read(&RULES, V6, 0)?;
        // Who reads them as CRIU does adds those of IPv6 to the ones that are there from the beginning.
        rules.extend(rules6.iter().filter(|rule| !is_first_rule(rule)).cloned());
        let mut neighbours = Vec::new();
        for (family, flags) in [(V4, 0), (V6, 0), (V4, PROXY), (V6, PROXY), (libc::AF_BRIDGE, 0)] {
            neighbours.extend(read(&NEIGHBOURS, family, flags)?);
        }
        Ok(Contents {
            record,
            links,
            addresses: [read(&ADDRESSES, V4, 0)?, read(&ADDRESSES, V6, 0)?].concat(),
            routes: read(&ROUTES, V4, 0)?,
            routes6: read(&ROUTES, V6, 0)?,
            rules,
            tracked: tracked::read(id)?,
            beside: Some(Beside {
                settings: known.settings.clone(),
                links: told,
                rules6: kept(rules6),
                next_hops: kept(read(&NEXT_HOPS, libc::AF_UNSPEC, 0)?),
                neighbours: kept(neighbours),
                firewall: netfilter::read(id)?,
            }),
        })
    }

    /// Writes it down.
    pub fn write(&self, images: &DumpDir, id: u32) -> Result<()> {
        let number = u64::from(id);
        images.write_one(ImageKind::Netns, number, &self.record)?;
        images.entry_file(ImageKind::Netdev, number)?;
        for link in &self.links {
            images.append(ImageKind::Netdev, number, link, None)?;
        }
        let streams = [
            (ImageKind::Ifaddr, Magic::Addresses, &self.addresses),
            (ImageKind::Route, Magic::Routes, &self.routes),
            (ImageKind::Route6, Magic::Routes, &self.routes6),
            (ImageKind::Rule, Magic::Rules, &self.rules),
        ];
        for (kind, magic, messages) in streams {
            let file = images.raw_file(kind, number)?;
            talk::write(file, magic, messages).map_err(|e| Error::kernel(object(id), "write it down", errno_of(&e)))?;
        }
        if !self.tracked.is_empty() {
            let all: Vec<u8> = self.tracked.iter().flat_map(|message| message.bytes().to_vec()).collect();
            let written = images.raw_file(ImageKind::NetnfCt, number)?.write_all(&all);
            written.map_err(|e| Error::kernel(object(id), "write it down", errno_of(&e)))?;
        }
        self.beside.as_ref().map_or(Ok(()), |beside| Ok(images.write_json(&name(id), beside)?))
    }

    /// From an image; `None` if nothing of it was written (`--empty-ns`).
    pub fn load(images: &ImageDir, id: u32) -> Result<Option<Contents>> {
        let number = u64::from(id);
        let record: NetnsEntry = images.read_one(ImageKind::Netns, number)?;
        if !images.ids(ImageKind::Netdev)?.contains(&number) {
            return Ok(None);
        }
        let stream = |kind: ImageKind, magic| -> Result<Vec<Message>> {
            let Some(file) = images.open_raw_optional(kind, number)? else { return Ok(Vec::new()) };
            talk::read(file, magic, &kind.file_name(number)?)
        };
        let beside: Option<Beside> = images.read_json(&name(id))?;
        if beside.is_none() {
            words::refuse(images, number)?;
        }
        Ok(Some(Contents {
            record,
            links: images.read_all_optional(ImageKind::Netdev, number)?,
            addresses: stream(ImageKind::Ifaddr, Magic::Addresses)?,
            routes: stream(ImageKind::Route, Magic::Routes)?,
            routes6: stream(ImageKind::Route6, Magic::Routes)?,
            rules: stream(ImageKind::Rule, Magic::Rules)?,
            tracked: tracked_then(images, number)?,
            beside,
        }))
    }

    /// What is to be set below /proc/sys/net.
    pub fn settings(&self) -> Settings {
        let mut all = sysctl::recorded(&self.record);
        self.links.iter().for_each(|link| all.extend(sysctl::recorded_of_device(link)));
        all.extend(self.beside.iter().flat_map(|beside| beside.settings.clone()));
        all
    }

    /// The rules of IPv6; `None` if the image has them among the others.
    pub fn rules6(&self) -> Option<Vec<Message>> {
        self.beside.as_ref().map(|beside| messages(&beside.rules6))
    }
}

fn tracked_then(images: &ImageDir, number: u64) -> Result<Vec<Message>> {
    let Some(mut file) = images.open_raw_optional(ImageKind::NetnfCt, number)? else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    let name = ImageKind::NetnfCt.file_name(number)?;
    file.read_to_end(&mut bytes).map_err(|e| Error::kernel(Object::Other(name.clone()), "read it", errno_of(&e)))?;
    Message::all(&bytes).map_err(|_| Error::bad_image(name, "it has something that is no message of netlink"))
}

fn name(id: u32) -> String {
    format!("network-{id}")
}

/// The rules that a namespace has from the beginning: local and main.
fn is_first_rule(rule: &Message) -> bool {
    const PRIORITY: u16 = 6;
    let priority = rule.attribute(12, PRIORITY).and_then(cryonaut_kernel::sys::conversation::number).unwrap_or(0);
    matches!((priority, rule.body()[4]), (0, 255) | (32766, 254))
}
