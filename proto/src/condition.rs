//! How a server is, as it says itself.

use crate::wire;

/// Whether a server does its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Why it does not, a line each; empty when it does.
    pub unready: Vec<String>,
    /// Its version.
    pub version: String,
}

impl From<wire::ShowServerResponse> for Condition {
    fn from(response: wire::ShowServerResponse) -> Condition {
        let wire::ShowServerResponse { unready, version } = response;
        Condition { unready, version }
    }
}

impl From<Condition> for wire::ShowServerResponse {
    fn from(condition: Condition) -> wire::ShowServerResponse {
        let Condition { unready, version } = condition;
        wire::ShowServerResponse { unready, version }
    }
}
