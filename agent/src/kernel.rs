//! The edge to the kernel that no safe crate covers: `ring`, memory that it writes records into, and `bpf`, programs that
//! it runs. The agent's only unsafe code is here. `iterator` reads what programs write, `btf` tells where fields of the kernel
//! are, `assembly` puts programs together, `bytes` reads numbers among what the kernel writes.

pub(crate) mod assembly;
pub(crate) mod bpf;
pub(crate) mod btf;
pub(crate) mod bytes;
pub(crate) mod iterator;
pub(crate) mod ring;
