//! Answers of others, before tonic looks at them: what it would panic at is taken out.
//!
//! What holds (each line has a test):
//! - an answer with malformed details of its status, in its headers or its trailers, is an error like any other. Nothing
//!   here uses such details;
//! - an observer hears of each call once, also of one that is given up.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use prost::bytes::Bytes;
use tonic::{body::Body, transport::Channel};
use tower_service::Service;

/// A connection to a program that may be hostile.
#[derive(Debug, Clone)]
pub(crate) struct Wary {
    channel: Channel,
    observer: Option<Observer>,
}

impl Wary {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { channel, observer: None }
    }

    /// Of its calls this one hears.
    pub(crate) fn observed(channel: Channel, observer: Option<Observer>) -> Self {
        Self { channel, observer }
    }
}

/// Hears of each call: its path, how long it was until the answer began, and whether that was no failure.
#[derive(Clone)]
pub struct Observer(Arc<Hears>);

type Hears = dyn Fn(&str, Duration, bool) + Send + Sync;

impl Observer {
    /// This one.
    pub fn new(hears: impl Fn(&str, Duration, bool) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hears))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// A call that is under way. One that is given up has failed.
struct Watched {
    observer: Observer,
    path: String,
    begun: Instant,
    went_well: bool,
}

impl Drop for Watched {
    fn drop(&mut self) {
        (self.observer.0)(&self.path, self.begun.elapsed(), self.went_well);
    }
}

fn clean(headers: &mut HeaderMap) {
    headers.remove("grpc-status-details-bin");
}

impl Service<Request<Body>> for Wary {
    type Response = Response<WaryBody>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let watched = self.observer.clone().map(|observer| {
            let (path, begun) = (request.uri().path().to_owned(), Instant::now());
            Watched { observer, path, begun, went_well: false }
        });
        let answer = self.channel.call(request);
        Box::pin(async move {
            let mut watched = watched;
            let mut answer = answer.await?;
            clean(answer.headers_mut());
            if let Some(watched) = &mut watched {
                // A call that fails without a message says so in its headers.
                let status = answer.headers().get("grpc-status");
                watched.went_well = status.is_none_or(|status| status == "0");
            }
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
    use std::sync::Mutex;

    use tokio::net::TcpListener;
    use tonic::Code;

    use super::*;

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

    #[tokio::test]
    async fn an_observer_hears_of_each_call_once_also_of_one_that_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().into();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut calls = Vec::new();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let answer = http::Response::builder().header("content-type", "application/grpc");
                match calls.len() {
                    0 => _ = respond.send_response(answer.header("grpc-status", "5").body(()).unwrap(), true),
                    1 => _ = respond.send_response(answer.body(()).unwrap(), false),
                    // No answer.
                    _ => {}
                }
                calls.push(respond);
            }
        });
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = heard.clone();
        let observer =
            Observer::new(move |path, _, went_well| hears.lock().unwrap().push((path.to_owned(), went_well)));
        let mut tracker = TrackerClient::observed(&Transport::plaintext(), &address, Some(observer)).unwrap();
        for _ in 0..3 {
            // Long enough for what is answered at once; the second one's answer begins, and the third one's never does.
            let call = tracker.list_files(wire::ListFilesRequest::default());
            let _ = tokio::time::timeout(Duration::from_secs(1), call).await;
        }
        let path = "/drizzle.v1.Tracker/ListFiles".to_owned();
        let expected = [false, true, false].map(|went_well| (path.clone(), went_well));
        assert_eq!(*heard.lock().unwrap(), expected);
    }
}
