//! Whose signatures count for this peer, and what it does about files that none of them vouches for.
//!
//! A peer that was started without `--trust` asks for no signatures. One with it fetches a file only if a trusted key
//! signed its name, content and size, and offers no other, wherever it has it from. A file that it has without a
//! signature is asked about at the tracker: the registered signature, if it is of this very content, makes it a holder
//! like any other.

use std::{collections::BTreeSet, fs, io::Read, path::PathBuf, sync::Arc, time::Duration};

use drizzle_proto::{
    FileInfo, FileName, Signature, WireError,
    client::TrackerClient,
    signature::SignatureError,
    trust::{Distrust, KeyError, TrustedKeys},
};
use tokio::{sync::watch, time::MissedTickBehavior};

use crate::{lanes::Lanes, register::Standing, share::Sharer, transfers::Transfers};

/// A file of public keys is small; a wrong path may be anything.
const MOST_BYTES: u64 = 1 << 20;
/// Files that are asked about anew in one round: each is a call.
const ROUND: usize = 256;
/// Between two rounds, whatever was asked for.
const SOONEST: Duration = Duration::from_millis(50);

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// The file cannot be read.
    #[error("--trust {}: {source}", path.display())]
    Unreadable {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no key in it.
    #[error("--trust {}: {source}; give the .pub file that `peer-cli key new` or `minisign -G` made", path.display())]
    NoKey {
        /// As it was given.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
}

/// The keys in these files.
pub(crate) fn read_keys(paths: &[PathBuf]) -> Result<TrustedKeys, KeysError> {
    let mut keys = TrustedKeys::default();
    for path in paths {
        let unreadable = |source| KeysError::Unreadable { path: path.clone(), source };
        let mut bytes = Vec::new();
        let file = fs::File::open(path).map_err(unreadable)?;
        file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
        let text = String::from_utf8_lossy(&bytes);
        keys.add(&text).map_err(|source| KeysError::NoKey { path: path.clone(), source })?;
    }
    Ok(keys)
}

/// What the tracker told as a file's signature, judged: worth keeping if it is of this file.
pub(crate) fn judge(
    keys: &TrustedKeys,
    file: &FileInfo,
    told: Result<Option<Signature>, WireError>,
) -> Result<Option<Signature>, Distrust> {
    let signature = match told {
        Ok(signature) => signature,
        // Who asks for none may meet what a later version signs.
        Err(_) if keys.is_empty() => None,
        Err(WireError::Signature(error)) => return Err(error.into()),
        Err(_) => return Err(SignatureError::Minisign.into()),
    };
    keys.check(file, signature.as_ref())?;
    Ok(signature.filter(|signature| signature.statement().is_about(file)))
}

/// Asks the tracker about files that this peer has and does not offer.
#[derive(Debug, Clone)]
pub(crate) struct Vouching {
    pub(crate) tracker: TrackerClient,
    pub(crate) sharer: Arc<Sharer>,
    pub(crate) transfers: Arc<Transfers>,
    pub(crate) lanes: Arc<Lanes>,
}

impl Vouching {
    /// Asks about each file once it is known here, again whenever there is a new lease, and some of them from time to
    /// time: they may have been signed since. Runs for as long as the daemon.
    pub(crate) async fn keep(self, mut standing: watch::Receiver<Standing>, every: Duration) {
        if self.sharer.trust.is_empty() {
            return std::future::pending().await;
        }
        let mut ticks = tokio::time::interval(every.max(SOONEST));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last, mut lease) = (None, None);
        loop {
            // Of what is asked about from time to time the same is not told each time.
            let (names, is_news): (BTreeSet<FileName>, _) = tokio::select! {
                fresh = self.sharer.untrusted.fresh() => (fresh, true),
                Ok(()) = standing.changed() => {
                    let now = standing.borrow_and_update().lease;
                    let is_new = now.is_some() && now != lease;
                    lease = now.or(lease);
                    if !is_new {
                        continue;
                    }
                    (self.sharer.untrusted.following(None, usize::MAX).into_iter().collect(), true)
                }
                _ = ticks.tick() => {
                    let round = self.sharer.untrusted.following(last.as_ref(), ROUND);
                    last = round.last().cloned();
                    (round.into_iter().collect(), false)
                }
            };
            let mut refused = Vec::new();
            for name in names {
                // Each call to a tracker that is away takes its time. With the next lease all are asked about.
                if standing.borrow().lease.is_none() {
                    break;
                }
                if !self.transfers.is_running(&name) && !self.vouch(&name).await {
                    refused.extend(self.sharer.untrusted.why(&name).map(|why| (name, why)));
                }
            }
            if let Some((first, why)) = refused.first().filter(|_| is_news) {
                tracing::warn!(files = refused.len(), %first, "not offered: {why}");
            }
        }
    }

    /// Whether the tracker's registered signature vouches for a file, which is offered then.
    pub(crate) async fn vouch(&self, name: &FileName) -> bool {
        let (registered, told) = match self.tracker.clone().signature(name).await {
            Ok(answer) => answer,
            // What is not registered has no signature either; of one that is away nothing is known.
            Err(error) => {
                tracing::debug!(%name, %error, "cannot ask about its signature");
                return !self.sharer.untrusted.has(name);
            }
        };
        let signature = match judge(&self.sharer.trust, &registered, told) {
            Ok(Some(signature)) => signature,
            Ok(None) => return true,
            Err(why) => {
                self.sharer.untrusted.explain(name, why.to_string());
                return false;
            }
        };
        let (sharer, transfers) = (self.sharer.clone(), self.transfers.clone());
        let vouched = move || sharer.vouched(&registered, &signature, &|name| transfers.is_running(name));
        match self.lanes.hashing.run(vouched).await {
            Ok(Ok(is_offered)) => is_offered,
            Ok(Err(error)) => {
                self.sharer.untrusted.explain(name, error.to_string());
                false
            }
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(%name, %error, "internal error: looking at a file panicked");
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_files_and_what_is_none_is_told_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let key = include_str!("../../proto/src/signature/test.pub");
        fs::write(path("a.pub"), key).unwrap();
        fs::write(path("both.pub"), [key, include_str!("../../proto/src/signature/other.pub")].concat()).unwrap();
        fs::write(path("none"), [0xff; 100]).unwrap();
        let ids = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(|name| path(name)).collect();
            read_keys(&paths).map(|keys| keys.ids().count()).map_err(|error| error.to_string())
        };
        assert_eq!((ids(&[]), ids(&["a.pub"]), ids(&["a.pub", "both.pub"])), (Ok(0), Ok(1), Ok(3)));
        for bad in ["none", "away", ""] {
            let text = ids(&["a.pub", bad]).unwrap_err();
            assert!(text.starts_with(&format!("--trust {}: ", path(bad).display())), "{text}");
        }
    }
}
