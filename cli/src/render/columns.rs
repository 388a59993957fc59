//! Which columns or fields of a record are written.

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::{
    failure::Failure,
    record::{Cell, Column, Field, Record, Shown, Side, View},
    render::Format,
    suggestion,
};

/// What one column of a listing is made from.
#[derive(Debug)]
enum Source<T: 'static> {
    /// A column for people.
    Column(&'static Column<T>),
    /// A field for machines, shown as it is.
    Field(&'static Field<T>),
}

impl<T> Clone for Source<T> {
    fn clone(&self) -> Source<T> {
        *self
    }
}

impl<T> Copy for Source<T> {}

/// The columns or fields to write, in order.
#[derive(Debug)]
pub struct Selection<T: 'static>(Vec<Source<T>>);

impl<T> Clone for Selection<T> {
    fn clone(&self) -> Selection<T> {
        Selection(self.0.clone())
    }
}

impl<T: Record> Selection<T> {
    /// The columns that were asked for by name, or else those that the format shows, without those `left_out`.
    pub fn new(asked: &[String], format: Format, left_out: &[&str]) -> Result<Selection<T>, Failure> {
        if asked.is_empty() {
            return Ok(Selection::usual(format, left_out));
        }
        let mut sources = Vec::new();
        for name in asked {
            let (column, field) = named::<T>(name)?;
            match (column, field) {
                (Some(column), _) if format.is_for_people() => sources.push(Source::Column(column)),
                (_, Some(field)) => sources.push(Source::Field(field)),
                (Some(column), None) => sources.extend(fields_of(column).map(Source::Field)),
                (None, None) => {}
            }
        }
        Ok(Selection(sources))
    }

    fn usual(format: Format, left_out: &[&str]) -> Selection<T> {
        if !format.is_for_people() {
            return Selection(T::fields().iter().map(Source::Field).collect());
        }
        let shown = |column: &&Column<T>| {
            (column.shown == Shown::Always || format == Format::Wide) && !left_out.contains(&column.name)
        };
        Selection(T::columns().iter().filter(shown).map(Source::Column).collect())
    }

    /// What stands above each column of a table, and on which side.
    pub fn headers(&self) -> Vec<(String, Side)> {
        self.0
            .iter()
            .map(|source| match source {
                Source::Column(column) => (column.header.to_owned(), column.side),
                Source::Field(field) => (field.name.to_uppercase().replace('_', "-"), Side::Left),
            })
            .collect()
    }

    /// The names for machines.
    pub fn names(&self) -> Vec<&'static str> {
        self.0
            .iter()
            .map(|source| match source {
                Source::Column(column) => column.name,
                Source::Field(field) => field.name,
            })
            .collect()
    }

    /// The fields that these are made of.
    pub fn fields(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().flat_map(|source| match source {
            Source::Column(column) => column.fields.to_vec(),
            Source::Field(field) => vec![field.name],
        })
    }

    /// A row for people.
    pub fn cells(&self, row: &T, view: &View) -> Vec<Cell> {
        self.0
            .iter()
            .map(|source| match source {
                Source::Column(column) => (column.cell)(row, view),
                Source::Field(field) => Cell::new(&plain(&(field.value)(row, view))),
            })
            .collect()
    }

    /// The same without what comes a second time, as in an object each name is there once.
    pub fn each_once(mut self) -> Selection<T> {
        let mut names = Vec::new();
        self.0.retain(|source| match source {
            Source::Field(field) if names.contains(&field.name) => false,
            Source::Field(field) => {
                names.push(field.name);
                true
            }
            Source::Column(_) => true,
        });
        self
    }

    /// A row for machines.
    pub fn object<'a>(&'a self, row: &'a T, view: &'a View) -> Object<'a, T> {
        Object { selection: self, row, view }
    }

    /// A row for machines, value by value.
    pub fn values<'a>(&'a self, row: &'a T, view: &'a View) -> impl Iterator<Item = (&'static str, Value)> + 'a {
        self.0.iter().filter_map(move |source| match source {
            Source::Field(field) => Some((field.name, (field.value)(row, view))),
            // Formats for machines are made of fields alone.
            Source::Column(_) => None,
        })
    }
}

/// A row for machines: its values by their names, one after the other.
#[derive(Debug)]
pub struct Object<'a, T: 'static> {
    selection: &'a Selection<T>,
    row: &'a T,
    view: &'a View,
}

impl<T: Record> Serialize for Object<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.selection.values(self.row, self.view))
    }
}

/// The fields that a column is made of.
fn fields_of<T: Record>(column: &'static Column<T>) -> impl Iterator<Item = &'static Field<T>> {
    T::fields().iter().filter(|field| column.fields.contains(&field.name))
}

type Named<T> = (Option<&'static Column<T>>, Option<&'static Field<T>>);

/// The column and the field of that name; at least one of them.
fn named<T: Record>(name: &str) -> Result<Named<T>, Failure> {
    let column = T::columns().iter().find(|column| column.name == name || column.header.eq_ignore_ascii_case(name));
    let field = T::fields().iter().find(|field| field.name == name);
    if column.is_none() && field.is_none() {
        return Err(unknown_column::<T>(name));
    }
    Ok((column, field))
}

/// The fields that decide an order: the field of that name, or those of the column.
pub(super) fn sorting_fields<T: Record>(name: &str) -> Result<Vec<&'static Field<T>>, Failure> {
    Ok(match named::<T>(name)? {
        (_, Some(field)) => vec![field],
        (Some(column), None) => fields_of(column).collect(),
        (None, None) => Vec::new(),
    })
}

fn unknown_column<T: Record>(name: &str) -> Failure {
    let mut known: Vec<&str> = T::columns().iter().map(|column| column.name).collect();
    known.extend(T::fields().iter().map(|field| field.name));
    known.sort_unstable();
    known.dedup();
    let hint = suggestion::did_you_mean(&suggestion::similar(name, known.iter().copied()))
        .unwrap_or_else(|| format!("one of {}", known.join(", ")));
    Failure::usage(format!("a {} has no column `{name}`", T::NOUN)).hint(hint)
}

/// A value as one piece of text: nothing for null, words apart for a list of texts, JSON for everything deeper.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}
