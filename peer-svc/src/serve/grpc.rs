//! The Peer service on the wire.
//!
//! `FetchChunk` is answered by hand: same path, same messages, same trailers as the generated server would give, but
//! with bodies whose bytes are copied by nobody between the file and the socket (see [`super::message`]). Everything
//! else is the generated server's.

use std::{convert::Infallible, pin::Pin, sync::Arc};

use drizzle_proto::{
    PeerId, convert,
    net::{
        caller::{Accepted, Caller},
        chunk_message::FETCH_CHUNK,
    },
    ticket,
    wire::{self, peer_server::PeerServer},
};
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use tokio_stream::{Stream, StreamExt};
use tonic::{
    Request, Status,
    body::Body,
    codec::{Codec, Streaming},
    codegen::{BoxFuture, Context, Poll, Service},
    server::NamedService,
};
use tonic_prost::ProstCodec;

use super::{ChunkRequest, ChunkStream, NewsDesk, ServeError, Uploads};
use crate::{identity::Identity, trust::Rights};

/// What is refused of a request before it is read: twice what one with a thousand alternatives has. Over one connection a
/// thousand may be under way, and need never be whole.
const MAX_REQUEST: usize = 8 << 10;

/// What the service works with.
#[derive(Debug, Clone)]
pub(crate) struct PeerService {
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) news: NewsDesk,
    pub(crate) identity: Identity,
    pub(crate) rights: Arc<Rights>,
}

impl PeerService {
    /// Whether this peer is the one that a requester means, if it says so.
    fn check(&self, holder: &str) -> Result<(), Status> {
        match convert::optional_peer(holder)? {
            Some(meant) => Ok(is_meant(self.identity.id(), meant)?),
            None => Ok(()),
        }
    }

    /// Opens the stream that a request asks for.
    async fn open(&self, asks: Asks, request: wire::FetchChunkRequest) -> Result<ChunkStream, Status> {
        self.check(&request.holder)?;
        let mut request = ChunkRequest::try_from(request)?;
        let permit = self.rights.permit(asks.caller, asks.ticket.as_ref(), request.file);
        let permit = permit.inspect_err(|_| self.uploads.not_permitted())?;
        // A peer that proves who it is cannot take another one's share of the slots.
        if let Some(certified) = asks.caller.peer() {
            request.slot.requester = Some(certified);
        }
        Ok(self.uploads.open(request, permit).await?)
    }

    async fn answer(self, request: http::Request<Body>) -> Result<Response<Body>, Status> {
        let asks = Asks::of_headers(&request);
        let decoder = ProstCodec::<wire::FetchChunkResponse, wire::FetchChunkRequest>::default().decoder();
        let mut requests = Streaming::new_request(decoder, request.into_body(), None, Some(MAX_REQUEST));
        let request = requests.message().await?.ok_or_else(|| Status::internal("the request has no message"))?;
        let mut response = Response::new(Body::new(self.open(asks, request).await?));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(response)
    }
}

/// Who asks, and what it shows.
struct Asks {
    caller: Caller,
    ticket: Option<HeaderValue>,
}

impl Asks {
    fn of_headers(request: &http::Request<Body>) -> Self {
        // As tonic puts it there.
        let caller = request.extensions().get::<Accepted>().map_or(Caller::Plain, Accepted::caller);
        Self { caller, ticket: request.headers().get(ticket::HEADER).cloned() }
    }

    fn of<T>(request: &Request<T>) -> Self {
        let ticket = request.metadata().as_ref().get(ticket::HEADER).cloned();
        Self { caller: Caller::of(request.extensions()), ticket }
    }
}

/// Whether this peer is the one that a requester means.
pub(super) fn is_meant(own: PeerId, meant: PeerId) -> Result<(), ServeError> {
    if meant == own { Ok(()) } else { Err(ServeError::OtherPeer { own, meant }) }
}

#[tonic::async_trait]
impl wire::peer_server::Peer for PeerService {
    type FetchChunkStream = tokio_stream::Empty<Result<wire::FetchChunkResponse, Status>>;

    async fn fetch_chunk(
        &self,
        _: Request<wire::FetchChunkRequest>,
    ) -> Result<tonic::Response<Self::FetchChunkStream>, Status> {
        // The path is answered before.
        Err(Status::internal("not answered here"))
    }

    type WatchChunksStream = Pin<Box<dyn Stream<Item = Result<wire::WatchChunksResponse, Status>> + Send>>;

    async fn watch_chunks(
        &self,
        request: Request<wire::WatchChunksRequest>,
    ) -> Result<tonic::Response<Self::WatchChunksStream>, Status> {
        let asks = Asks::of(&request);
        let request = request.into_inner();
        self.check(&request.holder)?;
        let file = convert::file_id(&request.file_id)?;
        let mut permit = self.rights.permit(asks.caller, asks.ticket.as_ref(), file)?;
        let news = self.news.open(file)?.map(move |news| {
            permit.still()?;
            news
        });
        Ok(tonic::Response::new(Box::pin(news)))
    }
}

/// The service: a layer in front of the generated server.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    service: PeerService,
    generated: PeerServer<PeerService>,
}

impl Peer {
    pub(crate) fn new(service: PeerService) -> Self {
        let generated = PeerServer::new(service.clone()).max_decoding_message_size(MAX_REQUEST);
        Self { service, generated }
    }
}

impl NamedService for Peer {
    const NAME: &'static str = PeerServer::<PeerService>::NAME;
}

impl Service<http::Request<Body>> for Peer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != FETCH_CHUNK {
            return self.generated.call(request);
        }
        let service = self.service.clone();
        Box::pin(async move { Ok(service.answer(request).await.unwrap_or_else(Status::into_http)) })
    }
}
