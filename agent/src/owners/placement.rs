//! Where a process runs, read from the paths of its control groups (cgroups(7), /proc/PID/cgroup).

/// Digits of a container's id that are shown, as `docker ps` and `crictl ps` do.
const SHORT_ID: usize = 12;
/// Digits of a container's whole id.
const ID: usize = 64;
/// What the names of units end with that processes can run in (systemd.unit(5)); a slice only groups others.
const UNITS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// The container and the systemd unit of a process; empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Placement {
    /// First 12 digits of the container's id.
    pub(crate) container: String,
    /// Name of the unit.
    pub(crate) unit: String,
}

impl Placement {
    /// Reads the content of /proc/PID/cgroup: one line for each hierarchy of version 1, and `0::PATH` for version 2.
    pub(crate) fn parse(text: &str) -> Placement {
        let mut placement = Placement::default();
        let mut lines: Vec<_> = text.lines().filter_map(hierarchy).collect();
        lines.sort_by_key(|(rank, _)| *rank);
        for (_, path) in lines {
            if placement.container.is_empty() {
                placement.container = container(path).unwrap_or_default();
            }
            if placement.unit.is_empty() {
                placement.unit = unit(path).unwrap_or_default();
            }
        }
        placement
    }
}

/// The path of a line, and how much its hierarchy is to be believed, best first: systemd keeps its own.
fn hierarchy(line: &str) -> Option<(u8, &str)> {
    let (number, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let rank = match (number, controllers) {
        ("0", "") => 0,
        (_, "name=systemd") => 1,
        _ => 2,
    };
    Some((rank, path))
}

/// The innermost container: `docker/ID`, `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`,
/// `libpod-ID.scope`, `kubepods/.../podUID/ID`, `...slice:cri-containerd:ID`.
fn container(path: &str) -> Option<String> {
    path.rsplit('/').find_map(container_id).map(|id| id[..SHORT_ID].to_owned())
}

/// The id at the end of a control group's name.
fn container_id(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (before, id) = name.split_at_checked(name.len().checked_sub(ID)?)?;
    let is_id = id.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit));
    // The process that watches a container runs outside of it (libpod-conmon-ID, crio-conmon-ID).
    let is_whole = before.is_empty() || before.ends_with(['-', ':']);
    (is_id && is_whole && !before.ends_with("conmon-")).then_some(id)
}

/// The innermost unit; a scope that only wraps a container is told by the container.
fn unit(path: &str) -> Option<String> {
    let is_unit = |name: &&str| UNITS.iter().any(|suffix| name.ends_with(suffix)) && container_id(name).is_none();
    path.rsplit('/').find(is_unit).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "3f4e9c6f6a1f0f8f2d9f5b7c1e2d3a4b5c6d7e8f90a1b2c3d4e5f60718293a4b";
    const B: &str = "b0c1d2e3f40516273849506172839405a6b7c8d9e0f1a2b3c4d5e6f708192a3b";

    fn check(text: &str, container: &str, unit: &str) {
        let text = text.replace("{A}", A).replace("{B}", B);
        let found = Placement::parse(&text);
        assert_eq!((found.container.as_str(), found.unit.as_str()), (container, unit), "{text}");
    }

    #[test]
    fn the_unit_is_the_innermost_one() {
        check("0::/system.slice/nginx.service\n", "", "nginx.service");
        check("0::/user.slice/user-1000.slice/session-3.scope", "", "session-3.scope");
        let user = "/user.slice/user-1000.slice/user@1000.service";
        check(&format!("0::{user}/app.slice/syncthing.service"), "", "syncthing.service");
        check(&format!("0::{user}/init.scope"), "", "init.scope");
        check("0::/system.slice/system-getty.slice/getty@tty1.service", "", "getty@tty1.service");
        check("0::/system.slice/cups.socket", "", "cups.socket");
        check("0::/system.slice/systemd-udevd.service/udev", "", "systemd-udevd.service");
        check("0::/", "", "");
        check("0::/system.slice", "", "");
    }

    #[test]
    fn containers_of_every_engine_are_known() {
        let a = &A[..12];
        check("0::/system.slice/docker-{A}.scope", a, "");
        check("0::/docker/{A}", a, "");
        check("0::/machine.slice/libpod-{A}.scope/container", a, "");
        check("0::/system.slice/web.service/libpod-payload-{A}", a, "web.service");
        let pod = "kubepods-besteffort-pod0a1b2c3d_1111_2222_3333_444455556666.slice";
        check(&format!("0::/kubepods.slice/kubepods-besteffort.slice/{pod}/cri-containerd-{{A}}.scope"), a, "");
        check(&format!("0::/kubepods.slice/{pod}/crio-{{A}}.scope"), a, "");
        check("0::/kubepods/burstable/pod0a1b2c3d-1111-2222-3333-444455556666/{A}", a, "");
        check("0::/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{A}", a, "containerd.service");
    }

    #[test]
    fn the_innermost_container_counts_and_units_inside_are_seen() {
        check("0::/docker/{A}/docker/{B}", &B[..12], "");
        check("0::/system.slice/docker-{A}.scope/system.slice/sshd.service", &A[..12], "sshd.service");
    }

    #[test]
    fn what_only_looks_like_a_container_is_none() {
        check("0::/machine.slice/libpod-conmon-{A}.scope", "", "libpod-conmon-{A}.scope".replace("{A}", A).as_str());
        check("0::/x{A}", "", "");
        check(&format!("0::/docker/{}", &A[..63]), "", "");
        check(&format!("0::/docker/{}", A.to_uppercase()), "", "");
        check(&format!("0::/docker/é{}", &A[1..]), "", "");
    }

    #[test]
    fn version_1_hierarchies_are_read() {
        check(
            "12:pids:/system.slice/cron.service\n1:name=systemd:/system.slice/cron.service\n0::/\n",
            "",
            "cron.service",
        );
        check("11:memory:/docker/{A}\n3:cpu,cpuacct:/docker/{A}\n1:name=systemd:/docker/{A}\n", &A[..12], "");
        check("9:name=systemd:/\n4:memory:/docker/{A}\n0::/system.slice/ssh.service\n", &A[..12], "ssh.service");
        check("no colon\n7\n::", "", "");
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_fail(text in "\\PC{0,200}", path in "[/a-f0-9é.:-]{0,200}") {
            for text in [text, format!("0::{path}"), format!("0::/docker/{path}{A}")] {
                let found = Placement::parse(&text);
                prop_assert!(found.container.is_empty() || found.container.len() == SHORT_ID);
                prop_assert!(found.unit.len() <= text.len());
            }
        }
    }
}
