//! Processes that look at the descriptors of others, and so may close what they never had.
//!
//! Whoever looks at a descriptor holds what it stands for in that moment. Where its process closes it just then, the one who looks
//! is the last to let go, and the kernel ends the socket in his name (`__fput` in fs/file_table.c). Agents look at all descriptors all
//! the time, of which there are several on a kernel where hosts are containers; they accept no connections themselves.

use std::{fs, os::unix::fs::MetadataExt};

use fleetsock_proto::owner::Owner;

/// The name of an agent's process.
const NAME: &str = env!("CARGO_PKG_NAME");

/// Whether a process that closed a socket only looked at it: it runs this program.
pub fn is_one(owner: &Owner) -> bool {
    // Few have the name.
    owner.process == NAME && runs_this(owner.pid)
}

fn runs_this(pid: u32) -> bool {
    let file = |process: &str| fs::metadata(format!("/proc/{process}/exe")).ok().map(|file| (file.dev(), file.ino()));
    file("self").is_some_and(|this| file(&pid.to_string()) == Some(this))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(process: &str, pid: u32) -> Owner {
        Owner { pid, process: process.to_owned(), ..Owner::default() }
    }

    #[test]
    fn only_who_runs_this_program_under_its_name_merely_looks() {
        let this = std::process::id();
        assert!(is_one(&owner("fleetsock-agent", this)));
        assert!(!is_one(&owner("nginx", this)), "tests accept connections");
        assert!(!is_one(&owner("fleetsock-agent", 1)), "it only has the name");
        assert!(!is_one(&owner("fleetsock-agent", u32::MAX)), "it is gone");
    }
}
