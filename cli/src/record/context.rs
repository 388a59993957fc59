//! A context, as `context list` and `version` show it.

use fleetsock_proto::{identity::Identity, spiffe::Subject, time::Timestamp};
use serde_json::Value;

use super::{Cell, Column, Field, Record, Shown, Side, View, moment_or_null, text};
use crate::{clock, console::Tone, contexts::ContextName};

/// A server that fleetctl knows, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextRow {
    /// Its name.
    pub name: ContextName,
    /// Whether it is meant unless told otherwise.
    pub current: bool,
    /// Where its server is; empty when the identity cannot be read.
    pub server: String,
    /// `NAME (ROLE)`; empty when the identity cannot be read.
    pub operator: String,
    /// When the certificate ends.
    pub expires_at: Option<Timestamp>,
    /// Why the identity cannot be used; empty when it can.
    pub problem: String,
}

impl ContextRow {
    /// What a context is, judged by its identity as far as that can be read.
    pub fn new(name: ContextName, current: bool, identity: Result<Identity, String>) -> ContextRow {
        match identity {
            Ok(identity) => ContextRow {
                name,
                current,
                server: identity.address.to_string(),
                operator: operator(&identity),
                expires_at: Some(identity.expires_at),
                problem: String::new(),
            },
            Err(problem) => {
                ContextRow { name, current, server: String::new(), operator: String::new(), expires_at: None, problem }
            }
        }
    }
}

/// Whom an identity names: `alice (admin)`.
pub fn operator(identity: &Identity) -> String {
    match &identity.spiffe_id.subject {
        Subject::Operator(operator) => operator.to_string(),
        Subject::Agent(host) => format!("the agent of host {host}"),
    }
}

const FIELDS: &[Field<ContextRow>] = &[
    Field { name: "context", value: |row, _| row.name.as_str().into() },
    Field { name: "current", value: |row, _| Value::Bool(row.current) },
    Field { name: "server", value: |row, _| text(&row.server) },
    Field { name: "operator", value: |row, _| text(&row.operator) },
    Field { name: "expires_at", value: |row, _| moment_or_null(row.expires_at) },
    Field { name: "problem", value: |row, _| text(&row.problem) },
];

fn expires(row: &ContextRow, view: &View) -> Cell {
    let Some(at) = row.expires_at else { return Cell::new(&row.problem).tone(Tone::Bad) };
    let left = at.since(view.clock.now());
    match view.times {
        super::Times::Absolute => Cell::new(&view.clock.absolute(at)),
        super::Times::Relative if left.is_zero() => {
            Cell::new(&format!("expired {} ago", view.clock.age(at))).tone(Tone::Bad)
        }
        super::Times::Relative => Cell::new(&format!("in {}", clock::lapse(left))),
    }
}

const COLUMNS: &[Column<ContextRow>] = &[
    column("context", "CONTEXT", &["context"], |row, _| Cell::new(row.name.as_str())),
    column("current", "IN-USE", &["current"], |row, _| Cell::new(if row.current { "yes" } else { "" })),
    column("server", "SERVER", &["server"], |row, _| Cell::new(&row.server)),
    column("operator", "OPERATOR", &["operator"], |row, _| Cell::new(&row.operator)),
    column("expires", "CERTIFICATE", &["expires_at", "problem"], expires),
];

const fn column(
    name: &'static str,
    header: &'static str,
    fields: &'static [&'static str],
    cell: fn(&ContextRow, &View) -> Cell,
) -> Column<ContextRow> {
    Column { name, header, fields, shown: Shown::Always, side: Side::Left, cell }
}

impl Record for ContextRow {
    const NOUN: &'static str = "context";

    fn fields() -> &'static [Field<ContextRow>] {
        FIELDS
    }

    fn columns() -> &'static [Column<ContextRow>] {
        COLUMNS
    }

    fn name(&self) -> String {
        self.name.to_string()
    }
}
