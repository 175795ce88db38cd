//! What the tracker's answers come to.

use drizzle_proto::FileInfo;

/// What the answers to a batch came to.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// What was newly refused.
    pub(crate) refusals: Vec<Refusal>,
    /// Whether hashes were sent in vain: asking again at once would not help.
    pub(crate) stuck: bool,
}

/// A file that the tracker did not take.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// What this peer has.
    pub(crate) ours: FileInfo,
    /// What the name stands for, if it is taken.
    pub(crate) registered: Option<FileInfo>,
    /// For a person.
    pub(crate) detail: String,
}

impl Refusal {
    /// Same size, other chunks: only hashing again can tell.
    pub(crate) fn may_be_same_content(&self) -> bool {
        self.registered.as_ref().is_some_and(|registered| {
            let (ours, theirs) = (self.ours.layout, registered.layout);
            ours.size() == theirs.size() && ours.chunk_size() != theirs.chunk_size()
        })
    }
}
