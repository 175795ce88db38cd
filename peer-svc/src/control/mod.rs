//! The Control service: a person's wishes, passed on to the rooms that fulfil them. Local by default.
//!
//! A method here converts, calls and converts; errors become codes in one table.

mod convert;
mod sharing;

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use drizzle_proto::{Address, FileName, WireError, client::ClientError, client::TrackerClient, wire};
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

pub use self::sharing::ShareOrder;
use crate::{
    control::convert::count_into,
    download::Context,
    holdings::Holdings,
    register::Standing,
    serve::Uploads,
    share::{ShareError, Sharer},
    store::record::StateError,
    transfers::{StartError, Transfers},
};

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Everything that a person can reach.
#[derive(Debug)]
pub struct Backend {
    /// For files and locations.
    pub tracker: TrackerClient,
    /// Its address.
    pub tracker_address: Address,
    /// Whether there is a lease.
    pub standing: watch::Sender<Standing>,
    /// What is held.
    pub holdings: Arc<Holdings>,
    /// Shares files.
    pub sharer: Arc<Sharer>,
    /// Runs downloads.
    pub transfers: Arc<Transfers>,
    /// What transfers need.
    pub context: Arc<Context>,
    /// Serves chunks.
    pub uploads: Arc<Uploads>,
    /// Keeps count of background tasks.
    pub tasks: TaskTracker,
}

/// Why an unshare fails.
#[derive(Debug, thiserror::Error)]
pub enum UnshareError {
    /// Running.
    #[error("{0} is being downloaded; cancel that first")]
    Downloading(FileName),
    /// Nobody knows it.
    #[error("{0} is neither shared here nor registered by this peer")]
    NotFound(FileName),
    /// The local part is done.
    #[error(
        "{0} is no longer offered here, but the tracker cannot be reached to release its name; unshare it again later"
    )]
    TrackerAway(FileName),
    /// The tracker refused.
    #[error(transparent)]
    Tracker(#[from] ClientError),
    /// Recording failed.
    #[error(transparent)]
    State(#[from] StateError),
}

impl Backend {
    async fn unshare(&self, name: FileName) -> Result<bool, UnshareError> {
        if self.transfers.is_running(&name) {
            return Err(UnshareError::Downloading(name));
        }
        let (sharer, local) = (self.sharer.clone(), name.clone());
        let held = tokio::task::spawn_blocking(move || sharer.unshare(&local)).await;
        let held = held.map_err(|error| ClientError::from(Status::internal(error.to_string())))??;
        let lease = self.standing.borrow().lease;
        let withdrawn = match lease {
            Some(lease) => self.tracker.clone().withdraw_file(lease, &name).await,
            None => Err(Status::unavailable("no lease").into()),
        };
        match withdrawn {
            Ok(released) => Ok(released),
            Err(error) if error.is_unreachable() => {
                // The holding at least ends as soon as the tracker is back.
                held.into_iter().for_each(|file| self.holdings.tell_gone(file));
                Err(UnshareError::TrackerAway(name))
            }
            // Never registered, or somebody else's: the local part is all there was to do.
            Err(error)
                if held.is_some() && matches!(error.code(), tonic::Code::NotFound | tonic::Code::PermissionDenied) =>
            {
                Ok(false)
            }
            Err(error) if error.code() == tonic::Code::NotFound => Err(UnshareError::NotFound(name)),
            Err(error) => Err(error.into()),
        }
    }

    fn status(&self) -> wire::StatusResponse {
        let standing = self.standing.borrow().clone();
        let (slots, taken) = self.uploads.slots();
        let hashing = self.sharer.progress.read();
        let mut status = wire::StatusResponse {
            peer_id: self.context.peer.to_string(),
            advertise: standing.advertised.map(|address| address.to_string()).unwrap_or_default(),
            tracker: self.tracker_address.to_string(),
            tracker_connected: standing.lease.is_some(),
            dir: self.context.dir.to_string_lossy().into_owned(),
            upload_slots: u32::try_from(slots).unwrap_or(u32::MAX),
            uploads_running: u32::try_from(taken).unwrap_or(u32::MAX),
            uploaded_bytes: self.uploads.sent(),
            downloaded_bytes: self.context.downloaded.load(Ordering::Relaxed),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            transfers: self.transfers.list().iter().map(Into::into).collect(),
            hashing: (hashing.files_done < hashing.files_total).then(|| hashing.into()),
            ..Default::default()
        };
        count_into(&mut status, self.holdings.counts());
        status
    }
}

/// The one table from this service's errors to codes: see `control.proto`.
fn start_status(error: &StartError) -> Status {
    let text = error.to_string();
    match error {
        StartError::Tracker { source, .. } if source.is_unreachable() => Status::unavailable(text),
        StartError::Tracker { source, .. } => Status::new(source.code(), text),
        StartError::NoSuchChunk(_) | StartError::Output { .. } => Status::invalid_argument(text),
        StartError::DestinationExists(_) => Status::already_exists(text),
        StartError::Conflict(_) => Status::failed_precondition(text),
        StartError::State(_) => Status::internal(text),
        StartError::Stopping => Status::unavailable(text),
    }
}

fn share_status(error: &ShareError) -> Status {
    let text = error.to_string();
    match error {
        ShareError::NotFound(_) => Status::not_found(text),
        ShareError::NotRegular(_) | ShareError::Name { .. } | ShareError::Layout(_) => Status::invalid_argument(text),
        ShareError::Io { .. } | ShareError::Changing(_) => Status::failed_precondition(text),
        ShareError::State(_) => Status::internal(text),
        ShareError::Stopped => Status::unavailable(text),
    }
}

fn unshare_status(error: UnshareError) -> Status {
    let text = error.to_string();
    match error {
        UnshareError::Downloading(_) => Status::failed_precondition(text),
        UnshareError::NotFound(_) => Status::not_found(text),
        UnshareError::TrackerAway(_) => Status::unavailable(text),
        UnshareError::Tracker(error) => error.into(),
        UnshareError::State(_) => Status::internal(text),
    }
}

/// A tracker that cannot be reached is one code, whatever the transport called it.
fn pass_on(error: ClientError) -> Status {
    if error.is_unreachable() {
        Status::unavailable(format!("the tracker cannot be reached: {error}"))
    } else {
        error.into()
    }
}

fn name(text: &str) -> Result<FileName, Status> {
    FileName::new(text).map_err(|error| WireError::from(error).into())
}

/// The gRPC adapter.
#[derive(Debug, Clone)]
pub struct ControlService(pub Arc<Backend>);

#[tonic::async_trait]
impl wire::control_server::Control for ControlService {
    type ShareStream = EventStream<wire::ShareEvent>;
    type DownloadStream = EventStream<wire::DownloadEvent>;

    async fn share(&self, request: Request<wire::ShareRequest>) -> Result<Response<Self::ShareStream>, Status> {
        let order = ShareOrder::try_from(request.into_inner())?;
        let events = sharing::share(self.0.clone(), order).await.map_err(|error| share_status(&error))?;
        Ok(Response::new(Box::pin(events.map(Ok))))
    }

    async fn unshare(&self, request: Request<wire::UnshareRequest>) -> Result<Response<wire::UnshareResponse>, Status> {
        let name = name(&request.into_inner().name)?;
        let name_released = self.0.unshare(name).await.map_err(unshare_status)?;
        Ok(Response::new(wire::UnshareResponse { name_released }))
    }

    async fn download(
        &self,
        request: Request<wire::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let request = request.into_inner().try_into()?;
        let subscription = self.0.transfers.start(request).await.map_err(|error| start_status(&error))?;
        Ok(Response::new(Box::pin(subscription.map(|event| Ok((&event).into())))))
    }

    async fn list_transfers(
        &self,
        _: Request<wire::ListTransfersRequest>,
    ) -> Result<Response<wire::ListTransfersResponse>, Status> {
        let transfers = self.0.transfers.list().iter().map(Into::into).collect();
        Ok(Response::new(wire::ListTransfersResponse { transfers }))
    }

    async fn cancel_transfer(
        &self,
        request: Request<wire::CancelTransferRequest>,
    ) -> Result<Response<wire::CancelTransferResponse>, Status> {
        let name = name(&request.into_inner().name)?;
        if !self.0.transfers.cancel(&name).await {
            return Err(Status::not_found(format!("no download of {name} runs")));
        }
        Ok(Response::new(wire::CancelTransferResponse {}))
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        Ok(Response::new(self.0.status()))
    }

    async fn list_files(
        &self,
        request: Request<wire::ListFilesRequest>,
    ) -> Result<Response<wire::ListFilesResponse>, Status> {
        let answer = self.0.tracker.clone().list_files_wire(request.into_inner()).await;
        Ok(Response::new(answer.map_err(pass_on)?))
    }

    async fn file_locations(
        &self,
        request: Request<wire::FileLocationsRequest>,
    ) -> Result<Response<wire::FileLocationsResponse>, Status> {
        let answer = self.0.tracker.clone().file_locations_wire(request.into_inner()).await;
        Ok(Response::new(answer.map_err(pass_on)?))
    }
}
