//! Rows as text: one renderer for each format. Rows are written as they arrive.

use std::io::{self, Write};

use fleetsock_proto::answer::AnswerMeta;
use serde_json::Value;

use crate::{
    console::Paint,
    failure::Failure,
    record::{Record, Times, View},
    render::{
        delimited::Delimited,
        json::{Json, Lines},
        markdown::Markdown,
        name::Names,
        table::Table,
        yaml::Yaml,
    },
};

pub mod columns;
mod delimited;
mod json;
mod markdown;
mod name;
pub mod sorting;
mod table;
mod yaml;

pub use columns::Selection;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns, times as ages.
    Table,
    /// More columns, times in full.
    Wide,
    /// One object: items and meta.
    Json,
    /// An object per line, as rows arrive.
    Jsonl,
    /// RFC 4180.
    Csv,
    /// The same with tabs.
    Tsv,
    /// The object of json as YAML.
    Yaml,
    /// A table for documents.
    Markdown,
    /// One name per line.
    Name,
    /// A file of typed columns, which only an export writes.
    Parquet,
}

impl Format {
    /// Whether it is for people: columns, not fields.
    pub const fn is_for_people(self) -> bool {
        matches!(self, Format::Table | Format::Wide | Format::Markdown)
    }

    /// How it writes moments.
    pub const fn times(self) -> Times {
        match self {
            Format::Wide => Times::Absolute,
            _ => Times::Relative,
        }
    }
}

/// Whether a table and CSV begin with the names of their columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Headers {
    /// They do.
    Shown,
    /// They do not.
    Hidden,
}

/// Writes rows.
pub trait Render<T> {
    /// Writes further rows, or keeps them until their columns can be aligned.
    fn rows(&mut self, rows: &[T], out: &mut dyn Write) -> io::Result<()>;

    /// Writes what comes after the last row.
    fn finish(&mut self, meta: &Meta, out: &mut dyn Write) -> io::Result<()>;
}

/// What the machine formats say beside the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta(Value);

impl Meta {
    /// What an answer covers.
    pub fn of_answer(meta: &AnswerMeta) -> Meta {
        Meta(json::meta(meta))
    }

    /// Nothing: the rows are all there is to say.
    pub fn none() -> Meta {
        Meta(Value::Object(serde_json::Map::new()))
    }
}

/// What a renderer needs to know.
#[derive(Debug, Clone)]
pub struct Style {
    /// The format.
    pub format: Format,
    /// Whether names of columns come first.
    pub headers: Headers,
    /// Colour.
    pub paint: Paint,
    /// Whether standard output is a terminal, where names are made harmless.
    pub on_terminal: bool,
}

/// A listing cannot be in this format.
pub(crate) fn only_exported() -> Failure {
    Failure::usage("-o parquet: only an export is written as Parquet")
        .hint("fleetctl export sessions.parquet --since 1d")
}

/// The renderer of a format; refused when no listing can be in it.
pub fn renderer<T: Record>(style: &Style, selection: Selection<T>, view: View) -> Result<Box<dyn Render<T>>, Failure> {
    Ok(match style.format {
        Format::Table | Format::Wide => Box::new(Table::new(selection, view, style.headers, style.paint)),
        Format::Json => Box::new(Json::new(selection, view)),
        Format::Jsonl => Box::new(Lines::new(selection, view)),
        Format::Csv => Box::new(Delimited::new(b',', selection, view, style.headers)),
        Format::Tsv => Box::new(Delimited::new(b'\t', selection, view, style.headers)),
        Format::Yaml => Box::new(Yaml::new(selection, view)),
        Format::Markdown => Box::new(Markdown::new(selection, view, style.headers)),
        Format::Name => Box::new(Names::new(style.on_terminal)),
        Format::Parquet => return Err(only_exported()),
    })
}
