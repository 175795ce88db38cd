//! Reproducible random files and their manifests.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use drizzle_proto::{Digest, FileInfo, FileName, Layout, Manifest};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// The smallest chunk size: many chunks from little data.
pub const SMALL_CHUNK: u32 = 16 << 10;

/// Random bytes that are the same for the same seed.
pub fn random(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A file as the swarm knows it: name, bytes, chunk size.
#[derive(Debug, Clone)]
pub struct Content {
    /// Its name in the swarm.
    pub name: FileName,
    /// All of its bytes.
    pub bytes: Vec<u8>,
    /// Hashes of its chunks.
    pub manifest: Manifest,
}

impl Content {
    /// Content under `name` in chunks of `chunk_size`.
    ///
    /// # Panics
    /// If the name or the chunk size is not allowed.
    pub fn new(name: &str, bytes: Vec<u8>, chunk_size: u32) -> Self {
        let layout = Layout::new(bytes.len() as u64, chunk_size).expect("a chunk size that fits");
        let hashes = bytes.chunks(chunk_size as usize).map(Digest::of).collect();
        let manifest = Manifest::new(layout, hashes).expect("one hash per chunk");
        Self { name: FileName::new(name).expect("an allowed name"), bytes, manifest }
    }

    /// Random content of `chunks` whole chunks of [`SMALL_CHUNK`] bytes.
    pub fn small_chunks(name: &str, seed: u64, chunks: usize) -> Self {
        Self::new(name, random(seed, chunks * SMALL_CHUNK as usize), SMALL_CHUNK)
    }

    /// Its description.
    pub fn info(&self) -> FileInfo {
        self.manifest.describe(self.name.clone())
    }

    /// The bytes of one chunk; none if there is no such chunk.
    pub fn chunk(&self, chunk: u32) -> &[u8] {
        let size = self.manifest.layout().chunk_size() as usize;
        self.bytes.chunks(size).nth(chunk as usize).unwrap_or_default()
    }

    /// Whether the file at `path` has exactly these bytes.
    ///
    /// # Panics
    /// If not.
    pub fn assert_at(&self, path: &Path) {
        let found = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(found == self.bytes, "{} differs from what was shared", path.display());
    }
}

/// Turns one byte of a file into another, keeping its size and modification time, so that only a hash
/// can tell.
///
/// # Panics
/// If the file cannot be changed.
pub fn alter_secretly(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("the file is there");
    let modified = file.metadata().and_then(|metadata| metadata.modified()).expect("it has a modification time");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it has this byte");
    file.write_all_at(&[!byte[0]], at).expect("it can be written");
    file.set_modified(modified).expect("the time can be set");
}

/// Every regular file below `folder` that is not the peer's own, as `/`-separated relative paths, sorted.
///
/// # Panics
/// If the folder cannot be read.
pub fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).expect("the folder can be read") {
            let path = entry.expect("its entries can be read").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != ".drizzle") {
                folders.push(path);
            } else if path.is_file() {
                let relative = path.strip_prefix(folder).expect("it is below the folder");
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}
