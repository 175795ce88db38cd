//! Tests that cannot run on this machine.

use std::fmt::Display;

/// Says why a test did not run. `tests/run` counts this line: such a test is skipped, and not passed.
#[allow(clippy::print_stderr, reason = "a test that did not run must say so")]
pub fn skipped(why: impl Display) {
    eprintln!("SKIPPED: {why}");
}
