use proptest::prelude::*;

use super::*;
use crate::records;

#[test]
fn whole_message_decodes() {
    let entry = records::PstreeEntry { pid: 1, ppid: 0, pgid: 1, sid: 1, threads: vec![1, 2, 300] };
    assert_eq!(decode::<records::PstreeEntry>(&entry.encode_to_vec()), Ok(entry));
}

#[test]
fn missing_required_field_is_named() {
    // pid = 1, ppid = 0, pgid = 1; no sid.
    let fault = decode::<records::PstreeEntry>(&[8, 1, 16, 0, 24, 1]).unwrap_err();
    assert_eq!(fault.expected, "field \"sid\" of pstree_entry");
    assert_eq!(fault.offset, 0);
}

#[test]
fn missing_field_deep_inside_is_found_with_its_place() {
    // fs_entry is flat; take uid_map[0] of userns_entry with one field of three.
    let fault = decode::<records::UsernsEntry>(&[10, 2, 8, 0]).unwrap_err();
    assert_eq!(fault.offset, 2);
    assert_eq!(fault.expected, "field \"lower_first\" of uid_gid_extent");
}

#[test]
fn packed_and_unknown_fields_pass() {
    // threads (tag 5) packed, tag 100 unknown.
    let bytes = [8, 1, 16, 0, 24, 1, 32, 1, 42, 3, 1, 172, 2, 160, 6, 7];
    let entry = decode::<records::PstreeEntry>(&bytes).unwrap();
    assert_eq!(entry.threads, [1, 300]);
}

#[test]
fn lengths_wire_types_and_numbers_are_checked() {
    for bytes in [
        &[10, 200, 1, 0][..],                                      // longer than the message
        &[10],                                                     // no length
        &[8, 0x80],                                                // number cut short
        &[13, 1, 0, 0, 0],                                         // tag 1 as fixed32
        &[0, 0],                                                   // tag 0
        &[11, 12],                                                 // a group
        &[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], // 11 bytes
        &[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],      // 65 bits
    ] {
        assert!(decode::<records::UsernsEntry>(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn nesting_is_limited() {
    let mut dir = records::CgroupDirEntry::default();
    for _ in 0..80 {
        dir = records::CgroupDirEntry { children: vec![dir], ..Default::default() };
    }
    let fault = decode::<records::CgroupDirEntry>(&dir.encode_to_vec()).unwrap_err();
    assert_eq!(fault.found, "deeper");
}

#[test]
fn small_encoding_cannot_decode_to_something_huge() {
    // Two bytes each on the wire, 56 in memory.
    let bytes = [18, 0].repeat(8 << 20);
    let fault = decode::<records::CgroupEntry>(&bytes).unwrap_err();
    assert_eq!(fault.found, "more");
}

/// Writes messages that fit their shape, from a seed.
struct Maker(u64);

impl Maker {
    fn number(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn message(&mut self, shape: &Shape, depth: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in shape.fields {
            let times = match (field.required, field.repeated, &field.content) {
                (Some(_), ..) => 1,
                (_, _, Content::Message(_)) if depth > 3 => 0,
                (_, true, _) => self.number(4),
                (_, false, _) => self.number(2),
            };
            for _ in 0..times {
                self.field(field, depth, &mut bytes);
            }
        }
        bytes
    }

    fn field(&mut self, field: &Field, depth: usize, bytes: &mut Vec<u8>) {
        let value = match field.content {
            Content::Varint => {
                prost::encoding::encode_varint(u64::from(field.tag) << 3, bytes);
                // 0 and 1 stay what they are in every type that a number may have.
                return bytes.push(self.number(2) as u8);
            }
            Content::Fixed64 => {
                prost::encoding::encode_varint(u64::from(field.tag) << 3 | FIXED64, bytes);
                return bytes.extend([0xa5; 8]);
            }
            Content::Text => "\u{e9}x".repeat(self.number(60) as usize).into_bytes(),
            Content::Bytes => vec![0xff; self.number(200) as usize],
            Content::Message(inner) => self.message(inner, depth + 1),
        };
        prost::encoding::encode_varint(u64::from(field.tag) << 3 | LENGTH, bytes);
        prost::encoding::encode_varint(value.len() as u64, bytes);
        bytes.extend(value);
    }
}

fn any_shape() -> impl Strategy<Value = &'static Shape> {
    let all: Vec<_> = images::ALL.iter().chain(rpc::ALL).copied().collect();
    proptest::sample::select(all)
}

/// What must hold for any bytes at all.
fn holds(bytes: &[u8], shape: &Shape) -> Result<(), TestCaseError> {
    match walk(bytes, shape) {
        Ok(()) => prop_assert!((shape.recode)(bytes).is_ok(), "the walk let through what prost refuses"),
        Err(fault) => prop_assert!(fault.offset <= bytes.len(), "{fault}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn fitting_messages_pass_unchanged(shape in any_shape(), seed in 1_u64..) {
        let bytes = Maker(seed).message(shape, 0);
        prop_assert_eq!(walk(&bytes, shape), Ok(()));
        prop_assert_eq!((shape.recode)(&bytes).unwrap(), bytes);
    }

    #[test]
    fn cut_messages_are_refused_or_decode(shape in any_shape(), seed in 1_u64.., cut in any::<prop::sample::Index>()) {
        let bytes = Maker(seed).message(shape, 0);
        holds(&bytes[..cut.index(bytes.len() + 1)], shape)?;
    }

    #[test]
    fn altered_messages_are_refused_or_decode(
        shape in any_shape(),
        seed in 1_u64..,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = Maker(seed).message(shape, 0);
        for (index, value) in flips {
            if !bytes.is_empty() {
                let index = index.index(bytes.len());
                bytes[index] ^= value;
            }
        }
        holds(&bytes, shape)?;
    }

    #[test]
    fn any_bytes_are_refused_or_decode(shape in any_shape(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        holds(&bytes, shape)?;
    }

    #[test]
    fn a_message_lacks_nothing_required(shape in any_shape(), seed in 1_u64..) {
        // Leave out one required field at a time.
        for field in shape.fields.iter().filter(|field| field.required.is_some()) {
            let mut maker = Maker(seed);
            let mut bytes = Vec::new();
            for other in shape.fields.iter().filter(|f| f.required.is_some() && f.tag != field.tag) {
                maker.field(other, 0, &mut bytes);
            }
            let fault = walk(&bytes, shape).unwrap_err();
            prop_assert_eq!(fault.expected, format!("field \"{}\" of {}", field.name, shape.name));
        }
    }
}
