//! Answers of others, before tonic looks at them: what it would panic at is taken out.
//!
//! What holds (each line has a test):
//! - an answer with malformed details of its status, in its headers or its trailers, is an error like any other. Nothing
//!   here uses such details.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use prost::bytes::Bytes;
use tonic::{body::Body, transport::Channel};
use tower_service::Service;

/// A connection to a program that may be hostile.
#[derive(Debug, Clone)]
pub(crate) struct Wary(pub(crate) Channel);

fn clean(headers: &mut HeaderMap) {
    headers.remove("grpc-status-details-bin");
}

impl Service<Request<Body>> for Wary {
    type Response = Response<WaryBody>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            clean(answer.headers_mut());
            Ok(answer.map(WaryBody))
        })
    }
}

/// What follows.
#[derive(Debug)]
pub(crate) struct WaryBody(Body);

impl http_body::Body for WaryBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut frame = ready!(Pin::new(&mut self.0).poll_frame(context));
        if let Some(trailers) = frame.as_mut().and_then(|frame| frame.as_mut().ok()).and_then(Frame::trailers_mut) {
            clean(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tonic::Code;

    use crate::{client::TrackerClient, net::transport::Transport, wire};

    #[tokio::test]
    async fn malformed_details_of_a_status_are_an_error_like_any_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().into();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut is_first = true;
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let malformed = |builder: http::response::Builder| {
                    builder.header("grpc-status", "5").header("grpc-status-details-bin", "!!!")
                };
                let answer = http::Response::builder().header("content-type", "application/grpc");
                if std::mem::take(&mut is_first) {
                    respond.send_response(malformed(answer).body(()).unwrap(), true).unwrap();
                } else {
                    let mut body = respond.send_response(answer.body(()).unwrap(), false).unwrap();
                    let trailers = malformed(http::Response::builder()).body(()).unwrap();
                    body.send_trailers(trailers.headers().clone()).unwrap();
                }
            }
        });
        let mut tracker = TrackerClient::new(&Transport::plaintext(), &address).unwrap();
        for _ in 0..2 {
            let error = tracker.list_files(wire::ListFilesRequest::default()).await.unwrap_err();
            assert_eq!(error.code(), Code::NotFound, "{error}");
        }
    }
}
