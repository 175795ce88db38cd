//! Runs the real binary against a daemon that plays a script.

mod exit_codes;
mod figures;
mod keys;
mod output;
mod support;
mod terminal;
