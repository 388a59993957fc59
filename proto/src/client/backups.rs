//! Backups, as an operator asks for them.

use tonic::Streaming;

use super::OperatorClient;
use crate::{
    backup::{BackupContent, BackupName, BackupStep, request},
    connection::{CallError, Connection},
    wire,
};

/// A backup that is being made. Dropping it ends that.
#[derive(Debug)]
pub struct Backup {
    connection: Connection,
    steps: Streaming<wire::BackupResponse>,
}

impl Backup {
    /// What comes next; [`BackupStep::Made`] is the last.
    pub async fn next(&mut self) -> Result<BackupStep, CallError> {
        match self.steps.message().await {
            Ok(Some(message)) => Ok(BackupStep::try_from(message)?),
            Ok(None) => Err(CallError::Unavailable("the backup broke off".to_owned())),
            Err(status) => Err(self.connection.call_error(status)),
        }
    }
}

impl OperatorClient {
    /// Makes a backup on the server.
    pub async fn backup(&mut self, name: &BackupName, content: BackupContent) -> Result<Backup, CallError> {
        let steps = self.admin.backup(request(name, content)).await;
        Ok(Backup { connection: self.connection.clone(), steps: self.answered(steps)? })
    }
}
