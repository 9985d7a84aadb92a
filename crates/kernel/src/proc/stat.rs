//! `/proc/PID/stat`: the one-line description of a task (proc_pid_stat(5)).

use super::text::{self, Malformed, OrMalformed};

/// The state letter of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// `R`
    Running,
    /// `S`
    Sleeping,
    /// `D`
    DiskSleep,
    /// `T`: stopped by a signal.
    Stopped,
    /// `t`: stopped by its tracer.
    TracingStop,
    /// `Z`
    Zombie,
    /// `X`, `x`
    Dead,
    /// `I`: idle kernel thread.
    Idle,
    /// `P`, `W`, `K`: states of older kernels.
    Other(u8),
}

impl State {
    pub(crate) fn from_letter(letter: u8) -> Self {
        match letter {
            b'R' => Self::Running,
            b'S' => Self::Sleeping,
            b'D' => Self::DiskSleep,
            b'T' => Self::Stopped,
            b't' => Self::TracingStop,
            b'Z' => Self::Zombie,
            b'X' | b'x' => Self::Dead,
            b'I' => Self::Idle,
            other => Self::Other(other),
        }
    }
}

/// The fields of `stat` that mean something today, under the names of the manual. The addresses, `wchan` and
/// the exit code read 0 without the right to trace the task; times are in clock ticks (100 a second).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub pid: i32,
    /// At most 15 bytes, not escaped.
    pub comm: Vec<u8>,
    pub state: State,
    pub ppid: i32,
    pub pgrp: i32,
    pub session: i32,
    /// Device number of the controlling terminal as the kernel packs it for user space; 0 without one.
    pub tty_nr: i32,
    /// Foreground group of the terminal; -1 without a terminal.
    pub tpgid: i32,
    /// `PF_*` of linux/sched.h.
    pub flags: u32,
    pub minflt: u64,
    pub cminflt: u64,
    pub majflt: u64,
    pub cmajflt: u64,
    pub utime: u64,
    pub stime: u64,
    pub cutime: i64,
    pub cstime: i64,
    pub priority: i64,
    pub nice: i64,
    pub num_threads: i64,
    /// Ticks from boot, in the reader's time namespace.
    pub start_time: u64,
    /// Bytes.
    pub vsize: u64,
    /// Pages.
    pub rss: i64,
    pub rsslim: u64,
    pub start_code: u64,
    pub end_code: u64,
    pub start_stack: u64,
    /// Current stack pointer; 0 unless the task exits or dumps core.
    pub kstkesp: u64,
    /// Current instruction pointer, likewise.
    pub kstkeip: u64,
    pub exit_signal: i32,
    pub processor: i32,
    pub rt_priority: u32,
    pub policy: u32,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// In the form that wait(2) reports.
    pub exit_code: i32,
}

/// Hands out the numbers that follow the name, one after the other.
struct Numbers<'a, I> {
    words: I,
    line: &'a [u8],
}

impl<'a, I: Iterator<Item = &'a [u8]>> Numbers<'a, I> {
    fn word(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        self.words.next().or_malformed(what, self.line)
    }

    fn signed<T: TryFrom<i64>>(&mut self, what: &'static str) -> Result<T, Malformed> {
        let word = self.word(what)?;
        text::signed(word).or_malformed(what, word)
    }

    fn unsigned<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, Malformed> {
        let word = self.word(what)?;
        text::dec(word).or_malformed(what, word)
    }

    fn skip(&mut self, count: usize) {
        self.words.by_ref().take(count).for_each(drop);
    }
}

/// Parses `stat`. The name may hold parentheses, blanks and newlines: it ends at the last `)`.
pub fn parse(text: &[u8]) -> Result<Stat, Malformed> {
    let text = text.trim_ascii_end();
    let open = text.iter().position(|&byte| byte == b'(').or_malformed("name", text)?;
    let close = text.iter().rposition(|&byte| byte == b')').filter(|&at| at > open).or_malformed("name", text)?;
    let mut rest = Numbers { words: text::words(&text[close + 1..]), line: text };
    let state = rest.word("state")?;
    let stat = Stat {
        pid: text::dec(text[..open].trim_ascii_end()).or_malformed("pid", text)?,
        comm: text[open + 1..close].to_vec(),
        state: State::from_letter(state[0]),
        ppid: rest.signed("ppid")?,
        pgrp: rest.signed("pgrp")?,
        session: rest.signed("session")?,
        tty_nr: rest.signed("tty_nr")?,
        tpgid: rest.signed("tpgid")?,
        flags: rest.unsigned("flags")?,
        minflt: rest.unsigned("minflt")?,
        cminflt: rest.unsigned("cminflt")?,
        majflt: rest.unsigned("majflt")?,
        cmajflt: rest.unsigned("cmajflt")?,
        utime: rest.unsigned("utime")?,
        stime: rest.unsigned("stime")?,
        cutime: rest.signed("cutime")?,
        cstime: rest.signed("cstime")?,
        priority: rest.signed("priority")?,
        nice: rest.signed("nice")?,
        num_threads: rest.signed("num_threads")?,
        start_time: {
            rest.skip(1); // itrealvalue, always 0
            rest.unsigned("starttime")?
        },
        vsize: rest.unsigned("vsize")?,
        rss: rest.signed("rss")?,
        rsslim: rest.unsigned("rsslim")?,
        start_code: rest.unsigned("startcode")?,
        end_code: rest.unsigned("endcode")?,
        start_stack: rest.unsigned("startstack")?,
        kstkesp: rest.unsigned("kstkesp")?,
        kstkeip: rest.unsigned("kstkeip")?,
        exit_signal: {
            rest.skip(7); // signal sets of 32 bits (status has them whole), wchan, nswap, cnswap
            rest.signed("exit_signal")?
        },
        processor: rest.signed("processor")?,
        rt_priority: rest.unsigned("rt_priority")?,
        policy: rest.unsigned("policy")?,
        start_data: {
            rest.skip(3); // delayacct_blkio_ticks, guest_time, cguest_time
            rest.unsigned("start_data")?
        },
        end_data: rest.unsigned("end_data")?,
        start_brk: rest.unsigned("start_brk")?,
        arg_start: rest.unsigned("arg_start")?,
        arg_end: rest.unsigned("arg_end")?,
        env_start: rest.unsigned("env_start")?,
        env_end: rest.unsigned("env_end")?,
        exit_code: rest.signed("exit_code")?,
    };
    Ok(stat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Task;

    const SAMPLE: &[u8] = b"5235 (a) R (b\n) t 5227 5226 4299 -34816 -1 4194304 100 1 2 3 4 5 6 -7 20 -5 12 0 84562 \
        3133440 385 18446744073709551615 94107301076992 94107301096873 140726174013088 8 9 0 0 0 0 1 0 0 17 1 2 3 0 0 0 \
        94107301112880 94107301114496 94108255006720 140726174014160 140726174014198 140726174014198 \
        140726174015467 256\n";

    #[test]
    fn finds_the_name_and_every_field() {
        let stat = parse(SAMPLE).unwrap();
        assert_eq!(stat.comm, b"a) R (b\n");
        assert_eq!((stat.pid, stat.ppid, stat.pgrp, stat.session), (5235, 5227, 5226, 4299));
        assert_eq!((stat.state, stat.tty_nr, stat.tpgid), (State::TracingStop, -34816, -1));
        assert_eq!((stat.cutime, stat.cstime, stat.nice, stat.num_threads), (6, -7, -5, 12));
        assert_eq!((stat.start_time, stat.vsize, stat.rss), (84562, 3133440, 385));
        assert_eq!((stat.kstkesp, stat.kstkeip), (8, 9));
        assert_eq!((stat.exit_signal, stat.processor, stat.rt_priority, stat.policy), (17, 1, 2, 3));
        assert_eq!((stat.start_data, stat.env_end, stat.exit_code), (94107301112880, 140726174015467, 256));
    }

    #[test]
    fn refuses_a_cut_line() {
        let cut = &SAMPLE[..SAMPLE.len() - 5];
        assert!(parse(cut).unwrap_err().what == "exit_code");
        assert!(parse(b"1 )(").is_err());
        assert!(parse(b"").is_err());
    }

    #[test]
    fn live() {
        let stat = Task::current().unwrap().stat().unwrap();
        assert_eq!(stat.pid, std::process::id() as i32);
        assert!(stat.env_end >= stat.env_start && stat.env_start >= stat.arg_end && stat.arg_start != 0);
        assert_eq!(stat.exit_signal, libc::SIGCHLD);
    }
}
