//! The admin port: `/metrics`, `/livez` and `/readyz` over plain HTTP, for what watches the server. It answers GET, shows
//! no secret and no name of a host, and does nothing.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Health;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 16;
/// How long a connection may live. A scraper that keeps it open comes again.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
/// How long a request may take to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's header.
const HEADER_BYTES: usize = 8 * 1024;
/// How long to wait when the system has no descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// The type of an exposition (OpenMetrics 1.0).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Answers until told to stop; returns when the last connection is over.
pub async fn serve(listener: TcpListener, health: Arc<Health>, stop: CancellationToken) {
    let (places, connections) = (Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
        };
        match accepted {
            (Ok((tcp, _)), Ok(place)) => {
                let (health, stop) = (Arc::clone(&health), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        over = timeout(CONNECTION_LIFE, converse(tcp, health)) => {
                            if !matches!(over, Ok(Ok(()))) {
                                tracing::debug!("a connection to the admin port did not end in order");
                            }
                        }
                    }
                });
            }
            (Err(error), _) => {
                tracing::warn!(%error, "cannot accept connections to the admin port");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
            // The semaphore is never closed.
            (Ok(_), Err(_)) => break,
        }
    }
    connections.close();
    connections.wait().await;
}

async fn converse(tcp: TcpStream, health: Arc<Health>) -> Result<(), hyper::Error> {
    let answer = service_fn(move |request: Request<Incoming>| {
        let health = Arc::clone(&health);
        async move { Ok::<_, Infallible>(answer(request.method(), request.uri().path(), &health).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(tcp), answer)
        .await
}

async fn answer(method: &Method, path: &str, health: &Health) -> Response<Full<Bytes>> {
    if *method != Method::GET && *method != Method::HEAD {
        return response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is answered\n".to_owned());
    }
    match path {
        "/livez" => response(StatusCode::OK, TEXT, "alive\n".to_owned()),
        "/readyz" => {
            let reasons = health.unready().await;
            let text: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
            match reasons.is_empty() {
                true => response(StatusCode::OK, TEXT, "ready\n".to_owned()),
                false => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text),
            }
        }
        "/metrics" => match health.exposition().await {
            Ok(text) => response(StatusCode::OK, OPENMETRICS, text),
            Err(error) => {
                tracing::warn!(%error, "the metrics cannot be read");
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{error}\n"))
            }
        },
        _ => response(StatusCode::NOT_FOUND, TEXT, "there is /metrics, /livez and /readyz\n".to_owned()),
    }
}

fn response(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
