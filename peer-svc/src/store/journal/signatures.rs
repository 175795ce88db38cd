//! What was signed of the files that are shared or downloaded here, by name.
//!
//! One signature for each name: it counts for the content that its statement is about, whatever the name has. It is kept
//! as it came, and judged anew each time it is to count. That of a download is kept when its record ends: it may begin again.

use drizzle_proto::{FileId, FileName, Signature};
use redb::{ReadableDatabase, ReadableTable, WriteTransaction};

use super::{Journal, JournalError, SIGNATURES};

impl Journal {
    /// What was signed of a name with this content. What cannot be read counts for nothing.
    pub(crate) fn signature(&self, name: &FileName, id: FileId) -> Result<Option<Signature>, JournalError> {
        self.run(|database| {
            let table = database.begin_read()?.open_table(SIGNATURES)?;
            let Some(row) = table.get(name.as_str())? else { return Ok(None) };
            Ok(read(row.value()).filter(|signature| signature.statement().is_of(id)))
        })
    }

    /// Keeps a signature, in place of an earlier one of that name.
    pub(crate) fn put_signature(&self, signature: &Signature) -> Result<(), JournalError> {
        let statement = signature.statement().to_string();
        let row = (statement.as_str(), signature.minisign());
        let name = signature.statement().name().as_str();
        if self.signature(signature.statement().name(), signature.statement().id())?.as_ref() == Some(signature) {
            return Ok(());
        }
        self.change(|write| {
            write.open_table(SIGNATURES)?.insert(name, row)?;
            Ok(())
        })
    }
}

/// A name has other content now, or none: what was signed of the old one is forgotten.
pub(super) fn drop_signature(write: &WriteTransaction, name: &FileName, id: Option<FileId>) -> Result<(), redb::Error> {
    let mut table = write.open_table(SIGNATURES)?;
    let is_of = |signature: &Signature| id.is_some_and(|id| signature.statement().is_of(id));
    let is_stale = table.get(name.as_str())?.is_some_and(|row| !read(row.value()).as_ref().is_some_and(is_of));
    if is_stale {
        table.remove(name.as_str())?;
    }
    Ok(())
}

fn read((statement, minisign): (&str, &str)) -> Option<Signature> {
    Signature::new(statement, minisign).ok()
}
