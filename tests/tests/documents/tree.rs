//! The files of this repository, by their paths.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Every file and folder, as paths from the root with `/` between the parts; folders without one at the end.
pub(crate) struct Tree {
    root: PathBuf,
    paths: BTreeSet<String>,
}

impl Tree {
    pub(crate) fn read() -> Self {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_owned();
        let mut tree = Self { root, paths: BTreeSet::new() };
        tree.walk("");
        tree
    }

    fn walk(&mut self, folder: &str) {
        for entry in fs::read_dir(self.root.join(folder)).expect("the folder can be read") {
            let entry = entry.expect("its entries can be read");
            let name = entry.file_name().into_string().expect("names here are plain");
            if matches!(name.as_str(), ".git" | "target") {
                continue;
            }
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if entry.file_type().expect("its type can be read").is_dir() {
                self.walk(&path);
            }
            self.paths.insert(path);
        }
    }

    /// The text of a file.
    pub(crate) fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Whether a file or folder has this path, or one that ends so.
    pub(crate) fn has(&self, tail: &str) -> bool {
        let tail = tail.trim_end_matches('/');
        self.paths
            .iter()
            .any(|path| path.strip_suffix(tail).is_some_and(|front| front.is_empty() || front.ends_with('/')))
    }

    /// Files whose names end so.
    pub(crate) fn files<'a>(&'a self, end: &'a str) -> impl Iterator<Item = &'a str> {
        self.paths.iter().map(String::as_str).filter(move |path| path.ends_with(end) && self.root.join(path).is_file())
    }
}
