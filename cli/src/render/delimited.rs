//! CSV (RFC 4180) and the same with tabs.

use std::io::{self, Write};

use super::{Headers, Meta, Render, Selection, columns::plain};
use crate::record::{Record, View};

/// Values with a delimiter between them, quoted where they must be.
pub(super) struct Delimited<T: 'static> {
    delimiter: u8,
    selection: Selection<T>,
    view: View,
    headers: Headers,
}

impl<T: Record> Delimited<T> {
    pub(super) fn new(delimiter: u8, selection: Selection<T>, view: View, headers: Headers) -> Delimited<T> {
        Delimited { delimiter, selection, view, headers }
    }

    /// Writes lines; the names of the columns before the first of them.
    fn write(&mut self, rows: &[T], out: &mut dyn Write) -> io::Result<()> {
        let mut lines = csv::WriterBuilder::new().delimiter(self.delimiter).from_writer(out);
        if self.headers == Headers::Shown {
            lines.write_record(self.selection.names())?;
            self.headers = Headers::Hidden;
        }
        for row in rows {
            lines.write_record(self.selection.values(row, &self.view).map(|(_, value)| plain(&value)))?;
        }
        lines.flush()
    }
}

impl<T: Record> Render<T> for Delimited<T> {
    fn rows(&mut self, rows: &[T], out: &mut dyn Write) -> io::Result<()> {
        self.write(rows, out)
    }

    /// An answer without rows has its header too, so that a reader finds the columns.
    fn finish(&mut self, _meta: &Meta, out: &mut dyn Write) -> io::Result<()> {
        self.write(&[], out)
    }
}
