//! The kernel and /proc tell the same processes of a socket, however they came to hold it.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fleetsock_agent::owners::{Holdings, OwnerScan, Processes, Wanted};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::{
    listeners::{apart, has, skip},
    namespaces::wait_until,
};

/// Sockets of one process: more than are told at once.
const MANY: usize = 5_000;
/// Descriptors that are no sockets: twice what the kernel goes through before it has to be asked to go on (a million).
const MILLIONS: usize = 2_200_000;
/// Numbers of one socket, and threads that have the kernel go through them again: a hundred million, for most of a minute.
const NUMBERS: usize = 16_000;
const THREADS: usize = 6_000;

/// Who holds which sockets.
struct Way {
    pids: BTreeSet<u32>,
    inodes: Wanted,
}

/// Processes with sockets that are held in all ways.
struct Holders {
    child: Child,
    ways: HashMap<String, Way>,
}

impl Holders {
    fn start() -> Holders {
        let mut command = Command::new("python3");
        command.args(["-c", include_str!("holders.py"), &MANY.to_string()]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let ways: HashMap<String, Way> = lines.take_while(|line| line != "ready").map(|line| way(&line)).collect();
        assert_eq!(ways.len(), 9, "{:?}", ways.keys());
        Holders { child, ways }
    }

    fn wanted(&self, leaving_out: &[&str]) -> Wanted {
        let told = self.ways.iter().filter(|(name, _)| !leaving_out.contains(&name.as_str()));
        told.flat_map(|(_, way)| way.inodes.iter().copied()).collect()
    }

    /// Every socket is held by those who hold it.
    fn check(&self, scan: &OwnerScan, leaving_out: &[&str]) {
        for (name, way) in self.ways.iter().filter(|(name, _)| !leaving_out.contains(&name.as_str())) {
            for inode in &way.inodes {
                let owners =
                    scan.owners.get(inode).map(|owners| owners.iter().map(|owner| owner.pid).collect::<BTreeSet<_>>());
                assert_eq!(owners.unwrap_or_default(), way.pids, "{name} {inode}");
            }
        }
    }
}

/// `name pid,pid inode,inode`
fn way(line: &str) -> (String, Way) {
    let [name, pids, inodes] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("no way: {line}") };
    let pids = pids.split(',').filter(|pid| !pid.is_empty()).map(|pid| pid.parse().unwrap()).collect();
    let inodes = inodes.split(',').map(|inode| inode.parse().unwrap()).collect();
    (name.to_owned(), Way { pids, inodes })
}

impl Drop for Holders {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

/// What has the kernel tell, where it does.
fn holdings() -> Option<Holdings> {
    if !has("python3") {
        return None;
    }
    Holdings::open().inspect_err(|error| skip(&format!("the kernel does not tell who holds sockets: {error}"))).ok()
}

#[test]
fn the_kernel_tells_the_same_holders_as_proc_however_they_came_to_hold_a_socket() {
    let Some(holdings) = holdings() else { return };
    let holders = Holders::start();
    let wanted = holders.wanted(&["apart"]);
    let mut processes = Processes::open().unwrap();
    let read = processes.scan(&wanted);
    holders.check(&read, &["apart"]);
    let mut processes = processes.asking(Ok(holdings));
    for turn in 0..3 {
        let told = processes.scan(&wanted);
        assert_eq!(processes.remark(), None);
        assert!(told.owners == read.owners && told.owners_cut == 0, "turn {turn}");
        // Nobody holds some of them: who may do so is said by both.
        assert_eq!(told.denied > 0, read.denied > 0, "{} {}", told.denied, read.denied);
    }
}

#[test]
fn the_kernel_tells_what_a_thread_has_in_a_table_of_its_own() {
    let Some(holdings) = holdings() else { return };
    let holders = Holders::start();
    let scan = Processes::open().unwrap().asking(Ok(holdings)).scan(&holders.wanted(&[]));
    holders.check(&scan, &[]);
}

#[test]
fn millions_of_descriptors_that_are_no_sockets_do_not_hide_the_one_that_is() {
    if std::env::var_os("FLEETSOCK_LONG").is_none() {
        return skip("whoever reads /proc meanwhile takes ten seconds: FLEETSOCK_LONG=1");
    }
    let Some(holdings) = holdings() else { return };
    let mut command = Command::new("python3");
    command.args(["-c", include_str!("millions.py"), &MILLIONS.to_string()]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let found = line.trim().split_once(' ').map(|(pid, inode)| {
        let (pid, inode): (u32, u64) = (pid.parse().unwrap(), inode.parse().unwrap());
        let mut processes = Processes::open().unwrap().asking(Ok(holdings));
        let scan = processes.scan(&Wanted::from_iter([inode]));
        (pid, scan.owners[&inode][0].pid, processes.remark())
    });
    drop(child.stdin.take());
    child.wait().unwrap();
    match found {
        Some((pid, told, remark)) => assert_eq!((told, remark), (pid, None)),
        None => skip("so many descriptors are not allowed"),
    }
}

#[test]
fn a_process_that_has_the_kernel_tell_its_sockets_once_for_each_thread_does_not_hold_up_scans() {
    if std::env::var_os("FLEETSOCK_LONG").is_none() {
        return skip("five seconds of CPU: FLEETSOCK_LONG=1");
    }
    let Some(holdings) = holdings().filter(|_| has("cc")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("leaderless");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/leaderless.c");
    let built = Command::new("cc").args(["-O2", "-pthread", "-o"]).arg(&program).arg(source).status().unwrap();
    assert!(built.success(), "cc builds it");
    let mut command = Command::new(program);
    command.args([NUMBERS.to_string(), THREADS.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    wait_until("its first thread is gone", || fs::read_to_string(&stat).unwrap().contains(") Z "));
    let mut processes = Processes::open().unwrap().asking(Ok(holdings));
    let scans = [(); 2].map(|()| {
        let begun = Instant::now();
        processes.scan(&Wanted::from_iter([1]));
        (begun.elapsed(), processes.remark())
    });
    drop(child.stdin.take());
    child.wait().unwrap();
    if line != format!("{NUMBERS} {THREADS}\n") {
        return skip(&format!("so many numbers and threads are not allowed: {line}"));
    }
    let [(first, said), (second, again)] = scans;
    let remark = said.expect("the kernel has more to tell than may be listened to");
    assert!(remark.contains("the kernel's iterator takes more than 5 s of CPU"), "{remark}");
    assert_eq!(again.as_ref(), Some(&remark));
    assert!(second < first.min(Duration::from_secs(5)), "{first:?} {second:?}: the kernel was asked again");
}

#[test]
fn the_kernel_goes_on_to_tell_when_all_capabilities_are_given_up_but_those_to_look_at_processes() {
    let Some(holdings) = holdings() else { return };
    let holders = Holders::start();
    apart(|| {
        let kept = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).unwrap();
        let mut processes = Processes::open().unwrap().asking(Ok(holdings));
        let said = processes.remark();
        let scan = processes.scan(&holders.wanted(&[]));
        assert_eq!(processes.remark(), said, "what is said at the start is so");
        if let Some(remark) = said {
            // Linux before 5.19.
            assert!(remark.contains("Operation not permitted"), "{remark}");
            return skip(&remark);
        }
        holders.check(&scan, &[]);
    });
}

#[test]
fn who_may_not_ask_the_kernel_reads_proc_and_says_what_is_missing() {
    if !rustix::process::geteuid().is_root() || !has("python3") {
        return skip("giving up root's privileges takes root");
    }
    let holders = Holders::start();
    for (given_up, missing) in [
        (CapabilitySet::BPF | CapabilitySet::SYS_ADMIN, "no CAP_BPF"),
        (CapabilitySet::PERFMON | CapabilitySet::BPF | CapabilitySet::SYS_ADMIN, "no CAP_BPF and no CAP_PERFMON"),
        (CapabilitySet::DAC_READ_SEARCH, "no CAP_DAC_READ_SEARCH"),
    ] {
        apart(|| {
            let mut sets = capabilities(None).unwrap();
            sets.effective -= given_up;
            set_capabilities(None, sets).unwrap();
            let mut processes = Processes::open().unwrap().asking(Holdings::open());
            let remark = format!("owners are read from /proc, which takes several times the CPU ({missing})");
            assert_eq!(processes.remark(), Some(remark));
            // Also whoever is root without any of them sees what is root's.
            holders.check(&processes.scan(&holders.wanted(&["apart"])), &["apart"]);
        });
    }
}
