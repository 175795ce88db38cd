//! The disk side of a peer: everything that reads or writes files of content, and the durable record.
//!
//! | module | is |
//! |---|---|
//! | [`write`](mod@write) | partial files: verified chunks in, stored chunks out |
//! | [`assemble`] | a complete partial file put in place in one step |
//! | [`read`] | reading slices, chunks, and files that did not change |
//! | [`prove`] | which chunks a file really has |
//! | [`hash`] | SHA-256 of chunks |
//! | [`extents`] | where a file has data and where holes |
//! | [`paths`] | from names to paths, following no link |
//! | [`stamp`] | what tells that a file is still the one that was hashed |
//! | [`record`] | what must survive a crash: identity, shares, unfinished downloads |
//!
//! Nothing here knows of the network, of holdings, or of what runs.

pub mod assemble;
pub mod extents;
pub mod hash;
pub mod paths;
pub mod prove;
pub mod read;
pub mod record;
pub mod stamp;
pub mod write;
