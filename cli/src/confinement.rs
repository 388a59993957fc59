//! What a command that only asks can still do: read files, and speak to a server. It writes none but its own identity,
//! which a server may want to be renewed, and runs none.
//!
//! Landlock (landlock(7)) and an empty set of capabilities, for the one thread that there is and all that it starts. What
//! a kernel does not know it does not keep; the command runs all the same.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{
    arguments::What,
    failure::{Exit, Failure},
};

/// The newest rules that this program knows.
const RULES: ABI = ABI::V6;

/// Gives up what the command does not need, for good; `identity` is the folder of the identity that it uses.
pub fn confine(command: &What, identity: Option<&Path>) -> Result<(), Failure> {
    if !only_asks(command) {
        return Ok(());
    }
    let failed = |problem: String| Failure::new(Exit::Failed, format!("cannot give up what is not needed: {problem}"));
    restrict(identity).map_err(|error| failed(format!("Landlock: {error}")))?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).map_err(|error| failed(format!("capabilities: {error}")))
}

/// Whether a command neither writes a file nor runs a program.
fn only_asks(command: &What) -> bool {
    match command {
        What::Hosts(_)
        | What::Ports(_)
        | What::Sessions(_)
        | What::Changes(_)
        | What::Timeline(_)
        | What::Diff(_)
        | What::Summary(_)
        | What::Tokens(_)
        | What::Operators(_)
        | What::Audit(_)
        | What::Backup(_)
        | What::Ca(_)
        | What::Doctor
        | What::Version
        | What::Completions(_)
        | What::Help(_) => true,
        What::Login(_) | What::Context(_) | What::Dev(_) | What::Export(_) => false,
    }
}

/// Reading stays possible everywhere: the name service reads what the system's settings say, and that may be anywhere.
fn restrict(identity: Option<&Path>) -> Result<(), RulesetError> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    // Files are written under another name and renamed.
    let renewing = reading | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::Truncate;
    Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(["/"], reading))?
        .add_rules(path_beneath_rules(identity, renewing))?
        .restrict_self()
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::{fs, io, net::TcpListener, process::Command};

    use super::*;

    fn denied<T: std::fmt::Debug>(outcome: io::Result<T>) {
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_command_that_asks_reads_and_connects_and_neither_writes_nor_runs_anything() {
        let folder = tempfile::tempdir().unwrap();
        let (file, identity) = (folder.path().join("file"), folder.path().join("identity"));
        fs::write(&file, "x").unwrap();
        fs::create_dir(&identity).unwrap();
        let server = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // A thread is confined for itself, so the rest of the tests is not.
        let confined = std::thread::spawn(move || {
            confine(&What::Version, Some(&identity)).unwrap();
            fleetsock_proto::private::write(&identity.join("identity.pem"), b"x").unwrap();
            fleetsock_proto::private::write(&identity.join("identity.pem"), b"y").unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), "x");
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(status.contains("CapEff:\t0000000000000000") && status.contains("NoNewPrivs:\t1"), "{status}");
            if fs::write(&file, "y").is_ok() {
                // This kernel has no Landlock.
                return;
            }
            denied(fs::write(&file, "y"));
            denied(fs::remove_file(&file));
            denied(fs::create_dir(folder.path().join("folder")));
            denied(Command::new("/bin/true").spawn());
            let connected = std::net::TcpStream::connect(server).map_err(|error| error.kind());
            assert_eq!(connected.unwrap_err(), io::ErrorKind::ConnectionRefused, "nobody is there, and one may try");
        });
        confined.join().unwrap();
    }
}
