//! `verify`: a local file against the registered manifest, and that against its signature. The file is read here, with the
//! rights of whoever asks; what is registered is asked of the daemon.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use drizzle_proto::{
    ChunkIndex, ChunkSet, Digest, FileInfo, FileName, Manifest, Signature, WireError,
    convert::hashes,
    trust::{Distrust, TrustedKeys},
    wire,
};
use serde::Serialize;

use super::FileFields;
use crate::{
    args,
    connect::Daemon,
    exit::{Exit, Failure},
    format::{bytes, clean, count},
    keys,
    output::Out,
};

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    file: FileFields<'a>,
    path: &'a str,
    matches: bool,
    /// First and last index of each run.
    wrong_chunks: Vec<(u32, u32)>,
    signature: Option<Signed>,
    /// Whether a trusted key signed it; null if no key was given.
    trusted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Who signed, as it is told; and when.
#[derive(Serialize)]
pub(super) struct Signed {
    key_id: String,
    time: String,
}

impl From<&Signature> for Signed {
    fn from(signature: &Signature) -> Self {
        Self { key_id: signature.key().to_string(), time: signature.statement().time().to_string() }
    }
}

/// What a name stands for.
struct Registered {
    wire: wire::FileInfo,
    file: FileInfo,
    manifest: Manifest,
    signature: Result<Option<Signature>, WireError>,
}

/// What the command needs, before the daemon is asked.
pub(super) struct Order {
    args: args::Verify,
    keys: TrustedKeys,
    local: Arc<File>,
    size: u64,
}

/// Opens and reads what is local; fails if that is not possible.
pub(super) fn order(args: &args::Verify) -> Result<Order, Failure> {
    let keys = keys::trusted(&args.trust)?;
    let shown = args.file.display();
    let local = File::open(&args.file).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, local) = local.map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NoSuchFile } else { Exit::Other };
        Failure::new(exit, format!("cannot read {shown}: {error}"))
    })?;
    if !metadata.is_file() {
        return Err(Failure::new(Exit::Usage, format!("{shown} is not a regular file")));
    }
    Ok(Order { args: args.clone(), keys, local: Arc::new(local), size: metadata.len() })
}

pub(super) async fn run(daemon: &Daemon, order: Order, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    let Order { args: args::Verify { name, file: path, export_signature, .. }, keys, local, size } = order;
    let Registered { wire, file, manifest, signature } = ask(daemon, &name).await?;
    let registered_size = manifest.layout().size();
    let wrong = if size == registered_size {
        compare(local, &path, &manifest).await?
    } else {
        ChunkSet::empty(manifest.layout().chunk_count())
    };
    let matches = size == registered_size && wrong.is_empty();
    let distrust = judge(&keys, &file, &signature);
    let signature = signature.unwrap_or_default();
    let shown = clean(&path.to_string_lossy()).into_owned();
    if json {
        let detail = distrust.as_ref().err().map(ToString::to_string);
        let trusted = (!keys.is_empty()).then_some(distrust.is_ok());
        out.json(&Document {
            file: (&wire).into(),
            path: &path.to_string_lossy(),
            matches,
            wrong_chunks: wrong.ranges().iter().collect(),
            signature: signature.as_ref().map(Into::into),
            trusted,
            detail,
        })?;
    } else {
        if matches {
            let (size, chunks) = (bytes(size), count(wire.chunk_count, "chunk"));
            out.line(&format!("{shown} is the registered {} ({size}, {chunks}, id {})", clean(&wire.name), file.id))?;
        }
        out.line(&signed_line(signature.as_ref(), &keys, distrust.is_ok()))?;
    }
    if !matches {
        let why = match size == registered_size {
            true if wrong.is_full() => "every chunk differs".to_owned(),
            true => format!("chunks {} differ", wrong.ranges()),
            false => format!("it has {size} bytes, the registered file {registered_size}"),
        };
        return Err(Failure::new(Exit::Integrity, format!("{shown} is not the registered {name}: {why}"))
            .hint(format!("`peer-cli download {name} -o PATH` fetches the registered file.")));
    }
    distrust.map_err(|why| Failure::new(Exit::NotPermitted, format!("{name}: {why}")))?;
    if let Some(path) = export_signature {
        let signature =
            signature.ok_or_else(|| Failure::new(Exit::NotPermitted, format!("{name}: {}", Distrust::Unsigned)))?;
        export(&signature, &path, json, out)?;
    }
    Ok(Exit::Done)
}

/// Without keys a signature is not asked for, but one that is told must be of this file.
fn judge(keys: &TrustedKeys, file: &FileInfo, told: &Result<Option<Signature>, WireError>) -> Result<(), Distrust> {
    match told {
        Err(WireError::Signature(error)) => Err(error.clone().into()),
        Err(_) => Err(Distrust::Unsigned),
        Ok(Some(signature)) if !signature.statement().is_about(file) => {
            Err(Distrust::OtherFile(signature.statement().clone()))
        }
        Ok(signature) => keys.check(file, signature.as_ref()),
    }
}

fn signed_line(signature: Option<&Signature>, keys: &TrustedKeys, is_good: bool) -> String {
    let Some(signature) = signature else { return "not signed".to_owned() };
    let by = format!("signed by the key {} at {}", signature.key(), signature.statement().time());
    match (keys.is_empty(), is_good) {
        (true, true) => format!("{by}, as it says; --trust PUBKEY_FILE checks that"),
        (false, true) => format!("{by}, which is trusted"),
        (_, false) => format!("{by}, as it says, which is not so or not trusted"),
    }
}

/// The registered file with all its hashes, and what was signed of it.
async fn ask(daemon: &Daemon, name: &FileName) -> Result<Registered, Failure> {
    let malformed = |error: WireError| Failure::new(Exit::Other, format!("the daemon's answer is malformed: {error}"));
    let mut control = daemon.control.clone();
    let mut request =
        wire::FileLocationsRequest { name: name.to_string(), omit_holders: true, packed: true, ..Default::default() };
    let mut all = Vec::new();
    let mut signature = Ok(None);
    loop {
        let page = daemon.answer(control.file_locations(request.clone())).await;
        let page =
            page.map_err(|failure| failure.hint_if(Exit::NoSuchFile, "`peer-cli files` lists what there is."))?;
        let wire = page.file.ok_or(malformed(WireError::Missing("file")))?;
        let file = FileInfo::try_from(wire.clone()).map_err(malformed)?;
        // Another file may be signed as well, and says nothing of this name.
        if file.name != *name {
            return Err(malformed(WireError::OtherFile));
        }
        if !request.omit_signature {
            signature = page.signature.map(Signature::try_from).transpose();
        }
        let hashes = hashes(&page.chunk_sha256, &page.packed_sha256).map_err(malformed)?;
        let is_last = hashes.is_empty();
        all.extend(hashes);
        if is_last || all.len() >= file.layout.chunk_count().get() as usize {
            let manifest = Manifest::new(file.layout, all).ok().filter(|manifest| manifest.id() == file.id);
            let manifest = manifest.ok_or_else(|| {
                Failure::new(Exit::Other, format!("{name} was registered anew meanwhile; run the command again"))
            })?;
            return Ok(Registered { wire, file, manifest, signature });
        }
        request.first_hash = u32::try_from(all.len()).unwrap_or(u32::MAX);
        request.omit_signature = true;
    }
}

/// The chunks of a local file that are other ones than the registered. Chunk by chunk, so that it can be interrupted.
async fn compare(local: Arc<File>, path: &Path, manifest: &Manifest) -> Result<ChunkSet, Failure> {
    let layout = manifest.layout();
    let mut wrong = ChunkSet::empty(layout.chunk_count());
    for chunk in layout.chunk_count().indices() {
        let (local, offset, len) = (local.clone(), layout.offset(chunk), layout.chunk_len(chunk) as usize);
        let hash = move || {
            let mut bytes = vec![0; len];
            local.read_exact_at(&mut bytes, offset).map(|()| Digest::of(&bytes))
        };
        let hash = tokio::task::spawn_blocking(hash).await.map_err(|error| unreadable(path, chunk, error))?;
        if hash.map_err(|error| unreadable(path, chunk, error))? != manifest.hash(chunk) {
            wrong.insert(chunk);
        }
    }
    Ok(wrong)
}

fn unreadable(path: &Path, chunk: ChunkIndex, error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Other, format!("cannot read chunk {} of {}: {error}", chunk.get(), path.display()))
}

/// Writes what was signed, and beside it the signature, as minisign looks for it.
fn export(signature: &Signature, path: &Path, json: bool, out: &mut Out) -> Result<(), Failure> {
    let mut minisig = path.as_os_str().to_owned();
    minisig.push(".minisig");
    let minisig = PathBuf::from(minisig);
    keys::write_new(path, 0o644, &signature.statement().to_string())?;
    keys::write_new(&minisig, 0o644, signature.minisign())?;
    if !json {
        let path = path.to_string_lossy();
        out.line(&format!("check it with: minisign -Vm {} -p PUBKEY_FILE", clean(&path)))?;
    }
    Ok(())
}
