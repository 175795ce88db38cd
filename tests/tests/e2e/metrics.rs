//! What monitors see of a swarm.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use drizzle_tests::{
    Cluster, Content, Peer,
    cluster::Options,
    content::{SMALL_CHUNK, alter_secretly},
    monitor::{Prometheus, Scraped, get, has_prometheus},
    until,
};

const SCRAPED: [&str; 2] = ["--metrics", "127.0.0.1:0"];

async fn cluster() -> Cluster {
    Cluster::with_tracker_args(SCRAPED).await
}

async fn peer(cluster: &Cluster, name: &str, zone: &str) -> Peer {
    cluster.peer_with(name, Options::default().args(SCRAPED).args(["--label", &format!("zone={zone}")])).await
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[tokio::test]
async fn what_a_download_moves_is_counted_at_both_ends_by_zone() {
    let cluster = cluster().await;
    let source = peer(&cluster, "source", "a").await;
    let [near, far] = [peer(&cluster, "near", "a").await, peer(&cluster, "far", "b").await];
    let content = Content::small_chunks("A", 1, 9);
    source.share(&content).await;
    near.download("A").await;
    far.download("A").await;
    let size = content.bytes.len() as f64;
    let (near, far, sent) =
        (Scraped::of(&near.daemon).await, Scraped::of(&far.daemon).await, Scraped::of(&source.daemon).await);
    let received = |peer: &Scraped, zone| peer.value(&format!("drizzle_peer_received_bytes_total{{zone=\"{zone}\"}}"));
    assert_eq!((received(&near, "same"), received(&near, "other")), (size, 0.0));
    assert_eq!(received(&far, "same") + received(&far, "other"), size);
    assert!(received(&far, "other") > 0.0, "some has to come over the border");
    assert_eq!(near.value("drizzle_peer_received_chunks_total{zone=\"same\"}"), 9.0);
    assert!(sent.value("drizzle_peer_sent_chunks_total{zone=\"same\"}") >= 9.0);
    for downloaded in [&near, &far] {
        assert_eq!(downloaded.value("drizzle_peer_downloads_ended_total{result=\"done\"}"), 1.0);
        assert_eq!(downloaded.value("drizzle_peer_download_seconds_count"), 1.0);
        assert_eq!(downloaded.value("drizzle_peer_files{state=\"shared\"}"), 1.0);
        assert_eq!(downloaded.value("drizzle_peer_held_bytes"), size);
        assert_eq!(downloaded.value("drizzle_peer_tracker_connected"), 1.0);
        assert!(downloaded.value("drizzle_peer_hash_seconds_total") > 0.0);
        assert!(downloaded.value("drizzle_peer_tracker_call_seconds_count{method=\"RegisterPeer\"}") >= 1.0);
    }
    let tracker = Scraped::of(&cluster.tracker.daemon).await;
    assert_eq!(tracker.value("drizzle_tracker_peers"), 3.0);
    assert_eq!(tracker.value("drizzle_tracker_files"), 1.0);
    assert_eq!(tracker.value("drizzle_tracker_holders"), 3.0);
    assert!(tracker.value("drizzle_tracker_call_seconds_count{method=\"RegisterChunk\"}") >= 3.0);
    assert!(tracker.value("drizzle_tracker_catalogue_write_seconds_count") >= 1.0);
    assert!(tracker.value("drizzle_tracker_watch_lag_seconds_count") >= 1.0);
}

#[tokio::test]
async fn what_holders_do_wrong_is_counted_by_kind() {
    let cluster = cluster().await;
    let liar = peer(&cluster, "liar", "a").await;
    let content = Content::small_chunks("A", 1, 3);
    liar.share(&content).await;
    // The same size and time, other bytes: only the hashes tell.
    for chunk in 0..3 {
        alter_secretly(&liar.path("A"), chunk * u64::from(SMALL_CHUNK));
    }
    let victim = peer(&cluster, "victim", "a").await;
    victim.cli(["download", "A", "--timeout", "2s"]).await.expect(4);
    let victim = Scraped::of(&victim.daemon).await;
    assert!(victim.value("drizzle_peer_offences_total{kind=\"wrong_bytes\"}") >= 1.0, "{}", victim.text);
    assert_eq!(victim.value("drizzle_peer_downloads_ended_total{result=\"integrity\"}"), 1.0);
    assert_eq!(victim.value("drizzle_peer_received_chunks_total{zone=\"same\"}"), 0.0, "what is wrong did not come");
}

#[tokio::test]
async fn nothing_listens_unless_it_is_asked_for_and_only_the_path_is_answered() {
    let cluster = cluster().await;
    let quiet = cluster.peer("quiet").await;
    assert!(!quiet.daemon.ready.contains_key("metrics"));
    let address = cluster.tracker.daemon.ready["metrics"].parse().unwrap();
    assert_eq!(get(address, "/").await.0, 404);
    let taken = cluster.tracker.daemon.ready["metrics"].clone();
    let args = ["--tracker", &cluster.tracker.url(), "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"];
    let dir = cluster.folder().join("late");
    let args = [&args[..], &["--dir", dir.to_str().unwrap(), "--metrics", &taken]].concat();
    let ended = drizzle_tests::process::Process::ran("peer-svc", &args, &cluster.folder().join("logs")).await;
    assert!(ended.code == 1 && ended.stderr.contains("cannot listen on"), "{}", ended.stderr);
    assert!(ended.stderr.contains("--metrics"), "{}", ended.stderr);
}

/// Each number that a daemon tells stands in the README's table, with its type, and the other way round.
#[tokio::test]
async fn the_readme_documents_every_metric() {
    let cluster = cluster().await;
    let peer = peer(&cluster, "peer", "a").await;
    // Refusals are told by method and code, once there are some.
    peer.cli(["locations", "nothing"]).await.expect(3);
    let [peer, tracker] = [Scraped::of(&peer.daemon).await, Scraped::of(&cluster.tracker.daemon).await];
    let told: BTreeMap<&str, &str> = peer.families().into_iter().chain(tracker.families()).collect();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let rows = readme.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.split(['`', '{']).next()?;
        ["drizzle_", "process_", "tokio_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            .then_some((name, cells.next()?))
    });
    let documented: BTreeMap<&str, &str> = rows.collect();
    // As the text format has it, the names of counters end so in a sample, and not in the type.
    let told: BTreeMap<String, &str> = told
        .iter()
        .map(|(name, kind)| match *kind {
            "counter" => (format!("{name}_total"), *kind),
            "info" => (format!("{name}_info"), *kind),
            _ => ((*name).to_owned(), *kind),
        })
        .collect();
    let told: BTreeSet<(&str, &str)> = told.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
    let documented: BTreeSet<(&str, &str)> = documented.into_iter().collect();
    let (lacks, stale): (Vec<_>, Vec<_>) =
        (told.difference(&documented).collect(), documented.difference(&told).collect());
    assert!(
        lacks.is_empty() && stale.is_empty(),
        "the README lacks {lacks:?}, and has what no daemon tells: {stale:?}"
    );
}

#[tokio::test]
async fn the_real_prometheus_scrapes_a_swarm() {
    if !has_prometheus() {
        return;
    }
    let cluster = cluster().await;
    let [source, one, two] =
        [peer(&cluster, "source", "a").await, peer(&cluster, "one", "a").await, peer(&cluster, "two", "b").await];
    let at = |daemon: &drizzle_tests::cluster::Daemon| daemon.ready["metrics"].clone();
    let peers = [&source, &one, &two].map(|peer| at(&peer.daemon)).to_vec();
    let jobs = [("drizzle-tracker", vec![at(&cluster.tracker.daemon)]), ("drizzle-peer", peers)];
    let rules = root().join("deploy/monitoring/alerts.yaml").canonicalize().unwrap();
    let prometheus = Prometheus::start(cluster.folder(), &jobs, &rules).await;
    let content = Content::small_chunks("A", 1, 32);
    source.share(&content).await;
    tokio::join!(one.download("A"), two.download("A"));
    let is = async |query: &str, value: f64| {
        until(&format!("{query} is {value}"), async || (prometheus.value(query).await == Some(value)).then_some(()))
            .await;
    };
    is("sum(up)", 4.0).await;
    is("sum(drizzle_peer_received_bytes_total)", 2.0 * content.bytes.len() as f64).await;
    is("sum(drizzle_peer_downloads_ended_total{result=\"done\"})", 2.0).await;
    is("drizzle_tracker_holders", 3.0).await;
    is("count(drizzle_build_info)", 4.0).await;
    // A machine that is switched off is seen, and so is the alert about the tracker that it would raise.
    drop(two);
    is("sum(up)", 3.0).await;
    let series = prometheus.query("count by (__name__) ({job=~\"drizzle-.*\"})").await;
    assert!(series.len() > 50, "{}", series.len());
    let most = prometheus.value("max(count by (instance) ({job=~\"drizzle-.*\"}))").await.unwrap();
    assert!(most < 500.0, "{most} series of one daemon");

    // What Prometheus' own linter says of names, units and helps.
    for daemon in [&source.daemon, &cluster.tracker.daemon] {
        let mut promtool = Command::new("promtool");
        let promtool = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut linter = promtool.stderr(Stdio::piped()).spawn().unwrap();
        // It reads the older text format, in which a counter's type has its full name and nothing follows the end.
        let text = Scraped::of(daemon).await.text;
        let counters: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
        let plain = text.lines().filter(|line| *line != "# EOF").map(|line| {
            let is_counter = |name: &&str| counters.contains(name);
            let mut words: Vec<String> = line.splitn(4, ' ').map(str::to_owned).collect();
            if line.starts_with("# ") && words.get(2).map(String::as_str).filter(is_counter).is_some() {
                words[2] += "_total";
            }
            words.join(" ").replace("drizzle_build info", "drizzle_build_info gauge") + "\n"
        });
        let plain: String = plain.collect();
        let plain = plain.replace("# HELP drizzle_build ", "# HELP drizzle_build_info ");
        linter.stdin.take().unwrap().write_all(plain.as_bytes()).unwrap();
        let said = linter.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
        assert_eq!(said, "", "promtool check metrics");
    }
    let checked = Command::new("promtool").args(["check", "rules"]).arg(&rules).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
