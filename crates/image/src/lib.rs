//! The checkpoint image on disk: CRIU v4.2's files, read and written.
//!
//! This crate owns the bytes: framing, magic numbers, message layouts, limits.
//! It makes no kernel calls beyond ordinary file input and output, and knows
//! nothing about processes.

/// The messages of the image files, generated from `proto/images.proto`.
#[allow(missing_debug_implementations, clippy::all)]
pub mod records {
    include!(concat!(env!("OUT_DIR"), "/images.rs"));
}

/// The messages spoken over `criu swrk`, generated from `proto/rpc.proto`.
#[allow(missing_debug_implementations, clippy::all)]
pub mod rpc {
    include!(concat!(env!("OUT_DIR"), "/rpc.rs"));
}
