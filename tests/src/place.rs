//! A folder for what daemons on hosts of their own keep, and the daemons in it. A [`Cluster`](crate::Cluster) has its
//! daemons on this machine instead.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use crate::{Run, host::Host, process::Process};

/// A folder for a test, with one for logs in it; it goes when this is dropped.
#[derive(Debug)]
pub struct Place(TempDir);

impl Place {
    /// A new one.
    ///
    /// # Panics
    /// If it cannot be made.
    #[allow(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("drizzle-test-").tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("logs")).expect("a folder for logs");
        Self(folder)
    }

    /// The folder for logs.
    pub fn logs(&self) -> PathBuf {
        self.0.path().join("logs")
    }

    /// Where a name lies in it, as an argument.
    ///
    /// # Panics
    /// If the temporary folder's own name is no text.
    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("a name that is text").to_owned()
    }

    /// A tracker with its options at their defaults, but for these.
    pub async fn tracker(&self, host: &Host, args: &[&str]) -> Process {
        let data = self.path("tracker");
        host.daemon("tracker-svc", &[&["--data-dir", &data], args].concat(), &self.logs()).await.0
    }

    /// A peer with its options at their defaults, but for these; its folder has its name.
    pub async fn peer(&self, host: &Host, name: &str, args: &[&str]) -> Process {
        let dir = self.path(name);
        host.daemon("peer-svc", &[&["--dir", &dir], args].concat(), &self.logs()).await.0
    }

    /// Runs `peer-cli` on a host to its end, against the daemon at the default place.
    pub async fn cli(&self, host: &Host, args: &[&str]) -> Run {
        host.cli(args, &self.logs()).ended().await
    }
}
