//! `locations`: which peer holds which chunks of a file.

use std::fmt::Write;

use drizzle_proto::{ChunkSet, FileName, wire};
use serde::Serialize;

use super::FileFields;
use crate::{
    connect::Daemon,
    exit::{Exit, Failure},
    format::{bytes, clean, held},
    output::Out,
};

struct Holder {
    peer_id: String,
    address: String,
    chunks: ChunkSet,
}

#[derive(Serialize)]
struct Locations<'a> {
    #[serde(flatten)]
    file: FileFields<'a>,
    holders: Vec<HolderFields<'a>>,
}

#[derive(Serialize)]
struct HolderFields<'a> {
    peer: &'a str,
    peer_id: &'a str,
    /// How many chunks.
    held: u32,
    full: bool,
    /// First and last index of each run: a list of every index would be as long as the file is large.
    ranges: Vec<(u32, u32)>,
}

impl<'a> From<&'a Holder> for HolderFields<'a> {
    fn from(holder: &'a Holder) -> Self {
        Self {
            peer: &holder.address,
            peer_id: &holder.peer_id,
            held: holder.chunks.len(),
            full: holder.chunks.is_full(),
            ranges: holder.chunks.ranges().iter().collect(),
        }
    }
}

pub(super) async fn run(daemon: &Daemon, name: FileName, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    let (file, holders) = ask(daemon, &name).await?;
    if json {
        out.json(&Locations { file: (&file).into(), holders: holders.iter().map(Into::into).collect() })?;
    } else {
        out.text(&text(&file, &holders))?;
    }
    Ok(Exit::Done)
}

/// The file and all pages of its holders.
async fn ask(daemon: &Daemon, name: &FileName) -> Result<(wire::FileInfo, Vec<Holder>), Failure> {
    let malformed = |what: String| Failure::new(Exit::Other, format!("the daemon's answer is malformed: {what}"));
    let mut control = daemon.control.clone();
    let mut request = wire::FileLocationsRequest { name: name.to_string(), omit_hashes: true, ..Default::default() };
    let mut holders = Vec::new();
    loop {
        let page = daemon.answer(control.file_locations(request.clone())).await;
        let page =
            page.map_err(|failure| failure.hint_if(Exit::NoSuchFile, "`peer-cli files` lists what there is."))?;
        for holder in page.holders {
            let chunks = holder.chunks.unwrap_or_default().try_into();
            let chunks = chunks.map_err(|error: drizzle_proto::WireError| malformed(error.to_string()))?;
            holders.push(Holder { peer_id: holder.peer_id, address: holder.address, chunks });
        }
        if page.next_holders_token.is_empty() || page.next_holders_token == request.holders_token {
            return Ok((page.file.ok_or_else(|| malformed("no file".into()))?, holders));
        }
        request.holders_token = page.next_holders_token;
    }
}

fn text(file: &wire::FileInfo, holders: &[Holder]) -> String {
    let mut text = format!(
        "name     {}\nfile id  {}\nsize     {} ({} bytes)\nchunks   {} of {}\n",
        clean(&file.name),
        clean(&file.file_id),
        bytes(file.size),
        file.size,
        file.chunk_count,
        bytes(file.chunk_size.into()),
    );
    if holders.is_empty() {
        text.push_str("\nno peer holds any of it now\n");
        return text;
    }
    let column = holders.iter().map(|holder| holder.address.chars().count()).max().unwrap_or(0).max("PEER".len());
    let total = file.chunk_count.to_string();
    let held_column = 2 * total.len() + 1;
    // Writing to a String does not fail.
    let _ = writeln!(text, "\n{:<column$}  {:>held_column$}  CHUNKS", "PEER", "HELD");
    for holder in holders {
        let (peer, have) = (clean(&holder.address), format!("{}/{total}", holder.chunks.len()));
        let _ = writeln!(text, "{peer:<column$}  {have:>held_column$}  {}", held(&holder.chunks));
    }
    text
}
