//! What is left out of a folder, and why: by its name here, for other reasons in [`super::scan`]. Counted by reason, with
//! a few examples, for the person who asked and for the log.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

/// Files of a folder with this name, in the syntax of `.gitignore`, say what is not shared.
pub(super) const IGNORE_FILE: &str = ".drizzleignore";
/// Never shared by themselves.
const HIDDEN: &str = ".*";
/// Never shared by themselves: rsync's and editors' temporary files, beside the hidden ones, and what downloads are
/// called until they are complete.
const TEMPORARY: [&str; 10] = [
    "*~",
    "*.part",
    "*.partial",
    "*.filepart",
    "*.tmp",
    "*.crdownload",
    "*.opdownload",
    "*.download",
    "*.aria2",
    "*.!qB",
];
/// Paths that are named of each reason.
const EXAMPLES: usize = 3;

/// Why something in a folder is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// Its name begins with a dot.
    Hidden,
    /// Its name is one of a file that is still written.
    Temporary,
    /// A pattern of the command line or of [`IGNORE_FILE`] names it.
    Excluded,
    /// A link to a place outside.
    LeadsOut,
    /// A link to nothing.
    LeadsNowhere,
    /// A link to a folder that it lies in.
    LeadsBack,
    /// A link to a folder, met by way of another such link.
    SecondLink,
    /// A socket, a pipe, a device.
    NotRegular,
    /// Its path makes no name.
    BadName,
}

impl Reason {
    /// For the log.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::Temporary => "temporary by its name",
            Self::Excluded => "excluded by --exclude or .drizzleignore",
            Self::LeadsOut => "a link out of the folder",
            Self::LeadsNowhere => "a link to nothing",
            Self::LeadsBack => "a link back to a folder around it",
            Self::SecondLink => "a link to a folder, within a linked folder",
            Self::NotRegular => "not a regular file",
            Self::BadName => {
                "its name cannot be shared: not UTF-8, with a control character or a backslash, or too long; rename it"
            }
        }
    }
}

/// What was left out of a folder: how many, and some of them, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Skipped(pub(crate) BTreeMap<Reason, (u64, Vec<PathBuf>)>);

impl Skipped {
    pub(super) fn add(&mut self, reason: Reason, path: &Path) {
        let (count, examples) = self.0.entry(reason).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(path.to_owned());
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (reason, (count, examples)) in other.0 {
            let (all, some) = self.0.entry(reason).or_default();
            *all += count;
            some.extend(examples);
            some.truncate(EXAMPLES);
        }
    }
}

/// What is not shared by itself.
#[derive(Debug, Clone)]
pub(crate) struct Exclusions(Gitignore);

impl Exclusions {
    /// Hidden and temporary names, then these patterns: the last one that matches decides, and `!PATTERN` takes one back.
    pub(crate) fn new(patterns: &[String]) -> Result<Self, ignore::Error> {
        let mut builder = GitignoreBuilder::new("");
        let own = std::iter::once(HIDDEN).chain(TEMPORARY);
        for pattern in own.chain(patterns.iter().map(String::as_str)) {
            builder.add_line(None, pattern)?;
        }
        builder.build().map(Self)
    }

    /// Why this is left out, if it is; the path is relative to the folder.
    pub(super) fn why(&self, relative: &Path, is_folder: bool) -> Option<Reason> {
        match self.0.matched(relative, is_folder) {
            Match::Ignore(pattern) if pattern.original() == HIDDEN => Some(Reason::Hidden),
            Match::Ignore(pattern) if TEMPORARY.contains(&pattern.original()) => Some(Reason::Temporary),
            Match::Ignore(_) => Some(Reason::Excluded),
            Match::None | Match::Whitelist(_) => None,
        }
    }
}

/// The files called [`IGNORE_FILE`] that were met, by their folders.
#[derive(Debug, Default)]
pub(super) struct IgnoreFiles(BTreeMap<PathBuf, Option<Gitignore>>);

impl IgnoreFiles {
    /// Whether one of them, from the folder around this path up to `root`, leaves it out. The nearest that names it
    /// decides.
    pub(super) fn leave_out(&mut self, root: &Path, path: &Path, is_folder: bool) -> bool {
        let around = path.ancestors().skip(1).take_while(|folder| folder.starts_with(root));
        for folder in around {
            if !self.0.contains_key(folder) {
                self.0.insert(folder.to_owned(), read(folder));
            }
            match self.0.get(folder).and_then(Option::as_ref).map(|file| file.matched(path, is_folder)) {
                Some(Match::Ignore(_)) => return true,
                Some(Match::Whitelist(_)) => return false,
                Some(Match::None) | None => {}
            }
        }
        false
    }
}

fn read(folder: &Path) -> Option<Gitignore> {
    let path = folder.join(IGNORE_FILE);
    if !path.is_file() {
        return None;
    }
    let mut builder = GitignoreBuilder::new(folder);
    // Lines that are no patterns leave nothing out; the others count.
    let _ = builder.add(path);
    builder.build().ok()
}
