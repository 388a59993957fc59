//! Operators, their roles, and the tokens that hosts and operators enrol with.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::{InvalidMessage, time, time::Timestamp, wire, word::words};

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

impl From<NewToken> for wire::CreateTokenRequest {
    fn from(token: NewToken) -> wire::CreateTokenRequest {
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
        }
    }
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
            token_id: token.token_id,
        })
    }
}
