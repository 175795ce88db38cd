//! Clients that speak domain types. Every unary call has a deadline, so that a tracker that hangs is
//! an error and not a wait; streams are bounded by the keep-alive of their connection.

mod answers;
mod chunk_stream;
mod enrolment;
mod peer;
mod rights;

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Status};

pub use self::{
    answers::{Content, FileSummary, Lease, Renewal, Wish},
    chunk_stream::ChunkStream,
    enrolment::enrol,
    peer::{ChunkWish, GONE_TRAILER, PEER_ID_TRAILER, PeerClient},
    rights::{KnownRights, Rights, STOPPED_TRAILER},
};
use crate::{
    Address, Digest, FileInfo, FileName, Manifest, PeerClaim, PeerId, Signature,
    announcement::{FileChunks, FileOutcome},
    convert::{self, WireError},
    holder::{Holder, HolderChanges},
    limits::{MAX_HASHES, MOST_HOLDERS},
    manifest::ManifestError,
    net::{
        innermost,
        tls::Meant,
        transport::{CALL_TIMEOUT, Transport},
        wary::{Observer, Wary},
    },
    wire::{self, tracker_client},
};

/// A page of a longer manifest with fewer hashes is a mistake: it would take very many.
const LEAST_PAGE: usize = 1024;
/// All pages of holders may take so long.
const PAGES_TIMEOUT: Duration = Duration::from_secs(60);
/// Pages of a long manifest that are asked for at once, each 256 KiB.
const PAGES_AT_ONCE: usize = 8;

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The other end said no, or could not be reached.
    #[error("{}", status_text(.0))]
    Status(#[from] Status),
    /// The other end sent something that cannot be.
    #[error("malformed answer: {0}")]
    Malformed(#[from] WireError),
    /// The manifest that the tracker sent contradicts itself.
    #[error("malformed manifest: {0}")]
    Manifest(#[from] ManifestError),
}

/// What a status says: of one that the transport made up, what happened on the connection, which its own message
/// ("transport error") leaves out.
pub fn status_text(status: &Status) -> String {
    match status.source() {
        Some(source) => innermost(source).to_string(),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

impl ClientError {
    /// The gRPC code; `Internal` for a malformed answer.
    pub fn code(&self) -> Code {
        match self {
            Self::Status(status) => status.code(),
            Self::Malformed(_) | Self::Manifest(_) => Code::Internal,
        }
    }

    /// Whether the other end was not reached, as opposed to having refused.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
    }
}

impl From<ClientError> for Status {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Status(status) => status,
            malformed => Status::internal(malformed.to_string()),
        }
    }
}

/// Talks to the tracker. Cheap to clone; all clones share one connection, which is made again when it is lost.
#[derive(Debug, Clone)]
pub struct TrackerClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    transport: Transport,
    tracker: Address,
    /// Replaced as a whole, so that the lock is held for a moment only.
    current: Mutex<tracker_client::TrackerClient<Wary>>,
    observer: Option<Observer>,
}

/// A text of another program, for a person: cut, and without control characters.
fn said(text: String) -> Option<String> {
    let text: String = text.chars().filter(|c| !c.is_control()).take(1000).collect();
    if text.is_empty() { None } else { Some(text) }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Waits at most [`CALL_TIMEOUT`] even if the other end ignores the deadline in the request.
async fn call<T>(answer: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, ClientError> {
    call_within(CALL_TIMEOUT, answer).await
}

async fn call_within<T>(
    patience: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", patience.as_secs())).into()),
    }
}

impl TrackerClient {
    /// Connects when first used, and again whenever the connection is lost.
    pub fn new(transport: &Transport, tracker: &Address) -> Result<Self, tonic::transport::Error> {
        Self::observed(transport, tracker, None)
    }

    /// Likewise; of each call an observer hears.
    pub fn observed(
        transport: &Transport,
        tracker: &Address,
        observer: Option<Observer>,
    ) -> Result<Self, tonic::transport::Error> {
        let channel = Wary::observed(transport.connect_lazy(tracker, Meant::Tracker)?, observer.clone());
        let current = Mutex::new(tracker_client::TrackerClient::new(channel));
        let (transport, tracker) = (transport.clone(), tracker.clone());
        Ok(Self { shared: Arc::new(Shared { transport, tracker, current, observer }) })
    }

    fn inner(&self) -> tracker_client::TrackerClient<Wary> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the next call of every clone over a new connection: the present one hangs when this machine's address has
    /// changed, for as long as it takes to notice.
    pub fn reconnect(&self) {
        if let Ok(channel) = self.shared.transport.connect_lazy(&self.shared.tracker, Meant::Tracker) {
            let new = tracker_client::TrackerClient::new(Wary::observed(channel, self.shared.observer.clone()));
            *self.shared.current.lock().unwrap_or_else(PoisonError::into_inner) = new;
        }
    }

    /// Opens a lease.
    pub async fn register_peer(&mut self, claim: impl Into<PeerClaim>) -> Result<Lease, ClientError> {
        let answer = call(self.inner().register_peer(timed((&claim.into()).into()))).await?;
        let renew = Duration::from_millis(answer.renew_millis.into());
        if renew < Duration::from_millis(10) {
            return Err(WireError::Bounds("renew_millis").into());
        }
        let rights = Rights::of(answer.ticket, answer.access)?;
        Ok(Lease { id: answer.lease_id, renew_every: renew, warning: said(answer.warning), rights })
    }

    /// Announces chunks; one outcome for each entry, in order. At most [`crate::limits::MAX_BATCH`] entries.
    pub async fn register_chunk(&mut self, lease: u64, files: &[FileChunks]) -> Result<Vec<FileOutcome>, ClientError> {
        Ok(self.announce(lease, files).await?.0)
    }

    /// [`TrackerClient::register_chunk`], and how long to wait before the next one.
    pub async fn announce(
        &mut self,
        lease: u64,
        files: impl IntoIterator<Item = &FileChunks>,
    ) -> Result<(Vec<FileOutcome>, Duration), ClientError> {
        let files: Vec<wire::FileChunks> = files.into_iter().map(Into::into).collect();
        let sent = files.len();
        let answer =
            call(self.inner().register_chunk(timed(wire::RegisterChunkRequest { lease_id: lease, files }))).await?;
        if answer.results.len() != sent {
            return Err(WireError::Bounds("results").into());
        }
        let outcomes = answer.results.into_iter().map(FileOutcome::try_from).collect::<Result<_, _>>()?;
        Ok((outcomes, Duration::from_millis(answer.pause_millis.into())))
    }

    /// Announces one file with the hashes that the entry has and all of its manifest that follow, however many.
    pub async fn register_manifest(
        &mut self,
        lease: u64,
        entry: &FileChunks,
        manifest: &Manifest,
    ) -> Result<FileOutcome, ClientError> {
        let manifest = manifest.clone();
        let first = wire::RegisterManifestRequest { lease_id: lease, file: Some(entry.into()), ..Default::default() };
        let sent = entry.first_hash as usize + entry.hashes.len();
        let pages = (sent..manifest.hashes().len()).step_by(MAX_HASHES);
        let messages = 1 + pages.len();
        let rest = pages.map(move |first| {
            let page = manifest.hashes()[first..].iter().copied().take(MAX_HASHES).collect::<Vec<_>>();
            wire::RegisterManifestRequest { packed_sha256: convert::packed(&page).into(), ..Default::default() }
        });
        let mut request = Request::new(tokio_stream::iter(std::iter::once(first).chain(rest)));
        // As long as so many calls might take.
        let patience = CALL_TIMEOUT * u32::try_from(messages).unwrap_or(u32::MAX);
        request.set_timeout(patience);
        let answer = call_within(patience, self.inner().register_manifest(request)).await?;
        Ok(answer.result.ok_or(WireError::Missing("result"))?.try_into()?)
    }

    /// Keeps a lease alive.
    pub async fn renew_lease(&mut self, lease: u64, known: KnownRights) -> Result<Renewal, ClientError> {
        let KnownRights { access_version, wants_ticket } = known;
        let request = wire::RenewLeaseRequest { lease_id: lease, access_version, wants_ticket };
        let answer = call(self.inner().renew_lease(timed(request))).await?;
        let released = answer.released.into_iter().map(FileInfo::try_from).collect::<Result<_, _>>()?;
        Ok(Renewal { released, warning: said(answer.warning), rights: Rights::of(answer.ticket, answer.access)? })
    }

    /// Ends a lease.
    pub async fn leave(&mut self, lease: u64) -> Result<(), ClientError> {
        call(self.inner().leave(timed(wire::LeaveRequest { lease_id: lease }))).await?;
        Ok(())
    }

    /// Takes a file back; whether its name is free now.
    pub async fn withdraw_file(&mut self, lease: u64, name: &FileName) -> Result<bool, ClientError> {
        let request = wire::WithdrawFileRequest { lease_id: lease, name: name.to_string() };
        Ok(call(self.inner().withdraw_file(timed(request))).await?.name_released)
    }

    /// One page of names, and the token of the next page unless this is the last.
    pub async fn list_files(
        &mut self,
        request: wire::ListFilesRequest,
    ) -> Result<(Vec<FileSummary>, Option<String>), ClientError> {
        let answer = self.list_files_wire(request).await?;
        let files = answer.files.into_iter().map(|summary| {
            let file = summary.file.ok_or(WireError::Missing("file"))?.try_into()?;
            Ok(FileSummary { file, full_holders: summary.full_holders, partial_holders: summary.partial_holders })
        });
        let files = files.collect::<Result<_, WireError>>()?;
        Ok((files, Some(answer.next_page_token).filter(|token| !token.is_empty())))
    }

    /// [`TrackerClient::list_files`], passed through unconverted.
    pub async fn list_files_wire(
        &mut self,
        request: wire::ListFilesRequest,
    ) -> Result<wire::ListFilesResponse, ClientError> {
        call(self.inner().list_files(timed(request))).await
    }

    /// `FileLocations`, passed through unconverted.
    pub async fn file_locations_wire(
        &mut self,
        request: wire::FileLocationsRequest,
    ) -> Result<wire::FileLocationsResponse, ClientError> {
        call(self.inner().file_locations(timed(request))).await
    }

    /// A file's whole manifest, page by page, checked against its id.
    pub async fn manifest(&mut self, name: &FileName) -> Result<Manifest, ClientError> {
        Ok(self.content(name, PeerId::from_bytes([0; 16]), 0).await?.manifest)
    }

    /// A file's whole manifest, checked against its id; its signature; and some of its holders, at most `sample`, which
    /// are other ones for another `own` peer. The pages of a long manifest are asked for beside each other.
    pub async fn content(&mut self, name: &FileName, own: PeerId, sample: u32) -> Result<Content, ClientError> {
        let request = wire::FileLocationsRequest {
            name: name.to_string(),
            omit_holders: sample == 0,
            holders_token: own.to_string(),
            sample,
            packed: true,
            ..Default::default()
        };
        let answer = self.file_locations_wire(request).await?;
        // A tracker of an earlier version gives a page.
        let holders = convert::holders(answer.holders.into_iter().take(sample as usize).collect())?;
        let file: FileInfo = answer.file.ok_or(WireError::Missing("file"))?.try_into()?;
        let mut hashes = convert::hashes(&answer.chunk_sha256, &answer.packed_sha256)?;
        self.rest_of(&file, &mut hashes).await?;
        let manifest = Manifest::new(file.layout, hashes)?;
        // Another file took the name between two pages, or the tracker is broken.
        if manifest.id() != file.id {
            return Err(Status::aborted(format!("{name} was registered anew meanwhile; try again")).into());
        }
        Ok(Content { manifest, signature: answer.signature.map(Signature::try_from).transpose(), holders })
    }

    /// Adds the hashes that follow on the first page of a manifest.
    async fn rest_of(&self, file: &FileInfo, hashes: &mut Vec<Digest>) -> Result<(), ClientError> {
        let count = file.layout.chunk_count().get();
        let page = u32::try_from(hashes.len()).unwrap_or(u32::MAX);
        if page >= count {
            return Ok(());
        }
        if hashes.len() < LEAST_PAGE {
            return Err(WireError::Bounds("packed_sha256").into());
        }
        let mut firsts = (page..count).step_by(page as usize);
        let mut asked = JoinSet::new();
        let mut pages: BTreeMap<u32, Vec<Digest>> = BTreeMap::new();
        loop {
            while asked.len() < PAGES_AT_ONCE
                && let Some(first_hash) = firsts.next()
            {
                let (mut client, name) = (self.clone(), file.name.to_string());
                asked.spawn(async move {
                    let request = wire::FileLocationsRequest {
                        name,
                        first_hash,
                        omit_holders: true,
                        omit_signature: true,
                        packed: true,
                        ..Default::default()
                    };
                    let answer = client.file_locations_wire(request).await?;
                    let hashes = convert::hashes(&answer.chunk_sha256, &answer.packed_sha256)?;
                    // Not more than is missing, whatever the tracker says.
                    if hashes.len() != page.min(count - first_hash) as usize {
                        return Err(WireError::Bounds("packed_sha256").into());
                    }
                    Ok::<_, ClientError>((first_hash, hashes))
                });
            }
            let Some(answered) = asked.join_next().await else { break };
            let answered = answered.map_err(|error| Status::internal(error.to_string()))?;
            pages.extend([answered?]);
        }
        hashes.extend(pages.into_values().flatten());
        Ok(())
    }

    /// What a name stands for, and what its owner signed of that.
    pub async fn signature(
        &mut self,
        name: &FileName,
    ) -> Result<(FileInfo, Result<Option<Signature>, WireError>), ClientError> {
        let request = wire::FileLocationsRequest {
            name: name.to_string(),
            omit_hashes: true,
            omit_holders: true,
            ..Default::default()
        };
        let answer = self.file_locations_wire(request).await?;
        let file = FileInfo::try_from(answer.file.ok_or(WireError::Missing("file"))?)?;
        // What is signed of another one is no answer.
        if file.name != *name {
            return Err(WireError::OtherFile.into());
        }
        Ok((file, answer.signature.map(Signature::try_from).transpose()))
    }

    /// Every live holder of a file.
    pub async fn holders(&mut self, name: &FileName) -> Result<(FileInfo, Vec<Holder>), ClientError> {
        let mut holders = Vec::new();
        let file = self.each_holder(name, |holder| holders.push(holder)).await?;
        Ok((file, holders))
    }

    /// Gives every live holder of a file to `take`, page by page: all of them together may be much. Ends whatever the
    /// tracker answers: with an error if a page does not go on, or there are more than any swarm has.
    pub async fn each_holder(&mut self, name: &FileName, take: impl FnMut(Holder)) -> Result<FileInfo, ClientError> {
        let late = |_| Status::deadline_exceeded("the pages of holders have no end");
        tokio::time::timeout(PAGES_TIMEOUT, self.every_holder(name, take)).await.map_err(late)?
    }

    async fn every_holder(&mut self, name: &FileName, mut take: impl FnMut(Holder)) -> Result<FileInfo, ClientError> {
        let mut token = String::new();
        let mut taken = 0;
        loop {
            let request = wire::FileLocationsRequest {
                name: name.to_string(),
                omit_hashes: true,
                omit_signature: true,
                holders_token: token,
                ..Default::default()
            };
            let answer = self.file_locations_wire(request).await?;
            let page = convert::holders(answer.holders)?;
            taken += page.len();
            token = answer.next_holders_token;
            if taken > MOST_HOLDERS || page.is_empty() && !token.is_empty() {
                return Err(WireError::Bounds("holders").into());
            }
            page.into_iter().for_each(&mut take);
            if token.is_empty() {
                return Ok(answer.file.ok_or(WireError::Missing("file"))?.try_into()?);
            }
        }
    }

    /// Changes of a file's holders: a snapshot, then batches. With `wish`, of neighbours alone.
    pub async fn watch_file(
        &mut self,
        name: &FileName,
        wish: Option<Wish>,
    ) -> Result<impl Stream<Item = Result<HolderChanges, ClientError>> + Unpin + Send + use<>, ClientError> {
        // No deadline on the request: it would end the stream.
        let mut request = wire::WatchFileRequest { name: name.to_string(), ..Default::default() };
        if let Some(Wish { lease, neighbours, known }) = wish {
            (request.lease_id, request.neighbours) = (lease, neighbours);
            request.known = known.iter().map(ToString::to_string).collect();
        }
        let stream = call(self.inner().watch_file(request)).await?;
        Ok(stream.map(|message| Ok(message?.try_into()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_fails_says_why_and_once() {
        let nowhere = Address::new("127.0.0.1:1").unwrap();
        let mut tracker = TrackerClient::new(&Transport::plaintext(), &nowhere).unwrap();
        let error = tracker.renew_lease(1, KnownRights::default()).await.unwrap_err();
        assert!(error.is_unreachable());
        assert_eq!(error.to_string(), "Connection refused (os error 111)");
    }

    #[test]
    fn what_the_other_end_says_is_told_as_it_is() {
        let text = |status: Status| ClientError::from(status).to_string();
        assert_eq!(text(Status::not_found("there is no file \"a\"")), "there is no file \"a\"");
        assert_eq!(text(Status::internal("")), "Internal error", "never an empty line");
    }
}
