//! Where a control service is: at a TCP address, or at a socket in a folder of this machine.
//!
//! A socket is written `unix:PATH`; everything else is an address. A socket's file says who may open it, which no port
//! of a machine does. A path is made absolute when it is read, so that every message names one that can be looked at.

use std::{
    fmt, io,
    net::SocketAddr,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use tonic::transport::Channel;

use super::{tls::Meant, transport::Transport};
use crate::Address;

/// Where a peer's socket is with the packaged settings, and where it is looked for without any.
pub const SOCKET: &str = "/run/drizzle/peer.sock";

/// Where a peer is controlled without a socket.
pub const PORT: &str = "127.0.0.1:7402";

/// What stands before a path.
const SCHEME: &str = "unix:";

/// The most bytes that the kernel takes for a socket's path.
pub const MAX_SOCKET_PATH: usize = 107;

/// Where a control service listens, or with [`Address`] where it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlAt<T = SocketAddr> {
    /// At an address.
    Tcp(T),
    /// At a socket with this absolute path.
    Unix(PathBuf),
}

/// Why a text is no place of a control service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlAtError {
    /// There is nothing, or no path, behind `unix:`.
    #[error("expected a path behind unix:, such as unix:{SOCKET}")]
    NoPath,
    /// The kernel takes no such path.
    #[error("the path of a socket has at most {MAX_SOCKET_PATH} bytes, and {} has {}: give a shorter one", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// It is no address.
    #[error("{0}")]
    Address(String),
}

impl<T> ControlAt<T> {
    /// Reads what a person wrote; `address` reads what is no socket.
    pub fn read(text: &str, address: impl FnOnce(&str) -> Result<T, String>) -> Result<Self, ControlAtError> {
        let Some(path) = text.strip_prefix(SCHEME) else {
            return address(text).map(Self::Tcp).map_err(ControlAtError::Address);
        };
        // Of an empty path there is no absolute one.
        let path = std::path::absolute(path).map_err(|_| ControlAtError::NoPath)?;
        if path.file_name().is_none() {
            return Err(ControlAtError::NoPath);
        }
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(ControlAtError::TooLong(path));
        }
        Ok(Self::Unix(path))
    }
}

impl ControlAt {
    /// Whether programs of other machines cannot reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl ControlAt<Address> {
    /// The place that is asked if none was given: the packaged socket if there is one, else the port.
    pub fn found() -> Self {
        Self::found_at(Path::new(SOCKET))
    }

    /// The same for a socket elsewhere. One that may not be looked at counts as there: what is said of it then is of
    /// more use than that nothing listens on the port.
    pub fn found_at(socket: &Path) -> Self {
        let is_there = match socket.metadata() {
            Ok(metadata) => metadata.file_type().is_socket(),
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        };
        match Address::new(PORT) {
            Ok(port) if !is_there => Self::Tcp(port),
            _ => Self::Unix(socket.to_owned()),
        }
    }

    /// Where a daemon that listens there is asked on its own machine.
    pub fn asked_locally(&self) -> Self {
        match self {
            Self::Tcp(address) => Self::Tcp(address.asked_locally()),
            Self::Unix(path) => Self::Unix(path.clone()),
        }
    }

    /// A connection that is made now, so that a place where nothing listens is an error at once.
    pub async fn connect(&self, transport: &Transport, meant: Meant) -> Result<Channel, tonic::transport::Error> {
        match self {
            Self::Tcp(address) => transport.connect(address, meant).await,
            Self::Unix(path) => transport.connect_local(path.clone()).await,
        }
    }
}

impl<T: fmt::Display> fmt::Display for ControlAt<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{SCHEME}{}", path.display()),
        }
    }
}

impl<T> From<T> for ControlAt<T> {
    fn from(address: T) -> Self {
        Self::Tcp(address)
    }
}

impl From<&Address> for ControlAt<Address> {
    fn from(address: &Address) -> Self {
        Self::Tcp(address.clone())
    }
}

impl From<&ControlAt<Address>> for ControlAt<Address> {
    fn from(at: &ControlAt<Address>) -> Self {
        at.clone()
    }
}

impl From<&ControlAt> for ControlAt<Address> {
    /// As [`Address`] of a bound address: its port must not be 0.
    fn from(at: &ControlAt) -> Self {
        match at {
            ControlAt::Tcp(address) => Self::Tcp((*address).into()),
            ControlAt::Unix(path) => Self::Unix(path.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ControlAt<Address>, ControlAtError> {
        ControlAt::read(text, |text| Address::new(text).map_err(|error| error.to_string()))
    }

    #[test]
    fn a_socket_is_written_with_its_scheme_and_has_an_absolute_path() {
        let socket = |path: &str| ControlAt::Unix(path.into());
        assert_eq!(read("unix:/run/a"), Ok(socket("/run/a")));
        assert_eq!(read("unix:///run/a"), Ok(socket("/run/a")), "as other programs write it");
        let here = std::env::current_dir().unwrap();
        assert_eq!(read("unix:a"), Ok(ControlAt::Unix(here.join("a"))));
        assert_eq!(read("unix:/run/a").unwrap().to_string(), "unix:/run/a");
        assert_eq!(read("h:1").unwrap().to_string(), "h:1");
        for text in ["unix:", "unix:/"] {
            assert_eq!(read(text), Err(ControlAtError::NoPath), "{text}");
        }
        for text in ["/run/a", "", "h"] {
            assert!(matches!(read(text), Err(ControlAtError::Address(_))), "{text}");
        }
    }

    #[test]
    fn a_path_that_the_kernel_would_not_take_is_refused() {
        let long = |bytes: usize| format!("unix:/{}", "a".repeat(bytes - 1));
        read(&long(MAX_SOCKET_PATH)).unwrap();
        let error = read(&long(MAX_SOCKET_PATH + 1)).unwrap_err().to_string();
        assert!(error.contains("at most 107 bytes") && error.contains("has 108"), "{error}");
    }
}
