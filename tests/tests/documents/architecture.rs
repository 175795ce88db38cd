//! ARCHITECTURE.md stays true: what it names is there, and what is there is named.

use std::collections::BTreeSet;

use crate::tree::Tree;

const DOCUMENT: &str = "ARCHITECTURE.md";

/// Ends of the names of files, as far as the document names any.
const ENDS: [&str; 5] = [".rs", ".proto", ".toml", ".yaml", ".md"];

/// Words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// `a/{b,c}.rs` is `a/b.rs` and `a/c.rs`.
fn expanded(word: &str) -> Vec<String> {
    let Some((front, rest)) = word.split_once('{') else { return vec![word.to_owned()] };
    let (choices, end) = rest.split_once('}').unwrap_or_else(|| panic!("{word}: a brace stays open"));
    choices.split(',').map(|choice| format!("{front}{choice}{end}")).collect()
}

/// The paths among the words in backticks. Of a command only its first word is one.
fn paths(text: &str) -> BTreeSet<String> {
    let words = quoted(text).filter_map(|word| word.split_whitespace().next());
    let named = words.flat_map(expanded).filter(|word| !word.starts_with('.'));
    named.filter(|word| word.contains('/') || ENDS.iter().any(|end| word.ends_with(end))).collect()
}

/// The part of the document below a heading.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, rest) = document.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no part {heading:?}"));
    rest.split("\n## ").next().unwrap_or_default()
}

/// The cells of a table's rows, without its head.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn every_file_and_folder_that_it_names_is_there() {
    let tree = Tree::read();
    let document = tree.text(DOCUMENT);
    let links = document.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links = links.filter(|link| !link.contains("://")).map(str::to_owned);
    let named: BTreeSet<String> = paths(&document).into_iter().chain(links).collect();
    assert!(named.contains("store/write.rs") && named.contains("tests/run"), "paths are found: {named:?}");
    let missing: Vec<&String> = named.iter().filter(|path| !tree.has(path)).collect();
    assert!(missing.is_empty(), "{DOCUMENT} names what is not there: {missing:?}");
}

/// A paragraph of the map begins with its folder in bold. What is in the folder stands there in backticks, by its
/// path or by the name of its module, or lies in a folder that does.
#[test]
fn every_source_file_is_on_the_map() {
    let tree = Tree::read();
    let document = tree.text(DOCUMENT);
    let map = section(&document, "The map");
    let mut unnamed = Vec::new();
    for manifest in tree.files("/Cargo.toml") {
        let folder = format!("{}/src", manifest.trim_end_matches("/Cargo.toml"));
        let paragraph =
            map.split("\n\n").find(|paragraph| paragraph.trim_start().starts_with(&format!("**`{folder}`.**")));
        let Some(paragraph) = paragraph else {
            unnamed.push(folder);
            continue;
        };
        let words: BTreeSet<String> = quoted(paragraph).flat_map(expanded).collect();
        let named = |path: &str| {
            let module = path.trim_end_matches(".rs");
            [path, module, &format!("{module}/")].into_iter().any(|word| words.contains(word))
        };
        for file in tree.files(".rs").filter_map(|file| file.strip_prefix(&format!("{folder}/"))) {
            // The roots of crates and folders, and tests that stand beside what they test, are found without a map.
            let root =
                ["lib.rs", "main.rs", "mod.rs"].iter().any(|root| file == *root || file.ends_with(&format!("/{root}")));
            let beside = file.ends_with("tests.rs");
            let above = file.match_indices('/').any(|(at, _)| named(&file[..at]));
            if !(root || beside || above || named(file)) {
                unnamed.push(format!("{folder}/{file}"));
            }
        }
    }
    assert!(unnamed.is_empty(), "name these on the map of {DOCUMENT}: {unnamed:#?}");
}

/// The numbers that follow the word, as in "invariants 4, 5 and 7".
fn numbers_after(text: &str) -> Vec<u32> {
    let text = text.strip_prefix('s').unwrap_or(text);
    let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
    let mut numbers = Vec::new();
    for word in words.filter(|word| *word != "and") {
        let digits = word.trim_end_matches(|c: char| !c.is_ascii_digit());
        let Ok(number) = digits.parse() else { break };
        numbers.push(number);
        if digits != word {
            break;
        }
    }
    numbers
}

#[test]
fn every_invariant_that_a_comment_names_is_there() {
    let tree = Tree::read();
    let document = tree.text(DOCUMENT);
    let known: BTreeSet<u32> =
        rows(section(&document, "Invariants")).iter().filter_map(|row| row[0].parse().ok()).collect();
    assert!(known.contains(&1) && known.len() > 1, "invariants are found: {known:?}");
    let mut used = 0;
    for end in [".rs", ".proto", ".toml", ".md"] {
        for file in tree.files(end) {
            let text = tree.text(file).to_lowercase();
            for number in text.split("invariant").skip(1).flat_map(numbers_after) {
                assert!(known.contains(&number), "{file} refers to invariant {number}, which {DOCUMENT} does not have");
                used += 1;
            }
        }
    }
    assert!(used > 0, "comments refer to invariants");
}

#[test]
fn every_invariant_is_shown_by_tests_that_are_there() {
    let tree = Tree::read();
    let document = tree.text(DOCUMENT);
    for row in rows(section(&document, "Invariants")) {
        let [number, _, shown_by] = row[..] else { panic!("a row has three cells: {row:?}") };
        let files = paths(shown_by);
        assert!(!files.is_empty(), "nothing shows invariant {number}");
        for file in files {
            assert!(tree.has(&file), "invariant {number} is shown by {file}, which is not there");
        }
    }
}
