//! A token, as `tokens list` shows it.

use fleetsock_proto::{
    time::Timestamp,
    token::{Approval, Token, TokenPurpose},
};
use serde_json::Value;

use super::{Cell, Column, Field, Record, Shown, Side, View, column, moment, text};
use crate::{clock, console::Tone};

/// What a token is worth at `now`.
fn state(token: &Token, now: Timestamp) -> &'static str {
    if token.revoked {
        "revoked"
    } else if token.uses_left == 0 {
        "used"
    } else if token.expires_at <= now {
        "expired"
    } else {
        "valid"
    }
}

fn admits(token: &Token) -> String {
    let who = match &token.purpose {
        TokenPurpose::Operator(operator) => format!("operator {operator}"),
        TokenPurpose::Hosts { labels } => {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let approval = if token.conditions.approval == Approval::Needed { "after approval" } else { "" };
            ["hosts", &labels.join(","), approval]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        }
    };
    match token.conditions.from {
        Some(prefix) => format!("{who} from {prefix}"),
        None => who,
    }
}

const FIELDS: &[Field<Token>] = &[
    Field { name: "token_id", value: |token, _| token.token_id.as_str().into() },
    Field { name: "state", value: |token, view| state(token, view.clock.now()).into() },
    Field { name: "uses_left", value: |token, _| token.uses_left.into() },
    Field { name: "uses_total", value: |token, _| token.uses_total.into() },
    Field {
        name: "operator",
        value: |token, _| match &token.purpose {
            TokenPurpose::Operator(operator) => operator.name().into(),
            TokenPurpose::Hosts { .. } => Value::Null,
        },
    },
    Field {
        name: "role",
        value: |token, _| match &token.purpose {
            TokenPurpose::Operator(operator) => operator.role().as_str().into(),
            TokenPurpose::Hosts { .. } => Value::Null,
        },
    },
    Field {
        name: "labels",
        value: |token, _| match &token.purpose {
            TokenPurpose::Operator(_) => Value::Null,
            TokenPurpose::Hosts { labels } => {
                labels.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect()
            }
        },
    },
    Field { name: "created_at", value: |token, _| moment(token.created_at) },
    Field { name: "expires_at", value: |token, _| moment(token.expires_at) },
    Field { name: "note", value: |token, _| text(&token.note) },
    Field {
        name: "from",
        value: |token, _| token.conditions.from.map_or(Value::Null, |prefix| prefix.to_string().into()),
    },
    Field { name: "approval", value: |token, _| Value::Bool(token.conditions.approval == Approval::Needed) },
];

fn state_cell(token: &Token, view: &View) -> Cell {
    let state = state(token, view.clock.now());
    Cell::new(state).tone(if state == "valid" { Tone::Good } else { Tone::Faint })
}

fn expires(token: &Token, view: &View) -> Cell {
    let left = token.expires_at.since(view.clock.now());
    Cell::new(&match view.times {
        super::Times::Absolute => view.clock.absolute(token.expires_at),
        super::Times::Relative if left.is_zero() => format!("{} ago", view.clock.age(token.expires_at)),
        super::Times::Relative => format!("in {}", clock::lapse(left)),
    })
}

const COLUMNS: &[Column<Token>] = &[
    column("token", "TOKEN", &["token_id"], Shown::Always, Side::Left, |token, _| Cell::new(&token.token_id)),
    column("state", "STATE", &["state"], Shown::Always, Side::Left, state_cell),
    column("uses", "USES", &["uses_left", "uses_total"], Shown::Always, Side::Right, |token, _| {
        Cell::new(&format!("{}/{}", token.uses_total - token.uses_left.min(token.uses_total), token.uses_total))
    }),
    column(
        "admits",
        "ADMITS",
        &["operator", "role", "labels", "from", "approval"],
        Shown::Always,
        Side::Left,
        |token, _| Cell::new(&admits(token)),
    ),
    column("created", "CREATED", &["created_at"], Shown::Always, Side::Left, |token, view| {
        Cell::new(&view.moment(token.created_at))
    }),
    column("expires", "EXPIRES", &["expires_at"], Shown::Always, Side::Left, expires),
    column("note", "NOTE", &["note"], Shown::Always, Side::Left, |token, _| Cell::new(&token.note)),
];

impl Record for Token {
    const NOUN: &'static str = "token";

    fn fields() -> &'static [Field<Token>] {
        FIELDS
    }

    fn columns() -> &'static [Column<Token>] {
        COLUMNS
    }

    fn name(&self) -> String {
        self.token_id.clone()
    }
}
