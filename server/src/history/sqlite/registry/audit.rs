//! The audit log in `main.db`: appended to, listed, and read whole to see whether somebody touched it.

use fleetsock_proto::{
    answer::AnswerMeta,
    audit::{AUDIT_BEGINNING, AuditHash, AuditMark, AuditQuestion, AuditRow, AuditVerdict},
    time::Timestamp,
};
use rusqlite::{Connection, Row, Transaction, params};

use crate::history::{
    AUDIT_ROWS_LIMIT, Actor, AuditEntry, HistoryError,
    sqlite::{coding, questions::Reader},
};

/// Rows of one answer unless the question says otherwise.
const USUAL_ROWS: u32 = 1000;

/// Writes an order into the log.
pub(super) fn order(
    transaction: &Transaction<'_>,
    by: &Actor,
    action: &'static str,
    detail: &str,
) -> Result<(), rusqlite::Error> {
    append(transaction, &AuditEntry { by: by.clone(), action, detail: detail.to_owned(), rows: None })
}

/// Writes a row that follows from the last one.
pub(super) fn append(transaction: &Transaction<'_>, entry: &AuditEntry) -> Result<(), rusqlite::Error> {
    let last = head(transaction)?;
    // A row that somebody else put at the end is left for a reading of the log to find; ours goes behind it.
    let highest = "SELECT max(0, coalesce(max(id), 0)) AS highest FROM audit";
    let highest = transaction.prepare_cached(highest)?.query_row([], |row| coding::unsigned(row, "highest"))?;
    let mut row = AuditRow {
        number: last.number.max(highest).saturating_add(1),
        at: entry.by.at,
        actor: entry.by.name.clone(),
        address: entry.by.address.clone(),
        action: entry.action.to_owned(),
        detail: entry.detail.clone(),
        rows: entry.rows,
        hash: AUDIT_BEGINNING,
    };
    row.hash = row.follows(&last.hash);
    transaction
        .prepare_cached(
            "INSERT INTO audit (id, at_us, actor, address, action, detail, answer_rows, hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            coding::signed(row.number),
            row.at.as_micros(),
            row.actor,
            row.address,
            row.action,
            row.detail,
            row.rows.map(coding::signed),
            row.hash,
        ])?;
    transaction
        .prepare_cached("UPDATE audit_head SET last = ?1, hash = ?2")?
        .execute(params![coding::signed(row.number), row.hash])
        .map(drop)
}

/// The last row that was written.
fn head(main: &Connection) -> Result<AuditMark, rusqlite::Error> {
    main.prepare_cached("SELECT last, hash FROM audit_head")?
        .query_row([], |row| Ok(AuditMark { number: coding::unsigned(row, "last")?, hash: hash(row)? }))
}

/// A hash of another length is one that no row has.
fn hash(row: &Row<'_>) -> Result<AuditHash, rusqlite::Error> {
    Ok(row.get::<_, Vec<u8>>("hash")?.try_into().unwrap_or([0xff; 32]))
}

fn read(row: &Row<'_>) -> Result<AuditRow, rusqlite::Error> {
    Ok(AuditRow {
        number: coding::unsigned(row, "id")?,
        at: coding::time(row, "at_us")?,
        actor: row.get("actor")?,
        address: row.get("address")?,
        action: row.get("action")?,
        detail: row.get("detail")?,
        rows: row.get::<_, Option<i64>>("answer_rows")?.map(i64::cast_unsigned),
        hash: hash(row)?,
    })
}

/// Rows, newest first.
pub(super) fn list(
    reader: &Reader,
    question: &AuditQuestion,
    now: Timestamp,
) -> Result<(Vec<AuditRow>, AnswerMeta), HistoryError> {
    let limit = question.limit.unwrap_or(USUAL_ROWS).min(AUDIT_ROWS_LIMIT) as usize;
    let mut statement = reader.main.prepare_cached(
        "SELECT * FROM audit
         WHERE at_us BETWEEN ?1 AND ?2 AND (?3 IS NULL OR actor = ?3 OR substr(actor, -length(?3) - 1) = '/' || ?3)
             AND (?4 IS NULL OR action = ?4)
         ORDER BY id DESC LIMIT ?5",
    )?;
    let window = (question.since.unwrap_or(Timestamp::MIN), question.until.unwrap_or(Timestamp::MAX));
    let mut found = statement
        .query_map(
            params![
                window.0.as_micros(),
                window.1.as_micros(),
                question.actor,
                question.action,
                // One more than is wanted tells whether there is more.
                limit as i64 + 1
            ],
            read,
        )?
        .collect::<Result<Vec<_>, _>>()?;
    let truncated = found.len() > limit;
    found.truncate(limit);
    let meta = AnswerMeta { as_of: now, since: question.since, until: question.until, truncated, ..Default::default() };
    Ok((found, meta))
}

/// Reads the whole log as it was at one moment.
pub(super) fn verify(reader: &Reader, mark: Option<AuditMark>) -> Result<AuditVerdict, HistoryError> {
    let moment = reader.main.unchecked_transaction()?;
    let head = head(&moment)?;
    let mut before = AuditMark { number: 0, hash: AUDIT_BEGINNING };
    let mut touched = None;
    let mut statement = moment.prepare("SELECT * FROM audit ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let row = read(row)?;
        touched = problem(&row, before, head, mark).map(|problem| (before.number + 1, problem));
        if touched.is_some() {
            break;
        }
        before = AuditMark { number: row.number, hash: row.hash };
    }
    let touched = touched.or_else(|| problem_at_the_end(before, head, mark));
    Ok(AuditVerdict { last: head, touched })
}

/// What is wrong with a row that comes after `before`. Pure.
fn problem(row: &AuditRow, before: AuditMark, head: AuditMark, mark: Option<AuditMark>) -> Option<String> {
    let expected = before.number + 1;
    if row.number != expected {
        return Some(format!("it is missing; after row {} comes row {}", before.number, row.number.cast_signed()));
    }
    if row.number > head.number {
        return Some(format!("it was not written by the server, whose last row is {}", head.number));
    }
    if row.hash != row.follows(&before.hash) {
        return Some(match before.number {
            0 => "its content and its hash do not fit together".to_owned(),
            before => format!("its content and its hash do not fit together, or it does not follow from row {before}"),
        });
    }
    mark.filter(|mark| mark.number == row.number && mark.hash != row.hash)
        .map(|_| "it is not the row that it was: the log was written anew up to here".to_owned())
}

/// What is wrong after the last row. Pure.
fn problem_at_the_end(last: AuditMark, head: AuditMark, mark: Option<AuditMark>) -> Option<(u64, String)> {
    if last.number < head.number {
        return Some((last.number + 1, format!("it is missing, and all after it up to row {}", head.number)));
    }
    if last.hash != head.hash {
        return Some((last.number, "its hash is not the one that the server wrote last".to_owned()));
    }
    mark.filter(|mark| mark.number > last.number)
        .map(|mark| (mark.number, format!("it is missing; the last row is {}", last.number)))
}
