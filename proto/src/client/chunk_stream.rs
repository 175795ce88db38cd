//! The bytes of a chunk as they come: gRPC messages taken apart without copying them.
//!
//! A generated client gathers each message in a buffer of its own, which costs a copy of every byte, and hands it over
//! once it is whole. Here a message's data is handed over as it lies in the buffer that the socket was read into, part
//! by part.
//!
//! A stream that ends within a message, or without a status, is an error.

use std::task::{Context, Poll, ready};

use http::{HeaderMap, StatusCode};
use prost::bytes::Bytes;
use tonic::{Code, Status};

use crate::net::{
    chunk_message::{Messages, Part},
    line::{Answer, Came},
};

/// A chunk that comes.
#[derive(Debug)]
pub struct ChunkStream {
    answer: Answer,
    frame: Bytes,
    messages: Messages,
    has_ended: bool,
}

impl ChunkStream {
    pub(super) fn new(mut answer: Answer) -> Result<Self, Status> {
        // An answer of headers alone.
        let ended = said(std::mem::take(&mut answer.headers));
        match ended {
            Some(refused) if refused.code() != Code::Ok => Err(refused),
            ended => {
                Ok(Self { answer, frame: Bytes::new(), messages: Messages::default(), has_ended: ended.is_some() })
            }
        }
    }

    /// The next bytes; `None` once the holder has said that this was all.
    pub async fn next(&mut self) -> Result<Option<Part>, Status> {
        std::future::poll_fn(|context| self.poll_next(context)).await.transpose()
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Part, Status>>> {
        loop {
            if let Some(part) = self.messages.take(&mut self.frame)? {
                return Poll::Ready(Some(Ok(part)));
            }
            if self.has_ended {
                return Poll::Ready(None);
            }
            match ready!(self.answer.poll(context))? {
                Came::Data(data) => self.frame = data,
                Came::End(trailers) => self.end(trailers)?,
            }
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Status> {
        self.has_ended = true;
        let status = trailers.and_then(said).unwrap_or_else(|| without_status(self.answer.status));
        match status.code() {
            Code::Ok if !self.messages.is_between() => Err(Status::internal("the stream ended within a message")),
            Code::Ok => Ok(()),
            _ => Err(status),
        }
    }
}

/// The status in headers or trailers.
fn said(mut headers: HeaderMap) -> Option<Status> {
    // Details are not used here, and tonic panics if they are malformed.
    headers.remove("grpc-status-details-bin");
    Status::from_header_map(&headers)
}

/// What an answer without a status means: it is not of a gRPC server, or was cut off on its way.
fn without_status(http: StatusCode) -> Status {
    let code = match http {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, format!("the stream ended without a status (HTTP {})", http.as_u16()))
}
