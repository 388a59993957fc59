//! Counts calls: a call is over when its answer is, whose last frame has the status.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use tonic::Code;

use super::Meters;

/// Header and trailer of gRPC's status.
const STATUS: &str = "grpc-status";

/// Counts one call, when it is dropped at the latest: whoever went away cancelled it.
#[derive(Debug)]
pub struct CallMeter {
    meters: Meters,
    method: &'static str,
    code: Option<Code>,
}

impl CallMeter {
    /// Begins with a call.
    pub fn new(meters: Meters, method: &'static str) -> CallMeter {
        CallMeter { meters, method, code: None }
    }

    /// Follows the answer to its end.
    pub fn watch<B>(mut self, response: Response<B>) -> Response<Counted<B>> {
        self.note(response.headers());
        response.map(|body| Counted { body, meter: Some(self) })
    }

    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(STATUS) {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for CallMeter {
    fn drop(&mut self) {
        self.meters.called(self.method, self.code.unwrap_or(Code::Cancelled));
    }
}

/// The body of an answer that is counted.
#[derive(Debug, Default)]
pub struct Counted<B> {
    body: B,
    meter: Option<CallMeter>,
}

impl<B: Body + Unpin> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(Ok(frame)), Some(meter)) = (&frame, &mut self.meter)
            && let Some(trailers) = frame.trailers_ref()
        {
            meter.note(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
