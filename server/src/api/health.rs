//! The health service of gRPC (grpc/doc/health-checking.md), for those who speak gRPC anyhow: what `/readyz` says.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server};

use crate::health::Health;

/// How often it is looked whether the answer is another one, for those who watch.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest watch: whoever wants more asks again.
const WATCH: Duration = Duration::from_secs(3600);

/// The health service.
#[derive(Debug, Clone)]
pub struct HealthService {
    health: Arc<Health>,
    tasks: TaskTracker,
    services: Arc<HashSet<&'static str>>,
}

impl HealthService {
    /// Tells of a server's health; watches run in `tasks`.
    pub fn new(health: Arc<Health>, tasks: TaskTracker) -> HealthService {
        let services = ["", "fleetsock.v1.Inventory", "fleetsock.v1.Admin", "fleetsock.v1.Agent"];
        HealthService { health, tasks, services: Arc::new(services.into()) }
    }

    async fn status(&self) -> ServingStatus {
        if self.health.unready().await.is_empty() { ServingStatus::Serving } else { ServingStatus::NotServing }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl health_server::Health for HealthService {
    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !self.services.contains(service.as_str()) {
            return Err(Status::not_found("there is no such service"));
        }
        Ok(Response::new(answer(self.status().await)))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let is_known = self.services.contains(request.into_inner().service.as_str());
        let (answers, told) = mpsc::channel(1);
        let service = self.clone();
        self.tasks.spawn(async move {
            let watch = async {
                let mut before = None;
                loop {
                    let status = if is_known { service.status().await } else { ServingStatus::ServiceUnknown };
                    if before.replace(status) != Some(status) && answers.send(Ok(answer(status))).await.is_err() {
                        return;
                    }
                    tokio::select! {
                        () = answers.closed() => return,
                        () = service.health.stopping() => {
                            // The last word, for a watcher who reads.
                            drop(answers.try_send(Ok(answer(ServingStatus::NotServing))));
                            return;
                        }
                        () = tokio::time::sleep(LOOK_EVERY) => {}
                    }
                }
            };
            if tokio::time::timeout(WATCH, watch).await.is_err() {
                tracing::debug!("a watch of the health service was long enough");
            }
        });
        Ok(Response::new(ReceiverStream::new(told)))
    }
}
