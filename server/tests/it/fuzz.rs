//! No input makes a reader panic, hang or take more memory than it may: join strings, certificate requests, settings, and
//! every message of the contract, those that a server reads and those that it sends: it may be an attacker too.
//!
//! Inputs are made from a seed: messages from their descriptors, the rest from good examples, then changed at random. Each
//! target runs in a process of its own, for a second; `FLEETSOCK_LONG=1` gives it ten minutes. A failure tells the target
//! and the seed, and keeps the input; `FLEETSOCK_FUZZ=target:seed cargo test -p fleetsock-server fuzz -- --ignored` goes the
//! same way again.

use std::{
    fs::File,
    os::unix::{fs::FileExt, process::ExitStatusExt},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use self::{mutation::Random, targets::Target};

mod answers;
mod messages;
mod mutation;
mod targets;

/// Names the target and the seed for a process that runs one.
const WHAT: &str = "FLEETSOCK_FUZZ";
/// Names the file that holds the input in hand.
const INPUT: &str = "FLEETSOCK_FUZZ_INPUT";
/// One input may take so long, also on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
/// Inputs of a target that run at least, however slow the machine is.
const LEAST: u64 = 100;

fn budget() -> Duration {
    Duration::from_secs(if std::env::var_os("FLEETSOCK_LONG").is_some() { 600 } else { 1 })
}

/// Runs one target; what went wrong.
fn run(target: &Target, seed: u64, folder: &Path) -> Result<(), String> {
    let input = folder.join(target.name.replace([':', '/'], "-"));
    let what = format!("{}:{seed}", target.name);
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -d \"$0\" && exec \"$@\"", &target.memory_kib().to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "fuzz::the_target_of_the_environment_takes_everything", "--ignored", "--nocapture"])
        .env(WHAT, &what)
        .env(INPUT, &input)
        .env("RUST_BACKTRACE", "0")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let (begun, mut last) = (Instant::now(), (Instant::now(), None));
    let problem = loop {
        if let Some(status) = child.try_wait().unwrap() {
            match (status.success(), status.signal()) {
                (true, _) => return Ok(()),
                (false, Some(signal)) => break format!("ended by signal {signal}: perhaps out of memory"),
                (false, None) => break "panicked".to_owned(),
            }
        }
        let written = std::fs::metadata(&input).and_then(|file| file.modified()).ok();
        if written != last.1 {
            last = (Instant::now(), written);
        }
        if last.0.elapsed() > PATIENCE || begun.elapsed() > budget() + 10 * PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            break "hung".to_owned();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Err(format!("{what} {problem}; the input is {}", input.display()))
}

#[test]
fn no_input_makes_a_reader_panic_hang_or_take_more_memory_than_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let seed = rand_seed();
    let failures: Vec<String> =
        targets::all().iter().filter_map(|target| run(target, seed, folder.path()).err()).collect();
    if !failures.is_empty() {
        panic!("{}\n{}", folder.keep().display(), failures.join("\n"));
    }
}

/// Another one for each run, so that many runs try more; it is told when something fails.
fn rand_seed() -> u64 {
    fleetsock_proto::time::Timestamp::now().as_micros().unsigned_abs()
}

#[test]
#[ignore = "a process of its own, which the test above starts"]
fn the_target_of_the_environment_takes_everything() {
    let what = std::env::var(WHAT).unwrap();
    let (name, seed) = what.rsplit_once(':').unwrap();
    let target = targets::all().into_iter().chain(targets::broken()).find(|target| target.name == name).unwrap();
    let kept = std::env::var_os(INPUT).map(|path| File::create(path).unwrap());
    let mut random = Random::new(seed.parse().unwrap());
    let begun = Instant::now();
    let mut inputs = 0;
    while inputs < LEAST || begun.elapsed() < budget() {
        let input = target.input(&mut random);
        if let Some(kept) = &kept {
            kept.set_len(input.len().try_into().unwrap()).unwrap();
            kept.write_all_at(&input, 0).unwrap();
        }
        (target.read)(&input);
        inputs += 1;
    }
    crate::tell(&format!("{name}: {inputs} inputs"));
}

/// A reader that fails must be seen to fail, or nothing above means anything.
#[test]
fn a_reader_that_panics_or_takes_too_much_is_found() {
    let folder = tempfile::tempdir().unwrap();
    for (target, words) in [("broken: panics", "panicked"), ("broken: takes too much", "ended by signal 6")] {
        let target = targets::broken().into_iter().find(|broken| broken.name == target).unwrap();
        let problem = run(&target, 1, folder.path()).unwrap_err();
        assert!(problem.contains(words), "{problem}");
    }
}
