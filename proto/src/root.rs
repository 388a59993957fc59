//! The root CAs of a fleet, and how one takes the place of another.

use std::{fmt, time::Duration};

use crate::{InvalidMessage, host::bounded, join::Pin, time, time::Timestamp, wire, word::words};

/// Hosts, and operators, that are named of those a step would strand.
pub const NAMES_LIMIT: usize = 100;
/// Longest name of one of them, bytes.
const NAME_LIMIT: usize = 256;
/// The header of an answer to an operator that says which certificates are to be renewed: those whose validity begins
/// before this moment, microseconds since 1970.
pub const RENEW_BEFORE: &str = "fleetsock-renew-before";

words! {
    /// What a root is used for.
    pub enum RootState is "state of a root", or InvalidRootState {
        /// Certificates are issued under it.
        Active = 1 "active",
        /// It is handed out, and is to take the place of the active one.
        Prepared = 2 "prepared",
        /// It was the active one; certificates under it are good until it is retired.
        Retiring = 3 "retiring",
    }
}

/// What to do with those whom a step would strand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stragglers {
    /// The step is refused, and they are named.
    Protect,
    /// The step is made, and they are named.
    Strand,
}

impl Stragglers {
    /// As it travels.
    pub fn of_wire(strand: bool) -> Stragglers {
        if strand { Stragglers::Strand } else { Stragglers::Protect }
    }

    /// As it travels.
    pub fn to_wire(self) -> bool {
        self == Stragglers::Strand
    }
}

/// Certificates are to be renewed before their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// Those whose validity begins before this.
    pub before: Timestamp,
    /// At a random moment within this.
    pub within: Duration,
}

impl From<Renewal> for wire::Renewal {
    fn from(Renewal { before, within }: Renewal) -> wire::Renewal {
        let within_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        wire::Renewal { before: Some(before.into()), within_ms }
    }
}

impl TryFrom<wire::Renewal> for Renewal {
    type Error = InvalidMessage;

    fn try_from(renewal: wire::Renewal) -> Result<Renewal, InvalidMessage> {
        let before = time::required("Renewal.before", renewal.before)?;
        Ok(Renewal { before, within: Duration::from_millis(renewal.within_ms.into()) })
    }
}

/// Hosts and operators that a step would strand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Behind {
    /// How many hosts.
    pub hosts: u64,
    /// How many operators.
    pub operators: u64,
    /// The names of hosts, in order, at most [`NAMES_LIMIT`].
    pub host_names: Vec<String>,
    /// The names of operators, in order, at most [`NAMES_LIMIT`].
    pub operator_names: Vec<String>,
}

impl Behind {
    /// Whether it is nobody.
    pub fn is_nobody(&self) -> bool {
        self.hosts == 0 && self.operators == 0
    }
}

/// How many, and who, as `2 hosts (db1, web1) and 1 operator (alice)`.
impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |count: u64, noun: &str, names: &[String]| {
            let plural = if count == 1 { "" } else { "s" };
            let more = if count > names.len() as u64 { ", ..." } else { "" };
            (count > 0).then(|| format!("{count} {noun}{plural} ({}{more})", names.join(", ")))
        };
        let hosts = told(self.hosts, "host", &self.host_names);
        let operators = told(self.operators, "operator", &self.operator_names);
        let parts: Vec<String> = hosts.into_iter().chain(operators).collect();
        f.write_str(if parts.is_empty() { "nobody" } else { "" })?;
        f.write_str(&parts.join(" and "))
    }
}

impl From<Behind> for wire::Behind {
    fn from(behind: Behind) -> wire::Behind {
        let Behind { hosts, operators, host_names, operator_names } = behind;
        wire::Behind { hosts, operators, host_names, operator_names }
    }
}

impl TryFrom<wire::Behind> for Behind {
    type Error = InvalidMessage;

    fn try_from(behind: wire::Behind) -> Result<Behind, InvalidMessage> {
        let names = |field: &'static str, names: Vec<String>| {
            if names.len() > NAMES_LIMIT {
                return Err(InvalidMessage::new(field, format!("more than {NAMES_LIMIT}")));
            }
            names.into_iter().map(|name| bounded(field, name, NAME_LIMIT)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Behind {
            hosts: behind.hosts,
            operators: behind.operators,
            host_names: names("Behind.host_names", behind.host_names)?,
            operator_names: names("Behind.operator_names", behind.operator_names)?,
        })
    }
}

/// A root CA of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// What it is used for.
    pub state: RootState,
    /// What it is known by.
    pub pin: Pin,
    /// End of its validity.
    pub expires_at: Timestamp,
    /// Whom the next step waits for.
    pub behind: Behind,
}

impl From<Root> for wire::Root {
    fn from(root: Root) -> wire::Root {
        let Root { state, pin, expires_at, behind } = root;
        wire::Root {
            state: state.number(),
            pin: pin.as_bytes().to_vec(),
            expires_at: Some(expires_at.into()),
            behind: (!behind.is_nobody()).then(|| behind.into()),
        }
    }
}

impl TryFrom<wire::Root> for Root {
    type Error = InvalidMessage;

    fn try_from(root: wire::Root) -> Result<Root, InvalidMessage> {
        let pin = root.pin.as_slice().try_into().map_err(|_| InvalidMessage::new("Root.pin", "is not 32 bytes"))?;
        Ok(Root {
            state: RootState::from_wire("Root.state", root.state)?,
            pin: Pin::from_array(pin),
            expires_at: time::required("Root.expires_at", root.expires_at)?,
            behind: root.behind.map(Behind::try_from).transpose()?.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind() -> Behind {
        let host_names = vec!["db1".to_owned(), "web1".to_owned()];
        Behind { hosts: 3, operators: 1, host_names, operator_names: vec!["alice".to_owned()] }
    }

    #[test]
    fn those_behind_are_counted_and_named() {
        assert_eq!(behind().to_string(), "3 hosts (db1, web1, ...) and 1 operator (alice)");
        assert_eq!(Behind { operators: 0, ..behind() }.to_string(), "3 hosts (db1, web1, ...)");
        assert_eq!(Behind::default().to_string(), "nobody");
        let many = wire::Behind { host_names: vec![String::new(); NAMES_LIMIT + 1], ..Default::default() };
        assert_eq!(Behind::try_from(many).unwrap_err().field, "Behind.host_names");
    }

    #[test]
    fn a_root_travels_as_it_is_and_one_without_a_state_or_with_half_a_pin_is_refused() {
        let root = Root {
            state: RootState::Prepared,
            pin: Pin::from_array([7; 32]),
            expires_at: Timestamp::from_micros(1_795_000_000_000_000),
            behind: behind(),
        };
        let travelled = wire::Root::from(root.clone());
        assert_eq!(Root::try_from(travelled.clone()), Ok(root));
        for (field, message) in [
            ("Root.state", wire::Root { state: 0, ..travelled.clone() }),
            ("Root.pin", wire::Root { pin: vec![7; 16], ..travelled.clone() }),
            ("Root.expires_at", wire::Root { expires_at: None, ..travelled }),
        ] {
            assert_eq!(Root::try_from(message).unwrap_err().field, field);
        }
    }
}
