//! A listing: rows that arrive, in the format, columns and order that were asked for, and beneath them what they cover.

use std::io::Write;

use fleetsock_proto::{
    answer::AnswerMeta,
    client::{Answer, CallError},
    time::Timestamp,
};

use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    filters::HOSTS,
    freshness,
    record::{Marks, Record, View},
    render::{
        self, Format, Headers, Meta, Render, Selection, Style,
        sorting::{self, SORTED_ROWS_LIMIT, Sorting},
    },
};

/// How rows are to be written. Made before the server is asked, so that a wrong column is told at once.
#[derive(Debug)]
pub struct Listing<T: 'static> {
    selection: Selection<T>,
    sorting: Option<Sorting<T>>,
    style: Style,
    until: Timestamp,
    limited: Option<u32>,
}

/// Rows, in the order asked for, on their way to standard output.
struct Writer<'a, T: 'static> {
    listing: &'a Listing<T>,
    view: View,
    render: Box<dyn Render<T>>,
    held: Vec<T>,
    marks: Marks,
    rows: usize,
}

impl<T: Record> Listing<T> {
    /// What the options ask for, without the columns `left_out` unless they are asked for by name.
    pub fn new(invocation: &Invocation, left_out: &[&str]) -> Result<Listing<T>, Failure> {
        let options = &invocation.options;
        if options.output == Format::Parquet {
            return Err(render::only_exported());
        }
        let style = Style {
            format: options.output,
            headers: if options.no_headers { Headers::Hidden } else { Headers::Shown },
            paint: invocation.console.paint,
            on_terminal: invocation.console.on_terminal,
        };
        Ok(Listing {
            selection: Selection::new(&options.columns, options.output, left_out)?,
            sorting: Sorting::parse(&options.sort)?,
            style,
            until: invocation.clock.now(),
            limited: None,
        })
    }

    /// The fields that it shows or sorts by.
    pub fn fields(&self) -> impl Iterator<Item = &'static str> {
        self.selection.fields().chain(self.sorting.iter().flat_map(Sorting::fields))
    }

    /// What is still open has lasted until then.
    #[must_use]
    pub fn until(mut self, until: Timestamp) -> Listing<T> {
        self.until = until;
        self
    }

    /// The asker wants at most so many rows.
    #[must_use]
    pub fn limited(mut self, limit: Option<u32>) -> Listing<T> {
        self.limited = limit;
        self
    }

    /// Writes an answer as it arrives, and what it covers.
    pub async fn write(self, invocation: &mut Invocation, mut answer: Answer<T>) -> Result<Exit, Ended> {
        let mut writer = Writer::new(&self, invocation)?;
        loop {
            // Questions name hosts; whichever is unknown is told by the answer.
            let rows = answer.next().await.map_err(|error| Failure::from(error).or_hint(HOSTS))?;
            let Some(rows) = rows else { break };
            writer.take(rows, invocation)?;
        }
        let meta = answer.meta().cloned().ok_or_else(|| CallError::Unavailable("the answer broke off".to_owned()))?;
        writer.finish(&Meta::of_answer(&meta), invocation)?;
        Ok(freshness::tell(&meta, invocation, self.limited))
    }

    /// Writes rows that were made of answers, and what those cover.
    pub fn write_answer(self, invocation: &mut Invocation, rows: Vec<T>, meta: &AnswerMeta) -> Result<Exit, Ended> {
        let mut writer = Writer::new(&self, invocation)?;
        writer.take(rows, invocation)?;
        writer.finish(&Meta::of_answer(meta), invocation)?;
        Ok(freshness::tell(meta, invocation, self.limited))
    }

    /// Writes rows that are known already.
    pub fn write_rows(self, invocation: &mut Invocation, rows: Vec<T>) -> Result<Exit, Ended> {
        let mut writer = Writer::new(&self, invocation)?;
        writer.take(rows, invocation)?;
        writer.finish(&Meta::none(), invocation)?;
        Ok(Exit::Done)
    }
}

impl<'a, T: Record> Writer<'a, T> {
    fn new(listing: &'a Listing<T>, invocation: &Invocation) -> Result<Writer<'a, T>, Failure> {
        let view = View { clock: invocation.clock.clone(), times: listing.style.format.times(), until: listing.until };
        let render = render::renderer(&listing.style, listing.selection.clone(), view.clone())?;
        Ok(Writer { listing, view, render, held: Vec::new(), marks: Marks::default(), rows: 0 })
    }

    fn take(&mut self, rows: Vec<T>, invocation: &mut Invocation) -> Result<(), Ended> {
        self.rows += rows.len();
        if self.listing.style.format.is_for_people() {
            self.marks = rows.iter().fold(self.marks, |marks, row| marks.and(row.marks()));
        }
        if self.listing.sorting.is_none() {
            return Ok(self.render.rows(&rows, &mut invocation.console.out)?);
        }
        self.held.extend(rows);
        if self.held.len() > SORTED_ROWS_LIMIT { Err(sorting::too_many().into()) } else { Ok(()) }
    }

    fn finish(mut self, meta: &Meta, invocation: &mut Invocation) -> Result<(), Ended> {
        if let Some(sorting) = &self.listing.sorting {
            let rows = sorting.sort(self.held, &self.view);
            self.render.rows(&rows, &mut invocation.console.out)?;
        }
        self.render.finish(meta, &mut invocation.console.out)?;
        invocation.console.out.flush()?;
        if self.rows == 0 && self.listing.style.format != Format::Json {
            invocation.console.note(&format!("no {}", T::NOUN));
        }
        if let Some(legend) = self.marks.legend() {
            invocation.console.note(&legend);
        }
        Ok(())
    }
}
