//! The processes of `fleetctl dev`: begun, watched, and never left behind.
//!
//! A child begins as this same program, asks the kernel to be told when its parent dies, and then becomes the program
//! that it is to be. So it ends with `fleetctl dev` even when that is killed.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use tokio::{process::Child, time::timeout};

use crate::failure::{Exit, Failure};

/// First argument of a child on its way to become another program.
const BECOME: &str = "--become-child-of";
/// How long a child may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(8);
/// Lines of a log that are shown when its program failed.
const TAIL_LINES: usize = 12;
/// Bytes of a log that are read for that.
const TAIL_BYTES: u64 = 16 * 1024;

/// Becomes the program that the arguments name, when they say so; returns only when that cannot be, or when they say
/// nothing of it.
pub fn become_child(arguments: &[OsString]) -> Option<Failure> {
    let [_, word, parent, program, rest @ ..] = arguments else { return None };
    if word != BECOME {
        return None;
    }
    let failed =
        |problem: String| Some(Failure::new(Exit::Failed, format!("{}: {problem}", program.to_string_lossy())));
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
        return failed(error.to_string());
    }
    // The parent may have died before the kernel was asked.
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if now.as_deref().map(OsStr::new) != Some(parent) {
        return failed("fleetctl dev is gone".to_owned());
    }
    failed(std::process::Command::new(program).args(rest).exec().to_string())
}

/// A program that runs beside us.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

/// Where a program's words go, and what it holds as long as it lives.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// Its log.
    pub log: PathBuf,
    /// A locked file: whoever waits for the lock waits for the program's end.
    pub held: &'a File,
}

fn command(
    program: &Path,
    arguments: &[OsString],
    surroundings: &Surroundings<'_>,
) -> io::Result<tokio::process::Command> {
    let log = File::options().create(true).append(true).open(&surroundings.log)?;
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command
        .arg(BECOME)
        .arg(std::process::id().to_string())
        .arg(program)
        .args(arguments)
        .stdin(Stdio::from(surroundings.held.try_clone()?))
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        .env_remove("FLEETSOCK_JOIN")
        // Ctrl-C is for us; the children are told to end in their order.
        .process_group(0);
    Ok(command)
}

impl Program {
    /// Begins a program.
    pub fn begin(
        name: &'static str,
        program: &Path,
        arguments: &[OsString],
        surroundings: Surroundings<'_>,
    ) -> Result<Program, Failure> {
        let child = command(program, arguments, &surroundings).and_then(|mut command| command.spawn());
        let child = child.map_err(|error| Failure::new(Exit::Failed, format!("cannot run {name}: {error}")))?;
        Ok(Program { name, child, log: surroundings.log })
    }

    /// Waits for its end; anything but success is a failure with the end of its log.
    pub async fn succeed(mut self) -> Result<(), Failure> {
        match self.child.wait().await {
            Ok(status) if status.success() => Ok(()),
            ended => Err(self.failure(&ended)),
        }
    }

    /// Waits for an end that should not come.
    pub async fn ended(&mut self) -> Failure {
        let ended = self.child.wait().await;
        self.failure(&ended)
    }

    fn failure(&self, ended: &io::Result<ExitStatus>) -> Failure {
        let how = match ended {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        self.failed(&format!("{} ended: {how}", self.name))
    }

    /// A failure that this program is the reason of, with the end of its log.
    pub fn failed(&self, message: &str) -> Failure {
        let tail = match tail(&self.log) {
            Ok(tail) if tail.is_empty() => "  (it wrote nothing)".to_owned(),
            Ok(tail) => tail,
            Err(error) => format!("  ({}: {error})", self.log.display()),
        };
        Failure::new(Exit::Failed, format!("{message}; the last it wrote was:\n{tail}"))
    }

    /// Asks it to end, and kills it when it does not.
    pub async fn stop(mut self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::new(Exit::Failed, format!("cannot stop {}: {error}", self.name));
        // `None` once it has ended and was waited for.
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(()) };
        rustix::process::kill_process(pid, Signal::TERM).map_err(|error| failed(error.into()))?;
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(ended) => ended.map(drop).map_err(failed),
            Err(_) => self.child.kill().await.map_err(failed),
        }
    }
}

/// The last lines of a log, each moved in.
fn tail(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let begin = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    Ok(shown.iter().map(|line| format!("  {}", crate::sanitise::sanitise(line))).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_log_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::write(&log, (1..=100).map(|n| format!("line {n}\n")).collect::<String>()).unwrap();
        let tail = tail(&log).unwrap();
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.starts_with("  line 89\n") && tail.ends_with("  line 100"), "{tail}");
    }

    #[test]
    fn other_arguments_make_no_child() {
        for arguments in [&["fleetctl"][..], &["fleetctl", "ports"], &["fleetctl", "ports", "a", "b", "c"]] {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            assert!(become_child(&arguments).is_none());
        }
    }
}
