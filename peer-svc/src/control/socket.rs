//! The socket of the Control service: its file says who may command this daemon.
//!
//! What holds:
//! - nobody but the daemon's own user and group can ever connect, not even for a moment: the socket is bound in a new
//!   folder that only its owner may enter, gets its mode and group there, and is then renamed to its place. (The mask for
//!   new files would do as well, but it is one for all threads.)
//! - a socket on which a daemon listens is never taken away, nor is anything that is no socket. What a dead daemon left
//!   is replaced, and put back if it turns out that another daemon was faster;
//! - it is removed at the end, unless another daemon has its place by then.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
    process::getegid,
};
use tokio::net::UnixListener;

/// Its user and its group may command it.
const MODE: u32 = 0o660;
/// Looks at what is there, while other daemons come and go.
const LOOKS: u32 = 16;

/// Why the Control service cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Its folder is not there.
    #[error("there is no folder {}: make it, for the daemon's user to write to (for /run/drizzle, RuntimeDirectory=drizzle of systemd does so)", .0.display())]
    NoFolder(PathBuf),
    /// Something else stands there.
    #[error("what is there is no socket: move it away, or give another path")]
    NoSocket,
    /// A daemon runs.
    #[error("a daemon listens there already: stop it, or give this one another path")]
    Taken,
    /// The port is taken, or the address is not one of this machine.
    #[error("{0}")]
    Port(io::Error),
    /// The system refused.
    #[error("{0}; this daemon's user must be able to write to its folder")]
    Io(#[from] io::Error),
}

/// A socket that is in its place; removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for Socket {
    fn drop(&mut self) {
        // While its daemon still listens, as at a shutdown, no other one takes its place between the look and the removal.
        if identity(&self.path).is_ok_and(|identity| identity == Some(self.identity))
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket; the next daemon replaces it");
        }
    }
}

/// Device and number of what stands at a path, without following it.
fn identity(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A new folder that only its owner may enter, with the bound socket in it; removed when dropped.
struct Cradle {
    folder: PathBuf,
    /// Kept open: by its descriptor the socket has a short path, however long that of the folder is.
    open: File,
}

impl Cradle {
    fn make(beside: &Path) -> io::Result<Self> {
        let folder = beside.join(format!(".drizzle-socket-{:016x}", rand::random::<u64>()));
        DirBuilder::new().mode(0o700).create(&folder)?;
        match File::open(&folder) {
            Ok(open) => Ok(Self { folder, open }),
            Err(error) => {
                let _ = fs::remove_dir(&folder);
                Err(error)
            }
        }
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/socket", self.open.as_raw_fd()))
    }

    fn bind(&self) -> io::Result<UnixListener> {
        let (socket, group) = (self.socket(), getegid());
        let listener = UnixListener::bind(&socket)?;
        // A folder may hand its own group down.
        if fs::symlink_metadata(&socket)?.gid() != group.as_raw() {
            rustix::fs::chownat(CWD, &socket, None, Some(group), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        }
        fs::set_permissions(&socket, Permissions::from_mode(MODE))?;
        Ok(listener)
    }
}

impl Drop for Cradle {
    fn drop(&mut self) {
        // Best effort: an empty folder is in nobody's way.
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Listens on a socket at this path.
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, Socket), SocketError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        return Err(SocketError::NoFolder(folder.to_owned()));
    }
    // Before anything is made: the usual reasons leave no trace.
    look(path)?;
    let cradle = Cradle::make(folder)?;
    let listener = cradle.bind()?;
    let own = identity(&cradle.socket())?.unwrap_or_default();
    for _ in 0..LOOKS {
        let left = look(path)?;
        if put(&cradle.socket(), path, left)? {
            return Ok((listener, Socket { path: path.to_owned(), identity: own }));
        }
    }
    Err(SocketError::Taken)
}

/// What a dead daemon left at a path, if anything; an error if it may not be replaced.
fn look(path: &Path) -> Result<Option<(u64, u64)>, SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NoSocket);
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
        Ok(_) => Err(SocketError::Taken),
    }
}

/// Puts the new socket where nothing is, or where that leftover is; whether it is in place.
fn put(new: &Path, path: &Path, left: Option<(u64, u64)>) -> io::Result<bool> {
    let Some(left) = left else {
        return match renameat_with(CWD, new, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        };
    };
    match renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    // What came out goes with the folder. If another daemon was faster, it is that one's, and goes back.
    if identity(new)? == Some(left) {
        return Ok(true);
    }
    renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE)?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;

    use drizzle_proto::net::control_at::MAX_SOCKET_PATH;

    use super::*;

    /// What is in a folder.
    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn its_user_and_group_may_connect_and_nothing_is_left_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        // As long as the kernel takes it: the way by another folder must not need more.
        let deep = folder.path().join("d".repeat(MAX_SOCKET_PATH - folder.path().as_os_str().len() - 3));
        fs::create_dir(&deep).unwrap();
        // A folder that hands its group down does not decide who commands the daemon.
        fs::set_permissions(&deep, Permissions::from_mode(0o2777)).unwrap();
        let path = deep.join("s");
        assert_eq!(path.as_os_str().len(), MAX_SOCKET_PATH);
        let (listener, socket) = bind(&path).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (MODE, getegid().as_raw()));
        let (connected, accepted) = tokio::join!(tokio::net::UnixStream::connect(&path), listener.accept());
        assert!(connected.is_ok() && accepted.is_ok());
        assert_eq!(names(&deep), ["s"], "the folder that it was made in is gone");
        drop(socket);
        assert_eq!(names(&deep), [""; 0]);
    }

    #[tokio::test]
    async fn what_a_dead_daemon_left_is_replaced_and_a_live_one_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(StdListener::bind(&path).unwrap());
        let before = identity(&path).unwrap();
        let (listener, socket) = bind(&path).unwrap();
        assert_ne!(identity(&path).unwrap(), before);
        let taken = bind(&path).unwrap_err();
        assert!(matches!(taken, SocketError::Taken), "{taken}");
        assert!(taken.to_string().contains("stop it"), "{taken}");
        drop(listener);
        // Killed: another daemon takes its place, and the end of the first one takes nothing away.
        let (_listener, _second) = bind(&path).unwrap();
        drop(socket);
        assert_eq!(names(folder.path()), ["socket"]);
        assert!(matches!(bind(&path), Err(SocketError::Taken)), "the second one still listens");
    }

    #[tokio::test]
    async fn what_is_no_socket_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "mine").unwrap();
        fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        for name in ["file", "folder", "link"] {
            let error = bind(&at(name)).unwrap_err();
            assert!(matches!(error, SocketError::NoSocket), "{name}: {error}");
        }
        assert_eq!(names(folder.path()), ["file", "folder", "link"]);
        assert_eq!(fs::read(at("file")).unwrap(), b"mine");
        let error = bind(&at("none/socket")).unwrap_err();
        assert!(matches!(error, SocketError::NoFolder(_)) && error.to_string().contains("make it"), "{error}");
    }

    #[tokio::test]
    async fn of_two_daemons_that_find_the_same_leftover_the_first_one_has_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(StdListener::bind(&path).unwrap());
        let left = look(&path).unwrap();
        // Another daemon comes between the look and what follows from it.
        let (_listener, socket) = bind(&path).unwrap();
        let cradle = Cradle::make(folder.path()).unwrap();
        let _late = cradle.bind().unwrap();
        assert!(!put(&cradle.socket(), &path, left).unwrap());
        assert!(!put(&cradle.socket(), &path, None).unwrap());
        assert_eq!(identity(&path).unwrap(), Some(socket.identity));
    }
}
