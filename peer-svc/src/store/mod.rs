//! The disk side of a peer: everything that reads or writes files of content, and the durable journal.
//!
//! | module | is |
//! |---|---|
//! | [`data`] | the data of one unfinished download, and who may write where in it |
//! | [`write`](mod@write) | partial files: verified chunks in, stored chunks out |
//! | [`assemble`] | a complete partial file put in place in one step |
//! | [`partials`] | the folder of partial files |
//! | [`place`] | where the data of a download lies, so that its last step is a rename |
//! | [`journal`] | what must survive a crash: identity, shares, unfinished downloads |
//! | [`calls`] | calls that may hang, and opening only what is a regular file |
//! | [`fence`] | where callers may name files, and that the daemon stays there |
//! | [`open_files`] | shared files that are open at present |
//! | [`read`] | reading slices, chunks, and files that did not change |
//! | [`prove`] | which chunks a file really has |
//! | [`hash`] | manifests of local files |
//! | [`turns`] | turns at reading and hashing, so that small files are through soon |
//! | [`extents`] | where a file has data and where holes |
//! | [`paths`] | from names to paths, following no link |
//! | [`stamp`] | what tells that a file is still the one that was hashed |
//! | [`disk`] | the seam below: every change of the disk, visible to a test |
//!
//! Nothing here knows of the network, of holdings, or of what runs.

pub(crate) mod assemble;
pub(crate) mod calls;
pub(crate) mod data;
pub(crate) mod disk;
pub(crate) mod extents;
pub(crate) mod fence;
pub(crate) mod hash;
pub(crate) mod journal;
pub(crate) mod open_files;
pub(crate) mod partials;
pub(crate) mod paths;
pub(crate) mod place;
pub(crate) mod prove;
pub(crate) mod read;
pub(crate) mod stamp;
pub(crate) mod turns;
pub(crate) mod write;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
pub(crate) mod faults;
#[cfg(test)]
pub(crate) mod testing;
