//! What must not be forgotten of rights, on disk: a redb database in the data folder, beside that of the names.

use std::{fs, os::unix::fs::OpenOptionsExt, path::Path};

use drizzle_proto::{
    PeerId, Scope,
    database::{Reopening, Unusable, checked},
    rights::{Grant, Grants},
    ticket::TicketKey,
    token::{Kept, TokenId},
};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::state::{Change, Identity, Issued, Seconds};

pub(crate) const FILE: &str = "access.redb";
const TOKENS: TableDefinition<'_, [u8; 8], &[u8]> = TableDefinition::new("tokens");
const IDENTITIES: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("identities");
const STOPS: TableDefinition<'_, &str, u64> = TableDefinition::new("stops");
const SECRETS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("secrets");
/// What signs tickets.
const TICKETS: &str = "tickets";

/// Why rights cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is of no use.
    #[error("{FILE} in the data folder cannot be used: {0}")]
    Database(#[from] Unusable),
    /// A record is not what this program writes.
    #[error(
        "{FILE} in the data folder holds what this version cannot read; restore it from a copy, or delete it and have every peer join again"
    )]
    Record,
    /// No key can be made.
    #[error(transparent)]
    Key(#[from] drizzle_proto::ticket::KeyError),
}

/// Written as it is read.
#[derive(Serialize, Deserialize)]
struct TokenRecord {
    kept: [u8; 32],
    expires: Seconds,
    uses_left: u32,
    grants: Vec<(String, String)>,
}

#[derive(Serialize, Deserialize)]
struct IdentityRecord {
    key: Option<[u8; 32]>,
    grants: Vec<(String, String)>,
    revoked: Option<Seconds>,
    certified: Seconds,
}

fn texts(grants: &Grants) -> Vec<(String, String)> {
    grants.iter().map(|grant| (grant.scope.to_string(), grant.role.to_string())).collect()
}

fn grants(texts: Vec<(String, String)>) -> Result<Grants, StoreError> {
    let read = |(scope, role): (String, String)| Some(Grant { scope: scope.parse().ok()?, role: role.parse().ok()? });
    let all = texts.into_iter().map(read).collect::<Option<Vec<_>>>().ok_or(StoreError::Record)?;
    Grants::new(all).map_err(|_| StoreError::Record)
}

/// The database.
#[derive(Debug)]
pub(crate) struct Store(Reopening);

impl Store {
    /// Opens it, or makes it.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        // Tokens are kept as hashes, but the key that signs tickets is not.
        let made = fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        made.map_err(Unusable::Io)?;
        let store = Self(Reopening::new(move || checked(&path).create(&path))?);
        store.0.run(|database| {
            let write = database.begin_write()?;
            write.open_table(TOKENS)?;
            write.open_table(IDENTITIES)?;
            write.open_table(STOPS)?;
            write.open_table(SECRETS)?;
            write.commit()?;
            Ok(())
        })?;
        Ok(store)
    }

    /// The key that signs tickets, made if there is none.
    pub(crate) fn ticket_key(&self) -> Result<TicketKey, StoreError> {
        let kept = self.0.run(|database| {
            let secrets = database.begin_read()?.open_table(SECRETS)?;
            Ok(secrets.get(TICKETS)?.map(|kept| kept.value().to_vec()))
        })?;
        let kept = match kept {
            Some(kept) => kept,
            None => {
                let new = TicketKey::generate()?;
                self.0.run(|database| {
                    let write = database.begin_write()?;
                    write.open_table(SECRETS)?.insert(TICKETS, new.as_slice())?;
                    write.commit()?;
                    Ok(())
                })?;
                new
            }
        };
        Ok(TicketKey::from_kept(&kept)?)
    }

    /// All that is there.
    pub(crate) fn read(&self) -> Result<Vec<Change>, StoreError> {
        let (tokens, identities, stops) = self.0.run(|database| {
            let read = database.begin_read()?;
            let (mut tokens, mut identities, mut stops) = (Vec::new(), Vec::new(), Vec::new());
            for entry in read.open_table(TOKENS)?.iter()? {
                let (id, record) = entry?;
                tokens.push((id.value(), record.value().to_vec()));
            }
            for entry in read.open_table(IDENTITIES)?.iter()? {
                let (id, record) = entry?;
                identities.push((id.value(), record.value().to_vec()));
            }
            for entry in read.open_table(STOPS)?.iter()? {
                let (scope, since) = entry?;
                stops.push((scope.value().to_owned(), since.value()));
            }
            Ok((tokens, identities, stops))
        })?;
        let tokens = tokens.into_iter().map(|(id, record)| Ok(Change::Token(TokenId(id), Some(read_token(&record)?))));
        let identities = identities
            .into_iter()
            .map(|(id, record)| Ok(Change::Identity(PeerId::from_bytes(id), Some(read_identity(&record)?))));
        let stops = stops.into_iter().map(|(scope, since)| {
            let scope: Scope = scope.parse().map_err(|_| StoreError::Record)?;
            Ok(Change::Stop(scope, Some(since)))
        });
        tokens.chain(identities).chain(stops).collect()
    }

    /// Writes changes, all or none, and returns once they outlive a power cut.
    pub(crate) fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut records = Vec::with_capacity(changes.len());
        for change in changes {
            records.push(match change {
                Change::Token(_, Some(token)) => Some(write_token(token)?),
                Change::Identity(_, Some(identity)) => Some(write_identity(identity)?),
                _ => None,
            });
        }
        self.0.run(|database| {
            let write = database.begin_write()?;
            {
                let mut tokens = write.open_table(TOKENS)?;
                let mut identities = write.open_table(IDENTITIES)?;
                let mut stops = write.open_table(STOPS)?;
                for (change, record) in changes.iter().zip(&records) {
                    match (change, record) {
                        (Change::Token(id, _), Some(record)) => drop(tokens.insert(id.0, record.as_slice())?),
                        (Change::Token(id, _), None) => drop(tokens.remove(id.0)?),
                        (Change::Identity(id, _), Some(record)) => {
                            drop(identities.insert(*id.as_bytes(), record.as_slice())?);
                        }
                        (Change::Identity(id, _), None) => drop(identities.remove(*id.as_bytes())?),
                        (Change::Stop(scope, Some(since)), _) => drop(stops.insert(scope.to_string().as_str(), since)?),
                        (Change::Stop(scope, None), _) => drop(stops.remove(scope.to_string().as_str())?),
                    }
                }
            }
            write.commit()?;
            Ok(())
        })?;
        Ok(())
    }
}

pub(crate) fn write_token(token: &Issued) -> Result<Vec<u8>, StoreError> {
    let Issued { kept, expires, uses_left, grants } = token;
    let record = TokenRecord { kept: kept.0, expires: *expires, uses_left: *uses_left, grants: texts(grants) };
    postcard::to_stdvec(&record).map_err(|_| StoreError::Record)
}

pub(crate) fn write_identity(identity: &Identity) -> Result<Vec<u8>, StoreError> {
    let Identity { key, grants, revoked, certified } = identity;
    let record = IdentityRecord { key: *key, grants: texts(grants), revoked: *revoked, certified: *certified };
    postcard::to_stdvec(&record).map_err(|_| StoreError::Record)
}

pub(crate) fn read_token(record: &[u8]) -> Result<Issued, StoreError> {
    let TokenRecord { kept, expires, uses_left, grants: texts } =
        postcard::from_bytes(record).map_err(|_| StoreError::Record)?;
    Ok(Issued { kept: Kept(kept), expires, uses_left, grants: grants(texts)? })
}

pub(crate) fn read_identity(record: &[u8]) -> Result<Identity, StoreError> {
    let IdentityRecord { key, grants: texts, revoked, certified } =
        postcard::from_bytes(record).map_err(|_| StoreError::Record)?;
    Ok(Identity { key, grants: grants(texts)?, revoked, certified })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use drizzle_proto::rights::Role;

    use super::*;

    #[test]
    fn what_was_written_is_read_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let grants = Grants::new([Grant { scope: "models/".parse().unwrap(), role: Role::Publisher }]).unwrap();
        let token = Issued { kept: Kept([1; 32]), expires: 9, uses_left: 3, grants: grants.clone() };
        let identity = Identity { key: Some([2; 32]), grants, revoked: Some(5), certified: 4 };
        let changes = vec![
            Change::Token(TokenId([1; 8]), Some(token)),
            Change::Identity(PeerId::from_bytes([3; 16]), Some(identity)),
            Change::Stop("a/".parse().unwrap(), Some(7)),
        ];
        let key = {
            let store = Store::open(dir.path()).unwrap();
            store.write(&changes).unwrap();
            store.ticket_key().unwrap().public()
        };
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.read().unwrap(), changes);
        assert_eq!(store.ticket_key().unwrap().public(), key);
        let gone = [
            Change::Token(TokenId([1; 8]), None),
            Change::Identity(PeerId::from_bytes([3; 16]), None),
            Change::Stop("a/".parse().unwrap(), None),
        ];
        store.write(&gone).unwrap();
        assert_eq!(store.read().unwrap(), []);
        let mode = dir.path().join(FILE).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it holds a key");
    }

    #[test]
    fn a_record_that_cannot_be_read_is_said_to_be_so() {
        let record = [255; 40];
        assert!(matches!(read_token(&record), Err(StoreError::Record)));
        assert!(matches!(read_identity(&record), Err(StoreError::Record)));
    }
}
