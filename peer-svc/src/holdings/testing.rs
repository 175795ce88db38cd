//! Holdings for tests of other rooms.

use std::path::Path;

use drizzle_proto::{Digest, FileId, FileName, Layout, Manifest};

use super::Holdings;
use crate::store::stamp::Stamp;

/// Holds one small file in a folder under these names.
pub(crate) fn holds(holdings: &Holdings, dir: &Path, names: &[&str]) -> FileId {
    let layout = Layout::new(1 << 14, 1 << 14).unwrap();
    let manifest = Manifest::new(layout, vec![Digest::of(b"")]).unwrap();
    for name in names {
        let stamp = Stamp { size: 1 << 14, modified_nanos: 0 };
        holdings.insert_shared(FileName::new(name).unwrap(), manifest.clone(), dir.join(name), stamp);
    }
    manifest.id()
}
