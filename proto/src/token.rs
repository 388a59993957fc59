//! Operators, their roles, and the tokens that hosts and operators enrol with.

use std::{collections::BTreeMap, fmt, str::FromStr};

use ipnet::IpNet;

use crate::{InvalidMessage, question, time, time::Timestamp, wire, word::words};

/// Longest name of an operator, bytes.
pub const OPERATOR_NAME_LIMIT: usize = 64;
/// Longest note on a token, bytes.
pub const TOKEN_NOTE_LIMIT: usize = 200;
/// Most labels of a host or a token.
pub const LABELS_LIMIT: usize = 64;
/// Longest key or value of a label, bytes.
pub const LABEL_TEXT_LIMIT: usize = 128;
/// Most uses of one token.
pub const TOKEN_USES_LIMIT: u32 = 100_000;
/// Shortest and longest life of a token, seconds.
pub const TOKEN_LIFETIME_S: std::ops::RangeInclusive<u64> = 60..=31_536_000;

words! {
    /// What an operator may do.
    pub enum Role is "role", or InvalidRole {
        /// Ask.
        Viewer = 1 "viewer",
        /// Ask and order.
        Admin = 2 "admin",
    }
}

/// A person or program that asks, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Operator {
    name: String,
    role: Role,
}

/// A text that is no operator's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no operator name; use 1 to 64 of a-z, 0-9, '.', '_', '-'")]
pub struct InvalidOperatorName(pub String);

impl Operator {
    /// The operator, unless the name is not one.
    pub fn new(name: &str, role: Role) -> Result<Operator, InvalidOperatorName> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > OPERATOR_NAME_LIMIT || !name.bytes().all(allowed) {
            return Err(InvalidOperatorName(name.to_owned()));
        }
        Ok(Operator { name: name.to_owned(), role })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The role.
    pub const fn role(&self) -> Role {
        self.role
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.role)
    }
}

/// A label, as flags write it: `key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// What comes before the first `=`.
    pub key: String,
    /// What comes after it.
    pub value: String,
}

/// A text that is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no label; write key=value, each 1 to 128 bytes")]
pub struct InvalidLabel(pub String);

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Label, InvalidLabel> {
        text.split_once('=')
            .filter(|(key, value)| [key, value].iter().all(|part| (1..=LABEL_TEXT_LIMIT).contains(&part.len())))
            .map(|(key, value)| Label { key: key.to_owned(), value: value.to_owned() })
            .ok_or_else(|| InvalidLabel(text.to_owned()))
    }
}

/// What a token admits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenPurpose {
    /// Hosts, which get these labels.
    Hosts {
        /// At most [`LABELS_LIMIT`].
        labels: BTreeMap<String, String>,
    },
    /// This operator.
    Operator(Operator),
}

/// A token to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// Seconds, within [`TOKEN_LIFETIME_S`].
    pub lifetime_s: u64,
    /// 1 to [`TOKEN_USES_LIMIT`].
    pub uses: u32,
    /// Whom it admits.
    pub purpose: TokenPurpose,
    /// For people to read; at most [`TOKEN_NOTE_LIMIT`] bytes.
    pub note: String,
}

/// What else must hold before what a token admits may speak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Where the token may be used; absent means anywhere.
    pub from: Option<IpNet>,
    /// Whether a person looks at each host first.
    pub approval: Approval,
}

/// Whether a host that enrolled may speak at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Approval {
    /// It may.
    #[default]
    NotNeeded,
    /// Nothing of it is stored before an admin approved it.
    Needed,
}

/// A token as a list shows it. The secret is not kept, only its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its public id.
    pub token_id: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// How often it can still be used.
    pub uses_left: u32,
    /// How often it could be used at first.
    pub uses_total: u32,
    /// Whom it admits.
    pub purpose: TokenPurpose,
    /// For people to read.
    pub note: String,
    /// Whether somebody ended it early.
    pub revoked: bool,
    /// What else must hold.
    pub conditions: Conditions,
}

/// A certificate of an operator, as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorCertificate {
    /// Whose.
    pub operator: Operator,
    /// Serial number, big-endian.
    pub serial: Vec<u8>,
    /// When it was made.
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// What the revocation of an operator ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RevokedOperator {
    /// Certificates that were good until then.
    pub certificates: u32,
    /// Tokens that could have made new ones.
    pub tokens: u32,
}

impl From<Operator> for wire::OperatorName {
    fn from(operator: Operator) -> wire::OperatorName {
        wire::OperatorName { name: operator.name, role: operator.role.number() }
    }
}

impl TryFrom<wire::OperatorName> for Operator {
    type Error = InvalidMessage;

    fn try_from(operator: wire::OperatorName) -> Result<Operator, InvalidMessage> {
        Operator::new(&operator.name, Role::from_wire("OperatorName.role", operator.role)?)
            .map_err(|problem| InvalidMessage::new("OperatorName.name", problem.to_string()))
    }
}

fn labels<'a>(
    labels: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
) -> Result<BTreeMap<String, String>, InvalidMessage> {
    if labels.len() > LABELS_LIMIT {
        return Err(InvalidMessage::new("labels", format!("{} are more than {LABELS_LIMIT}", labels.len())));
    }
    labels
        .map(|(key, value)| {
            format!("{key}={value}")
                .parse::<Label>()
                .map(|label| (label.key, label.value))
                .map_err(|problem| InvalidMessage::new("labels", problem.to_string()))
        })
        .collect()
}

fn purpose(
    operator: Option<wire::OperatorName>,
    given: &std::collections::HashMap<String, String>,
) -> Result<TokenPurpose, InvalidMessage> {
    match operator {
        Some(operator) => Operator::try_from(operator).map(TokenPurpose::Operator),
        None => labels(given.iter()).map(|labels| TokenPurpose::Hosts { labels }),
    }
}

impl From<(NewToken, Conditions)> for wire::CreateTokenRequest {
    fn from((token, conditions): (NewToken, Conditions)) -> wire::CreateTokenRequest {
        let (labels, operator) = match token.purpose {
            TokenPurpose::Hosts { labels } => (labels, None),
            TokenPurpose::Operator(operator) => (BTreeMap::new(), Some(operator.into())),
        };
        wire::CreateTokenRequest {
            lifetime_s: token.lifetime_s,
            uses: token.uses,
            labels: labels.into_iter().collect(),
            operator,
            note: token.note,
            from: conditions.from.map(question::prefix_to_wire),
            approval: conditions.approval == Approval::Needed,
        }
    }
}

fn conditions(from: Option<wire::Prefix>, approval: bool) -> Result<Conditions, InvalidMessage> {
    Ok(Conditions {
        from: from.map(|prefix| question::prefix("from", prefix)).transpose()?,
        approval: if approval { Approval::Needed } else { Approval::NotNeeded },
    })
}

/// A token to be made, and what else must hold.
pub fn new_token(request: wire::CreateTokenRequest) -> Result<(NewToken, Conditions), InvalidMessage> {
    let conditions = conditions(request.from.clone(), request.approval)?;
    if conditions.approval == Approval::Needed && request.operator.is_some() {
        return Err(InvalidMessage::new("approval", "is for hosts; an operator is admitted by name"));
    }
    Ok((NewToken::try_from(request)?, conditions))
}

impl TryFrom<wire::CreateTokenRequest> for NewToken {
    type Error = InvalidMessage;

    fn try_from(request: wire::CreateTokenRequest) -> Result<NewToken, InvalidMessage> {
        if !TOKEN_LIFETIME_S.contains(&request.lifetime_s) {
            let problem = format!("{} s is not within a minute and a year", request.lifetime_s);
            return Err(InvalidMessage::new("lifetime_s", problem));
        }
        if !(1..=TOKEN_USES_LIMIT).contains(&request.uses) {
            return Err(InvalidMessage::new(
                "uses",
                format!("{} is not within 1 and {TOKEN_USES_LIMIT}", request.uses),
            ));
        }
        Ok(NewToken {
            lifetime_s: request.lifetime_s,
            uses: request.uses,
            purpose: purpose(request.operator, &request.labels)?,
            note: crate::host::bounded("note", request.note, TOKEN_NOTE_LIMIT)?,
        })
    }
}

impl From<Token> for wire::Token {
    fn from(token: Token) -> wire::Token {
        let (labels, operator) = match token.purpose {
            TokenPurpose::Hosts { labels } => (labels, None),
            TokenPurpose::Operator(operator) => (BTreeMap::new(), Some(operator.into())),
        };
        wire::Token {
            token_id: token.token_id,
            created_at: Some(token.created_at.into()),
            expires_at: Some(token.expires_at.into()),
            uses_left: token.uses_left,
            uses_total: token.uses_total,
            labels: labels.into_iter().collect(),
            operator,
            note: token.note,
            revoked: token.revoked,
            from: token.conditions.from.map(question::prefix_to_wire),
            approval: token.conditions.approval == Approval::Needed,
        }
    }
}

impl TryFrom<wire::Token> for Token {
    type Error = InvalidMessage;

    fn try_from(token: wire::Token) -> Result<Token, InvalidMessage> {
        Ok(Token {
            created_at: time::required("Token.created_at", token.created_at)?,
            expires_at: time::required("Token.expires_at", token.expires_at)?,
            uses_left: token.uses_left,
            uses_total: token.uses_total,
            purpose: purpose(token.operator, &token.labels)?,
            note: token.note,
            revoked: token.revoked,
            conditions: conditions(token.from, token.approval)?,
            token_id: token.token_id,
        })
    }
}

impl From<OperatorCertificate> for wire::OperatorCertificate {
    fn from(certificate: OperatorCertificate) -> wire::OperatorCertificate {
        wire::OperatorCertificate {
            operator: Some(certificate.operator.into()),
            serial: certificate.serial,
            issued_at: Some(certificate.issued_at.into()),
            expires_at: Some(certificate.expires_at.into()),
            revoked_at: certificate.revoked_at.map(Into::into),
        }
    }
}

impl TryFrom<wire::OperatorCertificate> for OperatorCertificate {
    type Error = InvalidMessage;

    fn try_from(certificate: wire::OperatorCertificate) -> Result<OperatorCertificate, InvalidMessage> {
        let operator = certificate.operator.ok_or_else(|| InvalidMessage::missing("OperatorCertificate.operator"))?;
        Ok(OperatorCertificate {
            operator: operator.try_into()?,
            serial: certificate.serial,
            issued_at: time::required("OperatorCertificate.issued_at", certificate.issued_at)?,
            expires_at: time::required("OperatorCertificate.expires_at", certificate.expires_at)?,
            revoked_at: time::optional("OperatorCertificate.revoked_at", certificate.revoked_at)?,
        })
    }
}
