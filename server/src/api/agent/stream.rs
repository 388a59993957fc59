//! The stream of an agent as gRPC has it: messages in frames of HTTP/2, with room only for those that are there.
//!
//! tonic keeps for every stream what twice its largest message took, for as long as the stream lives. Agents are many, say
//! little and stay, so here nothing is kept between two messages.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use fleetsock_proto::wire;
use http_body::{Body as _, Frame};
use prost::{
    Message,
    bytes::{Buf, BufMut, Bytes, BytesMut},
};
use tokio::sync::mpsc;
use tonic::{Code, Request, Status, body::Body, metadata::GRPC_CONTENT_TYPE};

/// Bytes before every message: whether it is compressed, and how long it is (gRPC over HTTP2, Length-Prefixed-Message).
const HEADER_BYTES: usize = 5;
/// Bytes of messages that wait and are sent in one frame; a larger one has a frame for itself.
const FRAME_BYTES: usize = 1024;

/// What the server says next, or why it ends the stream.
pub(super) type Said = Result<Box<wire::SessionResponse>, Status>;

/// What an agent says, message by message.
#[derive(Debug)]
pub(super) struct Arriving {
    body: Body,
    /// Bytes of the largest message that is read.
    limit: usize,
    /// What came of messages that were not read yet.
    came: BytesMut,
}

impl Arriving {
    /// The messages of a request. Refused when they are compressed.
    pub(super) fn of(request: Request<Body>, limit: usize) -> Result<Arriving, Status> {
        match request.metadata().get("grpc-encoding") {
            Some(encoding) if encoding != "identity" => Err(Status::unimplemented("messages are not to be compressed")),
            _ => Ok(Arriving { body: request.into_inner(), limit, came: BytesMut::new() }),
        }
    }

    /// The next message; `None` when the agent has ended the stream. What came is not lost when this is not waited for.
    pub(super) async fn next(&mut self) -> Result<Option<wire::SessionRequest>, Status> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            match poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.came.extend_from_slice(&data);
                    }
                }
                Some(Err(status)) if status.code() == Code::Cancelled => return Ok(None),
                Some(Err(status)) => return Err(status),
                None if self.came.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ended within a message")),
            }
        }
    }

    /// The next message, when all of it came.
    fn take(&mut self) -> Result<Option<wire::SessionRequest>, Status> {
        let Some(mut header) = self.came.get(..HEADER_BYTES) else { return Ok(None) };
        if header.get_u8() != 0 {
            return Err(Status::internal("a message is compressed, and its stream is not"));
        }
        let bytes = header.get_u32() as usize;
        if bytes > self.limit {
            return Err(Status::out_of_range(format!("a message of {bytes} bytes; at most {} are read", self.limit)));
        }
        // Room is made for what came, never for what was only announced.
        if self.came.len() < HEADER_BYTES + bytes {
            return Ok(None);
        }
        self.came.advance(HEADER_BYTES);
        let message = wire::SessionRequest::decode(self.came.split_to(bytes));
        if self.came.is_empty() {
            self.came = BytesMut::new();
        }
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// The answer to an agent that began a stream: what is put into the channel.
pub(super) fn answer(said: mpsc::Receiver<Said>) -> http::Response<Body> {
    let mut response = http::Response::new(Body::new(Leaving { said, next: Next::Messages }));
    response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// What an agent is told.
struct Leaving {
    said: mpsc::Receiver<Said>,
    next: Next,
}

enum Next {
    Messages,
    /// There are no more.
    End(Status),
    Nothing,
}

impl Leaving {
    /// Messages that wait, as bytes; none when there are no more.
    fn poll_messages(&mut self, cx: &mut Context<'_>) -> Poll<Vec<u8>> {
        let mut bytes = Vec::new();
        while matches!(self.next, Next::Messages) && bytes.len() < FRAME_BYTES {
            match self.said.poll_recv(cx) {
                Poll::Ready(Some(Ok(message))) => put(&mut bytes, &message),
                Poll::Ready(Some(Err(status))) => self.next = Next::End(status),
                Poll::Ready(None) => self.next = Next::End(Status::ok("")),
                Poll::Pending if bytes.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(bytes)
    }
}

fn put(bytes: &mut Vec<u8>, message: &wire::SessionResponse) {
    let message = message.encode_to_vec();
    bytes.reserve(HEADER_BYTES + message.len());
    bytes.put_u8(0);
    // What the server says is far below 4 GiB.
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message);
}

impl http_body::Body for Leaving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let bytes = ready!(self.poll_messages(cx));
        if !bytes.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
        }
        Poll::Ready(match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::End(status) => {
                let mut trailers = http::HeaderMap::new();
                Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)))
            }
            Next::Messages | Next::Nothing => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.next, Next::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;
    use wire::{session_request, session_response};

    use super::*;

    const LIMIT: usize = 1000;

    fn framed(message: &impl Message) -> Vec<u8> {
        let message = message.encode_to_vec();
        [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
    }

    /// A message whose largest part is so long.
    fn request(length: usize) -> wire::SessionRequest {
        let facts = wire::HostFacts { name: "x".repeat(length), ..Default::default() };
        let hello = wire::Hello { facts: Some(facts), ..Default::default() };
        wire::SessionRequest { message: Some(session_request::Message::Hello(hello)) }
    }

    fn response(epoch: u64) -> Said {
        let message = Some(session_response::Message::Ack(wire::Ack { epoch, seq: 1 }));
        Ok(Box::new(wire::SessionResponse { message }))
    }

    fn arriving(frames: Vec<Vec<u8>>) -> Arriving {
        let frames = frames.into_iter().map(|data| Ok::<_, Infallible>(Frame::data(Bytes::from(data))));
        let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
        Arriving::of(Request::new(body), LIMIT).unwrap()
    }

    async fn all(mut arriving: Arriving) -> Result<Vec<wire::SessionRequest>, Status> {
        let mut messages = Vec::new();
        while let Some(message) = arriving.next().await? {
            messages.push(message);
        }
        Ok(messages)
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    proptest! {
        #[test]
        fn messages_come_out_whole_however_they_are_cut(
            lengths in prop::collection::vec(0..LIMIT - 20, 0..10),
            cuts in prop::collection::vec(1..400_usize, 1..20),
        ) {
            let messages: Vec<_> = lengths.into_iter().map(request).collect();
            let mut bytes: Vec<u8> = messages.iter().flat_map(framed).collect();
            let mut frames = Vec::new();
            for cut in cuts.into_iter().cycle() {
                if bytes.is_empty() {
                    break;
                }
                let rest = bytes.split_off(cut.min(bytes.len()));
                frames.push(std::mem::replace(&mut bytes, rest));
            }
            prop_assert_eq!(run(all(arriving(frames))).unwrap(), messages);
        }
    }

    #[test]
    fn nothing_is_kept_between_two_messages() {
        let message = framed(&request(900));
        let mut arriving = arriving(vec![message[..500].to_vec(), message[500..].to_vec(), message.clone()]);
        run(async {
            for _ in 0..2 {
                assert_eq!(arriving.next().await.unwrap(), Some(request(900)));
                assert_eq!(arriving.came.capacity(), 0);
            }
            assert_eq!(arriving.next().await.unwrap(), None);
        });
    }

    #[test]
    fn what_is_no_message_is_refused_with_what_is_wrong() {
        let of = |frame: Vec<u8>| run(all(arriving(vec![frame]))).unwrap_err().code();
        assert_eq!(of([&[0, 0, 0, 3, 233][..], &[0; 1001]].concat()), Code::OutOfRange);
        assert_eq!(of(vec![0, 0xff, 0xff, 0xff, 0xff]), Code::OutOfRange, "before it came");
        assert_eq!(of(vec![1, 0, 0, 0, 0]), Code::Internal, "compressed");
        assert_eq!(of(vec![0, 0, 0, 0, 1, 0xff]), Code::Internal, "garbage");
        assert_eq!(of(vec![0, 0, 0]), Code::Internal, "it ends within the header");
        assert_eq!(of(vec![0, 0, 0, 0, 2, 0]), Code::Internal, "it ends within a message");
        let mut compressed = Request::new(Body::empty());
        compressed.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
        assert_eq!(Arriving::of(compressed, LIMIT).unwrap_err().code(), Code::Unimplemented);
    }

    #[test]
    fn what_waits_leaves_in_one_frame_and_the_status_last() {
        let (outgoing, said) = mpsc::channel(8);
        outgoing.try_send(response(1)).unwrap();
        outgoing.try_send(response(2)).unwrap();
        outgoing.try_send(Err(Status::unauthenticated("revoked"))).unwrap();
        let mut body = answer(said).into_body();
        run(async {
            let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
            let expected = [response(1), response(2)].map(|said| framed(&*said.unwrap())).concat();
            assert_eq!(data, expected);
            let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(Status::from_header_map(&trailers).unwrap().message(), "revoked");
            assert!(body.frame().await.is_none() && body.is_end_stream());
        });
    }

    #[test]
    fn a_stream_that_is_let_go_ends_well() {
        let (outgoing, said) = mpsc::channel(8);
        drop(outgoing);
        let trailers = run(answer(said).into_body().collect()).unwrap().trailers().cloned().unwrap();
        assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::Ok);
    }
}
