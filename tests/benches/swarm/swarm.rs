//! One source and its downloaders: real daemons, new ones for each measurement.

use std::{ffi::OsStr, fs, path::Path, time::Instant};

use drizzle_tests::{Cluster, Peer, Running, Secured, cluster::Options};

use crate::{Sample, scale::digest};

/// Shares a file from one peer, in chunks of this size or of the usual one, and downloads it on `receivers` others at
/// once, with mutual TLS if so asked. Measured from the first command to the last one's end, each a `peer-cli download` as a person runs it.
pub(crate) async fn measure(file: &Path, chunk_size: Option<&str>, receivers: usize, tls: bool) -> Sample {
    let name = "file";
    let (cluster, join) = match tls {
        false => (Cluster::start().await, Vec::new()),
        true => {
            let secured = Secured::start(&[]).await;
            let uses = (receivers + 1).to_string();
            let token = secured.operator(&["token", "create", "--role", "publisher", "--uses", &uses]).await;
            (secured.cluster, vec!["--join".to_owned(), token.trim().to_owned()])
        }
    };
    let start = async |name: &str| cluster.peer_with(name, Options::default().args(join.clone())).await;
    let source = start("source").await;
    let mut share = vec![OsStr::new("share"), file.as_os_str(), OsStr::new("--name"), OsStr::new(name)];
    share.extend(chunk_size.iter().flat_map(|size| [OsStr::new("--chunk-size"), OsStr::new(size)]));
    source.cli(share).await.expect(0);
    if !tls {
        cluster.until_held(name, 1).await;
    }
    let mut peers = Vec::new();
    for number in 0..receivers {
        peers.push(start(&format!("peer-{number}")).await);
    }

    let daemons: Vec<&Peer> = peers.iter().chain([&source]).collect();
    let cpu = || daemons.iter().map(|peer| peer.daemon.process.cpu_time()).sum();
    let before = cpu();
    let begun = Instant::now();
    let downloads: Vec<Running> = peers.iter().map(|peer| peer.start_cli(["download", name])).collect();
    let mut runs = Vec::new();
    for download in downloads {
        runs.push(download.ended().await.expect(0));
    }
    let elapsed = begun.elapsed();
    let after: std::time::Duration = cpu();

    let size = fs::metadata(file).expect("the file is there").len();
    let expected = digest(file);
    let mut left_source = 0;
    for (run, peer) in runs.iter().zip(&peers) {
        assert_eq!(run.fetched(), size, "a run fetches all of the file");
        assert_eq!(digest(&peer.path(name)), expected, "what arrived is what was shared");
        left_source += run.sources().get(&source.address().to_string()).map_or(0, |given| given.bytes);
    }
    let receiver = peers.iter().map(|peer| peer.daemon.process.peak_memory()).max().unwrap_or_default();
    Sample {
        elapsed,
        bytes: size * receivers as u64,
        cpu: after.saturating_sub(before),
        peak: Some((source.daemon.process.peak_memory(), receiver)),
        copies: Some(crate::megabytes(left_source) / crate::megabytes(size)),
    }
}
