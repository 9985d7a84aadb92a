//! Reads any bytes as a file of any kind.
//!
//! The first byte chooses the kind, and whether the right header comes first (so
//! that the fuzzer need not guess it). The rest is the file. Nothing may panic,
//! and every error must name the file and a byte of it.

#![no_main]

use std::fs;

use cryonaut_image::{Error, Header, ImageDir, ImageKind};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// The words at the beginning of a file of this kind.
fn header(kind: ImageKind) -> Vec<u8> {
    let words = match kind.header() {
        Header::Inventory(own) => vec![own],
        Header::Common(own) => vec![0x5456_4319, own],
        Header::Service(own) => vec![0x5510_5940, own],
        Header::Raw => vec![],
    };
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

thread_local! {
    /// In memory, made once.
    static DIR: TempDir = TempDir::new_in("/dev/shm").expect("/dev/shm is there");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, rest)) = bytes.split_first() else {
        return;
    };
    let kind = ImageKind::ALL[usize::from(choice >> 1) % ImageKind::ALL.len()];
    let mut content = if choice & 1 == 0 { header(kind) } else { vec![] };
    content.extend_from_slice(rest);

    DIR.with(|dir| {
        let id = kind.has_id().then_some(1);
        let path = dir.path().join(kind.file_name(id).expect("the number fits the kind"));
        fs::write(&path, &content).expect("/dev/shm has room");
        let result = ImageDir::open(dir.path()).and_then(|image| image.check_file(kind, id));
        fs::remove_file(&path).expect("the file is there");
        match result {
            // A pagemap may name a pages file that does not exist.
            Ok(_) | Err(Error::Missing { .. }) => {}
            Err(error) => {
                assert_eq!(error.path(), path, "{error}");
                let offset = error.offset().expect("an error about contents");
                assert!(offset <= content.len() as u64, "{error}");
            }
        }
    });
});
