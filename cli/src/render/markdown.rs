//! A table for documents (GitHub Flavored Markdown).

use std::io::{self, Write};

use super::{Headers, Meta, Render, Selection};
use crate::record::{Record, Side, View};

/// A table with bars.
pub(super) struct Markdown<T: 'static> {
    selection: Selection<T>,
    view: View,
    headers: Headers,
}

impl<T: Record> Markdown<T> {
    pub(super) fn new(selection: Selection<T>, view: View, headers: Headers) -> Markdown<T> {
        Markdown { selection, view, headers }
    }
}

fn line<'a>(cells: impl Iterator<Item = &'a str>, out: &mut dyn Write) -> io::Result<()> {
    for cell in cells {
        write!(out, "| {} ", cell.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;"))?;
    }
    out.write_all(b"|\n")
}

impl<T: Record> Render<T> for Markdown<T> {
    fn rows(&mut self, rows: &[T], out: &mut dyn Write) -> io::Result<()> {
        if self.headers == Headers::Shown && !rows.is_empty() {
            self.headers = Headers::Hidden;
            let headers = self.selection.headers();
            line(headers.iter().map(|(header, _)| header.as_str()), out)?;
            let rule = |(_, side): &(_, Side)| if *side == Side::Right { "---:" } else { "---" };
            line(headers.iter().map(rule), out)?;
        }
        for row in rows {
            let cells = self.selection.cells(row, &self.view);
            line(cells.iter().map(|cell| cell.text.as_ref()), out)?;
        }
        Ok(())
    }

    fn finish(&mut self, _meta: &Meta, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}
