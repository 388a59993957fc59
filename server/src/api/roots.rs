//! Orders about the root CAs. They change files, not the history: each is in the audit log before it is carried out, and
//! one that cannot be written down is not carried out.

use std::sync::Arc;

use fleetsock_proto::{
    identity,
    join::Pin,
    root::{Root, RootState},
};
use rustls_pki_types::CertificateDer;
use tokio::{runtime::Handle, task::spawn_blocking};
use tonic::Status;

use super::status;
use crate::{
    authority::{Authority, AuthorityError, Prepared},
    history::{Actor, AuditEntry, HistoryError, Registry},
};

fn root(state: RootState, certificate: &CertificateDer<'_>, pin: Pin) -> Result<Root, Status> {
    let expires_at = identity::expiry(certificate).map_err(|error| {
        tracing::error!(%error, "a root cannot be read");
        Status::internal("a root cannot be read; the server's log says why")
    })?;
    Ok(Root { state, pin, expires_at })
}

/// The roots that are handed out, the one in use first.
pub(super) fn list(authority: &Authority) -> Result<Vec<Root>, Status> {
    let active = root(RootState::Active, authority.root(), authority.pin());
    let prepared = authority.prepared().map(|prepared| root(RootState::Prepared, &prepared.root, prepared.pin));
    std::iter::once(active).chain(prepared).collect()
}

/// Makes the root that is to take the place of the one in use.
pub(super) async fn prepare(
    authority: &Arc<Authority>,
    registry: &Arc<dyn Registry>,
    by: Actor,
) -> Result<Root, Status> {
    let (at, record) = (by.at, recorder(registry, by, "prepare root"));
    carry_out(authority, move |authority| authority.prepare(at, record)).await
}

/// Drops the prepared root.
pub(super) async fn abort(authority: &Arc<Authority>, registry: &Arc<dyn Registry>, by: Actor) -> Result<Root, Status> {
    let record = recorder(registry, by, "abort root");
    carry_out(authority, move |authority| authority.abort(record)).await
}

/// Changes the CA's files where that keeps nobody waiting, and to the end even when the one who ordered it has left.
async fn carry_out(
    authority: &Arc<Authority>,
    order: impl FnOnce(&Authority) -> Result<Prepared, AuthorityError> + Send + 'static,
) -> Result<Root, Status> {
    let authority = Arc::clone(authority);
    let done = spawn_blocking(move || order(&authority)).await;
    let prepared = done.map_err(|_| Status::internal("the order was not carried out"))?;
    let prepared = prepared.map_err(status::of_authority)?;
    root(RootState::Prepared, &prepared.root, prepared.pin)
}

/// Writes an order into the audit log, from a thread that may wait.
fn recorder(
    registry: &Arc<dyn Registry>,
    by: Actor,
    action: &'static str,
) -> impl FnOnce(&Prepared) -> Result<(), HistoryError> + Send + use<> {
    let (registry, runtime) = (Arc::clone(registry), Handle::current());
    move |prepared| {
        let detail = prepared.pin.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        runtime.block_on(registry.record(vec![AuditEntry { by, action, detail, rows: None }]))
    }
}
