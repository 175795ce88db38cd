//! The gRPC face: unwrap, call the registry, wrap. The only file here that knows wire messages.
//!
//! Never decides anything: a malformed field is a [`WireError`], everything else is the registry's answer.

use std::{pin::Pin, time::Instant};

use bytes::Bytes;
use drizzle_proto::{
    Digest, FileName, PeerClaim, WireError,
    announcement::{FileChunks, FileOutcome},
    convert::{hashes, readable},
    layout::MAX_CHUNKS,
    limits::{MAX_BATCH, MAX_BATCH_CHUNKS},
    net::transport::CALL_TIMEOUT,
    wire::{self, tracker_server},
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_stream::{Stream, StreamExt};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    error::Error,
    limits::{DEFAULT_PAGE, DETAILS_BUDGET, MAX_ANSWERING, MAX_PAGE},
    live::{introductions::MOST, watches::Newcomer},
    registry::{HolderPage, Listing, Locations, Registry, Wanted},
    watch,
};

/// Serves the tracker's methods.
pub(crate) struct Service {
    registry: Registry,
    tasks: TaskTracker,
    stop: CancellationToken,
    answering: Semaphore,
}

impl Service {
    /// Serves a registry; `stop` ends the watches, whose tasks are counted in `tasks`.
    pub(crate) fn new(registry: Registry, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { registry, tasks, stop, answering: Semaphore::new(MAX_ANSWERING) }
    }

    /// To be held while a large answer is made.
    async fn slot(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.answering.acquire().await.map_err(|_| Error::Stopping)
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl tracker_server::Tracker for Service {
    async fn register_peer(&self, request: Request<wire::RegisterPeerRequest>) -> Answer<wire::RegisterPeerResponse> {
        let now = Instant::now();
        let lease_id = self.registry.register_peer(PeerClaim::try_from(request.into_inner())?, now)?;
        let warning = self.registry.warning(lease_id, now).unwrap_or_default();
        let lease_millis = u32::try_from(self.registry.lease().as_millis()).unwrap_or(u32::MAX);
        Ok(Response::new(wire::RegisterPeerResponse {
            lease_id,
            lease_millis,
            renew_millis: lease_millis / 3,
            warning,
        }))
    }

    async fn register_chunk(
        &self,
        request: Request<wire::RegisterChunkRequest>,
    ) -> Answer<wire::RegisterChunkResponse> {
        let wire::RegisterChunkRequest { lease_id, files } = request.into_inner();
        let (entries, malformed) = entries(files)?;
        let outcomes = self.registry.announce(lease_id, entries, Instant::now()).await?;
        let pause_millis = u32::try_from(self.registry.announce_pause().as_millis()).unwrap_or(u32::MAX);
        Ok(Response::new(wire::RegisterChunkResponse { results: results(outcomes, malformed), pause_millis }))
    }

    async fn register_manifest(
        &self,
        request: Request<Streaming<wire::RegisterManifestRequest>>,
    ) -> Answer<wire::RegisterManifestResponse> {
        let mut messages = request.into_inner();
        let first = next_of(&mut messages).await?.ok_or(WireError::Missing("file"))?;
        let lease = first.lease_id;
        let mut entry = FileChunks::try_from(first.file.ok_or(WireError::Missing("file"))?)?;
        loop {
            let hashes = std::mem::take(&mut entry.hashes);
            let next = entry.first_hash + u32::try_from(hashes.len()).unwrap_or(u32::MAX);
            let told = FileChunks { hashes, ..entry.clone() };
            let outcome = self.registry.announce(lease, vec![told], Instant::now()).await?.pop();
            let outcome = outcome.ok_or(Error::Panicked)?;
            if matches!(outcome, FileOutcome::NeedHashes(from) if from >= next)
                && let Some(message) = next_of(&mut messages).await?
            {
                (entry.first_hash, entry.hashes) = (next, hashes_that_follow(&message)?);
                let left = entry.file.layout.chunk_count().get().saturating_sub(next);
                if entry.hashes.len() > left as usize {
                    return Err(WireError::Bounds("packed_sha256").into());
                }
                continue;
            }
            return Ok(Response::new(wire::RegisterManifestResponse { result: Some(outcome.into()) }));
        }
    }

    async fn renew_lease(&self, request: Request<wire::RenewLeaseRequest>) -> Answer<wire::RenewLeaseResponse> {
        let (released, warning) = self.registry.renew(request.get_ref().lease_id, Instant::now())?;
        let released = released.iter().map(Into::into).collect();
        Ok(Response::new(wire::RenewLeaseResponse { released, warning: warning.unwrap_or_default() }))
    }

    async fn leave(&self, request: Request<wire::LeaveRequest>) -> Answer<wire::LeaveResponse> {
        self.registry.leave(request.get_ref().lease_id);
        Ok(Response::new(wire::LeaveResponse {}))
    }

    async fn withdraw_file(&self, request: Request<wire::WithdrawFileRequest>) -> Answer<wire::WithdrawFileResponse> {
        let request = request.into_inner();
        let name_released = self.registry.withdraw(request.lease_id, file_name(&request.name)?, Instant::now()).await?;
        Ok(Response::new(wire::WithdrawFileResponse { name_released }))
    }

    async fn list_files(&self, request: Request<wire::ListFilesRequest>) -> Answer<wire::ListFilesResponse> {
        let wire::ListFilesRequest { prefix, page_size, page_token } = request.into_inner();
        let after = list_token(&prefix, &page_token)?;
        let limit = if page_size == 0 { DEFAULT_PAGE } else { page_size.min(MAX_PAGE) };
        let _slot = self.slot().await?;
        let listing = self.registry.list(prefix, after, limit as usize).await?;
        Ok(Response::new(listing.into()))
    }

    async fn file_locations(
        &self,
        request: Request<wire::FileLocationsRequest>,
    ) -> Answer<wire::FileLocationsResponse> {
        let request = request.into_inner();
        let (name, wanted, is_packed) = (file_name(&request.name)?, wanted(&request)?, request.packed);
        let _slot = self.slot().await?;
        let locations = self.registry.locate(name, wanted).await?;
        Ok(Response::new(answer(locations, is_packed)))
    }

    type WatchFileStream = Pin<Box<dyn Stream<Item = Result<wire::WatchFileResponse, Status>> + Send>>;

    async fn watch_file(&self, request: Request<wire::WatchFileRequest>) -> Answer<Self::WatchFileStream> {
        let request = request.into_inner();
        let (name, newcomer) = (file_name(&request.name)?, newcomer(&request)?);
        let watcher = self.registry.watch(name, newcomer, Instant::now()).await?;
        let messages = watch::stream(watcher, &self.tasks, self.stop.clone());
        Ok(Response::new(Box::pin(messages.map(|message| Ok((&message?).into())))))
    }
}

fn file_name(text: &str) -> Result<FileName, WireError> {
    Ok(FileName::new(text)?)
}

/// The watcher of a request, if it wants to be introduced.
fn newcomer(request: &wire::WatchFileRequest) -> Result<Option<Newcomer>, WireError> {
    if request.known.len() > MOST {
        return Err(WireError::Bounds("known"));
    }
    let known = request.known.iter().map(|peer| peer.parse()).collect::<Result<_, _>>()?;
    let newcomer = Newcomer { lease: request.lease_id, wanted: request.neighbours as usize, known };
    Ok((request.neighbours > 0).then_some(newcomer))
}

/// The next message of a stream: a caller that sends nothing does not keep what it sent before.
async fn next_of<T>(messages: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let late = |_| Status::deadline_exceeded(format!("no message within {} s", CALL_TIMEOUT.as_secs()));
    tokio::time::timeout(CALL_TIMEOUT, messages.message()).await.map_err(late)?
}

/// What a message of a long manifest brings that is not the first one.
fn hashes_that_follow(message: &wire::RegisterManifestRequest) -> Result<Vec<Digest>, WireError> {
    if message.file.is_some() {
        return Err(WireError::Bounds("file"));
    }
    let hashes = hashes(&[], &message.packed_sha256)?;
    if hashes.is_empty() { Err(WireError::Missing("packed_sha256")) } else { Ok(hashes) }
}

/// The well-formed entries in order, and for each position what is wrong with it, if anything.
fn entries(files: Vec<wire::FileChunks>) -> Result<(Vec<FileChunks>, Vec<Option<WireError>>), WireError> {
    let chunks: u64 = files.iter().map(chunks_to_convert).sum();
    if files.len() > MAX_BATCH || chunks > MAX_BATCH_CHUNKS {
        return Err(WireError::Bounds("files"));
    }
    let mut entries = Vec::with_capacity(files.len());
    let malformed = files.into_iter().map(|file| match FileChunks::try_from(file) {
        Ok(entry) => {
            entries.push(entry);
            None
        }
        Err(error) => Some(error),
    });
    let malformed = malformed.collect();
    Ok((entries, malformed))
}

/// How many chunks' worth of set the conversion of an entry makes: `held`, or an empty set of the file's
/// chunks without it. A number that cannot be costs nothing: its entry fails alone.
fn chunks_to_convert(entry: &wire::FileChunks) -> u64 {
    let count = entry.file.as_ref().map_or(0, |file| file.chunk_count);
    let length = entry.held.as_ref().map_or(0, |held| held.length);
    [count, length].into_iter().filter(|&chunks| chunks <= MAX_CHUNKS).max().unwrap_or(0).into()
}

/// One result for each entry that was sent.
fn results(outcomes: Vec<FileOutcome>, malformed: Vec<Option<WireError>>) -> Vec<wire::FileResult> {
    let mut outcomes = outcomes.into_iter();
    let mut details = 0;
    let results = malformed.into_iter().filter_map(|error| match error {
        Some(error) => Some(FileOutcome::Invalid(error.to_string())),
        None => outcomes.next(),
    });
    let results = results.map(|outcome| {
        let mut result = wire::FileResult::from(outcome);
        details += result.detail.len();
        if details > DETAILS_BUDGET {
            result.detail.clear();
        }
        result
    });
    results.collect()
}

/// The token of a page of names is the last name of the page before, in hex so that no client builds on it.
fn list_token(prefix: &str, token: &str) -> Result<Option<FileName>, WireError> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = hex::decode(token).map_err(|_| WireError::Bounds("page_token"))?;
    let name = String::from_utf8(bytes).ok().and_then(|name| FileName::new(&name).ok());
    let name = name.filter(|name| name.as_str().starts_with(prefix));
    name.map(Some).ok_or(WireError::Bounds("page_token"))
}

fn wanted(request: &wire::FileLocationsRequest) -> Result<Wanted, WireError> {
    let holders = match request.holders_token.as_str() {
        _ if request.omit_holders => HolderPage::Omitted,
        "" if request.sample > 0 => HolderPage::Sample { after: None, most: request.sample },
        "" => HolderPage::First,
        token => {
            let after = token.parse().map_err(|_| WireError::Bounds("holders_token"))?;
            match request.sample {
                0 => HolderPage::After(after),
                most => HolderPage::Sample { after: Some(after), most },
            }
        }
    };
    let hashes_from = (!request.omit_hashes).then_some(request.first_hash);
    Ok(Wanted { hashes_from, signature: !request.omit_signature, holders })
}

impl From<Listing> for wire::ListFilesResponse {
    fn from(listing: Listing) -> Self {
        let files = listing.files.iter().map(|(file, full_holders, partial_holders)| wire::FileSummary {
            file: Some(file.into()),
            full_holders: *full_holders,
            partial_holders: *partial_holders,
        });
        let next_page_token = listing.next.map(|name| hex::encode(name.as_str())).unwrap_or_default();
        Self { files: files.collect(), next_page_token }
    }
}

/// With the hashes in the form that was asked for.
fn answer(locations: Locations, is_packed: bool) -> wire::FileLocationsResponse {
    let (readable, short) = match is_packed {
        true => (Vec::new(), locations.hashes),
        false => (readable(&locations.hashes), Bytes::new()),
    };
    wire::FileLocationsResponse {
        file: Some((&locations.file).into()),
        chunk_sha256: readable,
        packed_sha256: short,
        signature: locations.signature.as_ref().map(Into::into),
        holders: locations.holders.iter().map(Into::into).collect(),
        next_holders_token: locations.next.map(|peer| peer.to_string()).unwrap_or_default(),
    }
}
