//! What is fuzzed: every place where bytes of others become something that this program believes.
//!
//! | module | has targets for |
//! |---|---|
//! | [`wire`] | messages: what peers, trackers and callers send |
//! | [`text`] | what is written in one word: names, scopes, addresses, tokens |
//! | [`trust`] | tickets, certificates, certification requests, PEM |
//! | [`disk`] | manifests, records, and whole databases whose file is damaged |
//! | [`seeds`] | what each target begins with |
//! | [`mutate`] | changed copies of an input, the same ones at each run |
//!
//! A target is a plain function over bytes. It may refuse what it is given, but never panic; and where there is more to
//! say, it asserts that, too: what converts is converted back to the same, what is accepted keeps to its bounds. So a
//! target serves three ways: `tests/fuzz/run` looks for new inputs, guided by coverage; the test `fuzz` replays the
//! corpus and some thousand changed copies of it in every test run; and a regression is an input in the corpus.

pub mod disk;
pub mod mutate;
pub mod seeds;
pub mod text;
pub mod trust;
pub mod wire;

use std::{
    cell::RefCell,
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Once,
};

/// One thing that is fuzzed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What it is called, and its folder in the corpus.
    pub name: &'static str,
    /// Panics where a property does not hold.
    pub run: fn(&[u8]),
    /// Longest input that is worth trying.
    pub longest: usize,
    /// Changed copies of each input in a test run: few where one takes milliseconds.
    pub copies: usize,
}

const fn quick(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run, longest: 4096, copies: 400 }
}

/// Works on a file: some milliseconds each.
const fn slow(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run, longest: 512, copies: 6 }
}

/// All of them.
pub const TARGETS: [Target; 21] = [
    quick("chunk_set", wire::chunk_set),
    quick("announcement", wire::announcement),
    quick("outcome", wire::outcome),
    quick("claim", wire::claim),
    quick("holders", wire::holders),
    quick("access", wire::access),
    quick("chunk_message", wire::chunk_message),
    quick("tracker_requests", tracker_svc::fuzzing::requests),
    quick("control_requests", peer_svc::fuzzing::control_requests),
    quick("name", text::name),
    quick("address", text::address),
    quick("token", text::token),
    quick("ticket", trust::ticket),
    quick("certificate", trust::certificate),
    quick("certification", trust::certification),
    quick("pem", trust::pem),
    quick("manifest", disk::manifest),
    quick("records", disk::records),
    slow("journal", disk::journal),
    slow("rights", disk::rights),
    slow("catalogue", disk::catalogue),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

/// Where inputs are kept: a folder for each target.
pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// The kept inputs of a target, with the names of their files, in their order.
///
/// # Panics
/// If they cannot be read.
pub fn kept(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = corpus().join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut kept: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.expect("the folder can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, fs::read(path).expect("an input can be read"))
        })
        .collect();
    kept.sort();
    kept
}

thread_local! {
    /// In a target: what panicked last there.
    static PANICKED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on panics in a target are remembered and not printed: redb has some of its own on a damaged file, which are
/// caught.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_in_target = PANICKED.with(|panicked| match &mut *panicked.borrow_mut() {
                Some(text) => {
                    *text = info.to_string();
                    true
                }
                None => false,
            });
            if !is_in_target {
                before(info);
            }
        }));
    });
}

/// Runs a target; what it says if it panics.
pub fn verdict(target: &Target, input: &[u8]) -> Result<(), String> {
    quiet();
    PANICKED.set(Some(String::new()));
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let text = PANICKED.take().unwrap_or_default();
    result.map_err(|_| text)
}
