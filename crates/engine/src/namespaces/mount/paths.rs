//! Paths as bytes, compared by their parts.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Its bytes.
pub fn of(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// Without doubled slashes, and without one at the end. The root is `/`.
pub fn normal(path: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
    let joined = parts.join(&b'/');
    if path.starts_with(b"/") { [b"/", joined.as_slice()].concat() } else { joined }
}

/// What follows `top` in a path that is `top` or below it, without a slash in front: empty if it is `top`.
pub fn below<'a>(path: &'a [u8], top: &[u8]) -> Option<&'a [u8]> {
    let top = top.strip_suffix(b"/").unwrap_or(top);
    match path.strip_prefix(top)? {
        [] => Some(&[]),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

/// A path below another.
pub fn join(path: &[u8], below: &[u8]) -> Vec<u8> {
    match (path, below) {
        (path, []) => path.to_vec(),
        (b"/", below) => [b"/", below].concat(),
        (path, below) => [path, b"/", below].concat(),
    }
}

/// How many parts it has.
pub fn depth(path: &[u8]) -> usize {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_compared_not_letters() {
        assert_eq!(below(b"/a/b", b"/a"), Some(&b"b"[..]));
        assert_eq!(below(b"/a/b", b"/"), Some(&b"a/b"[..]));
        assert_eq!(below(b"/", b"/"), Some(&b""[..]));
        assert_eq!(below(b"/a", b"/a"), Some(&b""[..]));
        assert_eq!((below(b"/ab", b"/a"), below(b"/a", b"/a/b")), (None, None));
        assert_eq!(
            (join(b"/", b"a"), join(b"/a", b""), join(b"/a", b"b/c")),
            ("/a".into(), "/a".into(), "/a/b/c".into())
        );
        assert_eq!((normal(b"//a///b/"), normal(b"/"), depth(b"/a/b"), depth(b"/")), ("/a/b".into(), "/".into(), 2, 0));
    }
}
