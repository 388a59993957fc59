//! A root CA, as `ca` shows it.

use fleetsock_proto::root::{Root, RootState};

use super::{Cell, Column, Field, Record, Shown, Side, View, moment};
use crate::{clock, console::Tone};

/// What a root is known by, as hexadecimal digits.
pub fn pin(root: &Root) -> String {
    root.pin.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

const FIELDS: &[Field<Root>] = &[
    Field { name: "pin", value: |root, _| pin(root).into() },
    Field { name: "state", value: |root, _| root.state.as_str().into() },
    Field { name: "expires_at", value: |root, _| moment(root.expires_at) },
    Field { name: "behind_hosts", value: |root, _| root.behind.hosts.into() },
    Field { name: "behind_operators", value: |root, _| root.behind.operators.into() },
    Field { name: "behind_names", value: |root, _| names(root).into() },
];

/// Those whom the next step waits for, hosts first.
fn names(root: &Root) -> Vec<String> {
    root.behind.host_names.iter().chain(&root.behind.operator_names).cloned().collect()
}

fn waits_for(root: &Root, _view: &View) -> Cell {
    Cell::new(&match root.state {
        RootState::Active => "-".to_owned(),
        RootState::Prepared | RootState::Retiring => root.behind.to_string(),
    })
}

fn state_cell(root: &Root, _view: &View) -> Cell {
    let tone = if root.state == RootState::Active { Tone::Good } else { Tone::Plain };
    Cell::new(root.state.as_str()).tone(tone)
}

fn expires(root: &Root, view: &View) -> Cell {
    let left = root.expires_at.since(view.clock.now());
    Cell::new(&match view.times {
        super::Times::Absolute => view.clock.absolute(root.expires_at),
        super::Times::Relative if left.is_zero() => format!("{} ago", view.clock.age(root.expires_at)),
        super::Times::Relative => format!("in {}", clock::lapse(left)),
    })
}

const COLUMNS: &[Column<Root>] = &[
    column("state", "STATE", &["state"], state_cell),
    column("expires", "EXPIRES", &["expires_at"], expires),
    column("waits_for", "WAITS FOR", &["behind_hosts", "behind_operators", "behind_names"], waits_for),
    column("pin", "PIN", &["pin"], |root, _| Cell::new(&pin(root))),
];

const fn column(
    name: &'static str,
    header: &'static str,
    fields: &'static [&'static str],
    cell: fn(&Root, &View) -> Cell,
) -> Column<Root> {
    Column { name, header, fields, shown: Shown::Always, side: Side::Left, cell }
}

impl Record for Root {
    const NOUN: &'static str = "root";

    fn fields() -> &'static [Field<Root>] {
        FIELDS
    }

    fn columns() -> &'static [Column<Root>] {
        COLUMNS
    }

    fn name(&self) -> String {
        pin(self)
    }
}
