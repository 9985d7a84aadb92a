//! Turns the two protocol files into Rust types (protox stands in for protoc),
//! and writes down the shape of every message.
//!
//! The shapes exist because prost takes a message whose `required` fields are
//! missing and fills in zeros. `src/shape.rs` walks the bytes with these tables
//! before prost sees them.

use std::fmt::Write as _;
use std::path::PathBuf;

use heck::ToUpperCamelCase;

/// Numbers of `FieldDescriptorProto.Label` and `.Type` in descriptor.proto.
const LABEL_REQUIRED: i32 = 2;
const LABEL_REPEATED: i32 = 3;
const TYPE_MESSAGE: i32 = 11;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=build.rs");
    for (package, module) in [("images", "records"), ("rpc", "rpc")] {
        let file = format!("proto/{package}.proto");
        println!("cargo:rerun-if-changed={file}");
        let set = protox::compile([&file], ["proto"])?;

        let mut shapes = String::new();
        for message in set.file.iter().flat_map(|file| &file.message_type) {
            let fields = message
                .field
                .iter()
                .map(|field| {
                    let target = (field.r#type == Some(TYPE_MESSAGE))
                        .then(|| shape_name(field.type_name().rsplit('.').next().unwrap_or("")));
                    FieldLine {
                        tag: field.number(),
                        label: field.label.unwrap_or(0),
                        name: field.name().to_owned(),
                        content: content(field.r#type.unwrap_or(0), target),
                    }
                })
                .collect();
            shape(&mut shapes, module, message.name(), fields)?;
        }
        let names: Vec<String> = set
            .file
            .iter()
            .flat_map(|file| &file.message_type)
            .map(|message| format!("&{}", shape_name(message.name())))
            .collect();
        writeln!(shapes, "#[cfg(test)]\npub(super) static ALL: &[&Shape] = &[{}];", names.join(", "))?;
        std::fs::write(out.join(format!("{package}_shapes.rs")), shapes)?;

        prost_build::Config::new().compile_fds(set)?;
    }
    Ok(())
}

struct FieldLine {
    tag: i32,
    label: i32,
    name: String,
    content: String,
}

fn shape(out: &mut String, module: &str, message: &str, mut fields: Vec<FieldLine>) -> std::fmt::Result {
    fields.sort_by_key(|field| field.tag);
    let required = fields.iter().filter(|f| f.label == LABEL_REQUIRED).count();
    assert!(required <= 64, "{message}: the walker's mask has 64 bits");

    let rust = format!("crate::{module}::{}", message.to_upper_camel_case());
    let shape = shape_name(message);
    writeln!(out, "static {shape}: Shape = Shape {{")?;
    writeln!(out, "    name: \"{message}\", size: size_of::<{rust}>(),")?;
    writeln!(out, "    recode: |bytes| <{rust} as prost::Message>::decode(bytes).map(|m| m.encode_to_vec()),")?;
    writeln!(out, "    fields: &[")?;
    let mut bit = 0;
    for field in fields {
        let required = match field.label == LABEL_REQUIRED {
            true => {
                bit += 1;
                format!("Some({})", bit - 1)
            }
            false => "None".to_owned(),
        };
        writeln!(
            out,
            "        Field {{ tag: {}, name: \"{}\", required: {required}, repeated: {}, content: {} }},",
            field.tag,
            field.name,
            field.label == LABEL_REPEATED,
            field.content,
        )?;
    }
    writeln!(out, "    ],\n}};")?;
    writeln!(out, "impl Record for {rust} {{ const SHAPE: &'static Shape = &{shape}; }}")
}

fn shape_name(message: &str) -> String {
    format!("{}_SHAPE", message.to_uppercase())
}

/// How the field lies on the wire, by its type's number in descriptor.proto.
fn content(kind: i32, message: Option<String>) -> String {
    match kind {
        6 => "Content::Fixed64".to_owned(),
        9 => "Content::Text".to_owned(),
        12 => "Content::Bytes".to_owned(),
        TYPE_MESSAGE => format!("Content::Message(&{})", message.expect("has a type name")),
        3 | 4 | 5 | 8 | 13 | 14 | 17 | 18 => "Content::Varint".to_owned(),
        other => panic!("field type {other} is not used by the format"),
    }
}
