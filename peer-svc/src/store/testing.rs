//! Small content for the tests of the store.

use drizzle_proto::{Digest, Layout, Manifest};

use crate::verify::{VerifiedChunk, Verifier};

/// Three chunks of 16 KiB, the last one shorter; told apart from other content by `byte`.
pub(crate) fn content(byte: u8) -> (Vec<u8>, Manifest) {
    let data: Vec<u8> = (0..40_000u32).map(|i| byte.wrapping_add(i.to_le_bytes()[1])).collect();
    let layout = Layout::new(data.len() as u64, 1 << 14).unwrap();
    let hashes = data.chunks(1 << 14).map(Digest::of).collect();
    (data, Manifest::new(layout, hashes).unwrap())
}

/// A chunk of some content, proved.
pub(crate) fn verified(data: &[u8], manifest: &Manifest, chunk: u32) -> VerifiedChunk {
    let chunk = manifest.layout().chunk_count().index(chunk).unwrap();
    let start = usize::try_from(manifest.layout().offset(chunk)).unwrap();
    let mut verifier = Verifier::new(manifest, chunk);
    verifier.push_now(&data[start..][..manifest.layout().chunk_len(chunk) as usize]).unwrap();
    verifier.finish().unwrap()
}
