//! What a listing lists: the fields that machines read and the columns that people read.
//!
//! Field names are a contract: they may be added to, never renamed. They are the same in every machine format.

use std::{borrow::Cow, fmt::Write, net::SocketAddr};

use fleetsock_proto::{
    owner::Owner,
    service::{Service, ServiceSource},
    socket::{Known, OwnerKnown},
    time::Timestamp,
};
use serde_json::Value;

use crate::{
    clock::{self, Clock},
    console::Tone,
    sanitise::sanitise,
};

pub mod audit;
pub mod change;
pub mod context;
pub mod difference;
pub mod entry;
pub mod host;
pub mod operator;
pub mod period;
pub mod port;
pub mod root;
pub mod session;
pub mod sum;
pub mod token;

/// What a row is turned into text with.
#[derive(Debug, Clone)]
pub struct View {
    /// The time that ages are told from, and the zone.
    pub clock: Clock,
    /// How moments are written for people.
    pub times: Times,
    /// The moment up to which what is still open has lasted.
    pub until: Timestamp,
}

/// How moments are written for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// As ages.
    Relative,
    /// As dates and clock times.
    Absolute,
}

/// A field that machines read.
pub struct Field<T: 'static> {
    /// Its name in every machine format.
    pub name: &'static str,
    /// Its value.
    pub value: fn(&T, &View) -> Value,
}

impl<T> std::fmt::Debug for Field<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// When a column is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// In every table.
    Always,
    /// With `-o wide`.
    Wide,
}

/// Which side of its column a cell stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A column that people read.
pub struct Column<T: 'static> {
    /// Its name for --columns and --sort.
    pub name: &'static str,
    /// What stands above it.
    pub header: &'static str,
    /// The fields that it is made of.
    pub fields: &'static [&'static str],
    /// When it is shown.
    pub shown: Shown,
    /// Where its cells stand.
    pub side: Side,
    /// Its text, already harmless.
    pub cell: fn(&T, &View) -> Cell,
}

/// A column, in a table of columns: its name, what stands above it, the fields that it is made of, when and where it is shown,
/// and its text.
const fn column<T>(
    name: &'static str,
    header: &'static str,
    fields: &'static [&'static str],
    shown: Shown,
    side: Side,
    cell: fn(&T, &View) -> Cell,
) -> Column<T> {
    Column { name, header, fields, shown, side, cell }
}

impl<T> std::fmt::Debug for Column<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// What a listing lists.
pub trait Record: Sized + 'static {
    /// What one of them is called.
    const NOUN: &'static str;

    /// Every field, in the order of the contract.
    fn fields() -> &'static [Field<Self>];

    /// Every column, in order.
    fn columns() -> &'static [Column<Self>];

    /// What `-o name` writes.
    fn name(&self) -> String;

    /// The marks that its cells carry.
    fn marks(&self) -> Marks {
        Marks::default()
    }
}

/// A piece of a table, made harmless.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cell {
    /// What it says; never empty.
    pub text: Cow<'static, str>,
    /// What colour says besides.
    pub tone: Tone,
}

impl Cell {
    /// A cell with text from elsewhere; `-` stands for nothing.
    pub fn new(text: &str) -> Cell {
        if text.is_empty() {
            Cell::word("")
        } else {
            Cell { text: sanitise(text).into_owned().into(), tone: Tone::Plain }
        }
    }

    /// The same of a word of ours, which is not copied.
    pub const fn word(word: &'static str) -> Cell {
        let text = if word.is_empty() { "-" } else { word };
        Cell { text: Cow::Borrowed(text), tone: Tone::Plain }
    }

    /// The same of text that was made for it.
    pub fn of(text: String) -> Cell {
        match sanitise(&text) {
            Cow::Borrowed(harmless) if !harmless.is_empty() => Cell { text: text.into(), tone: Tone::Plain },
            _ => Cell::new(&text),
        }
    }

    /// The same in a tone.
    #[must_use]
    pub fn tone(mut self, tone: Tone) -> Cell {
        self.tone = tone;
        self
    }
}

/// The marks of uncertain times that a listing has shown, to be explained beneath it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    between_walks: bool,
    first_seen: bool,
    lost: bool,
    warning: bool,
}

impl Marks {
    /// The mark of a host that a person should look at.
    pub fn warning() -> Marks {
        Marks { warning: true, ..Marks::default() }
    }

    /// The mark of a moment known so.
    pub fn of(known: Known) -> Marks {
        Marks {
            between_walks: known == Known::BetweenWalks,
            first_seen: known == Known::FirstSeen,
            lost: known == Known::Lost,
            warning: false,
        }
    }

    /// The marks of both.
    #[must_use]
    pub fn and(self, other: Marks) -> Marks {
        Marks {
            between_walks: self.between_walks || other.between_walks,
            first_seen: self.first_seen || other.first_seen,
            lost: self.lost || other.lost,
            warning: self.warning || other.warning,
        }
    }

    /// One line that explains the marks; none without marks.
    pub fn legend(self) -> Option<String> {
        let told: Vec<&str> = [
            (self.between_walks, "~ it happened between two walks of the socket table"),
            (self.first_seen, "≥ ≤ it was open when observation began: it opened then or earlier"),
            (self.lost, "? it ended or changed hands while nobody looked"),
            (self.warning, "! somebody should look at it: fleetctl hosts HOST says why"),
        ]
        .into_iter()
        .filter_map(|(shown, text)| shown.then_some(text))
        .collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

impl View {
    /// When something opened, as an age or a moment, with its mark.
    pub fn opened(&self, at: Timestamp, known: Known) -> String {
        match (self.times, known) {
            (_, Known::Event) => self.moment(at),
            (Times::Absolute, Known::FirstSeen) => ["≤", &self.moment(at)].concat(),
            (_, known) => [mark(known), &self.moment(at)].concat(),
        }
    }

    /// A moment that is known well.
    pub fn moment(&self, at: Timestamp) -> String {
        match self.times {
            Times::Relative => self.clock.age(at),
            Times::Absolute => self.clock.absolute(at),
        }
    }
}

/// The mark that stands before a moment.
pub fn mark(known: Known) -> &'static str {
    match known {
        Known::Event => "",
        Known::BetweenWalks => "~",
        Known::FirstSeen => "≥",
        Known::Lost => "?",
    }
}

/// Adds a number to a text, in a fraction of the time that formatting takes.
pub fn add_number(number: u32, text: &mut String) {
    text.push_str(itoa::Buffer::new().format(number));
}

/// An address and a port, as `Display` writes them.
pub fn socket(socket: SocketAddr) -> String {
    // Longer ones than those of IPv4 are rare.
    let mut text = String::with_capacity(24);
    match socket {
        SocketAddr::V4(v4) => {
            let [first, rest @ ..] = v4.ip().octets();
            add_number(first.into(), &mut text);
            for octet in rest {
                text.push('.');
                add_number(octet.into(), &mut text);
            }
            text.push(':');
            add_number(v4.port().into(), &mut text);
        }
        // Writing to a text does not fail.
        SocketAddr::V6(v6) => drop(write!(text, "{v6}")),
    }
    text
}

/// Text, or null when there is none.
pub fn text(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

/// A moment for machines.
pub fn moment(at: Timestamp) -> Value {
    clock::rfc3339(at).into()
}

/// A moment for machines, or null.
pub fn moment_or_null(at: Option<Timestamp>) -> Value {
    at.map_or(Value::Null, moment)
}

/// Where the name of a service comes from, or null.
pub fn service_source(service: Option<Service>) -> Value {
    service.map_or(Value::Null, |service| {
        match service.source {
            ServiceSource::Iana => "iana",
            ServiceSource::DeFacto => "de-facto",
        }
        .into()
    })
}

/// The name of a service, which is a guess.
pub fn service_cell(service: Option<Service>) -> Cell {
    Cell::word(service.map_or("", |service| service.name)).tone(Tone::Faint)
}

/// `nginx[812] +3`: the primary owner and how many more, or why there is none.
pub fn process_cell(owners: &[Owner], known: OwnerKnown) -> Cell {
    let Some(owner) = owners.first() else {
        return match known {
            OwnerKnown::None => Cell::word(""),
            known => Cell::of(["(", known.as_str(), ")"].concat()).tone(Tone::Faint),
        };
    };
    let mut text = String::with_capacity(owner.process.len() + 16);
    text.push_str(&owner.process);
    text.push('[');
    add_number(owner.pid, &mut text);
    text.push(']');
    if owners.len() > 1 {
        text.push_str(&format!(" +{}", owners.len() - 1));
    }
    if known != OwnerKnown::Exact {
        text.push_str(" (");
        text.push_str(known.as_str());
        text.push(')');
    }
    Cell::of(text)
}

/// The name of an owner's user, or its number.
pub fn user(owner: &Owner) -> String {
    if owner.user.is_empty() { owner.uid.to_string() } else { owner.user.clone() }
}

/// So many bytes; none where none are known, because nobody counted them.
pub fn bytes_cell(count: u64) -> Cell {
    Cell::of(if count == 0 { String::new() } else { count.to_string() })
}

/// The container, the other network namespace or the unit that an owner runs in.
pub fn place_cell(owners: &[Owner], netns_name: &str) -> Cell {
    let [container, unit] = owners.first().map_or(["", ""], |owner| [&owner.container, &owner.unit]);
    Cell::new(&match (container, netns_name) {
        ("", name) if name.is_empty() || name == unit => unit.to_owned(),
        // The kernel's own word for a namespace.
        ("", name) if name.starts_with("net:[") => name.to_owned(),
        ("", name) => format!("netns:{name}"),
        (container, _) => container.to_owned(),
    })
}

/// A fact of the primary owner, or null.
pub fn of_owner(owners: &[Owner], fact: impl Fn(&Owner) -> Value) -> Value {
    owners.first().map_or(Value::Null, fact)
}

/// All owners, each as an object.
pub fn owners(owners: &[Owner]) -> Value {
    owners
        .iter()
        .map(|owner| {
            serde_json::json!({
                "pid": owner.pid,
                "process": text(&owner.process),
                "exe": text(&owner.exe),
                "uid": owner.uid,
                "user": user(owner),
                "container": text(&owner.container),
                "unit": text(&owner.unit),
                "command_line": text(&owner.command_line),
                "started_at": moment_or_null(owner.started_at),
            })
        })
        .collect()
}

/// The name of a host, and its state unless it is being heard.
pub fn host_cell(name: &str, state: fleetsock_proto::host::HostState) -> Cell {
    use fleetsock_proto::host::HostState;
    match state {
        HostState::Online => Cell::new(name),
        state => Cell::of([name, " (", state.as_str(), ")"].concat()).tone(Tone::Warning),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn addresses_and_numbers_are_written_as_they_are_displayed(address: SocketAddr, number: u32) {
            prop_assert_eq!(socket(address), address.to_string());
            let mut text = "[".to_owned();
            add_number(number, &mut text);
            prop_assert_eq!(text, format!("[{number}"));
        }

        #[test]
        fn a_cell_is_the_same_of_text_that_was_made_for_it(text: String) {
            prop_assert_eq!(Cell::of(text.clone()).text, Cell::new(&text).text);
        }
    }
}
