//! Credentials of a thread: ids, groups, capability sets, securebits
//! (credentials(7), capabilities(7)).

use super::unanswered;
use crate::Result;
use cryonaut_image::records::CredsEntry;
use cryonaut_kernel::proc::status::Status;
use cryonaut_puppet::{Batch, Call};

/// Securebits that keep capabilities through a change of ids.
const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
const LAST_CAP: u32 = 63;
const CAP_VERSION_3: u32 = 0x2008_0522;

/// What only the thread itself can tell.
#[derive(Debug)]
pub struct Ask {
    securebits: Call,
}

impl Ask {
    /// Adds the question to a batch for the thread.
    pub fn new(b: &mut Batch) -> Self {
        Ask { securebits: b.call(libc::SYS_prctl, [libc::PR_GET_SECUREBITS.into()]) }
    }

    /// The record, from the answer and the thread's status.
    pub fn record(&self, tid: i32, answers: &Batch, status: &Status) -> Result<CredsEntry> {
        let halves = |set: u64| vec![set as u32, (set >> 32) as u32];
        let ambient = status.caps.ambient;
        Ok(CredsEntry {
            uid: status.uid.real,
            gid: status.gid.real,
            euid: status.uid.effective,
            egid: status.gid.effective,
            suid: status.uid.saved,
            sgid: status.gid.saved,
            fsuid: status.uid.fs,
            fsgid: status.gid.fs,
            cap_inh: halves(status.caps.inheritable),
            cap_prm: halves(status.caps.permitted),
            cap_eff: halves(status.caps.effective),
            cap_bnd: halves(status.caps.bounding),
            secbits: answers.result(self.securebits).map_err(unanswered(tid, "securebits"))? as u32,
            groups: status.groups.clone(),
            lsm_profile: None,
            lsm_sockcreate: None,
            apparmor_data: None,
            no_new_privs: status.no_new_privs.then_some(1),
            cap_amb: if ambient == 0 { Vec::new() } else { halves(ambient) },
        })
    }
}

fn set(halves: &[u32]) -> u64 {
    u64::from(halves.first().copied().unwrap_or(0)) | u64::from(halves.get(1).copied().unwrap_or(0)) << 32
}

/// Adds to a batch what gives the thread these credentials. `have` are the
/// bounding capabilities of the restoring process: what is not in them cannot
/// be dropped again.
pub fn build(b: &mut Batch, creds: &CredsEntry, have: u64) {
    let prctl = |b: &mut Batch, option: i32, arg: u64| {
        b.call(libc::SYS_prctl, [option.into(), arg.into(), 0.into(), 0.into(), 0.into()]);
    };
    prctl(b, libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP);
    let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let list = b.bytes(&groups);
    b.call(libc::SYS_setgroups, [creds.groups.len().into(), list.into()]);
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
    let mut header = CAP_VERSION_3.to_le_bytes().to_vec();
    header.extend_from_slice(&[0; 4]);
    let header = b.bytes(&header);
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
