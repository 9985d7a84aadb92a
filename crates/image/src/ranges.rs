//! Sets of addresses, or of places in a file: ranges that ascend and do not touch.

/// A range of addresses; the end is not in it.
pub type Range = (u64, u64);

/// Adds a range that begins at or behind the end of the last.
pub fn push(set: &mut Vec<Range>, range: Range) {
    match set.last_mut() {
        Some(last) if last.1 == range.0 => last.1 = range.1,
        _ if range.0 < range.1 => set.push(range),
        _ => {}
    }
}

/// What is in any of these, which may overlap and be in any order.
#[must_use]
pub fn union(mut all: Vec<Range>) -> Vec<Range> {
    all.sort_unstable();
    let mut out: Vec<Range> = Vec::new();
    for (start, end) in all {
        match out.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}

/// What is in `a` and not in `b`.
#[must_use]
pub fn without(a: &[Range], b: &[Range]) -> Vec<Range> {
    let mut out = Vec::new();
    for &(mut start, end) in a {
        let first = b.partition_point(|r| r.1 <= start);
        for &(from, to) in b[first..].iter().take_while(|r| r.0 < end) {
            push(&mut out, (start, from.max(start)));
            start = to.max(start);
        }
        push(&mut out, (start, end.max(start)));
    }
    out
}

/// What is in both.
#[must_use]
pub fn common(a: &[Range], b: &[Range]) -> Vec<Range> {
    without(a, &without(a, b))
}

/// Bytes of ranges of which none overlaps another.
#[must_use]
pub fn len(all: &[Range]) -> u64 {
    all.iter().map(|(start, end)| end - start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(bits: u64) -> Vec<Range> {
        let mut out = Vec::new();
        (0..7).filter(|bit| bits >> bit & 1 == 1).for_each(|bit| push(&mut out, (bit, bit + 1)));
        out
    }

    #[test]
    fn they_are_sets() {
        for (a, b) in (0..128).flat_map(|a| (0..128).map(move |b| (a, b))) {
            assert_eq!(without(&set(a), &set(b)), set(a & !b));
            assert_eq!(common(&set(a), &set(b)), set(a & b));
        }
    }
}
