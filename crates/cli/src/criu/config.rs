//! CRIU's configuration files: one option a line, without its dashes, and its value behind it (criu(8), CONFIGURATION
//! FILES). `#` begins a comment, quotation marks keep blanks together.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The files that are read unless the command line says otherwise; they need not exist.
pub fn default_files() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".criu/default.conf"));
    let named = env::var_os("CRIU_CONFIG_FILE").map(PathBuf::from);
    [Some(PathBuf::from("/etc/criu/default.conf")), home, named].into_iter().flatten().collect()
}

/// The options in a file, in the form of command line arguments.
///
/// # Errors
/// When it cannot be read, or does not exist and must.
pub fn arguments(file: &Path, must_exist: bool) -> Result<Vec<OsString>, String> {
    match fs::read(file) {
        Ok(text) => Ok(text.split(|byte| *byte == b'\n').filter_map(argument).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => Ok(Vec::new()),
        Err(error) => Err(format!("{}: cannot be read: {error}", file.display())),
    }
}

fn argument(line: &[u8]) -> Option<OsString> {
    let line = without_comment(line).trim_ascii();
    let line = line.strip_prefix(b"--").unwrap_or(line);
    if line.is_empty() {
        return None;
    }
    let end = line.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'=').unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let mut argument = [b"--", name].concat();
    let value = rest.strip_prefix(b"=").unwrap_or(rest).trim_ascii();
    if !value.is_empty() {
        argument.push(b'=');
        argument.extend(unquoted(value));
    }
    Some(OsString::from_vec(argument))
}

fn without_comment(line: &[u8]) -> &[u8] {
    let mut is_quoted = false;
    for (i, byte) in line.iter().enumerate() {
        match byte {
            b'"' => is_quoted = !is_quoted,
            b'#' if !is_quoted => return &line[..i],
            _ => {}
        }
    }
    line
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}
