//! Where the rows of an answer leave: in chunks, up to a limit, and not slower than the question may take.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::history::{CHUNK_ROWS, HistoryError, Rows};

/// Whether more rows are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::history::sqlite) enum Wanted {
    /// Go on.
    More,
    /// The limit is reached.
    NoMore,
}

/// Where rows go.
pub(in crate::history::sqlite) trait Sink<T> {
    /// Takes a row; whether more are wanted.
    fn push(&mut self, row: T) -> Result<Wanted, HistoryError>;
}

impl<T> Sink<T> for Outlet<T> {
    fn push(&mut self, row: T) -> Result<Wanted, HistoryError> {
        Outlet::push(self, row)
    }
}

/// The way out for rows. Used on a thread that may block.
pub(in crate::history::sqlite) struct Outlet<T> {
    rows: Rows<T>,
    chunk: Vec<T>,
    left: u32,
    truncated: bool,
    deadline: Instant,
    time: Duration,
}

impl<T> Outlet<T> {
    pub(super) fn new(rows: Rows<T>, limit: u32, deadline: Instant, time: Duration) -> Outlet<T> {
        Outlet { rows, chunk: Vec::with_capacity(CHUNK_ROWS), left: limit, truncated: false, deadline, time }
    }

    /// How many more rows are wanted.
    pub(super) fn left(&self) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX)
    }

    /// Sends a row, unless the limit is reached.
    pub(super) fn push(&mut self, row: T) -> Result<Wanted, HistoryError> {
        if self.left == 0 {
            self.truncated = true;
            return Ok(Wanted::NoMore);
        }
        self.left -= 1;
        self.chunk.push(row);
        if self.chunk.len() == CHUNK_ROWS {
            self.flush()?;
        }
        Ok(Wanted::More)
    }

    /// Sends what is left; whether there were more rows than the limit.
    pub(super) fn finish(mut self) -> Result<bool, HistoryError> {
        self.flush()?;
        Ok(self.truncated)
    }

    fn flush(&mut self) -> Result<(), HistoryError> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_ROWS));
        let sent = tokio::time::timeout_at(self.deadline.into(), self.rows.send(chunk));
        match Handle::current().block_on(sent) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(HistoryError::Abandoned),
            Err(_) => Err(HistoryError::TooSlow(self.time)),
        }
    }
}
