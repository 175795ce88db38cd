//! What becomes of a claim to a name, and what is said of a refusal. Pure.

use drizzle_proto::{
    FileId, FileInfo, FileName, PeerInfo,
    announcement::{FileChunks, FileOutcome},
};

use crate::{catalogue::Verdict, limits::MAX_NAMES};

/// What becomes of a claim to a name that stands for something already, `own` if the claiming peer registered it.
pub(crate) fn judge(registered: &FileInfo, claimed: &FileInfo, own: bool) -> FileOutcome {
    if registered.id != claimed.id {
        let detail = refusal(registered, claimed, own);
        FileOutcome::Refused { registered: registered.clone(), detail }
    } else if registered.layout != claimed.layout {
        FileOutcome::Invalid(wrong_layout(claimed))
    } else {
        FileOutcome::Registered
    }
}

/// What is said of a size that an id cannot have.
pub(crate) fn wrong_layout(claimed: &FileInfo) -> String {
    format!("file id {} has another size or chunk size", claimed.id)
}

/// What is said of hashes that are not an id's.
pub(crate) fn wrong_hashes(made: FileId, claimed: &FileInfo) -> String {
    format!("the hashes make file id {made}, not {}", claimed.id)
}

/// What is said to a peer of another one at its address.
pub(crate) fn same_address(other: &PeerInfo) -> String {
    format!(
        "peer {} tells the same address, {}, and other peers reach only one of the two: give each an address of its own with --advertise",
        other.id(),
        other.address()
    )
}

fn refusal(registered: &FileInfo, claimed: &FileInfo, own: bool) -> String {
    let name = claimed.name.as_str();
    let told =
        |file: &FileInfo| format!("{} (size {}, chunk size {})", file.id, file.layout.size(), file.layout.chunk_size());
    let advice = match own {
        true => "share it with --replace if the name is to stand for what you have now, else under another name",
        false => "share it under another name, or have its owner replace or withdraw it",
    };
    format!(
        "{name:?} is registered with other content: registered id {}, yours {}; {advice}",
        told(registered),
        told(claimed)
    )
}

/// What a catalogue's verdict means for an entry.
pub(crate) fn outcome_of(verdict: Verdict, entry: &FileChunks) -> FileOutcome {
    match verdict {
        Verdict::New | Verdict::Replaced(_) | Verdict::Same | Verdict::Signed => FileOutcome::Registered,
        Verdict::Other { registered, own } => judge(&registered, &entry.file, own),
        Verdict::Withdrawn => FileOutcome::Invalid(format!(
            "{:?} was withdrawn by its owner; share it under another name",
            entry.file.name.as_str()
        )),
        Verdict::Dropped => FileOutcome::Invalid(format!(
            "{:?} was dropped by an operator of the tracker, and stays barred for this content; share it under another name, or have the operator run: tracker-svc drop --free",
            entry.file.name.as_str()
        )),
        Verdict::NoManifest => FileOutcome::NeedHashes(0),
        Verdict::Full => FileOutcome::Invalid(format!("the limit of {MAX_NAMES} names is reached; withdraw some")),
    }
}

/// Whoever may read a name may hold it; to register it first takes more.
pub(crate) fn may_not_share(name: &FileName) -> String {
    format!(
        "this peer may not register {:?}; an operator can let it: tracker-svc grant PEER_ID --role publisher --prefix PREFIX/",
        name.as_str()
    )
}
