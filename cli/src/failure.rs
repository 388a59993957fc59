//! What went wrong, in words that say what to type next, and the exit code that tells a script.

use std::{fmt, io};

use fleetsock_proto::{
    cause,
    client::{CallError, ConnectError},
    identity::IdentityError,
    private::PrivateFileError,
};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked; an empty list is that too.
    Done,
    /// It compared, and there are differences.
    Differs,
    /// It failed.
    Failed,
    /// What was asked is wrong.
    Usage,
    /// The answer does not cover everything, and --fail-on-stale was given.
    Partial,
    /// Not authorised, or a certificate was refused.
    Denied,
    /// The server cannot be reached.
    Unreachable,
    /// The named thing does not exist.
    NotFound,
}

impl Exit {
    /// The word of the machine formats.
    pub const fn as_str(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Differs => "differs",
            Exit::Failed => "failed",
            Exit::Usage => "usage",
            Exit::Partial => "partial",
            Exit::Denied => "denied",
            Exit::Unreachable => "unreachable",
            Exit::NotFound => "not-found",
        }
    }

    /// The number that the process exits with.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Differs | Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Partial => 3,
            Exit::Denied => 4,
            Exit::Unreachable => 5,
            Exit::NotFound => 6,
        }
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// How the process exits.
    pub exit: Exit,
    /// What happened and why.
    pub message: String,
    /// What to type next, one command or sentence.
    pub hint: Option<String>,
    /// The causes beneath, for `-v`.
    pub causes: Vec<String>,
}

impl Failure {
    /// A failure with these words.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), hint: None, causes: Vec::new() }
    }

    /// What was typed is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    /// The failure, and what to type next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// The failure, and what to type next unless it says so already.
    #[must_use]
    pub fn or_hint(mut self, hint: &str) -> Failure {
        self.hint.get_or_insert_with(|| hint.to_owned());
        self
    }

    fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Failure {
        self.causes = cause::texts(error).split_off(1);
        self
    }

    /// The object of `-o json`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "code": self.exit.as_str(),
            "exit_code": self.exit.code(),
            "message": self.message,
            "hint": self.hint,
            "causes": self.causes,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why a command did not come to its end.
#[derive(Debug)]
pub enum Ended {
    /// Whoever read our output has gone, as `head` does: not an error.
    ReaderGone,
    /// Something went wrong.
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Failed(failure)
    }
}

impl From<io::Error> for Ended {
    /// Errors of writing to standard output; every other I/O is named where it happens.
    fn from(error: io::Error) -> Ended {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Ended::ReaderGone,
            _ => Ended::Failed(Failure::new(Exit::Failed, format!("cannot write to standard output: {error}"))),
        }
    }
}

impl From<CallError> for Ended {
    fn from(error: CallError) -> Ended {
        Failure::from(error).into()
    }
}

const LOGIN: &str = "fleetctl login fsj1_... (an admin makes one: fleetctl tokens create --operator NAME)";
const DOCTOR: &str = "fleetctl doctor";

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        let (exit, hint) = match &error {
            CallError::Invalid(_) => (Exit::Usage, Some("fleetctl help filters")),
            CallError::NotFound(_) => (Exit::NotFound, None),
            CallError::Denied(_) => (Exit::Denied, Some("fleetctl version (says who you are)")),
            CallError::Refused(_) => (Exit::Denied, Some(LOGIN)),
            CallError::Unavailable(_) => (Exit::Unreachable, Some(DOCTOR)),
            CallError::TooMuch(_) | CallError::TooSlow(_) => {
                (Exit::Failed, Some("fewer hosts (--host), a shorter time (--since) or fewer rows (--limit)"))
            }
            CallError::Broken(_) => (Exit::Failed, Some("fleetctl version (server and fleetctl may not fit together)")),
            CallError::Server(_) => (Exit::Failed, None),
        };
        let text = error.to_string();
        // A server that knows a better word says so behind the error.
        let behind = ["did you mean ", "try again in "];
        let split = |word: &&str| {
            text.rsplit_once(&format!("; {word}")).map(|(said, better)| (said, format!("{word}{better}")))
        };
        let (message, better) = match behind.iter().find_map(split) {
            Some((message, better)) => (message, Some(better)),
            None => (text.as_str(), None),
        };
        let hint = better.or(hint.map(str::to_owned));
        Failure { hint, ..Failure::new(exit, message).caused_by(&error) }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Failure {
        let (exit, hint) = match error {
            ConnectError::Call(error) => return error.into(),
            ConnectError::Identity(error) => return error.into(),
            ConnectError::Unreachable { .. } | ConnectError::TimedOut { .. } | ConnectError::Tls { .. } => {
                (Exit::Unreachable, DOCTOR)
            }
            ConnectError::NotTrusted { .. } => (Exit::Denied, DOCTOR),
            ConnectError::Refused { .. } => (Exit::Denied, LOGIN),
        };
        Failure::new(exit, error.to_string()).hint(hint).caused_by(&error)
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Failure {
        let missing = matches!(&error, IdentityError::File(error) if error.is_missing());
        let failure = Failure::new(Exit::Denied, error.to_string()).caused_by(&error);
        if missing { failure.hint(LOGIN) } else { failure.hint(DOCTOR) }
    }
}

impl From<PrivateFileError> for Failure {
    fn from(error: PrivateFileError) -> Failure {
        Failure::new(Exit::Failed, error.to_string()).caused_by(&error)
    }
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::client::Refusal;

    use super::*;

    #[test]
    fn every_kind_of_failure_has_its_exit_code() {
        let text = || "x".to_owned();
        for (error, exit) in [
            (CallError::Invalid(text()), 2),
            (CallError::NotFound(text()), 6),
            (CallError::Denied(text()), 4),
            (CallError::Refused(Refusal::Expired), 4),
            (CallError::Unavailable(text()), 5),
            (CallError::TooMuch(text()), 1),
            (CallError::TooSlow(text()), 1),
            (CallError::Server(text()), 1),
        ] {
            assert_eq!(Failure::from(error.clone()).exit.code(), exit, "{error:?}");
        }
        let address = || "db1:5290".to_owned();
        for (error, exit) in [
            (ConnectError::Unreachable { address: address(), source: io::ErrorKind::ConnectionRefused.into() }, 5),
            (ConnectError::TimedOut { address: address() }, 5),
            (ConnectError::Tls { address: address(), problem: text() }, 5),
            (ConnectError::NotTrusted { address: address(), problem: text() }, 4),
            (ConnectError::Refused { address: address(), refusal: Refusal::UnknownAuthority }, 4),
            (ConnectError::Call(CallError::NotFound(text())), 6),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure.exit.code(), exit, "{failure:?}");
        }
    }

    #[test]
    fn a_failure_is_an_object_for_machines() {
        let failure = Failure::usage("`x` is no port").hint("--port 443");
        assert_eq!(
            failure.to_json().to_string(),
            r#"{"code":"usage","exit_code":2,"message":"`x` is no port","hint":"--port 443","causes":[]}"#
        );
    }

    #[test]
    fn a_better_word_of_the_server_is_what_to_type_next() {
        let failure = Failure::from(CallError::NotFound("no host is called `web9`; did you mean `web1`?".to_owned()));
        assert_eq!(failure.message, "no host is called `web9`");
        assert_eq!(failure.clone().or_hint("fleetctl hosts").hint.as_deref(), Some("did you mean `web1`?"));
        let failure = Failure::from(CallError::TooMuch("too many calls; try again in 2.0 s".to_owned()));
        assert_eq!((failure.message.as_str(), failure.hint.as_deref()), ("too many calls", Some("try again in 2.0 s")));
        let failure = Failure::from(CallError::NotFound("no host is called `x`".to_owned()));
        assert_eq!(failure.or_hint("fleetctl hosts").hint.as_deref(), Some("fleetctl hosts"));
    }

    #[test]
    fn a_reader_who_left_is_no_failure() {
        assert!(matches!(Ended::from(io::Error::from(io::ErrorKind::BrokenPipe)), Ended::ReaderGone));
        assert!(matches!(Ended::from(io::Error::from(io::ErrorKind::StorageFull)), Ended::Failed(_)));
    }
}
