//! Enrolment: a token against a certificate. Served to callers without one, under a name of its own.

use std::sync::Arc;

use fleetsock_proto::{
    host::HOST_NAME_LIMIT,
    join::{TOKEN_ID_LIMIT, TokenSecret},
    wire::{self, enrollment_server::Enrollment},
};
use tonic::{Request, Response, Status};

use super::{Clock, peer, status};
use crate::{
    authority::{Authority, RequestedKey},
    history::{Claim, HistoryError, Registry},
};

/// The enrolment service.
pub struct EnrollmentService {
    /// Makes the certificates.
    pub authority: Arc<Authority>,
    /// Knows the tokens.
    pub registry: Arc<dyn Registry>,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for EnrollmentService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EnrollmentService")
    }
}

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn enroll(&self, request: Request<wire::EnrollRequest>) -> Result<Response<wire::EnrollResponse>, Status> {
        let address = peer(&request)?.address.map(|address| address.to_string()).unwrap_or_default();
        let at = (self.clock)();
        let request = request.into_inner();
        if request.host_name.len() > HOST_NAME_LIMIT {
            return Err(Status::invalid_argument(format!("host_name: more than {HOST_NAME_LIMIT} bytes")));
        }
        let key = RequestedKey::of_request(&request.csr_der).map_err(status::of_authority)?;
        // A secret of another length is as wrong as any other, and gets the same words.
        let secret = <[u8; 32]>::try_from(request.token_secret.as_slice()).map(TokenSecret::from_array);
        let (Ok(secret), true) = (secret, request.token_id.len() <= TOKEN_ID_LIMIT) else {
            return Err(status::of(HistoryError::TokenRefused));
        };
        let claim = Claim {
            token_id: request.token_id,
            secret_hash: secret.hash(),
            key_hash: key.hash(),
            host_name: request.host_name,
            address: address.clone(),
            at,
        };
        let token_id = claim.token_id.clone();
        let authority = Arc::clone(&self.authority);
        let issue = Box::new(move |subject: &_| authority.issue(subject, &key, at).map_err(|error| error.to_string()));
        let issued = self.registry.redeem(claim, issue).await.map_err(|error| {
            tracing::warn!(token_id, address, %error, "enrolment refused");
            status::of(error)
        })?;
        tracing::info!(token_id, address, spiffe_id = issued.spiffe_id, "enrolled");
        Ok(Response::new(wire::EnrollResponse {
            certificate_chain_der: issued.chain_der,
            root_der: self.authority.root().to_vec(),
            trust_domain: self.authority.trust_domain().to_string(),
            spiffe_id: issued.spiffe_id,
            expires_at: Some(issued.expires_at.into()),
        }))
    }
}
