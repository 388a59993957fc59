//! A certificate of an operator, as `operators` shows it.

use fleetsock_proto::{time::Timestamp, token::OperatorCertificate};

use super::{Cell, Column, Field, Record, Shown, Side, View, moment, moment_or_null};
use crate::{clock, console::Tone};

/// What a certificate is worth at `now`.
fn state(certificate: &OperatorCertificate, now: Timestamp) -> &'static str {
    if certificate.revoked_at.is_some() {
        "revoked"
    } else if certificate.expires_at <= now {
        "expired"
    } else {
        "valid"
    }
}

fn serial(certificate: &OperatorCertificate) -> String {
    certificate.serial.iter().map(|byte| format!("{byte:02x}")).collect()
}

const FIELDS: &[Field<OperatorCertificate>] = &[
    Field { name: "operator", value: |certificate, _| certificate.operator.name().into() },
    Field { name: "role", value: |certificate, _| certificate.operator.role().as_str().into() },
    Field { name: "state", value: |certificate, view| state(certificate, view.clock.now()).into() },
    Field { name: "issued_at", value: |certificate, _| moment(certificate.issued_at) },
    Field { name: "expires_at", value: |certificate, _| moment(certificate.expires_at) },
    Field { name: "revoked_at", value: |certificate, _| moment_or_null(certificate.revoked_at) },
    Field { name: "serial", value: |certificate, _| serial(certificate).into() },
];

fn state_cell(certificate: &OperatorCertificate, view: &View) -> Cell {
    let state = state(certificate, view.clock.now());
    Cell::new(state).tone(if state == "valid" { Tone::Good } else { Tone::Faint })
}

fn expires(certificate: &OperatorCertificate, view: &View) -> Cell {
    let left = certificate.expires_at.since(view.clock.now());
    Cell::new(&match view.times {
        super::Times::Absolute => view.clock.absolute(certificate.expires_at),
        super::Times::Relative if left.is_zero() => format!("{} ago", view.clock.age(certificate.expires_at)),
        super::Times::Relative => format!("in {}", clock::lapse(left)),
    })
}

const COLUMNS: &[Column<OperatorCertificate>] = &[
    column("operator", "OPERATOR", &["operator"], Shown::Always, |row, _| Cell::new(row.operator.name())),
    column("role", "ROLE", &["role"], Shown::Always, |row, _| Cell::new(row.operator.role().as_str())),
    column("state", "STATE", &["state"], Shown::Always, state_cell),
    column("issued", "ISSUED", &["issued_at"], Shown::Always, |row, view| Cell::new(&view.moment(row.issued_at))),
    column("expires", "EXPIRES", &["expires_at"], Shown::Always, expires),
    column("revoked", "REVOKED", &["revoked_at"], Shown::Wide, |row, view| {
        Cell::new(&row.revoked_at.map_or_else(String::new, |at| view.moment(at)))
    }),
    column("serial", "SERIAL", &["serial"], Shown::Wide, |row, _| Cell::new(&serial(row))),
];

const fn column(
    name: &'static str,
    header: &'static str,
    fields: &'static [&'static str],
    shown: Shown,
    cell: fn(&OperatorCertificate, &View) -> Cell,
) -> Column<OperatorCertificate> {
    Column { name, header, fields, shown, side: Side::Left, cell }
}

impl Record for OperatorCertificate {
    const NOUN: &'static str = "operator";

    fn fields() -> &'static [Field<OperatorCertificate>] {
        FIELDS
    }

    fn columns() -> &'static [Column<OperatorCertificate>] {
        COLUMNS
    }

    fn name(&self) -> String {
        self.operator.name().to_owned()
    }
}
