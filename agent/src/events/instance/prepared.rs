//! Trace buffers that root makes for an agent that may not: the agent only reads them, for which CAP_DAC_READ_SEARCH is
//! enough, so that nothing of tracefs changes hands and nothing of it can be written by the agent.

use std::{fmt, fs, str::FromStr};

use super::{
    InstanceError,
    folder::{Folder, instances, remove},
    makers,
};
use crate::events::{EventsError, NEEDED_STATES, RING_BYTES, tracepoint::Tracefs};

/// What they are called, with their own name behind it.
const NAME: &str = "fleetsock-prepared-";
/// Longest name, bytes.
const NAME_LIMIT: usize = 64;

/// The name of prepared trace buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuffersName(String);

/// A text that is no name of trace buffers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is no name of trace buffers; use 1 to {NAME_LIMIT} of the characters a-z, A-Z, 0-9, - and _",
    .0.escape_debug()
)]
pub struct InvalidBuffersName(pub String);

impl FromStr for BuffersName {
    type Err = InvalidBuffersName;

    fn from_str(text: &str) -> Result<BuffersName, InvalidBuffersName> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if is_plain && (1..=NAME_LIMIT).contains(&text.len()) {
            Ok(BuffersName(text.to_owned()))
        } else {
            Err(InvalidBuffersName(text.to_owned()))
        }
    }
}

impl fmt::Display for BuffersName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl BuffersName {
    pub(super) fn folder(&self, tracefs: &Tracefs) -> Folder {
        Folder(instances(tracefs).join(format!("{NAME}{self}")))
    }
}

/// Makes trace buffers and begins to fill them, in place of any of this name that no agent reads; gives the bytes of a
/// processor's. Takes the owner of tracefs, which is root as a rule.
pub fn make_buffers(name: &BuffersName) -> Result<usize, EventsError> {
    let tracefs = Tracefs::find()?;
    // Agents that only read cannot do it themselves.
    makers::remove_abandoned(&instances(&tracefs));
    let folder = name.folder(&tracefs);
    folder.remove()?;
    fs::create_dir(&folder.0).map_err(|source| InstanceError::File { path: folder.0.clone(), source })?;
    // Whoever comes by before it is set up finds it in use.
    let _held = folder.hold()?;
    let made = set_up(&folder);
    if made.is_err() {
        // Why it could not be set up is what matters.
        remove(&folder.0).unwrap_or_else(|error| tracing::warn!(%error, "an instance of tracefs is left"));
    }
    Ok(made?)
}

fn set_up(folder: &Folder) -> Result<usize, InstanceError> {
    folder.set_up(&RING_BYTES, &NEEDED_STATES.to_string_lossy())?;
    folder.begin()?;
    folder.bytes()
}

/// Removes trace buffers, if there are any of this name; not those that an agent reads.
pub fn remove_buffers(name: &BuffersName) -> Result<(), EventsError> {
    Ok(name.folder(&Tracefs::find()?).remove()?)
}

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
mod tests {
    use std::{
        fmt::Display,
        net::{TcpListener, TcpStream},
        thread,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::events::{
        Drained,
        instance::Instance,
        online,
        reading::Formats,
        record::{SocketEvent, What},
    };

    /// How long others may hold the buffers.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Buffers that are removed at the end.
    struct Made {
        name: BuffersName,
        tracefs: Tracefs,
    }

    impl Made {
        /// None where they cannot be made.
        fn new(name: &str) -> Option<Made> {
            let name: BuffersName = format!("{name}-{}", std::process::id()).parse().unwrap();
            match make_buffers(&name) {
                Ok(bytes) => {
                    assert!(bytes >= *RING_BYTES.last().unwrap(), "{bytes}");
                    Some(Made { name, tracefs: Tracefs::find().unwrap() })
                }
                Err(error) => {
                    eprintln!("skipped: no trace buffers here: {error}");
                    None
                }
            }
        }

        fn take(&self) -> Result<Instance, InstanceError> {
            when_free(|| self.take_now())
        }

        fn take_now(&self) -> Result<Instance, InstanceError> {
            Instance::take(&self.tracefs, &online().unwrap(), &self.name, &NEEDED_STATES.to_string_lossy())
        }

        fn refused(&self) -> String {
            self.take_now().map(drop).unwrap_err().to_string()
        }
    }

    impl Drop for Made {
        fn drop(&mut self) {
            when_free(|| remove_buffers(&self.name)).unwrap();
        }
    }

    /// What is done once nobody holds the buffers any more. A process that another test starts has this one's descriptors until
    /// it executes its program, and with them the lock.
    fn when_free<T, E: Display>(mut what: impl FnMut() -> Result<T, E>) -> Result<T, E> {
        let begun = Instant::now();
        loop {
            match what() {
                Err(error) if error.to_string().contains("in use by another agent") && begun.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(1));
                }
                done => return done,
            }
        }
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        for text in ["service", "web-1_A", &"a".repeat(NAME_LIMIT)] {
            assert_eq!(text.parse::<BuffersName>().unwrap().to_string(), text);
        }
        for text in ["", "..", "a/b", "a b", "a.b", "\u{e4}", &"a".repeat(NAME_LIMIT + 1)] {
            assert_eq!(text.parse::<BuffersName>(), Err(InvalidBuffersName(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn buffers_that_were_not_prepared_as_they_should_be_are_refused_with_words() {
        let Some(made) = Made::new("spoiled") else { return };
        for (setting, value, found) in [
            ("trace_clock", "local", "trace_clock is `local` and not `mono`"),
            ("options/overwrite", "1", "overwrite is `1` and not `0`"),
            ("tracing_on", "0", "tracing_on is `0` and not `1`"),
            ("events/tcp/tcp_destroy_sock/enable", "0", "tcp_destroy_sock/enable is `0` and not `1`"),
            ("events/tcp/tcp_destroy_sock/filter", "dport == 1", "filter is `dport == 1` and not `none`"),
            ("events/sock/inet_sock_set_state/filter", "newstate != 3", "filter is `newstate != 3` and not `newstate"),
        ] {
            made.name.folder(&made.tracefs).set(setting, value).unwrap();
            let refused = made.take().map(drop).unwrap_err().to_string();
            assert!(refused.contains(found) && refused.contains("not prepared by this version"), "{refused}");
            // Made anew, they are good.
            when_free(|| make_buffers(&made.name)).unwrap();
        }
        drop(made.take().unwrap());
        when_free(|| remove_buffers(&made.name)).unwrap();
        let refused = made.refused();
        assert!(refused.contains("nobody prepared it (fleetsock-agent buffers make)"), "{refused}");
    }

    #[test]
    fn buffers_are_read_by_one_agent_and_neither_made_anew_nor_removed_meanwhile() {
        let Some(made) = Made::new("held") else { return };
        let taken = made.take().unwrap();
        let refusals = [
            made.refused(),
            make_buffers(&made.name).unwrap_err().to_string(),
            remove_buffers(&made.name).unwrap_err().to_string(),
        ];
        for refused in refusals {
            assert!(refused.ends_with("is in use by another agent"), "{refused}");
        }
        drop(taken);
        // One that is about to read has none of its files open.
        let held = when_free(|| made.name.folder(&made.tracefs).hold()).unwrap();
        for refused in [make_buffers(&made.name).map(drop), remove_buffers(&made.name)] {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.ends_with("is in use by another agent"), "{refused}");
        }
        drop(held);
        // What an agent that is killed leaves is the same: nobody holds it.
        drop(made.take().unwrap());
    }

    #[test]
    fn what_was_written_before_an_agent_reads_is_passed_over_and_what_comes_then_is_told() {
        let Some(made) = Made::new("old") else { return };
        let formats =
            Formats { state: made.tracefs.state_format().unwrap(), destroy: made.tracefs.destroy_format().unwrap() };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let port = client.local_addr().unwrap().port();
            drop((listener.accept().unwrap(), client));
            port
        };
        let before = connect();
        let mut taken = made.take().unwrap();
        let after = connect();
        let mut drained = Drained::default();
        taken.drain(&formats, &mut drained);
        let told = |port: u16| {
            let of_port = |event: &SocketEvent| event.local.port() == port || event.peer.port() == port;
            drained.records.iter().any(|record| match &record.what {
                What::State { event, .. } | What::Destroyed { event, .. } => of_port(event),
                _ => false,
            })
        };
        assert_eq!([told(before), told(after)], [false, true]);
        assert_eq!((drained.lost, drained.unreadable), (0, 0));
    }
}
