//! Who a certificate says its holder is: a SPIFFE id in its one URI subject alternative name.
//!
//! <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>. The paths are ours:
//! `spiffe://<trust domain>/agent/<uuid>` and `spiffe://<trust domain>/operator/<role>/<name>`.

use std::{fmt, str::FromStr};

use crate::{
    host::HostId,
    token::{Operator, Role},
};

/// Longest trust domain, bytes; leaves room for `server.` and `enroll.` in a DNS name of 253.
pub const TRUST_DOMAIN_LIMIT: usize = 200;

/// The name under which the certificates of one fleet are valid.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustDomain(String);

/// A text that is no trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no trust domain; write a lower-case DNS name of at most {TRUST_DOMAIN_LIMIT} bytes")]
pub struct InvalidTrustDomain(pub String);

impl TrustDomain {
    /// Name that the server's certificate carries for every connection with a client certificate.
    pub fn server_name(&self) -> String {
        format!("server.{self}")
    }

    /// Name under which only enrolment is served, to callers without a certificate.
    pub fn enroll_name(&self) -> String {
        format!("enroll.{self}")
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidTrustDomain;

    fn from_str(text: &str) -> Result<TrustDomain, InvalidTrustDomain> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        };
        if text.len() <= TRUST_DOMAIN_LIMIT && text.split('.').all(label) {
            Ok(TrustDomain(text.to_owned()))
        } else {
            Err(InvalidTrustDomain(text.to_owned()))
        }
    }
}

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The agent of this host.
    Agent(HostId),
    /// An operator.
    Operator(Operator),
}

/// A subject within a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    /// The fleet.
    pub trust_domain: TrustDomain,
    /// Who in it.
    pub subject: Subject,
}

/// A text that is no SPIFFE id of an agent or an operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names neither an agent nor an operator")]
pub struct InvalidSpiffeId(pub String);

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/", self.trust_domain)?;
        match &self.subject {
            Subject::Agent(host) => write!(f, "agent/{host}"),
            Subject::Operator(operator) => write!(f, "operator/{}/{}", operator.role(), operator.name()),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<SpiffeId, InvalidSpiffeId> {
        let parse = || {
            let (trust_domain, path) = text.strip_prefix("spiffe://")?.split_once('/')?;
            let (kind, rest) = path.split_once('/')?;
            let subject = match kind {
                "agent" => Subject::Agent(rest.parse().ok()?),
                "operator" => {
                    let (role, name) = rest.split_once('/')?;
                    Subject::Operator(Operator::new(name, role.parse::<Role>().ok()?).ok()?)
                }
                _ => return None,
            };
            let id = SpiffeId { trust_domain: trust_domain.parse().ok()?, subject };
            // One spelling per id: a UUID in capitals or in braces is another string and not ours.
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| InvalidSpiffeId(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_as_they_are_written() {
        for text in [
            "spiffe://fleetsock.internal/agent/6e9ddc53-12b2-4b85-8a6c-96f5cc9e0e2a",
            "spiffe://example.org/operator/viewer/ci-runner",
            "spiffe://example.org/operator/admin/root",
        ] {
            assert_eq!(text.parse::<SpiffeId>().map(|id| id.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_names_neither_an_agent_nor_an_operator_is_refused() {
        for text in [
            "",
            "spiffe://fleetsock.internal",
            "spiffe://fleetsock.internal/agent/",
            "spiffe://fleetsock.internal/agent/6E9DDC53-12B2-4B85-8A6C-96F5CC9E0E2A",
            "spiffe://fleetsock.internal/agent/6e9ddc53-12b2-4b85-8a6c-96f5cc9e0e2a/more",
            "spiffe://fleetsock.internal/operator/owner/root",
            "spiffe://fleetsock.internal/operator/admin/Root",
            "spiffe://Fleetsock.internal/operator/admin/root",
            "spiffe:///operator/admin/root",
            "https://fleetsock.internal/operator/admin/root",
            "spiffe://a..b/operator/admin/root",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
