//! Which files this daemon reads and writes for those who command it, and that it stays there.
//!
//! Who may use the daemon is not its user, so it must not do for them what they could not do themselves. A fence is a
//! list of folders: the daemon's own, and those of --allow-path. What holds with one:
//! - a path that a caller names is resolved, links and `..` included, and refused if it leads out of the folders or into
//!   the daemon's state folder. That it does not exist changes nothing: then its nearest folder that does is resolved;
//! - between the look and the use a caller may put a link where a folder or a file was. So what is opened or written by
//!   a path within the fence is looked at again once it is held open: a file by its descriptor, and of a file that is
//!   made, renamed or deleted its folder, by whose descriptor that is then done. A link that was put there meanwhile is
//!   an error, whoever put it there and however long the download took.
//!
//! What remains: a folder that is listed in the very moment in which a link takes its place has its names told, but no
//! byte of its files. A second name of a file (a hard link) within the fence is within it; Linux lets nobody make one for a
//! file that they can neither read nor write (fs.protected_hardlinks). What was shared before there was a fence, by a
//! path outside of it, stays shared; a link within it that leads out is not served any more. Calls block.

use std::{
    fmt::Write,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags, open};

/// Links that are followed before a path leads nowhere.
const LINKS: u32 = 40;

/// The folders that callers may name paths in; without any they may name every path.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fence(Option<Arc<Folders>>);

#[derive(Debug)]
struct Folders {
    /// Links resolved.
    allowed: Vec<PathBuf>,
    /// The state folder, which is the daemon's alone.
    state: PathBuf,
}

/// A path is not within the fence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is not in a folder that this daemon may read and write for its callers: {folders}; whoever runs it allows more with --allow-path (DRIZZLE_ALLOW_PATH)", path.display())]
pub(crate) struct Outside {
    path: PathBuf,
    folders: String,
}

/// A file by its folder, which is held open.
#[derive(Debug)]
pub(crate) struct Held {
    path: PathBuf,
    _folder: Option<OwnedFd>,
}

impl Held {
    /// The file's path, valid while this lives.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Fence {
    /// Around the daemon's folder and more of them, which must exist; its state folder is left out.
    pub(crate) fn around(dir: &Path, more: &[PathBuf], state: &Path) -> Result<Self, (PathBuf, io::Error)> {
        let mut allowed = vec![dir.to_owned()];
        for folder in more {
            let fail = |error| (folder.clone(), error);
            let folder = folder.canonicalize().map_err(fail)?;
            if !folder.is_dir() {
                return Err(fail(io::ErrorKind::NotADirectory.into()));
            }
            allowed.push(folder);
        }
        let state = std::path::absolute(state).ok().and_then(|state| resolve(&state)).unwrap_or_else(|| state.into());
        Ok(Self(Some(Arc::new(Folders { allowed, state }))))
    }

    /// Where a path that a caller names leads to, if that is within the fence. Without a fence it is the path itself.
    pub(crate) fn check(&self, path: &Path) -> Result<PathBuf, Outside> {
        let Some(folders) = &self.0 else { return Ok(path.to_owned()) };
        let resolved = resolve(path).filter(|resolved| folders.admit(resolved));
        resolved.ok_or_else(|| folders.refused(path))
    }

    /// The same of a destination, which is not followed if it is a link: its folder decides.
    pub(crate) fn check_destination(&self, path: &Path) -> Result<PathBuf, Outside> {
        let Some(folders) = &self.0 else { return Ok(path.to_owned()) };
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return self.check(path) };
        let path = resolve(folder).ok_or_else(|| folders.refused(path))?.join(name);
        if folders.admit(&path) { Ok(path) } else { Err(folders.refused(&path)) }
    }

    /// Whether a path whose links were resolved, but for its last part, is within the fence.
    pub(crate) fn admit(&self, path: &Path) -> Result<(), Outside> {
        match &self.0 {
            Some(folders) if !folders.admit(path) => Err(folders.refused(path)),
            _ => Ok(()),
        }
    }

    /// Whether a file that was opened by a path within the fence is there. Of a path that is not, nothing is asked: it
    /// was named by the daemon, or allowed before.
    pub(crate) fn verify(&self, path: &Path, file: &File) -> io::Result<()> {
        let Some(folders) = self.0.as_ref().filter(|folders| folders.admit(path)) else { return Ok(()) };
        let opened = place_of(file)?;
        if folders.admit(&opened) { Ok(()) } else { Err(led_out(path)) }
    }

    /// Holds the folder of a path within the fence open, if it is there; otherwise nothing is held, and the path is as
    /// it was.
    pub(crate) fn hold(&self, path: &Path) -> io::Result<Held> {
        // The state folder may lie in the fence, and its files are there then, too.
        let fenced = |folders: &&Arc<Folders>| path.parent().is_some_and(|folder| folders.surround(folder));
        let fenced = self.0.as_ref().filter(fenced);
        let (Some(folders), Some(folder), Some(name)) = (fenced, path.parent(), path.file_name()) else {
            return Ok(Held { path: path.to_owned(), _folder: None });
        };
        let held = open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if !folders.surround(&place_of(&held)?) {
            return Err(led_out(path));
        }
        let path = descriptor(&held).join(name);
        Ok(Held { path, _folder: Some(held) })
    }
}

impl Folders {
    fn surround(&self, path: &Path) -> bool {
        self.allowed.iter().any(|folder| path.starts_with(folder))
    }

    fn admit(&self, path: &Path) -> bool {
        self.surround(path) && !path.starts_with(&self.state)
    }

    fn refused(&self, path: &Path) -> Outside {
        let mut folders = String::new();
        for folder in &self.allowed {
            let comma = if folders.is_empty() { "" } else { ", " };
            // Writing to a text does not fail.
            let _ = write!(folders, "{comma}{}", folder.display());
        }
        if self.surround(&self.state) {
            let _ = write!(folders, " (without {})", self.state.display());
        }
        Outside { path: path.to_owned(), folders }
    }
}

fn led_out(path: &Path) -> io::Error {
    let text = format!("{} leads out of the folders of --allow-path since it was looked at", path.display());
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

fn descriptor(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Where a file is that is open.
fn place_of(file: &impl AsRawFd) -> io::Result<PathBuf> {
    descriptor(file).read_link()
}

/// Where an absolute path leads to, also one that leads to nothing yet; `None` if that cannot be known.
fn resolve(path: &Path) -> Option<PathBuf> {
    let (mut path, mut rest) = (path.to_owned(), Vec::new());
    for _ in 0..LINKS {
        // What is not there, or may not be looked at, has the place that its folder says.
        loop {
            if let Ok(real) = path.canonicalize() {
                return Some(rest.iter().rev().fold(real, |path, part| path.join(part)));
            }
            if path.is_symlink() {
                break;
            }
            match path.components().next_back()? {
                Component::Normal(name) => rest.push(name.to_owned()),
                // Below what is not there nobody knows what is above.
                _ => return None,
            }
            path.pop();
        }
        // A link to nothing: what it names is not there, and has a place all the same.
        let target = path.read_link().ok()?;
        path.pop();
        path.push(target);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tempfile::TempDir;

    use super::*;

    /// A folder with `in`, which is fenced and has the state folder, `more`, which is as well, and `out`.
    fn place() -> (TempDir, PathBuf, Fence) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in ["in/sub", "in/.drizzle", "more", "out"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["in/file", "in/.drizzle/key", "out/secret"] {
            fs::write(root.join(name), name).unwrap();
        }
        for (link, target) in [
            ("in/sub/back", ".."),
            ("in/to-more", "../more"),
            ("in/to-out", "../out"),
            ("in/to-secret", "../out/secret"),
            ("in/to-nothing", "../out/nothing"),
            ("in/circle", "circle"),
            ("out/to-in", "../in"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        let fence = Fence::around(&root.join("in"), &[root.join("more")], &root.join("in/.drizzle")).unwrap();
        (folder, root, fence)
    }

    #[test]
    fn a_path_is_where_it_leads_whether_it_is_there_or_not() {
        let (_folder, root, fence) = place();
        for (path, place) in [
            ("in/file", "in/file"),
            ("in/none", "in/none"),
            ("in/none/deep/er", "in/none/deep/er"),
            ("in/sub/../file", "in/file"),
            ("in/sub/back/file", "in/file"),
            ("in/to-more/none", "more/none"),
            ("out/to-in/file", "in/file"),
            ("in", "in"),
        ] {
            assert_eq!(fence.check(&root.join(path)), Ok(root.join(place)), "{path}");
        }
        for path in [
            "out/secret",
            "out/none",
            "in/../out/secret",
            "in/to-out/secret",
            "in/to-out/none",
            "in/to-secret",
            "in/to-nothing",
            "in/to-nothing/deeper",
            "in/none/../../out/secret",
            "in/circle",
            "in/.drizzle/key",
            "in/.drizzle",
            "in/.drizzle/none",
            "",
            "/",
            "..",
            "inner",
        ] {
            let refused = fence.check(&root.join(path)).unwrap_err().to_string();
            assert!(refused.contains("--allow-path"), "{path}: {refused}");
            assert!(refused.contains(root.join("in").to_str().unwrap()), "{path}: {refused}");
            assert!(refused.contains(root.join("more").to_str().unwrap()), "{path}: {refused}");
            assert_eq!(Fence::default().check(&root.join(path)), Ok(root.join(path)), "without a fence: {path}");
        }
    }

    #[test]
    fn what_is_there_and_what_is_not_are_refused_alike() {
        let (_folder, root, fence) = place();
        let refused = |path: &str| {
            let path = root.join(path);
            fence.check(&path).unwrap_err().to_string().replace(path.to_str().unwrap(), "")
        };
        assert_eq!(refused("out/secret"), refused("out/none"));
        assert_eq!(refused("in/to-secret"), refused("in/to-nothing"));
    }

    #[test]
    fn the_folder_of_a_destination_decides_and_a_link_there_is_not_followed() {
        let (_folder, root, fence) = place();
        let check = |path: &str| fence.check_destination(&root.join(path));
        assert_eq!(check("out/to-in/new"), Ok(root.join("in/new")));
        assert_eq!(check("in/to-secret"), Ok(root.join("in/to-secret")), "what stands there is refused later");
        for path in
            ["in/to-out/new", "in/sub/../../out/new", "in/none/../../out/new", "in/.drizzle/new", "new", "in/.."]
        {
            assert!(check(path).is_err(), "{path}");
        }
    }

    #[test]
    fn what_becomes_a_link_after_the_look_is_not_followed() {
        let (_folder, root, fence) = place();
        let (file, new) = (root.join("in/sub/secret"), root.join("in/sub/new"));
        fs::write(&file, "mine").unwrap();
        fence.verify(&file, &File::open(&file).unwrap()).unwrap();
        let held = fence.hold(&new).unwrap();
        fs::rename(root.join("in/sub"), root.join("in/moved")).unwrap();
        symlink(root.join("out"), root.join("in/sub")).unwrap();

        assert_eq!(fs::read(&file).unwrap(), b"out/secret", "by its path it would be another file");
        let error = fence.verify(&file, &File::open(&file).unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(fence.hold(&new).is_err());
        // And a folder that was held before is still the one that was looked at.
        fs::write(held.path(), "new").unwrap();
        assert!(root.join("in/moved/new").exists() && !root.join("out/new").exists());
    }

    #[test]
    fn the_daemons_own_files_are_no_callers_affair() {
        let (_folder, root, fence) = place();
        for path in ["in/.drizzle/key", "out/secret"] {
            let path = root.join(path);
            fence.verify(&path, &File::open(&path).unwrap()).unwrap();
            fs::read(fence.hold(&path).unwrap().path()).unwrap();
        }
        assert!(Fence::around(&root, &[root.join("none")], &root).is_err());
        assert!(Fence::around(&root, &[root.join("in/file")], &root).is_err());
    }
}
