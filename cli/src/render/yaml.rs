//! YAML: the object of JSON, written as the rows arrive.

use std::io::{self, Write};

use super::{Meta, Render, Selection};
use crate::record::{Record, View};

/// `items:` and a sequence, then `meta:`.
pub(super) struct Yaml<T: 'static> {
    selection: Selection<T>,
    view: View,
    begun: bool,
}

impl<T: Record> Yaml<T> {
    pub(super) fn new(selection: Selection<T>, view: View) -> Yaml<T> {
        Yaml { selection: selection.each_once(), view, begun: false }
    }
}

fn to_yaml(value: &impl serde::Serialize) -> io::Result<String> {
    serde_saphyr::to_string(value).map_err(|error| io::Error::other(error.to_string()))
}

impl<T: Record> Render<T> for Yaml<T> {
    fn rows(&mut self, rows: &[T], out: &mut dyn Write) -> io::Result<()> {
        for row in rows {
            if !self.begun {
                out.write_all(b"items:\n")?;
                self.begun = true;
            }
            // A sequence of one item continues the sequence that was begun.
            let item = to_yaml(&[self.selection.object(row, &self.view)])?;
            writeln!(out, "{}", item.trim_end_matches('\n'))?;
        }
        Ok(())
    }

    fn finish(&mut self, meta: &Meta, out: &mut dyn Write) -> io::Result<()> {
        if !self.begun {
            out.write_all(b"items: []\n")?;
        }
        let meta = to_yaml(&serde_json::json!({ "meta": meta.0 }))?;
        writeln!(out, "{}", meta.trim_end_matches('\n'))
    }
}
