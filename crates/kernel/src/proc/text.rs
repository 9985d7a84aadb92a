//! Byte-level helpers for the text files of /proc. Nothing here allocates but [`unescape`] when there is
//! something to unescape.

/// A line that does not have the shape the kernel's documentation gives it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no {what} in {text:?}")]
pub struct Malformed {
    /// What was looked for.
    pub what: &'static str,
    /// The text in which it was looked for, at most [`Malformed::KEPT`] bytes of it.
    pub text: Box<str>,
}

impl Malformed {
    /// How many bytes of an offending text an error keeps.
    pub const KEPT: usize = 160;

    pub(crate) fn new(what: &'static str, text: &[u8]) -> Self {
        let kept = &text[..text.len().min(Self::KEPT)];
        Self { what, text: String::from_utf8_lossy(kept).into() }
    }
}

/// Turns "not found" into an error that names what was missing and where.
pub(crate) trait OrMalformed<T> {
    fn or_malformed(self, what: &'static str, text: &[u8]) -> Result<T, Malformed>;
}

impl<T> OrMalformed<T> for Option<T> {
    fn or_malformed(self, what: &'static str, text: &[u8]) -> Result<T, Malformed> {
        self.ok_or_else(|| Malformed::new(what, text))
    }
}

fn digits(text: &[u8], radix: u64) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = u64::from((byte as char).to_digit(radix as u32)?);
        value.checked_mul(radix)?.checked_add(digit)
    })
}

pub(crate) fn dec<T: TryFrom<u64>>(text: &[u8]) -> Option<T> {
    digits(text, 10).and_then(|value| T::try_from(value).ok())
}

/// Hexadecimal, with or without `0x`.
pub(crate) fn hex<T: TryFrom<u64>>(text: &[u8]) -> Option<T> {
    digits(text.strip_prefix(b"0x").unwrap_or(text), 16).and_then(|value| T::try_from(value).ok())
}

pub(crate) fn oct<T: TryFrom<u64>>(text: &[u8]) -> Option<T> {
    digits(text, 8).and_then(|value| T::try_from(value).ok())
}

pub(crate) fn signed<T: TryFrom<i64>>(text: &[u8]) -> Option<T> {
    let value = match text.strip_prefix(b"-") {
        Some(rest) => 0i64.checked_sub_unsigned(digits(rest, 10)?)?,
        None => i64::try_from(digits(text, 10)?).ok()?,
    };
    T::try_from(value).ok()
}

/// The lines of a file, without their newlines and without the empty piece after the last.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let whole = if text.is_empty() { None } else { Some(text) };
    whole.into_iter().flat_map(|text| text.split(|&byte| byte == b'\n'))
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The words of a line, apart by any number of blanks or tabs.
pub(crate) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| is_blank(byte)).filter(|word| !word.is_empty())
}

pub(crate) fn trim_start(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|&&byte| is_blank(byte)).count();
    &text[blanks..]
}

/// Cuts off the first word; the rest begins after the one separator that follows it.
pub(crate) fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = trim_start(text);
    if text.is_empty() {
        return None;
    }
    let end = text.iter().position(|&byte| is_blank(byte)).unwrap_or(text.len());
    Some((&text[..end], text.get(end + 1..).unwrap_or(b"")))
}

/// `text` before and after the first `mark`.
pub(crate) fn cut(text: &[u8], mark: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&byte| byte == mark)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Undoes `seq_escape`: a backslash and three octal digits stand for one byte, `\n` and `\\` (in the
/// `Name:` line of status) for a newline and a backslash.
pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
        plain.extend_from_slice(&rest[..at]);
        let (byte, taken) = match rest[at + 1..] {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), 4)
            }
            [b'n', ..] => (b'\n', 2),
            [b'\\', ..] => (b'\\', 2),
            _ => (b'\\', 1),
        };
        plain.push(byte);
        rest = &rest[at + taken..];
    }
    plain.extend_from_slice(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_exact_or_refused() {
        assert_eq!(dec::<u64>(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(dec::<u64>(b"18446744073709551616"), None);
        assert_eq!(dec::<u8>(b"256"), None);
        assert_eq!(dec::<u64>(b""), None);
        assert_eq!(dec::<u64>(b"+1"), None);
        assert_eq!(hex::<u64>(b"0xff"), Some(255));
        assert_eq!(oct::<u32>(b"0100002"), Some(0o100002));
        assert_eq!(signed::<i64>(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(signed::<i32>(b"-1"), Some(-1));
        assert_eq!(signed::<i32>(b"--1"), None);
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(br"a\040b\012\134\\c\n"), b"a b\n\\\\c\n");
        assert_eq!(unescape(br"\4\"), br"\4\");
    }

    #[test]
    fn lines_have_no_empty_tail() {
        assert_eq!(lines(b"a\n\nb\n").collect::<Vec<_>>(), [&b"a"[..], b"", b"b"]);
        assert_eq!(lines(b"").count(), 0);
    }

    #[test]
    fn words_skip_runs_of_blanks() {
        assert_eq!(words(b"  a \t b ").collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(word(b" ab  c d"), Some((&b"ab"[..], &b" c d"[..])));
        assert_eq!(word(b"  "), None);
    }
}
