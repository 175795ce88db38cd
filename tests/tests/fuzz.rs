//! Every kept input of every fuzz target, and changed copies of them, in seconds. What searches for new ones is
//! `tests/fuzz/run`.

use std::fs;

use drizzle_tests::fuzz::{TARGETS, Target, corpus, kept, mutate::Mutations, seeds, verdict};

/// Set to write the seeds into the corpus, for targets that have none there.
const WRITE: &str = "DRIZZLE_WRITE_SEEDS";

/// Kept inputs of all targets together.
const MOST_BYTES: usize = 300 << 10;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn assert_good(target: &Target, what: &str, input: &[u8]) {
    if let Err(text) = verdict(target, input) {
        panic!("{} fails with {what}: {text}\ninput in hex: {}", target.name, hex(input));
    }
}

#[test]
fn no_target_panics_at_its_seeds_or_at_what_is_kept() {
    let mut bytes = 0;
    for target in TARGETS {
        let seeds = seeds::of(target.name);
        assert!(!seeds.is_empty(), "{} begins with something", target.name);
        let folder = corpus().join(target.name);
        let is_new = std::env::var_os(WRITE).is_some() && !folder.exists();
        if is_new {
            fs::create_dir_all(&folder).expect("a folder can be made");
        }
        for (nth, seed) in seeds.iter().enumerate() {
            assert_good(&target, &format!("seed {nth}"), seed);
            if is_new {
                fs::write(folder.join(format!("seed-{nth}")), seed).expect("a seed can be written");
            }
        }
        for (name, input) in kept(&target) {
            assert_good(&target, &name, &input);
            bytes += input.len();
        }
    }
    assert!(bytes < MOST_BYTES, "the corpus has {bytes} bytes; keep what matters");
}

#[test]
fn no_target_panics_at_changed_copies() {
    for target in TARGETS {
        let kept = kept(&target);
        let mut mutations = Mutations::new(1);
        for (nth, (name, input)) in kept.iter().enumerate() {
            let (_, other) = &kept[(nth + 1) % kept.len()];
            for copy in 0..target.copies {
                let changed = mutations.copy(input, other, target.longest);
                assert_good(&target, &format!("copy {copy} of {name}"), &changed);
            }
        }
    }
}

#[test]
fn the_corpus_has_a_folder_for_each_target_and_no_other() {
    let folders = fs::read_dir(corpus()).expect("it is there");
    let folders: Vec<String> =
        folders.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned()).collect();
    for folder in &folders {
        assert!(TARGETS.iter().any(|target| target.name == folder), "no target is called {folder}");
    }
    assert_eq!(folders.len(), TARGETS.len());
}
