//! What a tracker tells peers of the rights of others: who is revoked, what is stopped, whose tickets count.

use std::collections::BTreeSet;

use prost::Message;

use crate::{FileName, PeerId, Scope, WireError, wire};

/// Identities, names and keys in one of them at most.
pub const MAX_ENTRIES: usize = 16 << 10;

/// A snapshot, which replaces the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Changes with the rest.
    pub version: u64,
    /// Files are served to identities that may read them, and to no others.
    pub enforced: bool,
    /// By which tickets are checked.
    pub ticket_keys: Vec<[u8; 32]>,
    /// Not served any more.
    pub revoked: BTreeSet<PeerId>,
    /// Neither served nor downloaded.
    pub stopped: Vec<Scope>,
    /// May command daemons over the network.
    pub admins: BTreeSet<PeerId>,
}

impl Access {
    /// Whether an operator stopped the name.
    pub fn stops(&self, name: &FileName) -> bool {
        self.stopped.iter().any(|scope| scope.covers(name))
    }

    /// As bytes, to be kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::Access::from(self).encode_to_vec()
    }

    /// From what was kept.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        wire::Access::decode(bytes).ok()?.try_into().ok()
    }
}

impl From<&Access> for wire::Access {
    fn from(access: &Access) -> Self {
        let texts = |ids: &BTreeSet<PeerId>| ids.iter().map(ToString::to_string).collect();
        Self {
            version: access.version,
            enforced: access.enforced,
            ticket_keys: access.ticket_keys.iter().map(|key| key.to_vec().into()).collect(),
            revoked: texts(&access.revoked),
            stopped: access.stopped.iter().map(ToString::to_string).collect(),
            admins: texts(&access.admins),
        }
    }
}

impl TryFrom<wire::Access> for Access {
    type Error = WireError;

    fn try_from(access: wire::Access) -> Result<Self, WireError> {
        let entries = access.ticket_keys.len() + access.revoked.len() + access.stopped.len() + access.admins.len();
        if entries > MAX_ENTRIES {
            return Err(WireError::Bounds("access"));
        }
        let ids = |texts: Vec<String>| texts.iter().map(|text| text.parse()).collect::<Result<BTreeSet<PeerId>, _>>();
        let keys = access.ticket_keys.iter().map(|key| key[..].try_into());
        let stopped = access.stopped.iter().map(|scope| scope.parse());
        Ok(Self {
            version: access.version,
            enforced: access.enforced,
            ticket_keys: keys.collect::<Result<_, _>>().map_err(|_| WireError::Bounds("ticket_keys"))?,
            revoked: ids(access.revoked)?,
            stopped: stopped.collect::<Result<_, _>>().map_err(|_| WireError::Bounds("stopped"))?,
            admins: ids(access.admins)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_it_was_kept() {
        let access = Access {
            version: 7,
            enforced: true,
            ticket_keys: vec![[1; 32], [2; 32]],
            revoked: [PeerId::from_bytes([3; 16])].into(),
            stopped: vec!["models/".parse().unwrap(), "a".parse().unwrap()],
            admins: [PeerId::from_bytes([4; 16])].into(),
        };
        assert_eq!(Access::from_bytes(&access.to_bytes()), Some(access.clone()));
        assert!(access.stops(&FileName::new("models/x").unwrap()) && !access.stops(&FileName::new("b").unwrap()));
        let mut bad = wire::Access::from(&access);
        bad.stopped.push("../".to_owned());
        assert!(Access::try_from(bad).is_err());
        let mut many = wire::Access::from(&access);
        many.stopped = vec!["a".to_owned(); MAX_ENTRIES];
        assert!(Access::try_from(many).is_err());
    }
}
