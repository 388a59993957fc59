//! Compiles `fleetsock/v1/*.proto` with a compiler written in Rust, so that no protoc is needed.

use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 5] = [
    "fleetsock/v1/vocabulary.proto",
    "fleetsock/v1/enrollment.proto",
    "fleetsock/v1/agent.proto",
    "fleetsock/v1/inventory.proto",
    "fleetsock/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=fleetsock/v1");
    let files = protox::compile(FILES, ["."])?;
    let descriptors = PathBuf::from(std::env::var("OUT_DIR")?).join("fleetsock_descriptor.bin");
    tonic_prost_build::configure().codec_path("crate::codec::FrugalCodec").compile_fds(files.clone())?;
    std::fs::write(descriptors, files.encode_to_vec())?;
    Ok(())
}
