//! `-o` onto another file system: the data lies there from the first chunk on, hidden and private, so that a full or
//! read-only disk is found before anything is fetched, nothing is copied at the end, and daemons that write into one
//! folder have no part in each other's files.

use std::{fs, path::Path};

use drizzle_tests::{
    Cluster, Content, FakePeer, Peer, Run, Running,
    cluster::Options,
    content::{SMALL_CHUNK, files_below, random},
    small_disk::SmallDisk,
    until,
};
use rustix::process::Signal;

const MIB: usize = 1 << 20;

fn start(peer: &Peer, output: &Path) -> Running {
    peer.start_cli(["download".as_ref(), "A".as_ref(), "-o".as_ref(), output.as_os_str()])
}

async fn download(peer: &Peer, output: &Path) -> Run {
    start(peer, output).ended().await
}

fn partials(peer: &Peer) -> Vec<String> {
    files_below(&peer.dir.join(".drizzle/partial"))
}

#[tokio::test]
async fn a_full_disk_at_the_destination_is_found_before_anything_is_fetched() {
    let cluster = Cluster::start().await;
    let Some(disk) = SmallDisk::mount(cluster.folder().join("disk"), 8 << 20) else { return };
    let one = cluster.peer("one").await;
    let a = Content::new("A", random(1, 24 * MIB), 256 << 10);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    let run = download(&two, &disk.path().join("w.bin")).await.expect(1);
    let (reason, folder) = (run.reason(), disk.path().to_str().unwrap());
    assert!(reason.starts_with("the disk is full: free 16.0 MiB in ") && reason.contains(folder), "{reason}");
    assert_eq!(one.status().await.uploaded_bytes, 0, "nothing was fetched in vain");
    assert_eq!((files_below(disk.path()), partials(&two)), (vec![], vec![]), "and nothing is left");
    // The daemon's own folder has room.
    two.download("A").await;
    a.assert_at(&two.path("A"));
    drop(two);
}

#[tokio::test]
async fn a_destination_that_cannot_be_written_is_found_before_anything_is_fetched() {
    let cluster = Cluster::start().await;
    let Some(disk) = SmallDisk::mount(cluster.folder().join("disk"), 8 << 20) else { return };
    disk.make_read_only();
    let one = cluster.peer("one").await;
    one.share(&Content::small_chunks("A", 1, 16)).await;
    let two = cluster.peer("two").await;
    for folder in [disk.path(), Path::new("/proc")] {
        let run = download(&two, &folder.join("w.bin")).await.expect(1);
        let (reason, folder) = (run.reason(), folder.to_str().unwrap());
        assert!(reason.starts_with(&format!("cannot write into {folder}: ")), "{reason}");
        assert!(reason.contains("nothing was fetched") && reason.contains("another place with -o"), "{reason}");
    }
    // So is the daemon's own folder.
    let state = cluster.folder().join("state").into_os_string();
    let three =
        cluster.peer_with("three", Options::default().dir(disk.path()).args(["--state-dir".into(), state])).await;
    let run = three.cli(["download", "A"]).await.expect(1);
    assert!(run.reason().contains("cannot write into "), "{}", run.reason());
    assert_eq!(one.status().await.uploaded_bytes, 0, "nothing was fetched in vain");
    drop(three);
}

#[tokio::test]
async fn data_is_beside_a_destination_on_another_disk_and_goes_on_there_after_a_kill() {
    let cluster = Cluster::start().await;
    let Some(disk) = SmallDisk::mount(cluster.folder().join("disk"), 8 << 20) else { return };
    let a = Content::small_chunks("A", 1, 32);
    let (_source, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    let mut two = cluster.peer("two").await;
    let output = disk.path().join("w.bin");
    let mut run = start(&two, &output);
    gate.add_permits(8);
    run.until_stored(8).await;
    two.until_recorded(8 * u64::from(SMALL_CHUNK)).await;
    let hidden = files_below(disk.path());
    assert!(matches!(&hidden[..], [name] if name.starts_with(".drizzle-")), "{hidden:?}");
    assert_eq!(partials(&two), [""; 0], "it takes no room in the state folder");
    two.daemon.kill();
    run.ended().await.expect(5);
    two.daemon.restart().await;
    let mut run = start(&two, &output);
    // The daemon goes on by itself: all that it fetched before the caller came would count as resumed.
    run.until("the start", |events| events.iter().any(|event| event["event"] == "started")).await;
    gate.add_permits(1000);
    let run = run.ended().await.expect(0);
    assert_eq!(run.resumed(), 8 * u64::from(SMALL_CHUNK));
    a.assert_at(&output);
    assert_eq!(files_below(disk.path()), ["w.bin"]);
    drop(two);
}

#[tokio::test]
async fn data_of_an_earlier_attempt_moves_to_the_disk_of_the_new_destination() {
    let cluster = Cluster::start().await;
    let Some(disk) = SmallDisk::mount(cluster.folder().join("disk"), 8 << 20) else { return };
    let (one, gate) = cluster.gated_peer("one").await;
    let a = Content::small_chunks("A", 1, 32);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    gate.open();
    two.cli(["download", "A", "--chunks", "0-9"]).await.expect(0);
    assert_eq!(partials(&two).len(), 1);
    let chunks = |chunks: u64| chunks * u64::from(SMALL_CHUNK);
    let run = two.cli(["download", "A", "--chunks", "10-11"]).await.expect(0);
    assert_eq!(run.fetched(), chunks(2));
    let run = download(&two, &disk.path().join("w.bin")).await.expect(0);
    assert_eq!((run.resumed(), run.fetched()), (chunks(12), chunks(20)));
    a.assert_at(&disk.path().join("w.bin"));
    assert_eq!((files_below(disk.path()), partials(&two)), (vec!["w.bin".to_owned()], vec![]));
    drop(two);
}

#[tokio::test]
async fn three_daemons_with_one_destination_all_end_well() {
    let cluster = Cluster::start().await;
    let Some(disk) = SmallDisk::mount(cluster.folder().join("disk"), 8 << 20) else { return };
    let (one, gate) = cluster.gated_peer("one").await;
    let a = Content::small_chunks("A", 1, 32);
    one.share(&a).await;
    let output = disk.path().join("w.bin");
    let peers = [cluster.peer("a").await, cluster.peer("b").await, cluster.peer("c").await];
    let runs = peers.each_ref().map(|peer| start(peer, &output));
    until("three private files", async || (files_below(disk.path()).len() == 3).then_some(())).await;
    gate.open();
    for run in runs {
        run.ended().await.expect(0);
    }
    a.assert_at(&output);
    assert_eq!(files_below(disk.path()), ["w.bin"]);
    cluster.until_held("A", 4).await;
    drop(peers);
}

#[tokio::test]
async fn a_daemon_that_is_killed_leaves_the_file_of_another_in_one_folder_alone() {
    let cluster = Cluster::start().await;
    let Some(disk) = SmallDisk::mount(cluster.folder().join("disk"), 8 << 20) else { return };
    let a = Content::small_chunks("A", 1, 32);
    let (_source, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    let (mut two, three) = (cluster.peer("two").await, cluster.peer("three").await);
    let (for_two, for_three) = (disk.path().join("two.bin"), disk.path().join("three.bin"));
    let (mut run_two, mut run_three) = (start(&two, &for_two), start(&three, &for_three));
    gate.add_permits(8);
    run_two.until("a first event", |events| !events.is_empty()).await;
    run_three.until("a first event", |events| !events.is_empty()).await;
    until("two private files", async || (files_below(disk.path()).len() == 2).then_some(())).await;
    two.daemon.kill();
    run_two.ended().await;
    // It starts again while the other one still writes, and deletes only what is its own.
    two.daemon.restart().await;
    gate.add_permits(1000);
    run_three.ended().await.expect(0);
    a.assert_at(&for_three);
    download(&two, &for_two).await.expect(0);
    a.assert_at(&for_two);
    assert_eq!(files_below(disk.path()), ["three.bin", "two.bin"]);
    drop((two, three));
}

#[tokio::test]
async fn ctrl_c_ends_a_download_onto_another_disk_and_unshare_deletes_what_it_kept() {
    let cluster = Cluster::start().await;
    let Some(disk) = SmallDisk::mount(cluster.folder().join("disk"), 8 << 20) else { return };
    let (one, gate) = cluster.gated_peer("one").await;
    one.share(&Content::small_chunks("A", 1, 32)).await;
    let two = cluster.peer("two").await;
    let mut run = start(&two, &disk.path().join("w.bin"));
    gate.allow(8 * SMALL_CHUNK as usize);
    run.until_stored(2).await;
    run.signal(Signal::INT);
    run.ended().await.expect(130);
    assert_eq!(files_below(disk.path()).len(), 1, "its chunks are kept where they are");
    two.cli(["unshare", "A"]).await.expect(0);
    assert_eq!(files_below(disk.path()), [""; 0]);
    assert!(fs::read_dir(disk.path()).unwrap().next().is_none());
    drop(two);
}
