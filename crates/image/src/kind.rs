//! Every kind of image file: its name, its magic numbers, its messages.

use std::path::Path;

use crate::error::{Error, Result};
use crate::records::*;
use crate::shape::{Record, Shape};

/// First word of an ordinary image file.
pub(crate) const COMMON_MAGIC: u32 = 0x5456_4319;
/// First word of a file that describes a run of the tool, not the processes.
pub(crate) const SERVICE_MAGIC: u32 = 0x5510_5940;

/// How a file begins. Words are 32 bits, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Its own magic alone; only `inventory.img`.
    Inventory(u32),
    /// The common magic, then its own.
    Common(u32),
    /// The service magic, then its own.
    Service(u32),
    /// No header: the data begin at byte 0.
    Raw,
}

impl Header {
    /// The words at the file's beginning.
    pub(crate) fn words(self) -> Vec<u32> {
        match self {
            Self::Inventory(own) => vec![own],
            Self::Common(own) => vec![COMMON_MAGIC, own],
            Self::Service(own) => vec![SERVICE_MAGIC, own],
            Self::Raw => vec![],
        }
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.words().into_iter().flat_map(u32::to_le_bytes).collect()
    }
}

struct Facts {
    /// `%u` stands for a decimal number, `%x` for a hexadecimal one.
    pattern: &'static str,
    header: Header,
    records: &'static [&'static Shape],
}

/// Builds the enum and its table from one list. A row is: variant, file name,
/// header, messages that may occur in the file (none: raw bytes).
macro_rules! kinds {
    ($($variant:ident $pattern:literal $header:ident $(($magic:literal))? [$($record:ident),*];)*) => {
        /// A kind of image file.
        ///
        /// The names are those of CRIU v4.2's own table of image files; `...Old`
        /// kinds occur only in images of long-gone versions.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ImageKind {
            $(#[doc = concat!("`", $pattern, "`")] $variant,)*
        }

        impl ImageKind {
            /// All kinds there are.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn facts(self) -> Facts {
                match self {
                    $(Self::$variant => Facts {
                        pattern: $pattern,
                        header: Header::$header $(($magic))?,
                        records: &[$(<$record as Record>::SHAPE),*],
                    },)*
                }
            }
        }
    };
}

kinds! {
    Inventory "inventory.img" Inventory(0x5831_3116) [InventoryEntry];
    Fdinfo "fdinfo-%u.img" Common(0x5621_3732) [FdinfoEntry];
    Pagemap "pagemap-%u.img" Common(0x5608_4025) [PagemapHead, PagemapEntry];
    ShmemPagemap "pagemap-shmem-%u.img" Common(0x5608_4025) [PagemapHead, PagemapEntry];
    RegFiles "reg-files.img" Common(0x5036_3636) [RegFileEntry];
    ExtFiles "ext-files.img" Common(0x5925_5641) [ExtFileEntry];
    NsFiles "ns-files.img" Common(0x6139_4011) [NsFileEntry];
    EventfdFile "eventfd.img" Common(0x4452_3722) [EventfdFileEntry];
    EventpollFile "eventpoll.img" Common(0x4502_3858) [EventpollFileEntry];
    EventpollTfd "eventpoll-tfd.img" Common(0x4443_3746) [EventpollTfdEntry];
    Signalfd "signalfd.img" Common(0x5732_3820) [SignalfdEntry];
    InotifyFile "inotify.img" Common(0x4842_4431) [InotifyFileEntry];
    InotifyWd "inotify-wd.img" Common(0x5456_2009) [InotifyWdEntry];
    FanotifyFile "fanotify.img" Common(0x5509_6122) [FanotifyFileEntry];
    FanotifyMark "fanotify-mark.img" Common(0x5650_6035) [FanotifyMarkEntry];
    Core "core-%u.img" Common(0x5505_3847) [CoreEntry];
    Ids "ids-%u.img" Common(0x5443_2030) [TaskKobjIdsEntry];
    Mm "mm-%u.img" Common(0x5749_2820) [MmEntry];
    Vmas "vmas-%u.img" Common(0x5412_3737) [VmaEntry];
    Pipes "pipes.img" Common(0x5651_3555) [PipeEntry];
    PipesData "pipes-data.img" Common(0x5645_3709) [PipeDataEntry];
    Fifo "fifo.img" Common(0x5836_4939) [FifoEntry];
    FifoData "fifo-data.img" Common(0x5933_3054) [PipeDataEntry];
    Pstree "pstree.img" Common(0x5027_3030) [PstreeEntry];
    Sigact "sigacts-%u.img" Common(0x5534_4201) [SaEntry];
    Unixsk "unixsk.img" Common(0x5437_3943) [UnixSkEntry];
    Inetsk "inetsk.img" Common(0x5644_3851) [InetSkEntry];
    Packetsk "packetsk.img" Common(0x6045_4618) [PacketSockEntry];
    NetlinkSk "netlinksk.img" Common(0x5800_5614) [NetlinkSkEntry];
    SkQueues "sk-queues.img" Common(0x5626_4026) [SkPacketEntry];
    Itimers "itimers-%u.img" Common(0x5746_4056) [ItimerEntry];
    PosixTimers "posix-timers-%u.img" Common(0x5260_3957) [PosixTimerEntry];
    Creds "creds-%u.img" Common(0x5402_3547) [CredsEntry];
    Utsns "utsns-%u.img" Common(0x5447_3203) [UtsnsEntry];
    IpcVar "ipcns-var-%u.img" Common(0x5311_5007) [IpcVarEntry];
    IpcnsShm "ipcns-shm-%u.img" Common(0x4628_3044) [IpcShmEntry];
    IpcnsMsg "ipcns-msg-%u.img" Common(0x5545_3737) [IpcMsgEntry, IpcMsg];
    IpcnsSem "ipcns-sem-%u.img" Common(0x5957_3019) [IpcSemEntry];
    Fs "fs-%u.img" Common(0x5140_3912) [FsEntry];
    RemapFpath "remap-fpath.img" Common(0x5913_3954) [RemapFilePathEntry];
    GhostFile "ghost-file-%x.img" Common(0x5258_3605) [GhostFileEntry, GhostChunkEntry];
    MemfdInode "memfd.img" Common(0x4845_3499) [MemfdInodeEntry];
    TcpStream "tcp-stream-%x.img" Common(0x5146_5506) [TcpStreamEntry];
    Mnts "mountpoints-%u.img" Common(0x5556_3928) [MntEntry];
    Netdev "netdev-%u.img" Common(0x5737_3951) [NetDeviceEntry];
    Netns "netns-%u.img" Common(0x5593_3752) [NetnsEntry];
    Ifaddr "ifaddr-%u.img" Raw [];
    Route "route-%u.img" Raw [];
    Route6 "route6-%u.img" Raw [];
    Rule "rule-%u.img" Raw [];
    Iptables "iptables-%u.img" Raw [];
    Ip6tables "ip6tables-%u.img" Raw [];
    Nftables "nftables-%u.img" Raw [];
    Tmpfs "tmpfs-%u.tar.gz.img" Raw [];
    TmpfsDev "tmpfs-dev-%u.tar.gz.img" Raw [];
    Autofs "autofs-%u.img" Common(0x4935_3943) [AutofsEntry];
    BinfmtMiscOld "binfmt-misc-%u.img" Common(0x6734_3323) [BinfmtMiscEntry];
    BinfmtMisc "binfmt-misc.img" Common(0x6734_3323) [BinfmtMiscEntry];
    TtyFiles "tty.img" Common(0x5943_3025) [TtyFileEntry];
    TtyInfo "tty-info.img" Common(0x5945_3036) [TtyInfoEntry];
    TtyData "tty-data.img" Common(0x5941_3026) [TtyDataEntry];
    FileLocks "filelocks.img" Common(0x5432_3616) [FileLockEntry];
    Rlimit "rlimit-%u.img" Common(0x5711_3925) [RlimitEntry];
    Pages "pages-%u.img" Raw [];
    PagesOld "pages-%u.img" Common(0x5608_4025) [];
    ShmPagesOld "pages-shmem-%u.img" Common(0x5608_4025) [];
    Signal "signal-s-%u.img" Common(0x5925_5647) [SiginfoEntry];
    Psignal "signal-p-%u.img" Common(0x5925_5647) [SiginfoEntry];
    Tunfile "tunfile.img" Common(0x5714_3751) [TunfileEntry];
    Cgroup "cgroup.img" Common(0x5938_3330) [CgroupEntry];
    Timerfd "timerfd.img" Common(0x5049_3712) [TimerfdEntry];
    Cpuinfo "cpuinfo.img" Common(0x6140_4013) [CpuinfoEntry];
    Seccomp "seccomp.img" Common(0x6441_3049) [SeccompEntry];
    Userns "userns-%u.img" Common(0x5547_4906) [UsernsEntry];
    NetnfCt "netns-ct-%u.img" Raw [];
    NetnfExp "netns-exp-%u.img" Raw [];
    Files "files.img" Common(0x5630_3138) [FileEntry];
    Timens "timens-%u.img" Common(0x4311_4433) [TimensEntry];
    Pidns "pidns-%u.img" Common(0x6115_7326) [PidnsEntry];
    BpfmapFile "bpfmap-file.img" Common(0x5750_6142) [BpfmapFileEntry];
    BpfmapData "bpfmap-data.img" Common(0x6432_4033) [BpfmapDataEntry];
    Apparmor "apparmor.img" Common(0x5942_3047) [ApparmorEntry];
    Pidfd "pidfd.img" Common(0x5443_5556) [PidfdEntry];
    StatsDump "stats-dump" Service(0x5709_3306) [StatsEntry];
    StatsRestore "stats-restore" Service(0x5709_3306) [StatsEntry];
    IrmapCache "irmap-cache" Service(0x5700_4059) [IrmapCacheEntry];
}

impl ImageKind {
    /// How files of this kind begin.
    pub fn header(self) -> Header {
        self.facts().header
    }

    /// Whether the file holds data alone: no header, no messages.
    pub fn is_raw(self) -> bool {
        self.header() == Header::Raw
    }

    /// Whether the file tells about a run of the tool instead of the processes.
    /// Such files lie in the work directory, which may be another one.
    pub fn is_service(self) -> bool {
        matches!(self.header(), Header::Service(_))
    }

    /// Whether the file holds contents of memory.
    pub fn is_pages(self) -> bool {
        matches!(self, Self::Pages | Self::PagesOld | Self::ShmPagesOld)
    }

    /// Whether the file's name carries a number.
    pub fn has_id(self) -> bool {
        self.facts().pattern.contains('%')
    }

    /// The messages that may occur in files of this kind; none if they hold data.
    pub fn records(self) -> &'static [&'static Shape] {
        self.facts().records
    }

    /// The name of a file of this kind, e.g. `core-17.img` for `Core` and 17.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the kind needs a number and `id` has none, or the
    /// other way round.
    pub fn file_name(self, id: impl Into<Option<u64>>) -> Result<String> {
        let pattern = self.facts().pattern;
        match (split(pattern), id.into()) {
            (None, None) => Ok(pattern.to_owned()),
            (Some((head, 16, tail)), Some(id)) => Ok(format!("{head}{id:x}{tail}")),
            (Some((head, _, tail)), Some(id)) => Ok(format!("{head}{id}{tail}")),
            (Some(_), None) => Err(Error::misuse(pattern, "this file's name needs a number")),
            (None, Some(id)) => Err(Error::misuse(pattern, format!("this file's name takes no number such as {id}"))),
        }
    }

    /// The kind and number of a file, judged by its name; `None` for files that
    /// are no part of an image.
    ///
    /// Of two kinds with the same name, it is the one of today's format. Does not allocate.
    pub fn from_file_name(name: &str) -> Option<(Self, Option<u64>)> {
        Self::ALL.iter().find_map(|&kind| {
            let pattern = kind.facts().pattern;
            let Some((head, radix, tail)) = split(pattern) else {
                return (name == pattern).then_some((kind, None));
            };
            let digits = name.strip_prefix(head)?.strip_suffix(tail)?;
            // Only the one spelling that we would write: no "+7", "07", "A".
            let canonical = digits.bytes().all(|b| b.is_ascii_digit() || radix == 16 && (b'a'..=b'f').contains(&b))
                && (digits == "0" || !digits.starts_with('0'));
            let id = u64::from_str_radix(digits, radix).ok().filter(|_| canonical)?;
            Some((kind, Some(id)))
        })
    }

    /// Refuses a message that does not belong into files of this kind.
    pub(crate) fn expect_record(self, path: &Path, shape: &Shape) -> Result<()> {
        match self.records().iter().any(|known| known.name() == shape.name()) {
            true => Ok(()),
            false => Err(Error::misuse(path, format!("{} does not belong into this file", shape.name()))),
        }
    }
}

/// Splits a pattern into what comes before the number, its radix, and the rest.
fn split(pattern: &'static str) -> Option<(&'static str, u32, &'static str)> {
    let (head, rest) = pattern.split_once('%')?;
    let radix = if rest.starts_with('x') { 16 } else { 10 };
    Some((head, radix, &rest[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for &kind in ImageKind::ALL {
            let id = kind.has_id().then_some(0x1f);
            let name = kind.file_name(id).unwrap();
            let (back, number) = ImageKind::from_file_name(&name).unwrap();
            assert_eq!(number, id, "{name}");
            assert!(back == kind || kind == ImageKind::PagesOld, "{name}: {back:?}");
        }
        assert_eq!(ImageKind::GhostFile.file_name(0x1f).unwrap(), "ghost-file-1f.img");
        assert_eq!(ImageKind::Tmpfs.file_name(3).unwrap(), "tmpfs-3.tar.gz.img");
    }

    #[test]
    fn foreign_names_are_foreign() {
        for name in [
            "descriptors.json",
            "core-.img",
            "core-1.img.bak",
            "core-+1.img",
            "core-01.img",
            "core-x.img",
            "ghost-file-1F.img",
            "files.img/",
            "",
            "core-99999999999999999999.img",
        ] {
            assert_eq!(ImageKind::from_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn numbers_are_asked_for() {
        assert!(ImageKind::Core.file_name(None).is_err());
        assert!(ImageKind::Files.file_name(1).is_err());
    }

    #[test]
    fn headers() {
        assert_eq!(ImageKind::Inventory.header().bytes(), [0x16, 0x31, 0x31, 0x58]);
        assert_eq!(ImageKind::Core.header().bytes(), [0x19, 0x43, 0x56, 0x54, 0x47, 0x38, 0x05, 0x55]);
        assert_eq!(ImageKind::StatsDump.header().bytes()[..4], [0x40, 0x59, 0x10, 0x55]);
        assert!(ImageKind::Pages.header().bytes().is_empty());
    }
}
