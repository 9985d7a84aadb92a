//! Credentials of a thread: ids, groups, capability sets, securebits
//! (credentials(7), capabilities(7)).

use super::unanswered;
use crate::Result;
use cryonaut_image::records::CredsEntry;
use cryonaut_kernel::proc::status::Status;
use cryonaut_puppet::{Arg, Batch, Call, Data};
use std::sync::OnceLock;

/// Securebits that keep capabilities through a change of ids.
const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
const LAST_CAP: u32 = 63;
const CAP_VERSION_3: u32 = 0x2008_0522;
/// Bytes of two `struct __user_cap_data_struct`.
const CAPABILITY_DATA: usize = 24;
/// Bytes of an id.
const ID: usize = 4;

/// Groups for which there is room in the answer; who is in more is asked by its status.
const FEW_GROUPS: usize = 32;
/// An id that nobody has: to set it changes nothing, and tells what is set.
const NO_ID: i32 = -1;

/// The highest capability that this kernel knows.
pub fn last_capability() -> u32 {
    static LAST: OnceLock<u32> = OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok()?.trim().parse().ok();
    *LAST.get_or_init(|| read().unwrap_or(LAST_CAP).min(LAST_CAP))
}

/// What the thread itself tells: a few calls of its own take a fifth of the time
/// that its status would.
#[derive(Debug)]
pub struct Ask {
    securebits: Call,
    no_new_privs: Call,
    uids: Data,
    gids: Data,
    fsuid: Call,
    fsgid: Call,
    groups: Data,
    group_count: Call,
    capabilities: Data,
    /// Of each capability from 0 on, whether it is in the bounding set.
    bounding: Vec<Call>,
}

impl Ask {
    /// Adds the questions to a batch for the thread.
    pub fn new(b: &mut Batch) -> Self {
        let mut prctl = |option: i32, arg: u32| b.call(libc::SYS_prctl, [option.into(), arg.into()]);
        let securebits = prctl(libc::PR_GET_SECUREBITS, 0);
        let no_new_privs = prctl(libc::PR_GET_NO_NEW_PRIVS, 0);
        let bounding = (0..=last_capability()).map(|cap| prctl(libc::PR_CAPBSET_READ, cap)).collect();
        let (uids, gids) = (b.space(3 * ID), b.space(3 * ID));
        let three = |ids: Data| [0, 1, 2].map(|n| Arg::from(ids.at(n * ID)));
        b.call(libc::SYS_getresuid, three(uids));
        b.call(libc::SYS_getresgid, three(gids));
        let fsuid = b.call(libc::SYS_setfsuid, [NO_ID.into()]);
        let fsgid = b.call(libc::SYS_setfsgid, [NO_ID.into()]);
        let groups = b.space(FEW_GROUPS * ID);
        let group_count = b.attempt(libc::SYS_getgroups, [FEW_GROUPS.into(), groups.into()]);
        let header = b.bytes(&capability_header());
        let capabilities = b.space(CAPABILITY_DATA);
        b.call(libc::SYS_capget, [header.into(), capabilities.into()]);
        Ask { securebits, no_new_privs, uids, gids, fsuid, fsgid, groups, group_count, capabilities, bounding }
    }

    /// The record, from the answers; `status` of the thread is asked for what
    /// is rare and not in them.
    pub fn record(&self, tid: i32, answers: &Batch, status: impl FnOnce() -> Result<Status>) -> Result<CredsEntry> {
        let failed = |about| unanswered(tid, about);
        let result = |call, about| answers.result(call).map_err(failed(about));
        let ids = |at: Data| [0, 1, 2].map(|n| answers.read_u32(at.at(n * ID)));
        let ([uid, euid, suid], [gid, egid, sgid]) = (ids(self.uids), ids(self.gids));
        // Effective, permitted, inheritable; of the lower 32 capabilities, then of the upper.
        let of = |n: usize| [0, 3].map(|half| answers.read_u32(self.capabilities.at((half + n) * ID)));
        let [effective, permitted, inheritable] = [0, 1, 2].map(|n| of(n).to_vec());
        let mut bounding = 0;
        for (cap, call) in self.bounding.iter().enumerate() {
            bounding |= result(*call, "bounding set")? << cap;
        }
        let groups = answers.result(self.group_count).ok();
        // An ambient capability is permitted and inheritable.
        let ambient_possible = set(&permitted) & set(&inheritable) != 0;
        let (groups, ambient) = match groups {
            Some(count) if !ambient_possible => {
                ((0..count as usize).map(|n| answers.read_u32(self.groups.at(n * ID))).collect(), 0)
            }
            _ => {
                let status = status()?;
                (status.groups, status.caps.ambient)
            }
        };
        Ok(CredsEntry {
            uid,
            gid,
            euid,
            egid,
            suid,
            sgid,
            fsuid: result(self.fsuid, "fsuid")? as u32,
            fsgid: result(self.fsgid, "fsgid")? as u32,
            cap_inh: inheritable,
            cap_prm: permitted,
            cap_eff: effective,
            cap_bnd: halves(bounding),
            secbits: result(self.securebits, "securebits")? as u32,
            groups,
            lsm_profile: None,
            lsm_sockcreate: None,
            apparmor_data: None,
            no_new_privs: (result(self.no_new_privs, "no_new_privs")? != 0).then_some(1),
            cap_amb: if ambient == 0 { Vec::new() } else { halves(ambient) },
        })
    }
}

/// The credentials of a thread that has ended, as its status tells them: all but the securebits, which mean nothing any
/// more.
pub fn of_status(status: &Status) -> CredsEntry {
    let (uid, gid, caps) = (&status.uid, &status.gid, &status.caps);
    CredsEntry {
        uid: uid.real,
        gid: gid.real,
        euid: uid.effective,
        egid: gid.effective,
        suid: uid.saved,
        sgid: gid.saved,
        fsuid: uid.fs,
        fsgid: gid.fs,
        cap_inh: halves(caps.inheritable),
        cap_prm: halves(caps.permitted),
        cap_eff: halves(caps.effective),
        cap_bnd: halves(caps.bounding),
        groups: status.groups.clone(),
        no_new_privs: status.no_new_privs.then_some(1),
        cap_amb: if caps.ambient == 0 { Vec::new() } else { halves(caps.ambient) },
        ..CredsEntry::default()
    }
}

/// `struct __user_cap_header_struct` for the calling thread.
fn capability_header() -> [u8; 8] {
    let mut header = [0; 8];
    header[..4].copy_from_slice(&CAP_VERSION_3.to_le_bytes());
    header
}

/// A set of capabilities as records have it, the lower half first.
fn halves(set: u64) -> Vec<u32> {
    vec![set as u32, (set >> 32) as u32]
}

fn set(halves: &[u32]) -> u64 {
    u64::from(halves.first().copied().unwrap_or(0)) | u64::from(halves.get(1).copied().unwrap_or(0)) << 32
}

/// Adds to a batch what gives the thread these credentials. `have` are the
/// bounding capabilities of the restoring process: what is not in them cannot
/// be dropped again. With `inborn_groups`, it has the groups already, and may not be able to set them.
pub fn build(b: &mut Batch, creds: &CredsEntry, have: u64, inborn_groups: bool) {
    let prctl = |b: &mut Batch, option: i32, arg: u64| {
        b.call(libc::SYS_prctl, [option.into(), arg.into(), 0.into(), 0.into(), 0.into()]);
    };
    prctl(b, libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP);
    if !inborn_groups {
        let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
        let list = b.bytes(&groups);
        b.call(libc::SYS_setgroups, [creds.groups.len().into(), list.into()]);
    }
    b.call(libc::SYS_setresgid, [creds.gid.into(), creds.egid.into(), creds.sgid.into()]);
    b.call(libc::SYS_setfsgid, [creds.fsgid.into()]);
    b.call(libc::SYS_setresuid, [creds.uid.into(), creds.euid.into(), creds.suid.into()]);
    b.call(libc::SYS_setfsuid, [creds.fsuid.into()]);
    let bounding = set(&creds.cap_bnd);
    for cap in 0..=LAST_CAP {
        if have & !bounding & 1 << cap != 0 {
            prctl(b, libc::PR_CAPBSET_DROP, u64::from(cap));
        }
    }
    // Securebits need CAP_SETPCAP, so they come before the capabilities shrink.
    prctl(b, libc::PR_SET_SECUREBITS, u64::from(creds.secbits));
    let header = b.bytes(&capability_header());
    let half = |caps: &[u32], i: usize| caps.get(i).copied().unwrap_or(0);
    let mut data = Vec::new();
    for i in 0..2 {
        for caps in [&creds.cap_eff, &creds.cap_prm, &creds.cap_inh] {
            data.extend_from_slice(&half(caps, i).to_le_bytes());
        }
    }
    let data = b.bytes(&data);
    b.call(libc::SYS_capset, [header.into(), data.into()]);
    let ambient = set(&creds.cap_amb);
    for cap in (0..=LAST_CAP).filter(|c| ambient & 1 << c != 0) {
        b.call(
            libc::SYS_prctl,
            [libc::PR_CAP_AMBIENT.into(), libc::PR_CAP_AMBIENT_RAISE.into(), cap.into(), 0.into(), 0.into()],
        );
    }
    if creds.no_new_privs.unwrap_or(0) != 0 {
        prctl(b, libc::PR_SET_NO_NEW_PRIVS, 1);
    }
}
