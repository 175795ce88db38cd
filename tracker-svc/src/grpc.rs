//! The gRPC face: unwrap, call the registry, wrap. The only file here that knows wire messages.
//!
//! Never decides anything: a malformed field is a [`WireError`], everything else is the registry's answer.

use std::{
    collections::HashSet,
    pin::Pin,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use drizzle_proto::{
    Digest, FileName, PeerClaim, PeerId, WireError,
    announcement::{FileChunks, FileOutcome},
    convert::{hashes, readable},
    layout::MAX_CHUNKS,
    limits::{MAX_BATCH, MAX_BATCH_CHUNKS},
    net::transport::CALL_TIMEOUT,
    rights::Verb,
    wire::{self, tracker_server},
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_stream::{Stream, StreamExt};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Extensions, Request, Response, Status, Streaming};

use crate::{
    access::{Access, audit::By, denied::Denied, gate::peer_of, quota::Watching},
    error::Error,
    limits::{DEFAULT_PAGE, DETAILS_BUDGET, MAX_ANSWERING, MAX_PAGE},
    live::{introductions::MOST, watches::Newcomer},
    metrics::Metrics,
    registry::{HolderPage, Listing, Locations, Registry, Wanted},
    verdict::may_not_share,
    watch,
};

/// Milliseconds between renewals at most, however long the lease: what is revoked has to be known everywhere in 10 s.
const MOST_BETWEEN_RENEWALS: u32 = 5000;
/// Pages of names that are looked through in one call for those that the caller may read.
const PASSED_OVER: usize = 64;

/// Serves the tracker's methods.
pub(crate) struct Service {
    registry: Registry,
    access: Access,
    tasks: TaskTracker,
    stop: CancellationToken,
    answering: Semaphore,
    metrics: Metrics,
}

impl Service {
    /// Serves a registry to those who may; `stop` ends the watches, whose tasks are counted in `tasks`.
    pub(crate) fn new(
        registry: Registry,
        access: Access,
        tasks: TaskTracker,
        stop: CancellationToken,
        metrics: Metrics,
    ) -> Self {
        Self { registry, access, tasks, stop, answering: Semaphore::new(MAX_ANSWERING), metrics }
    }

    /// Refused unless the lease is the caller's.
    fn leased(&self, extensions: &Extensions, lease: u64, now: Instant) -> Result<Option<PeerId>, Error> {
        let peer = peer_of(extensions)?;
        match peer {
            Some(peer) if self.registry.holder_of(lease, now)? != peer => {
                self.refused(extensions, "lease", &Denied::OtherLease);
                Err(Denied::OtherLease.into())
            }
            _ => Ok(peer),
        }
    }

    /// The caller, if callers are told apart; refused unless it may read that name.
    fn reader(&self, extensions: &Extensions, name: &FileName) -> Result<Option<PeerId>, Error> {
        let peer = peer_of(extensions)?;
        let allowed = self.access.reads(peer, name);
        allowed.inspect_err(|denied| self.refused(extensions, &format!("{} {name}", Verb::Read), denied))?;
        Ok(peer)
    }

    fn refused(&self, extensions: &Extensions, what: &str, denied: &Denied) {
        self.access.audit().denied(By::of(extensions), what, denied);
    }

    /// Which of these names a peer may not register first, and what is wrong with those that it may not even read.
    fn bars(
        &self,
        extensions: &Extensions,
        peer: Option<PeerId>,
        entries: &[FileChunks],
    ) -> Result<(HashSet<FileName>, HashSet<FileName>), Error> {
        let hashes = entries.iter().map(|entry| entry.hashes.len()).sum::<usize>();
        let named = entries.iter().filter(|entry| !entry.hashes.is_empty()).count();
        let brings = self.access.brings(peer, named, 32 * hashes);
        brings.inspect_err(|denied| self.refused(extensions, "announce", denied))?;
        let (mut barred, mut hidden) = (HashSet::new(), HashSet::new());
        for name in entries.iter().map(|entry| &entry.file.name) {
            if self.access.may(peer, Verb::Share, name).is_err() {
                barred.insert(name.clone());
                if let Err(denied) = self.access.may(peer, Verb::Read, name) {
                    self.refused(extensions, &format!("announce {name}"), &denied);
                    hidden.insert(name.clone());
                }
            }
        }
        Ok((barred, hidden))
    }

    /// What a peer is told of rights beside its lease.
    fn rights(
        &self,
        peer: Option<PeerId>,
        known: u64,
        wants_ticket: bool,
    ) -> (Option<wire::Ticket>, Option<wire::Access>) {
        let told = self.access.told().borrow().clone();
        // Whatever changed may be what this peer may read.
        let ticket =
            (wants_ticket || told.version != known).then(|| self.access.ticket(peer, SystemTime::now())).flatten();
        (ticket, (told.version != known).then(|| (&*told).into()))
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
        let certified = peer_of(request.extensions()).map_err(Error::from)?;
        let by = By::of(request.extensions());
        let claim = PeerClaim::try_from(request.into_inner())?;
        let claimed = claim.peer.id();
        if let Some(certified) = certified.filter(|certified| *certified != claimed) {
            let denied = Denied::OtherId { claimed, certified };
            self.access.audit().denied(by, &format!("register as {claimed}"), &denied);
            return Err(Error::from(denied).into());
        }
        let lease_id = self.registry.register_peer(claim, now)?;
        let warning = self.registry.warning(lease_id, now).unwrap_or_default();
        let lease_millis = u32::try_from(self.registry.lease().as_millis()).unwrap_or(u32::MAX);
        // What is revoked or stopped is told with renewals.
        let renew_millis = (lease_millis / 3).min(MOST_BETWEEN_RENEWALS);
        let (ticket, access) = self.rights(certified, 0, true);
        Ok(Response::new(wire::RegisterPeerResponse { lease_id, lease_millis, renew_millis, warning, ticket, access }))
    }

    async fn register_chunk(
        &self,
        request: Request<wire::RegisterChunkRequest>,
    ) -> Answer<wire::RegisterChunkResponse> {
        let (_, extensions, wire::RegisterChunkRequest { lease_id, files }) = request.into_parts();
        let now = Instant::now();
        let peer = self.leased(&extensions, lease_id, now)?;
        let (entries, malformed) = entries(files)?;
        let (barred, hidden) = self.bars(&extensions, peer, &entries)?;
        let outcomes = match hidden.is_empty() {
            true => self.registry.announce_barred(lease_id, entries, barred, now).await?,
            false => {
                let names: Vec<FileName> = entries.iter().map(|entry| entry.file.name.clone()).collect();
                let seen = entries.into_iter().filter(|entry| !hidden.contains(&entry.file.name)).collect();
                let mut seen = self.registry.announce_barred(lease_id, seen, barred, now).await?.into_iter();
                let outcome = |name: &FileName| match hidden.contains(name) {
                    true => Some(FileOutcome::Invalid(may_not_share(name))),
                    false => seen.next(),
                };
                names.iter().filter_map(outcome).collect()
            }
        };
        let pause_millis = u32::try_from(self.registry.announce_pause().as_millis()).unwrap_or(u32::MAX);
        Ok(Response::new(wire::RegisterChunkResponse { results: results(outcomes, malformed), pause_millis }))
    }

    async fn register_manifest(
        &self,
        request: Request<Streaming<wire::RegisterManifestRequest>>,
    ) -> Answer<wire::RegisterManifestResponse> {
        let (_, extensions, mut messages) = request.into_parts();
        let first = next_of(&mut messages).await?.ok_or(WireError::Missing("file"))?;
        let lease = first.lease_id;
        let peer = self.leased(&extensions, lease, Instant::now())?;
        let mut entry = FileChunks::try_from(first.file.ok_or(WireError::Missing("file"))?)?;
        loop {
            let hashes = std::mem::take(&mut entry.hashes);
            let next = entry.first_hash + u32::try_from(hashes.len()).unwrap_or(u32::MAX);
            let told = [FileChunks { hashes, ..entry.clone() }];
            let (barred, hidden) = self.bars(&extensions, peer, &told)?;
            if let Some(name) = hidden.into_iter().next() {
                let result = FileOutcome::Invalid(may_not_share(&name)).into();
                return Ok(Response::new(wire::RegisterManifestResponse { result: Some(result) }));
            }
            let outcome = self.registry.announce_barred(lease, told.into(), barred, Instant::now()).await?.pop();
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
        let (lease, now) = (request.get_ref().lease_id, Instant::now());
        let peer = self.leased(request.extensions(), lease, now)?;
        let wire::RenewLeaseRequest { access_version, wants_ticket, .. } = *request.get_ref();
        let (released, warning) = self.registry.renew(lease, now)?;
        let (ticket, access) = self.rights(peer, access_version, wants_ticket);
        let (released, warning) = (released.iter().map(Into::into).collect(), warning.unwrap_or_default());
        Ok(Response::new(wire::RenewLeaseResponse { released, warning, ticket, access }))
    }

    async fn leave(&self, request: Request<wire::LeaveRequest>) -> Answer<wire::LeaveResponse> {
        let lease = request.get_ref().lease_id;
        match self.leased(request.extensions(), lease, Instant::now()) {
            // It is gone.
            Err(Error::UnknownLease) => {}
            known => {
                known?;
                self.registry.leave(lease);
            }
        }
        Ok(Response::new(wire::LeaveResponse {}))
    }

    async fn withdraw_file(&self, request: Request<wire::WithdrawFileRequest>) -> Answer<wire::WithdrawFileResponse> {
        let (by, now) = (By::of(request.extensions()), Instant::now());
        let peer = self.leased(request.extensions(), request.get_ref().lease_id, now)?;
        let name = file_name(&request.get_ref().name)?;
        let lease = request.get_ref().lease_id;
        // Whoever holds it may let go of it.
        let may_release = self.access.may(peer, Verb::Withdraw, &name).is_ok();
        let name_released = self.registry.withdraw(lease, name.clone(), may_release, now).await?;
        if name_released {
            self.access.audit().done("withdraw", by, name.as_str());
        }
        Ok(Response::new(wire::WithdrawFileResponse { name_released }))
    }

    async fn list_files(&self, request: Request<wire::ListFilesRequest>) -> Answer<wire::ListFilesResponse> {
        let peer = peer_of(request.extensions()).map_err(Error::from)?;
        let wire::ListFilesRequest { prefix, page_size, page_token } = request.into_inner();
        let after = list_token(&prefix, &page_token)?;
        let limit = if page_size == 0 { DEFAULT_PAGE } else { page_size.min(MAX_PAGE) };
        let _slot = self.slot().await?;
        let listing = match peer.filter(|_| !self.access.reads_all(peer)) {
            None => self.registry.list(prefix, after, limit as usize).await?,
            Some(peer) => self.readable(peer, prefix, after, limit as usize).await?,
        };
        Ok(Response::new(listing.into()))
    }

    async fn file_locations(
        &self,
        request: Request<wire::FileLocationsRequest>,
    ) -> Answer<wire::FileLocationsResponse> {
        let (_, extensions, request) = request.into_parts();
        let (name, wanted, is_packed) = (file_name(&request.name)?, wanted(&request)?, request.packed);
        self.reader(&extensions, &name)?;
        let _slot = self.slot().await?;
        let locations = self.registry.locate(name, wanted).await?;
        Ok(Response::new(answer(locations, is_packed)))
    }

    type WatchFileStream = Pin<Box<dyn Stream<Item = Result<wire::WatchFileResponse, Status>> + Send>>;

    async fn watch_file(&self, request: Request<wire::WatchFileRequest>) -> Answer<Self::WatchFileStream> {
        let (_, extensions, request) = request.into_parts();
        let (name, newcomer) = (file_name(&request.name)?, newcomer(&request)?);
        let peer = self.reader(&extensions, &name)?;
        let counted = self.access.watches(peer).map_err(Error::from)?;
        let watcher = self.registry.watch(name.clone(), newcomer, Instant::now()).await?;
        let ends = no_longer_allowed(self.access.clone(), peer, name, counted);
        let messages = watch::stream(watcher, &self.tasks, ends, self.stop.clone(), self.metrics.watch_lag.clone());
        Ok(Response::new(Box::pin(messages.map(|message| Ok((&message?).into())))))
    }
}

impl Service {
    /// A page of the names that a peer may read. Others are passed over, some pages' worth of them in one call.
    async fn readable(
        &self,
        peer: PeerId,
        prefix: String,
        mut after: Option<FileName>,
        limit: usize,
    ) -> Result<Listing, Error> {
        let mut found = Listing { files: Vec::new(), next: None };
        if !self.access.reads_some(peer, &prefix) {
            return Ok(found);
        }
        for _ in 0..PASSED_OVER {
            let page = self.registry.list(prefix.clone(), after.take(), limit - found.files.len()).await?;
            let may = |name: &FileName| self.access.may(Some(peer), Verb::Read, name).is_ok();
            found.files.extend(page.files.into_iter().filter(|(file, ..)| may(&file.name)));
            found.next = page.next;
            if found.next.is_none() || found.files.len() >= limit {
                break;
            }
            after = found.next.clone();
        }
        Ok(found)
    }
}

/// Ends once a peer may not read a name any more. Counts as a watch until then.
async fn no_longer_allowed(access: Access, peer: Option<PeerId>, name: FileName, _counted: Watching) -> Error {
    let mut told = access.told();
    loop {
        match access.reads(peer, &name) {
            Err(denied) => return denied.into(),
            // The sender lives as long as `access`.
            Ok(()) => drop(told.changed().await),
        }
    }
}

fn file_name(text: &str) -> Result<FileName, WireError> {
    Ok(FileName::new(text)?)
}

/// The watcher of a request, if it wants to be introduced.
pub(crate) fn newcomer(request: &wire::WatchFileRequest) -> Result<Option<Newcomer>, WireError> {
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
pub(crate) fn entries(files: Vec<wire::FileChunks>) -> Result<(Vec<FileChunks>, Vec<Option<WireError>>), WireError> {
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
pub(crate) fn results(outcomes: Vec<FileOutcome>, malformed: Vec<Option<WireError>>) -> Vec<wire::FileResult> {
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
pub(crate) fn list_token(prefix: &str, token: &str) -> Result<Option<FileName>, WireError> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = hex::decode(token).map_err(|_| WireError::Bounds("page_token"))?;
    let name = String::from_utf8(bytes).ok().and_then(|name| FileName::new(&name).ok());
    let name = name.filter(|name| name.as_str().starts_with(prefix));
    name.map(Some).ok_or(WireError::Bounds("page_token"))
}

pub(crate) fn wanted(request: &wire::FileLocationsRequest) -> Result<Wanted, WireError> {
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
