//! JSON: one object with items and meta, or one object per line.

use std::io::{self, Write};

use fleetsock_proto::answer::AnswerMeta;
use serde_json::{Value, json};

use super::{Meta, Render, Selection};
use crate::record::{Record, View, moment, moment_or_null, text};

/// `{"items":[...],"meta":{...}}`, an item per line, written as the rows arrive.
pub(super) struct Json<T: 'static> {
    selection: Selection<T>,
    view: View,
    begun: bool,
}

impl<T: Record> Json<T> {
    pub(super) fn new(selection: Selection<T>, view: View) -> Json<T> {
        Json { selection: selection.each_once(), view, begun: false }
    }
}

impl<T: Record> Render<T> for Json<T> {
    fn rows(&mut self, rows: &[T], out: &mut dyn Write) -> io::Result<()> {
        for row in rows {
            out.write_all(if self.begun { b",\n" } else { b"{\"items\":[\n" })?;
            self.begun = true;
            serde_json::to_writer(&mut *out, &self.selection.object(row, &self.view))?;
        }
        Ok(())
    }

    fn finish(&mut self, meta: &Meta, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(if self.begun { b"\n]" } else { b"{\"items\":[]" })?;
        writeln!(out, ",\"meta\":{}}}", meta.0)
    }
}

/// An object per line.
pub(super) struct Lines<T: 'static> {
    selection: Selection<T>,
    view: View,
}

impl<T: Record> Lines<T> {
    pub(super) fn new(selection: Selection<T>, view: View) -> Lines<T> {
        Lines { selection: selection.each_once(), view }
    }
}

impl<T: Record> Render<T> for Lines<T> {
    fn rows(&mut self, rows: &[T], out: &mut dyn Write) -> io::Result<()> {
        for row in rows {
            serde_json::to_writer(&mut *out, &self.selection.object(row, &self.view))?;
            out.write_all(b"\n")?;
        }
        // Whoever reads line by line should not wait for the buffer to fill.
        out.flush()
    }

    fn finish(&mut self, _meta: &Meta, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// What an answer covers.
pub(super) fn meta(meta: &AnswerMeta) -> Value {
    let gaps: Vec<Value> = meta
        .gaps
        .iter()
        .map(|gap| {
            json!({
                "host": text(&gap.host),
                "host_id": gap.host_id.to_string(),
                "since": moment(gap.since),
                "until": moment_or_null(gap.until),
                "reason": gap.reason.as_str(),
                "batches_lost": gap.batches_lost,
            })
        })
        .collect();
    let mut told = json!({
        "as_of": moment(meta.as_of),
        "since": moment_or_null(meta.since),
        "until": moment_or_null(meta.until),
        "hosts_total": meta.hosts_total,
        "hosts_stale": meta.hosts_stale,
        "gaps": gaps,
        "truncated": meta.truncated,
        "hosts_stale_total": meta.hosts_stale_total,
        "stale_after_ms": u64::try_from(meta.stale_after.as_millis()).unwrap_or(u64::MAX),
        "gaps_total": meta.gaps_total,
    });
    if let Some(other_ends) = meta.other_ends {
        told["other_ends"] = other_ends.as_str().into();
    }
    if let Some(sums) = &meta.sums {
        told["sums"] = json!({
            "since": moment(sums.since),
            "until": moment(sums.until),
            "counted": sums.counted,
            "lacks": sums.lacks,
            "unclear": sums.unclear,
        });
    }
    told
}
