//! The README's table of what can go wrong: each text that it quotes is one that a program prints.

use crate::tree::Tree;

#[test]
fn every_text_that_the_readme_explains_is_printed_by_a_program() {
    let tree = Tree::read();
    let readme = tree.text("README.md");
    let (_, part) = readme.split_once("\n## When something is wrong\n").expect("the README explains what goes wrong");
    let part = part.split("\n## ").next().unwrap_or_default();
    let texts: Vec<&str> = part.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(texts.len() > 5, "texts are found: {texts:?}");
    let ours = |file: &&str| file.contains("/src/") && !file.starts_with("tests/") && !file.ends_with("tests.rs");
    let sources: String = tree.files(".rs").filter(ours).map(|file| tree.text(file)).collect();
    let unsaid: Vec<&str> = texts.into_iter().filter(|text| !sources.contains(text)).collect();
    assert!(unsaid.is_empty(), "no program prints what the README explains: {unsaid:#?}");
}
