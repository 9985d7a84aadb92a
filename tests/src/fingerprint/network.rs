//! What is in the network namespace of a process, if it has one of its own: devices, addresses, routes, rules and set
//! neighbours, as rtnetlink tells them, without what is counted or measured.

use std::os::fd::AsFd;

use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::conversation::{Conversation, Message, text};
use cryonaut_kernel::sys::namespace;

use super::{Object, Taking};

/// What is asked for: name, type of the question, length of the fixed part, attributes of the moment.
const TABLES: [(&str, u16, usize, &[u16]); 5] = [
    // Statistics, state, carrier changes, queueing; the families' own counters; names of the moment.
    ("link", 18, 16, &[6, 7, 14, 16, 18, 23, 26, 33, 35, 36, 43, 46, 47, 48, 50, 51, 55, 62]),
    // Times of making and changing.
    ("address", 22, 8, &[6]),
    ("route", 26, 12, &[12]),
    ("rule", 34, 12, &[]),
    ("neighbour", 30, 12, &[3, 4]),
];
const LINK: &str = "link";
const NAME: u16 = 3;
const LINKINFO: u16 = 18;

pub(super) fn take(taking: &mut Taking, object: &Object, task: &Task) {
    let Ok(own) = Task::current().and_then(|own| own.namespace(Namespace::Net)) else { return };
    if task.namespace(Namespace::Net).ok().flatten() == own {
        return;
    }
    let Ok(file) = namespace::open(task, Namespace::Net) else { return };
    let told = namespace::within(&[file.as_fd()], || {
        TABLES.map(|(name, kind, fixed, moving)| (name, all(kind, fixed, moving)))
    });
    for (name, mut lines) in told.into_iter().flatten() {
        lines.sort();
        taking.put(object, format!("network.{name}"), lines.join("\n"));
    }
}

fn all(kind: u16, fixed: usize, moving: &[u16]) -> Vec<String> {
    let mut talk = match Conversation::about_routes() {
        Ok(talk) => talk,
        Err(errno) => return vec![errno.to_string()],
    };
    let told = talk.dump(&Message::new(kind, 0, &vec![0; fixed]));
    let told = match told {
        Ok(told) => told,
        Err(refusal) => return vec![refusal.to_string()],
    };
    told.iter().filter_map(|message| line(message, kind, fixed, moving)).collect()
}

fn line(message: &Message, kind: u16, fixed: usize, moving: &[u16]) -> Option<String> {
    const ROUTES: u16 = 26;
    const NEIGHBOURS: u16 = 30;
    const PERMANENT: u8 = 0x80;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut header = message.body().get(..fixed)?.to_vec();
    match kind {
        // Learned, and forgotten again.
        NEIGHBOURS if header[8] & PERMANENT == 0 => return None,
        // What the kernel has found of one destination, and flags that follow devices.
        ROUTES => header[8..].fill(0),
        _ => {}
    }
    let mut line = hex(&header);
    let name = message.attribute(fixed, NAME).filter(|_| kind == 18).map(text).unwrap_or_default();
    line.insert_str(0, &name);
    for (which, value) in message.attributes(fixed).filter(|(which, _)| !moving.contains(which)) {
        line.push_str(&format!(" {which}:{}", hex(value)));
    }
    if kind == 18
        && let Some(info) = message.attribute(fixed, LINKINFO)
    {
        // The kind; its data have timers and counters.
        let of_kind = cryonaut_kernel::sys::conversation::within(info).find(|(which, _)| *which == 1);
        line.push_str(&of_kind.map(|(_, kind)| format!(" {LINK} of {}", text(kind))).unwrap_or_default());
    }
    Some(line)
}
