//! Where the exchange of the root stands: one small file, exchanged whole, so that a step is made or not made.

use std::path::Path;

use fleetsock_proto::{private, root::RootState, time::Timestamp};
use serde::Deserialize;

use super::AuthorityError;

/// The file in the folder of the CA.
pub(crate) const FILE: &str = "rotation.toml";

/// A step of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Makes a root that is to take the place of the active one, and hands it out.
    Prepare,
    /// Issues under it.
    Activate,
    /// Drops the one before.
    Retire,
    /// Drops the prepared one.
    Abort,
}

/// Where the exchange stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    /// Steps that were made.
    steps: u64,
    /// When what is handed out and what issues was last changed, microseconds since 1970.
    since_us: i64,
    /// The generation that issues.
    pub(super) active: u64,
    /// The one that is to come.
    prepared: Option<u64>,
    /// The one that is to go.
    retiring: Option<u64>,
}

impl Rotation {
    /// The generation that a fleet begins with.
    pub(super) const FIRST: u64 = 1;
    const BEGINNING: Rotation =
        Rotation { steps: 0, since_us: 0, active: Rotation::FIRST, prepared: None, retiring: None };

    /// The one that is trusted beside the active one.
    pub(super) fn other(self) -> Option<u64> {
        self.prepared.or(self.retiring)
    }

    /// The one whose certificates are good and that makes no more.
    pub(super) fn retiring(self) -> Option<u64> {
        self.retiring
    }

    /// While two roots are handed out: certificates made before this are to be renewed.
    pub(super) fn renew_before(self) -> Option<Timestamp> {
        self.other().map(|_| Timestamp::from_micros(self.since_us))
    }

    /// Whether a generation has a part in it.
    pub(super) fn uses(self, number: u64) -> bool {
        self.active == number || self.other() == Some(number)
    }

    /// A number that no generation had.
    pub(super) fn next_number(self) -> u64 {
        Rotation::FIRST + self.steps + 1
    }

    /// What becomes of a generation.
    pub(super) fn state(self, number: u64) -> RootState {
        match number {
            number if self.prepared == Some(number) => RootState::Prepared,
            number if self.retiring == Some(number) => RootState::Retiring,
            _ => RootState::Active,
        }
    }

    /// Where it stands after a step at that moment, or why that step does not follow.
    pub(super) fn after(self, step: Step, at: Timestamp) -> Result<Rotation, &'static str> {
        let made = Rotation { steps: self.steps + 1, since_us: at.as_micros(), ..self };
        match (step, self.prepared, self.retiring) {
            (Step::Prepare, None, None) => Ok(Rotation { prepared: Some(self.next_number()), ..made }),
            (Step::Activate, Some(active), None) => {
                Ok(Rotation { active, prepared: None, retiring: Some(self.active), ..made })
            }
            (Step::Retire, None, Some(_)) => Ok(Rotation { retiring: None, ..made }),
            (Step::Abort, Some(_), None) => Ok(Rotation { prepared: None, ..made }),
            (Step::Prepare, Some(_), _) => {
                Err("a root is prepared already; fleetctl ca activate uses it, fleetctl ca abort drops it")
            }
            (Step::Prepare, ..) => Err("the root before is still trusted; fleetctl ca retire drops it"),
            (Step::Activate | Step::Abort, _, Some(_)) => {
                Err("the new root is active already; fleetctl ca retire drops the one before")
            }
            (Step::Activate | Step::Abort, ..) => Err("no root is prepared"),
            (Step::Retire, Some(_), _) => Err("the prepared root is not active yet; fleetctl ca activate makes it so"),
            (Step::Retire, ..) => Err("there is one root, and it is active"),
        }
    }

    /// Refuses a folder that had an exchange.
    pub(super) fn refuse_existing(folder: &Path) -> Result<(), AuthorityError> {
        let path = folder.join(FILE);
        if path.exists() { Err(AuthorityError::Exists(path)) } else { Ok(()) }
    }

    /// What a folder says; without the file nothing was exchanged yet.
    pub(super) fn read(folder: &Path) -> Result<Rotation, AuthorityError> {
        let path = folder.join(FILE);
        let text = match private::read(&path) {
            Ok(text) => text,
            Err(error) if error.is_missing() => return Ok(Rotation::BEGINNING),
            Err(error) => return Err(error.into()),
        };
        toml::from_str(&String::from_utf8_lossy(&text))
            .map_err(|error| AuthorityError::Rotation { path, problem: error.to_string() })
    }

    /// Writes it down; durable when this returns.
    pub(super) fn write(self, folder: &Path) -> Result<(), AuthorityError> {
        let Rotation { steps, since_us, active, .. } = self;
        let other = match (self.prepared, self.retiring) {
            (Some(number), _) => format!("prepared = {number}\n"),
            (None, Some(number)) => format!("retiring = {number}\n"),
            (None, None) => String::new(),
        };
        let text = format!("steps = {steps}\nsince_us = {since_us}\nactive = {active}\n{other}");
        Ok(private::write(&folder.join(FILE), text.as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use Step::{Abort, Activate, Prepare, Retire};

    use super::*;

    /// The state after the steps, or the number of the first that does not follow.
    fn after(steps: &[Step]) -> Result<Rotation, usize> {
        let at = Timestamp::from_micros(7);
        steps
            .iter()
            .enumerate()
            .try_fold(Rotation::BEGINNING, |before, (place, step)| before.after(*step, at).map_err(|_| place))
    }

    #[test]
    fn steps_follow_in_one_order_only() {
        for (steps, expected) in [
            (vec![Prepare, Activate, Retire], Ok((2, None))),
            (vec![Prepare, Activate], Ok((2, Some(1)))),
            (vec![Prepare, Abort], Ok((1, None))),
            (vec![Prepare, Abort, Prepare], Ok((1, Some(4)))),
            (vec![Prepare, Activate, Retire, Prepare, Activate, Retire], Ok((5, None))),
            (vec![Activate], Err(0)),
            (vec![Retire], Err(0)),
            (vec![Abort], Err(0)),
            (vec![Prepare, Prepare], Err(1)),
            (vec![Prepare, Retire], Err(1)),
            (vec![Prepare, Activate, Abort], Err(2)),
            (vec![Prepare, Activate, Prepare], Err(2)),
            (vec![Prepare, Activate, Activate], Err(2)),
        ] {
            let reached = after(&steps).map(|rotation| (rotation.active, rotation.other()));
            assert_eq!(reached, expected, "{steps:?}");
        }
    }

    #[test]
    fn certificates_are_asked_to_be_renewed_only_while_there_are_two_roots() {
        let at = Some(Timestamp::from_micros(7));
        for (steps, expected) in [
            (vec![], None),
            (vec![Prepare], at),
            (vec![Prepare, Abort], None),
            (vec![Prepare, Activate], at),
            (vec![Prepare, Activate, Retire], None),
        ] {
            assert_eq!(after(&steps).unwrap().renew_before(), expected, "{steps:?}");
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Rotation::read(folder.path()).unwrap(), Rotation::BEGINNING);
        for steps in [vec![Prepare], vec![Prepare, Activate], vec![Prepare, Activate, Retire]] {
            let rotation = after(&steps).unwrap();
            rotation.write(folder.path()).unwrap();
            assert_eq!(Rotation::read(folder.path()).unwrap(), rotation);
        }
        std::fs::write(folder.path().join(FILE), "active = 1").unwrap();
        assert!(Rotation::read(folder.path()).is_err());
    }
}
