//! The program that tells a record of each internet socket of a process.

use super::super::bpf_insn::{Insn, load32, load64, mov, store_zero, store64};
use super::super::bpf_iter::{Field, read, tell};
use super::super::unix_memory::Reader;
use super::layout::{IS_INET, Layout, Of};
use rustix::io::Errno;

/// A jump to what is told of anything else.
const TO_OTHERS: Insn = Insn { code: 0, dst: 0, src: 0, off: 0, imm: 0 };

/// Tells the record of a socket of IPv4 or IPv6, and of any other file its number alone. In register 8 is what is read
/// from.
pub(super) fn body(reader: &Reader, layout: &Layout) -> Result<Vec<Insn>, Errno> {
    let of_file = |name, len| reader.field("file", name, len).map(|field| field.offset as i16);
    let inode = load64(8, 7, of_file("f_inode", 8)?);
    let whole = layout.len as i16;
    // A pointer on the way, and where the record begins.
    let way = -whole - 8;
    let follow = |field: Field| {
        let mut all = read(way, field.len, field.offset).to_vec();
        all.push(load64(8, 10, way));
        all
    };
    let equals = |value| Insn { code: 0x15, dst: 1, src: 0, off: 0, imm: value };
    let mut all: Vec<Insn> = (0..=whole / 8).map(|word| store_zero(10, way + 8 * word)).collect();
    let is_socket = i32::from(libc::S_IFSOCK as u16);
    all.extend([inode]);
    all.extend(read(way, 2, reader.field("inode", "i_mode", 2)?.offset));
    all.extend([load64(1, 10, way), Insn { code: 0x57, dst: 1, src: 0, off: 0, imm: libc::S_IFMT as i32 }]);
    all.extend([Insn { off: 1, ..equals(is_socket) }, TO_OTHERS]);
    fields(&mut all, layout, Of::Inode, -whole);
    all.push(mov(8, 7));
    fields(&mut all, layout, Of::File, -whole);
    all.push(load64(8, 7, of_file("private_data", 8)?));
    all.extend(follow(reader.field("socket", "sk", 8)?));
    all.push(store_zero(10, way));
    all.extend(read(way, 2, reader.field("sock_common", "skc_family", 2)?.offset));
    all.push(load64(1, 10, way));
    all.extend([Insn { off: 2, ..equals(libc::AF_INET) }, Insn { off: 1, ..equals(libc::AF_INET6) }, TO_OTHERS]);
    fields(&mut all, layout, Of::Socket, -whole);
    let v4 = all.len();
    all.push(equals(libc::AF_INET));
    all.extend(follow(reader.field("inet_sock", "pinet6", 8)?));
    fields(&mut all, layout, Of::V6, -whole);
    let past = all.len() - v4 - 1;
    // Register 1 is no more what it was.
    all.splice(v4..=v4, [load64(1, 10, way), Insn { off: past as i16, ..equals(libc::AF_INET) }]);
    // The task, and in its table of descriptors the word that has this one.
    all.extend([load64(8, 6, 8), Insn { code: 0x55, dst: 8, src: 0, off: 1, imm: 0 }, TO_OTHERS]);
    all.extend(follow(reader.field("task_struct", "files", 8)?));
    all.extend(follow(reader.field("files_struct", "fdt", 8)?));
    all.extend(follow(reader.field("fdtable", "close_on_exec", 8)?));
    let shift = |code, imm| Insn { code, dst: 1, src: 0, off: 0, imm };
    all.extend([load32(1, 6, 16), shift(0x77, 6), shift(0x67, 3)]);
    all.push(Insn { code: 0x0f, dst: 8, src: 1, off: 0, imm: 0 });
    all.extend(read(layout.cloexec as i16 - whole, 8, 0));
    all.extend([load32(1, 6, 16), store32(-whole, 1), store32_value(4 - whole, IS_INET)]);
    all.extend(tell(whole));
    let mut others = vec![load32(1, 6, 16), store64(10, -8, 1)];
    others.extend(tell(8));
    all.push(Insn { code: 0x05, dst: 0, src: 0, off: others.len() as i16, imm: 0 });
    let end = all.len();
    for (at, insn) in all.iter_mut().enumerate().filter(|(_, insn)| insn.code == 0) {
        *insn = Insn { code: 0x05, off: (end - at - 1) as i16, ..*insn };
    }
    all.extend(others);
    Ok(all)
}

/// Reads the fields of what register 8 leads to.
fn fields(all: &mut Vec<Insn>, layout: &Layout, of: Of, begin: i16) {
    for (_, field, place) in layout.pieces.iter().filter(|(its, ..)| *its == of) {
        all.extend(read(begin + *place as i16, field.len, field.offset));
    }
}

fn store32(place: i16, src: u8) -> Insn {
    Insn { code: 0x63, dst: 10, src, off: place, imm: 0 }
}

fn store32_value(place: i16, imm: i32) -> Insn {
    Insn { code: 0x62, dst: 10, src: 0, off: place, imm }
}
