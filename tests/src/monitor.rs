//! What monitors do: scrapes of a daemon, and the real Prometheus, which does so by itself.

use std::{
    collections::BTreeMap,
    env, fs, io,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{cluster::Daemon, skip::skipped, until};

/// Asks a server of HTTP for a path; the status and the body.
///
/// # Panics
/// If it does not answer.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    try_get(address, path).await.unwrap_or_else(|error| panic!("http://{address}{path}: {error}"))
}

async fn try_get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0, so that nothing comes in chunks.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(broken)?;
    Ok((status, body.to_owned()))
}

/// One scrape.
#[derive(Debug)]
pub struct Scraped {
    /// As it came.
    pub text: String,
}

impl Scraped {
    /// Of a daemon that was started with `--metrics`.
    ///
    /// # Panics
    /// If it was not, or does not answer.
    pub async fn of(daemon: &Daemon) -> Self {
        let address = daemon.ready["metrics"].parse().expect("an address in the ready line");
        let (status, text) = get(address, "/metrics").await;
        assert_eq!(status, 200);
        Self { text }
    }

    /// A number, by its name and labels as they are written; 0 if it is not there.
    ///
    /// # Panics
    /// If it is no number.
    pub fn value(&self, series: &str) -> f64 {
        let line = self.text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// The families, and their types.
    pub fn families(&self) -> BTreeMap<&str, &str> {
        self.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
    }
}

/// The real Prometheus, with a folder of its own. Dropped, it is gone.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    child: Child,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program of Debian's package `prometheus` is here; that it is not is an error in CI.
///
/// # Panics
/// In CI.
pub fn has_prometheus() -> bool {
    let found = Command::new("promtool").arg("--version").output().is_ok();
    if !found {
        assert!(env::var_os("CI").is_none(), "prometheus is missing: run tests/run");
        skipped("prometheus is missing; run tests/run, or install the Debian package of that name");
    }
    found
}

impl Prometheus {
    /// Scrapes jobs of these names at these addresses, five times a second, with these rules.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(folder: &Path, jobs: &[(&str, Vec<String>)], rules: &Path) -> Self {
        let jobs = jobs
            .iter()
            .map(|(name, targets)| serde_json::json!({ "job_name": name, "static_configs": [{ "targets": targets }] }));
        let config = serde_json::json!({
            "global": { "scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms" },
            "rule_files": [rules],
            "scrape_configs": jobs.collect::<Vec<_>>(),
        });
        let file = folder.join("prometheus.yaml");
        // JSON is YAML.
        fs::write(&file, config.to_string()).expect("a file");
        // It does not say which port it took if it was to take a free one.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let log = fs::File::create(folder.join("prometheus.log")).expect("a log");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("series").display()))
            .arg(format!("--web.listen-address={free}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("it starts");
        let new = Self { address: free, child };
        until("Prometheus", async || {
            try_get(free, "/-/ready").await.is_ok_and(|(status, _)| status == 200).then_some(())
        })
        .await;
        new
    }

    /// The results of a query: labels and values, at present.
    ///
    /// # Panics
    /// If it is refused.
    pub async fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let (status, body) = get(self.address, &format!("/api/v1/query?query={encoded}")).await;
        assert_eq!(status, 200, "{query}: {body}");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        let results = answer["data"]["result"].as_array().expect("a vector").iter();
        let value = |result: &Value| result["value"][1].as_str().and_then(|value| value.parse().ok());
        results.map(|result| (result["metric"].clone(), value(result).expect("a number"))).collect()
    }

    /// The one value of a query, if there is one.
    pub async fn value(&self, query: &str) -> Option<f64> {
        self.query(query).await.first().map(|(_, value)| *value)
    }
}
