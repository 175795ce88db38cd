//! libFuzzer over one target of `drizzle_tests::fuzz`, which `DRIZZLE_FUZZ` names: one program for all of them, since
//! each would be linked with everything again.

#![no_main]

use std::sync::LazyLock;

use drizzle_tests::fuzz::{Target, target, verdict};
// Only for its libFuzzer.
use libfuzzer_sys as _;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("DRIZZLE_FUZZ").expect("DRIZZLE_FUZZ names a target");
    target(&name).unwrap_or_else(|| panic!("there is no target {name}"))
});

#[unsafe(no_mangle)]
extern "Rust" fn rust_fuzzer_test_input(input: &[u8]) -> i32 {
    if let Err(text) = verdict(&TARGET, input) {
        eprintln!("{text}");
        // libFuzzer keeps the input.
        std::process::abort();
    }
    0
}
