//! Orders about the root CAs, and how an operator keeps up with them.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use tonic::metadata::MetadataMap;

use super::{CERTIFICATES_BYTES_LIMIT, CallError, ConnectError, OperatorClient, Target};
use crate::{
    InvalidMessage,
    identity::{Identity, Key},
    root::{Behind, RENEW_BEFORE, Root, Stragglers},
    time::Timestamp,
    wire,
};

/// What answers said of which certificates are to be renewed; clones of it hear the same.
#[derive(Debug, Clone, Default)]
pub struct RenewalWatch(Arc<AtomicI64>);

impl RenewalWatch {
    pub(super) fn note(&self, answer: &MetadataMap) {
        let told = answer.get(RENEW_BEFORE).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        if let Some(before) = told {
            self.0.fetch_max(before, Ordering::Relaxed);
        }
    }

    /// Whether this identity is to be renewed before its time, as far as the answers said.
    pub fn asks_for(&self, identity: &Identity) -> bool {
        identity.begins_at < Timestamp::from_micros(self.0.load(Ordering::Relaxed))
    }
}

/// The same operator with a new key and certificate, and the roots that the server has now.
pub async fn renew_operator(identity: &Identity) -> Result<Identity, ConnectError> {
    let key = Key::generate()?;
    let request = wire::RenewOperatorRequest { csr_der: key.request_der()? };
    let copy = identity.duplicate()?;
    let client = OperatorClient::connect(Target::Remote(Box::new(copy))).await?;
    let inventory = client.inventory.clone();
    let response = inventory.max_decoding_message_size(CERTIFICATES_BYTES_LIMIT).renew_operator(request).await;
    let response = client.answered(response)?;
    let mut renewed = identity.renewed(response.certificate_chain_der, key)?;
    if renewed.spiffe_id != identity.spiffe_id {
        let problem = format!("is for {}", renewed.spiffe_id);
        let field = "RenewOperatorResponse.certificate_chain_der";
        return Err(CallError::from(InvalidMessage::new(field, problem)).into());
    }
    renewed.trust(&response.roots_der)?;
    Ok(renewed)
}

fn root(field: &'static str, root: Option<wire::Root>) -> Result<Root, CallError> {
    Ok(Root::try_from(root.ok_or_else(|| InvalidMessage::missing(field))?)?)
}

fn stranded(behind: Option<wire::Behind>) -> Result<Behind, CallError> {
    Ok(behind.map(Behind::try_from).transpose()?.unwrap_or_default())
}

impl OperatorClient {
    /// What the answers to this client say of renewals.
    pub fn renewal_watch(&self) -> RenewalWatch {
        self.renewals.clone()
    }

    /// The root CAs of the fleet, the one in use first.
    pub async fn list_roots(&mut self) -> Result<Vec<Root>, CallError> {
        let response = self.admin.list_roots(wire::ListRootsRequest {}).await;
        Ok(self.answered(response)?.roots.into_iter().map(Root::try_from).collect::<Result<_, _>>()?)
    }

    /// Makes the root that is to take the place of the one in use.
    pub async fn prepare_root(&mut self) -> Result<Root, CallError> {
        let response = self.admin.prepare_root(wire::PrepareRootRequest {}).await;
        root("PrepareRootResponse.root", self.answered(response)?.root)
    }

    /// Issues under the prepared root from now on; tells who was stranded by that.
    pub async fn activate_root(&mut self, stragglers: Stragglers) -> Result<(Root, Behind), CallError> {
        let request = wire::ActivateRootRequest { strand: stragglers.to_wire() };
        let response = self.admin.activate_root(request).await;
        let response = self.answered(response)?;
        Ok((root("ActivateRootResponse.root", response.root)?, stranded(response.stranded)?))
    }

    /// Drops the root before; tells who was stranded by that.
    pub async fn retire_root(&mut self, stragglers: Stragglers) -> Result<(Root, Behind), CallError> {
        let request = wire::RetireRootRequest { strand: stragglers.to_wire() };
        let response = self.admin.retire_root(request).await;
        let response = self.answered(response)?;
        Ok((root("RetireRootResponse.root", response.root)?, stranded(response.stranded)?))
    }

    /// Drops the prepared root.
    pub async fn abort_root(&mut self) -> Result<Root, CallError> {
        let response = self.admin.abort_root(wire::AbortRootRequest {}).await;
        root("AbortRootResponse.root", self.answered(response)?.root)
    }
}
