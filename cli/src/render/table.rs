//! Aligned columns. The first rows decide how wide each is; those that come later are written as they arrive.

use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

use super::{Headers, Meta, Render, Selection};
use crate::{
    console::{Paint, Tone},
    record::{Cell, Record, Side, View},
};

/// Rows that decide the widths. A later, wider cell is written whole and moves the rest of its row.
const MEASURED_ROWS: usize = 500;
/// Blanks between two columns.
const GUTTER: &str = "  ";

/// A table.
pub(super) struct Table<T: 'static> {
    selection: Selection<T>,
    view: View,
    aligner: Aligner,
}

impl<T: Record> Table<T> {
    pub(super) fn new(selection: Selection<T>, view: View, headers: Headers, paint: Paint) -> Table<T> {
        let aligner = Aligner::new(selection.headers(), headers, paint);
        Table { selection, view, aligner }
    }
}

impl<T: Record> Render<T> for Table<T> {
    fn rows(&mut self, rows: &[T], out: &mut dyn Write) -> io::Result<()> {
        rows.iter().try_for_each(|row| self.aligner.push(self.selection.cells(row, &self.view), out))
    }

    fn finish(&mut self, _meta: &Meta, out: &mut dyn Write) -> io::Result<()> {
        self.aligner.finish(out)
    }
}

/// Puts cells beneath each other.
struct Aligner {
    sides: Vec<Side>,
    widths: Vec<usize>,
    paint: Paint,
    /// The rows that are measured; `None` once they are written.
    measured: Option<Vec<Vec<Cell>>>,
    rows: usize,
    /// The room of a line, which goes out whole.
    line: String,
}

/// How many columns of a terminal a text takes.
fn width(text: &str) -> usize {
    // Cells are without control characters, so that of ASCII each character takes one.
    if text.is_ascii() { text.len() } else { text.width() }
}

/// Adds blanks to a line, many at a time.
fn add_blanks(mut count: usize, line: &mut String) {
    const BLANKS: &str = "                                ";
    while let Some(rest) = count.checked_sub(BLANKS.len()) {
        line.push_str(BLANKS);
        count = rest;
    }
    line.push_str(&BLANKS[..count]);
}

impl Aligner {
    fn new(columns: Vec<(String, Side)>, headers: Headers, paint: Paint) -> Aligner {
        let (headings, sides): (Vec<String>, Vec<Side>) = columns.into_iter().unzip();
        let (widths, measured) = (vec![0; sides.len()], Some(Vec::new()));
        let mut aligner = Aligner { widths, sides, paint, measured, rows: 0, line: String::new() };
        if headers == Headers::Shown {
            aligner.measure(headings.into_iter().map(|text| Cell { text: text.into(), tone: Tone::Heading }).collect());
        }
        aligner
    }

    fn measure(&mut self, row: Vec<Cell>) {
        for (widest, cell) in self.widths.iter_mut().zip(&row) {
            *widest = (*widest).max(width(&cell.text));
        }
        if let Some(measured) = &mut self.measured {
            measured.push(row);
        }
    }

    fn push(&mut self, row: Vec<Cell>, out: &mut dyn Write) -> io::Result<()> {
        self.rows += 1;
        if self.measured.is_none() {
            return self.write(&row, out);
        }
        self.measure(row);
        if self.rows >= MEASURED_ROWS { self.write_measured(out) } else { Ok(()) }
    }

    /// Writes what is still measured; nothing at all when there was no row.
    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.rows == 0 { Ok(()) } else { self.write_measured(out) }
    }

    fn write_measured(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.measured.take().unwrap_or_default().iter().try_for_each(|row| self.write(row, out))
    }

    fn write(&mut self, row: &[Cell], out: &mut dyn Write) -> io::Result<()> {
        let Aligner { sides, widths, paint, line, .. } = self;
        line.clear();
        for (place, ((cell, widest), side)) in row.iter().zip(widths).zip(sides).enumerate() {
            let blanks = widest.saturating_sub(width(&cell.text));
            if place > 0 {
                line.push_str(GUTTER);
            }
            match side {
                Side::Right => {
                    add_blanks(blanks, line);
                    paint.add(cell.tone, &cell.text, line);
                }
                // No blanks at the end of a line.
                Side::Left if place + 1 == row.len() => paint.add(cell.tone, &cell.text, line),
                Side::Left => {
                    paint.add(cell.tone, &cell.text, line);
                    add_blanks(blanks, line);
                }
            }
        }
        line.push('\n');
        out.write_all(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn aligned(columns: &[(&str, Side)], headers: Headers, rows: &[Vec<String>]) -> String {
        let columns = columns.iter().map(|(name, side)| ((*name).to_owned(), *side)).collect();
        let mut aligner = Aligner::new(columns, headers, Paint::Plain);
        let mut out = Vec::new();
        for row in rows {
            aligner.push(row.iter().map(|text| Cell::new(text)).collect(), &mut out).unwrap();
        }
        aligner.finish(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|text| (*text).to_owned()).collect()).collect()
    }

    #[test]
    fn as_many_blanks_are_added_as_are_asked_for() {
        for count in [0, 1, 31, 32, 33, 64, 1_000] {
            let mut line = "a".to_owned();
            add_blanks(count, &mut line);
            assert_eq!(line, format!("a{}", " ".repeat(count)));
        }
    }

    #[test]
    fn columns_stand_beneath_each_other_whatever_the_script() {
        let columns = [("HOST", Side::Left), ("PORT", Side::Right), ("USER", Side::Left)];
        let text = aligned(&columns, Headers::Shown, &rows(&[&["web1", "443", "www"], &["日本", "8", ""]]));
        assert_eq!(text, "HOST  PORT  USER\nweb1   443  www\n日本     8  -\n");
        let bare = aligned(&columns, Headers::Hidden, &rows(&[&["a", "1", "x"]]));
        assert_eq!(bare, "a  1  x\n");
    }

    #[test]
    fn a_table_without_rows_is_empty() {
        assert_eq!(aligned(&[("HOST", Side::Left)], Headers::Shown, &[]), "");
    }

    #[test]
    fn a_wide_cell_that_comes_late_is_whole() {
        let mut many = vec![vec!["a".to_owned(), "b".to_owned()]; MEASURED_ROWS];
        many.push(vec!["a-very-wide-cell".to_owned(), "b".to_owned()]);
        let text = aligned(&[("X", Side::Left), ("Y", Side::Left)], Headers::Hidden, &many);
        assert!(text.ends_with("a  b\na-very-wide-cell  b\n"), "{text}");
        assert_eq!(text.lines().count(), MEASURED_ROWS + 1);
    }

    #[test]
    fn the_first_rows_are_written_before_the_last_ones_arrive() {
        let mut aligner = Aligner::new(vec![("X".to_owned(), Side::Left)], Headers::Hidden, Paint::Plain);
        let mut out = Vec::new();
        for written in 1..=MEASURED_ROWS + 2 {
            aligner.push(vec![Cell::new("x")], &mut out).unwrap();
            let lines = out.iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(lines, if written < MEASURED_ROWS { 0 } else { written });
        }
    }

    proptest! {
        #[test]
        fn every_cell_is_there_and_begins_where_its_column_begins(
            cells in prop::collection::vec(prop::collection::vec("[a-z日é]{1,12}", 3), 1..40)
        ) {
            let columns = [("A", Side::Left), ("B", Side::Left), ("C", Side::Left)];
            let text = aligned(&columns, Headers::Hidden, &cells);
            let widths: Vec<usize> =
                (0..3).map(|place| cells.iter().map(|row| row[place].width()).max().unwrap_or(0)).collect();
            for (line, row) in text.lines().zip(&cells) {
                let mut begin = 0;
                for (place, cell) in row.iter().enumerate() {
                    let mut at = 0;
                    let rest: String = line.chars().skip_while(|c| {
                        let before = at < begin;
                        at += c.to_string().width();
                        before
                    }).collect();
                    prop_assert!(rest.starts_with(cell.as_str()), "{line:?} {cell:?} at {begin}");
                    begin += widths[place] + GUTTER.len();
                }
            }
            prop_assert_eq!(text.lines().count(), cells.len());
        }
    }
}
