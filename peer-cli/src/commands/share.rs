//! `share`: hashing progress on a terminal, then a line for each file.

use drizzle_proto::{
    FileInfo, Signature, WireError,
    wire::{self, share_event::Event, share_result::Status, share_skipped::Reason},
};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Serialize;

use super::{FileFields, verify::Signed};
use crate::{
    args,
    connect::Daemon,
    exit::{Exit, Failure},
    format::{bytes, clean, count},
    keys::SigningKey,
    output::Out,
    paths, render,
};

/// More lines than this about files that went well, or that did not, are summed up.
const LINES: u32 = 20;

#[derive(Serialize)]
struct Shared<'a> {
    status: &'static str,
    #[serde(flatten)]
    file: FileFields<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<Signed>,
}

/// What a folder holds and is not shared, for one reason.
#[derive(Serialize)]
struct Skipped<'a> {
    status: &'static str,
    reason: &'static str,
    count: u64,
    examples: &'a [String],
}

/// What to ask; fails for what cannot be asked.
pub(super) fn request(share: &args::Share) -> Result<wire::ShareRequest, Failure> {
    if share.name.is_some() && share.paths.len() > 1 {
        return Err(Failure::new(Exit::Usage, "--name names one file: give one PATH with it"));
    }
    Ok(wire::ShareRequest {
        paths: share.paths.iter().map(|path| paths::absolute(path)).collect::<Result<_, _>>()?,
        name: share.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        chunk_size: share.chunk_size.unwrap_or(0),
        replace: share.replace,
    })
}

pub(super) async fn run(
    daemon: &Daemon,
    request: wire::ShareRequest,
    signing: Option<&SigningKey>,
    json: bool,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let explain = |status: tonic::Status| {
        let failure = daemon.failure(&status);
        failure.hint_if(Exit::NoSuchFile, "The daemon reads the files: the path must exist where `peer-svc` runs.")
    };
    let mut stream = daemon.control.clone().share(request).await.map_err(explain)?.into_inner();
    let bar = (!json && render::is_terminal()).then(bar);
    let mut tally = Tally::default();
    while let Some(event) = stream.message().await.map_err(explain)? {
        match event.event {
            Some(Event::Progress(progress)) => {
                if let Some(bar) = &bar {
                    hashing(bar, &progress);
                }
            }
            Some(Event::Skipped(skipped)) => match &bar {
                Some(bar) => bar.suspend(|| tally.skip(&skipped, json, out))?,
                None => tally.skip(&skipped, json, out)?,
            },
            Some(Event::Result(mut result)) => {
                if let Some(bar) = &bar {
                    bar.finish_and_clear();
                }
                let signature = match signing {
                    Some(key) => sign(daemon, key, &mut result).await,
                    None => None,
                };
                tally.add(&result, signature.as_ref(), json, out)?;
            }
            None => {}
        }
    }
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    if !json {
        tally.sum_up(out)?;
    }
    if tally.is_empty() {
        let text = "nothing to share: there is no file in there that may be shared";
        return Err(Failure::new(Exit::NoSuchFile, text).hint(
            "Hidden and temporary files, links that lead out of the folder, and what --exclude or .drizzleignore name are left out; name such a file itself to share it.",
        ));
    }
    Ok(match () {
        () if tally.refused + tally.failed > 0 => Exit::Other,
        () if tally.untrusted > 0 => Exit::NotPermitted,
        () => Exit::Done,
    })
}

/// Signs what became of a file, if it was shared; the result says what became of that.
async fn sign(daemon: &Daemon, key: &SigningKey, result: &mut wire::ShareResult) -> Option<Signature> {
    if !matches!(result.status(), Status::Registered | Status::Pending | Status::Untrusted) {
        return None;
    }
    let file = result.file.clone().ok_or(WireError::Missing("file")).and_then(FileInfo::try_from);
    let file = file.map_err(|error| Failure::new(Exit::Other, format!("the daemon's answer is malformed: {error}")));
    let signed = async {
        let signature = key.sign(&file?)?;
        let request = wire::SignFileRequest { signature: Some((&signature).into()) };
        let answer = daemon.answer(daemon.control.clone().sign_file(request)).await?;
        Ok::<_, Failure>((signature, answer.pending))
    };
    match signed.await {
        Ok((signature, pending)) => {
            // What was not offered for want of a signature is.
            result.set_status(if pending { Status::Pending } else { Status::Registered });
            result.detail.clear();
            Some(signature)
        }
        Err(failure) => {
            let untrusted = failure.exit == Exit::NotPermitted;
            result.set_status(if untrusted { Status::Untrusted } else { Status::Failed });
            result.detail = format!("not signed: {}", failure.reason);
            None
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stdout_with_hz(15));
    bar.set_style(render::bars::style(true));
    bar
}

fn hashing(bar: &ProgressBar, progress: &wire::HashProgress) {
    bar.set_length(progress.bytes_total.max(1));
    bar.set_prefix(format!("hashing {}/{}", progress.files_done, progress.files_total));
    bar.set_message(format!("{} of {}", bytes(progress.bytes_done), bytes(progress.bytes_total)));
    bar.set_position(progress.bytes_done);
}

/// What came of the files so far.
#[derive(Debug, Default)]
struct Tally {
    registered: u32,
    pending: u32,
    refused: u32,
    failed: u32,
    untrusted: u32,
    unwritten: u32,
    /// Something was left out that is shared if it is named itself.
    nameable: bool,
}

impl Tally {
    fn add(
        &mut self,
        result: &wire::ShareResult,
        signature: Option<&Signature>,
        json: bool,
        out: &mut Out,
    ) -> Result<(), Failure> {
        let good = self.registered + self.pending;
        let bad = self.refused + self.failed + self.untrusted;
        let (status, before) = match result.status() {
            Status::Registered => (&mut self.registered, good),
            Status::Pending => (&mut self.pending, good),
            Status::Refused => (&mut self.refused, bad),
            Status::Untrusted => (&mut self.untrusted, bad),
            Status::Failed | Status::Unspecified => (&mut self.failed, bad),
        };
        *status += 1;
        if json {
            let unknown = wire::FileInfo::default();
            let file = result.file.as_ref().unwrap_or(&unknown).into();
            let signature = signature.map(Into::into);
            out.json(&Shared { status: word(result.status()), file, detail: &result.detail, signature })?;
        } else if before < LINES {
            let signed = signature.map_or_else(String::new, |by| format!(", signed by the key {}", by.key()));
            out.line(&format!("{}{signed}", line(result)))?;
        } else {
            self.unwritten += 1;
        }
        Ok(())
    }

    fn skip(&mut self, skipped: &wire::ShareSkipped, json: bool, out: &mut Out) -> Result<(), Failure> {
        let by_name = [Reason::Hidden, Reason::Temporary, Reason::Excluded, Reason::LinkOut];
        self.nameable |= by_name.contains(&skipped.reason());
        let reason = left_out(skipped.reason());
        let (count, examples) = (skipped.count, &skipped.examples[..]);
        if json {
            return Ok(out.json(&Skipped { status: "skipped", reason, count, examples })?);
        }
        let named = examples.iter().map(|path| clean(path)).collect::<Vec<_>>().join(", ");
        let more = count.saturating_sub(examples.len() as u64);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Ok(out.line(&format!("skipped {count} ({reason}): {named}{more}"))?)
    }

    fn is_empty(&self) -> bool {
        self.registered + self.pending + self.refused + self.failed + self.untrusted == 0
    }

    fn sum_up(&self, out: &mut Out) -> Result<(), Failure> {
        if self.unwritten > 0 {
            let counts = [
                (self.registered, "shared"),
                (self.pending, "waiting for the tracker"),
                (self.refused, "refused"),
                (self.untrusted, "not offered for want of a signature"),
                (self.failed, "failed"),
            ];
            let counts = counts.iter().filter(|(number, _)| *number > 0);
            let counts: Vec<_> = counts.map(|(number, what)| format!("{number} {what}")).collect();
            out.line(&format!("... {} more; in all {}", count(self.unwritten, "file"), counts.join(", ")))?;
        }
        if self.nameable && !self.is_empty() {
            out.line("What is skipped by its name, and a link out of the folder, is shared if it is named itself.")?;
        }
        if self.pending > 0 {
            out.line("The tracker is away: pending files are registered as soon as it is back.")?;
        }
        Ok(())
    }
}

/// Why something is left out, in words.
fn left_out(reason: Reason) -> &'static str {
    match reason {
        Reason::Hidden => "hidden",
        Reason::Temporary => "temporary by its name",
        Reason::Excluded => "excluded by --exclude or .drizzleignore",
        Reason::LinkOut => "link out of the folder",
        Reason::LinkNowhere => "link to nothing",
        Reason::LinkBack => "link back to a folder around it",
        Reason::SecondLink => "link to a folder, within a linked folder",
        Reason::NotRegular => "not a regular file",
        Reason::BadName => "its name cannot be shared: not UTF-8, with a control character or a backslash, or too long",
        Reason::Unspecified => "for a reason that this peer-cli does not know",
    }
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Registered => "registered",
        Status::Pending => "pending",
        Status::Refused => "refused",
        Status::Untrusted => "untrusted",
        Status::Failed | Status::Unspecified => "failed",
    }
}

fn line(result: &wire::ShareResult) -> String {
    let file = result.file.clone().unwrap_or_default();
    let name = clean(&file.name);
    let content = format!("{}, {}, id {}", bytes(file.size), count(file.chunk_count, "chunk"), clean(&file.file_id));
    match result.status() {
        Status::Registered => format!("shared {name} ({content})"),
        Status::Pending => format!("pending {name} ({content})"),
        Status::Untrusted => format!("not offered {name}: {}", clean(&result.detail)),
        Status::Refused => format!("refused {name}: {}", clean(&result.detail)),
        // It may be that it has no name.
        Status::Failed | Status::Unspecified if name.is_empty() => format!("failed: {}", clean(&result.detail)),
        Status::Failed | Status::Unspecified => format!("failed {name}: {}", clean(&result.detail)),
    }
}
