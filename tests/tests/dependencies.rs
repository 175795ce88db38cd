//! What Drizzle is built from: licences, banned crates, second versions, the stated minimum Rust version, and
//! dependencies that nothing uses.
//!
//! Asks `cargo metadata` for what is built on Linux, tests and build scripts included. An exception stands
//! in a table below with its reason, and one that no longer excepts anything fails, so that the tables
//! stay true.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::Command,
    sync::LazyLock,
};

use serde_json::Value;
use spdx::{Expression, LicenseReq, ParseMode};

/// Licences that ask for no more than a notice, so that the binaries can be given away under Apache-2.0. `notify` and
/// `inotify` brought in CC0-1.0, which asks for nothing and grants no patents, and ISC, which asks for a notice.
const LICENCES: [&str; 7] = ["Apache-2.0", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "Unicode-3.0", "Zlib"];

/// Crates that must not come in, and why.
const BANNED: [(&str, &str); 5] = [
    ("native-tls", "TLS by the system's library: another one on each machine"),
    ("openssl", "a C library that each machine would have to provide"),
    ("openssl-sys", "likewise"),
    ("protobuf-src", "builds protoc from C++; the schema is compiled by protox"),
    ("ring", "C and assembly under licences of its own"),
];

/// Crates that are built in two versions, and who still needs the older.
const TWICE: [(&str, &str); 16] = [
    ("base64", "pem, by which certificates are written, needs 0.23, tonic 0.22"),
    ("block-buffer", "scrypt 0.11, by which minisign protects keys with a password, needs sha2 0.10"),
    ("cpufeatures", "as block-buffer"),
    ("crypto-common", "as block-buffer"),
    ("digest", "as block-buffer"),
    ("foldhash", "with hashbrown: that of petgraph needs 0.1, that of ratatui 0.2"),
    ("hashbrown", "petgraph, a build dependency, needs 0.15"),
    ("itertools", "prost's build half needs 0.14, its derive 0.15"),
    ("logos", "protox-parse, a build dependency, needs 0.15; prost-reflect 0.16"),
    ("logos-codegen", "as logos"),
    ("logos-derive", "as logos"),
    ("sha2", "as block-buffer"),
    ("syn", "most derive macros need 2, some 3; build time only"),
    ("untrusted", "aws-lc-rs needs 0.7, rustls' webpki 0.9"),
    ("synstructure", "derive macros of asn1-rs need 0.13, of ICU 0.14; build time only"),
    ("unicode-width", "miette's text wrapping, a build dependency, needs 0.1"),
];

/// Dependencies that no source names: package, dependency, reason.
const UNNAMED: [(&str, &str, &str); 1] = [("drizzle-proto", "tonic-prost", "the generated code uses it")];

/// What `cargo metadata` says.
static METADATA: LazyLock<Value> = LazyLock::new(|| {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["metadata", "--format-version", "1", "--locked", "--all-features"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo speaks JSON")
});

/// What is really built of that, as "NAME VERSION": `cargo metadata` also has what an optional feature would bring that
/// nobody asks for.
static TREE: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["tree", "--workspace", "--locked", "--all-features", "--target", "x86_64-unknown-linux-gnu"])
        .args(["--edges", "all", "--prefix", "none", "--format", "{p}"])
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo speaks UTF-8");
    let named = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some(format!("{} {}", words.next()?, words.next()?.strip_prefix('v')?))
    });
    named.collect()
});

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no list {key}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}"))
}

/// Every package that is built here, our own included.
fn built() -> Vec<&'static Value> {
    let ids: BTreeSet<&str> = list(&METADATA["resolve"], "nodes").iter().map(|node| text(node, "id")).collect();
    let is_built = |package: &&Value| ids.contains(text(package, "id")) && TREE.contains(&called(package));
    list(&METADATA, "packages").iter().filter(is_built).collect()
}

/// Our own packages.
fn own() -> Vec<&'static Value> {
    let members: BTreeSet<&str> = list(&METADATA, "workspace_members").iter().filter_map(Value::as_str).collect();
    list(&METADATA, "packages").iter().filter(|package| members.contains(text(package, "id"))).collect()
}

fn called(package: &Value) -> String {
    format!("{} {}", text(package, "name"), text(package, "version"))
}

#[test]
fn every_licence_is_allowed() {
    let allowed = |requirement: &LicenseReq| LICENCES.contains(&requirement.to_string().as_str());
    let mut refused = Vec::new();
    for package in built() {
        let Some(licence) = package["license"].as_str() else {
            refused.push(format!("{}: it states none", called(package)));
            continue;
        };
        // Some older crates write "MIT/Apache-2.0".
        let expression = Expression::parse_mode(licence, ParseMode::LAX);
        if !expression.is_ok_and(|expression| expression.evaluate(allowed)) {
            refused.push(format!("{}: {licence}", called(package)));
        }
    }
    assert!(refused.is_empty(), "licences that are not on the list: {refused:#?}");
}

#[test]
fn no_banned_crate_is_built() {
    for package in built() {
        let ban = BANNED.iter().find(|(name, _)| *name == text(package, "name"));
        assert!(ban.is_none(), "{} is banned: {}", called(package), ban.map_or("", |(_, reason)| reason));
    }
}

#[test]
fn no_crate_is_built_twice_without_a_reason() {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in built() {
        versions.entry(text(package, "name")).or_default().insert(text(package, "version"));
    }
    versions.retain(|_, versions| versions.len() > 1);
    for (name, versions) in &versions {
        assert!(TWICE.iter().any(|(known, _)| known == name), "{name} is built in the versions {versions:?}");
        assert_eq!(versions.len(), 2, "{name} is built in the versions {versions:?}");
    }
    for (name, _) in TWICE {
        assert!(versions.contains_key(name), "{name} is built once: take it off the list");
    }
}

#[test]
fn the_stated_rust_version_is_enough_for_every_dependency() {
    let version = |package: &Value| -> Vec<u32> {
        let stated = package["rust_version"].as_str().unwrap_or("0");
        stated.split('.').map(|part| part.parse().expect("a Rust version is numbers and dots")).collect()
    };
    let ours = own().into_iter().map(version).min().expect("there are packages");
    let newer: Vec<String> = built().into_iter().filter(|package| version(package) > ours).map(called).collect();
    assert!(newer.is_empty(), "rust-version in Cargo.toml is {ours:?}, and these need a newer one: {newer:#?}");
}

#[test]
fn every_dependency_is_used() {
    let mut unused = Vec::new();
    let mut declared = BTreeSet::new();
    for package in own() {
        let folder = Path::new(text(package, "manifest_path")).parent().expect("a manifest is in a folder");
        let sources = sources(folder);
        for dependency in list(package, "dependencies") {
            let name = text(dependency, "name");
            declared.insert(name);
            let excepted = UNNAMED.iter().any(|(of, on, _)| *of == text(package, "name") && *on == name);
            if excepted == names(&sources, &name.replace('-', "_")) {
                unused.push(format!("{} on {name}{}", text(package, "name"), if excepted { ", excepted" } else { "" }));
            }
        }
    }
    assert!(unused.is_empty(), "dependencies that no source names, or excepted although one does: {unused:#?}");

    let manifest = Path::new(text(&METADATA, "workspace_root")).join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).expect("there is a manifest");
    let (_, shared) = manifest.split_once("[workspace.dependencies]\n").expect("versions are stated once");
    let shared = shared.lines().take_while(|line| !line.starts_with('['));
    let shared = shared.filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
    let idle: Vec<&str> = shared.map(|(name, _)| name).filter(|name| !declared.contains(name)).collect();
    assert!(idle.is_empty(), "Cargo.toml lists these, and no package depends on them: {idle:?}");
}

/// What the packages of this repository depend on, by a lock file: names alone.
fn locked(file: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let packages = text.split("[[package]]").filter(|package| !package.contains("\nsource = "));
    let quoted = |line: &str| line.split('"').nth(1).and_then(|text| text.split(' ').next()).map(str::to_owned);
    let package = |package: &str| {
        let name = package.lines().find(|line| line.starts_with("name = ")).and_then(quoted)?;
        Some((name, package.lines().filter(|line| line.starts_with(" \"")).filter_map(quoted).collect()))
    };
    packages.filter_map(package).collect()
}

/// The fuzz targets are built apart, and would not be built at all with a lock file that lags behind.
#[test]
fn the_fuzz_crate_is_locked_as_the_workspace_is() {
    let root = Path::new(text(&METADATA, "workspace_root"));
    let locked = locked(&root.join("tests/fuzz/Cargo.lock"));
    assert!(locked.len() > 3, "it has our packages: {locked:?}");
    let mut lacking = Vec::new();
    for package in own() {
        let Some(has) = locked.get(text(package, "name")) else { continue };
        let needs = list(package, "dependencies").iter();
        let needs = needs.filter(|need| need["kind"] != "dev" && need["target"].is_null());
        lacking.extend(needs.map(|need| text(need, "name")).filter(|need| !has.contains(*need)));
    }
    assert!(lacking.is_empty(), "run `cargo update --workspace` in tests/fuzz: it lacks {lacking:?}");
}

/// All code of one package: its `.rs` files without comment lines.
fn sources(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("its entries can be read").path();
        // A folder with a manifest is another package.
        if path.is_dir() && !path.ends_with("target") && !path.join("Cargo.toml").exists() {
            all += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = fs::read_to_string(&path).expect("a source can be read");
            all.extend(code.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]));
        }
    }
    all
}

/// Whether the code names a crate: `krate::` or `use krate`.
fn names(code: &str, krate: &str) -> bool {
    let within_a_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(krate).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + krate.len()..]);
        !before.ends_with(within_a_word)
            && (after.starts_with("::") || (before.ends_with("use ") && !after.starts_with(within_a_word)))
    })
}
