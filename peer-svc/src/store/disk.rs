//! The seam below the store: every change of the disk goes through here.
//!
//! In production it only does what it is told. A test gives it a [`Witness`], which sees each step before it is
//! taken and can refuse, delay or tear it, and which knows what was synced and so what a power cut would take
//! back. Reading is not in here: it changes nothing.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, RenameFlags};

use super::fence::Fence;

/// One change of the disk.
#[cfg_attr(not(test), expect(dead_code, reason = "only a test's witness looks at the details"))]
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'a> {
    /// A file is made, or opened for writing.
    Open(&'a Path),
    /// A folder is made.
    MakeFolder(&'a Path),
    /// Bytes are written into a file.
    Write {
        path: &'a Path,
        bytes: &'a [u8],
        /// Offset in the file.
        at: u64,
    },
    /// A file gets another length; the space may be reserved.
    Resize(&'a Path),
    /// A file's data is made durable.
    Sync(&'a Path),
    /// A file gets another name, which nothing had.
    Rename { from: &'a Path, to: &'a Path },
    /// A file is deleted.
    Remove(&'a Path),
    /// The names in a folder are made durable.
    SyncFolder(&'a Path),
}

/// Sees each step before it is taken. An error is returned to the store in place of the step.
pub(crate) trait Witness: Send + Sync {
    /// The next step.
    fn before(&self, step: Step<'_>) -> io::Result<()>;
}

/// The disk. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    witness: Option<Arc<dyn Witness>>,
    /// What is changed within it is changed nowhere else.
    fence: Fence,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("watched", &self.witness.is_some()).finish()
    }
}

impl Disk {
    /// A disk with a fence.
    pub(crate) fn fenced(fence: Fence) -> Self {
        Self { fence, ..Self::default() }
    }

    /// A disk whose every step a witness sees.
    #[cfg(test)]
    pub(crate) fn watched(witness: Arc<dyn Witness>) -> Self {
        Self { witness: Some(witness), ..Self::default() }
    }

    /// Whether a witness sees its steps.
    #[cfg(test)]
    pub(crate) fn is_watched(&self) -> bool {
        self.witness.is_some()
    }

    /// Tells of a step that the caller then takes itself.
    pub(crate) fn tell(&self, step: Step<'_>) -> io::Result<()> {
        match &self.witness {
            Some(witness) => witness.before(step),
            None => Ok(()),
        }
    }

    /// Opens a file for reading and writing; makes it if there is none.
    pub(crate) fn open(&self, path: &Path) -> io::Result<File> {
        self.tell(Step::Open(path))?;
        File::options().read(true).write(true).create(true).truncate(false).open(self.fence.hold(path)?.path())
    }

    /// Makes a file for reading and writing; `AlreadyExists` if anything has the name, a link included.
    pub(crate) fn create_new(&self, path: &Path) -> io::Result<File> {
        self.tell(Step::Open(path))?;
        File::options().read(true).write(true).create_new(true).open(self.fence.hold(path)?.path())
    }

    /// Opens a file that this peer made before, for reading and writing. What another program put in its place is
    /// refused: a link, a device, a file that has a second name.
    pub(crate) fn open_own(&self, path: &Path) -> io::Result<File> {
        use std::os::unix::fs::MetadataExt;
        self.tell(Step::Open(path))?;
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(self.fence.hold(path)?.path(), flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.nlink() > 1 {
            let text = format!("{} is not the file that this peer made", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(file)
    }

    /// Makes a folder, unless there is one, and makes its name durable: what is in it would be lost with it. That of
    /// one that was there may not be durable yet.
    pub(crate) fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.tell(Step::MakeFolder(path))?;
        match fs::create_dir(self.fence.hold(path)?.path()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.sync_folder_of(path)
    }

    /// The same for a folder and all above it.
    pub(crate) fn make_folders(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.make_folders(parent)?;
        }
        self.make_folder(path)
    }

    /// Writes all bytes at an offset.
    pub(crate) fn write(&self, file: &File, path: &Path, bytes: &[u8], at: u64) -> io::Result<()> {
        self.tell(Step::Write { path, bytes, at })?;
        file.write_all_at(bytes, at)
    }

    /// Sets a file's length.
    pub(crate) fn resize(&self, file: &File, path: &Path, len: u64) -> io::Result<()> {
        self.tell(Step::Resize(path))?;
        file.set_len(len)
    }

    /// Takes the space for a file of this length, where the file system can and it costs little.
    pub(crate) fn reserve(&self, file: &File, path: &Path, len: u64) -> io::Result<()> {
        self.tell(Step::Resize(path))?;
        if is_in_memory(file) {
            return has_room(file, len);
        }
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            // File systems that cannot reserve (some network ones) at least tell how much is free.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {
                has_room(file, len)
            }
            other => Ok(other?),
        }
    }

    /// Makes a file's data durable.
    pub(crate) fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.tell(Step::Sync(path))?;
        file.sync_data()
    }

    /// Renames, refusing to replace anything: `AlreadyExists` if something has the name.
    pub(crate) fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.tell(Step::Rename { from, to })?;
        let (from, to) = (self.fence.hold(from)?, self.fence.hold(to)?);
        let (from, to) = (from.path(), to.path());
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Some file systems know no such flag. A hard link refuses to replace just as well.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
                fs::hard_link(from, to)?;
                fs::remove_file(from)
            }
            other => Ok(other?),
        }
    }

    /// Deletes a file; that there is none is fine.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        self.tell(Step::Remove(path))?;
        match self.fence.hold(path).and_then(|held| fs::remove_file(held.path())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the names in the folder of this path durable.
    pub(crate) fn sync_folder_of(&self, path: &Path) -> io::Result<()> {
        let Some(folder) = path.parent() else { return Ok(()) };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        self.tell(Step::SyncFolder(folder))?;
        File::open(folder)?.sync_all()
    }
}

/// The number of tmpfs. To take space there is to write every page of it, which takes half a second for a GiB.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// Whether a file lies in memory alone, so that nothing is waited for to read it. May ask the server of a network mount.
pub(crate) fn is_in_memory(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|disk| disk.f_type == TMPFS)
}

/// `StorageFull` if the file system says that it has no room for what a file of this length still needs.
fn has_room(file: &File, len: u64) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let Ok(disk) = rustix::fs::fstatvfs(file) else { return Ok(()) };
    let needed = len.saturating_sub(file.metadata()?.blocks().saturating_mul(512));
    // Some do not count blocks at all: that is no answer.
    let is_full = disk.f_blocks > 0 && disk.f_bavail.saturating_mul(disk.f_frsize) < needed;
    if is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_was_put_in_the_place_of_an_own_file_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let disk = Disk::default();
        fs::write(at("victim"), "mine").unwrap();
        symlink(at("victim"), at("link")).unwrap();
        fs::hard_link(at("victim"), at("second")).unwrap();
        rustix::fs::mknodat(CWD, at("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for other in ["link", "second", "fifo", "none"] {
            assert!(disk.open_own(&at(other)).is_err(), "{other}");
        }
        fs::remove_file(at("second")).unwrap();
        disk.open_own(&at("victim")).unwrap();
    }

    #[test]
    fn in_memory_no_page_is_written_to_take_its_space() {
        use std::os::unix::fs::MetadataExt;
        let folder = Path::new("/dev/shm");
        if !rustix::fs::statfs(folder).is_ok_and(|disk| disk.f_type == TMPFS) {
            return;
        }
        let (disk, file) = (Disk::default(), tempfile::tempfile_in(folder).unwrap());
        disk.reserve(&file, folder, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), 0);
        assert_eq!(disk.reserve(&file, folder, u64::MAX).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_file_system_that_cannot_reserve_is_asked_for_its_free_space() {
        let file = tempfile::tempfile().unwrap();
        has_room(&file, 1).unwrap();
        assert_eq!(has_room(&file, u64::MAX).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
