//! Turns the two protocol files into Rust types; protox stands in for protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in ["proto/images.proto", "proto/rpc.proto"] {
        println!("cargo:rerun-if-changed={file}");
        let set = protox::compile([file], ["proto"])?;
        prost_build::Config::new().compile_fds(set)?;
    }
    Ok(())
}
