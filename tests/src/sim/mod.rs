//! The simulator: the engine of the peers and the registry of the tracker, as they are, in a network that is computed.
//!
//! | module | is |
//! |---|---|
//! | [`options`] | what is simulated |
//! | [`scenario`] | which peers there are, when they begin and end |
//! | [`bound`] | how long a distribution takes at the very least |
//! | [`clock`] | the virtual clock and what is planned on it |
//! | [`links`] | links, shared max-min fair by what flows over them |
//! | [`disk`] | disks with a rate |
//! | [`slab`] | values by handles |
//! | [`peer`] | the state of one peer |
//! | [`tracker`] | the tracker's real registry |
//! | `event` | what happens |
//! | [`world`] | the fleet, and the loop that lets time pass |
//! | `downloading`, `serving`, `membership`, `neighbours` | what happens at an event, by the end that it concerns |
//! | [`tally`] | what is counted, and the log of decisions |
//! | [`report`] | what is said of a run |
//! | [`plot`] | what is drawn of it |
//!
//! What holds: nothing here decides what a peer does; the same options give the same report and the same log, byte for
//! byte. So nothing reads a clock, and nothing depends on the order of a hash table.

pub mod bound;
pub mod clock;
pub mod disk;
mod downloading;
mod event;
pub mod links;
mod membership;
mod neighbours;
pub mod options;
pub mod peer;
pub mod plot;
pub mod report;
pub mod scenario;
mod serving;
pub mod slab;
pub mod tally;
pub mod tracker;
pub mod world;

use std::{fs::File, io::BufWriter};

use self::tally::Log;
pub use self::{
    options::{Options, Scenario},
    report::Report,
    world::World,
};

/// Runs a simulation to its end.
///
/// # Errors
/// In words: the options do not go together, or the log cannot be written.
pub fn simulate(options: &Options) -> Result<Report, String> {
    let log = match &options.log {
        Some(path) => {
            let file = File::create(path).map_err(|error| format!("cannot create {}: {error}", path.display()))?;
            Log::new(Some(Box::new(BufWriter::new(file))))
        }
        None => Log::new(None),
    };
    let mut world = World::new(options, log)?;
    world.run();
    world.log().finish().map_err(|error| format!("cannot write the log: {error}"))?;
    Ok(Report::of(options, &mut world))
}
