//! Where the binaries under test are.
//!
//! `cargo test` builds a package's binaries for that package's own integration tests only, so the ones
//! next to this test may be missing, or older than their sources. Cargo's dep-info files tell; if
//! anything is amiss, cargo is asked once per test process to build them, into the same target folder
//! and with the same profile.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::SystemTime,
};

const NAMES: [&str; 3] = ["tracker-svc", "peer-svc", "peer-cli"];

/// The path of a binary that is up to date.
///
/// # Panics
/// If it cannot be built.
pub fn path(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(folder).join(name)
}

fn folder() -> PathBuf {
    let exe = env::current_exe().expect("a running test has a path");
    // target/PROFILE/deps/TEST
    let folder = exe.ancestors().nth(2).expect("cargo puts tests two levels deep").to_owned();
    if !NAMES.iter().all(|name| is_fresh(&folder.join(name))) {
        build(&folder);
    }
    folder
}

fn is_fresh(binary: &Path) -> bool {
    let Some(built) = modified(binary) else { return false };
    let Ok(dep_info) = fs::read_to_string(binary.with_extension("d")) else { return false };
    let sources = dep_info.split_once(": ").map_or("", |(_, sources)| sources.trim_end());
    // A blank within a path is escaped with a backslash.
    let sources = sources.replace("\\ ", "\0");
    sources.split(' ').all(|source| modified(Path::new(&source.replace('\0', " "))).is_some_and(|at| at <= built))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn build(folder: &Path) {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let target = folder.parent().expect("a profile's folder is in a target folder");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--bins", "--profile", profile]);
    cargo.arg("--target-dir").arg(target);
    for name in NAMES {
        cargo.args(["-p", name]);
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "the binaries under test do not build");
}
