//! A door for fuzzing: what reads bytes that may be hostile and is private to this crate. For tests alone.

use std::{io, path::Path};

use drizzle_proto::wire;
use prost::Message;

use crate::{control, store::journal::fuzzing, transfers};

/// Requests of callers of the Control service, in their wire form.
pub fn control_requests(bytes: &[u8]) {
    if let Ok(request) = wire::DownloadRequest::decode(bytes) {
        let named = request.output.clone();
        if let Ok(order) = transfers::Request::try_from(request) {
            assert_eq!(order.output.is_some(), !named.is_empty());
            assert!(order.output.is_none_or(|path| path.is_absolute()));
        }
    }
    if let Ok(request) = wire::ShareRequest::decode(bytes) {
        control::converts_share(request);
    }
    if let Ok(request) = wire::LimitsRequest::decode(bytes) {
        control::converts_limits(request);
    }
}

/// One record of the journal, of any kind.
pub fn records(value: &[u8]) {
    fuzzing::records(value);
}

/// Valid records, to begin with.
pub fn valid_records() -> Vec<Vec<u8>> {
    fuzzing::valid_records()
}

/// A valid journal, to begin with.
pub fn valid_journal() -> io::Result<Vec<u8>> {
    fuzzing::valid_journal()
}

/// Uses a journal that has these bytes, in a folder for it alone.
pub fn journal(folder: &Path, bytes: &[u8]) -> io::Result<()> {
    fuzzing::journal(folder, bytes)
}
