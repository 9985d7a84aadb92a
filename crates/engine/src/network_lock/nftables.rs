//! The lock by nftables: a table of its own, named and shaped as CRIU's.
//!
//! Whoever closes a netlink socket waits until all that was deleted is gone, for a grace period of RCU
//! (net/netfilter/nf_tables_api.c, nft_rcv_nl_event). So no table is deleted to make room for one that is not there.

use crate::files::socket::Peers;
use cryonaut_kernel::sys::nf_tables::{Data, Hook, Ready, Step, Transaction};
use std::net::{IpAddr, SocketAddr};

use super::{ID_IN_NAME, MARK};

/// The name of the table of a run.
pub fn table(run_id: &str) -> String {
    format!("CRIU-{}", &run_id[..ID_IN_NAME])
}

/// How it is lifted.
pub fn no_rules(run_id: &str) -> Ready {
    Transaction::default().delete_table(&table(run_id)).finish()
}

/// A table that drops everything but our own, where there is none of that name: for a network namespace of the tree's.
pub fn everything(run_id: &str) -> Ready {
    let table = &table(run_id);
    let mut all = Transaction::default().add_table(table);
    for (chain, hook) in [("output", Hook::Output), ("input", Hook::Input)] {
        all = all.add_chain(table, chain, hook).add_rule(table, chain, &[Step::IfMark(MARK), Step::Accept]);
        all = all.add_rule(table, chain, &[Step::Drop]);
    }
    all.finish()
}

/// The whole table, where there is none of that name.
pub fn rules(run_id: &str, peers: &Peers) -> Ready {
    whole(Transaction::default(), run_id, peers)
}

fn whole(before: Transaction, run_id: &str, peers: &Peers) -> Ready {
    let table = &table(run_id);
    let [v4, v6] = elements(peers);
    let mut all = before.add_table(table);
    for (set, address, elements) in [("conns4", Data::V4, &v4), ("conns6", Data::V6, &v6)] {
        let key = [address, Data::Port, address, Data::Port];
        all = all.add_set(table, set, &key, elements.len());
        all = all.add_elements(table, set, elements.iter().map(Vec::as_slice));
    }
    // Which end is ours depends on the way that a packet goes.
    for (chain, hook) in [("output", Hook::Output), ("input", Hook::Input)] {
        all = all.add_chain(table, chain, hook).add_rule(table, chain, &[Step::IfMark(MARK), Step::Accept]);
        // The family, where its addresses are in the header, and their length.
        for (set, family, at, length) in [("conns4", 2, 12, 4), ("conns6", 10, 8, 16)] {
            let own_first = hook == Hook::Output;
            let words = length / 4;
            let address = |source, register| {
                let offset = if source { at } else { at + length };
                Step::Load { transport: false, offset, length, register }
            };
            let port = |source, register| Step::Load {
                transport: true,
                offset: if source { 0 } else { 2 },
                length: 2,
                register,
            };
            all = all.add_rule(
                table,
                chain,
                &[
                    Step::IfFamily(family),
                    Step::IfProtocol(libc::IPPROTO_TCP as u8),
                    address(own_first, 0),
                    port(own_first, words),
                    address(!own_first, words + 1),
                    port(!own_first, 2 * words + 1),
                    Step::IfIn(set),
                    Step::Drop,
                ],
            );
        }
    }
    all.finish()
}

/// The whole table in the place of one of that name: its sets have no room for more.
pub fn other_rules(run_id: &str, peers: &Peers) -> Ready {
    whole(Transaction::default().delete_table(&table(run_id)), run_id, peers)
}

/// Those of IPv4 and of IPv6, as they stand in their sets.
fn elements(peers: &Peers) -> [Vec<Vec<u8>>; 2] {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for peer in &peers.0 {
        let (own, other) = (element(peer.own), element(peer.peer));
        let all = if peer.own.ip().to_canonical().is_ipv4() { &mut v4 } else { &mut v6 };
        all.push([own, other].concat());
    }
    for elements in [&mut v4, &mut v6] {
        elements.sort_unstable();
        elements.dedup();
    }
    [v4, v6]
}

/// An end as it stands in a set: the address, and the port in a word of its own.
fn element(end: SocketAddr) -> Vec<u8> {
    let mut bytes = match end.ip().to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    bytes.extend(end.port().to_be_bytes());
    bytes.extend([0; 2]);
    bytes
}
