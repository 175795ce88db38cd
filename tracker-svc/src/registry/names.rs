//! The half of the registry that needs the catalogue, as pieces that run on a blocking thread each: names registered,
//! withdrawn, released and looked up. What they do to the swarms happens under the locks of those names.

use std::{collections::HashSet, time::Instant};

use bytes::Bytes;
use drizzle_proto::{
    FileId, FileInfo, FileName, Manifest, PeerId,
    announcement::{FileChunks, FileOutcome},
    convert::packed,
    limits::MAX_HASHES,
};
use tracing::{debug, info};

use super::{Dropped, Guarded, Inner};
use crate::{
    catalogue::{Claim, Record, Verdict},
    error::Error,
    limits::SWEEP_PAGE,
    live::staging::Staged,
    verdict::{judge, may_not_share, outcome_of, wrong_hashes, wrong_layout},
};

/// What the hashes of an entry come to.
enum Assembled {
    /// All are there.
    Manifest(Manifest),
    /// Some are missing, or they are not the file's: what to answer.
    Answer(FileOutcome),
}

impl Inner {
    /// Judges entries whose names had no swarm when they came; one outcome for each, in order.
    pub(super) fn register(
        &self,
        lease: u64,
        entries: Vec<FileChunks>,
        barred: &HashSet<FileName>,
        now: Instant,
    ) -> Result<Vec<FileOutcome>, Error> {
        // A name that gets other content loses its swarm.
        let replaces = entries.iter().any(|entry| entry.replace);
        let names = entries.iter().map(|entry| &entry.file.name);
        let _names = if replaces { self.names.alone(names) } else { self.names.shared(names) };
        let peer = self.with(|guarded| guarded.live.peer(lease, now))?;
        let files: Vec<FileInfo> = entries.iter().map(|entry| entry.file.clone()).collect();
        let mut outcomes: Vec<Option<FileOutcome>> = Vec::with_capacity(entries.len());
        let mut claims = Vec::new();
        for (entry, known) in entries.iter().zip(self.catalogue.lookup(&files)?) {
            outcomes.push(match known.registered {
                _ if entry.gone => Some(FileOutcome::Registered),
                // The catalogue has to hear of it.
                Some(Record { file, owner }) if file == entry.file && owner == peer && entry.signature.is_some() => {
                    claims.push(claim(entry, None));
                    None
                }
                Some(Record { file, owner }) if file.id == entry.file.id || !entry.replace || owner != peer => {
                    Some(judge(&file, &entry.file, owner == peer))
                }
                _ if barred.contains(&entry.file.name) => Some(FileOutcome::Invalid(may_not_share(&entry.file.name))),
                _ if known.content.is_some_and(|layout| layout != entry.file.layout) => {
                    Some(FileOutcome::Invalid(wrong_layout(&entry.file)))
                }
                _ if known.content.is_some() => {
                    claims.push(claim(entry, None));
                    None
                }
                _ => match self.assemble(lease, entry, now)? {
                    Assembled::Manifest(manifest) => {
                        claims.push(claim(entry, Some(manifest)));
                        None
                    }
                    Assembled::Answer(outcome) => Some(outcome),
                },
            });
        }
        let verdicts = if claims.is_empty() { Vec::new() } else { self.catalogue.register(peer, &claims)? };
        log_new(peer, &claims, &verdicts);
        if let Some(heard) = self.heard.get() {
            for (claim, verdict) in claims.iter().zip(&verdicts) {
                match verdict {
                    Verdict::New => heard(peer, &claim.file.name, false),
                    Verdict::Replaced(_) => heard(peer, &claim.file.name, true),
                    _ => {}
                }
            }
        }
        // In one step: the batch becomes visible as a whole.
        self.with(|Guarded { live, .. }| {
            let mut verdicts = verdicts.into_iter();
            let settled = entries.iter().zip(outcomes).map(|(entry, outcome)| {
                let outcome = match outcome {
                    Some(outcome) => outcome,
                    None => {
                        let verdict = verdicts.next().ok_or(Error::Panicked)?;
                        if let Verdict::Replaced(_) = verdict {
                            live.release(&entry.file.name, Some(peer));
                        }
                        outcome_of(verdict, entry)
                    }
                };
                live.settle(lease, entry, &outcome, now)?;
                Ok(outcome)
            });
            settled.collect()
        })
    }

    /// The manifest of an entry once all its hashes are there.
    fn assemble(&self, lease: u64, entry: &FileChunks, now: Instant) -> Result<Assembled, Error> {
        let hashes = match self.with(|guarded| guarded.live.stage(lease, entry, now))? {
            Staged::Whole(hashes) => hashes,
            Staged::Misses(next) => return Ok(Assembled::Answer(FileOutcome::NeedHashes(next))),
        };
        Ok(match Manifest::new(entry.file.layout, hashes) {
            Ok(manifest) if manifest.id() == entry.file.id => Assembled::Manifest(manifest),
            Ok(manifest) => Assembled::Answer(FileOutcome::Invalid(wrong_hashes(manifest.id(), &entry.file))),
            Err(error) => Assembled::Answer(FileOutcome::Invalid(error.to_string())),
        })
    }

    pub(super) fn withdraw(&self, lease: u64, name: &FileName, may_release: bool, now: Instant) -> Result<bool, Error> {
        let _names = self.names.alone([name]);
        let record = self.catalogue.get(name)?.ok_or_else(|| Error::NoSuchFile(name.clone()))?;
        let (peer, holds, others_hold, owner_lives) = self.with(|Guarded { live, .. }| {
            let peer = live.peer(lease, now)?;
            let (holds, others_hold) = live.holders(name, peer);
            Ok::<_, Error>((peer, holds, others_hold, live.is_alive(record.owner, now)))
        })?;
        let owns = record.owner == peer;
        if !holds && !owns {
            return Err(Error::NotYours(name.clone()));
        }
        // An owner that is there must have had the time to say so.
        let settled = now.saturating_duration_since(self.started) >= self.lease;
        let released = may_release && (owns || (!others_hold && !owner_lives && settled));
        if released {
            // Durable first: a crash in between leaves nothing in memory anyway.
            self.catalogue.release(name, peer)?;
        }
        self.with(|Guarded { live, .. }| match released {
            true => drop(live.release(name, Some(peer))),
            false => live.drop_holder(peer, name),
        });
        info!(%peer, %name, id = %record.file.id, released, "file withdrawn");
        Ok(released)
    }

    /// One page of [`Registry::release_unattended`]: how many were freed, and where the next page begins.
    pub(super) fn sweep(
        &self,
        after: Option<&FileName>,
        clock: u64,
        limit: u64,
        now: Instant,
    ) -> Result<(usize, Option<FileName>), Error> {
        let page = self.catalogue.list("", after, SWEEP_PAGE)?;
        let last = page.last().filter(|_| page.len() == SWEEP_PAGE).map(|record| record.file.name.clone());
        let attended: Vec<(FileName, bool)> = self.with(|Guarded { live, .. }| {
            let attended = page.iter().map(|record| {
                let name = &record.file.name;
                (name.clone(), live.is_attended(name, record.owner, now))
            });
            attended.collect()
        });
        let mut freed = 0;
        for name in self.catalogue.attend(&attended, clock, limit)? {
            let _names = self.names.alone([&name]);
            let Some(record) = self.catalogue.get(&name)? else { continue };
            // A peer may have come since the page was judged.
            if self.with(|Guarded { live, .. }| live.is_attended(&name, record.owner, now)) {
                continue;
            }
            if let Some(Record { file, owner }) = self.catalogue.expire(&name, clock, limit)? {
                self.with(|Guarded { live, .. }| live.release(&name, Some(owner)));
                info!(%name, id = %file.id, %owner, "name released: neither its owner nor a holder was seen for --release-after");
                freed += 1;
            }
        }
        Ok((freed, last))
    }

    /// See [`Registry::drop_name`](super::Registry::drop_name).
    pub(super) fn drop_name(&self, name: &FileName, free: bool) -> Result<Option<Dropped>, Error> {
        let _names = self.names.alone([name]);
        let dropped = self.catalogue.drop_name(name, !free)?;
        let Some(record) = dropped else {
            return if free { Ok(None) } else { Err(Error::NoSuchFile(name.clone())) };
        };
        let holders = self.with(|Guarded { live, .. }| live.release(name, None));
        info!(%name, id = %record.file.id, owner = %record.owner, holders, free, "name dropped by an operator");
        Ok(Some(Dropped { record, holders }))
    }

    /// See [`Registry::reassign`](super::Registry::reassign).
    pub(super) fn reassign(&self, name: &FileName, owner: PeerId) -> Result<PeerId, Error> {
        let before = self.catalogue.reassign(name, owner)?.ok_or_else(|| Error::NoSuchFile(name.clone()))?.owner;
        info!(%name, %before, %owner, "name reassigned by an operator");
        Ok(before)
    }

    /// What a name stands for, and a page of its hashes, 32 bytes each.
    pub(super) fn content(&self, name: &FileName, hashes_from: Option<u32>) -> Result<(FileInfo, Bytes), Error> {
        let file = self.catalogue.get(name)?.ok_or_else(|| Error::NoSuchFile(name.clone()))?.file;
        let hashes = match hashes_from {
            Some(first) if first > file.layout.chunk_count().get() => {
                return Err(drizzle_proto::WireError::Bounds("first_hash").into());
            }
            Some(first) => self.page(file.id, first)?,
            None => Bytes::new(),
        };
        Ok((file, hashes))
    }

    fn page(&self, file: FileId, first: u32) -> Result<Bytes, Error> {
        if let Some(hashes) = self.pages.get(file, first) {
            return Ok(hashes);
        }
        let hashes = Bytes::from(packed(&self.catalogue.hashes(file, first, MAX_HASHES)?));
        self.pages.insert(file, first, &hashes);
        Ok(hashes)
    }
}

/// What an entry claims.
fn claim(entry: &FileChunks, manifest: Option<Manifest>) -> Claim {
    let (file, signature) = (entry.file.clone(), entry.signature.clone());
    Claim { file, manifest, replace: entry.replace, signature }
}

fn log_new(peer: PeerId, claims: &[Claim], verdicts: &[Verdict]) {
    let new = || claims.iter().zip(verdicts).filter(|(_, verdict)| **verdict == Verdict::New);
    for (Claim { file, .. }, _) in new() {
        let (name, id, size) = (&file.name, file.id, file.layout.size());
        // One line for each file of a large folder would drown everything else.
        debug!(%peer, %name, %id, size, "name registered");
    }
    let files = new().count();
    if let Some((Claim { file, .. }, _)) = new().next() {
        info!(%peer, files, first = %file.name, id = %file.id, "files registered");
    }
    let signed = claims.iter().zip(verdicts).filter(|(_, verdict)| **verdict == Verdict::Signed).count();
    if signed > 0 {
        info!(%peer, files = signed, "signatures kept");
    }
    for (Claim { file, .. }, verdict) in claims.iter().zip(verdicts) {
        if let Verdict::Replaced(before) = verdict {
            info!(%peer, name = %file.name, before = %before.id, id = %file.id, "content replaced by its owner");
        }
    }
}
