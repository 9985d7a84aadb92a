//! Settings of a network namespace: the files below /proc/sys/net that it has of its own (sysctl(8)), with those of its
//! devices. A record of CRIU has some of them, in places of a table; what it has no place for stands in our JSON.

use cryonaut_image::records::{NetDeviceEntry, NetnsEntry, SysctlEntry, SysctlType};
use rustix::fs::{FileType, Mode, OFlags};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const BASE: &str = "/proc/sys/net";

/// Paths below /proc/sys/net, and what they say.
pub type Settings = BTreeMap<String, String>;

/// The settings of devices of IPv4 that the format has, by place.
const CONF4: [&str; 30] = [
    "accept_local",
    "accept_redirects",
    "accept_source_route",
    "arp_accept",
    "arp_announce",
    "arp_filter",
    "arp_ignore",
    "arp_notify",
    "bootp_relay",
    "disable_policy",
    "disable_xfrm",
    "force_igmp_version",
    "forwarding",
    "igmpv2_unsolicited_report_interval",
    "igmpv3_unsolicited_report_interval",
    "log_martians",
    "medium_id",
    "promote_secondaries",
    "proxy_arp",
    "proxy_arp_pvlan",
    "route_localnet",
    "rp_filter",
    "secure_redirects",
    "send_redirects",
    "shared_media",
    "src_valid_mark",
    "tag",
    "ignore_routes_with_linkdown",
    "drop_gratuitous_arp",
    "drop_unicast_in_l2_multicast",
];
/// The same of IPv6.
const CONF6: [&str; 42] = [
    "accept_dad",
    "accept_ra",
    "accept_ra_defrtr",
    "accept_ra_from_local",
    "accept_ra_min_hop_limit",
    "accept_ra_mtu",
    "accept_ra_pinfo",
    "accept_ra_rt_info_max_plen",
    "accept_ra_rtr_pref",
    "accept_redirects",
    "accept_source_route",
    "autoconf",
    "dad_transmits",
    "disable_ipv6",
    "drop_unicast_in_l2_multicast",
    "drop_unsolicited_na",
    "force_mld_version",
    "force_tllao",
    "forwarding",
    "hop_limit",
    "ignore_routes_with_linkdown",
    "keep_addr_on_down",
    "max_addresses",
    "max_desync_factor",
    "mldv1_unsolicited_report_interval",
    "mldv2_unsolicited_report_interval",
    "mtu",
    "ndisc_notify",
    "optimistic_dad",
    "proxy_ndp",
    "regen_max_retry",
    "router_probe_interval",
    "router_solicitation_delay",
    "router_solicitation_interval",
    "router_solicitations",
    "stable_secret",
    "suppress_frag_ndisc",
    "temp_prefered_lft",
    "temp_valid_lft",
    "use_oif_addrs_only",
    "use_optimistic",
    "use_tempaddr",
];
/// The only one that is text.
const SECRET: &str = "stable_secret";
const UNIX: [&str; 1] = ["max_dgram_qlen"];
const PING: [&str; 1] = ["ping_group_range"];

/// All settings of the calling thread's network namespace that can be read.
pub fn read() -> Settings {
    let mut all = Settings::new();
    if let Ok(base) = rustix::fs::open(BASE, DIRECTORY, Mode::empty()) {
        walk(base.as_fd(), "", &mut vec![0; ROOM], &mut all);
    }
    all
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Longest value: a bitmap of ports.
const ROOM: usize = 64 << 10;

/// There are many hundreds: each is opened, read and closed, and nothing more.
fn walk(dir: BorrowedFd<'_>, prefix: &str, room: &mut Vec<u8>, all: &mut Settings) {
    let Ok(entries) = rustix::fs::Dir::read_from(dir) else { return };
    for entry in entries.flatten() {
        let Some(own) = entry.file_name().to_str().ok().filter(|own| !own.starts_with('.')) else { continue };
        let name = if prefix.is_empty() { own.to_owned() } else { format!("{prefix}/{own}") };
        if entry.file_type() == FileType::Directory {
            if let Ok(below) = rustix::fs::openat(dir, own, DIRECTORY, Mode::empty()) {
                walk(below.as_fd(), &name, room, all);
            }
            continue;
        }
        // One that has no value yet cannot be read (stable_secret).
        if let Some(value) = value_of(dir, own, room) {
            all.insert(name, value);
        }
    }
}

fn value_of(dir: BorrowedFd<'_>, name: &str, room: &mut [u8]) -> Option<String> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let got = rustix::io::read(&file, &mut room[..]).ok()?;
    Some(String::from_utf8_lossy(&room[..got]).trim_end_matches('\n').to_owned())
}

/// The settings of the network namespace in which the calling thread is, and brings them to others.
#[derive(Debug)]
pub struct Tuner {
    there: Settings,
}

impl Tuner {
    /// In the namespace of the calling thread.
    pub fn new() -> Tuner {
        Tuner { there: read() }
    }

    /// Brings them to these: those of all devices before those of each, which they may change. What cannot be set is
    /// told of.
    pub fn bring(&mut self, wanted: &Settings) {
        let mut order: Vec<(&String, &String)> = wanted.iter().collect();
        order.sort_by_key(|(name, _)| (rank(name), *name));
        // One may change another.
        for last in [false, true] {
            for (name, value) in &order {
                if self.there.get(*name) != Some(*value) {
                    self.set(name, value, last);
                }
            }
        }
    }

    /// What a device has changed by itself when it came up: it gives IPv6 its own MTU (addrconf_notify in
    /// net/ipv6/addrconf.c).
    pub fn devices_came_up(&mut self) {
        self.look_again("mtu");
    }

    fn set(&mut self, name: &str, value: &str, last: bool) {
        let path = Path::new(BASE).join(name);
        let written = std::fs::write(&path, value.as_bytes());
        // Who is only to be looked at says the same at the source and here, or something of this host.
        let may_be_set = || std::fs::metadata(&path).is_ok_and(|meta| meta.mode() & 0o200 != 0);
        if let Err(e) = written
            && last
            && may_be_set()
        {
            let is = self.there.get(name);
            tracing::warn!("net/{name} cannot be set to {value:?} and stays {is:?}: {e}");
        }
        let what = name.rsplit('/').next().unwrap_or(name);
        match name {
            "ipv4/ip_forward" => self.look_again("forwarding"),
            // What was never set of a device follows the default (devinet_copy_dflt_conf in net/ipv4/devinet.c).
            _ if name.contains("/all/") || name.contains("/default/") => self.look_again(what),
            _ => {}
        }
        self.look(name);
    }

    fn look(&mut self, name: &str) {
        match std::fs::read_to_string(Path::new(BASE).join(name)) {
            Ok(value) => self.there.insert(name.to_owned(), value.trim_end_matches('\n').to_owned()),
            Err(_) => self.there.remove(name),
        };
    }

    /// At this setting of every device.
    fn look_again(&mut self, what: &str) {
        let is_it = |name: &&String| name.rsplit('/').next() == Some(what);
        let names: Vec<String> = self.there.keys().filter(is_it).cloned().collect();
        names.iter().for_each(|name| self.look(name));
    }
}

fn rank(name: &str) -> usize {
    let order = ["ip_forward", "/all/", "/default/", "/conf/", "/neigh/"];
    order.iter().position(|part| name.contains(part)).unwrap_or(order.len())
}

/// Puts settings into the record of a namespace.
pub fn tell(settings: &Settings, entry: &mut NetnsEntry) {
    let of = |prefix: &str, names: &[&str]| entries(settings, prefix, names);
    entry.def_conf4 = of("ipv4/conf/default", &CONF4);
    entry.all_conf4 = of("ipv4/conf/all", &CONF4);
    entry.def_conf6 = of("ipv6/conf/default", &CONF6);
    entry.all_conf6 = of("ipv6/conf/all", &CONF6);
    entry.unix_conf = of("unix", &UNIX);
    entry.ipv4_sysctl = of("ipv4", &PING);
}

/// Puts settings into the record of a device.
pub fn tell_device(settings: &Settings, entry: &mut NetDeviceEntry) {
    entry.conf4 = entries(settings, &format!("ipv4/conf/{}", entry.name), &CONF4);
    entry.conf6 = entries(settings, &format!("ipv6/conf/{}", entry.name), &CONF6);
}

/// The settings that the record of a namespace has.
pub fn recorded(entry: &NetnsEntry) -> Settings {
    let mut all = Settings::new();
    take(&mut all, "ipv4/conf/default", &CONF4, &entry.def_conf4, &entry.def_conf);
    take(&mut all, "ipv4/conf/all", &CONF4, &entry.all_conf4, &entry.all_conf);
    take(&mut all, "ipv6/conf/default", &CONF6, &entry.def_conf6, &[]);
    take(&mut all, "ipv6/conf/all", &CONF6, &entry.all_conf6, &[]);
    take(&mut all, "unix", &UNIX, &entry.unix_conf, &[]);
    take(&mut all, "ipv4", &PING, &entry.ipv4_sysctl, &[]);
    all
}

/// The settings that the record of a device has.
pub fn recorded_of_device(entry: &NetDeviceEntry) -> Settings {
    let mut all = Settings::new();
    take(&mut all, &format!("ipv4/conf/{}", entry.name), &CONF4, &entry.conf4, &entry.conf);
    take(&mut all, &format!("ipv6/conf/{}", entry.name), &CONF6, &entry.conf6, &[]);
    all
}

fn entries(settings: &Settings, prefix: &str, names: &[&str]) -> Vec<SysctlEntry> {
    let one = |name: &&str| {
        let value = settings.get(&format!("{prefix}/{name}"));
        let is_text = [SECRET, PING[0]].contains(name);
        let r#type = if is_text { SysctlType::SysctltypeCtlStr } else { SysctlType::SysctltypeCtl32 };
        let iarg = if is_text { None } else { value.and_then(|value| value.parse().ok()) };
        SysctlEntry {
            r#type: r#type.into(),
            iarg,
            sarg: value.filter(|_| is_text).map(|text| text.clone().into_bytes()),
        }
    };
    names.iter().map(one).collect()
}

fn take(into: &mut Settings, prefix: &str, names: &[&str], entries: &[SysctlEntry], old: &[i32]) {
    for (name, entry) in names.iter().zip(entries) {
        let text = entry.sarg.as_ref().map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
        let value = text.or_else(|| entry.iarg.map(|number| number.to_string()));
        into.extend(value.map(|value| (format!("{prefix}/{name}"), value)));
    }
    // The older form: -1 is for what was not there.
    for (name, value) in names.iter().zip(old).filter(|(_, value)| **value != -1 && entries.is_empty()) {
        into.insert(format!("{prefix}/{name}"), value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_record_has_no_place_for_is_left_to_ours() {
        let own = read();
        let mut entry = NetnsEntry::default();
        tell(&own, &mut entry);
        let recorded = recorded(&entry);
        assert!(recorded.iter().all(|(name, value)| own.get(name) == Some(value)));
        assert_eq!(recorded.get("ipv4/conf/all/rp_filter"), own.get("ipv4/conf/all/rp_filter"));
        assert!(own.len() > recorded.len());
    }

    #[test]
    fn those_of_all_devices_come_first() {
        let mut names = ["ipv4/conf/Aa/tag", "unix/max_dgram_qlen", "ipv6/conf/all/mtu", "ipv4/conf/default/tag"];
        names.sort_by_key(|name| (rank(name), *name));
        assert_eq!(names, ["ipv6/conf/all/mtu", "ipv4/conf/default/tag", "ipv4/conf/Aa/tag", "unix/max_dgram_qlen"]);
    }
}
