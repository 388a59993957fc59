//! What an agent sends, in small frames of HTTP/2.
//!
//! A server keeps for every connection the room that its largest frames took, twice that in the worst case, for as long as
//! the connection lives. Agents are many and stay, so theirs are small: a server of ten thousand has them to thank for it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::Frame;
use prost::bytes::Bytes;
use tonic::{Status, body::Body, codegen::http::Request};

/// Most bytes of a frame: with its header (9 bytes, RFC 9113 section 4.1) half of the 8 KiB that a server's codec starts with
/// (tokio-util, `INITIAL_CAPACITY`), so that a frame behind the rest of another one has room in them too.
const PIECE_BYTES: usize = 4 * 1024 - 9;

/// A request whose body travels in small frames.
pub(crate) fn request(request: Request<Body>) -> Request<Body> {
    request.map(|body| Body::new(Pieces { body, rest: Bytes::new() }))
}

struct Pieces {
    body: Body,
    /// Of a frame that was too large.
    rest: Bytes,
}

impl Pieces {
    fn cut(&mut self) -> Frame<Bytes> {
        Frame::data(self.rest.split_to(self.rest.len().min(PIECE_BYTES)))
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(self.cut())));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| match frame.into_data() {
                Ok(data) => {
                    self.rest = data;
                    self.cut()
                }
                Err(other) => other,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Body as _;
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    proptest! {
        #[test]
        fn the_same_bytes_travel_and_no_frame_is_large(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3 * PIECE_BYTES), 0..6),
        ) {
            let expected = frames.concat();
            let frames = frames.into_iter().map(|data| Ok::<_, Infallible>(Frame::data(Bytes::from(data))));
            let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
            let mut body = request(Request::new(body)).into_body();
            let sent = run(async {
                let mut sent = Vec::new();
                while let Some(frame) = body.frame().await {
                    let data = frame.unwrap().into_data().unwrap();
                    assert!(data.len() <= PIECE_BYTES, "{} bytes", data.len());
                    sent.extend_from_slice(&data);
                }
                sent
            });
            prop_assert_eq!(sent, expected);
        }
    }

    #[test]
    fn a_body_is_not_over_before_its_last_piece() {
        let whole = Body::new(http_body_util::Full::new(Bytes::from(vec![1; PIECE_BYTES + 1])));
        let mut body = request(Request::new(whole)).into_body();
        run(async {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), PIECE_BYTES);
            assert!(!body.is_end_stream());
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 1);
            assert!(body.is_end_stream() && body.frame().await.is_none());
        });
    }
}
