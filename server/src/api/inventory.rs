//! Questions of operators: rows in chunks, and what the answer covers at its end.

use std::{future::Future, pin::Pin, sync::Arc};

use fleetsock_proto::{
    answer::AnswerMeta,
    question::{CoverageQuestion, PortQuestion, SessionQuestion},
    wire::{self, inventory_server::Inventory},
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::{Clock, status};
use crate::history::{CHUNK_ROWS, History, HistoryError, Rows};

/// Chunks that wait for a slow reader; the question itself then waits.
const CHUNKS_AHEAD: usize = 4;

/// The inventory service.
pub struct InventoryService {
    /// What it asks.
    pub history: Arc<dyn History>,
    /// Where its questions run, to be waited for when the server stops.
    pub tasks: TaskTracker,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for InventoryService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InventoryService")
    }
}

/// A stream of messages to an operator.
pub type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// Makes a message of rows, or of what an answer covers.
type Message<T, M> = fn(Vec<T>, Option<AnswerMeta>) -> M;

impl InventoryService {
    /// Runs a question whose rows arrive while it runs.
    fn stream<T, M, F>(&self, question: impl FnOnce(Rows<T>) -> F, message: Message<T, M>) -> Response<Messages<M>>
    where
        T: Send + 'static,
        M: Send + 'static,
        F: Future<Output = Result<AnswerMeta, HistoryError>> + Send + 'static,
    {
        let (rows, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let (end, ended) = mpsc::channel(1);
        let question = question(rows);
        self.tasks.spawn(async move {
            let result = question.await.map_err(status::of);
            if end.send(result).await.is_err() {
                tracing::debug!("an answer was not waited for");
            }
        });
        let rows = ReceiverStream::new(chunks).map(move |rows| Ok(message(rows, None)));
        let end = ReceiverStream::new(ended).map(move |end| end.map(|meta| message(Vec::new(), Some(meta))));
        Response::new(Box::pin(rows.chain(end)))
    }

    /// Sends an answer that is known already.
    fn ready<T, M>(&self, (mut rows, meta): (Vec<T>, AnswerMeta), message: Message<T, M>) -> Response<Messages<M>>
    where
        T: Send + 'static,
        M: Send + 'static,
    {
        let mut messages = Vec::new();
        while !rows.is_empty() {
            let rest = rows.split_off(rows.len().min(CHUNK_ROWS));
            messages.push(Ok(message(rows, None)));
            rows = rest;
        }
        messages.push(Ok(message(Vec::new(), Some(meta))));
        Response::new(Box::pin(tokio_stream::iter(messages)))
    }
}

fn into<A: Into<B>, B>(rows: Vec<A>) -> Vec<B> {
    rows.into_iter().map(Into::into).collect()
}

#[tonic::async_trait]
impl Inventory for InventoryService {
    type ListHostsStream = Messages<wire::ListHostsResponse>;
    type ListPortsStream = Messages<wire::ListPortsResponse>;
    type ListSessionsStream = Messages<wire::ListSessionsResponse>;
    type ListCoverageStream = Messages<wire::ListCoverageResponse>;

    async fn list_hosts(
        &self,
        request: Request<wire::ListHostsRequest>,
    ) -> Result<Response<Self::ListHostsStream>, Status> {
        let hosts = request.into_inner().hosts.unwrap_or_default().into();
        let answer = self.history.list_hosts(hosts, (self.clock)()).await.map_err(status::of)?;
        Ok(self.ready(answer, |rows, meta| wire::ListHostsResponse { hosts: into(rows), meta: meta.map(Into::into) }))
    }

    async fn list_ports(
        &self,
        request: Request<wire::ListPortsRequest>,
    ) -> Result<Response<Self::ListPortsStream>, Status> {
        let question = PortQuestion::try_from(request.into_inner()).map_err(status::of_invalid)?;
        let (history, now) = (Arc::clone(&self.history), (self.clock)());
        Ok(self.stream(
            move |rows| async move { history.list_ports(question, now, rows).await },
            |rows, meta| wire::ListPortsResponse { ports: into(rows), meta: meta.map(Into::into) },
        ))
    }

    async fn list_sessions(
        &self,
        request: Request<wire::ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, Status> {
        let question = SessionQuestion::try_from(request.into_inner()).map_err(status::of_invalid)?;
        let (history, now) = (Arc::clone(&self.history), (self.clock)());
        Ok(self.stream(
            move |rows| async move { history.list_sessions(question, now, rows).await },
            |rows, meta| wire::ListSessionsResponse { sessions: into(rows), meta: meta.map(Into::into) },
        ))
    }

    async fn list_coverage(
        &self,
        request: Request<wire::ListCoverageRequest>,
    ) -> Result<Response<Self::ListCoverageStream>, Status> {
        let question = CoverageQuestion::try_from(request.into_inner()).map_err(status::of_invalid)?;
        let answer = self.history.list_gaps(question, (self.clock)()).await.map_err(status::of)?;
        Ok(self.ready(answer, |rows, meta| wire::ListCoverageResponse { gaps: into(rows), meta: meta.map(Into::into) }))
    }
}
