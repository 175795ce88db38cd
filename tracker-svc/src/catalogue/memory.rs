//! A catalogue in memory: for tests of what is above it, and for simulations of a fleet, where nothing is to outlive a run.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use drizzle_proto::{Digest, FileId, FileInfo, FileName, Manifest, PeerId, Signature};

use super::{Catalogue, CatalogueError, Claim, Known, Record, Verdict};

/// Forgets everything when it is dropped.
#[derive(Debug, Default)]
pub struct MemoryCatalogue(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    names: BTreeMap<FileName, Record>,
    manifests: HashMap<FileId, Manifest>,
    /// By which peer, or by an operator.
    withdrawn: HashMap<FileName, (FileId, Option<PeerId>)>,
    clock: u64,
    unattended: HashMap<FileName, u64>,
    signatures: HashMap<FileName, Signature>,
}

impl Tables {
    fn register(&mut self, owner: PeerId, Claim { file, manifest, replace, signature }: &Claim) -> Verdict {
        let name = &file.name;
        let before = self.names.get(&file.name).cloned();
        if let Some(Record { file: registered, owner: first }) = before.clone() {
            let own = first == owner;
            if registered.id == file.id {
                let signed = own && self.sign(name, signature.as_ref());
                return if signed { Verdict::Signed } else { Verdict::Same };
            } else if !(own && *replace) {
                return Verdict::Other { registered, own };
            }
        }
        match self.withdrawn.get(&file.name) {
            Some((id, None)) if *id == file.id => return Verdict::Dropped,
            Some((id, Some(by))) if *id == file.id && *by != owner => return Verdict::Withdrawn,
            _ => {}
        }
        match (self.manifests.get(&file.id), manifest) {
            (Some(_), _) => {}
            (None, Some(manifest)) => drop(self.manifests.insert(file.id, manifest.clone())),
            (None, None) => return Verdict::NoManifest,
        }
        self.withdrawn.remove(&file.name);
        self.remove(&file.name);
        self.names.insert(file.name.clone(), Record { file: file.clone(), owner });
        self.sign(name, signature.as_ref());
        before.map_or(Verdict::New, |before| Verdict::Replaced(before.file))
    }

    /// Whether it is another one than before.
    fn sign(&mut self, name: &FileName, signature: Option<&Signature>) -> bool {
        let Some(signature) = signature else { return false };
        self.signatures.insert(name.clone(), signature.clone()).as_ref() != Some(signature)
    }

    fn remove(&mut self, name: &FileName) -> Option<Record> {
        let record = self.names.remove(name)?;
        self.unattended.remove(name);
        self.signatures.remove(name);
        if self.names.values().all(|other| other.file.id != record.file.id) {
            self.manifests.remove(&record.file.id);
        }
        Some(record)
    }
}

impl MemoryCatalogue {
    /// No change of the tables can panic half-way.
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Catalogue for MemoryCatalogue {
    fn check(&self) -> Result<(), CatalogueError> {
        Ok(())
    }

    fn lookup(&self, files: &[FileInfo]) -> Result<Vec<Known>, CatalogueError> {
        let tables = self.lock();
        let known = files.iter().map(|file| Known {
            registered: tables.names.get(&file.name).cloned(),
            content: tables.manifests.get(&file.id).map(Manifest::layout),
        });
        Ok(known.collect())
    }

    fn register(&self, owner: PeerId, claims: &[Claim]) -> Result<Vec<Verdict>, CatalogueError> {
        let mut tables = self.lock();
        Ok(claims.iter().map(|claim| tables.register(owner, claim)).collect())
    }

    fn release(&self, name: &FileName, by: PeerId) -> Result<bool, CatalogueError> {
        let mut tables = self.lock();
        let Some(Record { file, owner }) = tables.remove(name) else { return Ok(false) };
        if owner == by {
            tables.withdrawn.insert(name.clone(), (file.id, Some(owner)));
        }
        Ok(true)
    }

    fn drop_name(&self, name: &FileName, bar: bool) -> Result<Option<Record>, CatalogueError> {
        let mut tables = self.lock();
        let dropped = tables.remove(name);
        if !bar {
            tables.withdrawn.remove(name);
        } else if let Some(record) = &dropped {
            tables.withdrawn.insert(name.clone(), (record.file.id, None));
        }
        Ok(dropped)
    }

    fn reassign(&self, name: &FileName, owner: PeerId) -> Result<Option<Record>, CatalogueError> {
        let mut tables = self.lock();
        let before = tables.names.get(name).cloned();
        if let Some(record) = tables.names.get_mut(name) {
            record.owner = owner;
        }
        Ok(before)
    }

    fn get(&self, name: &FileName) -> Result<Option<Record>, CatalogueError> {
        Ok(self.lock().names.get(name).cloned())
    }

    fn list(&self, prefix: &str, after: Option<&FileName>, limit: usize) -> Result<Vec<Record>, CatalogueError> {
        let from = after.map_or(Bound::Included(prefix), |name| Bound::Excluded(name.as_str()));
        let tables = self.lock();
        let names = tables.names.range::<str, _>((from, Bound::Unbounded));
        let page = names.map(|(_, record)| record).take_while(|record| record.file.name.as_str().starts_with(prefix));
        Ok(page.take(limit).cloned().collect())
    }

    fn clock(&self) -> Result<u64, CatalogueError> {
        Ok(self.lock().clock)
    }

    fn attend(&self, names: &[(FileName, bool)], clock: u64, limit: u64) -> Result<Vec<FileName>, CatalogueError> {
        let mut tables = self.lock();
        tables.clock = clock;
        let mut due = Vec::new();
        for (name, attended) in names {
            if *attended {
                tables.unattended.remove(name);
            } else if tables.names.contains_key(name) {
                let since = *tables.unattended.entry(name.clone()).or_insert(clock);
                due.extend((clock.saturating_sub(since) >= limit).then(|| name.clone()));
            }
        }
        Ok(due)
    }

    fn expire(&self, name: &FileName, clock: u64, limit: u64) -> Result<Option<Record>, CatalogueError> {
        let mut tables = self.lock();
        let due = tables.unattended.get(name).is_some_and(|since| clock.saturating_sub(*since) >= limit);
        Ok(if due { tables.remove(name) } else { None })
    }

    fn signature(&self, name: &FileName) -> Result<Option<Signature>, CatalogueError> {
        Ok(self.lock().signatures.get(name).cloned())
    }

    fn hashes(&self, id: FileId, first: u32, count: usize) -> Result<Vec<Digest>, CatalogueError> {
        let tables = self.lock();
        let hashes = tables.manifests.get(&id).map_or(&[][..], Manifest::hashes);
        Ok(hashes.iter().skip(first as usize).take(count).copied().collect())
    }
}

#[cfg(test)]
super::contract::contract!(((), MemoryCatalogue::default()));
