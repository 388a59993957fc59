//! The root CAs of a fleet, as operators see them.

use crate::{InvalidMessage, join::Pin, time, time::Timestamp, wire, word::words};

words! {
    /// What a root is used for.
    pub enum RootState is "state of a root", or InvalidRootState {
        /// Certificates are issued under it.
        Active = 1 "active",
        /// It is handed out, and is to take the place of the active one.
        Prepared = 2 "prepared",
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
}

impl From<Root> for wire::Root {
    fn from(root: Root) -> wire::Root {
        let Root { state, pin, expires_at } = root;
        wire::Root { state: state.number(), pin: pin.as_bytes().to_vec(), expires_at: Some(expires_at.into()) }
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
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_travels_as_it_is_and_one_without_a_state_or_with_half_a_pin_is_refused() {
        let root = Root {
            state: RootState::Prepared,
            pin: Pin::from_array([7; 32]),
            expires_at: Timestamp::from_micros(1_795_000_000_000_000),
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
