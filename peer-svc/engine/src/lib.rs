//! Every decision of a peer, and nothing else: what to fetch and from whom, what to announce, which holders to believe.
//!
//! | module | decides |
//! |---|---|
//! | [`schedule`] | what to fetch next, from which holder, and which holders to avoid |
//! | [`announce`] | what to tell the tracker next |
//! | [`holder_view`] | which holders a new snapshot leaves in doubt |
//!
//! Pure: state and events go in, decisions come out; `now` and a seeded random source are arguments. Nothing here
//! reads a clock, draws from a global random source, or touches a file, a socket or a runtime.

pub mod announce;
pub mod holder_view;
pub mod schedule;
