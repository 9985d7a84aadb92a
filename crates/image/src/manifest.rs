//! `cryonaut-manifest.json`: what the image consists of and where it was made.
//!
//! An addition to CRIU's format, which others ignore: the size and BLAKE3 sum of
//! every file, the tool, kernel and host of the dump. The file seals itself: its
//! first field is the sum of its own text with zeros in the seal's place.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use crate::error::MANIFEST as MANIFEST_NAME;
use crate::error::{CUT_SHORT, DAMAGED, Error, Result};

/// The manifest's own format.
const FORMAT: u32 = 1;

/// JSON files may have this many bytes: room for 100,000 files in a manifest.
pub(crate) const JSON_LIMIT: u64 = 16 << 20;

/// How every manifest begins; the seal's 64 hexadecimal digits follow.
const SEAL_HEAD: &str = "{\n  \"seal\": \"";
const SEAL_LEN: usize = 64;

/// Where and by what a dump was made. The caller fills it in; this crate asks
/// the kernel nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Name and version of the tool, e.g. `cryonaut 0.1.0`.
    pub tool: String,
    /// Release of the kernel, as `uname -r` has it.
    pub kernel: String,
    /// Machine, as `uname -m` has it.
    pub arch: String,
    /// Seconds since 1970-01-01 UTC.
    pub created: u64,
    /// Facts of the host that a restore elsewhere wants to compare beforehand.
    #[serde(default)]
    pub host: serde_json::Map<String, serde_json::Value>,
}

/// Size and sum of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Bytes.
    pub size: u64,
    /// BLAKE3 in lower-case hexadecimal; absent for pages that were not summed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

impl FileSum {
    pub(crate) fn new(size: u64, hash: Option<blake3::Hash>) -> Self {
        Self { size, blake3: hash.map(|hash| hash.to_hex().to_string()) }
    }
}

/// The manifest of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    seal: String,
    format: u32,
    /// Where and by what the dump was made.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// The seal of the image that pages marked as the parent's lie in, if that is one of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Whether pagemaps and pages went to a page server, so that those beside this image are not among its files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub memory_elsewhere: bool,
    /// By what pages files are compressed, which is no part of CRIU's format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// The image's files by name, without the manifest.
    pub files: BTreeMap<String, FileSum>,
}

impl Manifest {
    pub(crate) fn new(provenance: Provenance, files: BTreeMap<String, FileSum>) -> Self {
        Self {
            seal: "0".repeat(SEAL_LEN),
            format: FORMAT,
            provenance,
            parent: None,
            memory_elsewhere: false,
            compression: None,
            files,
        }
    }

    /// The sum over the manifest, by which the image is known.
    pub fn seal(&self) -> &str {
        &self.seal
    }

    /// The file's text, sealed.
    pub(crate) fn to_text(&self) -> serde_json::Result<String> {
        let open = Self { seal: "0".repeat(SEAL_LEN), ..self.clone() };
        let mut text = serde_json::to_string_pretty(&open)?;
        text.push('\n');
        let seal = blake3::hash(text.as_bytes()).to_hex();
        text.replace_range(SEAL_HEAD.len()..SEAL_HEAD.len() + SEAL_LEN, &seal);
        Ok(text)
    }

    /// Reads the file's text.
    pub(crate) fn from_text(path: &Path, mut text: Vec<u8>) -> Result<Self> {
        let seal_place = SEAL_HEAD.len()..SEAL_HEAD.len() + SEAL_LEN;
        if text.len() < seal_place.end {
            let found = format!("{} bytes", text.len());
            return Err(Error::corrupt(path, 0, "a sealed manifest", found, CUT_SHORT));
        }
        if !text.starts_with(SEAL_HEAD.as_bytes()) {
            return Err(Error::corrupt(path, 0, "a sealed manifest", "other text", DAMAGED));
        }
        let seal = text[seal_place.clone()].to_vec();
        text[seal_place].fill(b'0');
        let sum = blake3::hash(&text).to_hex();
        if sum.as_bytes() != seal {
            return Err(Error::Altered {
                path: path.to_owned(),
                expected: format!("BLAKE3 {}", String::from_utf8_lossy(&seal).escape_debug()),
                found: sum.to_string(),
            });
        }
        let mut manifest: Self = from_json(path, &text)?;
        if manifest.format != FORMAT {
            let expected = format!("format {FORMAT}");
            let found = format!("format {}", manifest.format);
            let remedy = "a newer Cryonaut made this image: restore it with that one";
            return Err(Error::corrupt(path, 0, expected, found, remedy));
        }
        manifest.seal = sum.to_string();
        Ok(manifest)
    }
}

/// Reads JSON; an error names the byte.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| {
        let before = text
            .split_inclusive(|&byte| byte == b'\n')
            .take(error.line().saturating_sub(1))
            .map(<[u8]>::len)
            .sum::<usize>();
        let offset = (before + error.column().saturating_sub(1)) as u64;
        let remedy = if error.is_eof() { CUT_SHORT } else { DAMAGED };
        Error::corrupt(path, offset, "JSON of the expected form", error.to_string(), remedy)
    })
}

/// Name of an extra JSON file of ours.
pub(crate) fn json_name(name: &str) -> Result<String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match !name.is_empty() && name != "manifest" && name.bytes().all(plain) {
        true => Ok(format!("cryonaut-{name}.json")),
        false => Err(Error::misuse(name, "not a name for a JSON file: use a-z, 0-9 and dashes")),
    }
}

/// Whether a file name is one of ours beside CRIU's.
pub(crate) fn is_json_name(name: &str) -> bool {
    name.starts_with("cryonaut-") && name.ends_with(".json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let provenance = Provenance {
            tool: "cryonaut 0.1.0".into(),
            kernel: "6.18.0".into(),
            arch: "x86_64".into(),
            created: 1_700_000_000,
            host: serde_json::Map::from_iter([("cpus".to_owned(), 2.into())]),
        };
        let sum = FileSum::new(4, Some(blake3::hash(b"abcd")));
        Manifest::new(provenance, BTreeMap::from([("core-1.img".to_owned(), sum)]))
    }

    #[test]
    fn text_goes_both_ways() {
        let text = sample().to_text().unwrap();
        let back = Manifest::from_text(Path::new("m"), text.clone().into_bytes()).unwrap();
        assert_eq!(back.provenance, sample().provenance);
        assert_eq!(back.files, sample().files);
        assert_eq!(back.to_text().unwrap(), text);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let text = sample().to_text().unwrap().into_bytes();
        for bit in 0..text.len() * 8 {
            let mut text = text.clone();
            text[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::from_text(Path::new("m"), text).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_cut_is_seen() {
        let text = sample().to_text().unwrap().into_bytes();
        for len in 0..text.len() {
            assert!(Manifest::from_text(Path::new("m"), text[..len].to_vec()).is_err(), "{len}");
        }
    }
}
