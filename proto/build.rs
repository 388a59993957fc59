//! Compiles `fleetsock/v1/*.proto` with a compiler written in Rust, so that no protoc is needed, and looks up where the lines of
//! each port are in the files with the names of services.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use prost::Message;

const FILES: [&str; 5] = [
    "fleetsock/v1/vocabulary.proto",
    "fleetsock/v1/enrollment.proto",
    "fleetsock/v1/agent.proto",
    "fleetsock/v1/inventory.proto",
    "fleetsock/v1/admin.proto",
];

/// Rows of long answers, whose bytes are read where they arrived.
const ROWS: [&str; 2] = [".fleetsock.v1.SessionRecord", ".fleetsock.v1.Port"];

const SERVICES: [&str; 2] = ["services", "de-facto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=fleetsock/v1");
    println!("cargo:rerun-if-changed=iana");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let files = protox::compile(FILES, ["."])?;
    let compiler = tonic_prost_build::configure().codec_path("crate::codec::FrugalCodec");
    ROWS.iter().fold(compiler, |compiler, row| compiler.bytes(row)).compile_fds(files.clone())?;
    fs::write(out.join("fleetsock_descriptor.bin"), files.encode_to_vec())?;
    for name in SERVICES {
        let index = index(&Path::new("iana").join(name).with_extension("tsv"))?;
        fs::write(out.join(name).with_extension("index"), index)?;
    }
    Ok(())
}

/// Of each port of a file, whose lines are in the order of their ports, itself and where its first line begins
/// (`src/service.rs`).
fn index(file: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    let text = fs::read_to_string(file)?;
    let (mut index, mut begin, mut before) = (Vec::new(), 0, None);
    for line in text.split_inclusive('\n') {
        let port = line.split('\t').next().unwrap_or_default();
        let port: u16 = port.parse().map_err(|_| format!("{}: {port} is no port", file.display()))?;
        if before.is_some_and(|before| port < before) {
            return Err(format!("{}: port {port} comes too late", file.display()).into());
        }
        if before != Some(port) {
            index.extend(port.to_le_bytes());
            index.extend(u32::try_from(begin)?.to_le_bytes());
        }
        (begin, before) = (begin + line.len(), Some(port));
    }
    Ok(index)
}
