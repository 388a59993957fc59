//! A row of the audit log, as `audit` shows it.

use fleetsock_proto::audit::AuditRow;
use serde_json::Value;

use super::{Cell, Column, Field, Record, Shown, Side, column, moment, text};
use crate::console::Tone;

/// A hash as people compare it.
pub fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

const FIELDS: &[Field<AuditRow>] = &[
    Field { name: "number", value: |row, _| row.number.into() },
    Field { name: "at", value: |row, _| moment(row.at) },
    Field { name: "actor", value: |row, _| row.actor.as_str().into() },
    Field { name: "address", value: |row, _| text(&row.address) },
    Field { name: "action", value: |row, _| row.action.as_str().into() },
    Field { name: "detail", value: |row, _| text(&row.detail) },
    Field { name: "rows", value: |row, _| row.rows.map_or(Value::Null, Value::from) },
    Field { name: "hash", value: |row, _| hex(&row.hash).into() },
];

const COLUMNS: &[Column<AuditRow>] = &[
    column("number", "NUMBER", &["number"], Shown::Always, Side::Right, |row, _| Cell::new(&row.number.to_string())),
    column("at", "AT", &["at"], Shown::Always, Side::Left, |row, view| Cell::new(&view.clock.absolute(row.at))),
    column("actor", "ACTOR", &["actor"], Shown::Always, Side::Left, |row, _| Cell::new(&row.actor)),
    column("address", "FROM", &["address"], Shown::Always, Side::Left, |row, _| Cell::new(&row.address)),
    column("action", "ACTION", &["action"], Shown::Always, Side::Left, |row, _| Cell::new(&row.action)),
    column("rows", "ROWS", &["rows"], Shown::Always, Side::Right, |row, _| {
        Cell::new(&row.rows.map_or_else(String::new, |rows| rows.to_string()))
    }),
    column("detail", "DETAIL", &["detail"], Shown::Always, Side::Left, |row, _| Cell::new(&row.detail)),
    column("hash", "HASH", &["hash"], Shown::Wide, Side::Left, |row, _| Cell::new(&hex(&row.hash)).tone(Tone::Faint)),
];

impl Record for AuditRow {
    const NOUN: &'static str = "audit row";

    fn fields() -> &'static [Field<AuditRow>] {
        FIELDS
    }

    fn columns() -> &'static [Column<AuditRow>] {
        COLUMNS
    }

    fn name(&self) -> String {
        self.number.to_string()
    }
}
