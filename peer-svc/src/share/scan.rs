//! Which files there are below a folder, and what they are called. Nothing is hashed here.
//!
//! A file is called by the path that leads to it, links included. A link is followed if it leads to a place in the
//! same folder; through one link to a folder, and not through a second one in there, so that links in a circle come
//! to an end. What cannot be a name (not UTF-8, control characters, too long) is left out, and is never guessed at. What
//! is left out is counted, by reason.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{FileType, Metadata},
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};

use drizzle_proto::{FileName, name::RESERVED_PREFIX};

use super::{
    ShareError,
    skipped::{Exclusions, IgnoreFiles, Reason, Skipped},
};
use crate::{
    holdings::Holdings,
    store::{hash::HashError, stamp::Stamp},
};

/// A file that may be shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The name it gets.
    pub(crate) name: FileName,
    /// Where it is; may be a link.
    pub(crate) path: PathBuf,
    /// As it is now.
    pub(crate) stamp: Stamp,
    /// Device and number of the file: two paths that lead to one file have the same.
    pub(crate) identity: (u64, u64),
}

impl Found {
    pub(super) fn new(name: FileName, path: PathBuf, metadata: &Metadata) -> Self {
        Self { name, path, stamp: Stamp::of(metadata), identity: identity(metadata) }
    }
}

pub(super) fn identity(metadata: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// What a folder holds.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    pub(crate) found: Vec<Found>,
    /// The folders that were looked into.
    pub(super) folders: Vec<PathBuf>,
    /// What should be shared and cannot be.
    pub(crate) failed: Vec<ShareError>,
    pub(crate) skipped: Skipped,
}

/// What to look at.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    /// The folder.
    pub(super) root: PathBuf,
    /// Only these files and what lies below these folders; everything if none are given.
    pub(super) only: Option<BTreeSet<PathBuf>>,
    /// The state folder, which is not looked at.
    pub(super) state: PathBuf,
    pub(super) exclusions: Exclusions,
    /// Whose calls tell of folders that hang.
    pub(super) holdings: Arc<Holdings>,
}

/// Decides what is walked into.
struct Filter {
    scan: Scan,
    /// The folder, links resolved.
    real_root: PathBuf,
    seen: Seen,
}

#[derive(Default)]
struct Seen {
    skipped: Skipped,
    ignore_files: IgnoreFiles,
    /// Links to folders that were followed.
    links: BTreeSet<PathBuf>,
}

impl Filter {
    /// Whether what stands at a path is looked at. `is_folder` is about the target of a link.
    fn admits(&mut self, path: &Path, is_folder: bool, is_link: bool) -> bool {
        let is_reserved = |name: &OsStr| name.as_encoded_bytes().starts_with(RESERVED_PREFIX.as_bytes());
        if path == self.scan.state || path.file_name().is_some_and(is_reserved) {
            return false;
        }
        if !self.is_wanted(path, is_folder) {
            return false;
        }
        let relative = path.strip_prefix(&self.scan.root).unwrap_or(path);
        let why = self.scan.exclusions.why(relative, is_folder);
        if let Some(reason) = why
            .or_else(|| self.seen.ignore_files.leave_out(&self.scan.root, path, is_folder).then_some(Reason::Excluded))
        {
            self.seen.skipped.add(reason, path);
            return false;
        }
        if is_folder && self.hangs(path) {
            return false;
        }
        if !is_link {
            return true;
        }
        let refused = match path.canonicalize() {
            Err(_) => Some(Reason::LeadsNowhere),
            Ok(target) if !target.starts_with(&self.real_root) || target.starts_with(&self.scan.state) => {
                Some(Reason::LeadsOut)
            }
            Ok(target) if is_folder => {
                let around = path.parent().and_then(|folder| folder.canonicalize().ok());
                if around.is_some_and(|around| around.starts_with(&target)) {
                    Some(Reason::LeadsBack)
                } else if path.ancestors().skip(1).any(|folder| self.seen.links.contains(folder)) {
                    Some(Reason::SecondLink)
                } else {
                    self.seen.links.insert(path.to_owned());
                    None
                }
            }
            Ok(_) => None,
        };
        refused.into_iter().for_each(|reason| self.seen.skipped.add(reason, path));
        refused.is_none()
    }

    /// A folder on a dead disk costs one look, and not every later one: that says nothing of what is in it.
    fn hangs(&self, folder: &Path) -> bool {
        let looked = self.scan.holdings.calls().run(folder, || folder.metadata());
        looked.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
    }

    fn is_wanted(&self, path: &Path, is_folder: bool) -> bool {
        let Some(only) = &self.scan.only else { return true };
        let leads_there = || {
            only.range::<Path, _>((Bound::Included(path), Bound::Unbounded))
                .next()
                .is_some_and(|wanted| wanted.starts_with(path))
        };
        path.ancestors().any(|around| only.contains(around)) || is_folder && leads_there()
    }
}

/// Every regular file, named relative to `base`; and what was left out.
pub(super) fn scan(scan: Scan, base: &Path) -> Scanned {
    let mut scanned = Scanned::default();
    let root = scan.root.clone();
    let real_root = root.canonicalize().unwrap_or_else(|_| root.clone());
    let mut filter = Filter { scan, real_root, seen: Seen::default() };
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        let entries = match folder.read_dir() {
            Ok(entries) => entries,
            Err(source) => {
                failed(folder, source, &filter, &mut scanned);
                continue;
            }
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.file_type()?, entry.path()))) {
                Ok((kind, path)) => meet(path, kind, &mut filter, base, &mut folders, &mut scanned),
                Err(source) => failed(folder.clone(), source, &filter, &mut scanned),
            }
        }
        scanned.folders.push(folder);
    }
    scanned.skipped.merge(filter.seen.skipped);
    scanned
}

/// What the walk meets in a folder. A folder is asked about before it is opened: a dead disk may be below it.
fn meet(
    path: PathBuf,
    kind: FileType,
    filter: &mut Filter,
    base: &Path,
    folders: &mut Vec<PathBuf>,
    scanned: &mut Scanned,
) {
    // Before anything is asked about it.
    if !filter.is_wanted(&path, true) {
        return;
    }
    let is_link = kind.is_symlink();
    let is_folder = if is_link { path.is_dir() } else { kind.is_dir() };
    if !filter.admits(&path, is_folder, is_link) {
        return;
    }
    if is_folder {
        return folders.push(path);
    }
    // Of the target, if it is a link.
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        // It went meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(source) => return scanned.failed.push(HashError::Io { path, source }.into()),
    };
    if !metadata.is_file() {
        return scanned.skipped.add(Reason::NotRegular, &path);
    }
    match name_of(&path, base) {
        Ok(name) => scanned.found.push(Found::new(name, path, &metadata)),
        Err(_) => scanned.skipped.add(Reason::BadName, &path),
    }
}

/// What the walk could not walk into.
fn failed(path: PathBuf, source: io::Error, filter: &Filter, scanned: &mut Scanned) {
    let is_root = path == filter.scan.root;
    // It went meanwhile.
    if is_root || source.kind() != io::ErrorKind::NotFound {
        scanned.failed.push(HashError::Io { path, source }.into());
    }
}

/// What a file is called that lies below `base`.
pub(super) fn name_of(path: &Path, base: &Path) -> Result<FileName, ShareError> {
    let fail = |reason: String| ShareError::Name { path: path.to_owned(), reason };
    let relative = path.strip_prefix(base).unwrap_or(path);
    let advice = "share it under another name with --name, or rename it";
    let text = relative.to_str().ok_or_else(|| fail(format!("the name is not UTF-8: {advice}")))?;
    FileName::new(text).map_err(|error| fail(format!("{error}: {advice}")))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::{super::skipped::IGNORE_FILE, *};

    /// A folder with these files and links; what is found of it, and what is left out.
    fn scanned(files: &[&str], links: &[(&str, &str)], patterns: &[&str]) -> (Vec<String>, Vec<(Reason, u64)>) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("../outside"), "x").unwrap();
        for file in files {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), if file.ends_with(IGNORE_FILE) { "/secret\n" } else { "x" }).unwrap();
        }
        for (link, target) in links {
            fs::create_dir_all(root.join(link).parent().unwrap()).unwrap();
            symlink(target, root.join(link)).unwrap();
        }
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let exclusions = Exclusions::new(&patterns).unwrap();
        let state = root.join("state");
        let scanned = scan(Scan { root: root.clone(), only: None, state, exclusions, holdings: Arc::default() }, &root);
        assert!(scanned.failed.is_empty(), "{:?}", scanned.failed);
        let mut found: Vec<String> = scanned.found.iter().map(|found| found.name.to_string()).collect();
        found.sort();
        (found, scanned.skipped.0.iter().map(|(reason, (count, _))| (*reason, *count)).collect())
    }

    #[test]
    fn hidden_and_temporary_files_are_left_out_and_counted() {
        let temporary = [
            ".hidden",
            ".model.bin.a8Xk2Q",
            "a.part",
            "a.tmp",
            "Unconfirmed 1.crdownload",
            "a~",
            ".d/x",
            ".drizzleignore",
        ];
        let (found, skipped) = scanned(&[&["a", "sub/b"], &temporary[..]].concat(), &[], &[]);
        assert_eq!(found, ["a", "sub/b"]);
        assert_eq!(skipped, [(Reason::Hidden, 3), (Reason::Temporary, 4)], "its own file of patterns is no news");
    }

    #[test]
    fn patterns_of_the_command_line_and_of_the_folder_leave_out_more_or_less() {
        let (found, skipped) = scanned(
            &["a", "a.tmp", "a.log", "logs/b", "secret", "x/secret", ".drizzleignore"],
            &[],
            &["*.log", "logs/", "!*.tmp"],
        );
        assert_eq!(found, ["a", "a.tmp", "x/secret"]);
        assert_eq!(skipped, [(Reason::Excluded, 3)], "the folder's own patterns count as those of the command line");
    }

    #[test]
    fn the_nearest_file_of_patterns_decides_and_holds_for_all_below() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("in/deep")).unwrap();
        for file in ["a.log", "in/a.log", "in/b", "in/deep/a.log", "in/deep/b", "b"] {
            fs::write(root.join(file), "x").unwrap();
        }
        fs::write(root.join(IGNORE_FILE), "*.log\n").unwrap();
        fs::write(root.join("in").join(IGNORE_FILE), "!a.log\n/b\n").unwrap();
        let exclusions = Exclusions::new(&[]).unwrap();
        let scanned = scan(
            Scan { root: root.clone(), only: None, state: root.join("state"), exclusions, holdings: Arc::default() },
            &root,
        );
        let mut found: Vec<String> = scanned.found.iter().map(|found| found.name.to_string()).collect();
        found.sort();
        assert_eq!(found, ["b", "in/a.log", "in/deep/a.log", "in/deep/b"]);
    }

    #[test]
    fn a_name_that_cannot_be_is_left_out_and_counted() {
        let (found, skipped) = scanned(&["a", "back\\slash", "new\nline"], &[], &[]);
        assert_eq!(found, ["a"]);
        assert_eq!(skipped, [(Reason::BadName, 2)]);
    }

    #[test]
    fn links_within_the_folder_are_followed_and_named_by_the_link() {
        let files = ["blobs/1", "blobs/2"];
        let links = [("snapshots/main/model.bin", "../../blobs/1"), ("latest", "snapshots/main")];
        let (found, skipped) = scanned(&files, &links, &[]);
        assert_eq!(found, ["blobs/1", "blobs/2", "latest/model.bin", "snapshots/main/model.bin"]);
        assert_eq!(skipped, []);
    }

    #[test]
    fn other_links_are_left_out_and_counted_by_reason() {
        let links = [
            ("out", "../outside"),
            ("out-too", "/dev/null"),
            ("nowhere", "none"),
            ("circle", "circle"),
            ("d/back", ".."),
            ("d/self", "."),
            ("e/to-d", "../d"),
            ("d/to-e", "../e"),
        ];
        let (found, skipped) = scanned(&["d/f", "e/g"], &links, &[]);
        assert_eq!(found, ["d/f", "d/to-e/g", "e/g", "e/to-d/f"]);
        let count = |reason| skipped.iter().find(|(known, _)| *known == reason).map(|(_, count)| *count);
        assert_eq!((count(Reason::LeadsOut), count(Reason::LeadsNowhere)), (Some(2), Some(2)), "{skipped:?}");
        assert!(count(Reason::LeadsBack) >= Some(2), "{skipped:?}");
    }

    #[test]
    fn a_part_of_the_folder_is_named_and_judged_as_in_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for file in ["a", "b/c", "b/d/e", "b/d/f.tmp", "bc", "g/h"] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), "x").unwrap();
        }
        let part = |only: &[&str]| {
            let only = Some(only.iter().map(|path| root.join(path)).collect());
            let exclusions = Exclusions::new(&[]).unwrap();
            let scanned = scan(
                Scan { root: root.clone(), only, state: root.join("state"), exclusions, holdings: Arc::default() },
                &root,
            );
            let mut found: Vec<String> = scanned.found.iter().map(|found| found.name.to_string()).collect();
            found.sort();
            found
        };
        assert_eq!(part(&["b"]), ["b/c", "b/d/e"]);
        assert_eq!(part(&["b/d/e", "a", "none/x"]), ["a", "b/d/e"]);
        assert_eq!(part(&[]), [""; 0]);
    }

    #[test]
    fn what_cannot_be_looked_at_is_told_with_its_path_once() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let (state, exclusions) = (folder.path().join("state"), Exclusions::new(&[]).unwrap());
        let scanned = scan(Scan { root: gone.clone(), only: None, state, exclusions, holdings: Arc::default() }, &gone);
        assert_eq!(scanned.found, []);
        let told = scanned.failed[0].to_string();
        assert_eq!(told, format!("cannot read {}: No such file or directory (os error 2)", gone.display()));
    }
}
