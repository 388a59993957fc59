//! What a network namespace is called.

use std::{os::fd::OwnedFd, path::Path};

use rustix::ffi::CString;

use super::Namespace;
use crate::owners::{Folder, Placement, buffer, cut};

/// Longest name, bytes: what a file can be called (NAME_MAX).
const NAME_LIMIT: usize = 255;
/// Where `ip netns` keeps its names (ip-netns(8)); /var/run leads there.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];
/// How the names begin that container network plugins and podman make up.
const MADE_UP: [&str; 2] = ["cni-", "netns-"];
/// Where docker keeps its namespaces, under the ids of its sandboxes, which look like those of containers.
const DOCKER: &str = "docker/netns";

/// Gives a namespace its name.
pub(super) fn name(namespace: &mut Namespace, proc: &OwnedFd) {
    let given = namespace.mounts.iter().find_map(|path| given(path));
    let name = match given {
        Some(name) => name,
        None => {
            let placed = placed(namespace, proc);
            let made_up = || namespace.mounts.iter().find_map(|path| made_up(path)).unwrap_or_default();
            if placed.is_empty() { made_up() } else { placed }
        }
    };
    namespace.name = cut(name, NAME_LIMIT);
}

/// The container or unit of a process in it. It is read when that process is not the one of the last time.
fn placed(namespace: &mut Namespace, proc: &OwnedFd) -> String {
    let asked = namespace.placed.take().filter(|(pid, _)| namespace.pids.contains(pid));
    let (pid, name) = match (asked, namespace.pids.first()) {
        (Some(asked), _) => asked,
        (None, Some(pid)) => (*pid, read(*pid, proc)),
        (None, None) => return String::new(),
    };
    namespace.placed = Some((pid, name.clone()));
    name
}

/// The container or unit of a process; empty when it ended meanwhile, or where there are no control groups.
fn read(pid: u32, proc: &OwnedFd) -> String {
    let Ok(folder) = CString::new(pid.to_string()) else { return String::new() };
    let mut buffer = buffer();
    let placement = Folder::open(proc, &folder)
        .and_then(|folder| folder.file(c"cgroup", &mut buffer).map(|text| String::from_utf8_lossy(text).into_owned()));
    match placement.map(|text| Placement::parse(&text)) {
        Ok(Placement { container, unit }) if container.is_empty() => unit,
        Ok(Placement { container, .. }) => container,
        Err(error) => {
            tracing::trace!(pid, %error, "cannot read the control group of a process");
            String::new()
        }
    }
}

/// The name that somebody chose.
fn given(mount: &Path) -> Option<String> {
    let folder = mount.parent()?;
    let name = file_name(mount)?;
    let is_given = NAMED.iter().any(|named| folder == Path::new(named)) && !is_made_up(&name);
    is_given.then_some(name)
}

/// The name that a program chose, where it says more than nothing.
fn made_up(mount: &Path) -> Option<String> {
    file_name(mount).filter(|_| !mount.parent().is_some_and(|folder| folder.ends_with(DOCKER)))
}

fn is_made_up(name: &str) -> bool {
    MADE_UP.iter().any(|prefix| name.starts_with(prefix))
}

fn file_name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn named(mounts: &[&str], placed: Option<(u32, &str)>) -> String {
        let mut namespace = Namespace {
            netns: 1,
            name: String::new(),
            mounts: mounts.iter().map(PathBuf::from).collect(),
            pids: placed.iter().map(|(pid, _)| *pid).collect(),
            placed: placed.map(|(pid, name)| (pid, name.to_owned())),
        };
        let proc = rustix::fs::open("/proc", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        name(&mut namespace, &proc);
        namespace.name
    }

    #[test]
    fn a_name_that_somebody_gave_comes_before_the_container_and_that_before_what_a_program_made_up() {
        let container = Some((1, "3f4e9c6f6a1f"));
        let made_up = "/var/run/netns/cni-1a2b";
        for (mounts, placed, expected) in [
            (&["/run/netns/blue"][..], container, "blue"),
            (&[made_up, "/var/run/netns/red"], container, "red"),
            (&[made_up], container, "3f4e9c6f6a1f"),
            (&[made_up], Some((1, "")), "cni-1a2b"),
            (&["/run/docker/netns/4a0b3fa9e8d1"], container, "3f4e9c6f6a1f"),
            (&["/run/docker/netns/4a0b3fa9e8d1"], None, ""),
            (&["/run/user/1000/netns/netns-7"], None, "netns-7"),
            (&[], Some((1, "ssh.service")), "ssh.service"),
            (&[], None, ""),
        ] {
            assert_eq!(named(mounts, placed), expected, "{mounts:?} {placed:?}");
        }
    }

    #[test]
    fn a_longer_name_is_cut() {
        assert_eq!(named(&[&format!("/run/netns/{}", "n".repeat(400))], None).len(), NAME_LIMIT);
    }
}
