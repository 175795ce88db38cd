//! Hashed files, and which of them are missing.

use std::collections::BTreeMap;

use drizzle_proto::FileName;
use redb::ReadableDatabase;

use super::{
    Journal, JournalError, MISSING, SHARES,
    downloads::end_partial,
    records::{EndedPartial, ShareRecord, read_share, write_share},
    signatures::drop_signature,
};

impl Journal {
    /// Every hashed file.
    pub(crate) fn shares(&self) -> Result<Vec<(FileName, ShareRecord)>, JournalError> {
        self.rows(SHARES, read_share)
    }

    /// The hashed file of this name, if there is one.
    pub(crate) fn share(&self, name: &FileName) -> Result<Option<ShareRecord>, JournalError> {
        self.run(|database| {
            let table = database.begin_read()?.open_table(SHARES)?;
            table.get(name.as_str())?.map(|row| read_share(row.value())).transpose()
        })
    }

    /// Shared files that are not where they were: since when, in seconds since 1970.
    pub(crate) fn missing(&self) -> Result<BTreeMap<FileName, u64>, JournalError> {
        Ok(self.rows(MISSING, Ok)?.into_iter().collect())
    }

    /// Remembers that shared files are missing since then. Sharing one again, or forgetting it, ends that.
    pub(crate) fn note_missing(&self, names: &[FileName], since: u64) -> Result<(), JournalError> {
        self.change(|write| {
            let mut table = write.open_table(MISSING)?;
            for name in names {
                table.insert(name.as_str(), since)?;
            }
            Ok(())
        })
    }

    /// Remembers hashed files, all in one transaction. The record of an unfinished download of the same name ends,
    /// unless `keep` says otherwise of it; returns the names whose record ended.
    pub(crate) fn put_shares(
        &self,
        shares: &[(FileName, ShareRecord)],
        keep: &dyn Fn(&FileName) -> bool,
    ) -> Result<Vec<EndedPartial>, JournalError> {
        self.change(|write| {
            let mut ended = Vec::new();
            for (name, share) in shares {
                write.open_table(SHARES)?.insert(name.as_str(), &write_share(share)?[..])?;
                write.open_table(MISSING)?.remove(name.as_str())?;
                drop_signature(write, name, Some(share.manifest.id()))?;
                if !keep(name) {
                    ended.extend(end_partial(write, name)?);
                }
            }
            Ok(ended)
        })
    }

    /// Forgets files.
    pub(crate) fn forget_shares(&self, names: &[FileName]) -> Result<(), JournalError> {
        self.change(|write| {
            let (mut table, mut missing) = (write.open_table(SHARES)?, write.open_table(MISSING)?);
            for name in names {
                table.remove(name.as_str())?;
                missing.remove(name.as_str())?;
                drop_signature(write, name, None)?;
            }
            Ok(())
        })
    }
}
