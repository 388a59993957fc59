//! Parquet: a file of typed columns with the names of the fields, for those who ask it with SQL.
//!
//! Rows are held column by column until they are a row group, which is compressed and written as a whole. So one group is
//! what an export takes of memory, however long it is, besides the end of the file, which tells of each group in some
//! kilobytes. That end comes last: what broke off before it is no Parquet file to anybody.

use std::{
    borrow::Cow,
    io::{self, Write},
    mem,
    sync::Arc,
};

use fleetsock_proto::{session::Session, time::Timestamp};
use parquet::{
    basic::{Compression, ZstdLevel},
    data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type},
    errors::ParquetError,
    file::{
        properties::{EnabledStatistics, WriterProperties},
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::parser::parse_message_type,
};
use serde_json::Value;

use crate::{
    failure::{Exit, Failure},
    record::View,
    render::{Meta, Render, Selection},
};

/// When a row group is complete: at so many rows, or when its values take so much memory. Readers skip whole groups and read
/// several at once, so that it is neither few rows nor all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupLimits {
    rows: usize,
    bytes: usize,
}

impl Default for GroupLimits {
    fn default() -> GroupLimits {
        GroupLimits { rows: 100_000, bytes: 32 * 1024 * 1024 }
    }
}

/// Fields that every session has.
const ALWAYS_THERE: [&str; 18] = [
    "host",
    "host_id",
    "host_state",
    "protocol",
    "family",
    "direction",
    "local_address",
    "local_port",
    "peer_address",
    "peer_port",
    "class",
    "state",
    "netns",
    "owner_known",
    "owners",
    "opened_at",
    "opened_known",
    "duration_ms",
];

/// Whether each row has a value in a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Required,
    Optional,
}

/// What a field is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Text; what has parts of its own is JSON.
    Text,
    Unsigned16,
    Unsigned32,
    Unsigned64,
    /// To the microsecond, of which the other formats tell milliseconds.
    Moment(fn(&Session) -> Option<Timestamp>),
}

impl Kind {
    fn of(field: &str) -> Kind {
        match field {
            "local_port" | "peer_port" => Kind::Unsigned16,
            "pid" | "peer_pid" => Kind::Unsigned32,
            "netns" | "duration_ms" | "bytes_sent" | "bytes_received" => Kind::Unsigned64,
            "opened_at" => Kind::Moment(|row| Some(row.opened_at)),
            "closed_at" => Kind::Moment(|row| row.closed.map(|(at, _)| at)),
            _ => Kind::Text,
        }
    }

    /// How it is stored, and what that means, in the words of Parquet's message types.
    const fn type_and_meaning(self) -> (&'static str, &'static str) {
        match self {
            Kind::Text => ("binary", "STRING"),
            Kind::Unsigned16 => ("int32", "INTEGER(16,false)"),
            Kind::Unsigned32 => ("int32", "INTEGER(32,false)"),
            Kind::Unsigned64 => ("int64", "INTEGER(64,false)"),
            Kind::Moment(_) => ("int64", "TIMESTAMP(MICROS,true)"),
        }
    }

    /// A value as it is stored; none when it is of another kind.
    fn cell<'a>(self, row: &Session, value: &'a Value) -> Option<Cell<'a>> {
        Some(match (self, value) {
            (Kind::Moment(moment), _) => moment(row).map_or(Cell::Absent, |at| Cell::Int64(at.as_micros())),
            (_, Value::Null) => Cell::Absent,
            (Kind::Text, Value::String(text)) => Cell::Text(Cow::Borrowed(text)),
            (Kind::Text, Value::Array(_) | Value::Object(_)) => Cell::Text(Cow::Owned(value.to_string())),
            (Kind::Text, Value::Bool(_) | Value::Number(_)) => return None,
            (Kind::Unsigned16, _) => Cell::Int32(u16::try_from(value.as_u64()?).ok()?.into()),
            (Kind::Unsigned32, _) => Cell::Int32(u32::try_from(value.as_u64()?).ok()?.cast_signed()),
            (Kind::Unsigned64, _) => Cell::Int64(value.as_u64()?.cast_signed()),
        })
    }
}

/// A value as it is stored.
#[derive(Debug, PartialEq, Eq)]
enum Cell<'a> {
    Absent,
    Text(Cow<'a, str>),
    Int32(i32),
    Int64(i64),
}

/// The values of a column in a row group that are there, in order.
#[derive(Debug)]
enum Values {
    /// One behind the other, and where each ends.
    Text(Vec<u8>, Vec<usize>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
}

/// A column, and what is held of it.
#[derive(Debug)]
struct Column {
    name: &'static str,
    kind: Kind,
    presence: Presence,
    /// For each row 1 when there is a value, else 0 (definition levels).
    levels: Vec<i16>,
    values: Values,
}

impl Column {
    fn new(name: &'static str) -> Column {
        let kind = Kind::of(name);
        let values = match kind {
            Kind::Text => Values::Text(Vec::new(), Vec::new()),
            Kind::Unsigned16 | Kind::Unsigned32 => Values::Int32(Vec::new()),
            Kind::Unsigned64 | Kind::Moment(_) => Values::Int64(Vec::new()),
        };
        let presence = if ALWAYS_THERE.contains(&name) { Presence::Required } else { Presence::Optional };
        Column { name, kind, presence, levels: Vec::new(), values }
    }

    fn declaration(&self) -> String {
        let presence = match self.presence {
            Presence::Required => "required",
            Presence::Optional => "optional",
        };
        let (stored, meaning) = self.kind.type_and_meaning();
        format!("{presence} {stored} {} ({meaning});", self.name)
    }

    /// Takes the value of a row; how much memory it takes.
    fn push(&mut self, row: &Session, value: &Value) -> io::Result<usize> {
        let misfit = || {
            let problem = format!("{} cannot be {value} in a Parquet file", self.name);
            io::Error::new(io::ErrorKind::InvalidData, problem)
        };
        let cell = self.kind.cell(row, value).ok_or_else(misfit)?;
        let bytes = match (&cell, &mut self.values) {
            (Cell::Absent, _) if self.presence == Presence::Optional => 0,
            (Cell::Text(text), Values::Text(bytes, ends)) => {
                bytes.extend_from_slice(text.as_bytes());
                ends.push(bytes.len());
                text.len() + size_of::<usize>()
            }
            (Cell::Int32(number), Values::Int32(numbers)) => {
                numbers.push(*number);
                size_of::<i32>()
            }
            (Cell::Int64(number), Values::Int64(numbers)) => {
                numbers.push(*number);
                size_of::<i64>()
            }
            _ => return Err(misfit()),
        };
        self.levels.push(i16::from(cell != Cell::Absent));
        Ok(bytes + size_of::<i16>())
    }

    /// Writes what is held, and holds nothing more.
    fn write(&mut self, writer: &mut SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        let levels = (self.presence == Presence::Optional).then_some(self.levels.as_slice());
        match &mut self.values {
            Values::Text(bytes, ends) => {
                let all = ByteArray::from(mem::take(bytes));
                let mut begin = 0;
                let piece = |end: usize| {
                    let begin = mem::replace(&mut begin, end);
                    all.slice(begin, end - begin)
                };
                let pieces: Vec<ByteArray> = ends.drain(..).map(piece).collect();
                writer.typed::<ByteArrayType>().write_batch(&pieces, levels, None)?;
            }
            Values::Int32(numbers) => {
                writer.typed::<Int32Type>().write_batch(numbers, levels, None)?;
                numbers.clear();
            }
            Values::Int64(numbers) => {
                writer.typed::<Int64Type>().write_batch(numbers, levels, None)?;
                numbers.clear();
            }
        }
        self.levels.clear();
        Ok(())
    }
}

/// Writes sessions as Parquet.
pub(super) struct Parquet {
    selection: Selection<Session>,
    view: View,
    limits: GroupLimits,
    columns: Vec<Column>,
    /// What is held of the next row group.
    rows: usize,
    bytes: usize,
    /// Writes into memory, from where it goes out after each group.
    file: SerializedFileWriter<Vec<u8>>,
}

impl Parquet {
    /// Writes these columns.
    pub(super) fn new(selection: Selection<Session>, view: View, limits: GroupLimits) -> Result<Parquet, Failure> {
        let names = selection.names();
        if let Some((_, twice)) = names.iter().enumerate().find(|(place, name)| names[..*place].contains(name)) {
            let message =
                format!("--columns: `{twice}` is named twice, and each column of a Parquet file has its own name");
            return Err(Failure::usage(message).hint("name it once"));
        }
        let columns: Vec<Column> = names.into_iter().map(Column::new).collect();
        let declarations: Vec<String> = columns.iter().map(Column::declaration).collect();
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_statistics_enabled(EnabledStatistics::Chunk)
            // What readers could skip within a group would be held until the end, for each page.
            .set_offset_index_disabled(true)
            .build();
        let file = parse_message_type(&format!("message sessions {{ {} }}", declarations.join(" ")))
            .and_then(|schema| SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties)))
            .map_err(|error| Failure::new(Exit::Failed, format!("no Parquet file can be begun: {error}")))?;
        Ok(Parquet { selection, view, limits, columns, rows: 0, bytes: 0, file })
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        let mut group = self.file.next_row_group()?;
        for column in &mut self.columns {
            let Some(mut writer) = group.next_column()? else {
                return Err(ParquetError::General(format!("the file has no column {}", column.name)));
            };
            column.write(&mut writer)?;
            writer.close()?;
        }
        group.close()?;
        (self.rows, self.bytes) = (0, 0);
        Ok(())
    }

    fn send(&mut self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&mem::take(self.file.inner_mut()))
    }
}

impl Render<Session> for Parquet {
    fn rows(&mut self, rows: &[Session], out: &mut dyn Write) -> io::Result<()> {
        for row in rows {
            for (column, (_, value)) in self.columns.iter_mut().zip(self.selection.values(row, &self.view)) {
                self.bytes += column.push(row, &value)?;
            }
            self.rows += 1;
            if self.rows >= self.limits.rows || self.bytes >= self.limits.bytes {
                self.write_group().map_err(io::Error::other)?;
                self.send(out)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, _meta: &Meta, out: &mut dyn Write) -> io::Result<()> {
        if self.rows > 0 {
            self.write_group().map_err(io::Error::other)?;
        }
        self.file.finish().map_err(io::Error::other)?;
        self.send(out)
    }
}

#[cfg(test)]
mod tests;
