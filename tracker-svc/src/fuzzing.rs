//! A door for fuzzing: what reads bytes that may be hostile and is private to this crate. For tests alone.

use std::{fs, io, path::Path};

use drizzle_proto::{
    PeerId, Scope,
    rights::{Grant, Grants, Role},
    token::{Kept, TokenId},
    wire,
};
use prost::Message;

use crate::{
    access::{
        state::{Change, Identity, Issued},
        store::{FILE, Store, read_identity, read_token, write_identity, write_token},
    },
    grpc::{entries, list_token, newcomer, results, wanted},
};

/// Requests of peers, in their wire form.
pub fn requests(bytes: &[u8]) {
    if let Ok(request) = wire::RegisterChunkRequest::decode(bytes) {
        let sent = request.files.len();
        if let Ok((good, malformed)) = entries(request.files) {
            assert_eq!(malformed.len(), sent, "each entry is answered");
            assert_eq!(good.len(), malformed.iter().filter(|error| error.is_none()).count());
            assert!(results(Vec::new(), malformed).len() <= sent);
        }
    }
    if let Ok(request) = wire::WatchFileRequest::decode(bytes) {
        let _ = newcomer(&request);
    }
    if let Ok(request) = wire::FileLocationsRequest::decode(bytes) {
        let _ = wanted(&request);
    }
    if let Ok(request) = wire::ListFilesRequest::decode(bytes)
        && let Ok(Some(after)) = list_token(&request.prefix, &request.page_token)
    {
        assert!(after.as_str().starts_with(&request.prefix), "no page begins elsewhere");
    }
}

/// One record of tokens or identities. What is read is written as it was read.
pub fn records(value: &[u8]) {
    if let Ok(token) = read_token(value) {
        let written = write_token(&token).expect("what was read can be written");
        assert_eq!(read_token(&written).expect("it is what this program writes"), token);
    }
    if let Ok(identity) = read_identity(value) {
        let written = write_identity(&identity).expect("what was read can be written");
        assert_eq!(read_identity(&written).expect("it is what this program writes"), identity);
    }
}

/// The bytes of a database of rights with something in every table, made in an empty folder.
pub fn valid_access(folder: &Path) -> io::Result<Vec<u8>> {
    let store = Store::open(folder).map_err(io::Error::other)?;
    let scope = || "models/".parse::<Scope>().map_err(io::Error::other);
    store.write(&[Change::Stop(scope()?, Some(7)), Change::Stop(Scope::All, Some(8))]).map_err(io::Error::other)?;
    let (token, identity) = valid();
    let changes =
        [Change::Token(TokenId([1; 8]), Some(token)), Change::Identity(PeerId::from_bytes([3; 16]), Some(identity))];
    store.write(&changes).map_err(io::Error::other)?;
    store.ticket_key().map_err(io::Error::other)?;
    drop(store);
    fs::read(folder.join(FILE))
}

fn valid() -> (Issued, Identity) {
    let grant = Grant { scope: Scope::All, role: Role::Publisher };
    let grants = Grants::new([grant]).expect("one grant fits");
    let token = Issued { kept: Kept([1; 32]), expires: 9, uses_left: 3, grants: grants.clone() };
    (token, Identity { key: Some([2; 32]), grants, revoked: Some(5), certified: 4 })
}

/// A valid token and a valid identity.
pub fn valid_records() -> Vec<Vec<u8>> {
    let (token, identity) = valid();
    [write_token(&token), write_identity(&identity)].into_iter().filter_map(Result::ok).collect()
}

/// Uses a database of rights that has these bytes, in a folder for it alone. Any part may refuse.
pub fn access(folder: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(folder.join(FILE), bytes)?;
    let Ok(store) = Store::open(folder) else { return Ok(()) };
    let _ = store.ticket_key();
    if let Ok(changes) = store.read() {
        let _ = store.write(&changes);
    }
    Ok(())
}
