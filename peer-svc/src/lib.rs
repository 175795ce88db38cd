//! The peer daemon of Drizzle: shares files, serves chunks, downloads what others have.
//!
//! The rooms along the way of a byte, in its order:
//!
//! | module | turns | into |
//! |---|---|---|
//! | `share` | a local file | a manifest and a full chunk set |
//! | `register` | this peer and what it holds | a lease, announcements, first-registered manifests |
//! | `locate` | a file name | changes of which peer holds which chunk |
//! | [`drizzle_engine::schedule`] | missing chunks, holders, what is in flight, now | fetches (pure, no I/O) |
//! | `fetch` | one fetch | untrusted bytes |
//! | `verify` | bytes and a manifest | a `VerifiedChunk`, or an offence |
//! | `store::write` | a `VerifiedChunk` | a `StoredChunk`, safe to serve |
//! | [`drizzle_engine::announce`] | stored chunks | batches for the tracker (pure) |
//! | `store::assemble` | all chunks stored | the file under its name, in one step |
//!
//! And what stands beside the way:
//!
//! | module | is |
//! |---|---|
//! | [`drizzle_engine`] | every decision, pure: a crate of its own, which has no runtime, network or file |
//! | `store` | the disk side: files of content, and what must survive a crash |
//! | `holdings` | what this peer holds and may serve; the one owner of that state |
//! | `serve` | the Peer service: upload slots and chunk streams |
//! | `download` | one download: drives the way from locate to assemble |
//! | `transfers` | the downloads that run, and how to join or cancel them |
//! | `notices` | what the tracker refused or took back |
//! | `outage` | whether the tracker is away, for the log and a monitor |
//! | `readiness` | whether there is a lease, for health checks |
//! | `trust` | certificates, and whom this peer serves which file |
//! | `identity` | which peer this is: its id, and what tells this run from others |
//! | `advertise` | the address that other peers are told |
//! | `status` | everything that can be asked of this peer, at one moment |
//! | `control` | the Control service, a thin adapter |
//! | `limits` | how fast chunks are sent and received |
//! | `metrics` | what a monitor reads of this peer |
//! | `ranks` | which of several downloads goes first |
//! | `lanes` | threads for work that blocks, apart by what it is |
//! | `shortage` | what this machine runs out of, and how that is waited for |
//! | `vouching` | whose signatures count, and what becomes of files without one |
//! | `config`, `server` | options; bind, run, drain |
//! | `fuzzing` | a door for hostile bytes, for tests alone |
//!
//! Nothing here trusts a byte, a name or a size that came from another machine before it is checked,
//! and nothing unverified is ever served.

mod advertise;
mod config;
mod control;
mod download;
mod fetch;
#[doc(hidden)]
pub mod fuzzing;
mod hasher;
mod holdings;
mod identity;
mod lanes;
mod limits;
mod locate;
mod metrics;
mod notices;
mod outage;
mod ranks;
mod readiness;
mod register;
mod serve;
mod server;
mod share;
mod shortage;
mod status;
mod store;
mod transfers;
mod trust;
mod verify;
mod vouching;

pub use config::{Cli, Command, Config};
pub use control::SocketError;
pub use server::{BindError, Handle, bind};
pub use trust::TrustError;
