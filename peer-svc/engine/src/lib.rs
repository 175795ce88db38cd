//! Every decision of a peer, and nothing else: what to fetch and from whom, what to announce, which holders to believe.
//!
//! | module | decides |
//! |---|---|
//! | [`schedule`] | what to fetch next, from which holder, and which holders to avoid |
//! | [`slots`] | which requests get an upload slot |
//! | [`need`] | how many slots there are for a requester |
//! | [`binding`] | which chunk a source sends, where it may choose |
//! | [`pace`] | when a stream has stalled or drips, on either end |
//! | [`advertise`] | at which of its addresses other peers are to reach this one |
//! | [`lease`] | when to register with the tracker, to renew and to announce |
//! | [`announce`] | what to tell the tracker next |
//! | [`folder`] | what becomes of a file in the shared folder, and when it is looked at |
//! | [`holder_view`] | which holders a new snapshot leaves in doubt |
//! | [`locality`] | which chunks to ask of far peers |
//! | [`neighbours`] | which neighbours to listen to, and what holds of their chunks |
//! | [`seek`] | when to look for holders beyond the neighbours |
//! | [`streams`] | how many chunks to fetch at once |
//! | [`reach`] | how many more of a holder that is far in time |
//! | [`memory`] | which fetch gets memory for its chunk |
//! | [`rate`] | which bytes go at which moment under a limit |
//! | [`priority`] | which of several downloads goes first |
//! | [`turns`] | which job reads and hashes next |
//! | [`telling`] | when a peer tells its neighbours what it has got |
//! | [`uplink`] | how many upload slots the uplink carries |
//! | [`callers`] | how long a download waits for its callers, and when it ends because they left |
//! | [`limiting`] | what limits a download, and what limited it |
//! | [`bound`] | how long a download took at the least |
//! | [`meter`] | how fast bytes come, and came at best |
//! | [`senders`] | whether another holder brings more |
//! | [`waiting`] | why a download waits, and when it gives up |
//! | [`calls`] | which calls to the file system hang, and which are not begun for that |
//! | [`retry`] | when to try again |
//!
//! Pure: state and events go in, decisions come out; `now` and a seeded random source are arguments. Nothing here
//! reads a clock, draws from a global random source, or touches a file, a socket or a runtime.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test begins at some moment, whichever"))]

pub mod advertise;
pub mod announce;
pub mod binding;
pub mod bound;
pub mod callers;
pub mod calls;
pub mod folder;
pub mod holder_view;
pub mod lease;
pub mod limiting;
pub mod locality;
pub mod memory;
pub mod meter;
pub mod need;
pub mod neighbours;
pub mod pace;
pub mod priority;
pub mod rate;
pub mod reach;
pub mod retry;
pub mod schedule;
pub mod seek;
pub mod senders;
pub mod slots;
pub mod streams;
pub mod telling;
pub mod turns;
pub mod uplink;
pub mod waiting;
