//! Watches on a file's holders.

use std::time::Instant;

use drizzle_proto::{FileInfo, FileName, holder::HolderChanges};
use tokio::sync::watch;

use super::{Guarded, Inner, Registry};
use crate::{
    error::Error,
    live::watches::{Newcomer, Watch},
};

impl Registry {
    /// Begins a watch on a file's holders: on all, or on neighbours.
    pub async fn watch(&self, name: FileName, newcomer: Option<Newcomer>, now: Instant) -> Result<Watcher, Error> {
        // A name with a swarm stands for that swarm's file.
        let live = self.inner.with(|guarded| {
            let file = guarded.live.file(&name)?.clone();
            Some(guarded.watch(&file, newcomer.as_ref(), now))
        });
        let registry = self.clone();
        if let Some(begun) = live {
            let (watch, bell) = begun?;
            return Ok(Watcher { registry, watch, bell });
        }
        let begin = move |inner: &Inner| {
            // Held over both halves: the name must not be released between them.
            let _names = inner.names.shared([&name]);
            let record = inner.catalogue.get(&name)?.ok_or_else(|| Error::NoSuchFile(name.clone()))?;
            let (watch, bell) = inner.with(|guarded| guarded.watch(&record.file, newcomer.as_ref(), now))?;
            // Made here, so that it ends if the caller has gone away.
            Ok(Watcher { registry, watch, bell })
        };
        self.blocking(begin).await
    }
}

impl Guarded {
    /// A watch on a file, and what rings for it.
    fn watch(
        &mut self,
        file: &FileInfo,
        newcomer: Option<&Newcomer>,
        now: Instant,
    ) -> Result<(Watch, watch::Receiver<()>), Error> {
        let watch = self.live.watch(file, newcomer, now)?;
        let bell = self.bells.entry(watch.serial()).or_insert_with(|| watch::Sender::new(())).subscribe();
        Ok((watch, bell))
    }
}

/// A watch on one file's holders. Dropping it ends the watch.
pub struct Watcher {
    registry: Registry,
    watch: Watch,
    /// Rings after each change; closed when the name is released.
    bell: watch::Receiver<()>,
}

impl Watcher {
    /// What to tell next, if anything is left to tell; an error once the name is released.
    pub fn next_message(&mut self) -> Result<Option<HolderChanges>, Error> {
        self.registry.inner.with(|guarded| guarded.live.next_message(&mut self.watch))
    }

    /// Whether [`Watcher::next_message`] may have something to tell because of what happened since this was asked last.
    pub fn has_changed(&mut self) -> bool {
        // As in `changed`, an error is what `next_message` tells. What rings from here on is asked for next time.
        let has_changed = self.bell.has_changed().unwrap_or(true);
        if has_changed {
            self.bell.mark_unchanged();
        }
        has_changed
    }

    /// Waits until [`Watcher::next_message`] may have something to tell.
    pub async fn changed(&mut self) {
        // An error means that the name was released, which `next_message` tells.
        let _ = self.bell.changed().await;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.registry.inner.with(|guarded| guarded.live.unwatch(&self.watch));
    }
}
