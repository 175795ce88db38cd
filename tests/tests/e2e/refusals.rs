//! Daemons that do not start, and commands that fail at once: one line that says why, and no backtrace although
//! RUST_BACKTRACE asks for one.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use drizzle_tests::{
    Cluster, Content,
    process::{Ended, Process},
    until,
};

/// Runs a program that ends by itself: its exit code and what it says on stderr.
async fn ended(program: &str, args: &[&str], logs: &Path) -> (i32, String) {
    let Ended { code, stdout, stderr } = Process::ran(program, args, logs).await;
    assert_eq!(stdout, "", "it was never ready");
    (code, stderr)
}

/// It ends with 1 and one line that has these words, each of them once.
async fn refuses(program: &str, args: &[&str], words: &[&str], logs: &Path) {
    let (code, said) = ended(program, args, logs).await;
    assert_eq!(code, 1, "{args:?}: {said}");
    assert!(said.starts_with(&format!("{program}: ")) && said.lines().count() == 1, "{args:?}: one line: {said}");
    for word in words {
        assert_eq!(said.matches(word).count(), 1, "{args:?}: {word:?} once: {said}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Copies of a database, each with a stretch of it overwritten: much of that redb finds by checks, some by a panic.
fn damaged(database: &Path, into: &Path) -> Vec<PathBuf> {
    let bytes = fs::read(database).unwrap();
    let mut copies = Vec::new();
    for (n, from) in (0..bytes.len()).step_by(4096).take(16).enumerate() {
        let mut copy = bytes.clone();
        let to = (from + 4096).min(copy.len());
        copy[from..to].iter_mut().for_each(|byte| *byte = byte.wrapping_mul(31).wrapping_add(7));
        let folder = into.join(n.to_string());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(database.file_name().unwrap()), copy).unwrap();
        copies.push(folder);
    }
    copies
}

#[tokio::test]
async fn a_tracker_that_cannot_start_says_so_in_one_line() {
    let cluster = Cluster::start().await;
    let (folder, logs) = (cluster.folder(), cluster.folder().join("logs"));
    let taken = cluster.tracker.address().to_string();
    let any = "127.0.0.1:0";
    let file = folder.join("file");
    fs::write(&file, b"x").unwrap();
    let new = folder.join("new");
    let listen = ["--listen", &taken, "--data-dir", text(&new)];
    refuses("tracker-svc", &listen, &[&taken, "in use"], &logs).await;
    let data = folder.join("tracker");
    refuses("tracker-svc", &["--listen", any, "--data-dir", text(&data)], &["in use", "--data-dir"], &logs).await;
    let no_folder = ["--listen", any, "--data-dir", text(&file)];
    refuses("tracker-svc", &no_folder, &[text(&file), "os error"], &logs).await;
    refuses("tracker-svc", &["healthcheck", "--address", "127.0.0.1:1"], &["os error"], &logs).await;
}

#[tokio::test]
async fn a_peer_that_cannot_start_says_so_in_one_line() {
    let cluster = Cluster::start().await;
    let (folder, logs) = (cluster.folder(), cluster.folder().join("logs"));
    let taken = cluster.tracker.address().to_string();
    let one = cluster.peer("one").await;
    let file = folder.join("file");
    fs::write(&file, b"x").unwrap();
    let dir = folder.join("new");
    let any = "127.0.0.1:0";
    let with = |listen: &str, control: &str, dir: &Path, more: &[&str]| {
        let args = ["--tracker", &taken, "--listen", listen, "--control", control, "--dir", text(dir)];
        args.iter().chain(more).map(ToString::to_string).collect::<Vec<String>>()
    };
    for (args, words) in [
        (with(&taken, any, &dir, &[]), &["--listen", "in use"][..]),
        (with(any, &taken, &dir, &[]), &["--control", "in use"]),
        (with(any, any, &file, &[]), &["os error"]),
        (with(any, any, &one.dir, &[]), &["is in use by"]),
        (with(any, any, &dir, &["--state-dir", text(&file)]), &["--state-dir", "os error"]),
        (with(any, any, &dir, &["--label", "a=1", "--label", "a=2"]), &["--label", "twice"]),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refuses("peer-svc", &args, words, &logs).await;
    }
    refuses("peer-svc", &["healthcheck", "--address", "127.0.0.1:1"], &["os error"], &logs).await;
}

#[tokio::test]
async fn damaged_state_is_told_in_one_line_or_healed() {
    let mut cluster = Cluster::start().await;
    let mut one = cluster.peer("one").await;
    let logs = cluster.folder().join("logs");
    assert_eq!(one.daemon.terminate().await, 0);
    assert_eq!(cluster.tracker.daemon.terminate().await, 0);
    let (mut told, copies) = (0, cluster.folder().join("copies"));
    let cases = [
        ("peer-svc", one.dir.join(".drizzle/peer.redb"), "--state-dir"),
        ("tracker-svc", cluster.folder().join("tracker/catalogue.redb"), "--data-dir"),
    ];
    for (program, database, option) in cases {
        for copy in damaged(&database, &copies.join(program)) {
            let mut args: Vec<OsString> = vec!["--listen".into(), "127.0.0.1:0".into(), option.into(), copy.into()];
            if program == "peer-svc" {
                args.extend(["--tracker", "127.0.0.1:1", "--control", "127.0.0.1:0", "--dir"].map(Into::into));
                args.push(one.dir.clone().into());
            }
            let mut run = Process::start(program, program, &args, &logs);
            let code = until("an end or a ready line", async || {
                if run.stdout().contains('\n') { Some(None) } else { run.exit_code().map(Some) }
            });
            if let Some(code) = code.await {
                let said = run.stderr();
                assert_eq!((code, said.lines().count()), (1, 1), "{args:?}: {said}");
                assert!(said.starts_with(&format!("{program}: ")), "{said}");
                told += 1;
            }
        }
    }
    assert!(told > 0, "some of the damage must be beyond healing");
}

#[tokio::test]
async fn a_cli_without_a_daemon_says_so_without_a_backtrace() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["status"][..], &["files"], &["locations", "A"], &["download", "A"], &["share", "/"]] {
        let (code, said) = ended("peer-cli", &[&["--peer", "127.0.0.1:1"], args].concat(), folder.path()).await;
        assert_eq!(code, 5, "{args:?}: {said}");
        assert_eq!(said.lines().count(), 2, "what happened, and what to do: {said}");
        assert_eq!(said.matches("Connection refused").count(), 1, "{said}");
    }
}

#[tokio::test]
async fn what_went_wrong_is_told_once() {
    let mut cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let two = cluster.peer("two").await;
    one.share(&Content::small_chunks("A", 1, 2)).await;
    fs::write(two.path("A"), b"mine").unwrap();
    let logs = cluster.folder().join("logs");
    let control = two.control().to_owned();
    let told = async |args: &[&str]| ended("peer-cli", &[&["--peer", &control], args].concat(), &logs).await;

    let (code, said) = told(&["download", "A"]).await;
    assert_eq!(code, 6);
    assert_eq!(said.to_lowercase().matches("move it away").count(), 1, "{said}");
    assert_eq!(said.matches("-o").count(), 1, "{said}");

    cluster.tracker.daemon.kill();
    let (code, said) = told(&["files"]).await;
    assert_eq!(code, 5);
    assert!(said.starts_with("peer-cli: the tracker cannot be reached: Connection refused (os error 111)\n"), "{said}");
    assert_eq!(said.lines().count(), 2, "what happened, and what to do: {said}");
}
