//! What a machine runs out of: it is waited for, named as what it is, and blamed on no peer.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use drizzle_tests::{Cluster, Content, Running, binaries, cluster::Options, dead_disk::DeadDisk, until};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;

/// The soft and the hard limit of open files of a process.
fn open_files(pid: u32) -> (String, String) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("a running process has limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit of open files");
    let mut values = line.split_whitespace().skip(3).map(str::to_owned);
    (values.next().expect("a soft limit"), values.next().expect("a hard limit"))
}

/// The number that the next file of a process would get.
fn lowest_free_file(pid: u32) -> u64 {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("a running process has files");
    let open: BTreeSet<u64> = open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    (0..).find(|number| !open.contains(number)).expect("there is always one")
}

#[test]
fn both_daemons_raise_their_limit_of_open_files_as_far_as_they_may() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    for (program, args) in [
        ("tracker-svc", vec!["--listen", "127.0.0.1:0", "--data-dir", dir]),
        (
            "peer-svc",
            vec!["--tracker", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--dir", dir],
        ),
    ] {
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -Sn 256; exec \"$0\" \"$@\""])
            .arg(binaries::path(program))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let (soft, hard) = open_files(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ready.starts_with("ready"), "{program}: {ready}");
        assert_eq!(soft, hard, "{program}");
    }
}

#[tokio::test]
async fn a_peer_without_a_free_file_waits_says_so_blames_no_peer_and_goes_on_when_there_is_one() {
    let cluster = Cluster::start().await;
    let (mut one, two) = (cluster.peer("one").await, cluster.peer("two").await);
    let a = Content::small_chunks("A", 1, 32);
    one.share(&a).await;
    one.daemon.terminate().await;
    let mut download: Running = two.start_cli(["download", "A", "--timeout", "1000s"]);
    let waits = |events: &[Value], what: &str| {
        let reasons =
            events.iter().filter(|event| event["event"] == "waiting").map(|event| event["reason"].to_string());
        reasons.into_iter().any(|reason| reason.contains(what))
    };
    download.until("the wait for a holder", |events| waits(events, "no peer holds")).await;

    let pid = two.daemon.process.pid();
    let allow = |files: u64| {
        let (pid, limit) = (Pid::from_raw(pid.try_into().unwrap()), Rlimit { current: Some(files), maximum: None });
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(pid, Resource::Nofile, Rlimit { maximum, ..limit }).expect("a limit can be set");
    };
    allow(lowest_free_file(pid));
    one.daemon.restart().await;
    download.until("the wait for a free file", |events| waits(events, "limit of open files")).await;
    allow(1000);
    let run = download.ended().await.expect(0);
    assert_eq!(run.blamed(), [], "no peer is to blame");
    a.assert_at(&two.path("A"));
    let said = two.daemon.process.stderr().lines().filter(|line| line.contains("limit of open files:")).count();
    assert_eq!(said, 1, "said once");
}

/// More files than a daemon has threads lie on a mount whose server is gone, and all of them are asked for.
#[tokio::test]
async fn a_dead_mount_below_some_shared_files_costs_the_others_nothing_and_heals() {
    const FILES: usize = 60;
    let cluster = Cluster::start().await;
    let mut options = Options::default().file("good", b"the other disk");
    for number in 0..FILES {
        options = options.file(&format!("dead/{number}"), format!("file {number}").as_bytes());
    }
    let (one, two) = (cluster.peer_with("one", options).await, cluster.peer("two").await);
    until("every file listed", async || (cluster.listed().await.len() == FILES + 1).then_some(())).await;

    let Some(disk) = DeadDisk::mount(&one.dir.join("dead")) else { return };
    let mut asking: Vec<Running> =
        (0..FILES).map(|number| two.start_cli(["download", &format!("dead/{number}"), "--timeout", "1000s"])).collect();
    for download in &mut asking {
        download.until("a failed chunk", |events| events.iter().any(|event| event["step"] == "failed")).await;
    }
    let run = two.cli(["download", "good"]).await.expect(0);
    assert_eq!(run.blamed(), []);
    let more = cluster.folder().join("more");
    fs::write(&more, "more").unwrap();
    one.cli(["share", more.to_str().unwrap()]).await.expect(0);
    assert!(!one.status().await.hanging_files.is_empty(), "status says what hangs");

    disk.end();
    for (number, download) in asking.into_iter().enumerate() {
        download.ended().await.expect(0);
        assert_eq!(fs::read(two.path(&format!("dead/{number}"))).unwrap(), format!("file {number}").as_bytes());
    }
    until("all disks answer", async || one.status().await.hanging_files.is_empty().then_some(())).await;
}

/// Looks at the dead files hang; looks at others do not wait for them.
#[tokio::test]
async fn a_dead_mount_keeps_no_new_file_of_the_folder_from_being_shared() {
    let cluster = Cluster::start().await;
    let options = Options::default().file("dead/1", b"one").file("dead/2", b"two").file("good", b"good");
    let one = cluster.peer_with("one", options.args(["--watch", "--look-every", "300ms"])).await;
    until("every file listed", async || (cluster.listed().await.len() == 3).then_some(())).await;
    until("the watch", async || one.daemon.process.stderr().contains(" watching the folder").then_some(())).await;
    let Some(disk) = DeadDisk::mount(&one.dir.join("dead")) else { return };
    until("a look that hangs", async || (!one.status().await.hanging_files.is_empty()).then_some(())).await;
    fs::write(one.path("new"), "new").unwrap();
    cluster.until_held("new", 1).await;
    fs::write(one.path("good"), "better").unwrap();
    until("a change of another file is noticed", async || (cluster.holders("good").await.is_empty()).then_some(()))
        .await;
    disk.end();
    until("all disks answer", async || one.status().await.hanging_files.is_empty().then_some(())).await;
    fs::write(one.path("dead/3"), "three").unwrap();
    cluster.until_held("dead/3", 1).await;
}

#[tokio::test]
async fn a_mount_that_is_dead_at_the_start_keeps_no_other_file_from_being_shared() {
    let cluster = Cluster::start().await;
    let options = Options::default().file("dead/1", b"one").file("good", b"good").file("withdrawn", b"withdrawn");
    let mut one = cluster.peer_with("one", options.args(["--watch", "--look-every", "300ms"])).await;
    until("every file listed", async || (cluster.listed().await.len() == 3).then_some(())).await;
    one.cli(["unshare", "withdrawn"]).await.expect(0);
    assert_eq!(one.daemon.terminate().await, 0);
    let Some(disk) = DeadDisk::mount(&one.dir.join("dead")) else { return };
    fs::write(one.path("new"), "new").unwrap();
    one.restart().await;
    cluster.until_held("good", 1).await;
    cluster.until_held("new", 1).await;
    assert!(cluster.holders("dead/1").await.is_empty(), "it is not known whether it is there");
    disk.end();
    cluster.until_held("dead/1", 1).await;
    assert!(!cluster.listed().await.iter().any(|(name, ..)| name == "withdrawn"), "what was withdrawn stays so");
}
