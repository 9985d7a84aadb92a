//! What may differ between a tree before its checkpoint and after its restore, and why. Nothing else may.

use super::Field;

/// A sort of field that may differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// process, thread, descriptor or mapping.
    pub kind: String,
    /// The name of the field; a `*` at the end stands for any rest.
    pub name: String,
    /// Why it may differ.
    pub reason: String,
}

impl Rule {
    /// `KIND NAME, REASON`, as a workload declares it.
    pub fn parse(text: &str) -> Option<Self> {
        let (what, reason) = text.split_once(", ")?;
        let (kind, name) = what.split_once(' ')?;
        Some(Self { kind: kind.to_owned(), name: name.to_owned(), reason: reason.to_owned() })
    }

    /// Whether it speaks of this field.
    pub fn covers(&self, field: &Field) -> bool {
        covers(&self.kind, &self.name, field)
    }
}

const ACCOUNT: &str = "an account of what was used until now, which the kernel keeps for itself and lets nobody set";
const RESIDENT: &str = "which pages are in memory depends on what was touched; what they hold is compared";
const WORKERS: &str = "counts workers of the kernel too, which come and go; the threads themselves are compared";
const MACHINE: &str = "counts or numbers things of the whole machine";
const MEASURED: &str = "what TCP has measured of its connection, or derives from that: it measures anew";
const PIECES: &str = "memory for what is in the queues, by the pieces in which that has come; its bytes are compared";

/// Kind, name, reason.
const RULES: &[(&str, &str, &str)] = &[
    ("process", "stat.flags", "the kernel's own notes, such as that a process has forked or used root's rights"),
    ("thread", "stat.flags", "the kernel's own notes, such as that a process has forked or used root's rights"),
    ("process", "stat.minflt", ACCOUNT),
    ("process", "stat.majflt", ACCOUNT),
    ("process", "stat.cminflt", ACCOUNT),
    ("process", "stat.cmajflt", ACCOUNT),
    ("process", "stat.utime", ACCOUNT),
    ("process", "stat.stime", ACCOUNT),
    ("process", "stat.cutime", ACCOUNT),
    ("process", "stat.cstime", ACCOUNT),
    ("process", "stat.delayacct_blkio_ticks", ACCOUNT),
    ("process", "stat.starttime", "the moment of the birth, which was another"),
    ("process", "stat.rss", RESIDENT),
    ("process", "stat.processor", "where it ran last"),
    ("process", "stat.wchan", "0 or 1, whether it sleeps at this moment"),
    ("thread", "stat.minflt", ACCOUNT),
    ("thread", "stat.majflt", ACCOUNT),
    ("thread", "stat.cminflt", ACCOUNT),
    ("thread", "stat.cmajflt", ACCOUNT),
    ("thread", "stat.utime", ACCOUNT),
    ("thread", "stat.stime", ACCOUNT),
    ("thread", "stat.cutime", ACCOUNT),
    ("thread", "stat.cstime", ACCOUNT),
    ("thread", "stat.delayacct_blkio_ticks", ACCOUNT),
    ("thread", "stat.starttime", "the moment of the birth, which was another"),
    ("thread", "stat.rss", RESIDENT),
    ("thread", "stat.processor", "where it ran last"),
    ("thread", "stat.wchan", "0 or 1, whether it sleeps at this moment"),
    ("process", "stat.num_threads", WORKERS),
    ("process", "status.Threads", WORKERS),
    ("thread", "stat.num_threads", WORKERS),
    ("thread", "status.Threads", WORKERS),
    ("process", "sessionid", "a number that the kernel gives out whenever a login uid is set"),
    ("process", "oom_score", "computed from the memory in use"),
    ("process", "status.FDSize", "room in the table of descriptors, which the kernel grows as it likes"),
    ("thread", "status.FDSize", "room in the table of descriptors, which the kernel grows as it likes"),
    ("process", "status.SigQ", MACHINE),
    ("thread", "status.SigQ", MACHINE),
    ("process", "status.voluntary_ctxt_switches", ACCOUNT),
    ("process", "status.nonvoluntary_ctxt_switches", ACCOUNT),
    ("thread", "status.voluntary_ctxt_switches", ACCOUNT),
    ("thread", "status.nonvoluntary_ctxt_switches", ACCOUNT),
    ("process", "ksm_stat.*", "what the kernel's merging of pages has come to; whether it is asked for is compared"),
    ("thread", "shared.I/O context", "made by the first I/O; threads without any compare as sharing one"),
    ("descriptor", "memfd.modified", "the images have no place for the times of a memfd"),
    ("descriptor", "memfd.modified_ns", "the images have no place for the times of a memfd"),
    ("descriptor", "fdinfo.eventfd-id", MACHINE),
    ("descriptor", "fdinfo.map_id", MACHINE),
    ("descriptor", "fdinfo.SqThread", "a thread of the kernel, which is another after the restore"),
    ("descriptor", "fdinfo.SqThreadCpu", "where that thread ran last"),
    ("descriptor", "fdinfo.SqTotalTime", ACCOUNT),
    ("descriptor", "fdinfo.SqWorkTime", ACCOUNT),
    ("descriptor", "socket.diag.expires", "the time that is left until a timer ends; which runs is compared"),
    ("descriptor", "socket.diag.retransmits", MEASURED),
    ("descriptor", "socket.diag.memory.received", PIECES),
    ("descriptor", "socket.diag.memory.in_advance", PIECES),
    ("descriptor", "socket.diag.memory.drops", ACCOUNT),
];

/// Lines of `status` about resident memory, which a process and its threads tell alike.
const STATUS_RESIDENT: &[&str] = &[
    "status.VmPeak",
    "status.VmHWM",
    "status.VmRSS",
    "status.RssAnon",
    "status.RssFile",
    "status.RssShmem",
    "status.VmPTE",
    "status.VmSwap",
    "status.HugetlbPages",
];

/// Of `struct tcp_info`. How often the peer was asked in vain is among it, for that begins anew; and so are numbers of
/// packets in flight, for the restore may send other pieces. Their bytes are compared.
const TCP_MEASURED: &[&str] = &[
    "ca_state",
    "retransmits",
    "probes",
    "backoff",
    "rto",
    "ato",
    "rcv_mss",
    "unacked",
    "sacked",
    "lost",
    "retrans",
    "rcv_ssthresh",
    "rtt",
    "rttvar",
    "snd_ssthresh",
    "snd_cwnd",
    "reordering",
    "rcv_rtt",
    "rcv_space",
    "pacing_rate",
    "min_rtt",
    "delivery_rate",
];
/// What is counted there since the connection was made.
const TCP_COUNTED: &[&str] = &[
    "last_data_sent",
    "last_data_recv",
    "last_ack_recv",
    "total_retrans",
    "bytes_acked",
    "bytes_received",
    "segs_out",
    "segs_in",
    "data_segs_in",
    "data_segs_out",
    "busy_time",
    "rwnd_limited",
    "sndbuf_limited",
    "delivered",
    "delivered_ce",
    "bytes_sent",
    "bytes_retrans",
    "dsack_dups",
    "reord_seen",
    "rcv_ooopack",
    "rehash",
];

/// Why a member of `struct tcp_info` may differ.
fn of_tcp(name: &str) -> Option<&'static str> {
    let measured = TCP_MEASURED.contains(&name).then_some(MEASURED);
    measured.or(TCP_COUNTED.contains(&name).then_some(ACCOUNT))
}

/// Names that a `*` of the rules does not stand for.
const ALWAYS_COMPARED: &[&str] = &["ksm_stat.ksm_merge_any", "ksm_stat.ksm_mergeable"];

fn covers(kind: &str, name: &str, field: &Field) -> bool {
    let named = match name.strip_suffix('*') {
        Some(prefix) => field.name.starts_with(prefix) && !ALWAYS_COMPARED.contains(&field.name.as_str()),
        None => field.name == name,
    };
    named && field.object.kind() == kind
}

/// Whether this difference is one that must be borne.
pub(super) fn allowed(field: &Field, before: Option<&String>, after: Option<&String>, more: &[Rule]) -> bool {
    if STATUS_RESIDENT.contains(&field.name.as_str()) || more.iter().any(|rule| rule.covers(field)) {
        return true;
    }
    // A state of sleep or work is one; stopped, traced and dead are not.
    let restless = |value: Option<&String>| value.is_some_and(|state| ["R", "S", "D"].contains(&state.as_str()));
    let number = |value: Option<&String>| value.and_then(|text| text.parse::<u64>().ok());
    let both = (number(before), number(after));
    match field.name.as_str() {
        "stat.state" => restless(before) && restless(after),
        "status.State" => {
            let letter = |value: Option<&String>| value.map(|text| text.chars().take(1).collect::<String>());
            restless(letter(before).as_ref()) && restless(letter(after).as_ref())
        }
        // A nap that was over when it was stopped, and one that was not (-ERESTART_RESTARTBLOCK).
        "registers.rax" => {
            let nap = |value: Option<&String>| value.is_some_and(|rax| rax == "0x0" || rax == "0xfffffffffffffdfc");
            nap(before) && nap(after)
        }
        // An interval timer that nobody reads goes on counting.
        "fdinfo.ticks" => matches!(both, (Some(before), Some(after)) if before <= after),
        // Segments grow with the peer's window; they must not become small. More than 32767 cannot be asked for.
        "socket.IPPROTO_TCP.2" => {
            let size =
                |value: Option<&String>| value.and_then(|hex| u32::from_str_radix(hex, 16).ok()).map(u32::swap_bytes);
            matches!((size(before), size(after)), (Some(before), Some(after)) if after >= (before - before / 8).min(32_000))
        }
        "socket.diag.tcp.snd_mss" | "socket.diag.tcp.advmss" => {
            matches!(both, (Some(before), Some(after)) if after >= (before - before / 8).min(32_000))
        }
        // Told anew by a packet, in steps of its scale; it never gets smaller than was promised.
        "socket.diag.tcp.snd_wnd" | "socket.diag.tcp.rcv_wnd" => {
            matches!(both, (Some(before), Some(after)) if after >= before)
        }
        // To bind a socket to an address of IPv6 sets IPV6_V6ONLY, which a connection does not.
        "socket.IPPROTO_IPV6.26" => {
            before.is_some_and(|v6| v6 == "00000000") && after.is_some_and(|v6| v6 == "01000000")
        }
        // The images tell the times of a deleted file in microseconds.
        "file.modified_ns" => after.is_some_and(|ns| ns == "0"),
        name if name.strip_prefix("socket.diag.tcp.").and_then(of_tcp).is_some() => true,
        _ => RULES.iter().any(|(kind, name, _)| covers(kind, name, field)),
    }
}
