//! What an operator does with a running tracker: the service behind the commands `files`, `drop` and `reassign`, and the
//! socket that it is served on.
//!
//! The socket lies in a folder of the data folder that only the tracker's own user may enter: whoever may read the
//! catalogue's file may command its tracker, and nobody else. No port is taken, so that trackers of one machine are in
//! nobody's way.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Instant,
};

use drizzle_proto::{
    FileName, PeerId, WireError,
    wire::{self, operator_server},
};
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

use crate::{
    access::{Access, audit::By},
    error::Error,
    limits::MAX_PAGE,
    registry::{OwnedName, Registry},
};

/// In the data folder; only its owner may enter.
const FOLDER: &str = "operator";
const SOCKET: &str = "socket";

/// Where a tracker's socket is. An address of a socket holds at most 107 bytes, and so the folder is named by the
/// descriptor of it that is kept open here.
#[derive(Debug)]
pub(crate) struct Place {
    folder: File,
}

impl Place {
    /// That of the tracker with this data folder.
    pub(crate) fn of(data_dir: &Path) -> io::Result<Self> {
        Ok(Self { folder: File::open(data_dir.join(FOLDER))? })
    }

    /// Makes the folder, and binds the socket in it. To be called by the tracker that has the catalogue open: what
    /// another one left there is of no use to anybody.
    pub(crate) fn bind(data_dir: &Path) -> io::Result<UnixListener> {
        let folder = data_dir.join(FOLDER);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            // It may have come with the data folder from elsewhere.
            _ => fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?,
        }
        let place = Self::of(data_dir)?;
        match fs::remove_file(folder.join(SOCKET)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => UnixListener::bind(place.socket()),
        }
    }

    /// Valid while this lives.
    pub(crate) fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd())).join(SOCKET)
    }
}

/// Serves the operator's methods.
pub(crate) struct Service {
    registry: Registry,
    access: Access,
}

impl Service {
    pub(crate) fn new(registry: Registry, access: Access) -> Self {
        Self { registry, access }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl operator_server::Operator for Service {
    async fn list_names(&self, request: Request<wire::ListNamesRequest>) -> Answer<wire::ListNamesResponse> {
        let wire::ListNamesRequest { prefix, after } = request.into_inner();
        let after = if after.is_empty() { None } else { Some(file_name(&after)?) };
        let (names, more) = self.registry.owned(prefix, after, MAX_PAGE as usize, Instant::now()).await?;
        Ok(Response::new(wire::ListNamesResponse { names: names.into_iter().map(Into::into).collect(), more }))
    }

    async fn drop_name(&self, request: Request<wire::DropNameRequest>) -> Answer<wire::DropNameResponse> {
        let by = By::of(request.extensions());
        let wire::DropNameRequest { name, free } = request.into_inner();
        let dropped = self.registry.drop_name(file_name(&name)?, free).await?;
        self.access.audit().done("drop", by, &name);
        let answer = dropped.map(|dropped| wire::DropNameResponse {
            file: Some((&dropped.record.file).into()),
            owner: dropped.record.owner.to_string(),
            holders: u32::try_from(dropped.holders).unwrap_or(u32::MAX),
        });
        Ok(Response::new(answer.unwrap_or_default()))
    }

    async fn reassign_name(&self, request: Request<wire::ReassignNameRequest>) -> Answer<wire::ReassignNameResponse> {
        let by = By::of(request.extensions());
        let wire::ReassignNameRequest { name, owner } = request.into_inner();
        let owner: PeerId = owner.parse().map_err(|_| Error::from(WireError::Bounds("owner")))?;
        let before = self.registry.reassign(file_name(&name)?, owner).await?;
        self.access.audit().done("reassign", by, &format!("{name} to {owner}"));
        Ok(Response::new(wire::ReassignNameResponse { owner: before.to_string() }))
    }
}

fn file_name(text: &str) -> Result<FileName, Error> {
    Ok(FileName::new(text).map_err(WireError::from)?)
}

impl From<OwnedName> for wire::OwnedName {
    fn from(name: OwnedName) -> Self {
        Self {
            file: Some((&name.record.file).into()),
            owner: name.record.owner.to_string(),
            owner_address: name.owner_address.map(|address| address.to_string()).unwrap_or_default(),
            full_holders: name.full_holders,
            partial_holders: name.partial_holders,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_its_owner_alone_however_long_the_path_is() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("d".repeat(200));
        fs::create_dir(&data_dir).unwrap();
        fs::create_dir(data_dir.join(FOLDER)).unwrap();
        fs::write(data_dir.join(FOLDER).join(SOCKET), b"left behind").unwrap();
        let listener = Place::bind(&data_dir).unwrap();
        let mode = data_dir.join(FOLDER).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let place = Place::of(&data_dir).unwrap();
        let (connected, accepted) = tokio::join!(tokio::net::UnixStream::connect(place.socket()), listener.accept());
        connected.unwrap();
        accepted.unwrap();
    }
}
