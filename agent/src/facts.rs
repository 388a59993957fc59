//! What the host says of itself: its name, system, addresses, and what the agent may see of it.

use std::{fs, io};

use fleetsock_proto::{
    host::{BootId, HOST_ADDRESSES_LIMIT, HOST_NAME_LIMIT, HOST_TEXT_LIMIT, HostFacts, Tier},
    port::PortRange,
};
use rustix::{
    fs::stat,
    process::getuid,
    system::uname,
    thread::{CapabilitySet, capabilities},
};

use crate::{capture::interface, owners::cut};

/// A namespace that the agent is in, of which the machine has a first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    Pid,
    Time,
    User,
}

impl Namespace {
    /// Where it is shown, and the inode of the first one (include/linux/proc_ns.h).
    fn first(self) -> (&'static str, u64) {
        match self {
            Namespace::Pid => ("/proc/self/ns/pid", 0xeffffffc),
            Namespace::Time => ("/proc/self/ns/time", 0xeffffffa),
            Namespace::User => ("/proc/self/ns/user", 0xeffffffd),
        }
    }
}

/// Whether the agent runs in the machine's first namespace of a kind. /proc could be of another one than the agent is in;
/// whoever can see processes by their numbers there is fine.
pub(crate) fn is_in_first(namespace: Namespace) -> bool {
    let (path, inode) = namespace.first();
    match stat(path) {
        Ok(found) => found.st_ino == inode,
        // Kernels without time namespaces have no such file.
        Err(_) => namespace == Namespace::Time && stat("/proc/self/ns").is_ok(),
    }
}

/// The namespace that has the agent see processes by other numbers than the kernel has for them, or since other times; none
/// where it sees them as the kernel does.
pub(crate) fn altered_view() -> Option<Namespace> {
    [Namespace::Pid, Namespace::Time].into_iter().find(|namespace| !is_in_first(*namespace))
}

/// What the kernel tells the agent of connections by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hearing {
    /// Every TCP connection.
    Events,
    /// The same by perf, as long as no other program keeps it from the agent; and why not better.
    Perf(String),
    /// The end of TCP connections of the agent's own network namespace; and why not more.
    Ends(String),
    /// Nothing, and why.
    Nothing(String),
}

/// The facts of the host, with the network namespace that is walked, and with what else is to be said of what is not seen.
/// What cannot be read is empty.
pub fn facts(agent_version: &str, netns: u64, hearing: &Hearing, remarks: Vec<String>) -> HostFacts {
    let system = uname();
    let (tier, tier_reason) = sight(&privileges(), hearing, remarks);
    let mut addresses = interface::addresses().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the addresses of the interfaces");
        Vec::new()
    });
    addresses.truncate(HOST_ADDRESSES_LIMIT);
    HostFacts {
        name: host_name(&system.nodename().to_string_lossy()),
        os: read("/etc/os-release").or_else(|_| read("/usr/lib/os-release")).map_or(String::new(), |text| os(&text)),
        kernel: system.release().to_string_lossy().into_owned(),
        arch: system.machine().to_string_lossy().into_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id").map_or(NO_BOOT_ID, |text| boot_id(&text)),
        addresses,
        ephemeral_ports: read("/proc/sys/net/ipv4/ip_local_port_range").ok().and_then(|text| port_range(&text)),
        agent_version: agent_version.to_owned(),
        tier,
        tier_reason,
        netns,
    }
}

/// Stands for a boot id that cannot be read.
const NO_BOOT_ID: BootId = BootId::from_array([0; 16]);

fn read(path: &str) -> io::Result<String> {
    fs::read_to_string(path).inspect_err(|error| tracing::debug!(path, %error, "cannot read a fact of the host"))
}

/// The name, which may not be empty: a kernel without one says "(none)".
fn host_name(nodename: &str) -> String {
    match nodename {
        "" => "(none)".to_owned(),
        name => cut(name.to_owned(), HOST_NAME_LIMIT),
    }
}

/// PRETTY_NAME of os-release(5), or NAME and VERSION_ID, or the default that the page names.
fn os(text: &str) -> String {
    let value = |key: &str| {
        text.lines().rev().find_map(|line| Some(unquoted(line.trim().strip_prefix(key)?.strip_prefix('=')?)))
    };
    let name = || match (value("NAME"), value("VERSION_ID")) {
        (Some(name), Some(version)) => format!("{name} {version}"),
        (Some(name), None) => name,
        (None, _) => "Linux".to_owned(),
    };
    cut(value("PRETTY_NAME").filter(|name| !name.is_empty()).unwrap_or_else(name), HOST_TEXT_LIMIT)
}

/// A value as a shell reads it: single or double quotes, and backslashes before special characters.
fn unquoted(value: &str) -> String {
    let strip = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(plain) = strip('\'') {
        return plain.to_owned();
    }
    let mut text = String::new();
    let mut characters = strip('"').unwrap_or(value).chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            _ => text.push(character),
        }
    }
    text
}

fn boot_id(text: &str) -> BootId {
    text.parse().unwrap_or(NO_BOOT_ID)
}

/// Two numbers: the first and the last port.
fn port_range(text: &str) -> Option<PortRange> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let range = PortRange::new(numbers.next()?.ok()?, numbers.next()?.ok()?);
    range.ok()
}

/// What decides which processes the agent can look into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Privileges {
    uid: u32,
    capabilities: CapabilitySet,
    /// It runs in the machine's first pid namespace and so sees every process.
    all_processes: bool,
    /// Its capabilities hold for the whole machine.
    all_users: bool,
}

fn privileges() -> Privileges {
    Privileges {
        uid: getuid().as_raw(),
        capabilities: capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective),
        all_processes: is_in_first(Namespace::Pid),
        all_users: is_in_first(Namespace::User),
    }
}

/// The tier, and what is not seen at it and why; what matters most first.
fn sight(privileges: &Privileges, hearing: &Hearing, remarks: Vec<String>) -> (Tier, String) {
    let missing: Vec<&str> =
        [("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE), ("CAP_DAC_READ_SEARCH", CapabilitySet::DAC_READ_SEARCH)]
            .into_iter()
            .filter(|(_, capability)| !privileges.capabilities.contains(*capability))
            .map(|(name, _)| name)
            .collect();
    let mut reasons = Vec::new();
    if !missing.is_empty() {
        let uid = privileges.uid;
        reasons.push(format!(
            "no {}: owners of sockets of users other than uid {uid} are not seen",
            missing.join(" and no ")
        ));
    }
    if !privileges.all_users {
        reasons.push("in a user namespace: owners that run outside of it are not seen".to_owned());
    }
    if !privileges.all_processes {
        reasons.push("in a pid namespace: owners that run outside of it are not seen".to_owned());
    }
    match hearing {
        Hearing::Events | Hearing::Perf(_) => {}
        Hearing::Ends(why) => reasons.push(format!(
            "no events: of connections that live between two walks only the end is seen, in the agent's own network \
             namespace, and nothing where this host reset them ({why})"
        )),
        Hearing::Nothing(why) => {
            reasons.push(format!("no events: connections that live between two walks are not seen ({why})"));
        }
    }
    reasons.extend(remarks);
    if let Hearing::Perf(why) = hearing {
        reasons.push(format!(
            "connections are heard by perf, and not at all while other programs have BPF on the same tracepoints (no trace \
             buffers: {why})"
        ));
    }
    reasons.push("peers of UDP sockets that are not connected are not seen".to_owned());
    let tier = match (missing.is_empty(), hearing) {
        (false, _) => Tier::T0,
        (true, Hearing::Ends(_) | Hearing::Nothing(_)) => Tier::T1,
        (true, Hearing::Events | Hearing::Perf(_)) => Tier::T2,
    };
    (tier, cut(reasons.join("; "), HOST_TEXT_LIMIT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_system_is_called_as_its_os_release_says() {
        for (text, name) in [
            ("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n", "Debian GNU/Linux 12 (bookworm)"),
            ("PRETTY_NAME='Alpine Linux v3.20'", "Alpine Linux v3.20"),
            ("PRETTY_NAME=Arch", "Arch"),
            (r#"PRETTY_NAME="a \"b\" \$c""#, r#"a "b" $c"#),
            ("PRETTY_NAME=\"\"\nNAME=Void\n", "Void"),
            ("NAME=\"Fedora Linux\"\nVERSION_ID=40\n", "Fedora Linux 40"),
            ("# nothing\n", "Linux"),
            ("", "Linux"),
        ] {
            assert_eq!(os(text), name, "{text}");
        }
    }

    #[test]
    fn the_ephemeral_range_is_two_ports_in_order() {
        assert_eq!(port_range("32768\t60999\n"), PortRange::new(32768, 60999).ok());
        for text in ["", "1", "2 1", "1 70000", "a b"] {
            assert_eq!(port_range(text), None, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_said() {
        let all = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
        let host = Privileges { uid: 990, capabilities: all, all_processes: true, all_users: true };
        let nothing = Hearing::Nothing("tracefs is not mounted".to_owned());
        let check = |privileges: Privileges, tier, reason: &str| {
            let (found, text) = sight(&privileges, &nothing, Vec::new());
            assert_eq!(found, tier, "{privileges:?}");
            assert!(text.contains(reason), "{text}");
        };
        check(
            host,
            Tier::T1,
            "no events: connections that live between two walks are not seen (tracefs is not mounted)",
        );
        check(
            Privileges { capabilities: CapabilitySet::SYS_PTRACE, ..host },
            Tier::T0,
            "no CAP_DAC_READ_SEARCH: owners",
        );
        let none = Privileges { capabilities: CapabilitySet::empty(), ..host };
        check(
            none,
            Tier::T0,
            "no CAP_SYS_PTRACE and no CAP_DAC_READ_SEARCH: owners of sockets of users other than uid 990",
        );
        check(Privileges { all_processes: false, ..host }, Tier::T1, "in a pid namespace");
        check(Privileges { all_users: false, ..host }, Tier::T1, "in a user namespace");
        let (tier, reason) = sight(&host, &Hearing::Events, vec!["a remark".to_owned()]);
        let expected = "a remark; peers of UDP sockets that are not connected are not seen";
        assert_eq!((tier, reason.as_str()), (Tier::T2, expected));
        assert_eq!(sight(&none, &Hearing::Events, Vec::new()).0, Tier::T0);
        let (tier, reason) = sight(&host, &Hearing::Perf("nobody made them".to_owned()), Vec::new());
        assert_eq!(tier, Tier::T2);
        assert!(
            reason.contains("heard by perf") && reason.contains("(no trace buffers: nobody made them)"),
            "{reason}"
        );
        let (tier, reason) = sight(&host, &Hearing::Ends("tracefs is not mounted".to_owned()), Vec::new());
        assert_eq!(tier, Tier::T1);
        assert!(reason.contains("only the end is seen") && reason.contains("(tracefs is not mounted)"), "{reason}");
    }

    #[test]
    fn this_host_tells_its_facts_and_they_travel() {
        let facts = facts("1.2.3", 7, &Hearing::Events, Vec::new());
        assert_eq!((facts.agent_version.as_str(), facts.netns), ("1.2.3", 7));
        assert_ne!(facts.boot_id, NO_BOOT_ID);
        assert!(!facts.kernel.is_empty() && !facts.arch.is_empty() && facts.ephemeral_ports.is_some());
        assert_eq!(HostFacts::try_from(fleetsock_proto::wire::HostFacts::from(facts.clone())), Ok(facts));
    }

    proptest! {
        #[test]
        fn a_text_of_any_length_fits(text in "\\PC{0,400}") {
            prop_assert!(host_name(&text).len() <= HOST_NAME_LIMIT);
            prop_assert!(!host_name(&text).is_empty());
            let name = format!("PRETTY_NAME={}", text.repeat(3));
            prop_assert!(os(&name).len() <= HOST_TEXT_LIMIT);
            prop_assert!(boot_id(&text) == NO_BOOT_ID || text.trim().len() >= 32);
            prop_assert!(port_range(&text).is_none_or(|range| range.first() <= range.last()));
        }
    }
}
