//! The audit log: who did and asked what, in rows that each follow from the one before.

use aws_lc_rs::digest;

use crate::{InvalidMessage, host::bounded, time, time::Timestamp, wire};

/// Longest actor or action that is asked for, bytes.
pub const AUDIT_TEXT_LIMIT: usize = 256;

/// SHA-256 over the hash of the row before and the content of a row.
pub type AuditHash = [u8; 32];

/// What the first row follows from.
pub const AUDIT_BEGINNING: AuditHash = [0; 32];

/// A row of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// 1 for the first, then without holes.
    pub number: u64,
    /// When, by the server's clock.
    pub at: Timestamp,
    /// Who: `operator/<role>/<name>`, `agent/<uuid>`, `token/<id>`, `local` for the Unix socket, `server`.
    pub actor: String,
    /// Where from; empty for the Unix socket.
    pub address: String,
    /// What, in a few words.
    pub action: String,
    /// The rest of it.
    pub detail: String,
    /// Rows that were answered; absent for orders, and for an answer that was still running.
    pub rows: Option<u64>,
    /// See [`AuditRow::follows`].
    pub hash: AuditHash,
}

impl AuditRow {
    /// The hash that this row must have after a row with the hash `before`: SHA-256 over that hash, the number and the
    /// moment (8 bytes each, big-endian), each text behind its length in bytes (8 bytes), and the rows: a zero, or a one
    /// and 8 bytes.
    pub fn follows(&self, before: &AuditHash) -> AuditHash {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(before);
        context.update(&self.number.to_be_bytes());
        context.update(&self.at.as_micros().to_be_bytes());
        for text in [&self.actor, &self.address, &self.action, &self.detail] {
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
        }
        match self.rows {
            None => context.update(&[0]),
            Some(rows) => {
                context.update(&[1]);
                context.update(&rows.to_be_bytes());
            }
        }
        let mut hash = AUDIT_BEGINNING;
        hash.copy_from_slice(context.finish().as_ref());
        hash
    }
}

/// What `audit` asks. All conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditQuestion {
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// The whole of an actor, or its last part.
    pub actor: Option<String>,
    /// The whole of an action.
    pub action: Option<String>,
    /// At most so many rows; absent means the server's limit.
    pub limit: Option<u32>,
}

/// A row and its hash, told once and kept elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditMark {
    /// Number of the row.
    pub number: u64,
    /// Its hash.
    pub hash: AuditHash,
}

/// What a reading of the whole log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditVerdict {
    /// How many rows there are, and the hash of the last.
    pub last: AuditMark,
    /// The first row that is not what it was, and what is wrong with it.
    pub touched: Option<(u64, String)>,
}

/// A hash in a field.
fn hash(field: &'static str, bytes: &[u8]) -> Result<AuditHash, InvalidMessage> {
    bytes.try_into().map_err(|_| InvalidMessage::new(field, format!("{} bytes are no SHA-256", bytes.len())))
}

impl From<AuditRow> for wire::AuditRow {
    fn from(row: AuditRow) -> wire::AuditRow {
        wire::AuditRow {
            number: row.number,
            at: Some(row.at.into()),
            actor: row.actor,
            address: row.address,
            action: row.action,
            detail: row.detail,
            rows: row.rows,
            hash: row.hash.to_vec(),
        }
    }
}

impl TryFrom<wire::AuditRow> for AuditRow {
    type Error = InvalidMessage;

    fn try_from(row: wire::AuditRow) -> Result<AuditRow, InvalidMessage> {
        Ok(AuditRow {
            number: row.number,
            at: time::required("AuditRow.at", row.at)?,
            actor: row.actor,
            address: row.address,
            action: row.action,
            detail: row.detail,
            rows: row.rows,
            hash: hash("AuditRow.hash", &row.hash)?,
        })
    }
}

impl From<AuditQuestion> for wire::ListAuditRequest {
    fn from(question: AuditQuestion) -> wire::ListAuditRequest {
        wire::ListAuditRequest {
            since: question.since.map(Into::into),
            until: question.until.map(Into::into),
            actor: question.actor.unwrap_or_default(),
            action: question.action.unwrap_or_default(),
            limit: question.limit.unwrap_or(0),
        }
    }
}

impl TryFrom<wire::ListAuditRequest> for AuditQuestion {
    type Error = InvalidMessage;

    fn try_from(request: wire::ListAuditRequest) -> Result<AuditQuestion, InvalidMessage> {
        let given = |field, text: String| -> Result<Option<String>, InvalidMessage> {
            Ok(Some(bounded(field, text, AUDIT_TEXT_LIMIT)?).filter(|text| !text.is_empty()))
        };
        Ok(AuditQuestion {
            since: time::optional("since", request.since)?,
            until: time::optional("until", request.until)?,
            actor: given("actor", request.actor)?,
            action: given("action", request.action)?,
            limit: Some(request.limit).filter(|limit| *limit > 0),
        })
    }
}

impl From<Option<AuditMark>> for wire::VerifyAuditRequest {
    fn from(mark: Option<AuditMark>) -> wire::VerifyAuditRequest {
        match mark {
            None => wire::VerifyAuditRequest::default(),
            Some(mark) => wire::VerifyAuditRequest { number: mark.number, hash: mark.hash.to_vec() },
        }
    }
}

/// The mark of a request, if it has one.
pub fn mark(request: &wire::VerifyAuditRequest) -> Result<Option<AuditMark>, InvalidMessage> {
    if request.number == 0 && request.hash.is_empty() {
        return Ok(None);
    }
    Ok(Some(AuditMark { number: request.number, hash: hash("hash", &request.hash)? }))
}

impl From<AuditVerdict> for wire::VerifyAuditResponse {
    fn from(verdict: AuditVerdict) -> wire::VerifyAuditResponse {
        let (touched, problem) = verdict.touched.unwrap_or_default();
        wire::VerifyAuditResponse { rows: verdict.last.number, hash: verdict.last.hash.to_vec(), touched, problem }
    }
}

impl TryFrom<wire::VerifyAuditResponse> for AuditVerdict {
    type Error = InvalidMessage;

    fn try_from(response: wire::VerifyAuditResponse) -> Result<AuditVerdict, InvalidMessage> {
        Ok(AuditVerdict {
            last: AuditMark { number: response.rows, hash: hash("VerifyAuditResponse.hash", &response.hash)? },
            touched: Some((response.touched, response.problem)).filter(|(number, _)| *number > 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> AuditRow {
        AuditRow {
            number: 7,
            at: Timestamp::from_micros(5),
            actor: "local".to_owned(),
            address: String::new(),
            action: "revoke host".to_owned(),
            detail: "web1".to_owned(),
            rows: Some(0),
            hash: AUDIT_BEGINNING,
        }
    }

    #[test]
    fn every_part_of_a_row_and_the_row_before_count() {
        let hash = row().follows(&AUDIT_BEGINNING);
        for (what, other) in [
            ("number", AuditRow { number: 8, ..row() }),
            ("moment", AuditRow { at: Timestamp::from_micros(6), ..row() }),
            ("actor", AuditRow { actor: "locaL".to_owned(), ..row() }),
            ("address", AuditRow { address: "192.0.2.1".to_owned(), ..row() }),
            ("action", AuditRow { action: "revoke hos".to_owned(), detail: "tweb1".to_owned(), ..row() }),
            ("detail", AuditRow { detail: "web2".to_owned(), ..row() }),
            ("rows", AuditRow { rows: None, ..row() }),
        ] {
            assert_ne!(other.follows(&AUDIT_BEGINNING), hash, "{what}");
        }
        assert_ne!(row().follows(&[1; 32]), hash);
        assert_eq!(AuditRow { hash: [9; 32], ..row() }.follows(&AUDIT_BEGINNING), hash);
    }

    #[test]
    fn rows_questions_and_verdicts_survive_the_wire() {
        for row in [row(), AuditRow { rows: None, hash: [3; 32], ..row() }] {
            assert_eq!(AuditRow::try_from(wire::AuditRow::from(row.clone())), Ok(row));
        }
        let question = AuditQuestion { actor: Some("alice".to_owned()), limit: Some(3), ..AuditQuestion::default() };
        assert_eq!(AuditQuestion::try_from(wire::ListAuditRequest::from(question.clone())), Ok(question));
        let last = AuditMark { number: 3, hash: [4; 32] };
        for touched in [None, Some((2, "it was changed".to_owned()))] {
            let verdict = AuditVerdict { last, touched };
            assert_eq!(AuditVerdict::try_from(wire::VerifyAuditResponse::from(verdict.clone())), Ok(verdict));
        }
        for given in [None, Some(last)] {
            assert_eq!(mark(&wire::VerifyAuditRequest::from(given)), Ok(given));
        }
        assert!(mark(&wire::VerifyAuditRequest { number: 1, hash: vec![1] }).is_err());
    }
}
