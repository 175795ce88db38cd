//! The Control service: a person's wishes, passed on to the rooms that fulfil them. Local by default.
//!
//! [`listener`] is where it listens, [`socket`] who may connect there. A method here converts, calls and converts; errors
//! become codes in one table.

mod backend;
mod convert;
mod listener;
mod reasons;
mod sharing;
mod signing;
mod socket;

use std::{pin::Pin, sync::Arc};

use drizzle_engine::callers::Leave;
use drizzle_proto::{FileName, WireError, client::ClientError, wire};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

pub use self::socket::SocketError;
pub(crate) use self::{backend::Backend, listener::listen, socket::Socket};
use self::{
    backend::UnshareError,
    convert::{LimitsOrder, ShareOrder},
    signing::SignError,
};
use crate::{share::ShareError, store::hash::HashError, transfers::StartError};

/// For fuzzing: an order to share.
pub(crate) fn converts_share(request: wire::ShareRequest) {
    let named = request.name.clone();
    if let Ok(order) = ShareOrder::try_from(request) {
        assert!(!order.paths.is_empty() && order.paths.iter().all(|path| path.is_absolute()));
        assert_eq!(order.name.map(|name| name.to_string()).unwrap_or_default(), named);
    }
}

/// For fuzzing: an order of limits.
pub(crate) fn converts_limits(request: wire::LimitsRequest) {
    let _ = LimitsOrder::try_from(request);
}

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The one table from this service's errors to codes: see `control.proto`.
fn start_status(error: &StartError) -> Status {
    let text = error.to_string();
    match error {
        StartError::Tracker { source, .. } if source.is_unreachable() => Status::unavailable(text),
        StartError::Tracker { source, .. } => Status::new(source.code(), text),
        StartError::NoSuchChunk(_) | StartError::NotAFile { .. } | StartError::Output { .. } => {
            Status::invalid_argument(text)
        }
        StartError::Outside(_) => Status::permission_denied(text),
        StartError::Untrusted { .. } => Status::permission_denied(text),
        StartError::DestinationExists(_) => Status::already_exists(text),
        StartError::Conflict { .. } => Status::failed_precondition(text),
        StartError::Journal(_) | StartError::Panicked => Status::internal(text),
        StartError::Stopping => Status::unavailable(text),
    }
}

fn share_status(error: &ShareError) -> Status {
    let text = error.to_string();
    match error {
        ShareError::Hash(HashError::NotFound(_)) => Status::not_found(text),
        ShareError::Hash(HashError::NotRegular(_) | HashError::Layout(_)) | ShareError::Name { .. } => {
            Status::invalid_argument(text)
        }
        ShareError::Hash(HashError::Io { .. } | HashError::Changing(_)) => Status::failed_precondition(text),
        ShareError::Outside(_) => Status::permission_denied(text),
        ShareError::Hash(HashError::Stopped) => Status::unavailable(text),
        ShareError::Journal(_) | ShareError::Panicked => Status::internal(text),
    }
}

fn unshare_status(error: UnshareError) -> Status {
    let text = error.to_string();
    match error {
        UnshareError::Downloading(_) => Status::failed_precondition(text),
        UnshareError::NotFound(_) => Status::not_found(text),
        UnshareError::TrackerAway(_) | UnshareError::Stopping => Status::unavailable(text),
        UnshareError::Tracker(error) => error.into(),
        UnshareError::Journal(_) | UnshareError::Panicked => Status::internal(text),
    }
}

fn sign_status(error: &SignError) -> Status {
    let text = error.to_string();
    match error {
        SignError::NotShared { .. } => Status::not_found(text),
        SignError::Untrusted { .. } => Status::permission_denied(text),
        SignError::Refused { .. } | SignError::NotOwner { .. } => Status::failed_precondition(text),
        SignError::Stopping => Status::unavailable(text),
        SignError::Journal(_) | SignError::Panicked => Status::internal(text),
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
pub(crate) struct ControlService(pub(crate) Arc<Backend>);

#[tonic::async_trait]
impl wire::control_server::Control for ControlService {
    type ShareStream = EventStream<wire::ShareEvent>;
    type DownloadStream = EventStream<wire::DownloadEvent>;

    async fn share(&self, request: Request<wire::ShareRequest>) -> Result<Response<Self::ShareStream>, Status> {
        let order = ShareOrder::try_from(request.into_inner())?;
        let events = sharing::share(self.0.clone(), order).await.map_err(|error| share_status(&error))?;
        Ok(Response::new(Box::pin(events.map(Ok))))
    }

    async fn sign_file(
        &self,
        request: Request<wire::SignFileRequest>,
    ) -> Result<Response<wire::SignFileResponse>, Status> {
        let signature = request.into_inner().signature.ok_or(WireError::Missing("signature"))?.try_into()?;
        let pending = signing::sign(&self.0, signature).await.map_err(|error| sign_status(&error))?;
        Ok(Response::new(wire::SignFileResponse { pending }))
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

    async fn explain(&self, request: Request<wire::ExplainRequest>) -> Result<Response<wire::ExplainResponse>, Status> {
        let text = request.into_inner().name;
        let wanted = if text.is_empty() { None } else { Some(name(&text)?) };
        let reasons = self.0.transfers.explain(wanted.as_ref());
        if let (Some(name), true) = (&wanted, reasons.is_empty()) {
            return Err(Status::not_found(format!("no download of {name} runs, or ended lately")));
        }
        let explanations = reasons.iter().map(|reasons| (&**reasons).into()).collect();
        Ok(Response::new(wire::ExplainResponse { explanations }))
    }

    async fn cancel_transfer(
        &self,
        request: Request<wire::CancelTransferRequest>,
    ) -> Result<Response<wire::CancelTransferResponse>, Status> {
        let request = request.into_inner();
        let (name, caller) = (name(&request.name)?, convert::caller(request.caller)?);
        let left = self.0.transfers.leave(&name, Some(caller.as_str()).filter(|caller| !caller.is_empty())).await;
        let left = left.ok_or_else(|| Status::not_found(format!("no download of {name} runs")))?;
        Ok(Response::new(wire::CancelTransferResponse { goes_on: left == Leave::GoesOn }))
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        Ok(Response::new(self.0.monitor.snapshot().into()))
    }

    async fn limits(&self, request: Request<wire::LimitsRequest>) -> Result<Response<wire::LimitsResponse>, Status> {
        let order = LimitsOrder::try_from(request.into_inner());
        let LimitsOrder { up, down } = order.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new((&self.0.limits.change(up, down)).into()))
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
