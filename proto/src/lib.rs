//! The contract of Fleetsock: what travels, the words for it as Rust types, and the clients that speak it.
//!
//! The types of the modules cannot be wrong; the generated ones in [`wire`] can. A message is converted where it
//! enters a process, by the `TryFrom` at the bottom of the file of its domain type, and nothing is validated again.

pub mod address;
pub mod answer;
pub mod audit;
pub mod backup;
pub mod batch;
pub mod cause;
pub mod change;
pub mod client;
pub mod codec;
pub mod condition;
mod connection;
pub mod digest;
pub mod host;
pub mod identity;
pub mod join;
pub mod listener;
pub mod owner;
pub mod port;
pub mod private;
pub mod question;
pub mod root;
pub mod service;
pub mod session;
pub mod socket;
pub mod spiffe;
pub mod stream;
pub mod summary;
pub mod tcp;
pub mod time;
pub mod tls;
pub mod token;
mod word;

/// Generated from `fleetsock/v1/*.proto`. Named only here and at the edge of a process.
#[expect(clippy::large_enum_variant, reason = "generated code")]
#[allow(unused_qualifications, unreachable_pub, clippy::doc_markdown, rustdoc::all, reason = "generated code")]
pub mod wire {
    tonic::include_proto!("fleetsock.v1");

    /// Every file, message and service of the contract, as an encoded `FileDescriptorSet`.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("fleetsock_descriptor");
}

/// A message that breaks the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidMessage {
    /// The field, as the `.proto` file names it.
    pub field: &'static str,
    /// What is wrong with it, for a person to read.
    pub problem: String,
}

impl InvalidMessage {
    /// An error about `field`.
    pub fn new(field: &'static str, problem: impl Into<String>) -> InvalidMessage {
        InvalidMessage { field, problem: problem.into() }
    }

    pub(crate) fn missing(field: &'static str) -> InvalidMessage {
        InvalidMessage::new(field, "is required")
    }
}
