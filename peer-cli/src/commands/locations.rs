//! `locations`: which peer holds which chunks of a file.

use std::{collections::BTreeMap, fmt::Write};

use drizzle_proto::{FileName, Signature, convert, holder::Holder, limits::MOST_HOLDERS, wire};
use serde::Serialize;

use super::{FileFields, verify::Signed};
use crate::{
    connect::Daemon,
    exit::{Exit, Failure},
    format::{bytes, clean, held},
    output::Out,
};

#[derive(Serialize)]
struct Locations<'a> {
    #[serde(flatten)]
    file: FileFields<'a>,
    /// As it is told; `verify` checks it.
    signature: Option<Signed>,
    holders: Vec<HolderFields<'a>>,
}

#[derive(Serialize)]
struct HolderFields<'a> {
    peer: &'a str,
    peer_id: String,
    labels: BTreeMap<&'a str, &'a str>,
    /// How many chunks it holds.
    held: u32,
    full: bool,
    /// First and last index of each run: a list of every index would be as long as the file is large.
    ranges: Vec<(u32, u32)>,
}

impl<'a> From<&'a Holder> for HolderFields<'a> {
    fn from(holder: &'a Holder) -> Self {
        Self {
            peer: holder.peer.address().as_str(),
            peer_id: holder.peer.id().to_string(),
            labels: holder.peer.labels().iter().collect(),
            held: holder.chunks.len(),
            full: holder.chunks.is_full(),
            ranges: holder.chunks.ranges().iter().collect(),
        }
    }
}

pub(super) async fn run(daemon: &Daemon, name: FileName, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    let (file, signature, holders) = ask(daemon, &name).await?;
    if json {
        let (signature, holders) = (signature.as_ref().map(Into::into), holders.iter().map(Into::into).collect());
        out.json(&Locations { file: (&file).into(), signature, holders })?;
    } else {
        out.text(&text(&file, signature.as_ref(), &holders))?;
    }
    Ok(Exit::Done)
}

/// The file, its signature and all pages of its holders.
async fn ask(daemon: &Daemon, name: &FileName) -> Result<(wire::FileInfo, Option<Signature>, Vec<Holder>), Failure> {
    let malformed = |what: String| Failure::new(Exit::Other, format!("the daemon's answer is malformed: {what}"));
    let mut control = daemon.control.clone();
    let mut request = wire::FileLocationsRequest { name: name.to_string(), omit_hashes: true, ..Default::default() };
    let (mut signature, mut holders) = (None, Vec::new());
    loop {
        let page = daemon.answer(control.file_locations(request.clone())).await;
        let page =
            page.map_err(|failure| failure.hint_if(Exit::NoSuchFile, "`peer-cli files` lists what there is."))?;
        if !request.omit_signature {
            // One that is malformed is as good as none.
            signature = page.signature.and_then(|told| Signature::try_from(told).ok());
        }
        let told = convert::holders(page.holders).map_err(|error| malformed(error.to_string()))?;
        if told.is_empty() && !page.next_holders_token.is_empty() || holders.len() + told.len() > MOST_HOLDERS {
            return Err(malformed("holders without end".to_owned()));
        }
        holders.extend(told);
        if page.next_holders_token.is_empty() || page.next_holders_token == request.holders_token {
            return Ok((page.file.ok_or_else(|| malformed("no file".into()))?, signature, holders));
        }
        (request.holders_token, request.omit_signature) = (page.next_holders_token, true);
    }
}

fn text(file: &wire::FileInfo, signature: Option<&Signature>, holders: &[Holder]) -> String {
    let mut text = format!(
        "name     {}\nfile id  {}\nsize     {} ({} bytes)\nchunks   {} of {}\n",
        clean(&file.name),
        clean(&file.file_id),
        bytes(file.size),
        file.size,
        file.chunk_count,
        bytes(file.chunk_size.into()),
    );
    if let Some(signature) = signature {
        // Writing to a String does not fail.
        let _ = writeln!(text, "signed   by the key {} at {}", signature.key(), signature.statement().time());
    }
    if holders.is_empty() {
        text.push_str("\nno peer holds any chunk of it now\n");
        return text;
    }
    let width = |shown: fn(&Holder) -> usize, head: &str| holders.iter().map(shown).max().unwrap_or(0).max(head.len());
    let column = width(|holder| holder.peer.address().as_str().chars().count(), "PEER");
    let total = file.chunk_count.to_string();
    let held_column = 2 * total.len() + 1;
    // A column for labels only where some peer has any.
    let labelled = holders.iter().any(|holder| !holder.peer.labels().is_empty());
    let label_column = width(|holder| holder.peer.labels().to_string().chars().count(), "LABELS");
    let labels = |text: &str| if labelled { format!("{text:<label_column$}  ") } else { String::new() };
    // Writing to a String does not fail.
    let _ = writeln!(text, "\n{:<column$}  {}{:>held_column$}  CHUNKS", "PEER", labels("LABELS"), "HELD");
    for holder in holders {
        let (peer, have) = (clean(holder.peer.address().as_str()), format!("{}/{total}", holder.chunks.len()));
        let labels = labels(&clean(&holder.peer.labels().to_string()));
        let _ = writeln!(text, "{peer:<column$}  {labels}{have:>held_column$}  {}", held(&holder.chunks));
    }
    text
}
