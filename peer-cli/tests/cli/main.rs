//! Runs the real binary against a daemon that plays a script.

mod exit_codes;
mod figures;
mod output;
mod support;
mod terminal;
