//! The calls of agents. The stream is read and written in [`super::stream`], all else by tonic.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use fleetsock_proto::{codec::FrugalCodec, wire};
use tonic::{
    Request, Status,
    body::Body,
    server::{Grpc, NamedService},
};
use tower::{Service, service_fn};

use super::AgentService;
use crate::policy::{RENEWAL, SESSION};

/// What agents may call.
#[derive(Debug, Clone)]
pub struct AgentCalls {
    service: Arc<AgentService>,
    limit: usize,
}

impl AgentCalls {
    /// The calls of a service that reads messages of at most so many bytes.
    pub fn new(service: AgentService, limit: usize) -> AgentCalls {
        AgentCalls { service: Arc::new(service), limit }
    }

    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        let AgentCalls { service, limit } = self;
        if request.uri().path() == SESSION {
            service.session(Request::from_http(request), limit).await.unwrap_or_else(Status::into_http)
        } else if request.uri().path() == RENEWAL {
            let codec = FrugalCodec::<wire::RenewCertificateResponse, wire::RenewCertificateRequest>::default();
            let renew = service_fn(|request| {
                let service = Arc::clone(&service);
                async move { service.renew_certificate(request).await }
            });
            Grpc::new(codec).max_decoding_message_size(limit).unary(renew, request).await
        } else {
            Status::unimplemented("agents have no such call").into_http()
        }
    }
}

impl NamedService for AgentCalls {
    const NAME: &'static str = "fleetsock.v1.Agent";
}

impl Service<http::Request<Body>> for AgentCalls {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let calls = self.clone();
        Box::pin(async move { Ok(calls.answer(request).await) })
    }
}
