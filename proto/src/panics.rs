//! Panics: a line of the log, like everything else that went wrong, and silence for those that are expected.
//!
//! The standard hook writes several lines to stderr, in the middle of a log of JSON too, and with RUST_BACKTRACE a
//! backtrace above a refusal that says all there is to say.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    cell::Cell,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs work that may panic on bad input, because it is not ours; the panic's text if it did. The log does not hear
/// of it: the caller tells.
pub fn expected<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = EXPECTED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(before);
    result.map_err(|payload| text(payload.as_ref()).to_owned())
}

/// From now on every panic of this process is an error in the log, with a backtrace if RUST_BACKTRACE asks for it.
pub fn log() {
    panic::set_hook(Box::new(report));
}

fn report(panic: &PanicHookInfo<'_>) {
    if EXPECTED.get() {
        return;
    }
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let text = text(panic.payload());
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => tracing::error!(%place, %backtrace, "internal error: panicked: {text}"),
        _ => tracing::error!(%place, "internal error: panicked: {text}"),
    }
}

fn text(payload: &(dyn Any + Send)) -> &str {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a text")
}
