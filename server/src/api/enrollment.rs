//! Enrolment: a token against a certificate. Served to callers without one, under a name of its own.

use std::{sync::Arc, time::Duration};

use fleetsock_proto::{
    host::HOST_NAME_LIMIT,
    join::{TOKEN_ID_LIMIT, TokenSecret},
    wire::{self, enrollment_server::Enrollment},
};
use tonic::{Request, Response, Status};

use super::{Clock, peer, status};
use crate::{
    authority::{Authority, RequestedKey},
    history::{Claim, HistoryError, Registry, Standing, Subject},
    peer::{Caller, Peer},
};

/// The enrolment service.
pub struct EnrollmentService {
    /// Makes the certificates.
    pub authority: Arc<Authority>,
    /// Knows the tokens.
    pub registry: Arc<dyn Registry>,
    /// How long after its end a certificate can still be renewed.
    pub renewable: Duration,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for EnrollmentService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EnrollmentService")
    }
}

/// What every refused renewal is told: the log says why.
fn not_renewed() -> Status {
    Status::permission_denied("the certificate cannot be renewed; enrol this host anew with a new token")
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
            roots_der: self.authority.roots_der(),
        }))
    }

    async fn renew_expired(
        &self,
        request: Request<wire::RenewExpiredRequest>,
    ) -> Result<Response<wire::RenewExpiredResponse>, Status> {
        let (peer, at) = (peer(&request)?, (self.clock)());
        let address = peer.address;
        let request = request.into_inner();
        let refused = |reason: String| {
            tracing::warn!(?address, reason, "renewal of an expired certificate refused");
            not_renewed()
        };
        let shown = self.authority.proven(&request.certificate_der, &request.csr_der, &request.signature);
        let shown = shown.map_err(|error| refused(error.to_string()))?;
        if at.since(shown.expires_at) > self.renewable {
            return Err(refused(format!("agent/{} is over for too long", shown.host)));
        }
        let key = RequestedKey::of_request(&request.csr_der).map_err(status::of_authority)?;
        let subject = Subject::Host(shown.host);
        let issued = self.authority.issue(&subject, &key, at).map_err(status::of_authority)?;
        let caller = Caller::Agent { host: shown.host, serial: shown.serial.clone() };
        let by = Peer { caller, shown: None, ..peer }.actor(at);
        match self.registry.renew_expired(shown.host, shown.serial, issued.clone(), by).await.map_err(status::of)? {
            Standing::Good => {}
            standing => return Err(refused(format!("agent/{}: {standing:?}", shown.host))),
        }
        tracing::info!(host = %shown.host, ?address, "expired certificate renewed");
        Ok(Response::new(wire::RenewExpiredResponse {
            certificate_chain_der: issued.chain_der,
            expires_at: Some(issued.expires_at.into()),
            roots_der: self.authority.roots_der(),
        }))
    }
}
