//! Names come from other machines: none may leave its folder, and none may stop the others.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt};

use drizzle_proto::wire::{
    DownloadRequest, FileChunks, FileLocationsRequest, RegisterChunkRequest, RegisterPeerRequest, ShareRequest,
    UnshareRequest, WatchFileRequest, WithdrawFileRequest, file_result, share_result,
};
use drizzle_tests::{Cluster, Content, content::files_below};
use tokio_stream::StreamExt;
use tonic::Code;

fn bad_names() -> Vec<String> {
    let fixed = [
        "../x",
        "/x",
        "a/../../x",
        "",
        ".",
        "..",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "a\nb",
        "a\0b",
        "\u{1b}[2J",
        ".drizzle/state",
    ];
    let mut names: Vec<String> = fixed.map(str::to_owned).into();
    names.extend(["x".repeat(4096), "x/".repeat(2047) + "x", "x".repeat(256)]);
    names
}

#[tokio::test]
async fn the_cli_refuses_names_that_are_none() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    // An argument cannot contain NUL.
    for name in bad_names().into_iter().filter(|name| !name.contains('\0')) {
        for command in ["download", "unshare", "locations", "cancel"] {
            let run = peer.cli([command, "--", &name]).await;
            assert_eq!(run.code, 2, "{command} {name:?}: {}", run.stderr);
        }
        let file = cluster.folder().join("file");
        fs::write(&file, b"content").unwrap();
        let run = peer.cli(["share".as_ref(), file.as_os_str(), "--name".as_ref(), OsStr::new(&name)]).await;
        assert_eq!(run.code, 2, "share --name {name:?}: {}", run.stderr);
    }
    assert_eq!(files_below(&peer.dir), [""; 0]);
    assert_eq!(cluster.listed().await, []);
}

#[tokio::test]
async fn the_tracker_refuses_names_that_are_none() {
    let cluster = Cluster::start().await;
    let mut tracker = cluster.tracker.wire();
    let peer = RegisterPeerRequest { peer_id: "0".repeat(32), address: "127.0.0.1:1".into(), ..Default::default() };
    let lease_id = tracker.register_peer(peer).await.unwrap().into_inner().lease_id;
    let content = Content::small_chunks("good", 1, 1);
    for name in bad_names() {
        let entry = |name: &str| {
            let mut entry = FileChunks { file: Some((&content.info()).into()), ..FileChunks::default() };
            entry.chunk_sha256 = content.manifest.hashes().iter().map(ToString::to_string).collect();
            entry.file.as_mut().unwrap().name = name.to_owned();
            entry
        };
        let request = RegisterChunkRequest { lease_id, files: vec![entry(&name), entry("good")] };
        let results = tracker.register_chunk(request).await.unwrap().into_inner().results;
        assert_eq!(results[0].status(), file_result::Status::Invalid, "{name:?}");
        assert_eq!(results[1].status(), file_result::Status::Registered, "the rest of the batch, beside {name:?}");

        let locations = FileLocationsRequest { name: name.clone(), ..Default::default() };
        assert_eq!(tracker.file_locations(locations).await.unwrap_err().code(), Code::InvalidArgument, "{name:?}");
        let watch = tracker.watch_file(WatchFileRequest { name: name.clone(), ..Default::default() }).await;
        assert_eq!(watch.unwrap_err().code(), Code::InvalidArgument, "{name:?}");
        let withdraw = tracker.withdraw_file(WithdrawFileRequest { lease_id, name: name.clone() }).await;
        assert_eq!(withdraw.unwrap_err().code(), Code::InvalidArgument, "{name:?}");
    }
    let listed: Vec<String> = cluster.listed().await.into_iter().map(|(name, ..)| name).collect();
    assert_eq!(listed, ["good"]);
}

#[tokio::test]
async fn the_daemon_refuses_names_that_are_none() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    let mut control = peer.wire();
    let file = cluster.folder().join("file");
    fs::write(&file, b"content").unwrap();
    for name in bad_names() {
        let download = DownloadRequest { name: name.clone(), ..Default::default() };
        assert_eq!(control.download(download).await.unwrap_err().code(), Code::InvalidArgument, "download {name:?}");
        let unshare = control.unshare(UnshareRequest { name: name.clone() }).await;
        assert_eq!(unshare.unwrap_err().code(), Code::InvalidArgument, "unshare {name:?}");
        let locations = FileLocationsRequest { name: name.clone(), ..Default::default() };
        let locations = control.file_locations(locations).await;
        assert_eq!(locations.unwrap_err().code(), Code::InvalidArgument, "locations {name:?}");
        // An empty name in this request means the path's own.
        if !name.is_empty() {
            let path = file.to_str().unwrap().to_owned();
            let share = control
                .share(ShareRequest { paths: vec![path], name: name.clone(), chunk_size: 0, ..Default::default() })
                .await;
            let refused = match share {
                Err(status) => status.code() == Code::InvalidArgument,
                Ok(events) => refused(events.into_inner()).await,
            };
            assert!(refused, "share as {name:?}");
        }
    }
    assert_eq!(files_below(&peer.dir), [""; 0]);
    assert_eq!(cluster.listed().await, []);
}

async fn refused(mut events: tonic::Streaming<drizzle_proto::wire::ShareEvent>) -> bool {
    use drizzle_proto::wire::share_event::Event;
    while let Some(event) = events.next().await {
        match event {
            Err(status) => return status.code() == Code::InvalidArgument,
            Ok(event) => {
                if let Some(Event::Result(result)) = event.event {
                    return result.status() == share_result::Status::Failed;
                }
            }
        }
    }
    false
}

#[tokio::test]
async fn a_name_that_is_not_utf_8_is_skipped_and_the_others_are_shared() {
    let cluster = Cluster::start().await;
    let dir = cluster.folder().join("peer");
    fs::create_dir(&dir).unwrap();
    for name in [b"bad-\xff.bin".as_slice(), b"back\\slash", b"new\nline", b"good.bin"] {
        fs::write(dir.join(OsStr::from_bytes(name)), b"content").unwrap();
    }
    let peer = cluster.peer("peer").await;
    cluster.until_held("good.bin", 1).await;
    let listed: Vec<String> = cluster.listed().await.into_iter().map(|(name, ..)| name).collect();
    assert_eq!(listed, ["good.bin"]);
    for part in ["bad-", "back", "new"] {
        assert!(peer.daemon.process.stderr().contains(part), "{part}: the log names what was skipped");
    }
}

#[tokio::test]
async fn ordinary_but_odd_names_work() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let two = cluster.peer("two").await;
    let names = ["-rf", "~", "a b", "..a", "...", ".hidden", "ünï/çödé", "100%", "$(x)", "'\"", "*?"];
    for (seed, name) in (0..).zip(names) {
        let content = Content::small_chunks(name, seed, 2);
        one.share(&content).await;
        two.cli(["download", "--", name]).await.expect(0);
        content.assert_at(&two.path(name));
    }
    let long = "x".repeat(255) + "/" + &"y".repeat(255);
    let content = Content::small_chunks(&long, 99, 2);
    one.share(&content).await;
    two.download(&long).await;
    content.assert_at(&two.path(&long));
}

#[tokio::test]
async fn a_link_in_the_download_folder_does_not_lead_out_of_it() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    one.share(&Content::small_chunks("way/out", 1, 2)).await;
    let two = cluster.peer("two").await;
    let outside = cluster.folder().join("outside");
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, two.path("way")).unwrap();
    let run = two.cli(["download", "way/out", "--timeout", "2s"]).await;
    assert_ne!(run.code, 0, "{:?}", run.events.last());
    assert_eq!(files_below(&outside), [""; 0]);
}
