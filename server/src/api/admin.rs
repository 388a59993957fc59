//! Orders of admins. The history writes each into the audit log, in the transaction of its effect.

use std::sync::Arc;

use aws_lc_rs::rand;
use fleetsock_proto::{
    audit::{self, AuditQuestion},
    backup,
    join::{JoinString, ServerAddress, TokenSecret},
    root::Stragglers,
    token::{self, Operator},
    wire::{self, admin_server::Admin},
};
use tonic::{Request, Response, Status};

use super::{
    Clock,
    answering::{Answering, Asked, Messages},
    backups,
    inventory::{into, send_all},
    peer,
    roots::Exchange,
    status, wording,
};
use crate::{
    authority::{Authority, RequestedKey, Step},
    backup::{Backups, Wanted},
    history::{Registry, Subject},
    live::{Answers, End, Live},
};

/// Longest reason of an order, bytes.
const REASON_LIMIT: usize = 1024;

/// The admin service.
pub struct AdminService {
    /// Makes certificates.
    pub authority: Arc<Authority>,
    /// Keeps tokens, hosts and operators.
    pub registry: Arc<dyn Registry>,
    /// Ends the streams of revoked hosts.
    pub live: Arc<Live>,
    /// Ends the answers to revoked operators.
    pub answers: Arc<Answers>,
    /// Makes backups.
    pub backups: Arc<Backups>,
    /// The way of its answers.
    pub answering: Answering,
    /// Exchanges the root.
    pub exchange: Exchange,
    /// How others reach this server.
    pub address: ServerAddress,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for AdminService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminService")
    }
}

fn random<const N: usize>() -> Result<[u8; N], Status> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| Status::internal("no random numbers"))?;
    Ok(bytes)
}

/// A reason, unless it is a novel.
fn reason(text: String) -> Result<String, Status> {
    if text.len() > REASON_LIMIT {
        return Err(Status::invalid_argument(format!("reason: more than {REASON_LIMIT} bytes")));
    }
    Ok(text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tonic::async_trait]
impl Admin for AdminService {
    type ListAuditStream = Messages<wire::ListAuditResponse>;
    type BackupStream = Messages<wire::BackupResponse>;

    async fn create_token(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Result<Response<wire::CreateTokenResponse>, Status> {
        let by = peer(&request)?.actor((self.clock)());
        let (token, conditions) = token::new_token(request.into_inner()).map_err(status::of_invalid)?;
        let (token_id, secret) = (hex(&random::<8>()?), TokenSecret::from_array(random()?));
        let created = self.registry.create_token_under(token_id.clone(), secret.hash(), token, conditions, by).await;
        let token = created.map_err(status::of)?;
        let join = JoinString {
            address: self.address.clone(),
            trust_domain: self.authority.trust_domain().clone(),
            token_id,
            secret,
            pin: self.authority.pin(),
        };
        Ok(Response::new(wire::CreateTokenResponse { token: Some(token.into()), join: join.to_string() }))
    }

    async fn list_tokens(
        &self,
        request: Request<wire::ListTokensRequest>,
    ) -> Result<Response<wire::ListTokensResponse>, Status> {
        let tokens = self.registry.list_tokens().await.map_err(status::of)?;
        self.answering.record(&peer(&request)?, "list tokens", String::new(), tokens.len()).await?;
        Ok(Response::new(wire::ListTokensResponse { tokens: tokens.into_iter().map(Into::into).collect() }))
    }

    async fn revoke_token(
        &self,
        request: Request<wire::RevokeTokenRequest>,
    ) -> Result<Response<wire::RevokeTokenResponse>, Status> {
        let by = peer(&request)?.actor((self.clock)());
        self.registry.revoke_token(request.into_inner().token_id, by).await.map_err(status::of)?;
        Ok(Response::new(wire::RevokeTokenResponse {}))
    }

    async fn issue_operator(
        &self,
        request: Request<wire::IssueOperatorRequest>,
    ) -> Result<Response<wire::IssueOperatorResponse>, Status> {
        let at = (self.clock)();
        let by = peer(&request)?.actor(at);
        let request = request.into_inner();
        let operator = request.operator.ok_or_else(|| Status::invalid_argument("operator: is required"))?;
        let operator = Operator::try_from(operator).map_err(status::of_invalid)?;
        let key = RequestedKey::of_request(&request.csr_der).map_err(status::of_authority)?;
        let issued =
            self.authority.issue(&Subject::Operator(operator.clone()), &key, at).map_err(status::of_authority)?;
        self.registry.add_operator(operator, issued.clone(), by).await.map_err(status::of)?;
        Ok(Response::new(wire::IssueOperatorResponse {
            certificate_chain_der: issued.chain_der,
            root_der: self.authority.root().to_vec(),
            trust_domain: self.authority.trust_domain().to_string(),
            expires_at: Some(issued.expires_at.into()),
            address: self.address.to_string(),
            roots_der: self.authority.roots_der(),
        }))
    }

    async fn revoke_host(
        &self,
        request: Request<wire::RevokeHostRequest>,
    ) -> Result<Response<wire::RevokeHostResponse>, Status> {
        let by = peer(&request)?.actor((self.clock)());
        let request = request.into_inner();
        let reason = reason(request.reason)?;
        let host = self.registry.revoke_host(request.host, reason, by).await.map_err(status::of)?;
        self.live.end(host, End::Revoked);
        Ok(Response::new(wire::RevokeHostResponse { host_id: host.as_bytes().to_vec() }))
    }

    async fn approve_host(
        &self,
        request: Request<wire::ApproveHostRequest>,
    ) -> Result<Response<wire::ApproveHostResponse>, Status> {
        let by = peer(&request)?.actor((self.clock)());
        let host = self.registry.approve_host(request.into_inner().host, by).await.map_err(status::of)?;
        Ok(Response::new(wire::ApproveHostResponse { host_id: host.as_bytes().to_vec() }))
    }

    async fn list_operators(
        &self,
        request: Request<wire::ListOperatorsRequest>,
    ) -> Result<Response<wire::ListOperatorsResponse>, Status> {
        let certificates = self.registry.list_operators().await.map_err(status::of)?;
        self.answering.record(&peer(&request)?, "list operators", String::new(), certificates.len()).await?;
        Ok(Response::new(wire::ListOperatorsResponse { certificates: into(certificates) }))
    }

    async fn revoke_operator(
        &self,
        request: Request<wire::RevokeOperatorRequest>,
    ) -> Result<Response<wire::RevokeOperatorResponse>, Status> {
        let by = peer(&request)?.actor((self.clock)());
        let request = request.into_inner();
        let reason = reason(request.reason)?;
        let revoked = self.registry.revoke_operator(request.name.clone(), reason, by).await.map_err(status::of)?;
        self.answers.end(&request.name);
        let token::RevokedOperator { certificates, tokens } = revoked;
        Ok(Response::new(wire::RevokeOperatorResponse { certificates, tokens }))
    }

    async fn list_audit(
        &self,
        request: Request<wire::ListAuditRequest>,
    ) -> Result<Response<Self::ListAuditStream>, Status> {
        let peer = peer(&request)?;
        let question = AuditQuestion::try_from(request.into_inner()).map_err(status::of_invalid)?;
        let asked = Asked { action: "list audit", detail: wording::audit(&question) };
        let (registry, now) = (Arc::clone(&self.registry), (self.clock)());
        self.answering
            .answer(
                &peer,
                asked,
                move |rows| async move { send_all(registry.list_audit(question, now).await?, rows).await },
                |rows, meta| wire::ListAuditResponse { rows: into(rows), meta: meta.map(Into::into) },
            )
            .await
    }

    async fn verify_audit(
        &self,
        request: Request<wire::VerifyAuditRequest>,
    ) -> Result<Response<wire::VerifyAuditResponse>, Status> {
        let peer = peer(&request)?;
        let mark = audit::mark(request.get_ref()).map_err(status::of_invalid)?;
        let verdict = self.registry.verify_audit(mark).await.map_err(status::of)?;
        let rows = usize::try_from(verdict.last.number).unwrap_or(usize::MAX);
        let found = match &verdict.touched {
            None => "whole".to_owned(),
            Some((number, problem)) => format!("row {number}: {problem}"),
        };
        // What was found is told even when the log cannot be written, which may be what somebody did to it.
        if self.answering.record(&peer, "verify audit", found.clone(), rows).await.is_err() {
            tracing::error!(found, "a reading of the audit log was not recorded");
        }
        Ok(Response::new(verdict.into()))
    }
    async fn backup(&self, request: Request<wire::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let peer = peer(&request)?;
        let (name, content) = backup::requested(request.get_ref()).map_err(status::of_invalid)?;
        let live = self.answering.begin(&peer).await?;
        let wanted = Wanted { name, content, by: peer.actor((self.clock)()) };
        Ok(Response::new(backups::make(Arc::clone(&self.backups), &self.answering, live, wanted)))
    }

    async fn list_roots(
        &self,
        request: Request<wire::ListRootsRequest>,
    ) -> Result<Response<wire::ListRootsResponse>, Status> {
        let roots = self.exchange.list().await?;
        self.answering.record(&peer(&request)?, "list roots", String::new(), roots.len()).await?;
        Ok(Response::new(wire::ListRootsResponse { roots: into(roots) }))
    }

    async fn prepare_root(
        &self,
        request: Request<wire::PrepareRootRequest>,
    ) -> Result<Response<wire::PrepareRootResponse>, Status> {
        let by = peer(&request)?.actor((self.clock)());
        let (root, _) = self.exchange.turn(Step::Prepare, Stragglers::Protect, by).await?;
        Ok(Response::new(wire::PrepareRootResponse { root: Some(root.into()) }))
    }

    async fn activate_root(
        &self,
        request: Request<wire::ActivateRootRequest>,
    ) -> Result<Response<wire::ActivateRootResponse>, Status> {
        let by = peer(&request)?.actor((self.clock)());
        let stragglers = Stragglers::of_wire(request.into_inner().strand);
        let (root, stranded) = self.exchange.turn(Step::Activate, stragglers, by).await?;
        Ok(Response::new(wire::ActivateRootResponse { root: Some(root.into()), stranded: Some(stranded.into()) }))
    }

    async fn retire_root(
        &self,
        request: Request<wire::RetireRootRequest>,
    ) -> Result<Response<wire::RetireRootResponse>, Status> {
        let by = peer(&request)?.actor((self.clock)());
        let stragglers = Stragglers::of_wire(request.into_inner().strand);
        let (root, stranded) = self.exchange.turn(Step::Retire, stragglers, by).await?;
        Ok(Response::new(wire::RetireRootResponse { root: Some(root.into()), stranded: Some(stranded.into()) }))
    }

    async fn abort_root(
        &self,
        request: Request<wire::AbortRootRequest>,
    ) -> Result<Response<wire::AbortRootResponse>, Status> {
        let by = peer(&request)?.actor((self.clock)());
        let (root, _) = self.exchange.turn(Step::Abort, Stragglers::Protect, by).await?;
        Ok(Response::new(wire::AbortRootResponse { root: Some(root.into()) }))
    }
}
