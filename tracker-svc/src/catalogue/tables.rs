//! The tables of the embedded catalogue, and what a write does to them.
//!
//! `names` (name -> content, owner), `contents` (content -> layout, how many names), `hashes`
//! (content, segment -> chunk hashes), `withdrawn` (name -> content, owner or operator, when in order),
//! `withdrawals` (the same the other way, to find the oldest) and `unattended` (name -> clock of attendance since when;
//! a name that is attended has no row, so that nothing is written while its peers come and go), and `signatures` (name -> what
//! its owner signed of its content). A layout and its hashes are the manifest. Contents are apart from
//! hashes so that a lookup never reads hashes; hashes are in segments so that a page of a large manifest
//! is read without the rest of it. A name is in `names` or in `withdrawn`, never in both.

use drizzle_proto::{Digest, FileId, FileInfo, FileName, Layout, PeerId, Signature};
use redb::{ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};

use super::{Claim, Record, Verdict};
use crate::limits::{MAX_NAMES, MAX_WITHDRAWN};

pub(super) type Content = [u8; 32];
/// File id, bytes, bytes of a chunk, peer that registered the name.
pub(super) type NameRow = (&'static Content, u64, u32, &'static [u8; 16]);
/// Bytes, bytes of a chunk, names that stand for it.
pub(super) type ContentRow = (u64, u32, u32);
/// File id, peer that registered the name and withdrew it, key in `withdrawals`.
pub(super) type WithdrawnRow = (&'static Content, &'static [u8; 16], u64);

pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
pub(super) const NAMES: TableDefinition<'_, &str, NameRow> = TableDefinition::new("names");
pub(super) const CONTENTS: TableDefinition<'_, &Content, ContentRow> = TableDefinition::new("contents");
pub(super) const HASHES: TableDefinition<'_, (&Content, u32), &[u8]> = TableDefinition::new("hashes");
pub(super) const WITHDRAWN: TableDefinition<'_, &str, WithdrawnRow> = TableDefinition::new("withdrawn");
pub(super) const WITHDRAWALS: TableDefinition<'_, u64, &str> = TableDefinition::new("withdrawals");

pub(super) const UNATTENDED: TableDefinition<'_, &str, u64> = TableDefinition::new("unattended");
/// Statement, and its signature. Catalogues of earlier versions have none until something is written.
pub(super) const SIGNATURES: TableDefinition<'_, &str, (&str, &str)> = TableDefinition::new("signatures");

/// Stands in `withdrawn` for an operator, where a peer's id does otherwise. No peer has it: ids are random.
pub(super) const OPERATOR: [u8; 16] = [0; 16];
/// Hashes in a segment: 128,000 bytes, which with their key just fit into a page of 128 KiB.
pub(super) const SEGMENT: u32 = 4000;

/// The tables of one write, opened once: opening and closing them for each of a thousand files would cost
/// more than the files.
pub(super) struct Tables<'a> {
    pub(super) names: Table<'a, &'static str, NameRow>,
    pub(super) contents: Table<'a, &'static Content, ContentRow>,
    pub(super) hashes: Table<'a, (&'static Content, u32), &'static [u8]>,
    pub(super) withdrawn: Table<'a, &'static str, WithdrawnRow>,
    pub(super) withdrawals: Table<'a, u64, &'static str>,
    pub(super) unattended: Table<'a, &'static str, u64>,
    pub(super) signatures: Table<'a, &'static str, (&'static str, &'static str)>,
}

impl<'a> Tables<'a> {
    pub(super) fn open(write: &'a WriteTransaction) -> Result<Self, redb::Error> {
        let (names, contents) = (write.open_table(NAMES)?, write.open_table(CONTENTS)?);
        let (withdrawn, withdrawals) = (write.open_table(WITHDRAWN)?, write.open_table(WITHDRAWALS)?);
        let (hashes, unattended) = (write.open_table(HASHES)?, write.open_table(UNATTENDED)?);
        let signatures = write.open_table(SIGNATURES)?;
        Ok(Self { names, contents, hashes, withdrawn, withdrawals, unattended, signatures })
    }

    pub(super) fn register(&mut self, owner: PeerId, new: &Claim) -> Result<Verdict, redb::Error> {
        let FileInfo { name, id, layout } = &new.file;
        let before = self.names.get(name.as_str())?.map(|row| record(name, row.value())).transpose()?;
        if let Some(Record { file: registered, owner: first }) = before.clone() {
            let own = first == owner;
            if registered.id == *id {
                let signed = own && self.sign(name, new.signature.as_ref())?;
                return Ok(if signed { Verdict::Signed } else { Verdict::Same });
            } else if !(own && new.replace) {
                return Ok(Verdict::Other { registered, own });
            }
        }
        match self.withdrawn.get(name.as_str())?.map(|row| (*row.value().0, *row.value().1)) {
            Some((content, OPERATOR)) if content == *id.as_bytes() => return Ok(Verdict::Dropped),
            Some((content, by)) if content == *id.as_bytes() && by != *owner.as_bytes() => {
                return Ok(Verdict::Withdrawn);
            }
            _ => {}
        }
        if before.is_none() && self.names.len()? >= MAX_NAMES {
            return Ok(Verdict::Full);
        }
        let known = self.contents.get(id.as_bytes())?.map(|row| row.value().2);
        if known.is_none() {
            let Some(manifest) = &new.manifest else { return Ok(Verdict::NoManifest) };
            for (segment, hashes) in (0..).zip(manifest.hashes().chunks(SEGMENT as usize)) {
                let bytes: Vec<u8> = hashes.iter().flat_map(|hash| *hash.as_bytes()).collect();
                self.hashes.insert((id.as_bytes(), segment), bytes.as_slice())?;
            }
        }
        self.release(name, None)?;
        let (size, chunk_size) = (layout.size(), layout.chunk_size());
        self.contents.insert(id.as_bytes(), (size, chunk_size, known.unwrap_or(0) + 1))?;
        self.names.insert(name.as_str(), (id.as_bytes(), size, chunk_size, owner.as_bytes()))?;
        self.sign(name, new.signature.as_ref())?;
        self.forget_withdrawal(name.as_str())?;
        Ok(before.map_or(Verdict::New, |before| Verdict::Replaced(before.file)))
    }

    /// Keeps a signature, if there is one; whether it is another than before.
    fn sign(&mut self, name: &FileName, signature: Option<&Signature>) -> Result<bool, redb::Error> {
        let Some(signature) = signature else { return Ok(false) };
        let statement = signature.statement().to_string();
        let row = (statement.as_str(), signature.minisign());
        let is_kept = self.signatures.get(name.as_str())?.is_some_and(|kept| kept.value() == row);
        if !is_kept {
            self.signatures.insert(name.as_str(), row)?;
        }
        Ok(!is_kept)
    }

    pub(super) fn drop_name(&mut self, name: &FileName, bar: bool) -> Result<Option<Record>, redb::Error> {
        let dropped = self.release(name, None)?;
        if !bar {
            self.forget_withdrawal(name.as_str())?;
        } else if let Some(Record { file, .. }) = &dropped {
            self.remember_withdrawal(name.as_str(), file.id.as_bytes(), &OPERATOR, MAX_WITHDRAWN)?;
        }
        Ok(dropped)
    }

    pub(super) fn reassign(&mut self, name: &FileName, owner: PeerId) -> Result<Option<Record>, redb::Error> {
        let before = self.names.get(name.as_str())?.map(|row| record(name, row.value())).transpose()?;
        if let Some(Record { file, .. }) = &before {
            let (size, chunk_size) = (file.layout.size(), file.layout.chunk_size());
            self.names.insert(name.as_str(), (file.id.as_bytes(), size, chunk_size, owner.as_bytes()))?;
        }
        Ok(before)
    }

    /// Frees a name, on behalf of a peer or of none; what it stood for.
    pub(super) fn release(&mut self, name: &FileName, by: Option<PeerId>) -> Result<Option<Record>, redb::Error> {
        let removed = self.names.remove(name.as_str())?.map(|row| record(name, row.value())).transpose()?;
        let Some(released) = removed else { return Ok(None) };
        let (id, owner) = (*released.file.id.as_bytes(), *released.owner.as_bytes());
        if by == Some(released.owner) {
            self.remember_withdrawal(name.as_str(), &id, &owner, MAX_WITHDRAWN)?;
        }
        self.unattended.remove(name.as_str())?;
        self.signatures.remove(name.as_str())?;
        let row = self.contents.get(&id)?.map(|row| row.value());
        if let Some((size, chunk_size, names @ 2..)) = row {
            self.contents.insert(&id, (size, chunk_size, names - 1))?;
        } else {
            self.contents.remove(&id)?;
            self.hashes.retain_in((&id, 0)..=(&id, u32::MAX), |_, _| false)?;
        }
        Ok(Some(released))
    }

    /// Keeps at most `most`.
    pub(super) fn remember_withdrawal(
        &mut self,
        name: &str,
        id: &Content,
        owner: &[u8; 16],
        most: u64,
    ) -> Result<(), redb::Error> {
        let next = self.withdrawals.last()?.map_or(0, |(last, _)| last.value() + 1);
        self.withdrawn.insert(name, (id, owner, next))?;
        self.withdrawals.insert(next, name)?;
        while self.withdrawals.len()? > most
            && let Some((_, oldest)) = self.withdrawals.pop_first()?
        {
            self.withdrawn.remove(oldest.value())?;
        }
        Ok(())
    }

    pub(super) fn forget_withdrawal(&mut self, name: &str) -> Result<(), redb::Error> {
        if let Some(row) = self.withdrawn.remove(name)? {
            self.withdrawals.remove(row.value().2)?;
        }
        Ok(())
    }
}

pub(super) fn record(name: &FileName, row: (&Content, u64, u32, &[u8; 16])) -> Result<Record, redb::Error> {
    let (id, size, chunk_size, owner) = row;
    let file = FileInfo { name: name.clone(), id: content_id(id), layout: layout(size, chunk_size)? };
    Ok(Record { file, owner: PeerId::from_bytes(*owner) })
}

pub(super) fn content_id(id: &Content) -> FileId {
    FileId::from_digest(Digest::from_bytes(*id))
}

/// What we wrote was checked before: anything else is damage.
pub(super) fn layout(size: u64, chunk_size: u32) -> Result<Layout, redb::Error> {
    Layout::new(size, chunk_size).map_err(|error| redb::Error::Corrupted(error.to_string()))
}
