//! A batch: system calls for a hand to run in one go, with the bytes that they
//! read and write.
//!
//! The batch is built without knowing where it will stand; [`Arg`] names data
//! and earlier results symbolically, and [`Batch::encode`] makes addresses of
//! them for one [`Place`].

use crate::scratch::op;
use rustix::io::Errno;

/// An argument of a system call in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// This value.
    Val(u64),
    /// The address of these bytes of the batch's data.
    Data(Data),
    /// What an earlier call of the same batch returned.
    Result(Call),
    /// The 64-bit value that stands at this address of the target when the
    /// call is made.
    At(u64),
    /// The 64-bit value that stands in the batch's data when the call is made:
    /// what an earlier call has written there. Of one that takes a descriptor,
    /// the kernel looks at the lower half only.
    Within(Data),
}

impl From<u64> for Arg {
    fn from(v: u64) -> Self {
        Arg::Val(v)
    }
}
impl From<i32> for Arg {
    fn from(v: i32) -> Self {
        Arg::Val(i64::from(v) as u64)
    }
}
impl From<u32> for Arg {
    fn from(v: u32) -> Self {
        Arg::Val(u64::from(v))
    }
}
impl From<usize> for Arg {
    fn from(v: usize) -> Self {
        Arg::Val(v as u64)
    }
}
impl From<Data> for Arg {
    fn from(d: Data) -> Self {
        Arg::Data(d)
    }
}
impl From<Call> for Arg {
    fn from(c: Call) -> Self {
        Arg::Result(c)
    }
}

/// Bytes in a batch's data area: an offset and a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    off: u32,
    len: u32,
}

impl Data {
    /// The part that begins `by` bytes further on.
    #[must_use]
    pub fn at(self, by: usize) -> Data {
        Data { off: self.off + by as u32, len: self.len.saturating_sub(by as u32) }
    }
    /// Length in bytes.
    #[must_use]
    pub fn len(self) -> usize {
        self.len as usize
    }
    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// One call of a batch, by which its result is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call(u32);

#[derive(Debug, Clone)]
struct Op {
    nr: u64,
    args: [Arg; 6],
    may_fail: bool,
    result: i64,
    reached: bool,
}

/// System calls to run in a target, in order. A call that fails ends the
/// batch, unless it was added by [`Batch::attempt`].
#[derive(Debug, Clone, Default)]
pub struct Batch {
    ops: Vec<Op>,
    data: Vec<u8>,
    fixups: Vec<(u32, Data)>,
    outputs: Vec<Data>,
}

/// Where a batch stands in a target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub ops: u64,
    pub data: u64,
    pub ops_max: usize,
    pub data_max: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a call; up to six arguments.
    pub fn call<const N: usize>(&mut self, nr: i64, args: [Arg; N]) -> Call {
        self.push(nr, &args, false)
    }

    /// Adds a call whose failure does not end the batch.
    pub fn attempt<const N: usize>(&mut self, nr: i64, args: [Arg; N]) -> Call {
        self.push(nr, &args, true)
    }

    fn push(&mut self, nr: i64, args: &[Arg], may_fail: bool) -> Call {
        let mut six = [Arg::Val(0); 6];
        six[..args.len()].copy_from_slice(args);
        self.ops.push(Op { nr: nr as u64, args: six, may_fail, result: 0, reached: false });
        Call(self.ops.len() as u32 - 1)
    }

    /// Adds bytes for calls to read, on an 8-byte boundary.
    pub fn bytes(&mut self, bytes: &[u8]) -> Data {
        while !self.data.len().is_multiple_of(8) {
            self.data.push(0);
        }
        let d = Data { off: self.data.len() as u32, len: bytes.len() as u32 };
        self.data.extend_from_slice(bytes);
        d
    }

    /// Adds a string with its terminating zero. A zero inside cuts it short,
    /// as it would for the kernel.
    pub fn cstr(&mut self, s: impl AsRef<[u8]>) -> Data {
        let mut v = s.as_ref().to_vec();
        v.push(0);
        self.bytes(&v)
    }

    /// Adds zeroed space of which the contents are read back after the run.
    pub fn space(&mut self, len: usize) -> Data {
        let d = self.bytes(&vec![0; len]);
        self.outputs.push(d);
        d
    }

    /// Marks bytes that calls change, so that they are read back.
    pub fn read_back(&mut self, d: Data) {
        self.outputs.push(d);
    }

    /// Overwrites the first bytes of `at`.
    pub fn set(&mut self, at: Data, bytes: &[u8]) {
        let start = at.off as usize;
        self.data[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Makes the eight bytes at `at` hold the address of `of`, for structures
    /// that point to others.
    pub fn point(&mut self, at: Data, of: Data) {
        self.fixups.push((at.off, of));
    }

    /// Number of calls.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is no call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of data so far.
    #[must_use]
    pub fn data_len(&self) -> usize {
        self.data.len()
    }

    /// What a call returned. `ECANCELED` if it was not reached because an
    /// earlier one failed.
    pub fn result(&self, c: Call) -> Result<u64, Errno> {
        let op = &self.ops[c.0 as usize];
        if !op.reached {
            return Err(Errno::CANCELED);
        }
        if (-4095..0).contains(&op.result) {
            return Err(Errno::from_raw_os_error(-op.result as i32));
        }
        Ok(op.result as u64)
    }

    /// The first call that failed and ended the batch: its index among the
    /// calls, its number and the error.
    #[must_use]
    pub fn failure(&self) -> Option<(usize, i64, Errno)> {
        self.ops.iter().enumerate().find_map(|(i, op)| {
            let failed = op.reached && !op.may_fail && (-4095..0).contains(&op.result);
            failed.then(|| (i, op.nr as i64, Errno::from_raw_os_error(-op.result as i32)))
        })
    }

    /// The bytes of `d` as the calls left them.
    #[must_use]
    pub fn read(&self, d: Data) -> &[u8] {
        &self.data[d.off as usize..(d.off + d.len) as usize]
    }

    /// The 32-bit value at `d`.
    #[must_use]
    pub fn read_u32(&self, d: Data) -> u32 {
        u32::from_le_bytes(self.read(d)[..4].try_into().unwrap_or_default())
    }

    /// The 64-bit value at `d`.
    #[must_use]
    pub fn read_u64(&self, d: Data) -> u64 {
        u64::from_le_bytes(self.read(d)[..8].try_into().unwrap_or_default())
    }

    pub(crate) fn fits(&self, place: &Place) -> bool {
        self.ops.len() <= place.ops_max && self.data.len() <= place.data_max
    }

    /// The operations and data as they have to stand at `place`.
    pub(crate) fn encode(&self, place: &Place) -> (Vec<u8>, Vec<u8>) {
        let mut ops = Vec::with_capacity(self.ops.len() * op::SIZE);
        for o in &self.ops {
            let mut put = |v: u64| ops.extend_from_slice(&v.to_le_bytes());
            put(o.nr);
            let mut refs = if o.may_fail { op::MAY_FAIL } else { 0 };
            for (i, a) in o.args.iter().enumerate() {
                put(match *a {
                    Arg::Val(v) => v,
                    Arg::Data(d) => place.data + u64::from(d.off),
                    Arg::Result(c) => {
                        refs |= 1 << i;
                        place.ops + (c.0 as usize * op::SIZE + op::RESULT) as u64
                    }
                    Arg::At(address) => {
                        refs |= 1 << i;
                        address
                    }
                    Arg::Within(d) => {
                        refs |= 1 << i;
                        place.data + u64::from(d.off)
                    }
                });
            }
            put(refs);
            put(0);
            put(0);
        }
        let mut data = self.data.clone();
        for (at, of) in &self.fixups {
            let at = *at as usize;
            data[at..at + 8].copy_from_slice(&(place.data + u64::from(of.off)).to_le_bytes());
        }
        (ops, data)
    }

    pub(crate) fn take_results(&mut self, ops: &[u8], left: u64) {
        let failed_at = self.ops.len() - (left as usize).min(self.ops.len());
        for (i, o) in self.ops.iter_mut().enumerate() {
            let at = i * op::SIZE + op::RESULT;
            o.result = i64::from_le_bytes(ops[at..at + 8].try_into().unwrap_or_default());
            o.reached = left == 0 || i <= failed_at;
        }
    }

    /// The smallest range of the data that holds every output.
    pub(crate) fn output_range(&self) -> Option<std::ops::Range<usize>> {
        let start = self.outputs.iter().map(|d| d.off).min()? as usize;
        let end = self.outputs.iter().map(|d| d.off + d.len).max()? as usize;
        Some(start..end)
    }

    pub(crate) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { ops: 0x1000, data: 0x8000, ops_max: 8, data_max: 256 };

    #[test]
    fn symbolic_arguments_become_addresses() {
        let mut b = Batch::new();
        let path = b.cstr("/x");
        let fd = b.call(libc::SYS_open, [path.into(), Arg::Val(0)]);
        b.call(libc::SYS_close, [fd.into()]);
        b.call(libc::SYS_close, [Arg::Within(path.at(2))]);
        let (ops, data) = b.encode(&PLACE);
        let word = |at: usize| u64::from_le_bytes(ops[at..at + 8].try_into().unwrap());
        assert_eq!(word(op::ARGS), 0x8000);
        assert_eq!(word(op::SIZE + op::ARGS), 0x1000 + op::RESULT as u64);
        assert_eq!(word(op::SIZE + op::REFS), 1);
        assert_eq!((word(2 * op::SIZE + op::ARGS), word(2 * op::SIZE + op::REFS)), (0x8002, 1));
        assert_eq!(&data, b"/x\0");
    }

    #[test]
    fn calls_after_a_failure_are_told_apart() {
        let mut b = Batch::new();
        let (one, two) = (b.call(1, [Arg::Val(0)]), b.call(2, [Arg::Val(0)]));
        let (mut ops, _) = b.encode(&PLACE);
        ops[op::RESULT..op::RESULT + 8].copy_from_slice(&(-2i64).to_le_bytes());
        b.take_results(&ops, 2);
        assert_eq!(b.result(one), Err(Errno::NOENT));
        assert_eq!(b.result(two), Err(Errno::CANCELED));
        assert_eq!(b.failure().map(|f| f.0), Some(0));
    }
}
