//! One name per line, for loops of a shell.

use std::io::{self, Write};

use super::{Meta, Render};
use crate::{record::Record, sanitise::sanitise};

/// Names: harmless on a terminal, as they are elsewhere.
pub(super) struct Names {
    on_terminal: bool,
}

impl Names {
    pub(super) fn new(on_terminal: bool) -> Names {
        Names { on_terminal }
    }
}

impl<T: Record> Render<T> for Names {
    fn rows(&mut self, rows: &[T], out: &mut dyn Write) -> io::Result<()> {
        for row in rows {
            let name = row.name();
            writeln!(out, "{}", if self.on_terminal { sanitise(&name) } else { name.as_str().into() })?;
        }
        out.flush()
    }

    fn finish(&mut self, _meta: &Meta, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}
