//! What we write, read by another: Debian's `crit`, the image tool of CRIU 3.17.
//!
//! Needs the packages `criu` and `python3-protobuf`; fails without them.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use cryonaut_image::records::*;
use cryonaut_image::*;
use serde_json::{Value, json};

/// Runs `crit decode` with Debian's own Python, whichever comes first in PATH.
fn crit(path: &Path) -> Value {
    let output = Command::new("/usr/bin/python3")
        .args(["/usr/bin/crit", "decode", "-i"])
        .arg(path)
        .output()
        .expect("/usr/bin/python3 runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && errors.is_empty(),
        "crit decode -i {}: {}: {errors} (needs the packages criu and python3-protobuf)",
        path.display(),
        output.status,
    );
    serde_json::from_slice(&output.stdout).expect("crit prints JSON")
}

/// Kinds that came after CRIU 3.17 or that its crit never learned.
const UNKNOWN_TO_CRIT: &[ImageKind] =
    &[ImageKind::Signal, ImageKind::Psignal, ImageKind::BinfmtMisc, ImageKind::BinfmtMiscOld, ImageKind::Pidfd];

/// Kinds of long-gone versions, which we do not write.
fn is_old(kind: ImageKind) -> bool {
    matches!(kind, ImageKind::PagesOld | ImageKind::ShmPagesOld)
}

fn write<M: Record>(dump: &DumpDir, kind: ImageKind, message: &M) {
    let id = kind.has_id().then_some(1);
    dump.append(kind, id, message, None).unwrap();
}

/// Writes two empty messages (required fields only) of each kind listed.
macro_rules! plain {
    ($dump:expr, $($kind:ident: $record:ident),* $(,)?) => {
        $(for _ in 0..2 {
            write($dump, ImageKind::$kind, &$record::default());
        })*
    };
}

fn write_plain(dump: &DumpDir) {
    plain!(dump,
        Fdinfo: FdinfoEntry, ExtFiles: ExtFileEntry, NsFiles: NsFileEntry,
        EventfdFile: EventfdFileEntry, EventpollFile: EventpollFileEntry,
        EventpollTfd: EventpollTfdEntry, Signalfd: SignalfdEntry, InotifyFile: InotifyFileEntry,
        InotifyWd: InotifyWdEntry, FanotifyFile: FanotifyFileEntry,
        FanotifyMark: FanotifyMarkEntry, Ids: TaskKobjIdsEntry, Vmas: VmaEntry, Pipes: PipeEntry,
        Fifo: FifoEntry, Sigact: SaEntry, Unixsk: UnixSkEntry, Packetsk: PacketSockEntry,
        NetlinkSk: NetlinkSkEntry, Itimers: ItimerEntry, PosixTimers: PosixTimerEntry,
        Creds: CredsEntry, IpcVar: IpcVarEntry, Fs: FsEntry, RemapFpath: RemapFilePathEntry,
        MemfdInode: MemfdInodeEntry, Mnts: MntEntry, Netdev: NetDeviceEntry, Netns: NetnsEntry,
        Autofs: AutofsEntry, TtyFiles: TtyFileEntry, TtyInfo: TtyInfoEntry,
        TtyData: TtyDataEntry, FileLocks: FileLockEntry, Rlimit: RlimitEntry,
        Tunfile: TunfileEntry, Cgroup: CgroupEntry, Timerfd: TimerfdEntry,
        Cpuinfo: CpuinfoEntry, Seccomp: SeccompEntry, Userns: UsernsEntry,
        Timens: TimensEntry, Pidns: PidnsEntry, BpfmapFile: BpfmapFileEntry,
        Apparmor: ApparmorEntry, Signal: SiginfoEntry, Psignal: SiginfoEntry,
        BinfmtMisc: BinfmtMiscEntry, BinfmtMiscOld: BinfmtMiscEntry, Pidfd: PidfdEntry,
    );
}

/// Messages behind which data lie, two of each kind.
fn write_tailed(dump: &DumpDir) {
    for data in [&b"some bytes"[..], b""] {
        let len = data.len() as u32;
        let pipe = PipeDataEntry { pipe_id: 7, bytes: len, size: Some(4096) };
        for kind in [ImageKind::PipesData, ImageKind::FifoData] {
            dump.entry_file(kind, None).unwrap().append_tailed(&pipe, data).unwrap();
        }
        let packet = SkPacketEntry { id_for: 3, length: len, scm: vec![] };
        let file = dump.entry_file(ImageKind::SkQueues, None).unwrap();
        file.append_tailed(&packet, data).unwrap();
        let bpf = BpfmapDataEntry { map_id: 1, keys_bytes: len, values_bytes: 0, count: 1 };
        let file = dump.entry_file(ImageKind::BpfmapData, None).unwrap();
        file.append_tailed(&bpf, data).unwrap();
        let shm = IpcShmEntry { size: data.len() as u64, ..Default::default() };
        let file = dump.entry_file(ImageKind::IpcnsShm, 1).unwrap();
        file.append_tailed(&shm, data).unwrap();
        let sem = IpcSemEntry { nsems: len / 2, ..Default::default() };
        let file = dump.entry_file(ImageKind::IpcnsSem, 1).unwrap();
        file.append_tailed(&sem, data).unwrap();
        let file = dump.entry_file(ImageKind::IpcnsMsg, 1).unwrap();
        file.append(&IpcMsgEntry { qnum: 1, ..Default::default() }).unwrap();
        file.append_tailed(&IpcMsg { mtype: 5, msize: len }, data).unwrap();
        let tcp = TcpStreamEntry { inq_len: len, outq_len: 0, ..Default::default() };
        let file = dump.entry_file(ImageKind::TcpStream, 1).unwrap();
        file.append_tailed(&tcp, data).unwrap();
    }
    let ghost = dump.entry_file(ImageKind::GhostFile, 1).unwrap();
    ghost.append(&GhostFileEntry { chunks: Some(true), ..Default::default() }).unwrap();
    ghost.append_tailed(&GhostChunkEntry { len: 4, off: 8192 }, b"tail").unwrap();

    for (kind, pages_id) in [(ImageKind::Pagemap, 1), (ImageKind::ShmemPagemap, 2)] {
        let mut map = PagemapWriter::create(dump, kind, 1, pages_id).unwrap();
        map.push(0x40_0000, 3, PageFlags::PRESENT).unwrap();
        let len = map.finish().unwrap();
        let pages = dump.raw_file(ImageKind::Pages, u64::from(pages_id)).unwrap();
        pages.set_len(len).unwrap();
    }
}

/// The kinds that a dump always has, filled in as a dump does.
fn write_full(dump: &DumpDir) {
    let process = PstreeEntry { pid: 17, ppid: 1, pgid: 17, sid: 1, threads: vec![17, 18] };
    write(dump, ImageKind::Pstree, &process);
    write(dump, ImageKind::Pstree, &PstreeEntry::default());
    let core = CoreEntry {
        mtype: core_entry::March::X8664.into(),
        thread_info: Some(ThreadInfoX86 {
            gpregs: UserX86RegsEntry { ip: 0x7fff_1234_5678, ..Default::default() },
            fpregs: UserX86FpregsEntry {
                st_space: vec![1; 32],
                xsave: Some(UserX86XsaveEntry { ymmh_space: vec![2; 64], ..Default::default() }),
                ..Default::default()
            },
            ..Default::default()
        }),
        tc: Some(TaskCoreEntry { comm: b"sleep".to_vec(), ..Default::default() }),
        thread_core: Some(ThreadCoreEntry { sched_nice: Some(-5), ..Default::default() }),
        ..Default::default()
    };
    write(dump, ImageKind::Core, &core);
    write(dump, ImageKind::Core, &core);
    let vma = VmaEntry { start: 0x40_0000, end: 0x40_1000, fd: -1, ..Default::default() };
    let mm = MmEntry { vmas: vec![vma, vma], mm_saved_auxv: vec![6, 4096], ..Default::default() };
    write(dump, ImageKind::Mm, &mm);
    write(dump, ImageKind::Mm, &mm);
    let reg = RegFileEntry { id: 5, name: b"/bin/sleep".to_vec(), mnt_id: Some(-1), ..Default::default() };
    write(dump, ImageKind::RegFiles, &reg);
    write(dump, ImageKind::RegFiles, &reg);
    let inet = InetSkEntry { family: 2, src_addr: vec![0x0100_007f], dst_addr: vec![0], ..Default::default() };
    write(dump, ImageKind::Inetsk, &inet);
    write(dump, ImageKind::Inetsk, &inet);
    let uts = UtsnsEntry { nodename: b"here".to_vec(), domainname: b"(none)".to_vec() };
    write(dump, ImageKind::Utsns, &uts);
    write(dump, ImageKind::Utsns, &uts);
    let file = FileEntry { r#type: FdTypes::Reg.into(), id: 5, reg: Some(reg), ..Default::default() };
    write(dump, ImageKind::Files, &file);
    let file = FileEntry { r#type: FdTypes::Inetsk.into(), id: 6, isk: Some(inet), ..Default::default() };
    write(dump, ImageKind::Files, &file);
    let inventory = InventoryEntry { img_version: 2, fdinfo_per_id: Some(true), ..Default::default() };
    write(dump, ImageKind::Inventory, &inventory);
    write(dump, ImageKind::Inventory, &inventory);
}

#[test]
fn crit_reads_every_kind() {
    let dir = tempfile::tempdir().unwrap();
    let dump = DumpDir::create(dir.path()).unwrap();
    write_plain(&dump);
    write_tailed(&dump);
    write_full(&dump);
    dump.raw_file(ImageKind::Ifaddr, 1).unwrap().write_all(b"raw").unwrap();
    dump.commit(CommitOptions::default()).unwrap();

    let image = ImageDir::open(dir.path()).unwrap();
    for &kind in ImageKind::ALL {
        if kind.is_raw() || kind.is_service() || is_old(kind) {
            continue;
        }
        let id = kind.has_id().then_some(1);
        assert_eq!(image.check_file(kind, id).unwrap(), 2, "{kind:?} was written");
        if UNKNOWN_TO_CRIT.contains(&kind) {
            continue;
        }
        let decoded = crit(&image.path_of(kind, id).unwrap());
        assert_eq!(decoded["entries"].as_array().unwrap().len(), 2, "{kind:?}: {decoded}");
    }
}

#[test]
fn crit_reads_the_values_that_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let dump = DumpDir::create(dir.path()).unwrap();
    write_tailed(&dump);
    write_full(&dump);
    dump.commit(CommitOptions::default()).unwrap();
    let first = |name: &str, index: usize| crit(&dir.path().join(name))["entries"][index].take();

    assert_eq!(first("pstree.img", 0)["threads"], json!([17, 18]));
    let core = first("core-1.img", 0);
    assert_eq!(core["mtype"], "X86_64");
    assert_eq!(core["thread_info"]["gpregs"]["ip"], 0x7fff_1234_5678_u64);
    assert_eq!(core["tc"]["comm"], "sleep");
    assert_eq!(core["thread_core"]["sched_nice"], -5);
    assert_eq!(first("mm-1.img", 0)["vmas"][1]["fd"], -1);
    assert_eq!(first("reg-files.img", 0)["name"], "/bin/sleep");
    assert_eq!(first("files.img", 1)["type"], "INETSK");
    assert_eq!(first("pagemap-1.img", 1)["nr_pages"], 3);
    assert_eq!(first("pipes-data.img", 0)["extra"], "c29tZSBieXRlcw==\n");
    assert_eq!(first("ipcns-sem-1.img", 0)["extra"].as_array().unwrap().len(), 5);
    assert_eq!(first("ipcns-msg-1.img", 0)["extra"][1], "c29tZSBieXRlcw==\n");
    assert_eq!(first("ghost-file-1.img", 1)["extra"], "dGFpbA==\n");
}

#[test]
fn crit_reads_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let dump = DumpStatsEntry { frozen_time: 1234, ..Default::default() };
    stats::write_dump_stats(dir.path(), dump).unwrap();
    let restore = RestoreStatsEntry { restore_time: 99, ..Default::default() };
    stats::write_restore_stats(dir.path(), restore).unwrap();
    let decoded = crit(&dir.path().join("stats-dump"));
    assert_eq!(decoded["magic"], "STATS");
    assert_eq!(decoded["entries"][0]["dump"]["frozen_time"], 1234);
    let decoded = crit(&dir.path().join("stats-restore"));
    assert_eq!(decoded["entries"][0]["restore"]["restore_time"], 99);
}

#[test]
fn what_crit_writes_is_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    let dump = DumpDir::create(dir.path()).unwrap();
    write_tailed(&dump);
    write_full(&dump);
    dump.commit(CommitOptions::default()).unwrap();
    for name in [
        "core-1.img",
        "files.img",
        "ghost-file-1.img",
        "inventory.img",
        "ipcns-msg-1.img",
        "mm-1.img",
        "pipes-data.img",
        "pstree.img",
        "tcp-stream-1.img",
    ] {
        let path = dir.path().join(name);
        let (json, again) = (dir.path().join("decoded"), dir.path().join("encoded"));
        std::fs::write(&json, crit(&path).to_string()).unwrap();
        let status = Command::new("/usr/bin/python3")
            .args(["/usr/bin/crit", "encode", "-i"])
            .arg(&json)
            .arg("-o")
            .arg(&again)
            .status()
            .unwrap();
        assert!(status.success(), "{name}");
        assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&path).unwrap(), "{name}");
    }
}
