//! Orders of admins. The history writes each into the audit log, in the transaction of its effect.

use std::sync::Arc;

use aws_lc_rs::rand;
use fleetsock_proto::{
    join::{JoinString, ServerAddress, TokenSecret},
    token::{NewToken, Operator},
    wire::{self, admin_server::Admin},
};
use tonic::{Request, Response, Status};

use super::{Clock, peer, status};
use crate::{
    authority::{Authority, RequestedKey},
    history::{Registry, Subject},
    live::{End, Live},
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_token(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Result<Response<wire::CreateTokenResponse>, Status> {
        let by = peer(&request)?.actor((self.clock)());
        let token = NewToken::try_from(request.into_inner()).map_err(status::of_invalid)?;
        let (token_id, secret) = (hex(&random::<8>()?), TokenSecret::from_array(random()?));
        let token = self.registry.create_token(token_id.clone(), secret.hash(), token, by).await.map_err(status::of)?;
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
        _request: Request<wire::ListTokensRequest>,
    ) -> Result<Response<wire::ListTokensResponse>, Status> {
        let tokens = self.registry.list_tokens().await.map_err(status::of)?;
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
        }))
    }

    async fn revoke_host(
        &self,
        request: Request<wire::RevokeHostRequest>,
    ) -> Result<Response<wire::RevokeHostResponse>, Status> {
        let by = peer(&request)?.actor((self.clock)());
        let request = request.into_inner();
        if request.reason.len() > REASON_LIMIT {
            return Err(Status::invalid_argument(format!("reason: more than {REASON_LIMIT} bytes")));
        }
        let host = self.registry.revoke_host(request.host, request.reason, by).await.map_err(status::of)?;
        self.live.end(host, End::Revoked);
        Ok(Response::new(wire::RevokeHostResponse { host_id: host.as_bytes().to_vec() }))
    }
}
