//! What went wrong, as callers see it. The cause goes to the log, what a caller can act on goes to him.

use fleetsock_proto::InvalidMessage;
use tonic::Status;

use crate::{authority::AuthorityError, history::HistoryError};

/// The status of an error of the history.
pub(crate) fn of(error: HistoryError) -> Status {
    let text = error.to_string();
    match error {
        HistoryError::Invalid(_) => Status::invalid_argument(text),
        HistoryError::NotFound(_) => Status::not_found(text),
        HistoryError::TokenRefused => Status::permission_denied(text),
        HistoryError::Revoked => Status::unauthenticated(text),
        HistoryError::Waits(_) => Status::failed_precondition(text),
        HistoryError::TooSlow(_) => Status::deadline_exceeded(text),
        HistoryError::TooMuch(_) => Status::resource_exhausted(text),
        HistoryError::Abandoned => Status::cancelled(text),
        HistoryError::Full | HistoryError::Closed => Status::unavailable(text),
        HistoryError::Engine(cause) => {
            tracing::error!(cause, "the history failed");
            Status::internal("the history failed; the server's log says why")
        }
    }
}

/// The status of a message that breaks the contract.
pub(crate) fn of_invalid(error: InvalidMessage) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The status of a certificate that was not made.
pub(crate) fn of_authority(error: AuthorityError) -> Status {
    match error {
        AuthorityError::Request(_) => Status::invalid_argument(error.to_string()),
        AuthorityError::Order(_) => Status::failed_precondition(error.to_string()),
        AuthorityError::Unrecorded(error) => of(error),
        cause => {
            tracing::error!(%cause, "the CA failed");
            Status::internal("the CA failed; the server's log says why")
        }
    }
}
