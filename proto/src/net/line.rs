//! A connection over which calls are made by hand: HTTP/2 without the layers of a gRPC client.
//!
//! Through those a call passes a queue, several boxes and a task of its own, and leaves in two writes, its headers and its
//! message. Chunks of 64 KiB are sixteen thousand calls for each GiB. Here a call is queued at the connection whole, and
//! its headers and its message leave in one write, with those of other calls that are made at the same time.
//!
//! What holds (each line has a test):
//! - it connects when it is first used, and again when it was lost; those that use it meanwhile wait for one connection;
//! - the connection ends with its last handle, or when it is silent although calls run and it was probed;
//! - an answer that is dropped tells the other end that nothing more of it is wanted.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{
    Ping, PingPong, Reason, RecvStream,
    client::{Builder, Connection, SendRequest},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header, uri::PathAndQuery};
use prost::bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OnceCell,
    time::{sleep, timeout},
};
use tonic::Status;
use tower_service::Service;

use super::{
    meter::{Meter, MeteredConnector},
    pass::Pass,
};
use crate::ticket;

/// How a line is kept.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Of HTTP/2.
    pub(super) http2: Builder,
    /// A connection attempt may take this long.
    pub(super) connect_timeout: Duration,
    /// It is probed when nothing came for so long,
    pub(super) probe_after: Duration,
    /// and is dead if the probe is not answered within this.
    pub(super) probe_timeout: Duration,
}

/// One connection at a time to one address. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Line(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Where to, without a path.
    uri: Uri,
    connector: MeteredConnector,
    meter: Meter,
    settings: Settings,
    pass: Pass,
    /// Counts the calls that run: each has a clone.
    calls: Arc<()>,
    /// The connection, once it is made. When it is lost another takes its place.
    open: Mutex<Arc<OnceCell<SendRequest<Bytes>>>>,
}

/// What the other end answers, as it comes.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// What came before everything else.
    pub headers: HeaderMap,
    body: RecvStream,
    _call: Arc<()>,
}

/// A part of an answer.
#[derive(Debug)]
pub enum Came {
    /// Some bytes of it.
    Data(Bytes),
    /// Its end, with what was said there, if it was.
    End(Option<HeaderMap>),
}

impl Line {
    pub(super) fn new(uri: Uri, connector: MeteredConnector, meter: Meter, settings: Settings, pass: Pass) -> Self {
        let (calls, open) = (Arc::default(), Mutex::default());
        Self(Arc::new(Inner { uri, connector, meter, settings, pass, calls, open }))
    }

    /// Every byte that came over it so far.
    pub(crate) fn received(&self) -> u64 {
        self.0.meter.read()
    }

    /// Calls a method of gRPC with one message, which stands behind its header; what comes before its answer's first byte.
    /// The connection's task runs where this is called.
    pub(crate) async fn call(&self, path: &'static str, message: Bytes) -> Result<Answer, Status> {
        let mut uri = self.0.uri.clone().into_parts();
        uri.path_and_query = Some(PathAndQuery::from_static(path));
        let uri = Uri::from_parts(uri).map_err(|error| Status::internal(error.to_string()))?;
        let mut request = Request::post(uri).body(()).map_err(|error| Status::internal(error.to_string()))?;
        let headers = request.headers_mut();
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        // With each call: after the first one of a connection HPACK says it in a byte.
        if let Some(ticket) = self.0.pass.header() {
            headers.insert(HeaderName::from_static(ticket::HEADER), ticket);
        }
        let call = self.0.calls.clone();
        let mut sender = self.ready().await?;
        let (answer, mut body) = sender.send_request(request, false).map_err(status)?;
        // Nothing is awaited between the two, so that the connection's task finds both.
        body.send_data(message, true).map_err(status)?;
        let (head, body) = answer.await.map_err(status)?.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body, _call: call })
    }

    fn open(&self) -> MutexGuard<'_, Arc<OnceCell<SendRequest<Bytes>>>> {
        // No change of it can panic half-way.
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is not lost. A call beyond as many streams as the other end takes waits at it.
    async fn ready(&self) -> Result<SendRequest<Bytes>, Status> {
        loop {
            let open = self.open().clone();
            let was_open = open.initialized();
            let sender = open.get_or_try_init(|| self.connect()).await?.clone();
            match sender.ready().await {
                Ok(ready) => return Ok(ready),
                Err(error) => {
                    let mut present = self.open();
                    if Arc::ptr_eq(&present, &open) {
                        *present = Arc::default();
                    }
                    // One that was lost while nobody used it is no answer.
                    if !was_open {
                        return Err(status(error));
                    }
                }
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>, Status> {
        let Inner { uri, connector, meter, settings, calls, .. } = &*self.0;
        let connecting = timeout(settings.connect_timeout, connector.clone().call(uri.clone())).await;
        let unreachable = |error: Arc<dyn std::error::Error + Send + Sync>| {
            let mut status = Status::unavailable("cannot connect");
            status.set_source(error);
            status
        };
        let stream = connecting
            .map_err(|late| unreachable(Arc::new(io::Error::new(io::ErrorKind::TimedOut, late))))?
            .map_err(|error| unreachable(Arc::from(error)))?;
        let handshake = settings.http2.handshake(stream.into_inner()).await;
        let (sender, connection) = handshake.map_err(|error| unreachable(Arc::new(error)))?;
        let (meter, settings, calls) = (meter.clone(), settings.clone(), Arc::downgrade(calls));
        tokio::spawn(async move {
            let runs = || calls.strong_count() > 1;
            run(connection, &settings, &meter, runs).await;
        });
        Ok(sender)
    }
}

/// Moves what is sent and what comes until the connection ends. What runs over it then fails.
async fn run<S>(mut connection: Connection<S, Bytes>, settings: &Settings, meter: &Meter, has_calls: impl Fn() -> bool)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let pings = connection.ping_pong();
    let dies = async {
        match pings {
            Some(pings) => is_dead(pings, settings, meter, has_calls).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection for chunks was lost");
            }
        }
        () = dies => tracing::debug!("a connection for chunks is silent, and is dropped"),
    }
}

/// Ends when the other end does not answer a probe.
async fn is_dead(mut pings: PingPong, settings: &Settings, meter: &Meter, has_calls: impl Fn() -> bool) {
    let mut before = meter.read();
    loop {
        sleep(settings.probe_after).await;
        let now = meter.read();
        let is_silent = std::mem::replace(&mut before, now) == now;
        // Some servers refuse probes of a connection that nobody uses.
        if is_silent
            && has_calls()
            && !matches!(timeout(settings.probe_timeout, pings.ping(Ping::opaque())).await, Ok(Ok(_)))
        {
            return;
        }
    }
}

impl Answer {
    /// The next part of it.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Came, Status>> {
        match ready!(self.body.poll_data(context)) {
            Some(Ok(data)) => {
                // It fails only on a connection that is lost, of which the next poll tells.
                let _ = self.body.flow_control().release_capacity(data.len());
                Poll::Ready(Ok(Came::Data(data)))
            }
            Some(Err(error)) => Poll::Ready(end(error)),
            None => Poll::Ready(ready!(self.body.poll_trailers(context)).map_or_else(end, |said| Ok(Came::End(said)))),
        }
    }
}

/// By RFC 9113, 8.1, a reset without an error ends an answer early, and does not spoil it.
fn end(error: h2::Error) -> Result<Came, Status> {
    if error.reason() == Some(Reason::NO_ERROR) { Ok(Came::End(None)) } else { Err(status(error)) }
}

fn status(error: h2::Error) -> Status {
    Status::from_error(Box::new(error))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{net::TcpListener, sync::mpsc, time::Instant};

    use super::*;
    use crate::net::{tls::Meant, transport::Transport};

    const PATH: &str = "/a.B/C";

    /// What a server saw.
    #[derive(Debug, PartialEq, Eq)]
    enum Saw {
        Connected,
        Call(String, Vec<u8>),
        Reset(Reason),
        Ended,
    }

    /// Answers each call with one part of a body, and then only if the message says so with an end.
    async fn serve(listener: TcpListener, saw: mpsc::UnboundedSender<Saw>) {
        while let Ok((stream, _)) = listener.accept().await {
            saw.send(Saw::Connected).unwrap();
            let saw = saw.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let saw = saw.clone();
                    tokio::spawn(async move {
                        let (head, mut body) = request.into_parts();
                        assert_eq!((&head.headers["te"], head.method.as_str()), (&"trailers".parse().unwrap(), "POST"));
                        let mut message = Vec::new();
                        while let Some(data) = body.data().await {
                            message.extend_from_slice(&data.unwrap());
                        }
                        saw.send(Saw::Call(head.uri.path().to_owned(), message.clone())).unwrap();
                        let mut answer = respond.send_response(http::Response::new(()), false).unwrap();
                        answer.send_data(Bytes::from_static(b"part"), false).unwrap();
                        if message == b"end" {
                            answer.send_trailers(HeaderMap::from_iter([(header::AGE, HeaderValue::from(7))])).unwrap();
                        } else {
                            let reset = std::future::poll_fn(|context| answer.poll_reset(context)).await;
                            reset.map(|reason| saw.send(Saw::Reset(reason)).unwrap()).ok();
                        }
                    });
                }
                saw.send(Saw::Ended).unwrap();
            });
        }
    }

    async fn served(at: SocketAddr) -> (SocketAddr, mpsc::UnboundedReceiver<Saw>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind(at).await.unwrap();
        let (address, (saw, seen)) = (listener.local_addr().unwrap(), mpsc::unbounded_channel());
        (address, seen, tokio::spawn(serve(listener, saw)))
    }

    fn line(to: SocketAddr) -> Line {
        Transport::plaintext().line(&to.into(), Meant::AnyPeer).unwrap()
    }

    async fn next(answer: &mut Answer) -> Came {
        std::future::poll_fn(|context| answer.poll(context)).await.unwrap()
    }

    fn call(message: &[u8]) -> Saw {
        Saw::Call(PATH.to_owned(), message.to_vec())
    }

    #[tokio::test]
    async fn calls_share_a_connection_that_is_made_when_it_is_needed_and_ends_with_the_last_handle() {
        let (address, mut seen, _) = served("127.0.0.1:0".parse().unwrap()).await;
        let line = line(address);
        assert_eq!(line.received(), 0);
        let other = line.clone();
        let (first, second) =
            tokio::join!(line.call(PATH, Bytes::from_static(b"end")), other.call(PATH, Bytes::from_static(b"end")));
        for answer in [&mut first.unwrap(), &mut second.unwrap()] {
            assert_eq!(answer.status, StatusCode::OK);
            assert!(matches!(next(answer).await, Came::Data(data) if data == "part"));
            let Came::End(Some(said)) = next(answer).await else { panic!("trailers") };
            assert_eq!(said[header::AGE], "7");
        }
        assert!(line.received() > 8);
        drop(line);
        assert_eq!((seen.recv().await, seen.recv().await), (Some(Saw::Connected), Some(call(b"end"))));
        assert_eq!(seen.recv().await, Some(call(b"end")));
        drop(other);
        assert_eq!(seen.recv().await, Some(Saw::Ended));
    }

    #[tokio::test]
    async fn a_connection_that_was_lost_is_made_anew_and_an_answer_that_is_dropped_is_reset() {
        let (address, mut seen, _) = served("127.0.0.1:0".parse().unwrap()).await;
        let line = line(address);
        let answer = line.call(PATH, Bytes::from_static(b"more")).await.unwrap();
        drop(answer);
        assert_eq!((seen.recv().await, seen.recv().await), (Some(Saw::Connected), Some(call(b"more"))));
        assert_eq!(seen.recv().await, Some(Saw::Reset(Reason::CANCEL)));
        // As the connection's task does when it was lost.
        let open = line.open().clone();
        let lost = Arc::new(OnceCell::new_with(Some(dead().await)));
        *line.open() = lost;
        drop(open);
        assert_eq!(seen.recv().await, Some(Saw::Ended));
        line.call(PATH, Bytes::from_static(b"end")).await.unwrap();
        assert_eq!((seen.recv().await, seen.recv().await), (Some(Saw::Connected), Some(call(b"end"))));
    }

    /// The handle of a connection that has ended.
    async fn dead() -> SendRequest<Bytes> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (sender, connection) = Builder::new().handshake(near).await.unwrap();
        drop(far);
        let _ = connection.await;
        sender
    }

    #[tokio::test]
    async fn where_nothing_listens_there_is_no_answer_and_the_cause_is_known() {
        let (address, _, task) = served("127.0.0.1:0".parse().unwrap()).await;
        task.abort();
        let _ = task.await;
        let refused = line(address).call(PATH, Bytes::new()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable);
        let cause = std::error::Error::source(&refused).map(|error| crate::net::innermost(error).to_string());
        assert!(cause.as_ref().is_some_and(|cause| cause.contains("refused")), "{cause:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_given_up_while_calls_run_and_not_before_it_was_probed() {
        let second = Duration::from_secs(1);
        let settings = Settings {
            http2: Builder::new(),
            connect_timeout: second,
            probe_after: 10 * second,
            probe_timeout: 60 * second,
        };
        for has_calls in [true, false] {
            let (near, _far) = tokio::io::duplex(1 << 16);
            let (_sender, connection) = settings.http2.handshake::<_, Bytes>(near).await.unwrap();
            let (begun, meter) = (Instant::now(), Meter::default());
            let ended = timeout(300 * second, run(connection, &settings, &meter, || has_calls)).await;
            assert_eq!(ended.is_ok(), has_calls);
            assert!(begun.elapsed() >= 70 * second);
            assert_eq!(begun.elapsed() < 72 * second, has_calls);
        }
    }
}
