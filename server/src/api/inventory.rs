//! Questions of operators: rows in chunks, and what the answer covers at its end.

use std::{sync::Arc, time::Duration};

use fleetsock_proto::{
    answer::AnswerMeta,
    condition::Condition,
    question::{self, ChangeQuestion, CoverageQuestion, PortQuestion, SessionQuestion, SessionView, SummaryQuestion},
    session::Session,
    wire::{self, inventory_server::Inventory},
};
use tonic::{Request, Response, Status};

pub use super::answering::Messages;
use super::{
    answering::{Answering, Asked, Message},
    peer, status, wording,
};
use crate::{
    authority::{Authority, RequestedKey},
    health::Health,
    history::{CHUNK_ROWS, History, HistoryError, OperatorRenewal, Rows, Subject},
    peer::{Caller, Peer},
};

/// The inventory service.
pub struct InventoryService {
    /// What it asks.
    pub history: Arc<dyn History>,
    /// The way of its answers.
    pub answering: Answering,
    /// Makes the next certificates of operators.
    pub authority: Arc<Authority>,
    /// How the server is.
    pub health: Arc<Health>,
}

impl std::fmt::Debug for InventoryService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InventoryService")
    }
}

/// Sends rows that are known already, in chunks.
pub(super) async fn send_all<T>(
    (mut all, meta): (Vec<T>, AnswerMeta),
    rows: Rows<T>,
) -> Result<AnswerMeta, HistoryError> {
    while !all.is_empty() {
        let rest = all.split_off(all.len().min(CHUNK_ROWS));
        rows.send(all).await.map_err(|_| HistoryError::Abandoned)?;
        all = rest;
    }
    Ok(meta)
}

pub(super) fn into<A: Into<B>, B>(rows: Vec<A>) -> Vec<B> {
    rows.into_iter().map(Into::into).collect()
}

fn sessions(sessions: Vec<wire::SessionRecord>, meta: Option<AnswerMeta>) -> wire::ListSessionsResponse {
    wire::ListSessionsResponse { sessions, meta: meta.map(Into::into) }
}

impl InventoryService {
    /// The next certificate of whoever asks, with the name and the role of the one that he showed.
    async fn renew(&self, peer: Peer, csr_der: &[u8]) -> Result<wire::RenewOperatorResponse, Status> {
        let at = self.answering.now();
        let by = peer.actor(at);
        let Caller::Operator { operator, serial } = peer.caller else {
            return Err(Status::failed_precondition("there is no certificate to renew"));
        };
        let Some(before) = self.authority.renew_before() else {
            return Err(Status::failed_precondition("this certificate need not be renewed"));
        };
        let key = RequestedKey::of_request(csr_der).map_err(status::of_authority)?;
        let subject = Subject::Operator(operator.clone());
        let issued = self.authority.issue(&subject, &key, at).map_err(status::of_authority)?;
        let certificate = issued.clone();
        // Callers see whole seconds of when theirs was made.
        let made_before = before.plus(Duration::from_secs(1));
        let renewal = OperatorRenewal { operator, shown: serial, made_before, certificate };
        self.answering.registry.renew_operator(renewal, by).await.map_err(status::of)?;
        Ok(wire::RenewOperatorResponse {
            certificate_chain_der: issued.chain_der,
            expires_at: Some(issued.expires_at.into()),
            roots_der: self.authority.roots_der(),
        })
    }
}

#[tonic::async_trait]
impl Inventory for InventoryService {
    type ListHostsStream = Messages<wire::ListHostsResponse>;
    type ListPortsStream = Messages<wire::ListPortsResponse>;
    type ListSessionsStream = Messages<wire::ListSessionsResponse>;
    type ListCoverageStream = Messages<wire::ListCoverageResponse>;
    type ListChangesStream = Messages<wire::ListChangesResponse>;
    type SummarizeStream = Messages<wire::SummarizeResponse>;

    // Like the health service it tells nothing of the fleet, and is not in the audit log.
    async fn show_server(
        &self,
        _request: Request<wire::ShowServerRequest>,
    ) -> Result<Response<wire::ShowServerResponse>, Status> {
        let unready = self.health.unready().await.iter().map(ToString::to_string).collect();
        Ok(Response::new(Condition { unready, version: env!("CARGO_PKG_VERSION").to_owned() }.into()))
    }

    async fn list_hosts(
        &self,
        request: Request<wire::ListHostsRequest>,
    ) -> Result<Response<Self::ListHostsStream>, Status> {
        let peer = peer(&request)?;
        let question = question::hosts_question(request.into_inner()).map_err(status::of_invalid)?;
        let asked = Asked { action: "list hosts", detail: wording::hosts(&question) };
        let (history, now) = (Arc::clone(&self.history), self.answering.now());
        self.answering
            .answer(
                &peer,
                asked,
                move |rows| async move { send_all(history.list_hosts(question, now).await?, rows).await },
                |rows, meta| wire::ListHostsResponse { hosts: into(rows), meta: meta.map(Into::into) },
            )
            .await
    }

    async fn renew_operator(
        &self,
        request: Request<wire::RenewOperatorRequest>,
    ) -> Result<Response<wire::RenewOperatorResponse>, Status> {
        let peer = peer(&request)?;
        Ok(Response::new(self.renew(peer, &request.into_inner().csr_der).await?))
    }

    async fn list_ports(
        &self,
        request: Request<wire::ListPortsRequest>,
    ) -> Result<Response<Self::ListPortsStream>, Status> {
        let peer = peer(&request)?;
        let question = PortQuestion::try_from(request.into_inner()).map_err(status::of_invalid)?;
        let asked = Asked { action: "list ports", detail: wording::ports(&question) };
        let (history, now) = (Arc::clone(&self.history), self.answering.now());
        self.answering
            .answer(
                &peer,
                asked,
                move |rows| async move { history.list_ports(question, now, rows).await },
                |rows, meta| wire::ListPortsResponse { ports: into(rows), meta: meta.map(Into::into) },
            )
            .await
    }

    async fn list_sessions(
        &self,
        request: Request<wire::ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, Status> {
        let peer = peer(&request)?;
        let question = SessionQuestion::try_from(request.into_inner()).map_err(status::of_invalid)?;
        let asked = Asked { action: "list sessions", detail: wording::sessions(&question) };
        let (history, now) = (Arc::clone(&self.history), self.answering.now());
        let message: Message<Session, wire::ListSessionsResponse> = match question.view {
            SessionView::Full => |rows, meta| sessions(into(rows), meta),
            SessionView::Basic => |rows, meta| sessions(rows.into_iter().map(Session::into_basic).collect(), meta),
        };
        let answer = move |rows| async move { history.list_sessions(question, now, rows).await };
        self.answering.answer(&peer, asked, answer, message).await
    }

    async fn list_coverage(
        &self,
        request: Request<wire::ListCoverageRequest>,
    ) -> Result<Response<Self::ListCoverageStream>, Status> {
        let peer = peer(&request)?;
        let question = CoverageQuestion::try_from(request.into_inner()).map_err(status::of_invalid)?;
        let asked = Asked { action: "list coverage", detail: wording::coverage(&question) };
        let (history, now) = (Arc::clone(&self.history), self.answering.now());
        self.answering
            .answer(
                &peer,
                asked,
                move |rows| async move { send_all(history.list_gaps(question, now).await?, rows).await },
                |rows, meta| wire::ListCoverageResponse { gaps: into(rows), meta: meta.map(Into::into) },
            )
            .await
    }

    async fn list_changes(
        &self,
        request: Request<wire::ListChangesRequest>,
    ) -> Result<Response<Self::ListChangesStream>, Status> {
        let peer = peer(&request)?;
        let question = ChangeQuestion::try_from(request.into_inner()).map_err(status::of_invalid)?;
        let asked = Asked { action: "list changes", detail: wording::changes(&question) };
        let (history, now) = (Arc::clone(&self.history), self.answering.now());
        self.answering
            .answer(
                &peer,
                asked,
                move |rows| async move { history.list_changes(question, now, rows).await },
                |rows, meta| wire::ListChangesResponse { changes: into(rows), meta: meta.map(Into::into) },
            )
            .await
    }

    async fn summarize(
        &self,
        request: Request<wire::SummarizeRequest>,
    ) -> Result<Response<Self::SummarizeStream>, Status> {
        let peer = peer(&request)?;
        let question = SummaryQuestion::try_from(request.into_inner()).map_err(status::of_invalid)?;
        let asked = Asked { action: "summarize", detail: wording::summary(&question) };
        let (history, now) = (Arc::clone(&self.history), self.answering.now());
        self.answering
            .answer(
                &peer,
                asked,
                move |rows| async move { history.summarize(question, now, rows).await },
                |rows, meta| wire::SummarizeResponse { sums: into(rows), meta: meta.map(Into::into) },
            )
            .await
    }
}
