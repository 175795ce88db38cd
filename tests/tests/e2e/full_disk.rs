//! A disk that fills up fails the one download, says so, and leaves nothing behind.

use drizzle_tests::{
    Cluster, Content,
    cluster::Options,
    content::{files_below, random},
    small_disk::SmallDisk,
};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_full_disk_fails_the_download_and_nothing_else() {
    let cluster = Cluster::start().await;
    let Some(disk) = SmallDisk::mount(cluster.folder().join("disk"), 8 << 20) else { return };
    let one = cluster.peer("one").await;
    let large = Content::new("large", random(1, 24 * MIB), 256 << 10);
    let small = Content::new("small", random(2, MIB), 256 << 10);
    one.share(&large).await;
    one.share(&small).await;
    let two = cluster.peer_with("two", Options::default().dir(disk.path())).await;

    let run = two.cli(["download", "large"]).await.expect(1);
    let reason = run.reason().to_lowercase();
    assert!(reason.contains("space") || reason.contains("full"), "the reason is told: {reason}");
    assert_eq!(run.blamed(), [], "no peer is to blame");
    assert_eq!(files_below(disk.path()), [""; 0]);

    // The daemon lives, and the space that the failure took is free for what does fit.
    two.download("small").await;
    small.assert_at(&two.path("small"));
    drop(two);
}

#[tokio::test]
async fn after_a_full_disk_room_is_enough_to_go_on() {
    let cluster = Cluster::start().await;
    let Some(disk) = SmallDisk::mount(cluster.folder().join("disk"), 8 << 20) else { return };
    let one = cluster.peer("one").await;
    let a = Content::new("A", random(1, 2 * MIB), 64 << 10);
    one.share(&a).await;
    let two = cluster.peer_with("two", Options::default().dir(disk.path())).await;
    // Somebody else takes the whole disk; single chunks reserve nothing, so writing finds out.
    let hog = disk.path().join("hog");
    let filled = std::fs::write(&hog, vec![1; 16 * MIB]);
    assert!(filled.is_err(), "the disk is full now");
    let run = two.cli(["download", "A", "--chunks", "0-15"]).await.expect(1);
    assert_eq!(run.blamed(), [], "no peer is to blame: {}", run.reason());
    std::fs::remove_file(&hog).unwrap();
    two.download("A").await;
    a.assert_at(&two.path("A"));
    drop(two);
}
