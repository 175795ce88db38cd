//! Sizes at which arithmetic goes wrong, and files in folders.

use drizzle_tests::{
    Cluster, Content,
    cluster::Options,
    content::{SMALL_CHUNK, files_below, random},
};

#[tokio::test]
async fn every_boundary_of_a_chunk_is_met() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let two = cluster.peer("two").await;
    let chunk = SMALL_CHUNK as usize;
    let sizes = [
        ("no chunk at all", 0),
        ("one byte", 1),
        ("a byte short of a chunk", chunk - 1),
        ("exactly one chunk", chunk),
        ("a byte more than a chunk", chunk + 1),
        ("exactly as many chunks as a byte has bits", 8 * chunk),
        ("one chunk more than a machine word has bits", 65 * chunk),
        ("many chunks, the last a single byte", 100 * chunk + 1),
    ];
    for (seed, (what, size)) in (0..).zip(sizes) {
        let content = Content::new(&format!("{what} ({size})"), random(seed, size), SMALL_CHUNK);
        one.share(&content).await;
        let run = two.download(content.name.as_str()).await;
        assert_eq!(run.fetched(), size as u64, "{what}");
        let chunks: u64 = run.sources().values().map(|given| given.chunks).sum();
        assert_eq!(chunks, size.div_ceil(chunk) as u64, "{what}");
        content.assert_at(&two.path(content.name.as_str()));
        cluster.until_held(content.name.as_str(), 2).await;
    }
}

#[tokio::test]
async fn the_default_chunk_size_serves_small_and_larger_files() {
    let cluster = Cluster::start().await;
    let files = [("empty", 0), ("tiny", 1), ("chunk", 64 << 10), ("more", (64 << 10) + 1), ("large", 80 << 20)];
    let contents: Vec<(&str, Vec<u8>)> =
        (0..).zip(files).map(|(seed, (name, size))| (name, random(seed, size))).collect();
    let options = contents.iter().fold(Options::default(), |options, (name, bytes)| options.file(name, bytes));
    let _one = cluster.peer_with("one", options).await;
    let two = cluster.peer("two").await;
    for (name, bytes) in contents {
        cluster.until_held(name, 1).await;
        two.download(name).await;
        let chunk_size = if name == "large" { 128 << 10 } else { 64 << 10 };
        Content::new(name, bytes, chunk_size).assert_at(&two.path(name));
    }
}

#[tokio::test]
async fn folders_are_kept() {
    let cluster = Cluster::start().await;
    let names = ["a/b/c/deep.bin", "a/b/other.bin", "a/with blank/ünï.bin", "top.bin"];
    let options =
        (0..).zip(names).fold(Options::default(), |options, (seed, name)| options.file(name, &random(seed, 20_000)));
    let one = cluster.peer_with("one", options).await;
    let two = cluster.peer("two").await;
    for (seed, name) in (0..).zip(names) {
        cluster.until_held(name, 1).await;
        two.download(name).await;
        Content::new(name, random(seed, 20_000), SMALL_CHUNK).assert_at(&two.path(name));
    }
    assert_eq!(files_below(&two.dir), names);
    assert_eq!(files_below(&one.dir), names);
}

#[tokio::test]
async fn a_file_from_elsewhere_is_shared_where_it_lies() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let two = cluster.peer("two").await;
    let bytes = random(1, 100_000);
    let elsewhere = cluster.folder().join("elsewhere");
    std::fs::create_dir_all(elsewhere.join("set/part")).unwrap();
    std::fs::write(elsewhere.join("set/part/x.bin"), &bytes).unwrap();
    std::fs::write(elsewhere.join("single.bin"), &bytes).unwrap();

    one.cli(["share".as_ref(), elsewhere.join("set").as_os_str()]).await.expect(0);
    one.cli(["share".as_ref(), elsewhere.join("single.bin").as_os_str(), "--name".as_ref(), "models/one".as_ref()])
        .await
        .expect(0);
    let listed: Vec<String> = cluster.listed().await.into_iter().map(|(name, ..)| name).collect();
    assert_eq!(listed, ["models/one", "set/part/x.bin"]);
    for name in listed {
        two.download(&name).await;
        assert_eq!(std::fs::read(two.path(&name)).unwrap(), bytes);
    }
    assert_eq!(files_below(&one.dir), [""; 0], "nothing was copied");
}

#[tokio::test]
async fn the_result_goes_where_it_is_wanted() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let two = cluster.peer("two").await;
    let a = Content::small_chunks("dir/A", 1, 5);
    one.share(&a).await;
    let output = cluster.folder().join("result.bin");
    let run = two.cli(["download".as_ref(), "dir/A".as_ref(), "-o".as_ref(), output.as_os_str()]).await.expect(0);
    assert_eq!(run.last("done")["path"], output.to_str().unwrap());
    a.assert_at(&output);
}
