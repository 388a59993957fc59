//! Rows in another order than that of the server.

use std::{cmp::Ordering, net::IpAddr};

use serde_json::Value;

use crate::{
    failure::{Exit, Failure},
    record::{Field, Record, View},
    render::columns::sorting_fields,
};

/// Most rows that are held to be sorted.
pub const SORTED_ROWS_LIMIT: usize = 1_000_000;

/// An order: fields, each forward or backward.
#[derive(Debug)]
pub struct Sorting<T: 'static> {
    keys: Vec<(&'static Field<T>, Way)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Forward,
    Backward,
}

/// A value that can be compared; what is not known comes last.
#[derive(Debug, PartialEq, PartialOrd)]
enum Key {
    Number(f64),
    Address(IpAddr),
    Text(String),
    Nothing,
}

impl From<Value> for Key {
    fn from(value: Value) -> Key {
        match value {
            Value::Null => Key::Nothing,
            Value::Bool(value) => Key::Number(f64::from(u8::from(value))),
            Value::Number(number) => number.as_f64().map_or(Key::Nothing, Key::Number),
            Value::String(text) => text.parse().map_or_else(|_| Key::Text(text.to_lowercase()), Key::Address),
            other => Key::Text(other.to_string()),
        }
    }
}

impl<T: Record> Sorting<T> {
    /// `port,-opened_at`: by port, and within that by time, newest first. `None` keeps the server's order.
    pub fn parse(asked: &[String]) -> Result<Option<Sorting<T>>, Failure> {
        let mut keys = Vec::new();
        for name in asked {
            let (name, way) = match name.strip_prefix('-') {
                Some(name) => (name, Way::Backward),
                None => (name.as_str(), Way::Forward),
            };
            keys.extend(sorting_fields::<T>(name)?.into_iter().map(|field| (field, way)));
        }
        Ok((!keys.is_empty()).then_some(Sorting { keys }))
    }

    /// The fields that decide.
    pub fn fields(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().map(|(field, _)| field.name)
    }

    /// Puts rows in order; rows that are equal stay in theirs.
    pub fn sort(&self, rows: Vec<T>, view: &View) -> Vec<T> {
        let mut keyed: Vec<(Vec<Key>, T)> = rows
            .into_iter()
            .map(|row| (self.keys.iter().map(|(field, _)| Key::from((field.value)(&row, view))).collect(), row))
            .collect();
        keyed.sort_by(|(left, _), (right, _)| self.compare(left, right));
        keyed.into_iter().map(|(_, row)| row).collect()
    }

    fn compare(&self, left: &[Key], right: &[Key]) -> Ordering {
        for ((left, right), (_, way)) in left.iter().zip(right).zip(&self.keys) {
            let order = match (left, right) {
                (Key::Nothing, Key::Nothing) => Ordering::Equal,
                // What is not known comes last, whichever way.
                (Key::Nothing, _) => return Ordering::Greater,
                (_, Key::Nothing) => return Ordering::Less,
                (left, right) => left.partial_cmp(right).unwrap_or(Ordering::Equal),
            };
            match (order, way) {
                (Ordering::Equal, _) => {}
                (order, Way::Forward) => return order,
                (order, Way::Backward) => return order.reverse(),
            }
        }
        Ordering::Equal
    }
}

/// Why so many rows are not sorted.
pub fn too_many() -> Failure {
    Failure::new(Exit::Failed, format!("more than {SORTED_ROWS_LIMIT} rows are not sorted here"))
        .hint("narrow the question, or leave --sort out and sort what is written: -o tsv | sort")
}
