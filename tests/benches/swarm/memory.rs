//! What the daemons need in memory for small and large files, small and large chunks, one download and many.

use std::{
    ffi::OsString,
    fs::{self, File},
    time::Duration,
};

use clap::Args;
use drizzle_tests::{Cluster, Running};

use crate::{MIB, machine};

/// Longer than any of it takes.
const DEADLINE: Duration = Duration::from_secs(1800);

/// Measures the most memory that the daemons have resident.
#[derive(Debug, Args)]
pub(crate) struct Memory {
    /// Sizes of the files, in GiB
    #[arg(long, value_name = "GIB", value_delimiter = ',', default_value = "1,16")]
    sizes: Vec<u64>,
    /// Sizes of their chunks, in KiB
    #[arg(long, value_name = "KIB", value_delimiter = ',', default_value = "64,1024,16384")]
    chunk_sizes: Vec<u32>,
    /// Files that are downloaded at once, of the first size together; fewer than 2: leave that out
    #[arg(long, value_name = "N", default_value_t = 32)]
    many: u64,
    /// What cargo says to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Memory {
    /// Measures, and gives the table.
    pub(crate) async fn measure(&self) -> String {
        let mut text = format!(
            "{}, {}; {}.\nMade by `tests/bench memory`.\n\n| files | chunks | source | receiver | tracker |\n|---|---|---|---|---|\n",
            machine::processor(),
            machine::cores(),
            machine::today(),
        );
        let one = self.sizes.iter().map(|gib| (1, gib << 30));
        let many = self.sizes.iter().take(usize::from(self.many > 1)).map(|gib| (self.many, gib << 30));
        for (files, bytes) in one.chain(many) {
            for kib in &self.chunk_sizes {
                let [source, receiver, tracker] = peaks(files, bytes / files, kib << 10).await.map(|peak| peak / MIB);
                let (each, chunk) = (bytes / files / MIB, kib);
                text += &format!(
                    "| {files} of {each} MiB | {chunk} KiB | {source} MiB | {receiver} MiB | {tracker} MiB |\n"
                );
            }
        }
        text
    }
}

/// Most memory of a source, of the one that downloads so many files from it at once, and of their tracker, in bytes.
async fn peaks(files: u64, size: u64, chunk_size: u32) -> [u64; 3] {
    let cluster = Cluster::start().await;
    let (source, receiver) = (cluster.peer("source").await, cluster.peer("receiver").await);
    let names: Vec<String> = (0..files).map(|number| format!("file-{number}")).collect();
    for name in &names {
        // Holes take no space at the source, and zeros are bytes like any other; no two files are the same.
        let path = cluster.folder().join(name);
        let written = fs::write(&path, name).and_then(|()| File::options().write(true).open(&path)?.set_len(size));
        written.expect("a file");
        let args = ["share".into(), path.into_os_string(), "--chunk-size".into(), chunk_size.to_string().into()];
        source.start_cli::<OsString>(args).ended_within(DEADLINE).await.expect(0);
    }
    let downloads: Vec<Running> = names.iter().map(|name| receiver.start_cli(["download", name])).collect();
    for download in downloads {
        download.ended_within(DEADLINE).await.expect(0);
    }
    [&source.daemon, &receiver.daemon, &cluster.tracker.daemon].map(|daemon| daemon.process.peak_memory())
}
