//! A peer that is controlled at a socket: who reaches it, what becomes of its file, and which files those who use it may
//! name. With the real binaries, as an operator sets it up.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use drizzle_tests::{
    Cluster, Content, FakePeer, Peer, Run, Running,
    cluster::Options,
    content::files_below,
    process::{Ended, Process},
    skipped, until,
};

/// A folder for sockets, and how one in it is written.
fn socket(cluster: &Cluster) -> (PathBuf, String) {
    let folder = cluster.folder().join("run");
    fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("peer.sock");
    let at = format!("unix:{}", socket.display());
    (socket, at)
}

fn names(folder: &Path) -> Vec<OsString> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

async fn healthcheck(at: &str, logs: &Path) -> (i32, String) {
    let Ended { code, stderr, .. } = Process::ran("peer-svc", &["healthcheck", "--address", at], logs).await;
    (code, stderr)
}

#[tokio::test]
async fn a_daemon_is_driven_at_its_socket_and_takes_it_away_in_the_end() {
    let cluster = Cluster::start().await;
    let (socket, at) = socket(&cluster);
    let one = cluster.peer("one").await;
    let a = Content::small_chunks("A", 1, 8);
    one.share(&a).await;
    let mut two = cluster.peer_with("two", Options::default().control(&at)).await;
    assert_eq!(two.control(), at, "the ready line says how to reach it");
    let metadata = socket.metadata().unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!((metadata.mode() & 0o7777, names(socket.parent().unwrap()).len()), (0o660, 1));

    two.download("A").await;
    a.assert_at(&two.path("A"));
    two.cli(["status"]).await.expect(0);
    assert_eq!(healthcheck(&at, &two.daemon.logs).await, (0, String::new()));
    until("a lease", async || {
        let args = ["healthcheck", "--ready", "--address", &at];
        (Process::ran("peer-svc", &args, &two.daemon.logs).await.code == 0).then_some(())
    })
    .await;

    // A second daemon is refused, and the first one is none the worse.
    let dir = cluster.folder().join("other");
    let args = [
        "--tracker",
        &cluster.tracker.url(),
        "--listen",
        "127.0.0.1:0",
        "--dir",
        dir.to_str().unwrap(),
        "--control",
        &at,
    ];
    let other = Process::ran("peer-svc", &args, &two.daemon.logs).await;
    assert_eq!(other.code, 1);
    assert_eq!(
        other.stderr.lines().last().unwrap_or_default(),
        format!(
            "peer-svc: cannot listen on {at} (--control): a daemon listens there already: stop it, or give this one another path"
        )
    );
    two.cli(["status"]).await.expect(0);

    assert_eq!(two.daemon.terminate().await, 0);
    assert_eq!(names(socket.parent().unwrap()), [""; 0]);
    let run = two.cli(["status"]).await.expect(5);
    assert!(run.stderr.contains(&format!("no peer daemon answers at {at}: ")), "{}", run.stderr);
    let (code, said) = healthcheck(&at, &two.daemon.logs).await;
    assert_eq!((code, said.contains(&at) && said.contains("not reached")), (1, true), "{said}");
}

#[tokio::test]
async fn a_killed_daemon_leaves_its_socket_and_the_next_one_takes_its_place() {
    let cluster = Cluster::start().await;
    let (socket, at) = socket(&cluster);
    let mut peer = cluster.peer_with("one", Options::default().control(&at)).await;
    let before = socket.metadata().unwrap().ctime_nsec();
    peer.daemon.kill();
    assert!(socket.exists());
    let run = peer.cli(["status"]).await.expect(5);
    assert!(run.stderr.contains(&at) && run.stderr.contains("Connection refused"), "{}", run.stderr);
    peer.daemon.restart().await;
    peer.cli(["status"]).await.expect(0);
    assert_ne!(socket.metadata().unwrap().ctime_nsec(), before);
    assert_eq!(peer.daemon.terminate().await, 0);
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_place_where_no_socket_can_be_is_refused_at_start_and_left_as_it_is() {
    let cluster = Cluster::start().await;
    let (socket, _) = socket(&cluster);
    let file = socket.with_file_name("file");
    fs::write(&file, "mine").unwrap();
    let long = cluster.folder().join("l".repeat(108));
    let dir = cluster.folder().join("one");
    for (path, said) in [
        (file.clone(), "what is there is no socket: move it away"),
        (dir.parent().unwrap().join("none/peer.sock"), "make it, for the daemon's user"),
        (long, "at most 107 bytes"),
        (PathBuf::new(), "expected a path behind unix:"),
    ] {
        let at = format!("unix:{}", path.display());
        let args =
            ["--tracker", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--dir", dir.to_str().unwrap(), "--control", &at];
        let Ended { code, stdout, stderr } = Process::ran("peer-svc", &args, &cluster.folder().join("logs")).await;
        assert!(code != 0 && stdout.is_empty(), "{at}: {stderr}");
        assert!(stderr.contains(said) && stderr.contains("--control"), "{at}: {stderr}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

/// A command that gives what it starts a `/run/drizzle` of its own: that folder. `None` if this process may not do so.
fn with_run_folder(folder: &Path) -> Option<Vec<String>> {
    let mount =
        format!("mount -t tmpfs none /run && mkdir /run/drizzle && mount --bind '{}' /run/drizzle", folder.display());
    let unshare: Vec<String> = ["unshare", "--mount", "sh", "-ec"].map(str::to_owned).into();
    let starter = |then: &str| [&unshare[..], &[format!("{mount} && {then}"), "sh".to_owned()]].concat();
    let tried = starter("true");
    if !Command::new(&tried[0]).args(&tried[1..]).output().is_ok_and(|output| output.status.success()) {
        skipped("no mounts of its own for a program: unshare(1) as root is needed");
        return None;
    }
    Some(starter("exec \"$@\""))
}

#[tokio::test]
async fn peer_cli_and_the_health_check_find_the_packaged_socket_by_themselves() {
    let cluster = Cluster::start().await;
    let (socket, at) = socket(&cluster);
    let Some(starter) = with_run_folder(socket.parent().unwrap()) else { return };
    let starter: Vec<&str> = starter.iter().map(String::as_str).collect();
    let logs = cluster.folder().join("logs");
    let mut peer = cluster.peer_with("one", Options::default().control(&at)).await;
    let run = Running::start_by(&starter, "", &["status".into()], &logs).ended().await.expect(0);
    assert_eq!(run.events[0]["peer_id"], peer.id().to_string(), "{}", run.events[0]);
    let mut check = Process::start_by(&starter, "healthcheck", "peer-svc", &["healthcheck".into()], &logs);
    assert_eq!(check.ended().await, 0, "{}", check.stderr());
    // Without a socket it is the port.
    assert_eq!(peer.daemon.terminate().await, 0);
    let mut check = Process::start_by(&starter, "healthcheck", "peer-svc", &["healthcheck".into()], &logs);
    check.ended().await;
    assert!(!check.stderr().contains("peer.sock"), "{}", check.stderr());
}

#[tokio::test]
async fn who_may_not_open_the_socket_is_told_which_group_may() {
    /// Nobody, of no group.
    const STARTER: [&str; 6] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let cluster = Cluster::start().await;
    let (socket, at) = socket(&cluster);
    let logs = cluster.folder().join("logs");
    let peer = cluster.peer_with("one", Options::default().control(&at)).await;
    fs::set_permissions(cluster.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    let cli = drizzle_tests::binaries::path("peer-cli");
    let may_run = Command::new(STARTER[0]).args(&STARTER[1..]).arg(&cli).arg("--help").output();
    if !may_run.is_ok_and(|output| output.status.success()) {
        skipped(
            "peer-cli cannot be run as another user: setpriv(1) as root, and binaries that all may read, are needed",
        );
        return;
    }
    let run = Running::start_by(&STARTER, peer.control(), &["status".into()], &logs).ended().await.expect(8);
    let told = format!("the peer daemon's socket {} may not be opened: Permission denied", socket.display());
    assert!(run.stderr.contains(&told) && run.stderr.contains("must be in the group "), "{}", run.stderr);
    // Once in its group one may.
    let group = socket.metadata().unwrap().gid().to_string();
    let starter = ["setpriv", "--reuid", "65534", "--regid", "65534", "--groups", &group];
    Running::start_by(&starter, peer.control(), &["status".into()], &logs).ended().await.expect(0);
}

async fn share(peer: &Peer, path: &Path) -> Run {
    peer.cli(["share".as_ref(), path.as_os_str()]).await
}

async fn download_to(peer: &Peer, name: &str, output: &Path) -> Run {
    peer.cli(["download".as_ref(), name.as_ref(), "-o".as_ref(), output.as_os_str()]).await
}

/// What a run says of a refusal, which must be one.
#[track_caller]
fn refused(run: Run) -> String {
    let run = run.expect(8);
    let said = format!("{}{:?}", run.stderr, run.events);
    assert!(said.contains("--allow-path"), "{said}");
    said
}

/// A folder beside those of the peers, with a secret; and links in `from` that lead there.
fn outside(cluster: &Cluster, from: &Path) -> PathBuf {
    let outside = cluster.folder().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "of the daemon's user").unwrap();
    fs::create_dir_all(from.join("sub")).unwrap();
    symlink(&outside, from.join("link")).unwrap();
    symlink(outside.join("secret"), from.join("secret")).unwrap();
    outside
}

#[tokio::test]
async fn at_a_socket_nothing_outside_of_the_daemons_folder_is_shared() {
    let cluster = Cluster::start().await;
    let (_, at) = socket(&cluster);
    let peer = cluster.peer_with("one", Options::default().control(&at)).await;
    let outside = outside(&cluster, &peer.dir);
    fs::write(peer.path("sub/mine"), "mine").unwrap();
    for path in
        ["../outside/secret", "sub/../../outside/secret", "link/secret", "secret", "link", "../outside", "../none"]
    {
        let said = refused(share(&peer, &peer.path(path)).await);
        assert!(said.contains(peer.dir.to_str().unwrap()), "which folders may be named: {said}");
    }
    // The daemon's own files, such as its keys, are in its folder and are not for others.
    refused(share(&peer, &peer.path(".drizzle/peer.redb")).await);
    // A caller that is no peer-cli does not resolve paths first.
    for path in
        [format!("{}/sub/../../outside/secret", peer.dir.display()), format!("{}/none/../../x", peer.dir.display())]
    {
        let mut control = drizzle_proto::wire::control_client::ControlClient::new(
            drizzle_proto::net::transport::Transport::plaintext().connect_local(at[5..].into()).await.unwrap(),
        );
        let request = drizzle_proto::wire::ShareRequest { paths: vec![path], ..Default::default() };
        assert_eq!(control.share(request).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    }
    share(&peer, &peer.path("sub/../sub/mine")).await.expect(0);
    assert_eq!(cluster.listed().await.into_iter().map(|(name, ..)| name).collect::<Vec<_>>(), ["sub/mine"]);
    assert_eq!(files_below(&outside), ["secret"]);
}

#[tokio::test]
async fn at_a_socket_nothing_is_downloaded_to_outside_of_the_daemons_folder() {
    let cluster = Cluster::start().await;
    let (_, at) = socket(&cluster);
    let one = cluster.peer("one").await;
    let a = Content::small_chunks("A", 1, 4);
    one.share(&a).await;
    let peer = cluster.peer_with("two", Options::default().control(&at)).await;
    let outside = outside(&cluster, &peer.dir);
    for path in ["../outside/new", "sub/../../outside/new", "link/new", "link/none/new", "../none/new", ".drizzle/new"]
    {
        refused(download_to(&peer, "A", &peer.path(path)).await);
    }
    assert_eq!(files_below(&outside), ["secret"]);
    assert_eq!(one.status().await.uploaded_bytes, 0, "nothing was fetched");
    // A link at the destination itself is not followed, whatever is allowed.
    download_to(&peer, "A", &peer.path("secret")).await.expect(2);
    let to = peer.path("sub/new");
    download_to(&peer, "A", &to).await.expect(0);
    a.assert_at(&to);
}

#[tokio::test]
async fn what_is_allowed_beside_the_daemons_folder_may_be_named_and_at_a_port_it_is_everything_unless_said_otherwise() {
    let cluster = Cluster::start().await;
    let more = cluster.folder().join("more");
    let deep = cluster.folder().join("deep/er");
    for folder in [&more, &deep] {
        fs::create_dir_all(folder).unwrap();
    }
    let a = Content::small_chunks("A", 1, 4);
    let one = cluster.peer("one").await;
    let path = cluster.folder().join("A");
    fs::write(&path, &a.bytes).unwrap();
    share(&one, &path).await.expect(0);
    // Several in one, as in the variable.
    let allowed = format!("{}:{}", more.display(), deep.display());
    let peer = cluster.peer_with("two", Options::default().args(["--allow-path", &allowed])).await;
    let said = refused(share(&peer, &path).await);
    for folder in [&peer.dir, &more, &deep] {
        assert!(said.contains(folder.to_str().unwrap()), "{said}");
    }
    refused(download_to(&peer, "A", &cluster.folder().join("B")).await);
    refused(download_to(&peer, "A", &deep.join("../B")).await);
    let to = deep.join("B");
    download_to(&peer, "A", &to).await.expect(0);
    a.assert_at(&to);
    fs::write(more.join("c"), "c").unwrap();
    share(&peer, &more).await.expect(0);

    let (_, at) = socket(&cluster);
    let args = ["--allow-path", "/"];
    let all = cluster.peer_with("three", Options::default().control(&at).args(args)).await;
    download_to(&all, "A", &cluster.folder().join("C")).await.expect(0);
    let args = ["--tracker", "127.0.0.1:1", "--dir", all.dir.to_str().unwrap(), "--allow-path", "/none/such"];
    let Ended { code, stderr, .. } = Process::ran("peer-svc", &args, &all.daemon.logs).await;
    assert!(code != 0 && stderr.contains("--allow-path /none/such") && stderr.contains("must be a folder"), "{stderr}");
}

/// Between the look at a file and its use a caller may put a link in its place.
#[tokio::test]
async fn a_file_that_becomes_a_link_to_outside_after_it_was_shared_is_not_served() {
    let cluster = Cluster::start().await;
    let (_, at) = socket(&cluster);
    let peer = cluster.peer_with("one", Options::default().control(&at)).await;
    let outside = outside(&cluster, &peer.dir);
    let a = Content::small_chunks("sub/a", 1, 4);
    peer.share(&a).await;
    // It looks the same from there: its size and its time are those that were shared.
    let moved = outside.join("a");
    fs::rename(peer.path("sub/a"), &moved).unwrap();
    symlink(&moved, peer.path("sub/a")).unwrap();
    let other = cluster.peer("two").await;
    let run = other.cli(["download", "sub/a", "--timeout", "2s"]).await;
    assert_ne!(run.code, 0);
    assert!(!other.path("sub/a").exists());
    // Without the link it is the file that was shared.
    fs::remove_file(peer.path("sub/a")).unwrap();
    fs::rename(&moved, peer.path("sub/a")).unwrap();
    until("it is served", async || (other.cli(["download", "sub/a", "--timeout", "5s"]).await.code == 0).then_some(()))
        .await;
}

/// Nor is the folder of a destination another one at the end than it was at the beginning.
#[tokio::test]
async fn a_destination_whose_folder_becomes_a_link_to_outside_gets_nothing() {
    let cluster = Cluster::start().await;
    let (_, at) = socket(&cluster);
    let a = Content::small_chunks("A", 1, 8);
    let (_source, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    let peer = cluster.peer_with("one", Options::default().control(&at)).await;
    let outside = outside(&cluster, &peer.dir);
    let output = peer.path("sub/new");
    let mut run = peer.start_cli(["download".as_ref(), "A".as_ref(), "-o".as_ref(), output.as_os_str()]);
    gate.add_permits(4);
    run.until_stored(4).await;
    fs::rename(peer.path("sub"), peer.path("moved")).unwrap();
    symlink(&outside, peer.path("sub")).unwrap();
    gate.add_permits(1000);
    let run = run.ended().await.expect(1);
    assert!(run.reason().contains("leads out of the folders"), "{}", run.reason());
    assert_eq!((files_below(&outside), files_below(&peer.path("moved"))), (vec!["secret".to_owned()], vec![]));
}
